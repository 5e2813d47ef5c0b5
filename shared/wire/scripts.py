"""The texts of the scripts in shared/scripts/, includes filled in, and their digests."""

from __future__ import annotations

import re
from functools import cache
from hashlib import sha1
from importlib.resources import files

import shared
from shared.ticket import filled_in

SCRIPTS = ("push", "collect", "claim", "publish", "recover", "cancel")
"""The scripts that every wire loads."""


@cache
def script_text(name: str) -> str:
    """Return the text of shared/scripts/<name>.lua; `-- include part` is that of _part.lua."""
    # Not by the package's name: beside a model may lie another `shared`.
    text = files(shared).joinpath("scripts", f"{name}.lua").read_text()
    whole = re.sub(r"(?m)^-- include (\w+)$", lambda found: script_text(f"_{found[1]}"), text)
    return filled_in(whole)


@cache
def script_digest(name: str) -> str:
    """Return the digest that EVALSHA calls the script by."""
    return sha1(script_text(name).encode(), usedforsecurity=False).hexdigest()
