"""Large tensors lie in shared memory, and whatever becomes of them there, requests are answered."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import NamedTuple

import numpy as np
import pytest
from two_ends import TwoEnds, free
from waiting import wait_until

from shared.bodies import common_memory, folder
from shared.bodies.common_memory import CommonMemory
from shared.bodies.folder import Budget, SharedBodies
from shared.bodies.worker_bodies import WorkerBodies
from shared.courier import pending
from shared.courier.cancels import Cancels
from shared.errors import BodyLost
from shared.messages import BESIDE_REDIS, LARGE_BYTES, InferRequest, InferResult, Tensor
from shared.registry.registry import Registry
from shared.request_queue.api_end import PendingRequest, RequestQueue
from shared.request_queue.claimed import Claimed
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits
from shared.request_queue.recovery import bring_in
from shared.settings import Settings
from shared.ticket import TICKET
from shared.wire.wire import Wire
from worker.supervisor.recovery import Recovery
from worker.supervisor.supervisor import Supervisor

PICTURE_BYTES = 150_528
BUDGET_BYTES = 1_000_000


class Beside(NamedTuple):
    """Both ends of a queue whose API process and instance see the same memory."""

    ends: TwoEnds
    queue: RequestQueue
    memory: CommonMemory
    directory: Path
    budget: Budget

    def push(self, count: int = PICTURE_BYTES) -> PendingRequest:
        request = picture(self.queue.new_id(), count)
        waiting = self.queue.push(request)
        wait_until(lambda: waiting.accepted, 10, "it is accepted")
        return waiting

    def body(self, waiting: PendingRequest) -> bytes:
        return self.ends.redis.get(self.ends.keys.body + waiting.id) or b""

    def files(self) -> list[Path]:
        return [each for each in self.directory.glob("*/*") if each.is_file()]

    def claim(self) -> Claimed:
        return self.ends.claim(1)[0]

    def publish(self, item: Claimed, result: bytes) -> None:
        assert self.ends.work.publish([item], free([result], [item])) == 1

    def encoded(self, request_id: str, result: InferResult) -> bytes:
        return WorkerBodies(self.memory).answers().encoded(request_id, result)

    def answer(self, item: Claimed) -> None:
        """Answer as the model would that returns what it is given."""
        result = InferResult(item.request().inputs)
        self.publish(item, self.encoded(item.id, result))


@pytest.fixture
def shared_path() -> Iterator[Path]:
    with TemporaryDirectory(dir=common_memory.SHARED_MEMORY_ROOT, prefix="ferry-test-") as name:
        yield Path(name)


@pytest.fixture
def beside(ends: TwoEnds, shared_path: Path) -> Iterator[Beside]:
    directory = shared_path / "memory"
    memory, budget = CommonMemory(directory), Budget(BUDGET_BYTES)
    ends.work.bodies = WorkerBodies(CommonMemory(directory))  # an instance opens it by itself
    shared = SharedBodies(memory, budget, {ends.keys.model_key: memory.token}.__getitem__)
    queue = RequestQueue(ends.redis, ends.keys, Limits(), shared)
    yield Beside(ends, queue, memory, directory, budget)
    queue._courier.rest()


def picture(request_id: str, count: int = PICTURE_BYTES) -> InferRequest:
    large = np.random.default_rng(count).integers(0, 256, (1, count), np.uint8)
    inputs = (Tensor.of("n", np.array([[7]], np.int64)), Tensor.of("x", large))
    return InferRequest(request_id, 1, inputs, (), 60.0, bytes(8), parameters={"k": 1})


def pixels(result: InferResult | InferRequest) -> bytes:
    tensors = result.outputs if isinstance(result, InferResult) else result.inputs
    return bytes(tensors[1].data)


def test_a_large_body_is_read_where_it_was_put_and_redis_holds_next_to_nothing(
    beside: Beside,
) -> None:
    waiting = beside.push()

    assert len(beside.body(waiting)) < 300
    assert len(beside.files()) == 1
    item = beside.claim()
    assert item.size > PICTURE_BYTES
    asked = picture(waiting.id)
    assert [each.array().tolist() for each in item.request().inputs] == [
        each.array().tolist() for each in asked.inputs
    ]
    assert item.request().parameters == {"k": 1}
    assert not item.request().inputs[1].array().flags.writeable


def test_the_queue_counts_the_bytes_that_lie_beside_it(beside: Beside) -> None:
    beside.push()

    counted = int(beside.ends.redis.get(beside.ends.keys.bytes) or 0)
    assert PICTURE_BYTES < counted < PICTURE_BYTES + 1000
    item = beside.claim()
    assert TICKET.unpack_from(item.ticket)[-1] == counted


def test_a_large_answer_comes_the_same_way_and_leaves_nothing(beside: Beside) -> None:
    waiting = beside.push()
    beside.answer(beside.claim())

    result = waiting.wait()

    assert pixels(result) == pixels(picture(waiting.id))
    assert beside.files() == []
    assert beside.budget.take(BUDGET_BYTES)


@pytest.mark.parametrize("count", [LARGE_BYTES - 9, LARGE_BYTES - 8, 999_936])
def test_what_is_asked_below_and_above_the_size_is_answered_alike(
    beside: Beside, count: int
) -> None:
    waiting = beside.push(count)
    is_beside = beside.body(waiting)[:1] == BESIDE_REDIS
    beside.answer(beside.claim())

    assert is_beside == (count >= LARGE_BYTES - 8)
    assert pixels(waiting.wait()) == pixels(picture(waiting.id, count))


def test_an_answer_to_a_small_request_lies_beside_redis_too(beside: Beside) -> None:
    waiting = beside.push(16)
    item = beside.claim()
    large = InferResult(picture(item.id).inputs)
    encoded = beside.encoded(item.id, large)
    assert len(encoded) < 300
    beside.publish(item, encoded)

    assert pixels(waiting.wait()) == pixels(large)
    assert beside.files() == []


def test_an_answer_that_nobody_waits_for_in_this_memory_is_whole(beside: Beside) -> None:
    for request_id in ("0" * 32, "f" * 32, "../" + "e" * 29):
        large = InferResult(picture(request_id).inputs)
        assert len(beside.encoded(request_id, large)) > PICTURE_BYTES


@pytest.mark.parametrize("why", ["elsewhere", "budget", "full", "no room for the data"])
def test_what_cannot_lie_beside_redis_goes_through_it(
    beside: Beside, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "elsewhere":
        beside.queue._folder._seen_by = lambda _: ""  # type: ignore[union-attr]
    elif why == "budget":
        assert beside.budget.take(BUDGET_BYTES - PICTURE_BYTES + 1)
    elif why == "full":
        really = os.fstatvfs

        def full(descriptor: int) -> os.statvfs_result:
            found = list(really(descriptor))
            found[4] = found[2] // 2  # f_bavail of f_blocks
            return os.statvfs_result(found)

        monkeypatch.setattr(os, "fstatvfs", full)
    else:

        def no_room(descriptor: int, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", no_room)
    request = picture(beside.queue.new_id())
    placed = beside.queue._folder.put(request)  # type: ignore[union-attr]
    assert placed is None
    assert beside.files() == []
    monkeypatch.undo()


def test_a_model_with_a_cache_has_whole_bodies(ends: TwoEnds, beside: Beside) -> None:
    keys = QueueKeys(ends.prefix, "cached/1", cached=True)
    shared = SharedBodies(beside.memory, beside.budget, lambda _: beside.memory.token)

    assert RequestQueue(ends.redis, keys, Limits(), shared)._folder is None


@pytest.mark.parametrize("how", ["gone", "shorter", "another nonce", "no reference"])
def test_a_lost_body_is_asked_again_through_redis(beside: Beside, how: str) -> None:
    waiting = beside.push()
    (file,) = beside.files()
    if how == "gone":
        file.unlink()
    elif how == "shorter":
        os.truncate(file, 100)
    else:
        name = beside.ends.keys.body + waiting.id
        body = beside.body(waiting)
        other = body[:1] + b"zzzz" + body[5:] if how == "another nonce" else body[:7]
        beside.ends.redis.set(name, other, keepttl=True)
    item = beside.claim()
    with pytest.raises(BodyLost) as lost:
        item.request()
    beside.publish(item, InferResult(error=lost.value).encode())

    again = beside.claim()

    assert (again.id, again.body[:1] != BESIDE_REDIS) == (item.id, True)
    beside.answer(again)
    assert pixels(waiting.wait()) == pixels(picture(waiting.id))
    assert beside.files() == []
    assert beside.budget.take(BUDGET_BYTES)


def test_a_request_is_given_up_when_its_answers_are_lost_again_and_again(beside: Beside) -> None:
    waiting = beside.push()
    for _ in range(pending.MAX_TENSOR_LOSSES):
        item = beside.claim()
        encoded = beside.encoded(item.id, InferResult(item.request().inputs))
        for file in beside.files():
            file.unlink()
        beside.publish(item, encoded)

    with pytest.raises(BodyLost):
        waiting.wait()
    assert beside.queue.waiting == 0


def test_a_body_that_was_mapped_stays_as_it_was_when_its_client_leaves(beside: Beside) -> None:
    waiting = beside.push()
    item = beside.claim()
    inputs = item.request().inputs
    waiting.cancel()

    wait_until(lambda: beside.budget.take(BUDGET_BYTES), 10, "it is freed")
    assert beside.files() == []
    assert bytes(inputs[1].data) == pixels(picture(waiting.id))


def test_a_body_stays_until_redis_is_told_that_its_client_left(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Event()
    really_send = Cancels.send

    def send(cancels: Cancels, wire: Wire) -> None:
        if told.is_set():
            really_send(cancels, wire)

    monkeypatch.setattr(Cancels, "send", send)
    waiting = beside.push()
    waiting.cancel()

    assert pixels(beside.claim().request()) == pixels(picture(waiting.id))
    told.set()
    wait_until(lambda: beside.files() == [], 10, "it is freed")


def test_thousands_of_clients_that_leave_leave_nothing_behind(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "SWEEP_SECONDS", 0.0)
    monkeypatch.setattr(folder, "STRAY_SECONDS", 0.0)
    for _ in range(2000):
        request = picture(beside.queue.new_id(), LARGE_BYTES)
        waiting = beside.queue.push(request)
        beside.encoded(request.id, InferResult(request.inputs))  # answered meanwhile
        waiting.cancel()

    wait_until(lambda: beside.files() == [], 10, "what nobody waits for is removed")
    wait_until(lambda: beside.budget.take(BUDGET_BYTES), 10, "all is freed")


def test_what_waits_for_a_late_answer_is_not_swept(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = beside.push()
    monkeypatch.setattr(folder, "STRAY_SECONDS", 0.0)
    own = beside.queue._folder
    assert own is not None

    own._next_sweep = 0.0
    own.sweep({waiting.id})
    assert len(beside.files()) == 1
    own._next_sweep = 0.0
    own.sweep(set())
    assert beside.files() == []


def test_a_request_that_was_in_a_crash_is_whole_in_redis(beside: Beside) -> None:
    waiting = beside.push()
    beside.claim()
    ttl_ms = beside.ends.redis.pttl(beside.ends.keys.body + waiting.id)

    bring_in(beside.ends.wire, beside.ends.keys, "i", WorkerBodies(beside.memory))

    body = beside.body(waiting)
    asked = InferRequest.decode(waiting.id, 1, body)
    assert (pixels(asked), asked.parameters) == (pixels(picture(waiting.id)), {"k": 1})
    assert 0 < beside.ends.redis.pttl(beside.ends.keys.body + waiting.id) <= ttl_ms


def test_who_reaps_removes_the_folders_of_the_dead_alone(
    beside: Beside,
) -> None:
    waiting = beside.push()
    program = f"""
