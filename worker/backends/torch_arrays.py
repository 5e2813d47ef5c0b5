"""Converts between numpy and torch, also the one datatype that they do not share: BF16."""

from __future__ import annotations

import numpy as np
import torch
from ml_dtypes import bfloat16

from shared.datatypes import NUMPY_TYPES, Array
from shared.errors import BadModelOutput
from shared.model_spec import TensorSpec


def to_torch(array: Array) -> torch.Tensor:
    """Return the array as a tensor on the CPU, without a copy where torch may write to it."""
    array = _writable(array)
    if array.dtype == bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_numpy(tensor: torch.Tensor) -> Array:
    """Return the tensor as an array, without a copy if it is a plain one on the CPU.

    Quantised and sparse tensors become plain ones. Raises TypeError for what numpy cannot hold.
    """
    tensor = tensor.cpu()
    if tensor.dtype == torch.bfloat16:
        bits: Array = _plain(tensor).view(torch.int16).numpy()
        return bits.view(bfloat16)
    try:
        found: Array = tensor.numpy()
    except (RuntimeError, TypeError):  # fast: a plain one, as nearly all are, is not asked
        found = _plain(tensor).numpy()
    return found


def output_array(tensor: torch.Tensor, declared: TensorSpec) -> Array:
    """Return a model's output as an array; raises BadModelOutput for what no answer can carry."""
    try:
        return to_numpy(tensor)
    except TypeError as error:
        kind = "nested tensors" if tensor.is_nested else datatype_name(tensor.dtype)
        raise BadModelOutput(
            f"output {declared.name!r}: datatype {kind}, the config declares {declared.datatype}"
        ) from error


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values as a dense tensor without gradient, conjugate bit or negative bit."""
    if tensor.is_nested:
        raise TypeError("a nested tensor has no shape")
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return tensor.detach().resolve_conj().resolve_neg()


def torch_type(datatype: str) -> torch.dtype:
    """Return torch's dtype for one of the protocol's datatypes of numbers."""
    return to_torch(np.empty(0, NUMPY_TYPES[datatype])).dtype


def datatype_name(dtype: torch.dtype) -> str:
    """Return the protocol's name for a torch dtype, torch's own for one that it does not have."""
    names = {torch_type(name): name for name in NUMPY_TYPES if name != "BYTES"}
    return names.get(dtype, str(dtype).removeprefix("torch."))


def _writable(array: Array) -> Array:
    """Return the array, or a copy of one that torch must not share: a message's own bytes."""
    if array.flags.writeable and array.flags.c_contiguous:
        return array
    return np.array(array, order="C")
