"""A real `python -m api.rpc`, and Triton's own client for it, unchanged."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from ferry_processes import ROOT, environment
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from shared.datatypes import Array
from shared.settings import Settings


@contextmanager
def running_grpc(
    settings: Settings, log_file: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Serve gRPC on the settings' port until the block ends; its log goes to `log_file`."""
    environ = os.environ | environment(settings)
    with open(log_file or os.devnull, "ab") as log:
        output = log if log_file else None
        process = subprocess.Popen(
            [sys.executable, "-m", "api.rpc"], env=environ, cwd=ROOT, stdout=output, stderr=output
        )
    try:
        with grpc.insecure_channel(address(settings)) as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextmanager
def grpc_client(settings: Settings) -> Iterator[InferenceServerClient]:
    """Connect as Triton's users do."""
    with InferenceServerClient(address(settings)) as client:
        yield client


def address(settings: Settings) -> str:
    return f"127.0.0.1:{settings.grpc_port}"


def tensor(array: Array, name: str = "x") -> InferInput:
    """Return an input that holds an array, sent raw."""
    given = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    given.set_data_from_numpy(array)
    return given


def row(*values: float) -> InferInput:
    """Return an FP32 input of one row."""
    return tensor(np.array([values], np.float32))


def refused(ask: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[str, str]:
    """Ask what must fail; return the code that the client saw and the message."""
    with pytest.raises(InferenceServerException) as raised:
        ask(*arguments, **named)
    status = raised.value.status()
    assert status is not None
    return status.removeprefix("StatusCode."), raised.value.message()
