"""A supervisor hears of a change at once, and knows when it cannot."""

from __future__ import annotations

import re
import select
import time
from collections.abc import Iterator

import pytest
from redis import Redis

from shared.registry.change_bell import ChangeBell
from shared.registry.desired_state import Serving, SupervisorReport
from shared.registry.desired_store import DesiredStore
from shared.settings import Settings
from shared.wire.client import connect


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    with connect(settings.redis_url) as redis:
        yield redis


@pytest.fixture
def bell(settings: Settings, redis: Redis) -> Iterator[ChangeBell]:
    bell = ChangeBell(redis, settings.key_prefix)
    bell.listen()
    yield bell
    bell.close()


def rings(bell: ChangeBell, seconds: float = 5.0) -> bool:
    assert bell.descriptor is not None, "it listens"
    return bool(select.select([bell.descriptor], [], [], seconds)[0])


def test_each_kind_of_change_rings_until_it_is_read(
    settings: Settings, redis: Redis, bell: ChangeBell
) -> None:
    store = DesiredStore(redis, settings.key_prefix)
    changes = [
        lambda: store.change("m", lambda now, _: now.model_copy(update={"loaded": True})),
        lambda: store.put_report("vm-1", SupervisorReport()),
        lambda: store.serve("m", Serving(versions={"1": "m/1"}, default="1"), (), store.changes()),
    ]
    for change in changes:
        assert not rings(bell, 0.0)
        change()
        assert rings(bell)
        bell.read()


def test_a_lost_connection_is_known_and_another_one_rings(
    settings: Settings, redis: Redis, bell: ChangeBell
) -> None:
    redis.client_kill_filter(_type="pubsub")
    assert rings(bell)
    bell.read()
    assert bell.descriptor is None

    bell.listen()

    DesiredStore(redis, settings.key_prefix).drop_report("vm-1")
    assert rings(bell)


def test_who_may_not_listen_or_speak_is_told_once_and_writes_all_the_same(
    settings: Settings, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    user = f"mute-{time.monotonic_ns()}"
    redis.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "resetchannels", "+@all")
    try:
        with connect(re.sub("//(.*@)?", f"//{user}:pw@", settings.redis_url)) as mute:
            bell, store = (
                ChangeBell(mute, settings.key_prefix),
                DesiredStore(mute, settings.key_prefix),
            )
            bell.listen()
            bell.listen()
            before = store.changes()
            store.drop_report("vm-1")
            assert store.changes() == before + 1
            assert bell.descriptor is None
            bell.close()
    finally:
        redis.acl_deluser(user)
    assert [record.message for record in caplog.records if "heard" in record.message] == [
        "changes are looked for instead of heard of: NOPERM No permissions to access a channel"
    ]


def test_over_tls_nothing_is_listened_to(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    bell = ChangeBell(redis, settings.key_prefix)
    monkeypatch.setattr("shared.wire.wire.Wire.plain_socket", lambda self: None)
    bell.listen()
    bell.listen()

    assert bell.descriptor is None
    assert redis.pubsub_numsub(f"{settings.key_prefix}:changed")[0][1] == 0
