"""Finds the requests of one process whose time is over, and those whose client has left.

Apart from the courier, as it works while Redis hangs and the courier's other parts wait for it.
"""

from __future__ import annotations

import math

from shared.courier.cancels import Cancels
from shared.courier.departures import has_left
from shared.courier.pending import PendingRequest
from shared.errors import ClientLeft, RequestExpired

DEPARTURES_SECONDS = 0.2
"""The interval at which each client's connection is looked at, which is a system call."""


class Deadlines:
    """Looks at all requests every few milliseconds. Asks nothing of Redis, which may hang.

    fast: a timer for every request would cost as much as its answer.
    """

    def __init__(self, waiting: dict[str, PendingRequest], cancels: Cancels) -> None:
        """Look at those `waiting`, by id; `cancels` gets those that are found."""
        self._waiting = waiting
        self._cancels = cancels
        self._with_policy: dict[str, PendingRequest] = {}
        self._next_departures = 0.0

    def watch(self, request: PendingRequest) -> None:
        """Look at a request's queue deadline as well, if its queue policy gives it one."""
        if request.queue_deadline < math.inf:
            self._with_policy[request.id] = request

    def check(self, now: float) -> None:
        """Close the requests that are late or unwanted at this monotonic time."""
        waiting = list(self._waiting.values())
        late = [request for request in waiting if request.deadline <= now]
        self._cancels.close("expired", late, lambda: RequestExpired("Request timeout expired"))
        self._reject(now)
        if now >= self._next_departures:
            self._next_departures = now + DEPARTURES_SECONDS
            left = [each for each in waiting if each.client and has_left(each.client)]
            self._cancels.close("cancelled", left, lambda: ClientLeft("the client hung up"))

    def _reject(self, now: float) -> None:
        """Reject the requests whose queue policy does so by now.

        An instance that claims rejects them as well; here they are found while all are busy. Redis
        must have said that it has them: it cannot take off what it has not, and is asked once.
        """
        for request_id, request in list(self._with_policy.items()):
            late = request.accepted and request.queue_deadline <= now
            if late or not request.is_open:
                del self._with_policy[request_id]
                if request.is_open:
                    self._cancels.reject(request_id)
