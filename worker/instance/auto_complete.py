"""Completes a configuration by the model's own `auto_complete_config`, as Triton does.

    python -m worker.instance.auto_complete FILE < CONFIG

prints the configuration that the file makes of CONFIG, or {"error": why not}. It is a process of
its own, as in Triton: nothing that the file loads stays.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from shared.errors import BadModel, described
from worker.backends import triton_python_backend_utils as pb_utils
from worker.backends.operator_code import import_file


def auto_completed(file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model's `auto_complete_config` makes of its configuration.

    Raises BadModel, or the operator's own errors.
    """
    sys.modules["triton_python_backend_utils"] = pb_utils
    pb_utils.set_model_dir(file.parent)
    model: Any = getattr(import_file(file), "TritonPythonModel", None)
    if not hasattr(model, "auto_complete_config"):
        return dict(config)
    found = model.auto_complete_config(pb_utils.ModelConfig(config))
    if not isinstance(found, pb_utils.ModelConfig):
        raise BadModel("auto_complete_config must return the ModelConfig that it was given")
    return found.as_dict()


def main(file: Path) -> None:
    """Print the completed configuration of standard input."""
    try:
        with redirect_stdout(sys.stderr):  # whatever the file prints
            answer = json.dumps(auto_completed(file.absolute(), json.load(sys.stdin)))
    except BaseException as error:  # a border: whatever the file does is the answer
        answer = json.dumps({"error": described(error)})
    print(answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
