"""What the `ferry models` commands look at and change in Redis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from ferry.commands.inspect_redis import redis_to_inspect
from shared.operations.model_control import ModelControl
from shared.operations.shadow_comparison import Comparisons
from shared.registry.desired_store import DesiredStore
from shared.registry.registry import Registry
from shared.registry.snapshot import Snapshot


class Models(NamedTuple):
    """The models as Redis knows them."""

    registry: Registry
    store: DesiredStore
    control: ModelControl
    comparisons: Comparisons


@contextmanager
def models_of(environ: Mapping[str, str]) -> Iterator[Models]:
    """Yield the models; raises BadSetting, and NoRedis when there is none to ask."""
    with redis_to_inspect(environ) as (settings, client):
        yield Models(
            Registry(client, settings.key_prefix),
            DesiredStore(client, settings.key_prefix),
            ModelControl(client, settings.key_prefix),
            Comparisons(client, settings.key_prefix),
        )


def requests_of(snapshot: Snapshot, name: str, version: str) -> str:
    """Return which requests a version gets: all, a share, copies, or those that name it."""
    serving = snapshot.served.get(name)
    if serving is None or version not in serving.versions:
        return "none"
    if serving.split:
        share = serving.split.get(version, 0) / sum(serving.split.values())
        return f"{share:.0%}" if share else "named"
    if version == serving.default:
        return "all"
    return "copies" if version == serving.shadow else "named"
