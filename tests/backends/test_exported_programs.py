"""Programs of torch.export: tensors find their places, any number of rows, no pickle."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loaded import PLAIN, floats, load, spec, tensor

from shared.errors import BadModel
from worker.backends.base import Backend

ONES, TWOS = floats([1, 1]), floats([2, 2])


class SumAndDifference(torch.nn.Module):
    def forward(
        self, first: torch.Tensor, second: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return first + second, first - second


class Named(torch.nn.Module):
    def forward(self, first: torch.Tensor, *, second: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"other": first, "difference": first - second}


class Scaled(torch.nn.Module):
    def forward(self, x: torch.Tensor, factor: float, extra: torch.Tensor | None) -> torch.Tensor:
        return x * factor if extra is None else x * factor + extra


class Nested(torch.nn.Module):
    def forward(self, pair: list[torch.Tensor]) -> torch.Tensor:
        return pair[0] - pair[1]


def export(file: Path, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Path:
    """Export `module` with a free first dimension of every tensor."""
    batch = torch.export.Dim("batch")

    def free(item: Any) -> Any:
        if isinstance(item, list):
            return [free(each) for each in item]
        return {0: batch} if isinstance(item, torch.Tensor) else None

    shapes = [free(item) for item in (*args, *kwargs.values())]
    program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes)
    torch.export.save(program, file)
    return file


def exported(names: list[str], outputs: list[str], file: Path) -> Backend:
    described = spec([tensor(name) for name in names], [tensor(name) for name in outputs])
    return load("torch_export", described, file)


EXAMPLE = (torch.ones(2, 2), torch.ones(2, 2))


def test_inputs_go_by_argument_name_and_outputs_by_order(tmp_path: Path) -> None:
    file = export(tmp_path / "model.pt2", SumAndDifference(), *EXAMPLE)
    backend = exported(["second", "first"], ["sum", "difference"], file)

    outputs = backend.forward({"second": ONES, "first": TWOS}, PLAIN)

    assert outputs["sum"].tolist() == [[3.0, 3.0]]
    assert outputs["difference"].tolist() == [[1.0, 1.0]]


def test_other_inputs_go_by_index_or_order(tmp_path: Path) -> None:
    file = export(tmp_path / "model.pt2", SumAndDifference(), *EXAMPLE)
    indexed = exported(["IN__1", "IN__0"], ["OUT__1", "OUT__0"], file)
    ordered = exported(["b", "a"], ["sum", "difference"], file)

    by_index = indexed.forward({"IN__1": ONES, "IN__0": TWOS}, PLAIN)
    by_order = ordered.forward({"a": ONES, "b": TWOS}, PLAIN)

    assert by_index["OUT__1"].tolist() == [[1.0, 1.0]]
    assert by_order["difference"].tolist() == [[1.0, 1.0]]


def test_keyword_arguments_and_outputs_in_a_dictionary_go_by_name(tmp_path: Path) -> None:
    file = export(tmp_path / "model.pt2", Named(), EXAMPLE[0], second=EXAMPLE[1])
    backend = exported(["second", "first"], ["difference"], file)

    outputs = backend.forward({"second": ONES, "first": TWOS}, PLAIN)

    assert {name: array.tolist() for name, array in outputs.items()} == {"difference": [[1.0, 1.0]]}


def test_what_was_no_tensor_on_export_is_part_of_the_program(tmp_path: Path) -> None:
    file = export(tmp_path / "model.pt2", Scaled(), EXAMPLE[0], 3.0, None)
    backend = exported(["x"], ["y"], file)

    assert backend.forward({"x": TWOS}, PLAIN)["y"].tolist() == [[6.0, 6.0]]


def test_tensors_within_a_list_are_inputs_of_their_own(tmp_path: Path) -> None:
    file = export(tmp_path / "model.pt2", Nested(), [*EXAMPLE])
    backend = exported(["a", "b"], ["y"], file)

    assert backend.forward({"a": TWOS, "b": ONES}, PLAIN)["y"].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_a_free_batch_dimension_takes_any_number_of_rows(tmp_path: Path, rows: int) -> None:
    file = export(tmp_path / "model.pt2", SumAndDifference(), *EXAMPLE)
    backend = exported(["first", "second"], ["sum", "difference"], file)
    x = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)

    assert backend.forward({"first": x, "second": x}, PLAIN)["sum"].tolist() == (2 * x).tolist()


def test_a_program_with_weights_answers_as_its_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    module.eval()
    file = export(tmp_path / "model.pt2", module, EXAMPLE[0])
    backend = exported(["x"], ["y"], file)
    x = floats([1, 2], [3, -4], [0.5, 0])

    found = backend.forward({"x": x}, PLAIN)["y"]

    np.testing.assert_allclose(found, module(torch.from_numpy(x)).detach().numpy(), rtol=1e-6)


def test_an_input_without_a_place_and_an_optional_one_are_refused(tmp_path: Path) -> None:
    file = export(tmp_path / "model.pt2", SumAndDifference(), *EXAMPLE)

    with pytest.raises(BadModel, match=r"forward takes \['first', 'second'\], .* no input for"):
        exported(["first"], ["sum"], file)
    with pytest.raises(BadModel, match="input 'second' is optional, but forward's argument"):
        inputs = [tensor("first"), tensor("second", optional=True)]
        load("torch_export", spec(inputs, [tensor("sum")]), file)


class Marker:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize(
    ("part", "config"),
    [
        ("data/sample_inputs/model.pt", None),
        (
            "data/constants/opaque_obj_0",
            '{"config": {"c": {"path_name": "opaque_obj_0", "is_param": false, '
            '"use_pickle": true, "tensor_meta": null}}}',
        ),
    ],
)
def test_a_program_that_hides_pickled_code_is_refused_and_the_code_does_not_run(
    tmp_path: Path, part: str, config: str | None
) -> None:
    file = export(tmp_path / "model.pt2", SumAndDifference(), *EXAMPLE)
    ran = tmp_path / "ran"
    evil = io.BytesIO()
    if config is None:
        torch.save(Marker(ran), evil)
    else:
        evil.write(pickle.dumps(Marker(ran)))
    parts = {part: evil.getvalue()}
    if config is not None:
        parts["data/constants/model_constants_config.json"] = config.encode()
    _rewrite(file, parts)

    with pytest.raises(BadModel, match="pickled Python objects"):
        exported(["first", "second"], ["sum", "difference"], file)

    assert not ran.exists()


EVIL = "__import__('pathlib').Path({ran!r}).touch()"


def _size(graph: Any, code: str) -> None:
    name = next(iter(graph["graph_module"]["graph"]["tensor_values"]))
    size = graph["graph_module"]["graph"]["tensor_values"][name]["sizes"][0]
    size["as_expr"]["expr_str"] = f"{code} or Symbol('s0')"


def _symbol(graph: Any, code: str) -> None:
    name = next(iter(graph["graph_module"]["graph"]["tensor_values"]))
    size = graph["graph_module"]["graph"]["tensor_values"][name]["sizes"][0]
    size["as_expr"]["expr_str"] = f'Symbol("{code}")'


def _guard(graph: Any, code: str) -> None:
    graph["guards_code"] = [f"{code} or True"]


def _operator(graph: Any, code: str) -> None:
    node = graph["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.serialization.os.system"


def _file(graph: Any, code: str) -> None:
    graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def _argument(graph: Any, code: str) -> None:
    for entry in graph["graph_module"]["module_call_graph"]:
        if entry["signature"]:
            entry["signature"]["forward_arg_names"] = [f"a={code}", "b"]


def _node(graph: Any, code: str) -> None:
    old = json.dumps(graph["graph_module"]["graph"]["nodes"][0]["outputs"][0]["as_tensor"]["name"])
    text = json.dumps(graph).replace(old, json.dumps(f"x = {code}  #"))
    graph.clear()
    graph.update(json.loads(text))


def _factory(graph: Any, code: str) -> None:
    context = {
        "default_factory_module": "pathlib",
        "default_factory_name": "Path",
        "dict_context": ["a"],
    }
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    tree = {"type": "collections.defaultdict", "context": context, "children_spec": [leaf]}
    for entry in graph["graph_module"]["module_call_graph"]:
        if entry["signature"]:
            entry["signature"]["in_spec"] = json.dumps([1, tree])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_size, "the program's size .* none that torch.export writes"),
        (_symbol, "the program's size .* none that torch.export writes"),
        (_operator, "the program's operator 'torch.serialization.os.system'"),
        (_file, "'torch.ops.aten.from_file.default' reads or writes a file"),
        (_argument, "the program's argument "),
        (_node, "the program's name "),
        (_factory, "the program's module 'pathlib'"),
    ],
)
def test_a_graph_that_hides_code_in_its_texts_is_refused_and_the_code_does_not_run(
    tmp_path: Path, change: Any, said: str
) -> None:
    file, ran = tmp_path / "model.pt2", tmp_path / "ran"
    _change_graph(export(file, SumAndDifference(), *EXAMPLE), change, ran)

    with pytest.raises(BadModel, match=said):
        exported(["first", "second"], ["sum", "difference"], file)

    assert not ran.exists()


def test_guards_in_a_file_do_not_run(tmp_path: Path) -> None:
    file, ran = tmp_path / "model.pt2", tmp_path / "ran"
    _change_graph(export(file, SumAndDifference(), *EXAMPLE), _guard, ran)
    backend = exported(["first", "second"], ["sum", "difference"], file)

    backend.forward({"first": ONES, "second": ONES}, PLAIN)

    assert not ran.exists()


def test_the_own_guards_of_a_program_are_kept(tmp_path: Path) -> None:
    file = export(tmp_path / "model.pt2", SumAndDifference(), *EXAMPLE)
    backend = exported(["first", "second"], ["sum", "difference"], file)

    with pytest.raises(AssertionError, match="Guard failed"):
        backend.forward({"first": floats([1, 1], [2, 2]), "second": ONES}, PLAIN)


class Sized(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[0]
        halves = torch.ones(rows // 2 + 1, (rows + 3) * 2).sum()
        return x * (rows % 3 + 1) + halves + rows / 4


def test_sizes_that_are_computed_are_no_code(tmp_path: Path) -> None:
    file = export(tmp_path / "model.pt2", Sized(), torch.ones(4, 2))
    x = floats([1, 2], [3, 4], [5, 6], [7, 8], [9, 10])

    found = exported(["x"], ["y"], file).forward({"x": x}, PLAIN)["y"]

    np.testing.assert_allclose(found, Sized()(torch.from_numpy(x)).numpy())


def _change_graph(file: Path, change: Any, ran: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        name = next(each for each in archive.namelist() if each.endswith("models/model.json"))
        graph = json.loads(archive.read(name))
    change(graph, EVIL.format(ran=str(ran)))
    _rewrite(file, {name.partition("/")[2]: json.dumps(graph).encode()})


def test_a_file_with_machine_code_is_refused(tmp_path: Path) -> None:
    file = export(tmp_path / "model.pt2", SumAndDifference(), *EXAMPLE)
    _rewrite(file, {"data/aotinductor/model/model.so": b"code"})

    with pytest.raises(BadModel, match=r"an AOTInductor package, .*: save the program"):
        exported(["first", "second"], ["sum", "difference"], file)


def test_machine_code_behind_other_bytes_is_not_loaded(tmp_path: Path) -> None:
    file = export(tmp_path / "model.pt2", SumAndDifference(), *EXAMPLE)
    _rewrite(file, {"data/aotinductor/model/model.so": b"code"}, b"before")

    with pytest.raises(BadModel, match="an AOTInductor package, "):
        exported(["first", "second"], ["sum", "difference"], file)


def _rewrite(file: Path, parts: dict[str, bytes], before: bytes = b"") -> None:
    """Put parts into the archive, in the place of those of the same name."""
    with zipfile.ZipFile(file) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(found)).split("/")[0]
    found |= {f"{root}/{name}": data for name, data in parts.items()}
    file.write_bytes(before)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        for name, data in found.items():
            archive.writestr(name, data)
