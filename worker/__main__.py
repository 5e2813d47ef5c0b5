"""Entry point of the worker side: `python -m worker`."""

from __future__ import annotations

import logging
import os
import sys
import tempfile

from shared.errors import BadModel, BadSetting
from shared.settings import NO_TELEMETRY, start
from shared.socket_paths import no_semaphores, socket_base
from shared.wire.server_check import check_server
from worker.supervisor.supervisor import Supervisor

log = logging.getLogger(__name__)


def main() -> int:
    """Supervise until told to stop; 2 for a bad setting, server or repository."""
    try:
        settings = start(os.environ)
        for warning in check_server(settings):
            log.warning("%s", warning)
        if fault := no_semaphores():
            raise BadSetting(fault)
        # OpenMP's threads would otherwise spin after each forward pass, on cores the API needs:
        # twice the CPU for a small model. Read when torch loads, in the processes started later.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault(*NO_TELEMETRY)
        # subtle: the forkserver listens on a socket in here, and ends at a path that is too long.
        tempfile.tempdir = socket_base()
        Supervisor(settings).run()
    except (BadSetting, BadModel) as error:
        print(f"worker: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
