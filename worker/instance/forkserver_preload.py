"""Imported once by the forkserver, so that a new instance starts with torch already there.

The one module whose import does something: a signal to the supervisor's process group (Ctrl-C, a
process manager's SIGTERM) must not end the forkserver while its instances drain, so it ignores
both; every instance sets its own handlers first thing. And it dies with the supervisor.
"""

import gc
import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)

import numpy.random  # noqa: E402, F401  numpy imports it when it is first needed

from shared.wire.scripts import SCRIPTS, script_digest  # noqa: E402
from worker.instance.process import die_with_parent  # noqa: E402  brings torch and the backends, slowly

die_with_parent()
for name in SCRIPTS:
    script_digest(name)
# The collector would write into every object that it looks at, and each instance then have its own
# copy of what it shares with the others: up to 50 MB each, measured 2026-11-29.
gc.collect()
gc.freeze()