import os, signal
from pathlib import Path
from shared.bodies.common_memory import CommonMemory
from shared.bodies.folder import BodyFolder, Budget, SharedBodies
memory = CommonMemory(Path({str(beside.directory)!r}))
own = BodyFolder(SharedBodies(memory, Budget(10), lambda _: ""), "0badcafe", "m/1")
own.open()
memory.write("0badcafe" + 24 * "0", [b"left"], 4)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert (beside.directory / "0badcafe").is_dir()

    assert beside.memory.reap() == 1

    assert not (beside.directory / "0badcafe").exists()
    beside.answer(beside.claim())
    assert pixels(waiting.wait()) == pixels(picture(waiting.id))


def test_a_supervisor_removes_what_the_dead_left(
    settings: Settings, shared_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common_memory, "SHARED_MEMORY_ROOT", shared_path)
    supervisor = Supervisor(settings)
    left = shared_path / f"ferry-{os.getuid()}" / "0badcafe"
    left.mkdir(mode=0o700)
    (left / "body").write_bytes(b"left")

    supervisor._beat()

    assert not left.exists()


def test_a_folder_goes_with_the_queue_that_had_it(shared_path: Path) -> None:
    memory = CommonMemory(shared_path / "memory")
    own = folder.BodyFolder(SharedBodies(memory, Budget(10), lambda _: ""), "0badcafe", "m/1")
    assert not list((shared_path / "memory").glob("*/")), "there is none before the first request"
    assert own.open()
    memory.write("0badcafe" + 24 * "0", [b"left"], 4)
    assert (shared_path / "memory" / "0badcafe").is_dir()
    del own

    assert not (shared_path / "memory" / "0badcafe").exists()


