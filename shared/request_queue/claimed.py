"""A batch on the worker's side: its claimed requests, its encoded results."""

from __future__ import annotations

from typing import NamedTuple

from shared.bodies.worker_bodies import WorkerBodies
from shared.messages import BESIDE_REDIS, InferRequest, Timings
from shared.ticket import TICKET

BATCHES_BETWEEN_BULK = 19
"""So many batches of an instance without a row of bulk, and bulk goes first, if any waits."""
MAX_RESULT_BYTES = 256 * 2**20
"""Of one encoded result: Redis hangs up on an argument above half a gigabyte."""


class Claimed(NamedTuple):
    """One request as its instance holds it: the body is not decoded yet. Times are Redis's."""

    id: str
    rows: int
    attempts: int
    queue_seconds: float
    body: bytes
    claimed_at: float = 0.0
    level: int = 1
    deadline: float = 0.0
    ticket: bytes = b""
    beside: memoryview | None = None
    """The request's large tensors, if they lie beside Redis and could be found."""

    @classmethod
    def of(cls, ticket: bytes, body: bytes, now: float) -> Claimed:
        """Take apart one request of `claim.lua`'s reply."""
        _, attempts, level, _, rows, enqueued, deadline, *_ = TICKET.unpack_from(ticket)
        request_id, waited = ticket[TICKET.size :].decode(), max(0.0, now - enqueued)
        return cls(request_id, rows, attempts + 1, waited, body, now, level, deadline, ticket)

    def request(self) -> InferRequest:
        """Decode the body; raises BadMessage."""
        return InferRequest.decode(self.id, self.rows, self.body, self.beside)

    @property
    def size(self) -> int:
        """The bytes of its tensors, wherever they lie."""
        return len(self.body) + (len(self.beside) if self.beside is not None else 0)

    def timings(
        self, batch_wait_seconds: float, compute_seconds: float, rows: int, instance: str
    ) -> Timings:
        """Return the timings of the request's answer, computed in a pass of `rows` rows."""
        return Timings(
            self.queue_seconds, batch_wait_seconds, compute_seconds, rows, self.attempts, instance
        )


def found_beside(batch: list[Claimed], bodies: WorkerBodies) -> list[Claimed]:
    """Return a batch with what lies beside its bodies, as far as it can be found."""
    indices = [index for index, item in enumerate(batch) if item.body[:1] == BESIDE_REDIS]
    if not indices:
        return batch
    found = bodies.read([(batch[index].id, batch[index].body) for index in indices])
    for index, beside in zip(indices, found, strict=True):
        batch[index] = batch[index]._replace(beside=beside)
    return batch


class EncodedResults(NamedTuple):
    """One encoded result per request of a batch, and their costs (of `encode_costs`)."""

    results: list[bytes]
    costs: tuple[bytes, bytes]
