"""Imported once by the forkserver, so that a new instance starts with torch already there.

The one module whose import does something: a signal to the supervisor's process group (Ctrl-C, a
process manager's SIGTERM) must not end the forkserver while its instances drain, so it ignores
both; every instance sets its own handlers first thing. And it dies with the supervisor.
"""

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)

from worker.instance.process import die_with_parent  # noqa: E402  brings torch and the backends, slowly

die_with_parent()
