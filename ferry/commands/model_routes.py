"""`ferry models load | unload | use | split | shadow`: what is served, and who gets requests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from ferry.commands.model_access import Models, models_of, requests_of
from ferry.errors import CannotStart
from shared.errors import BadRequest


def load_model(environ: Mapping[str, str], name: str, config: Path | None) -> int:
    """Load a model, or load it again; returns when it is ready on every machine."""
    try:
        text = config.read_text() if config else None
    except (OSError, UnicodeDecodeError) as error:
        raise CannotStart(f"{config}: {error}") from error
    with models_of(environ) as models:
        began = time.monotonic()
        models.control.load(name, text)
        _say_where(models, name, began)
    return 0


def unload_model(environ: Mapping[str, str], name: str) -> int:
    """Unload a model; returns when no request can reach it."""
    with models_of(environ) as models:
        models.control.unload(name)
    print(f"{name}: unloaded")
    return 0


def use_version(environ: Mapping[str, str], name: str, version: str) -> int:
    """Send the requests that name no version to this one, or to the highest (`latest`)."""
    with models_of(environ) as models:
        began = time.monotonic()
        models.control.use(name, "" if version == "latest" else version)
        _say_where(models, name, began)
    return 0


def split_model(environ: Mapping[str, str], name: str, shares: list[str]) -> int:
    """Share requests out among versions, `VERSION=WEIGHT` each, or no longer (`off`)."""
    weights = {} if shares == ["off"] else dict(map(_share, shares))
    with models_of(environ) as models:
        began = time.monotonic()
        models.control.split(name, weights)
        _say_where(models, name, began)
    return 0


def shadow_model(environ: Mapping[str, str], name: str, version: str) -> int:
    """Send a copy of each request to a version, comparing anew, or no longer (`off`)."""
    with models_of(environ) as models:
        began = time.monotonic()
        models.control.shadow(name, "" if version == "off" else version)
        serving = models.store.read().served[name]
        if serving.shadow:
            models.comparisons.forget(serving.versions[serving.shadow], serving.default)
        _say_where(models, name, began)
    return 0


def _share(text: str) -> tuple[str, int]:
    version, _, weight = text.partition("=")
    if not weight.isascii() or not weight.isdigit() or int(weight) < 1:
        raise BadRequest(f"{text!r} must be VERSION=WEIGHT with a weight from 1, or off alone")
    return version, int(weight)


def _say_where(models: Models, name: str, began: float) -> None:
    seconds, snapshot = time.monotonic() - began, models.registry.snapshot()
    shares = [
        f"version {version}: {requests_of(snapshot, name, version)}"
        for version in sorted(snapshot.served[name].versions, key=int)
    ]
    print(f"{name}: after {seconds:.2f} s requests go to {', '.join(shares)}")
