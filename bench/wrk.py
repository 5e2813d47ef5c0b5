"""Drives load with wrk, which costs a fraction of what the servers cost, and reads what it says."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from bench.measurements import Measurement
from bench.processes import BenchError
from bench.single_requests import Request, sampled_batches, settle

# wrk keeps one counter per microsecond up to this, so 10 s are 80 MB that it touches in part.
TIMEOUT_SECONDS = 10
# What wrk may take beyond its own duration.
GRACE_SECONDS = 20
SUMMARY = "bench-summary "
# `done` runs once, at the end. Without `request` and `response` no Lua runs per request.
SCRIPT = """\
wrk.method = "%(method)s"
%(headers)s
if %(has_body)s then
  wrk.headers["Content-Type"] = "%(content_type)s"
  local file = assert(io.open([==[%(body_file)s]==], "rb"))
  wrk.body = file:read("*a")
  file:close()
end
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\nbench-summary {"requests": %%d, "duration": %%d, "p50": %%d, "p99": %%d, ' ..
    '"status": %%d, "connect": %%d, "read": %%d, "write": %%d, "timeout": %%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect, errors.read, errors.write, errors.timeout))
end
"""
NUMBER = "{number}"
"""In a header's value: eight digits in its place, others in each request."""
NUMBERED = """\
local number, before, behind = 0
function init()
  local whole = wrk.format()
  local from, to = whole:find("{number}", 1, true)
  before, behind = whole:sub(1, from - 1), whole:sub(to + 1)
end
function request()
  number = number + 1
  return before .. string.format("%08x", number) .. behind
end
"""


def is_installed() -> bool:
    """Tell whether wrk is on the PATH."""
    return shutil.which("wrk") is not None


def measure(request: Request, clients: int, seconds: int, directory: Path) -> Measurement:
    """Keep `clients` requests in flight for `seconds`; waits afterwards until the server is idle.

    wrk corrects latencies for coordinated omission: an answer that took several times the mean
    counts for those that could not be sent meanwhile. Raises BenchError when nothing is answered.
    """
    with sampled_batches(request, seconds) as sizes:
        measured = parse(_run(request, clients, seconds, directory))
    settle(request)
    return replace(measured, batch_sizes=tuple(sizes))


def write_script(request: Request, directory: Path) -> Path:
    """Write the Lua script that makes wrk send `request`, and its body beside it."""
    body_file = directory / "wrk-body"
    body_file.write_bytes(request.body)
    script = directory / "wrk.lua"
    script.write_text(
        SCRIPT
        % {
            "method": request.method,
            "has_body": "true" if request.body else "false",
            "content_type": request.content_type,
            "body_file": body_file,
            "headers": "\n".join(
                f'wrk.headers["{name}"] = "{value}"' for name, value in request.headers
            ),
        }
        + (NUMBERED if any(NUMBER in value for _, value in request.headers) else "")
    )
    return script


def parse(output: str) -> Measurement:
    """Read the line that our script's `done` printed; microseconds in, seconds out.

    An answer with an error status counts as an error and not as an answer. Raises BenchError
    without that line, and when nothing was answered.
    """
    lines = [line for line in output.splitlines() if line.startswith(SUMMARY)]
    if not lines:
        raise BenchError(f"wrk printed no summary: {output[-300:]!r}")
    said = json.loads(lines[-1].removeprefix(SUMMARY))
    if not said["requests"]:
        raise BenchError(f"wrk got no answer at all: {lines[-1]}")
    return Measurement(
        (said["requests"] - said["status"]) / (said["duration"] / 1e6),
        said["p50"] / 1e6,
        said["p99"] / 1e6,
        error_count=sum(said[kind] for kind in ("status", "connect", "read", "write", "timeout")),
        answer_count=said["requests"] - said["status"],
    )


def _run(request: Request, clients: int, seconds: int, directory: Path) -> str:
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", f"--timeout={TIMEOUT_SECONDS}s"]
    command += ["--latency", "-s", str(write_script(request, directory))]
    command += [f"http://127.0.0.1:{request.port}{request.path}"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + GRACE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"wrk did not end: {' '.join(command)}") from error
    if done.returncode != 0:
        raise BenchError(f"wrk failed ({done.returncode}): {done.stderr or done.stdout}")
    return done.stdout