@pytest.mark.parametrize("how", ["open to others", "a link", "no directory"])
def test_a_directory_that_is_not_ours_alone_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    place = tmp_path / f"ferry-{os.getuid()}"
    if how == "open to others":
        place.mkdir(mode=0o755)
    elif how == "a link":
        (tmp_path / "other").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "other")
    else:
        place.write_text("")
    monkeypatch.setattr(common_memory, "SHARED_MEMORY_ROOT", tmp_path)

    assert CommonMemory.of(1) is None
    assert CommonMemory.of(0) is None


def test_who_sees_the_same_files_reads_the_same_token(tmp_path: Path) -> None:
    first, again = CommonMemory(tmp_path / "one"), CommonMemory(tmp_path / "one")

    assert first.token == again.token != CommonMemory(tmp_path / "two").token


def test_a_full_redis_is_no_reason_to_leave_what_a_dead_instance_held(
    beside: Beside, settings: Settings
) -> None:
    beside.push()
    beside.claim()
    redis = beside.ends.redis
    recovery = Recovery(
        redis, Registry(redis, settings.key_prefix), settings, WorkerBodies(beside.memory)
    )
    recovery.note("i", beside.ends.keys.model_key)
    before = redis.config_get("maxmemory")["maxmemory"]
    redis.config_set("maxmemory", "1")
    try:
        recovery.recover_noted()
    finally:
        redis.config_set("maxmemory", before)

    assert redis.llen(f"{beside.ends.keys.queue}1") == 1


def test_no_free_descriptor_is_no_reason_to_end(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(common_memory.os, "listdir", full)
    folder_of = beside.queue._folder
    assert folder_of is not None and folder_of.open()

    folder_of.sweep(())

    assert beside.memory.reap() == 0
