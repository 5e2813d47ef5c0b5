"""Under gevent answers are read in its event loop; elsewhere by a thread."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from two_ends import TwoEnds

from shared.courier.event_loop import LoopReader
from shared.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
SETUP = """
import sys
from gevent import monkey
monkey.patch_all()
sys.path[:0] = sys.argv[1].split(":")
import logging
import time
import gevent
from redis.exceptions import RedisError
from two_ends import TwoEnds, bad_one_between, result
from waiting import wait_until
from shared.courier import subscription
from shared.courier.event_loop import LoopReader
from shared.wire.wire import Wire
from shared.settings import Settings

logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
ends = TwoEnds(Settings(redis_url=sys.argv[2], key_prefix=sys.argv[3]))

def waited(reader, pass_on):
    try:
        return reader.wait(pass_on, 10)
    except (RedisError, ValueError) as error:
        return str(error)

def said_to(pass_on):
    # Return a listener and what has it read.
    wire = ends.third()
    reader = LoopReader.of(wire)
    assert reader is not None
    return wire, reader, gevent.spawn(waited, reader, pass_on)

def say(*said):
    for one in said:
        ends.redis.publish(ends.channel, one)
"""


def run(settings: Settings, scenario: str) -> str:
    """Run the scenario where gevent has patched everything; return what it printed."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SETUP + scenario,
            ":".join(sys.path),
            settings.redis_url,
            settings.key_prefix,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_elsewhere_there_is_no_loop_to_read_in(settings: Settings) -> None:
    ends = TwoEnds(settings)
    wire = ends.third()

    assert LoopReader.of(wire) is None

    wire.close()
    assert LoopReader.of(wire) is None
    ends.close()


def test_messages_are_passed_on_until_one_ends_the_wait(settings: Settings) -> None:
    run(settings, """
seen = []
def pass_on(reply):
    seen.append(reply[2])
    return reply[2] != b"end"

wire, reader, waiting = said_to(pass_on)
say(b"one", bytes(200_000), b"")
wait_until(lambda: len(seen) == 3, 10, "all are passed on")
assert not waiting.ready()
say(b"end")
assert waiting.get(timeout=10) is True
assert seen == [b"one", bytes(200_000), b"", b"end"]

say(b"between", b"end")  # the loop reads on while nobody waits
wait_until(lambda: len(seen) == 6, 10, "both are passed on")
assert reader.wait(pass_on, 10) is True
assert reader.wait(pass_on, 0.1) is False
reader.close()
assert wire.is_open
""")  # fmt: skip


def test_what_came_along_with_the_last_reply_is_passed_on(settings: Settings) -> None:
    run(settings, """
wire = ends.third()
say(b"first", b"end")
time.sleep(0.1)  # both are in the socket
assert wire.reply()[2] == b"first"
reader = LoopReader.of(wire)
assert reader.wait(lambda reply: reply[2] != b"end", 10) is True
""")  # fmt: skip


@pytest.mark.parametrize("is_waited_for", [True, False])
def test_a_closed_connection_is_an_error(settings: Settings, is_waited_for: bool) -> None:
    run(settings, f"""
wire, reader, waiting = said_to(lambda reply: False)
if not {is_waited_for}:
    say(b"")
    assert waiting.get(timeout=10) is True
ends.hang_up("-third")
if not {is_waited_for}:
    ends.listening(0)
    waiting = gevent.spawn(waited, reader, None)
assert waiting.get(timeout=10) == "Redis closed the connection"
""")  # fmt: skip


def test_what_cannot_be_passed_on_is_an_error_for_who_waits_and_ends_the_reading(
    settings: Settings,
) -> None:
    run(settings, """
seen = []
def pass_on(reply):
    seen.append(reply[2])
    raise ValueError("cannot stand it")

wire, reader, waiting = said_to(pass_on)
say(b"first")
assert waiting.get(timeout=10) == "cannot stand it"
say(b"second")
for _ in range(3):
    ends.redis.ping()  # the loop goes round
assert seen == [b"first"]
""")  # fmt: skip


def test_a_courier_reads_in_the_loop(settings: Settings) -> None:
    run(settings, """
readers, really_of = [], LoopReader.of
LoopReader.of = lambda wire: readers.append(really_of(wire)) or readers[-1]
waiting = ends.push(3)
ends.settled()
assert len(readers) == 1 and readers[0] is not None
results = [b"small", bytes(10_000), b""]
ends.answer(*results)
assert [result(each) for each in waiting] == results
assert ends.kept() <= {"bell", "stats"}
""")  # fmt: skip


def test_a_courier_asks_again_for_what_was_lost(settings: Settings) -> None:
    printed = run(settings, """
from threading import Event
(waiting,) = ends.push(1)
ends.settled()
third, gate, really_open = ends.third(), Event(), subscription.Subscription.open

def open_late(self):
    assert gate.wait(30)
    really_open(self)

subscription.Subscription.open = open_late
ends.hang_up()
ends.listening(1)
ends.answer(b"lost")
gate.set()
ends.answer(b"again")
assert result(waiting) == b"again"
""")  # fmt: skip
    assert "answers are slow, trying until Redis is back: Redis closed the connection" in printed
    assert "Redis is back, 1 requests wait on" in printed


def test_a_courier_survives_an_answer_that_cannot_be_handed_out(settings: Settings) -> None:
    printed = run(settings, """
assert result(bad_one_between(ends)) == b"again"
""")  # fmt: skip
    assert "trying until Redis is back: cannot be handed out" in printed


def test_a_courier_opens_a_silent_subscription_anew(settings: Settings) -> None:
    printed = run(settings, """
subscription.QUIET_SECONDS, subscription.COMMAND_TIMEOUT_SECONDS = 0.1, 0.2
(waiting,) = ends.push(1)
ends.settled()
before, really_send = ends.connections(), Wire.send_behind

def send(wire, *commands):
    if commands != (("PING",),):
        really_send(wire, *commands)

Wire.send_behind = send
wait_until(lambda: not ends.connections() & before, 10, "it is given up")
Wire.send_behind = really_send
ends.listening(1)
ends.answer(b"heard")
assert result(waiting) == b"heard"
""")  # fmt: skip
    assert "trying until Redis is back: Redis says nothing any more" in printed
