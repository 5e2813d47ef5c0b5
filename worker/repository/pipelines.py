"""Has a process of its own say what a scikit-learn file takes and gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from worker.repository.config.description import Described, Description
from worker.repository.describer import LONGEST_SECONDS

MAX_ROWS = 64
"""The max_batch_size of a pipeline whose config has none: it takes any number of rows."""


class DescribedPipeline(NamedTuple):
    """A pipeline's tensors, and the `parameters` that a config would have for it."""

    description: Description
    parameters: dict[str, str]


def describe_pipeline(file: Path) -> DescribedPipeline:
    """Load `file` elsewhere and ask it; raises ValueError saying why it tells nothing."""
    root, given = str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "worker.backends.joblib_pipeline", str(file)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, given)))},
            capture_output=True,
            timeout=LONGEST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{file} was not read within {LONGEST_SECONDS:.0f} s") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        said = " ".join(done.stderr.decode(errors="replace").strip().splitlines()[-1:])
        raise ValueError(
            f"{file}: the process that read it ended with exit code {done.returncode}, {said}"
        ) from None
    if "error" in answer:
        raise ValueError(f"{file}: {answer['error']}")
    inputs, outputs = ([Described(*each) for each in answer[key]] for key in ("inputs", "outputs"))
    return DescribedPipeline(Description(inputs, outputs, (1, MAX_ROWS)), answer["parameters"])
