"""Asks a device whether it still takes work: after a fault on a GPU all calls of its process fail.

The text of an exception does not say so: frameworks wrap it, and a later call raises another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from shared.errors import BadModel, described
from worker.backends.base import Backend, device_fault
from worker.instance.out_of_memory import is_out_of_memory

Probe = Callable[[], str]
"""Returns why a device takes no more work of this process, an empty string while it does."""

SUMMED = 8


class DeviceLost(BadModel):
    """A device takes no work of this process, and will not until the process has ended."""


def no_device() -> str:
    """Find nothing wrong: the CPU does not fail by itself."""
    return ""


def device_probe(device: str) -> Probe:
    """Return what asks a device; raises DeviceLost when it takes no work to begin with."""
    return CudaProbe(device) if device.startswith("cuda") else no_device


def probe_of(backend: Backend, usual: Probe) -> Probe:
    """Return what asks a backend's device: its own `device_fault` where it has one."""
    own = device_fault(backend)
    return usual if own is None else lambda: _asked(own)


@contextmanager
def sound(probe: Probe) -> Iterator[None]:
    """Raise DeviceLost behind the block, or in place of what it raises, if the device is lost."""
    try:
        yield
    except BaseException as error:
        if fault := probe():
            raise DeviceLost(f"the device takes no more work: {fault}") from error
        raise
    if fault := probe():
        raise DeviceLost(f"the device takes no more work: {fault}")


def _asked(own: Probe) -> str:
    try:
        return own()
    except BaseException as error:  # a border: who cannot even be asked has failed
        return described(error)


class CudaProbe:
    """A synchronise and a small kernel on one device; it allocates nothing when it is asked."""

    def __init__(self, device: str) -> None:
        """Take what the kernel needs; raises DeviceLost where that fails, or want of memory."""
        self._device = torch.device(device)
        try:
            with torch.inference_mode(mode=False):  # for a later write outside of it
                self._ones = torch.ones(SUMMED, device=self._device)
                self._sums = torch.empty_like(self._ones)
        except Exception as error:  # a border: whatever the driver says
            if is_out_of_memory(error):
                raise
            raise DeviceLost(f"{device} takes no work: {described(error)}") from error

    def __call__(self) -> str:
        """Return why the device takes no more work, if so."""
        try:
            torch.cuda.synchronize(self._device)
            torch.add(self._ones, self._ones, out=self._sums)
            if self._sums.tolist() == [2.0] * SUMMED:
                return ""
        except Exception as error:  # a border: whatever the driver says
            return "" if is_out_of_memory(error) else f"{self._device}: {described(error)}"
        return f"{self._device}: it does not add one and one"
