"""Which of a model's version directories are served."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import BadModel
from worker.repository.config.versions import VersionPolicy, wanted_versions
from worker.repository.models import policy_versions

PLAIN = """
platform: "pytorch_libtorch"
input [ { name: "x" data_type: TYPE_FP32 dims: [4] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [3] } ]
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose model `m` has the versions 2, 9 and 10, and two other directories."""
    for name in ("2", "9", "10", "warmup", "03"):
        (tmp_path / "m" / name).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", ["10"]),
        ("version_policy { }", ["10"]),
        ("version_policy { latest { } }", ["10"]),
        ("version_policy { latest { num_versions: 2 } }", ["9", "10"]),
        ("version_policy { latest { num_versions: 7 } }", ["2", "9", "10"]),
        ("version_policy { all { } }", ["2", "9", "10"]),
        ("version_policy { specific { versions: [9, 2, 9] } }", ["2", "9"]),
        ("version_policy { specific { versions: [2, 5] } }", ["2", "5"]),
    ],
)
def test_a_policy_chooses_versions(repository: Path, policy: str, served: list[str]) -> None:
    (repository / "m" / "config.pbtxt").write_text(PLAIN + policy)

    assert policy_versions(repository, "m") == served


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("specific { }", r"version_policy.specific.versions \[\] must name at least one"),
        ("specific { versions: [0] }", r"version_policy.specific.versions \[0\] must be 1 or more"),
        ("latest { num_versions: -1 }", "num_versions"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(repository: Path, policy: str, message: str) -> None:
    file = repository / "m" / "config.pbtxt"
    file.write_text(PLAIN + f"version_policy {{ {policy} }}")

    with pytest.raises(BadModel, match=message) as refusal:
        policy_versions(repository, "m")

    assert str(refusal.value).startswith(f"{file}: ")


def test_a_configuration_given_with_the_request_counts_instead_of_the_file(
    repository: Path,
) -> None:
    (repository / "m" / "config.pbtxt").write_text(PLAIN)

    assert policy_versions(repository, "m", '{"version_policy": {"all": {}}}') == ["2", "9", "10"]


def test_versions_are_numbers_not_words() -> None:
    assert wanted_versions(VersionPolicy(count=2), ["10", "9", "2"]) == ["9", "10"]
