"""How gunicorn runs the API, in every setting: ferry up, honcho, compose."""

import os
import subprocess
import sys
from typing import Any

from shared.access.addresses import is_loopback
from shared.open_files import lift_open_files
from shared.settings import Settings, mention_service_links, service_links

_settings = Settings.from_env(os.environ)

bind = (
    f"[{_settings.host}]:{_settings.port}"
    if ":" in _settings.host
    else f"{_settings.host}:{_settings.port}"
)
workers = _settings.api_process_count
# A process that may open no more files than these would fail at the next connection, and at all.
# What lies in shared memory is a file for each request, too.
_most_files = lift_open_files()
_most_connections = max(1, _most_files - max(128, _most_files // 8))
worker_connections = min(_settings.api_connections, _most_connections)
# Requests mostly wait, and greenlets wait cheaper than threads: see docs/measurements.md.
worker_class = "api.server.gunicorn_worker.PromptGeventWorker"
# A process that answers no heartbeat for so long is replaced; requests do not count towards it.
timeout = 30
# A stop lets requests finish until their own deadline; `ferry up` cuts that at 4.5 seconds.
graceful_timeout = int(_settings.request_timeout_seconds) + 1
# Longer than the 60 s that proxies keep idle connections, so that they close them, not we.
keepalive = 75
# The C parser of gunicorn_h1c when it is installed.
http_parser = "auto"
limit_request_line = 4094
limit_request_fields = 100
limit_request_field_size = 8190
# No client and no proxy is believed about its scheme, path or address: nothing here asks for them,
# and gunicorn then has no addresses to compare for every request.
forwarded_allow_ips = "*"
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""
accesslog = None
errorlog = "-"
if _settings.log_format == "json":
    logger_class = "api.server.gunicorn_worker.JsonLogger"
loglevel = _settings.log_level.lower()
proc_name = "ferry-api"
# It would put a socket into the home directory, one for all instances.
control_socket_disable = True
# Heartbeat files in memory: on a slow disk gunicorn would take its processes for hung.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None


def on_starting(server: Any) -> None:
    """Say once, not in each process, what of the environment counts otherwise than it stands.

    And look whether the Redis can serve: gunicorn prints a RuntimeError without where it comes
    from, and ends with 1.
    """
    if worker_connections < _settings.api_connections:
        server.log.warning(
            "FERRY_API_CONNECTIONS=%d: %d, for a process may open few files here (`ulimit -n`)",
            _settings.api_connections,
            worker_connections,
        )
    links = service_links(os.environ)
    mention_service_links(links, server.log)
    for name in links:
        del os.environ[name]
    # `--bind` on the command line counts, and the processes are to know whom they listen to.
    hosts = [address[0] for address in getattr(server, "address", ()) if isinstance(address, tuple)]
    if opened := [host for host in hosts if not is_loopback(host)]:
        os.environ["FERRY_HOST"] = opened[0]
    if _settings.redis_url:
        # subtle: in a process of its own, for a client of Redis that is imported before gevent
        # patches the standard library could hang in its locks.
        command = [sys.executable, "-m", "shared.access.protected"]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if found.stdout:
            raise RuntimeError(found.stdout.strip())
