"""A Redis that fails is told of once for each cause, and asked seldom when it refuses."""

from __future__ import annotations

import logging

import pytest
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.settings import Settings
from shared.wire.client import connect, unavailable, without_place
from shared.wire.outage import LASTING_SECONDS, RETRY_SECONDS, Outage, lasts
from shared.wire.wire import open_wire

SINCE_7 = " script: 3e8f0a, on @user_script:12."
BEFORE_7 = "ERR Error running script (call to f_3e8f0a): @user_script:12: @user_script: 12: "


@pytest.mark.parametrize(
    ("said", "left"),
    [
        (f"OOM command not allowed{SINCE_7}", "OOM command not allowed"),
        (f"{BEFORE_7}-OOM command not allowed", "OOM command not allowed"),
        (f"{BEFORE_7}Unknown Redis command called", "ERR Unknown Redis command called"),
        ("@user_script: 12: -READONLY You can't write", "READONLY You can't write"),
        (
            "ERR Error running script (call to f_3e8f0a): @user_script:1: WRONGTYPE Operation",
            "WRONGTYPE Operation",
        ),
        (
            "ERR ACL failure in script: User bob has no permissions script: on @user_script:1.",
            "ERR ACL failure in script: User bob has no permissions",
        ),
        ("ERR unknown command 'LPOS'", "ERR unknown command 'LPOS'"),
    ],
)
def test_an_error_is_the_same_from_every_version_of_redis(said: str, left: str) -> None:
    assert without_place(said) == left


@pytest.mark.parametrize(
    "text",
    [
        f"ERR Unknown Redis command called from script{SINCE_7}",
        f"{BEFORE_7}Unknown Redis command called from Lua script",
        f"ERR user_script:1: Script attempted to access nonexistent global variable 'os'{SINCE_7}",
        "NOPERM User bob has no permissions to run the 'evalsha' command",
        "WRONGTYPE Operation against a key holding the wrong kind of value",
        "NOAUTH Authentication required.",
    ],
)
def test_what_no_time_ends_lasts(text: str) -> None:
    assert lasts(ResponseError(text))
    assert lasts(caused(ResponseError(text)))


@pytest.mark.parametrize(
    "error",
    [
        RedisConnectionError("Redis does not answer"),
        BusyLoadingError("LOADING"),
        ResponseError(f"OOM command not allowed{SINCE_7}"),
        ResponseError(f"{BEFORE_7}-OOM command not allowed"),
        ResponseError("READONLY You can't write against a read only replica."),
        ResponseError("MISCONF Errors writing to the AOF file"),
        ResponseError("CLUSTERDOWN Hash slot not served"),
    ],
)
def test_a_state_that_redis_leaves_again_does_not_last(error: RedisError) -> None:
    assert not lasts(error)
    assert not lasts(caused(error))


def test_a_wrong_password_lasts() -> None:
    assert lasts(AuthenticationError("invalid username-password pair"))


def caused(error: RedisError) -> Exception:
    """Return the error for clients, as `asking` raises it."""
    try:
        raise unavailable(error) from error
    except Exception as raised:
        return raised


def test_real_errors_of_both_kinds_of_client_are_told_apart(settings: Settings) -> None:
    client = connect(settings.redis_url)
    wire = open_wire(client)
    for script in ("return redis.call('NOSUCH')", "return nothing.at.all", "no Lua"):
        with pytest.raises(ResponseError) as by_client:
            client.eval(script, 0)
        wire.send(("EVAL", script, 0))
        with pytest.raises(ResponseError) as by_wire:
            wire.reply()
        assert lasts(by_client.value)
        assert lasts(by_wire.value)
    wire.close()


def test_each_cause_is_told_once_and_the_end_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outage = Outage(logging.getLogger("tests"))
    away, broken = RedisConnectionError("it is away"), ResponseError("ERR unknown command 'LPOS'")

    pauses = [outage.note(error, "trying again") for error in (away, broken, away, broken, broken)]
    outage.end()
    outage.end()
    outage.note(away, "trying again")

    assert pauses == [RETRY_SECONDS, LASTING_SECONDS, RETRY_SECONDS, *[LASTING_SECONDS] * 2]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "Redis fails, trying again: it is away"),
        (
            "ERROR",
            "Redis refuses what is asked, and waiting will not help: ERR unknown command 'LPOS'; "
            "trying again",
        ),
        ("INFO", "Redis is back"),
        ("WARNING", "Redis fails, trying again: it is away"),
    ]
