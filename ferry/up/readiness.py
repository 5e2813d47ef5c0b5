"""Waits until the API is ready, and prints the addresses of all that can be called."""

from __future__ import annotations

import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Protocol
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

from shared.settings import Settings

PROBE_TIMEOUT_SECONDS = 2.0
FIRST_COMPLAINT_SECONDS = 15.0
# Between probes: quick while it is about to be ready, slow once something is wrong.
QUICK_SECONDS, SLOW_SECONDS = 0.1, 1.0
# subtle: urllib would ask the proxy of http_proxy for addresses of this very machine.
_DIRECT = build_opener(ProxyHandler({}))
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class Console(Protocol):
    """Prints lines for the operator, until everything is `stopping`."""

    stopping: bool

    def say(self, line: str) -> None:
        """Print one line."""


def announce_when_ready(settings: Settings, console: Console, start: float) -> None:
    """Print the addresses once all models are ready; before, the missing ones, ever less often.

    `start` is the time.monotonic() that "ready in" counts from. Returns early when all is stopping.
    """
    url = api_url(settings)
    pause_seconds, complain_at = QUICK_SECONDS, start + FIRST_COMPLAINT_SECONDS
    while not (ready := answers(f"{url}/v2/health/ready")) and not console.stopping:
        now = time.monotonic()
        if now > complain_at:
            console.say(f"not ready after {now - start:.0f} s: {missing(settings)}; still waiting")
            pause_seconds, complain_at = SLOW_SECONDS, now + 2 * (now - start)
        time.sleep(pause_seconds)
    if ready and not console.stopping:
        console.say(f"ready in {time.monotonic() - start:.1f} s")
        for line in addresses(settings):
            console.say(line)


def api_url(settings: Settings) -> str:
    """Return the API's address as this machine reaches it."""
    return f"http://{_reached(settings.host)}:{settings.port}"


def _reached(host: str) -> str:
    found = _EVERYWHERE.get(host, host)
    return f"[{found}]" if ":" in found else found


def addresses(settings: Settings) -> Iterator[str]:
    """Yield one line per thing that can be opened or called."""
    url = api_url(settings)
    yield f"API        {url}/v2"
    yield f"gRPC       {_reached(settings.host)}:{settings.grpc_port}"
    yield f"dashboard  http://127.0.0.1:{settings.dashboard_port}"
    for model in models(settings):
        if not answers(f"{url}/v2/models/{model}/ready"):  # in mode explicit it may not be loaded
            continue
        yield f"{model:<10} {url}/v2/models/{model}  POST {url}/predict/{model}"


def missing(settings: Settings) -> str:
    """Name the missing parts: the API itself, or some models."""
    url = api_url(settings)
    if not answers(f"{url}/v2/health/live"):
        return f"the API does not answer at {url}"
    absent = [name for name in models(settings) if not answers(f"{url}/v2/models/{name}/ready")]
    return f"models not ready: {', '.join(absent)}" if absent else "the API says it is not ready"


def models(settings: Settings) -> list[str]:
    """Return the names of the model directories, with a config.pbtxt or a version in them."""
    found = {path.parent.name for path in Path(settings.models).glob("*/config.pbtxt")}
    found |= {path.parent.name for path in Path(settings.models).glob("*/[0-9]*")}
    return sorted(found)


def answers(url: str) -> bool:
    """Tell whether GET `url`, past any proxy, is answered with a 2xx in PROBE_TIMEOUT_SECONDS."""
    try:
        with _DIRECT.open(url, timeout=PROBE_TIMEOUT_SECONDS):
            return True
    except HTTPError as error:
        error.close()
        return False
    except (OSError, HTTPException):
        return False
