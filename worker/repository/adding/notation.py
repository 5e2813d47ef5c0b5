"""The notation of tensors on a command line: `x:4`, `ids:-1:INT64`, `image:3x224x224`, `text`.

    NAME:DIMS[:TYPE]    DIMS without the batch dimension, by x or commas, -1 for any size
    NAME:TYPE:DIMS      the same
    image:3x224x224     pictures: three dims, one of them 1 or 3 channels
    text, NAME:text     one text per row

TYPE is the protocol's word (FP32, which it is when left out), Triton's, or numpy's and torch's.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from tritonclient.grpc import model_config_pb2

from shared.datatypes import DATATYPES
from worker.repository.config.tensors import PICTURE_DIMENSIONS

NOTATION = re.compile(
    r"(?P<name>.+?)(?::\[?(?P<dims>-?\d+(?:[x,]\s*-?\d+)*)\]?)?(?::(?P<type>[A-Za-z]\w*))?"
)
TYPE_FIRST = re.compile(r"^(.+?):([A-Za-z]\w*):(\[?-?\d[-\dx, ]*\]?)$")
"""The other order, NAME:TYPE:DIMS, in which many tools have it."""
WORDS = {
    "STRING": "BYTES", "STR": "BYTES", "TEXT": "BYTES", "FLOAT": "FP32", "DOUBLE": "FP64",
    "HALF": "FP16", "FLOAT16": "FP16", "FLOAT32": "FP32", "FLOAT64": "FP64", "BFLOAT16": "BF16",
    "INT": "INT32", "LONG": "INT64", "SHORT": "INT16", "BYTE": "UINT8",
}  # fmt: skip
"""Other libraries' words for the protocol's datatypes."""
LARGEST = 2**31 - 1
"""Of the sizes in dims, and of batches: no model has more, and the config's fields hold it."""
LONGEST_SIZE = 20
"""Of a size that is looked at: Python refuses numbers of thousands of digits in its own words."""
COLOURS = {1: "L", 3: "RGB"}
"""`image_channels` by the number of channels."""
PIXEL_SCALE = "0.00392156862745098"
"""1/255: what torchvision's ToTensor and most training pipelines make of a pixel."""


class Wanted(NamedTuple):
    """A tensor as the command line has it; `datatype` is empty when it is not said."""

    name: str
    dims: tuple[int, ...]
    datatype: str = ""
    is_image: bool = False

    def __str__(self) -> str:
        """Return it in the notation."""
        return f"{self.name}:{'x'.join(map(str, self.dims))}:{self.datatype or 'FP32'}"

    @property
    def layout(self) -> str:
        """Return where a picture's channels stand."""
        return "NCHW" if self.dims[0] in COLOURS else "NHWC"

    @property
    def channels(self) -> int:
        """Return how many channels a picture has."""
        return self.dims[0] if self.layout == "NCHW" else self.dims[-1]


def read_notation(text: str, option: str) -> Wanted:
    """Parse one tensor; raises ValueError naming `option` and what it was given."""
    if text.lower() == "text":
        return Wanted("text", (1,), "BYTES")
    found = NOTATION.fullmatch(TYPE_FIRST.sub(r"\1:\3:\2", text))
    word = (found["type"] or "").upper().removeprefix("TYPE_") if found else ""
    datatype = WORDS.get(word, word)
    is_image = found is not None and (word == "IMAGE" or (not word and found["name"] == "image"))
    if found is None or (found["dims"] is None and datatype != "BYTES"):
        raise ValueError(
            f"{option} {text!r}: expected NAME:DIMS[:TYPE], such as x:4, ids:-1:INT64 or "
            "image:3x224x224, or text"
        )
    if datatype and datatype not in DATATYPES and not is_image:
        raise ValueError(f"{option} {text!r}: {found['type']} is none of {sorted(DATATYPES)}")
    sizes = re.split("[x,]", found["dims"] or "1")
    dims = tuple(int(size) if len(size) <= LONGEST_SIZE else 0 for size in sizes)
    if any(not -1 <= size <= LARGEST or size == 0 for size in dims):
        raise ValueError(
            f"{option} {text!r}: each of the dims must be from 1 to {LARGEST}, or -1 for any"
        )
    if is_image and not _is_picture(dims):
        raise ValueError(
            f"{option} {text!r}: a picture has three fixed dims, 1 or 3 channels first or last"
        )
    return Wanted(found["name"], dims, "" if is_image else datatype, is_image)


def _is_picture(dims: tuple[int, ...]) -> bool:
    fixed = len(dims) == PICTURE_DIMENSIONS and min(dims) > 0
    return fixed and (dims[0] in COLOURS or dims[-1] in COLOURS)


def write_tensor(item: Any, wanted: Wanted) -> None:
    """Write a tensor into an item of `message.input` or `message.output`, its name if it has none.

    A datatype that was not said is left as it is, and FP32 where there is none.
    """
    item.name = item.name or wanted.name
    if wanted.datatype or not item.data_type:
        item.data_type = data_type(wanted.datatype or "FP32")
    item.ClearField("reshape")
    item.dims[:] = wanted.dims
    if wanted.is_image:
        item.format = model_config_pb2.ModelInput.Format.Value(f"FORMAT_{wanted.layout}")


def data_type(datatype: str) -> Any:
    """Return the proto's number of one of the protocol's datatypes."""
    word = "STRING" if datatype == "BYTES" else datatype
    return model_config_pb2.DataType.Value(f"TYPE_{word}")


def said(item: Any) -> str:
    """Return a declared tensor in the notation."""
    word = model_config_pb2.DataType.Name(item.data_type).removeprefix("TYPE_")
    return f"{item.name}:{'x'.join(map(str, item.dims))}:{WORDS.get(word, word)}"
