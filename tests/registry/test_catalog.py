"""The catalog's own thread keeps its copy of the registry fresh, so that requests read nothing."""

from __future__ import annotations

import gc
import threading
import time

import pytest
from redis import Redis
from registered import SUPERVISOR, register, spec
from waiting import wait_until

from shared.errors import RedisUnavailable
from shared.registry import catalog as catalog_module
from shared.registry.catalog import CHANGES_LOOK_SECONDS, FRESH_SECONDS, Catalog
from shared.registry.desired_state import Serving
from shared.registry.desired_store import DesiredStore
from shared.registry.keys import RegistryKeys
from shared.registry.registry import Registry
from shared.registry.snapshot import InstanceRecord, Snapshot
from shared.settings import Settings
from shared.wire.client import connect


class CountingRegistry(Registry):
    """Counts by thread who reads it, and the copies that were read."""

    def __init__(self, client: Redis, prefix: str) -> None:
        super().__init__(client, prefix)
        self.readers: list[int] = []
        self.copies = 0

    def snapshot(self) -> Snapshot:
        self.readers.append(threading.get_ident())
        found = super().snapshot()
        self.copies += 1
        return found

    @property
    def own(self) -> int:
        """How often this thread read."""
        return self.readers.count(threading.get_ident())


def refreshers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "ferry-catalog"}


@pytest.fixture
def registry(settings: Settings) -> CountingRegistry:
    """A registry with version 1 of `m`, ready."""
    register(settings, spec("m"))
    return CountingRegistry(connect(settings.redis_url), settings.key_prefix)


def test_a_request_after_a_gap_reads_nothing_itself(registry: CountingRegistry) -> None:
    catalog = Catalog(registry)
    catalog.serving("m")

    def reads_nothing() -> bool:
        """Ask once the copy of before is too old; on a busy machine the refresher may be late."""
        asked_at, before = time.monotonic(), registry.own
        wait_until(lambda: time.monotonic() - asked_at > FRESH_SECONDS, 10, "a gap")
        catalog.serving("m")
        return registry.own == before

    wait_until(reads_nothing, 30, "a request that the registry is not read for")


def test_the_first_request_reads_by_itself(registry: CountingRegistry) -> None:
    assert Catalog(registry).serving("m").version == "1"
    assert registry.own == 1


def test_what_is_no_inference_starts_no_thread(registry: CountingRegistry) -> None:
    before = refreshers()

    catalog = Catalog(registry)
    assert catalog.is_ready("m")
    catalog.snapshot()
    catalog.specs()

    assert refreshers() <= before


