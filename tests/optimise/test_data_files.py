"""`--data`: what each kind of file gives a model, and one sentence for what it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.errors import BadModel
from shared.model_spec import ImageInput, ModelSpec, TensorSpec
from worker.optimise.data_files import read_data
from worker.optimise.rows import made_up_rows

LABELS = ("cat", "dog")


def tabular(dims: tuple[int, ...] = (2,)) -> ModelSpec:
    return ModelSpec(
        name="m", version="1", platform="", max_batch_size=4,
        inputs=(TensorSpec(name="x", datatype="FP32", dims=dims),),
        outputs=(TensorSpec(name="y", datatype="FP32", dims=(2,), labels=LABELS),),
    )  # fmt: skip


def pictures() -> ModelSpec:
    return tabular((3, 4, 4)).with_changes(image=ImageInput(input="x", height=4, width=4))


def texts() -> ModelSpec:
    return tabular().with_changes(inputs=(TensorSpec(name="x", datatype="BYTES", dims=(1,)),))


def save(file: Path, colour: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 5), colour).save(file)


def test_a_folder_of_pictures_by_class(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "b.png", "red")
    save(tmp_path / "dog" / "a.jpg", "black")

    rows = read_data(tmp_path, pictures())

    assert rows.labels is not None
    assert rows.labels.tolist() == [0, 1]
    batch = rows.take([0, 1])
    assert batch.pixels == {"x"}
    assert batch.inputs["x"].shape == (2, 4, 4, 3)
    assert batch.inputs["x"][0, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("ending", ["csv", "tsv", "ndjson"])
def test_columns_of_one_input_and_a_label(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"rows.{ending}"
    mark = "\t" if ending == "tsv" else ","
    lines = [
        mark.join(line) for line in (("a", "b", "label"), ("1", "2", "dog"), ("3", "4", "cat"))
    ]
    if ending == "ndjson":
        lines = [json.dumps({"x": [a, b], "label": n}) for a, b, n in ((1, 2, 1), (3, 4, 0))]
    file.write_text("\n".join(lines) + "\n")

    rows = read_data(file, tabular())

    assert rows.take([0, 1]).inputs["x"].tolist() == [[1, 2], [3, 4]]
    assert rows.take([1]).inputs["x"].dtype == np.float32
    assert rows.labels is not None
    assert rows.labels.tolist() == [1, 0]


def test_texts_with_quotes_and_a_column_named_as_the_label(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('text,kind\n"so, ""good""",dog\nbad,cat\n')

    rows = read_data(file, texts(), label="kind")

    assert rows.take([0]).inputs["x"].tolist() == [[b'so, "good"']]
    assert rows.labels is not None
    assert rows.labels.tolist() == [1, 0]


def test_pictures_named_in_a_file_lie_beside_it(tmp_path: Path) -> None:
    save(tmp_path / "p" / "1.png", "blue")
    (tmp_path / "rows.ndjson").write_text('{"image": "p/1.png", "label": "dog"}\n')

    rows = read_data(tmp_path / "rows.ndjson", pictures())

    assert rows.take([0]).inputs["x"][0, 0, 0].tolist() == [0, 0, 255]


def test_arrays_by_name_and_pixels_as_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((3, 2)), y=np.array([0, 1, 1]))
    pixels = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.savez(tmp_path / "b.npz", x=pixels)

    plain, picture = (
        read_data(tmp_path / "a.npz", tabular()),
        read_data(tmp_path / "b.npz", pictures()),
    )

    assert plain.labels is not None
    assert plain.labels.tolist() == [0, 1, 1]
    assert picture.take([1]).pixels == {"x"}
    assert np.array_equal(picture.take([1]).inputs["x"], pixels[1:])


@pytest.mark.parametrize(
    ("name", "content", "spec", "said"),
    [
        ("gone.csv", None, tabular(), "no such file"),
        ("a.xlsx", b"", tabular(), "expected a folder"),
        ("a.csv", b"", tabular(), "no rows"),
        ("a.csv", b"a,b,label\n", tabular(), "no rows"),
        ("a.csv", b"a,b,label\n1,2\n", tabular(), "line 2 has 2 fields"),
        ("a.csv", b"a,b,label\n1,2,cow\n", tabular(), "column 'label': 'cow' is no class"),
        ("a.csv", b"a,b,label\n1,2,2\n", tabular(), "'2' is no class"),
        ("a.csv", b"a,b,label\n1,z,0\n", tabular(), "column 'b' is no FP32"),
        ("a.csv", b"a,b,c,label\n1,2,3,0\n", tabular(), r"\[3\], the model wants \[2\]"),
        ("a.csv", b"\xff\xfe\x00", tabular(), "a.csv: "),
        ("a.ndjson", b"{}\n[]\n", tabular(), "line 2: expected a JSON object"),
        ("a.ndjson", b'{"x": [1, 2]\n', tabular(), "line 1: "),
        ("a.ndjson", b'{"x": [1, 2]}\n{"z": 1}\n', tabular(), "line 2: it differs"),
        ("a.ndjson", b'{"x": [1, 2]}\n{"x": [1]}\n', tabular(), "column 'x' is no FP32"),
        ("a.npz", b"PK\x03\x04", tabular(), "a.npz: "),
        ("a.parquet", b"", tabular(), "pyarrow"),
        ("a.csv", b"image\ngone.png\n", pictures(), "gone.png"),
        ("a.csv", b"image\n../gone.png\n", pictures(), "lies outside of the file's folder"),
        ("a.csv", b"image\n/etc/gone.png\n", pictures(), "lies outside of the file's folder"),
        ("folder", b"", tabular(), "takes none"),
    ],
)  # fmt: skip
def test_bad_data_is_one_sentence_that_names_the_file(
    tmp_path: Path, name: str, content: bytes | None, spec: ModelSpec, said: str
) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)

    with pytest.raises(BadModel, match=said) as raised:
        read_data(path, spec, label="").take([0])

    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_pickle_in_an_archive_of_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], object))

    with pytest.raises(BadModel, match=r"a\.npz"):
        read_data(tmp_path / "a.npz", tabular())


def test_made_up_rows_are_the_same_for_a_seed_and_differ_among_each_other() -> None:
    spec = tabular((3, -1))
    first, again, other = (made_up_rows(spec, 9, seed=seed).take([0, 1]) for seed in (1, 1, 2))

    assert np.array_equal(first.inputs["x"], again.inputs["x"])
    assert not np.array_equal(first.inputs["x"], other.inputs["x"])
    assert not np.array_equal(first.inputs["x"][0], first.inputs["x"][1])
    assert {b.inputs["x"].shape[2] for _, b in made_up_rows(spec, 30).batches(7)} == {16, 7, 32, 64}
