"""Says what can be called as soon as it can: the addresses, each model, and when all is ready."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from ferry.up.api_client import api_url, ask, reached, repository_index
from ferry.up.examples import working_example
from shared.errors import RedisUnavailable
from shared.settings import Settings

FIRST_COMPLAINT_SECONDS = 15.0
# Between probes: quick at first, slower the longer it takes.
QUICK_SECONDS, SLOW_SECONDS, GROWTH = 0.1, 5.0, 1.1
MODELS_A_LINE = 8
"""Models that one line names; the others are counted."""
WAITING = {"unloaded", "no worker has loaded it"}
"""The index's reasons of models that nobody tried to load: `shared.registry.repository_index`."""


class Console(Protocol):
    """Prints lines for the operator, until everything is `stopping`."""

    stopping: bool

    def say(self, line: str) -> None:
        """Print one line."""


class Announcer:
    """Follows a start: complains while the API is silent, then tells each model's fate once."""

    def __init__(
        self, settings: Settings, console: Console, start: float, shown: Collection[str] = ()
    ) -> None:
        """Report to `console`; `start` is the time.monotonic() that "ready in" counts from.

        Of the models in `shown` a request to try is said too.
        """
        self._settings, self._console, self._start = settings, console, start
        self._shown = set(shown)
        self._url = api_url(settings)
        self._complain_at = start + FIRST_COMPLAINT_SECONDS
        self._said: set[str] = set()
        self._wants_key = False

    def run(self) -> None:
        """Say everything until all models are ready; returns early when all is stopping."""
        self._wait_for_api()
        for line in addresses(self._settings):
            self._say_once(line)
        pause_seconds, ready = QUICK_SECONDS, False
        while not ready and not self._console.stopping:
            ready = ask(f"{self._url}/v2/health/ready").is_good
            index = self._say_models()
            if ready:
                self._say_ready(index)
                return
            self._complain(f"models not ready: {_named(_not_ready(index))}")
            time.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * GROWTH, SLOW_SECONDS)

    def _wait_for_api(self) -> None:
        while not ask(f"{self._url}/v2/health/live").is_good and not self._console.stopping:
            self._complain(f"the API does not answer at {self._url}")
            time.sleep(QUICK_SECONDS)

    def _complain(self, what: str) -> None:
        now = time.monotonic()
        if now > self._complain_at:
            self._console.say(f"not ready after {now - self._start:.0f} s: {what}; still waiting")
            self._complain_at = now + 2 * (now - self._start)

    def _say_models(self) -> list[dict[str, str]]:
        """Say which models became ready or failed since the last look; return all of them."""
        index = self._index()
        for entry in index:
            name, reason = entry["name"], entry.get("reason", "")
            if entry["state"] == "READY":
                self._say_once(
                    f"{name:<10} {self._url}/v2/models/{name}  POST {self._url}/predict/{name}"
                )
                self._show(name)
            elif entry["state"] == "UNAVAILABLE" and reason and reason not in WAITING:
                self._say_once(f"{name:<10} NOT READY: {reason}")
        return index

    def _index(self) -> list[dict[str, str]]:
        """Return the repository's index, from the API; where that wants a key, from Redis."""
        if not self._wants_key:
            index = repository_index(self._url)
            self._wants_key = not index and ask(f"{self._url}/v2").status == HTTPStatus.UNAUTHORIZED
            if not self._wants_key:
                return index
        return _index_in_redis(self._settings)

    def _show(self, name: str) -> None:
        if name in self._shown and not self._console.stopping:
            self._shown.remove(name)
            if self._wants_key:
                self._say_once("try        with an API key: `ferry keys add NAME` makes one")
                return
            example = working_example(self._url, name)
            self._say_once(
                f"try        {example}" if example else f"{name}: what is made up it refuses"
            )

    def _say_once(self, line: str) -> None:
        if line not in self._said and not self._console.stopping:
            self._said.add(line)
            self._console.say(line)

    def _say_ready(self, index: list[dict[str, str]]) -> None:
        idle = _not_ready(index)
        beside = f"; not loaded: {_named(idle)}" if idle else ""
        self._say_once(f"ready in {time.monotonic() - self._start:.1f} s{beside}")


def _index_in_redis(settings: Settings) -> list[dict[str, str]]:
    """Return what an admin's key would be told, nothing while Redis does not answer."""
    # What these bring would make every start slow.
    from shared.registry.registry import Registry  # noqa: PLC0415
    from shared.registry.repository_index import repository_index as index_of  # noqa: PLC0415
    from shared.wire.client import connect  # noqa: PLC0415

    try:
        client = connect(settings.redis_url, settings.key_prefix)
        return index_of(Registry(client, settings.key_prefix).snapshot())
    except RedisUnavailable:
        return []


def _not_ready(index: list[dict[str, str]]) -> list[str]:
    ready = {entry["name"] for entry in index if entry["state"] == "READY"}
    return sorted({entry["name"] for entry in index} - ready)


def _named(names: list[str]) -> str:
    more = f" and {len(names) - MODELS_A_LINE} more" if len(names) > MODELS_A_LINE else ""
    return (", ".join(names[:MODELS_A_LINE]) or "none is known yet") + more


def addresses(settings: Settings) -> Iterator[str]:
    """Yield one line per server that can be opened, and one when there is nothing to serve."""
    yield f"API        {api_url(settings)}/v2"
    yield f"pages      {api_url(settings)}/"
    yield f"gRPC       {reached(settings.host)}:{settings.grpc_port}"
    if settings.jobs:
        yield f"dashboard  http://127.0.0.1:{settings.dashboard_port}"
    repository = Path(settings.models)
    if not (any(repository.glob("*/config.pbtxt")) or any(repository.glob("*/[0-9]*"))):
        yield (
            f"no models  {repository} holds none yet: `ferry add FILE` puts one in, "
            "`ferry samples` makes some"
        )
