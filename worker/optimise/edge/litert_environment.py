"""The environment that has litert-torch: made with pip, for its packages do not fit Ferry's.

It lies in the user's cache, is made once (about 1 GB), and sees Ferry's own packages behind its
own, so that torch is there once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from shared.errors import BadModel
from worker.optimise.cache import cache_directory
from worker.optimise.edge.files import Say

REQUIREMENTS = (
    "litert-torch==0.10.0", "litert-converter==0.5.0", "ai-edge-litert==2.3.0",
    "ai-edge-quantizer==0.10.0", "torchao==0.18.0",
)  # fmt: skip
MAKING_LIMIT_SECONDS = 3600.0
COMPLETE = "complete"
CHILD = Path(__file__).with_name("litert_child.py")


def environment_directory(environ: Mapping[str, str]) -> Path:
    """Return where the environment is, or would be made: another for other versions of torch."""
    deciding = [*REQUIREMENTS, sys.version, torch.__version__, np.__version__, *_own_packages()]
    key = hashlib.sha256("\n".join(deciding).encode()).hexdigest()[:12]
    return cache_directory(environ) / "edge" / f"litert-{key}"


def is_complete(environ: Mapping[str, str]) -> bool:
    """Tell whether the environment is made."""
    return (environment_directory(environ) / COMPLETE).is_file()


def litert_command(environ: Mapping[str, str], say: Say) -> list[str]:
    """Return how `litert_child.py` is started, its environment made; raises BadModel if it cannot.

    A second command waits for the first one that makes it.
    """
    directory = environment_directory(environ)
    with _alone(directory):
        if not (directory / COMPLETE).is_file():
            say(
                f"making an environment for {REQUIREMENTS[0]} in {directory}: about 1 GB from the "
                "package index, once"
            )
            _make(directory, environ)
    return [str(_python(directory)), "-I", str(CHILD)]


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with directory.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise BadModel(f"{directory}: not made: {error}") from error


def _make(directory: Path, environ: Mapping[str, str]) -> None:
    shutil.rmtree(directory, ignore_errors=True)  # what an interrupted command has left
    try:
        _run([sys.executable, "-m", "venv", str(directory)], environ, "python -m venv")
        packages = next((directory / "lib").glob("python*/site-packages"))
        (packages / "ferry.pth").write_text("\n".join(_own_packages()) + "\n", encoding="utf-8")
        pip = [str(_python(directory)), "-m", "pip", "install", "--no-input", "--quiet"]
        _run([*pip, "--disable-pip-version-check", *REQUIREMENTS], environ, "pip")
        (directory / COMPLETE).touch()
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _run(command: Sequence[str], environ: Mapping[str, str], what: str) -> None:
    try:
        done = subprocess.run(
            command, env={**environ, "PYTHONNOUSERSITE": "1"}, capture_output=True, text=True,
            timeout=MAKING_LIMIT_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadModel(f"--to tflite needs an environment of its own: {what}: {error}") from error
    if done.returncode != 0:
        raise BadModel(
            f"--to tflite needs an environment of its own with {REQUIREMENTS[0]}, which {what} "
            f"cannot make here: {_said(done.stderr or done.stdout)}"
        )


def _said(output: str) -> str:
    """Return what pip complains of last, in one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it ended"]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines)[-1].removeprefix("ERROR: ")[:300]


def _python(directory: Path) -> Path:
    return directory / "bin" / "python"


def _own_packages() -> list[str]:
    """Return the directories that Ferry's torch and numpy are in."""
    files = (torch.__file__, np.__file__)
    return list(dict.fromkeys(os.path.realpath(Path(str(file)).parents[1]) for file in files))