def test_who_is_told_of_a_change_finds_it(
    registry: CountingRegistry, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the refresher reads: after a pause each request looks whether something changed."""
    catalog = Catalog(registry)
    second = spec("m").model_copy(update={"version": "2"})
    registry.add_model(second)
    registry.put_instance(
        InstanceRecord(id="m-1", supervisor=SUPERVISOR, model="m", version="2", state="ready")
    )
    monkeypatch.setattr(catalog_module, "FRESH_SECONDS", 600.0)
    catalog.serving("m")

    with connect(settings.redis_url) as redis:
        store = DesiredStore(redis, settings.key_prefix)
        for version, key in (("1", "m/1"), ("2", second.key), ("1", "m/1"), ("2", second.key)):
            paused_at = time.monotonic()
            wait_until(lambda at=paused_at: time.monotonic() - at > CHANGES_LOOK_SECONDS, 10, "it")  # type: ignore[misc]
            store.serve("m", Serving(versions={version: key}, default=version), (), store.changes())
            assert catalog.serving("m").version == version


def test_what_no_change_announces_is_seen_without_a_request(registry: CountingRegistry) -> None:
    catalog = Catalog(registry)
    catalog.serving("m")
    registry.add_model(spec("m2"))

    def is_seen() -> bool:
        copies = registry.copies
        wait_until(lambda: registry.copies >= copies + 2, 10, "the refresher read after it")
        own = registry.own
        assert "m2" in catalog.snapshot().models
        return registry.own == own

    assert any(is_seen() for _ in range(3)), "on a busy machine the refresher may be late"


def test_a_copy_that_was_begun_before_a_change_is_not_used_after_it(
    registry: CountingRegistry, settings: Settings
) -> None:
    """As after a load: the refresher reads when supervisors report, just before requests move."""
    catalog = Catalog(registry)
    catalog.specs()
    has_read, may_go_on = threading.Event(), threading.Event()

    def read_slowly() -> Snapshot:
        found = Registry.snapshot(registry)
        has_read.set()
        assert may_go_on.wait(10)
        return found

    registry.snapshot = read_slowly  # type: ignore[method-assign]
    catalog.refresh()
    early = threading.Thread(target=catalog.snapshot)
    early.start()
    assert has_read.wait(10)
    registry.add_model(spec("m2"))
    catalog.refresh()
    del registry.snapshot
    late = threading.Thread(target=lambda: found.append(catalog.snapshot()))
    found: list[Snapshot] = []
    late.start()
    may_go_on.set()
    late.join(10)

    assert "m2" in found[0].models


def test_nobody_reads_for_a_process_that_is_not_asked(
    registry: CountingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "UNASKED_SECONDS", 0.2)
    before = refreshers()
    catalog = Catalog(registry)

    for _ in range(2):  # and it starts anew
        catalog.serving("m")
        assert refreshers() - before
        wait_until(lambda: not refreshers() - before, 10, "the refresher ended")


def test_its_thread_ends_with_the_catalog(registry: CountingRegistry) -> None:
    before = refreshers()
    catalog = Catalog(registry)
    catalog.serving("m")
    (thread,) = refreshers() - before

    del catalog
    gc.collect()

    thread.join(10)
    assert not thread.is_alive()
    assert thread.daemon, "else a process that ends would wait for it"


def test_a_registry_that_cannot_be_read_fails_requests_not_the_thread(
    registry: CountingRegistry, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    before = refreshers()
    catalog = Catalog(registry)
    catalog.serving("m")

    with connect(settings.redis_url) as redis:
        models = RegistryKeys(settings.key_prefix).models
        redis.hset(models, "broken/1", "{")
        wait_until(lambda: not refreshers() - before, 10, "the refresher gave up")
        redis.hdel(models, "broken/1")

    assert "the registry cannot be read ahead of requests" in caplog.text
    assert catalog.serving("m").version == "1"
    assert refreshers() - before


def test_a_first_read_that_fails_does_not_end_the_looks_for_changes(
    registry: CountingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, looks = Catalog(registry), list[float]()

    def away() -> Snapshot:
        raise RedisUnavailable("away")

    monkeypatch.setattr(registry, "snapshot", away)
    with pytest.raises(RedisUnavailable):
        catalog.serving("m")
    monkeypatch.undo()
    monkeypatch.setattr(registry, "changes", lambda: looks.append(time.monotonic()) or 0)
    monkeypatch.setattr(catalog_module, "REFUSAL_FRESH_SECONDS", 600.0)
    assert catalog.read_ahead()

    assert catalog.snapshot().models
    assert looks


def test_a_copy_read_for_a_change_is_not_outdone_by_the_refresher(
    registry: CountingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refresher reads while a look asks for the counter, and the change comes in between."""
    catalog, counter = Catalog(registry), registry.changes
    catalog.specs()

    def changes() -> int:
        assert catalog.read_ahead()
        registry.add_model(spec("m2"))
        return counter() + 1

    catalog.serving("m")  # read_ahead is for a catalog that is asked
    monkeypatch.setattr(registry, "changes", changes)
    paused_at = time.monotonic()
    wait_until(lambda: time.monotonic() - paused_at > CHANGES_LOOK_SECONDS, 10, "a look is due")

    assert [spec.name for spec in catalog.specs()] == ["m", "m2"]


def test_a_read_that_fails_forgets_no_change_that_came_meanwhile(
    registry: CountingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who finds another thread reading would take the copy of before."""
    catalog = Catalog(registry)
    catalog.specs()

    def hangs_and_fails() -> Snapshot:
        registry.add_model(spec("m2"))
        catalog.refresh()
        raise RedisUnavailable("away")

    monkeypatch.setattr(registry, "snapshot", hangs_and_fails)
    catalog.refresh()
    catalog.snapshot()
    reads, may_go_on = threading.Event(), threading.Event()

    def read_slowly() -> Snapshot:
        reads.set()
        assert may_go_on.wait(10)
        return Registry.snapshot(registry)

    monkeypatch.setattr(registry, "snapshot", read_slowly)
    first = threading.Thread(target=catalog.snapshot)
    first.start()
    assert reads.wait(10)
    found: list[Snapshot] = []
    second = threading.Thread(target=lambda: found.append(catalog.snapshot()))
    second.start()
    second.join(0.2)
    may_go_on.set()
    second.join(10)
    first.join(10)

    assert "m2" in found[0].models
