"""The contract of a backend: a loaded model that runs one batch, and names what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, Protocol

from shared.datatypes import Array
from shared.errors import BadModelOutput, FerryError
from shared.messages import Parameters
from shared.model_spec import ModelSpec, TensorSpec


class Backend(Protocol):
    """A model loaded on one device, used by one process and one thread."""

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Run one batch (stop 8): arrays [rows, ...] by input name in, by output name out.

        The inputs named in `pixels` are uint8 pictures [rows, height, width, channels] that are
        normalised here, on the device, over the whole batch. May raise anything; the batch is then
        run in halves until the request at fault stands alone.
        """
        ...


def close(backend: Backend) -> None:
    """Close a model that has a `close`, behind its last batch."""
    clean_up = getattr(backend, "close", None)
    if clean_up is not None:
        clean_up()


def device_fault(model: object) -> Callable[[], str] | None:
    """Return a model's own answer to why its device takes no more work; most have none.

    It returns an empty string while all is well, and is asked when a batch has raised.
    """
    found: Callable[[], str] | None = getattr(model, "device_fault", None)
    return found


def why_on_cpu(backend: Backend) -> str:
    """Return why a model that was placed on a GPU runs on the CPU; empty where it does not."""
    return getattr(backend, "on_cpu_since", "")


def wants_gpu(spec: ModelSpec) -> bool:
    """Tell whether the config asks for GPUs by name; KIND_AUTO takes any device."""
    groups = spec.config.get("instance_group", ())
    return any(group.get("kind") == "KIND_GPU" for group in groups)


class RequestTensors(NamedTuple):
    """The inputs of one request of a batch that is not stacked; `outputs` are those wanted."""

    id: str
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]
    parameters: Parameters


class EachBackend(Backend, Protocol):
    """A backend whose model sees the requests of a batch one by one, and may fail some of them.

    `worker.instance.batch` uses `answer_each` where a backend has it, `forward` only to warm up.
    """

    def answer_each(
        self, requests: Sequence[RequestTensors], pixels: frozenset[str]
    ) -> list[dict[str, Array] | FerryError]:
        """Return each request's outputs by name, or the error that it alone is answered with.

        An error that it raises is everybody's: the batch is then run in halves, as for `forward`.
        """
        ...


def named_outputs(answer: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the declared outputs `names` of a model's answer, in whatever they are kept.

    They go by name in a mapping, and in a named tuple or a dataclass that has one of the names;
    else by order. Those that are not declared are left out. Raises BadModelOutput for missing ones.
    """
    named = answer if isinstance(answer, Mapping) else _fields(answer)
    if isinstance(answer, Mapping) or not named.keys().isdisjoint(names):
        missing = [name for name in names if name not in named]
        if missing:
            raise BadModelOutput(f"the model returned {list(named)}, without {missing}")
        return {name: named[name] for name in names}
    found = list(named.values()) if named else _in_order(answer)
    if len(found) < len(names):
        raise BadModelOutput(
            f"the model returned {len(found)} tensors, its config declares {list(names)}"
        )
    return dict(zip(names, found, strict=False))


def all_outputs(answer: Any) -> dict[str, Any]:
    """Return everything that a model answered: by its own names, else OUTPUT__0, OUTPUT__1 ..."""
    named = answer if isinstance(answer, Mapping) else _fields(answer)
    if not named:
        named = {f"OUTPUT__{index}": each for index, each in enumerate(_in_order(answer))}
    return {str(name): value for name, value in named.items()}


def _fields(answer: Any) -> Mapping[str, Any]:
    """Return the fields of a named tuple (torch's own among them) or of a dataclass by name."""
    if isinstance(answer, tuple):
        names: Sequence[str] = getattr(answer, "_fields", getattr(answer, "__match_args__", ()))
        return dict(zip(names, answer, strict=False))
    if is_dataclass(answer) and not isinstance(answer, type):
        return {each.name: getattr(answer, each.name) for each in fields(answer)}
    return {}


def _in_order(answer: Any) -> list[Any]:
    """Return the parts of a list or tuple of tensors; a list of texts is one output."""
    if not isinstance(answer, list | tuple) or (answer and isinstance(answer[0], str | bytes)):
        return [answer]
    return list(answer)


def not_an_output(declared: TensorSpec, value: Any) -> BadModelOutput:
    """Return the error of an output that is no tensor at all."""
    kind = "None" if value is None else f"a {type(value).__name__}"
    return BadModelOutput(
        f"output {declared.name!r}: the model returned {kind}, the config declares a tensor of "
        f"{declared.datatype}"
    )
