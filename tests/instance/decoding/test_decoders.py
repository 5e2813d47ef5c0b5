"""Pictures that come as they are, are decoded beside the instance: the same pixels and errors."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from heavy_pictures import picture
from picture_bytes import encoded
from PIL import Image
from registered import spec

from bench.scenarios import photo_body
from shared.datatypes import Array
from shared.errors import BadRequest, QueueFull
from shared.inputs.pictures import MANY_PIXELS, picture_batch, picture_input
from shared.inputs.reader_process import UNREADABLE
from shared.messages import Buffer, InferRequest, InferResult, Tensor
from shared.model_spec import ImageInput, ModelSpec, TensorSpec
from shared.request_queue.claimed import Claimed
from worker.instance.batch import answer_batch
from worker.instance.decoding import decoders
from worker.instance.decoding.decoders import Decoders, is_encoded

SIDE = 96
X = TensorSpec(name="x", datatype="FP32", dims=(3, SIDE, SIDE))
EXIF_ORIENTATION = 0x0112


def model(**image: object) -> ModelSpec:
    wanted = {"decode_in": "worker", **image}
    described = ImageInput.model_validate({"input": "x", "height": SIDE, "width": SIDE, **wanted})
    return spec("m", X, image=described)


MODEL = model()
PHOTO = Image.effect_mandelbrot((200, 150), (-2, -1.5, 1, 1.5), 60).convert("RGB")


def turned() -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    return encoded(PHOTO, "JPEG", exif=exif)


def alpha() -> Image.Image:
    layer = PHOTO.resize((40, 30)).convert("RGBA")
    layer.putalpha(PHOTO.resize((40, 30)).convert("L"))
    return layer


FILES = {
    "JPEG": encoded(PHOTO, "JPEG"),
    "on its side": turned(),
    "progressive": encoded(PHOTO, "JPEG", progressive=True),
    "alpha": encoded(alpha()),
    "palette": encoded(PHOTO, "GIF"),
    "WebP": encoded(PHOTO, "WEBP"),
}


@dataclass
class Seeing:
    """A backend that keeps the pixels that it gets, and answers their mean."""

    passes: list[Array] = field(default_factory=list)

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        assert pixels == {"x"} and inputs["x"].dtype == np.uint8
        self.passes.append(inputs["x"].copy())
        means = inputs["x"].mean((1, 2, 3), dtype=np.float32)
        return {"out": np.stack([means] * 3, axis=1)}


def end(decoders: Decoders) -> None:
    for each in decoders._idle:
        each.end()


@pytest.fixture(scope="module")
def beside() -> Iterator[Decoders]:
    made = Decoders(MODEL.image, 2)  # type: ignore[arg-type]
    yield made
    end(made)


def asked(name: str, tensor: Tensor) -> Claimed:
    rows = tensor.shape[0]
    return Claimed(name, rows, 1, 0.0, InferRequest(name, rows, (tensor,)).encode())


def answers(batch: dict[str, Tensor], beside: Decoders, backend: Seeing) -> dict[str, InferResult]:
    claimed = [asked(name, tensor) for name, tensor in batch.items()]
    found = answer_batch(claimed, MODEL, backend, "i", decoders=beside).results
    return dict(zip(batch, map(InferResult.decode, found), strict=True))


def as_came(*files: bytes) -> Tensor:
    return Tensor.of("x", np.array(files, dtype=object), pixels=True)


def test_a_model_gets_the_very_pixels_that_the_api_would_have_made(beside: Decoders) -> None:
    backend, sent = Seeing(), {name: picture_input([file], MODEL) for name, file in FILES.items()}
    sent["several"] = picture_input(list(FILES.values()), MODEL)
    assert all(map(is_encoded, sent.values()))
    sent["pixels"] = picture_batch([FILES["JPEG"]], MODEL)
    assert len({MODEL.signature((tensor,)) for tensor in sent.values()}) == 1, "one batch"

    found = answers(sent, beside, backend)

    files: list[Buffer] = [*FILES.values(), *FILES.values(), FILES["JPEG"]]
    wanted = [picture_batch([file], MODEL).array() for file in files]
    (seen,) = backend.passes
    np.testing.assert_array_equal(seen, np.concatenate(wanted))
    assert found["several"].outputs[0].shape == (len(FILES), 3)
    assert all(result.error is None for result in found.values())


@pytest.mark.parametrize(
    "image", [{"channels": "BGR"}, {"channels": "L"}, {"resize": "crop"}, {"decode": "fast"}]
)
def test_so_it_does_however_the_config_has_them_made(image: dict[str, str]) -> None:
    wanted, backend = model(**image), Seeing()
    beside = Decoders(wanted.image, 1)  # type: ignore[arg-type]
    photo = photo_body()

    found = answer_batch([asked("a", as_came(photo))], wanted, backend, "i", decoders=beside)
    end(beside)

    assert InferResult.decode(found.results[0]).error is None
    np.testing.assert_array_equal(backend.passes[0], picture_batch([photo], wanted).array())


def test_what_is_broken_behind_its_header_fails_alone_as_at_the_api(beside: Decoders) -> None:
    broken = FILES["JPEG"][: len(FILES["JPEG"]) // 2]
    sent = {
        "before": picture_input([FILES["alpha"]], MODEL),
        "broken": picture_input([broken], MODEL),
        "second": picture_input([FILES["JPEG"], broken], MODEL),
        "behind": picture_input([FILES["WebP"]], MODEL),
    }
    backend = Seeing()

    found = answers(sent, beside, backend)

    assert len(backend.passes) == 1 and len(backend.passes[0]) == 2, "its neighbours stay together"
    assert found["before"].error is None and found["behind"].error is None
    for name, files in (("broken", [broken]), ("second", [FILES["JPEG"], broken])):
        with pytest.raises(BadRequest) as at_api:
            picture_batch(files, MODEL)
        error = found[name].error
        assert error is not None
        assert (error.status, error.message) == (400, at_api.value.message)


@pytest.fixture
def dying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoders]:
    """Decoders that die by the signal that a picture's file names."""
    (tmp_path / "dying_decoder.py").write_text(
        "import os, signal\n"
        "from worker.instance.decoding import child\n"
        "def answer(head, body):\n"
        "    if body[:3] == b'SIG':\n"
        "        os.kill(os.getpid(), getattr(signal, bytes(body).decode()))\n"
        "    return child.answer(head, body)\n"
        "child.limit_pictures(child.MANY_PIXELS)\n"
        "child.serve(answer, child.DECODE_SECONDS)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(decoders, "DECODER", "dying_decoder")
    made = Decoders(MODEL.image, 2)  # type: ignore[arg-type]
    yield made
    end(made)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL", "SIGPROF"])
def test_a_picture_that_takes_its_decoder_down_fails_alone(dying: Decoders, name: str) -> None:
    sent = {
        "good": picture_input([FILES["JPEG"]], MODEL),
        "deadly": as_came(name.encode()),
        "also good": picture_input([FILES["WebP"]], MODEL),
    }

    found = answers(sent, dying, Seeing())

    assert found["good"].error is None and found["also good"].error is None
    error = found["deadly"].error
    assert isinstance(error, BadRequest) and error.message == UNREADABLE


def test_decoders_that_somebody_ends_cost_nobody_anything(beside: Decoders) -> None:
    answers({"a": picture_input([FILES["JPEG"]], MODEL)}, beside, Seeing())
    assert beside._idle
    for each in beside._idle:
        each._process.kill()
        os.waitid(os.P_PID, each._process.pid, os.WEXITED | os.WNOWAIT)

    found = answers({"a": picture_input([FILES["JPEG"]], MODEL)}, beside, Seeing())

    assert found["a"].error is None


def test_decoders_hear_no_signal_that_is_meant_for_all(beside: Decoders) -> None:
    answers({"a": picture_input([FILES["JPEG"]], MODEL)}, beside, Seeing())
    before = [each._process.pid for each in beside._idle]
    for pid in before:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)

    found = answers({"a": picture_input([FILES["JPEG"]] * 2, MODEL)}, beside, Seeing())

    assert (
        found["a"].error is None and [each._process.poll() for each in beside._idle] == [None] * 2
    )


