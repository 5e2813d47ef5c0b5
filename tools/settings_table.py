"""Writes what lists all settings, from `shared/settings.py`: `python -m tools.settings_table`.

That is docs/settings.md, and what docker-compose.yml passes on.
"""

from __future__ import annotations

import re
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from shared.job_settings import JobSettings
from shared.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "settings.md"
COMPOSE = ROOT / "docker-compose.yml"
HEAD = """\
# Settings

Written by `make docs` from `shared/settings.py` and `shared/job_settings.py`. Change them there.

All settings are environment variables, read once at the start. A bad value, or a `FERRY_` variable
that does not exist, stops the start and is named. An empty value counts as unset. What Kubernetes
sets for a Service called `ferry` or `ferry-api` (`FERRY_PORT=tcp://10.0.0.1:8000` and the like) is
ignored, and mentioned once. `ferry up
--host`, `--port` and `--models` stand for the variables of the same name.
Containers get them as [deploy.md](deploy.md#settings) says.

| variable | default | effect |
|---|---|---|
"""
OF_CONTAINERS = {
    "REDIS_URL",
    "FERRY_HOST",
    "FERRY_PORT",
    "FERRY_GRPC_PORT",
    "FERRY_DASHBOARD_PORT",
    "FERRY_MODELS",
    "FERRY_STATE_DIR",
    "FERRY_JOB_INPUTS",
    "FERRY_JOB_OUTPUTS",
    "FERRY_JOB_FILES",
}
"""Addresses and places, which are others inside of a container than on its host."""
_PASSED_ON = re.compile(r"(?<=  # settings: begin\n).*(?=  # settings: end\n)", re.DOTALL)
UNITS = ((2**20, "MiB"), (2**10, "KiB"))


def page() -> str:
    """Return the whole page; the same settings give the same text."""
    of_jobs = {each.name for each in fields(JobSettings)}
    last = sorted(fields(Settings), key=lambda setting: setting.name in of_jobs)
    return HEAD + "".join(_row(setting) for setting in last)


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


def compose(text: str) -> str:
    """Return docker-compose.yml's text with every setting passed on that means the same inside."""
    names = [setting.metadata["variable"] for setting in fields(Settings)]
    lines = [f"  {name}: ${{{name}:-}}\n" for name in names if name not in OF_CONTAINERS]
    return _PASSED_ON.sub(lambda _: "".join(lines), text)


def main() -> None:
    """Write the page, and its part of docker-compose.yml."""
    PAGE.write_text(page(), encoding="utf-8")
    COMPOSE.write_text(compose(COMPOSE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
