"""A batch on the worker's side: what was claimed, and what is answered."""

from __future__ import annotations

from typing import NamedTuple

from shared.messages import InferRequest
from shared.queue_keys import TICKET


class Claimed(NamedTuple):
    """One request as its instance holds it: the body is not decoded yet. Times are Redis's."""

    id: str
    rows: int
    attempts: int
    queue_seconds: float
    body: bytes
    claimed_at: float = 0.0

    @classmethod
    def of(cls, ticket: bytes, body: bytes, now: float) -> Claimed:
        """Take apart what `claim.lua` returns of one request."""
        _, attempts, _, rows, enqueued, *_ = TICKET.unpack_from(ticket)
        request_id = ticket[TICKET.size :].decode()
        return cls(request_id, rows, attempts + 1, max(0.0, now - enqueued), body, now)

    def request(self) -> InferRequest:
        """Decode the body; raises BadMessage."""
        return InferRequest.decode(self.id, self.rows, self.body)


class Answers(NamedTuple):
    """One encoded result per request of a batch, and what they cost (`encode_costs` makes it)."""

    results: list[bytes]
    costs: tuple[bytes, bytes]
