"""The sample `digits` recognises held-out handwriting, and what strangers upload."""

import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from samples import tiny
from samples.digits import held_out, training, write_pictures
from samples.digits.pictures import training_handwriting


class Served:
    """The saved model, fed as the server does it: L, stretched to 32 x 32, then scaled."""

    def __init__(self, directory: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.model = torch.jit.load(directory / "1" / "model.pt")
        self.config = (directory / "config.pbtxt").read_text()

    def parameter(self, key: str) -> str:
        found = re.search(rf'key: "{key}" value {{ string_value: "([^"]*)" }}', self.config)
        assert found, f"config.pbtxt has no parameter {key}"
        return found[1]

    def classify(self, images: list[Image.Image]) -> list[int]:
        pixels = [
            np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BILINEAR))
            for image in images
        ]
        scaled = np.stack(pixels)[:, None].astype(np.float32) * float(self.parameter("image_scale"))
        mean, std = float(self.parameter("image_mean")), float(self.parameter("image_std"))
        with torch.no_grad():
            logits = self.model(torch.from_numpy((scaled - np.float32(mean)) / np.float32(std)))
        assert logits.shape == (len(images), 10)
        return logits.argmax(1).tolist()


@pytest.fixture(scope="module")
def served(sample_models: Path) -> Served:
    return Served(sample_models / "digits")


def as_png(pixels: np.ndarray) -> Image.Image:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return Image.open(buffer)


def accuracy(served: Served, pictures: np.ndarray, labels: np.ndarray) -> float:
    found = served.classify([as_png(picture) for picture in pictures])
    return float((np.array(found) == labels).mean())


def test_the_held_out_fifth_is_stratified_and_was_not_trained_on() -> None:
    pictures, labels = held_out()

    trained, _ = training_handwriting()
    assert pictures.dtype == np.uint8 and pictures.shape == (360, 8, 8)
    assert pictures.max() == 255 and pictures.min() == 0
    assert labels.dtype == np.int64 and set(np.bincount(labels)) <= {34, 35, 36, 37}
    # subtle: compared by content; were two pictures of the dataset equal, this would fail as well.
    assert not {p.tobytes() for p in pictures} & {p.tobytes() for p in trained}


def test_98_of_100_held_out_digits_are_recognised(served: Served) -> None:
    assert accuracy(served, *held_out()) >= 0.98


def test_inverted_they_are_recognised_as_well(served: Served) -> None:
    pictures, labels = held_out()

    assert accuracy(served, 255 - pictures, labels) >= 0.97


def draw(digit: int, size: tuple[int, int], ink: str, paper: str, offset: int) -> Image.Image:
    image = Image.new("RGB", size, paper)
    # Smaller in the picture than any digit that training sets in this font (0.55 to 1.05).
    font = ImageFont.load_default(size=size[1] * 0.45)
    place = (size[0] // 2 + offset, size[1] // 2 - offset)
    ImageDraw.Draw(image).text(place, str(digit), ink, font, anchor="mm")
    return image


@pytest.mark.parametrize(("ink", "paper"), [("black", "white"), ("white", "black")])
@pytest.mark.parametrize(("size", "offset"), [((200, 200), 0), ((200, 200), 35), ((320, 240), -25)])
def test_drawn_digits_are_recognised(
    served: Served, ink: str, paper: str, size: tuple[int, int], offset: int
) -> None:
    found = served.classify([draw(digit, size, ink, paper, offset) for digit in range(10)])

    assert sum(digit == answer for digit, answer in enumerate(found)) >= 8


def test_the_configuration_states_what_training_used(served: Served) -> None:
    assert float(served.parameter("image_scale")) == pytest.approx(1 / 255)
    assert float(served.parameter("image_mean")) == training.IMAGE_MEAN
    assert float(served.parameter("image_std")) == training.IMAGE_STD


def test_a_picture_without_ink_gets_finite_logits(served: Served) -> None:
    logits = served.model(torch.ones(1, 1, 32, 32))

    assert torch.isfinite(logits).all()


def test_a_batch_gives_the_logits_of_its_pictures_alone(served: Served) -> None:
    batch = torch.randn(5, 1, 32, 32, generator=torch.Generator().manual_seed(1))

    together = served.model(batch)

    alone = torch.cat([served.model(row[None]) for row in batch])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_the_labels_are_the_digits(sample_models: Path) -> None:
    assert (sample_models / "digits" / "labels.txt").read_text().split() == list("0123456789")


def test_written_pictures_show_the_digit_in_their_name(served: Served, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "out")

    assert [path.name for path in paths] == [f"digit-{digit}.png" for digit in range(10)]
    images = [Image.open(path) for path in paths]
    assert {image.size for image in images} == {(64, 64)}
    assert served.classify(images) == list(range(10))


def test_an_interrupted_save_leaves_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("samples.tiny.torchscript.os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        tiny.make(tmp_path)

    assert not (tmp_path / "1" / "model.pt").exists()


def test_tiny_is_the_same_on_every_run(tmp_path: Path) -> None:
    example = torch.ones(3, 16)
    answers = []
    for name in ("first", "second"):
        tiny.make(tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            model = torch.jit.load(tmp_path / name / "1" / "model.pt")
        answers.append(model(example))

    assert answers[0].shape == (3, 3)
    assert torch.equal(*answers)
