"""Checks of what a worker here would have: its models and torch.

Apart from the rest of the machine, as an API's image has no worker in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from ferry.commands.doctor.findings import Finding, error, fine, warning
from shared.errors import BadModel
from shared.settings import Settings
from worker.preflight.look import in_own_process
from worker.repository.check import process_environment
from worker.repository.models import left_out, model_names


def of_worker(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Look at the repository and at torch."""
    yield from _repository(settings)
    yield _torch(settings, environ)


def _repository(settings: Settings) -> Iterator[Finding]:
    directory, check = Path(settings.models), "repository"
    try:
        names = model_names(directory)
        others = left_out(directory, names)
    except (BadModel, OSError) as refused:
        yield warning(
            check, f"FERRY_MODELS={settings.models}: {refused}", "a worker here needs one"
        )
        return
    found = f"{directory.resolve()}: {len(names)} models"
    if names:
        yield fine(check, found)
    else:
        yield warning(check, found, "`ferry add` or `ferry samples` puts some into it")
    for name, why in others.items():
        if "its name says" not in why:
            yield warning(check, f"{name} is left out: {why}", "rename it, or take it away")


def _torch(settings: Settings, environ: Mapping[str, str]) -> Finding:
    if find_spec("torch") is None:
        return fine("torch", "not installed: no worker can run here")
    report = in_own_process(process_environment(environ), settings.gpus)
    build = f"{report.torch} for {f'CUDA {report.torch_cuda}' if report.torch_cuda else 'the CPU'}"
    if report.reason:
        return error("torch", f"{build}; {report.reason}", "`ferry devices` has more of it")
    count = len(report.usable)
    return fine("torch", f"{build}, {count} GPUs to use" if count else f"{build}, no GPU")
