"""Samples of requests on disk: what is written, what is not, and how much."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
from fake_backend import fake_spec
from PIL import Image

from shared.datatypes import Array
from shared.messages import InferRequest, Tensor
from shared.model_spec import TensorSpec, TextInput
from shared.request_queue.claimed import Claimed
from worker.instance.batch_parts import DecodedRequest
from worker.instance.monitoring.samples import Samples
from worker.repository.config.parameters import SampleWish, sample_wish

NONE = frozenset[str]()
WORDS = TensorSpec(name="text", datatype="BYTES", dims=(1,))
Y = (Tensor.of("y", np.ones((1, 2), np.float32)),)


def decoded(*, pixels: bool = False, **arrays: Array) -> DecodedRequest:
    tensors = tuple(Tensor.of(name, each, pixels=pixels) for name, each in arrays.items())
    request = InferRequest("id", 1, tensors)
    item = Claimed("id", 1, 1, 0.0, request.encode())
    return DecodedRequest(item, request, {each.name: each.array() for each in tensors})


def written(directory: Path) -> dict[str, Array]:
    (file,) = directory.glob("*.npz")
    with np.load(file) as found:  # without pickle
        return dict(found)


def test_a_picture_and_its_answer_can_be_looked_at_by_our_user_alone(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    pixels = np.random.default_rng(1).integers(0, 256, (1, 8, 9, 3)).astype(np.uint8)

    Samples(fake_spec(), directory, SampleWish(10**6)).write(decoded(pixels=True, x=pixels), Y)

    (png,) = directory.glob("*.png")
    assert (np.asarray(Image.open(png)) == pixels[0]).all()
    assert written(directory)["output.y"].tolist() == [[1, 1]]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(png.stat().st_mode) == 0o600


def test_texts_keep_their_form_alone_unless_they_are_cleared(tmp_path: Path) -> None:
    spec = fake_spec().with_changes(inputs=(WORDS,))
    one = decoded(text=np.array([["Jürgen, 47 Röntgenstr.".encode()]], object))

    Samples(spec, tmp_path / "1", SampleWish(10**6)).write(one, ())
    Samples(spec, tmp_path / "2", SampleWish(10**6, frozenset({"text"}))).write(one, ())

    assert written(tmp_path / "1")["input.text"].tolist() == [["xxxxxx, 00 xxxxxxxxxx."]]
    assert written(tmp_path / "2")["input.text"].tolist() == [["Jürgen, 47 Röntgenstr."]]


def test_ids_of_texts_and_what_is_redacted_are_left_out(tmp_path: Path) -> None:
    ids = TensorSpec(name="ids", datatype="INT64", dims=(-1,))
    text = fake_spec().with_changes(inputs=(ids,), text=TextInput(tokenizer="t", max_length=9))
    one = decoded(ids=np.array([[7, 8, 9]]))
    Samples(text, tmp_path / "1", SampleWish(10**6)).write(one, Y)
    wish = SampleWish(10**6, redacted=frozenset({"x", "y"}))
    pixels = decoded(pixels=True, x=np.zeros((1, 8, 8, 1), np.uint8))
    Samples(fake_spec(), tmp_path / "2", wish).write(pixels, Y)

    assert str(written(tmp_path / "1")["input.ids"]) == "left out, shape [1, 3]"
    second = written(tmp_path / "2")
    assert {str(each) for each in second.values()} == {
        "left out, shape [1, 8, 8, 1]", "left out, shape [1, 2]"
    }  # fmt: skip
    assert not list((tmp_path / "2").glob("*.png"))


def test_the_oldest_make_room_and_what_is_too_large_is_not_written(tmp_path: Path) -> None:
    samples = Samples(fake_spec(), tmp_path, SampleWish(20_000))
    random = np.random.default_rng(1)
    for number in range(20):
        noise = random.normal(size=(1, 500)).astype(np.float32)
        noise[0, 0] = number
        samples.write(decoded(x=noise), Y)
    samples.write(decoded(x=np.zeros((1, 5000), np.float32)), Y)

    files = sorted(tmp_path.iterdir())
    assert 10_000 < sum(file.stat().st_size for file in files) <= 20_000
    numbers = {float(np.load(file)["input.x"][0, 0]) for file in files}
    assert numbers == set(range(20 - len(files), 20))


@pytest.mark.parametrize("text", ["-1", "many", "1,2"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="sample_bytes"):
        sample_wish({"sample_bytes": text})


def test_nothing_is_wished_for_by_itself() -> None:
    assert sample_wish({}) == SampleWish(0, NONE, NONE)
    wish = sample_wish({"sample_bytes": "9", "sample_clear": "a, b", "sample_redact": "c"})
    assert wish == SampleWish(9, frozenset({"a", "b"}), frozenset({"c"}))
