"""Checks of this machine: cores, files, proxies and ports, and what a worker would have."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from ferry.commands.doctor.findings import Finding, error, fine, warning
from ferry.up.api_client import ask, reached
from ferry.up.listening import try_to_listen
from shared.cores import default_cores
from shared.errors import BadSetting
from shared.settings import Settings
from shared.socket_paths import no_semaphores, socket_base

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
SPARE_FILES = 128
"""Open files of a process besides its connections."""


def of_machine(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Look at what a worker and an API here would have."""
    if find_spec("worker") is None:
        yield fine("worker", "not installed: only APIs can run here")
    else:
        from ferry.commands.doctor.of_worker import of_worker  # noqa: PLC0415

        yield from of_worker(settings, environ)
    yield from _cores(settings, environ)
    yield _files(settings)
    yield from _proxies(environ)
    yield from _shared_memory()
    yield from _ports(settings)


def _cores(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    cores, threads, check = default_cores(), settings.cpu_threads, "cores"
    said = f"{cores} to use, {settings.api_process_count} API processes"
    if settings.api_process_count > cores:
        yield warning(check, said, "set FERRY_API_PROCESSES to fewer")
    if threads > cores:
        yield warning(
            check, f"{cores} to use, FERRY_CPU_THREADS={threads}", f"set it to {cores} or fewer"
        )
    elif settings.api_process_count <= cores:
        shared = f"{threads} threads for each instance" if threads else "shared out among instances"
        yield fine(check, f"{said}, {shared}")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        if name in environ:
            yield warning(
                check,
                f"{name}={environ[name]} is set",
                "unset it: FERRY_CPU_THREADS says how many threads an instance has",
            )


def _files(settings: Settings) -> Finding:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = settings.api_connections + SPARE_FILES
    if hard not in (resource.RLIM_INFINITY, -1) and hard < needed:
        return warning(
            "open files",
            f"at most {hard}, and FERRY_API_CONNECTIONS={settings.api_connections} needs {needed}",
            "raise the hard limit (`ulimit -Hn`, LimitNOFILE), or have fewer connections",
        )
    most = "no limit" if hard == resource.RLIM_INFINITY else f"up to {hard}"
    return fine("open files", f"{most}, {needed} needed")


def _proxies(environ: Mapping[str, str]) -> Iterator[Finding]:
    lowered = {name.lower(): value for name, value in environ.items() if value}
    found = [name for name in PROXIES if name in lowered]
    spared = {name.strip() for name in lowered.get("no_proxy", "").split(",")}
    if not found:
        yield fine("proxies", "none in the environment")
    elif {"*", "127.0.0.1"} & spared:
        yield fine("proxies", f"{', '.join(found)}, but not for this machine")
    else:
        yield warning(
            "proxies",
            f"{', '.join(found)}: clients here ask it for 127.0.0.1 too (Ferry itself does not)",
            "export NO_PROXY=127.0.0.1,localhost",
        )


def _shared_memory() -> Iterator[Finding]:
    if fault := no_semaphores():
        yield error("shared memory", fault, "workers do not start without")
    try:
        yield fine("temporary files", socket_base())
    except BadSetting as refused:
        yield error("temporary files", refused.message, "set TMPDIR to another directory")


def _ports(settings: Settings) -> Iterator[Finding]:
    ports = {
        "FERRY_PORT": (settings.host, settings.port),
        "FERRY_GRPC_PORT": (settings.host, settings.grpc_port),
        "FERRY_METRICS_PORT": (settings.host, settings.metrics_port),
        "FERRY_DASHBOARD_PORT": ("127.0.0.1", settings.dashboard_port),
    }
    runs, metrics = _is_ferry(settings), _is_worker(settings)
    for variable, (host, port) in ports.items():
        check = f"port {port}"
        if not port:
            continue
        if fault := why_not_free(host, port):
            is_ours = runs or (metrics and variable == "FERRY_METRICS_PORT")
            yield _taken(variable, f"cannot listen on {host}: {fault}", check, runs=is_ours)
        else:
            yield fine(check, f"{variable}: free")


def _taken(variable: str, fault: str, check: str, *, runs: bool) -> Finding:
    if runs:
        return fine(check, f"{variable}: taken, Ferry runs here")
    # A worker goes on without its metrics.
    kind = warning if variable == "FERRY_METRICS_PORT" else error
    action = f"set {variable} to another port, or stop what listens there"
    return kind(check, f"{variable}: {fault}", action)


def why_not_free(host: str, port: int) -> str:
    """Return why nobody can listen there, an empty string where one can."""
    try:
        try_to_listen(host, port)
    except OSError as failure:
        return failure.strerror or str(failure)
    return ""


def _is_ferry(settings: Settings) -> bool:
    answer = ask(f"http://{reached(settings.host)}:{settings.port}/v2")
    return answer.is_good and b'"ferry"' in answer.body


def _is_worker(settings: Settings) -> bool:
    """Tell whether a worker tells its figures here: in a container of its own there is no API."""
    if not settings.metrics_port:
        return False
    answer = ask(f"http://{reached(settings.host)}:{settings.metrics_port}/metrics")
    return answer.is_good and b"ferry_worker_" in answer.body
