"""Converts between numpy and torch, also the one datatype that they do not share: BF16."""

from __future__ import annotations

import numpy as np
import torch
from ml_dtypes import bfloat16

from shared.datatypes import NUMPY_TYPES, Array


def to_torch(array: Array) -> torch.Tensor:
    """Return the array as a tensor on the CPU, without a copy where torch may write to it."""
    array = _writable(array)
    if array.dtype == bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_numpy(tensor: torch.Tensor) -> Array:
    """Return the tensor as an array, without a copy if it is on the CPU."""
    tensor = tensor.cpu()
    if tensor.dtype == torch.bfloat16:
        bits: Array = tensor.view(torch.int16).numpy()
        return bits.view(bfloat16)
    found: Array = tensor.numpy()
    return found


def torch_type(datatype: str) -> torch.dtype:
    """Return torch's dtype for one of the protocol's datatypes of numbers."""
    return to_torch(np.empty(0, NUMPY_TYPES[datatype])).dtype


def _writable(array: Array) -> Array:
    """Return the array, or a copy of one that torch must not share: a message's own bytes."""
    if array.flags.writeable and array.flags.c_contiguous:
        return array
    return np.array(array, order="C")
