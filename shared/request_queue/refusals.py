"""The rule for answers that Redis refuses while it takes other commands: an error goes out instead.

Redis says ERR to what is wrong by itself. All its other codes (READONLY, MISCONF, OOM) are states
of its own, which pass: then the answers wait.
"""

from __future__ import annotations

from redis.exceptions import RedisError, ResponseError

from shared.errors import ModelFailed
from shared.messages import InferResult
from shared.request_queue.claimed import Claimed, EncodedResults
from shared.request_queue.model_statistics import encode_costs
from shared.wire.client import without_place

MAX_REFUSALS = 5
"""How often an answer is sent to a Redis that takes other commands, but not this one."""


def is_state_of_redis(error: RedisError) -> bool:
    """Tell whether Redis itself is out of order for a while, whatever it is sent."""
    return isinstance(error, ResponseError) and not without_place(str(error)).startswith("ERR ")


def refusal_errors(claimed: list[Claimed]) -> EncodedResults:
    """Return the errors that go out in place of refused answers; Redis takes those."""
    error = ModelFailed("the answer was computed, but Redis did not take it")
    result = InferResult(error=error).encode()
    return EncodedResults([result] * len(claimed), encode_costs(claimed, [], 0.0))
