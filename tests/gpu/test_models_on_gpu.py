"""The same answers from a GPU as from the CPU; skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_backend import fake_spec
from scripted_models import save_scripted

from ferry.commands.samples import make_samples
from shared.datatypes import Array
from shared.model_spec import ModelSpec
from worker.backends.preprocessing import Normaliser
from worker.backends.torch_compiled import TorchScriptBackend
from worker.instance.out_of_memory import PiecewiseBackend
from worker.meter import Meter
from worker.repository.models import ServedModel, read_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


class Heavy(torch.nn.Module):
    """Doubles x, with 256 MiB of work for each row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        work = torch.zeros([x.size(0), 1 << 26], device=x.device)
        return x * 2.0 + work[:, :2]


@pytest.fixture
def small_gpu() -> Iterator[None]:
    """Let this process have 2.5 GiB of the GPU's memory, which holds the work of eight rows."""
    torch.cuda.empty_cache()
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2.5 * 2**30 / total_bytes)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def pictures(spec: ModelSpec, rows: int) -> Array:
    assert spec.image is not None
    size = (rows, spec.image.height, spec.image.width, len(spec.image.channels))
    return np.random.default_rng(7).integers(0, 256, size).astype(np.uint8)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """The one sample that needs nothing which a machine with a GPU may lack."""
    repository = tmp_path_factory.mktemp("digits")
    make_samples(["digits"], repository, force=False, weights=None)
    return read_model(repository, "digits")


def test_digits_on_the_gpu_equals_digits_on_the_cpu(digits: ServedModel) -> None:
    inputs, pixels = {"image": pictures(digits.spec, 32)}, frozenset({"image"})

    cpu, gpu = (
        TorchScriptBackend(digits.spec, digits.file, device).forward(inputs, pixels)["logits"]
        for device in ("cpu", "cuda:0")
    )

    # cuDNN's convolutions multiply with TF32's 10 bits of mantissa unless told otherwise.
    tolerance = 1e-2 if torch.backends.cudnn.allow_tf32 else 1e-3
    np.testing.assert_allclose(gpu, cpu, atol=tolerance)


def test_pictures_are_normalised_on_the_gpu(digits: ServedModel) -> None:
    spec = digits.spec
    assert spec.image is not None
    batch = pictures(spec, 4)

    on_gpu = Normaliser(spec.image, torch.device("cuda:0"), torch.float32)(batch)

    assert on_gpu.device == torch.device("cuda:0")
    np.testing.assert_allclose(
        on_gpu.cpu().numpy(), (batch / 255 - 0.5).transpose(0, 3, 1, 2) / 0.5, atol=1e-5
    )


def test_a_model_and_its_answer_travel_to_the_gpu_and_back(tmp_path: Path) -> None:
    save_scripted(torch.nn.Identity(), tmp_path / "model.pt")

    backend = TorchScriptBackend(fake_spec(), tmp_path / "model.pt", "cuda:0")

    x = np.ones((2, 2), np.float32)
    assert backend.forward({"x": x}, frozenset())["y"].tolist() == x.tolist()


def test_a_batch_that_the_gpu_has_no_memory_for_is_run_in_pieces(
    tmp_path: Path, small_gpu: None
) -> None:
    save_scripted(Heavy(), tmp_path / "model.pt")
    spec, meter = fake_spec(), Meter()
    backend = TorchScriptBackend(spec, tmp_path / "model.pt", "cuda:0")
    x = np.arange(64, dtype=np.float32).reshape(32, 2)

    outputs = PiecewiseBackend(backend, spec, meter).forward({"x": x}, frozenset())

    assert outputs["y"].tolist() == (2 * x).tolist()
    assert meter.row_limit == 8
