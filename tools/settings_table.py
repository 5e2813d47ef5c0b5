"""Writes docs/settings.md from `shared/settings.py`: `python -m tools.settings_table`."""

from __future__ import annotations

import re
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from shared.settings import Settings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
HEAD = """\
# Settings

Written by `make docs` from `shared/settings.py`. Change them there.

All settings are environment variables, read once at the start. A bad value, or a `FERRY_` variable
that does not exist, stops the start and is named. An empty value counts as unset. What Kubernetes
sets for a Service called `ferry` or `ferry-api` (`FERRY_PORT=tcp://10.0.0.1:8000` and the like) is
ignored, and mentioned once. `ferry up
--host`, `--port` and `--models` stand for the variables of the same name.
What is passed on into containers is in [operating.md](operating.md#containers).

| variable | default | effect |
|---|---|---|
"""
UNITS = ((2**20, "MiB"), (2**10, "KiB"))


def page() -> str:
    """Return the whole page; the same settings give the same text."""
    return HEAD + "".join(_row(setting) for setting in fields(Settings))


def variables() -> set[str]:
    """Return the names of all settings."""
    return {setting.metadata["variable"] for setting in fields(Settings)}


def _row(setting: Field[Any]) -> str:
    variable, effect = setting.metadata["variable"], setting.metadata["effect"]
    effect = re.sub(r"(?<![`\w])(FERRY_[A-Z_]+)", r"`\1`", effect)
    return f"| `{variable}` | {_default(variable, setting.default)} | {effect} |\n"


def _default(variable: str, default: object) -> str:
    """Return a default as it would be set, with its size where it is one in bytes."""
    if default == "":
        return "unset"
    if isinstance(default, bool):
        return f"`{int(default)}`"
    if variable.endswith("_BYTES") and isinstance(default, int):
        size, unit = next((size, unit) for size, unit in UNITS if default % size == 0)
        return f"`{default}` ({default // size} {unit})"
    return f"`{default}`"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
