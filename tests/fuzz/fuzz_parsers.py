"""Coverage-guided fuzzing of what reads clients' bytes, by atheris (libFuzzer for Python).

    python tests/fuzz/fuzz_parsers.py <parser> [libFuzzer's options]

`<parser>` is v2, frame, v1 or form. Without options it runs until it finds something or is stopped;
`-max_total_time=600` ends it after ten minutes. What it finds stands in a file `crash-...` (or
`timeout-`, `oom-`) in the current directory, which as the only option runs that input again.

An input's first byte chooses the model, of a frame the next two how much of the rest is JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "tests" / "helpers"
sys.path[:0] = [str(HELPERS), str(HELPERS / "models"), str(ROOT)]
with atheris.instrument_imports(include=["api", "shared"], enable_loader_override=False):
    from hostile import MODELS, check_form, check_frame, check_v1, check_v2

    from shared.errors import FerryError
    from shared.model_spec import ModelSpec

WORDS = [
    "inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "binary_data_size",
    "binary_data", "binary_data_output", "classification", "instances", "b64", "priority",
    "timeout", "FP32", "BYTES", "BOOL", "Content-Disposition", "form-data", "filename",
]  # fmt: skip
OPTIONS = ["-timeout=5", "-rss_limit_mb=2048", "-max_len=4096"]


def v2(data: bytes) -> None:
    check_v2(data[1:], _model(data))


def frame(data: bytes) -> None:
    length = int.from_bytes(data[1:3], "big")
    check_frame(data[3:], _model(data), str(length))


def v1(data: bytes) -> None:
    check_v1(data[1:], _model(data))


def form(data: bytes) -> None:
    check_form(data[1:])


PARSERS: dict[str, Callable[[bytes], None]] = {"v2": v2, "frame": frame, "v1": v1, "form": form}


def _model(data: bytes) -> ModelSpec:
    return MODELS[data[0] % len(MODELS)] if data else MODELS[0]


ROWS = ['{"instances":[[1,2]]}', '{"instances":[{"x":[1,2]}]}', '{"instances":3}', '{"inputs":[1]}',
        '{"inputs":{"x":[["a"]]}}', '{"instances":[{"b64":"AAAA"}]}']  # fmt: skip
FORM = (
    b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n'
    b"\r\nP5 1 1 255 a\r\n--xyz--\r\n"
)


def seeds(parser: str) -> list[bytes]:
    """Return requests that are right for a model, or nearly, as that parser's input."""
    found = []
    for index, model in enumerate(MODELS):
        items = [
            {"name": item.name, "datatype": item.datatype, "shape": [1, *item.dims]}
            for item in model.inputs
        ]
        plain = json.dumps({"inputs": [item | {"data": [1, 2]} for item in items]}).encode()
        sized = json.dumps(
            {"inputs": [item | {"parameters": {"binary_data_size": 8}} for item in items]}
        ).encode()
        bodies = {
            "v2": [plain],
            "frame": [len(sized).to_bytes(2, "big") + sized + bytes(8 * len(items))],
            "v1": [row.encode() for row in ROWS],
            "form": [FORM],
        }
        found += [bytes([index]) + body for body in bodies[parser]]
    return found


def main(parser: str, *options: str) -> None:
    """Fuzz one parser; ends the process."""

    def one(data: bytes) -> None:
        try:
            PARSERS[parser](data)
        except FerryError as error:
            if error.status >= 500 and error.code != "unsupported":
                raise

    with tempfile.TemporaryDirectory() as directory:
        corpus = Path(directory) / "corpus"
        corpus.mkdir()
        for index, seed in enumerate(seeds(parser)):
            (corpus / str(index)).write_bytes(seed)
        words = Path(directory) / "words"
        words.write_text("".join(f'"{word}"\n' for word in WORDS))
        given = [option for option in options if not option.startswith("-")] or [str(corpus)]
        flags = [option for option in options if option.startswith("-")]
        atheris.Setup([sys.argv[0], *OPTIONS, f"-dict={words}", *flags, *given], one)
        atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in PARSERS:
        sys.exit(__doc__)
    main(*sys.argv[1:])
