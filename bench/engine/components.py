"""What one request costs each component, in processor time, commands and bytes.

    python -m bench.engine.components [--clients N] [--seconds N] [--rounds N] [--only WORD]

A whole Ferry answers each kind of request, of models that compute next to nothing: 16 numbers as
JSON, a JPEG photo that is decoded at the API, or beside the instance with one batch in hand and
with two, and the same picture as a binary tensor. Per request are told the processor time
of the API, of Redis and of the worker, and Redis's commands and bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch

from bench import wrk
from bench.many_models import family_of
from bench.processes import BenchError
from bench.scenarios import SCENARIOS, photo_body
from bench.servers import whole
from bench.single_requests import Request
from shared.inputs.picture_files import open_picture
from shared.settings import Settings
from shared.wire.client import connect

QUALITY = 85
PIXELS = (3, 224, 224)
HEADER_LENGTH = "Inference-Header-Content-Length"
CONFIG = """\
name: "{name}"
platform: "pytorch_libtorch"
max_batch_size: 32
input [ {{ name: "x" data_type: {datatype} format: FORMAT_NCHW dims: [3, 224, 224] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [3] }} ]
dynamic_batching {{ }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
{parameters}
"""
PICTURE = """\
parameters { key: "input_kind" value { string_value: "image" } }
parameters { key: "image_resize" value { string_value: "crop" } }
parameters { key: "image_resize_size" value { string_value: "256" } }
"""
BESIDE = 'parameters { key: "image_decode_in" value { string_value: "worker" } }\n'
TWO_BATCHES = 'parameters { key: "pipeline_depth" value { string_value: "2" } }\n'


class Costs(NamedTuple):
    """One measurement, of each request: microseconds of processor, commands, bytes."""

    per_second: float
    api_us: float
    redis_us: float
    worker_us: float
    commands: float
    bytes_in: float
    bytes_out: float


class Corner(torch.nn.Module):
    """Answers three numbers of a picture, for next to no time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (rows, 3), FP32."""
        return x[:, :, 0, 0].to(torch.float32)


def main(arguments: Sequence[str]) -> int:
    """Measure all, one after the other in each round, and print the medians."""
    parser = argparse.ArgumentParser(prog="components", description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=32, help="[32]")
    parser.add_argument("--seconds", type=int, default=6, help="per measurement [6]")
    parser.add_argument("--rounds", type=int, default=3, help="whose medians count [3]")
    parser.add_argument("--only", default="", help="the kinds whose names have this word [all]")
    options = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="ferry-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        asked = {
            what: stack.enter_context(started(model, request, directory / model))
            for what, (model, request) in requests(directory / "models").items()
            if options.only in what
        }
        found: dict[str, list[Costs]] = {what: [] for what in asked}
        for number in range(options.rounds + 1):
            for what, ferry in asked.items():
                costs = ferry.measure(options.clients, options.seconds)
                if number:  # the first one warms
                    found[what].append(costs)
    print(f"{'':16}  requests/s  API us  Redis us  worker us  commands  bytes in  bytes out")
    for what, rounds in found.items():
        one = Costs(*map(median, zip(*rounds, strict=True)))
        print(
            f"{what:16}  {one.per_second:10.0f}  {one.api_us:6.0f}  {one.redis_us:8.0f}  "
            f"{one.worker_us:9.0f}  {one.commands:8.2f}  {one.bytes_in:8.0f}  {one.bytes_out:9.0f}"
        )
    print(f"{options.clients} clients, load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    return 0


def requests(models: Path) -> dict[str, tuple[str, Request]]:
    """Write models besides `tiny`; return each kind's model and request, without its port."""
    write_model(models, "pictures", "TYPE_FP32", PICTURE)
    write_model(models, "beside", "TYPE_FP32", PICTURE + BESIDE)
    write_model(models, "two", "TYPE_FP32", PICTURE + BESIDE + TWO_BATCHES)
    write_model(models, "tensors", "TYPE_UINT8", "")
    (models / "tiny").symlink_to(Path(Settings.from_env(os.environ).models).resolve() / "tiny")
    tiny = SCENARIOS["tiny"]
    head, body = binary_body()
    binary = ((HEADER_LENGTH, str(head)),)
    path = "/v2/models/tensors/infer"
    photo = Request(0, "/predict/pictures", "POST", "image/jpeg", web_photo())
    return {
        "16 numbers, JSON": (
            "tiny", Request(0, tiny.path, "POST", tiny.content_type, tiny.body())
        ),
        "JPEG, API": ("pictures", photo),
        "JPEG, worker": ("beside", replace(photo, path="/predict/beside")),
        "JPEG, worker, 2": ("two", replace(photo, path="/predict/two")),
        "150 KB of binary": (
            "tensors", Request(0, path, "POST", "application/octet-stream", body, binary)
        ),
    }  # fmt: skip


def write_model(models: Path, name: str, datatype: str, parameters: str) -> None:
    """Write a model that takes a picture."""
    (models / name / "1").mkdir(parents=True)
    torch.jit.save(torch.jit.script(Corner()), str(models / name / "1" / "model.pt"))
    config = CONFIG.format(name=name, datatype=datatype, parameters=parameters)
    (models / name / "config.pbtxt").write_text(config)


def web_photo() -> bytes:
    """Return the photo as cameras and pages have them, 83 KB: less than the 150 of its pixels."""
    buffer = io.BytesIO()
    open_picture(photo_body(), "the photo").save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def binary_body() -> tuple[int, bytes]:
    """Return a request for `tensors` in the protocol's binary form, and its JSON's length."""
    pixels = np.zeros((1, *PIXELS), np.uint8).tobytes()
    tensor = {
        "name": "x", "datatype": "UINT8", "shape": [1, *PIXELS],
        "parameters": {"binary_data_size": len(pixels)},
    }  # fmt: skip
    head = json.dumps({"inputs": [tensor]}).encode()
    return len(head), head + pixels


class Ferry:
    """A running one with a single model, and how it is asked."""

    def __init__(self, settings: Settings, request: Request, directory: Path) -> None:
        """Measure the one of these settings; wrk's files go into `directory`."""
        self._client = connect(settings.redis_url)
        self._request = replace(request, port=settings.port)
        self._directory = directory

    def measure(self, clients: int, seconds: int) -> Costs:
        """Ask for so long; return what a request cost. Raises BenchError when one fails."""
        before, redis_before = processor_seconds(), self._redis()
        measured = wrk.measure(self._request, clients, seconds, self._directory)
        if measured.error_count or not measured.answer_count:
            raise BenchError(f"{measured.error_count} requests failed")
        after, redis = processor_seconds(), self._redis()
        spent = [1e6 * (now - then) for now, then in zip(after, before, strict=True)]
        asked = [now - then for now, then in zip(redis, redis_before, strict=True)]
        api_us, worker_us, redis_us, *rest = (
            each / measured.answer_count for each in (*spent, *asked)
        )
        return Costs(measured.per_second, api_us, redis_us, worker_us, *rest)

    def _redis(self) -> list[float]:
        """Return its one thread's microseconds, the commands, and the bytes that came and went."""
        info = self._client.info()
        seconds = info["used_cpu_user_main_thread"] + info["used_cpu_sys_main_thread"]
        names = ("total_commands_processed", "total_net_input_bytes", "total_net_output_bytes")
        return [1e6 * float(seconds), *(float(info[name]) for name in names)]


def processor_seconds() -> tuple[float, float]:
    """Return what all APIs have taken, and all workers; who is not asked idles."""
    found = {"gunicorn": 0.0, "worker": 0.0}
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        for child in (task / "children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            for part in found.keys() & {Path(word).name for word in words}:
                found[part] += sum(family_of(int(child)).values())
    return found["gunicorn"], found["worker"]


@contextmanager
def started(model: str, request: Request, directory: Path) -> Iterator[Ferry]:
    """Run a Ferry with one model."""
    directory.mkdir()
    models = str(directory.parent / "models")
    usual = replace(Settings.from_env(os.environ), models=models)
    with whole(model, usual, directory) as settings:
        yield Ferry(settings, request, directory)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