def test_only_what_is_smaller_and_decoded_in_no_time_goes_as_it_came() -> None:
    wide = round(MANY_PIXELS**0.5) + 1
    grey = Image.new("L", (wide, wide))

    def goes_as_it_came(*files: bytes, by: ModelSpec = MODEL) -> bool:
        return is_encoded(picture_input(files, by))

    photo = FILES["JPEG"]
    assert goes_as_it_came(photo)
    assert not goes_as_it_came(photo, by=model(decode_in="api"))
    assert not goes_as_it_came(picture(SIDE, "BMP")), "as large as its pixels"
    assert not goes_as_it_came(encoded(grey, "JPEG")), "many pixels"
    assert not goes_as_it_came(photo, encoded(grey, "JPEG"))
    assert not goes_as_it_came(photo + b"\xff\xda" * 20), "it may have as many scans"


def test_an_ensemble_gets_pixels() -> None:
    steps = ({"model": "a", "input_map": {"x": "x"}, "output_map": {"out": "out"}},)
    ensemble = ModelSpec.model_validate(MODEL.model_dump() | {"steps": steps})

    assert not is_encoded(picture_input([FILES["JPEG"]], ensemble))


def test_where_pictures_are_decoded_makes_no_other_model() -> None:
    there, here, other = MODEL, model(decode_in="api"), model(channels="BGR")

    assert there.answers_as(here) and here.answers_as(there)
    assert not there.answers_as(other) and not there.answers_as(spec("m", X))
    assert not spec("m", X).answers_as(there)


def test_a_machine_that_starts_no_process_is_told_of_as_one_with_too_much_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_: str) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(decoders, "ReaderProcess", full)
    monkeypatch.setattr(decoders, "START_AGAIN_SECONDS", 0.0)
    assert MODEL.image is not None

    with pytest.raises(QueueFull, match="too much to do"):
        Decoders(MODEL.image, 1)._decode(FILES["JPEG"], "the picture")
