"""Loading and unloading by request, for HTTP and gRPC alike: reads the request's parameters."""

from __future__ import annotations

from shared.errors import BadRequest, shown
from shared.messages import Parameters
from shared.operations.model_control import ModelControl
from shared.registry.catalog import Catalog


def load_by_request(control: ModelControl, name: str, parameters: Parameters) -> None:
    """Load a model, by the configuration in the parameter `config`; raises BadRequest."""
    try:
        config = _config(parameters)
    except BadRequest as error:
        raise BadRequest(f"failed to load '{name}', {error}") from None
    control.load(name, config)


def _config(parameters: Parameters) -> str | None:
    _refuse_unknown(parameters, {"config"}, "load")
    config = parameters.get("config")
    if config is None:
        return None
    if not isinstance(config, str) or not config.lstrip("\ufeff \t\r\n").startswith("{"):
        raise BadRequest('parameter "config" must be a string that holds a JSON object')
    try:
        config.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f'parameter "config" is no text: {error}') from None
    return config


def unload_by_request(
    control: ModelControl, catalog: Catalog, name: str, parameters: Parameters
) -> None:
    """Unload a model, with `unload_dependents` also the models of its steps; raises BadRequest."""
    _refuse_unknown(parameters, {"unload_dependents"}, "unload")
    dependents = parameters.get("unload_dependents", False)
    if type(dependents) is not bool:
        raise BadRequest('parameter "unload_dependents" must be true or false')
    versions = catalog.snapshot().models.get(name, {})
    steps = {step.model for spec in versions.values() for step in spec.steps}
    for each in [name, *sorted(steps)] if dependents else [name]:
        control.unload(each)
    catalog.refresh()


def _refuse_unknown(parameters: Parameters, known: set[str], what: str) -> None:
    unknown = sorted(parameters.keys() - known)
    if not unknown:
        return
    if unknown[0].startswith("file:"):
        raise BadRequest(
            f"parameter {shown(unknown[0])}: files are not taken from requests, put them into the "
            "repository"
        )
    raise BadRequest(f"parameter {shown(unknown[0])}: {what} takes only {sorted(known)}")
