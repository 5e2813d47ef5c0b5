"""Tells by its pickle what a file holds: a torch module, weights, a checkpoint, another object."""

from __future__ import annotations

import re
from typing import IO

from worker.repository.file_kinds import NUMPY, FileKind, cut_off
from worker.repository.pickles import ARRAY_WRAPPER, Pickle, Thing, read_pickle

MAPPINGS = {"dict", "collections.OrderedDict", "collections.defaultdict"}
ARRAYS = re.compile(rf"numpy\..*multiarray\._?(?:reconstruct|scalar)|joblib\..*{ARRAY_WRAPPER}")
"""What makes an array of numpy, in its own pickles and in joblib's."""
MODULE_STATE = {"_parameters", "_modules"}
"""Entries of the state of every `torch.nn.Module`."""
GRAPH_MODULES = ("torch.fx.graph_module.", "torch._dynamo.eval_frame.")
"""Modules that are made by functions of torch's own."""
OWN_MODULES = "torch.nn.modules."
REBUILT = "torch._utils._rebuild"
"""How the names of all functions begin that torch pickles its tensors with."""
LIGHTNING = "pytorch-lightning_version"
WEIGHT_KEYS = ("state_dict", "model_state_dict", "model", "weights", "net", "module")
"""Where checkpoints keep the weights, the usual names first."""


def torch_pickle(stream: IO[bytes]) -> FileKind:
    """Return the kind of a file that torch.save wrote, by the pickle in it."""
    found = read_pickle(stream)
    if found is None or found.cut:
        return cut_off("a file of torch.save")
    return _module(found) or _weights(found) or _other(found)


def _other(found: Pickle) -> FileKind:
    """Return the kind of what torch.save can write as well, and what to do."""
    name = "single tensor" if found.root.kind.startswith(REBUILT) else _named(found.root)
    what = f"a {name} saved with torch.save, neither a module nor weights"
    advice = "save the module, or its state_dict()"
    if "." in name and not name.startswith("torch."):
        advice = "save it with joblib.dump"
    return FileKind("torch_other", what, advice=advice)


def plain_pickle(stream: IO[bytes], how: str = "") -> FileKind:
    """Return the kind of a pickle that torch.save did not write; `how` names its compression."""
    found = read_pickle(stream)
    if found is None or found.cut:
        return cut_off(f"a pickle{how}")
    if module := _module(found):
        return module
    if _weights(found) is not None:
        return FileKind(
            "pickled_weights",
            "a dictionary of torch's tensors, pickled without torch",
            advice="save it with torch.save or safetensors",
        )
    if ARRAYS.match(found.root.kind):
        return NUMPY
    plain = found.root.kind in MAPPINGS or "." not in found.root.kind
    if plain and not found.root.kind.startswith("unknown"):
        return FileKind(
            "pickled_data",
            f"a pickled {_named(found.root)}, no model",
            advice="dump the model itself, with joblib.dump",
        )
    classes = frozenset(found.classes)
    return FileKind("joblib", f"a pickled {_named(found.root)}{how}", "joblib", classes=classes)


def _module(found: Pickle) -> FileKind | None:
    """Return the kind of a pickled module, or of a dictionary that holds just one."""
    key, module = "", found.root
    if found.root.kind in MAPPINGS:
        inside = {name: each for name, each in found.root.items.items() if _is_module(each)}
        if not inside:
            return None
        key = next((name for name in WEIGHT_KEYS if name in inside), next(iter(inside)))
        module = inside[key]
    elif not _is_module(module) and not _begins_as_module(found):
        return None
    where = f" in the entry {key!r} of a dictionary" if key else ""
    kind = "graph" if module.kind.startswith(GRAPH_MODULES) else f"class {module.kind}"
    what = f"a pickled torch module ({kind}){where}"
    classes = frozenset(found.classes)
    return FileKind("pickled_module", what, "torch_pickle", key=key, classes=classes)


def _is_module(thing: Thing) -> bool:
    return thing.state.keys() >= MODULE_STATE or thing.kind.startswith(GRAPH_MODULES)


def _begins_as_module(found: Pickle) -> bool:
    """Tell whether a pickle that was not read to its end is one of a module."""
    seen = {"training", "_parameters"} <= found.texts or found.root.kind.startswith(OWN_MODULES)
    return seen and not found.ended


def _weights(found: Pickle) -> FileKind | None:
    if found.root.kind not in MAPPINGS:
        return None
    known: dict[int, bool] = {}
    if _holds_tensors(found.root, known):
        return FileKind("state_dict", "a state dict, weights only", "torch_state_dict")
    inside = [name for name, each in found.root.items.items() if _holds_tensors(each, known)]
    if not inside:
        return None
    key = next((name for name in WEIGHT_KEYS if name in inside), inside[0])
    maker = "a Lightning checkpoint" if LIGHTNING in found.root.items else "a checkpoint"
    what = f"{maker} with a state dict in its entry {key!r}, weights only"
    classes = frozenset(found.classes)
    return FileKind("checkpoint", what, "torch_state_dict", key=key, classes=classes)


def _holds_tensors(thing: Thing, known: dict[int, bool]) -> bool:
    """Tell whether a thing maps names to tensors, as a state dict does; its buffers may be rare.

    `known` has the answers for things that were met, by their ids: they may be in one another.
    """
    if thing.kind not in MAPPINGS or not thing.items:
        return False
    if id(thing) not in known:
        known[id(thing)] = False
        known[id(thing)] = any(
            each.kind.startswith(REBUILT) for each in thing.items.values()
        ) and not any(_holds_tensors(each, known) for each in thing.items.values())
    return known[id(thing)]


def _named(thing: Thing) -> str:
    return "dictionary" if thing.kind in MAPPINGS else thing.kind
