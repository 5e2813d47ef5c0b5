"""The texts of the scripts that Redis runs for us, see shared/scripts/."""

from __future__ import annotations

import re
from functools import cache
from hashlib import sha1
from importlib.resources import files

SCRIPTS = ("push", "collect", "claim", "publish", "recover", "cancel")
"""Those that every wire loads."""


@cache
def script_text(name: str) -> str:
    """Return the text of shared/scripts/<name>.lua; `-- include part` is that of _part.lua."""
    text = files("shared").joinpath("scripts", f"{name}.lua").read_text()
    return re.sub(r"(?m)^-- include (\w+)$", lambda found: script_text(f"_{found[1]}"), text)


@cache
def script_digest(name: str) -> str:
    """Return what EVALSHA calls the script by."""
    return sha1(script_text(name).encode(), usedforsecurity=False).hexdigest()
