"""Triton's own HTTP client, unchanged, against a real gunicorn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ferry_processes import free_port, running_gunicorn
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

from shared.settings import Settings


@contextmanager
def triton_client(settings: Settings, log_file: Path | None = None) -> Iterator[Any]:
    """Serve the API over `settings` on a port of its own and yield a client of it."""
    port = free_port()
    with running_gunicorn(replace(settings, port=port), log_file):
        client = InferenceServerClient(f"127.0.0.1:{port}")
        try:
            yield client
        finally:
            client.close()


def refused(ask: Any, *arguments: Any, **named: Any) -> tuple[str, str]:
    """Ask what must fail; return the status that the client saw and the message."""
    with pytest.raises(InferenceServerException) as raised:
        ask(*arguments, **named)
    return raised.value.status(), raised.value.message()
