"""What lies in body stores is fetched, and tidied, whatever a store does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any, cast

from waiting import wait_until

from shared.bodies.stored import BodyShelf
from shared.courier.fetcher import Fetcher


class Shelf:
    """One whose store does as it is told."""

    def __init__(self) -> None:
        self.tidied = 0
        self.error: Exception | None = None

    def take(self, answers: Sequence[tuple[str, bytes]]) -> list[memoryview | None]:
        self._obey()
        return [memoryview(answer) for _, answer in answers]

    def tidy(self) -> None:
        self._obey()
        self.tidied += 1

    def _obey(self) -> None:
        if self.error is not None:
            raise self.error


@contextmanager
def fetching(shelf: Shelf, pass_on: Any) -> Iterator[Fetcher]:
    fetcher = Fetcher(cast("BodyShelf", shelf), pass_on)
    try:
        yield fetcher
    finally:
        fetcher.close()


def test_it_goes_on_after_whatever_a_store_raises() -> None:
    shelf, passed = Shelf(), dict[str, memoryview | None]()

    def pass_on(request_id: str, _: bytes, found: memoryview | None) -> None:
        passed[request_id] = found
        if request_id == "raises":
            raise ValueError(request_id)

    with fetching(shelf, pass_on) as fetcher:
        shelf.error = ValueError("no reply of a Redis")
        fetcher.add("lost", b"x")
        wait_until(lambda: "lost" in passed, 10, "it is passed on as lost")
        shelf.error = None
        fetcher.add("raises", b"x")
        fetcher.add("found", b"x")
        wait_until(lambda: "found" in passed, 10, "the next one is fetched")
        before = shelf.tidied
        wait_until(lambda: shelf.tidied > before, 10, "it is tidied again")

    assert passed["lost"] is None
    assert passed["found"] == b"x"


def test_it_is_tidied_now_and_then_while_answers_come_all_the_time() -> None:
    shelf, is_over = Shelf(), Event()

    def pass_on(request_id: str, *_: object) -> None:
        if not is_over.is_set():
            fetcher.add(request_id, b"x")

    with fetching(shelf, pass_on) as fetcher:
        fetcher.add("again and again", b"x")
        before = shelf.tidied
        wait_until(lambda: shelf.tidied > before, 10, "it is tidied")
        is_over.set()
