"""The user's own folder for what commands keep: whoever may write there decides what they run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from shared.errors import BadModel


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Return `ferry` in the user's cache, made and the user's own; raises BadModel."""
    home = environ.get("HOME", "")
    cache = environ.get("XDG_CACHE_HOME") or (home and Path(home) / ".cache")
    if not cache:
        raise BadModel("HOME and XDG_CACHE_HOME are unset: set one, to keep unfinished work in")
    directory = Path(cache) / "ferry"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = directory.stat().st_uid
    except OSError as error:
        raise BadModel(f"{directory}: not made: {error.strerror}") from error
    if owner != os.getuid():
        raise BadModel(f"{directory} belongs to another user (uid {owner}): set XDG_CACHE_HOME")
    return directory
