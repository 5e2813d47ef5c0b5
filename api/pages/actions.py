"""Actions of operators from the page: each is one that the command line has too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from api.services import Services
from shared.errors import BadRequest, UnknownRequest
from shared.operations.dead_letters import DeadLetter, DeadLetters
from shared.operations.shadow_comparison import Comparisons

MAX_WEIGHT = 1_000_000


def act(services: Services, letters: DeadLetters, wanted: Mapping[str, Any]) -> str:
    """Do what is wanted, and return what was done in a sentence; raises FerryError.

    `action` is a name of ACTIONS; the other members are strings, of `split` numbers by version.
    """
    action = wanted.get("action")
    if not isinstance(action, str) or action not in ACTIONS:
        raise BadRequest(f'"action" must be one of {sorted(ACTIONS)}, not {action!r:.100}')
    if action in OF_LETTERS:
        letter = _letter(letters, _text(wanted, "id"))
        return OF_LETTERS[action](letters, letter)
    said = OF_MODELS[action](services, _text(wanted, "model"), wanted)
    services.catalog.refresh()
    return said


def _load(services: Services, name: str, _: Mapping[str, Any]) -> str:
    services.model_control.load(name)
    return f"{name} is loaded"


def _unload(services: Services, name: str, _: Mapping[str, Any]) -> str:
    services.model_control.unload(name)
    return f"{name} is unloaded"


def _use(services: Services, name: str, wanted: Mapping[str, Any]) -> str:
    version = _text(wanted, "version")
    services.model_control.use(name, version)
    return f"{name} answers by version {version}"


def _split(services: Services, name: str, wanted: Mapping[str, Any]) -> str:
    weights = wanted.get("weights")
    if not isinstance(weights, dict) or not weights:
        raise BadRequest('"weights" must be an object of whole numbers by version')
    for weight in weights.values():
        if type(weight) is not int or not 0 < weight <= MAX_WEIGHT:
            raise BadRequest(
                f'"weights": {weight!r:.100} is no whole number from 1 to {MAX_WEIGHT}'
            )
    services.model_control.split(name, weights)
    return f"the requests to {name} are split"


def _shadow(services: Services, name: str, wanted: Mapping[str, Any]) -> str:
    version = _text(wanted, "version", may_be_empty=True)
    services.model_control.shadow(name, version)
    services.catalog.refresh()
    serving = services.catalog.snapshot().served.get(name)
    if serving is not None and serving.shadow:
        comparisons = Comparisons(services.client, services.settings.key_prefix)
        comparisons.forget(serving.versions[serving.shadow], serving.default)
    return f"version {version} of {name} is its shadow" if version else f"{name} has no shadow"


def _replay(letters: DeadLetters, letter: DeadLetter) -> str:
    new_id = letters.replay(letter)
    return f"it waits again, its answer will be at /v2/requests/{new_id} for an hour"


def _drop(letters: DeadLetters, letter: DeadLetter) -> str:
    letters.drop(letter)
    return f"request {letter.id} is forgotten"


OF_MODELS: dict[str, Callable[[Services, str, Mapping[str, Any]], str]] = {
    "load": _load, "unload": _unload, "use": _use, "split": _split, "shadow": _shadow,
}  # fmt: skip
OF_LETTERS: dict[str, Callable[[DeadLetters, DeadLetter], str]] = {
    "replay": _replay, "drop": _drop,
}  # fmt: skip
ACTIONS = {*OF_MODELS, *OF_LETTERS}


def _text(wanted: Mapping[str, Any], name: str, *, may_be_empty: bool = False) -> str:
    value = wanted.get(name)
    if not isinstance(value, str) or not (value or may_be_empty):
        raise BadRequest(f'"{name}" must be a string, not {value!r:.100}')
    return value


def _letter(letters: DeadLetters, request_id: str) -> DeadLetter:
    for letter in letters.all():
        if letter.id == request_id:
            return letter
    raise UnknownRequest(f"no dead request {request_id!r:.100}: it was dropped, or never died")
