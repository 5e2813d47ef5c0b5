"""The lanes of `make test`: files run side by side, each whole in one process, the longest first.

A file's tests share what its fixtures start once per module. The files over the session's one
worker are one lane, so that it is started once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from _pytest.nodeid import NodeId

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

LONGEST = (
    "tests/cli/test_ferry_add.py",
    "tests/jobs/test_jobs.py",
    "tests/supervisor/test_mishaps.py",
    "tests/system/test_crashes.py",
    "tests/ensembles/test_ensemble_crashes.py",
    "tests/supervisor/test_worker_process.py",
    "tests/backends/test_damaged_files.py",
    "tests/cli/test_ferry_up.py",
    "tests/cli/test_ferry_serve.py",
    "tests/routes/test_model_control.py",
    "tests/system/test_acl_user.py",
    "tests/jobs/test_bulk.py",
    "tests/request_queue/test_queue_model.py",
    "tests/openapi/test_contract.py",
    "tests/system/test_rolling_update.py",
    "tests/supervisor/test_two_machines.py",
    "tests/system/test_failovers.py",
    "tests/supervisor/test_swap.py",
    "tests/supervisor/test_nobody_by_the_old_version.py",
    "tests/samples/test_sample_ensembles.py",
    "tests/optimise/test_edge.py",
    "tests/optimise/test_served_exports.py",
    "tests/cli/test_ferry_up_start.py",
    "tests/routes/test_log_settings.py",
    "tests/routes/test_tritonclient_http.py",
    "tests/routes/test_embeddings.py",
    "tests/cache/test_cache_crash.py",
    "tests/samples/test_sample_sentiment.py",
    "tests/preflight/test_worker_with_gpus.py",
    "tests/repository/test_image_classifier.py",
    "tests/payloads/test_hostile_input.py",
    "tests/bodies/test_bodies_of_processes.py",
)
"""The files that take longest, as measured, so that nothing long begins last."""

SERVED = (
    "tests/openapi/test_openapi_examples.py",
    "tests/payloads/test_pictures.py",
    "tests/payloads/test_predict_tensors.py",
    "tests/payloads/test_preprocessing_arithmetic.py",
    "tests/routes/test_async_requests.py",
    "tests/routes/test_model_configuration.py",
    "tests/routes/test_predict.py",
    "tests/samples/test_sample_digits.py",
    "tests/server/test_both_ways.py",
    "tests/server/test_compressed_requests.py",
)
"""The files over the session's one worker: together the longest lane."""

STARTERS = frozenset(
    {
        "OwnValkey", "besieged", "doubling_server", "running_gunicorn", "running_grpc",
        "running_jobs_worker", "running_system", "running_worker", "spawn", "starter", "subprocess",
    }
)  # fmt: skip
"""What test modules import to start processes."""


def scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Return xdist's `--dist loadfile`, but with one lane for the files that share a worker."""
    from xdist.scheduler import LoadFileScheduling  # noqa: PLC0415 - absent without xdist

    class Lanes(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "served" if file in SERVED else file

        def remove_node(self, node: Any) -> str | None:
            """Hand out again what a process that died had not finished.

            Xdist hands out all that it had: who gets a file with nothing to run asks for no more,
            and the run does not end.
            """
            files = self.assigned_work[node]
            for file in [name for name, tests in files.items() if all(tests.values())]:
                del files[file]
            crashed: str | None = super().remove_node(node)
            return crashed

    return Lanes(config, log)


def sort(items: list[pytest.Item]) -> None:
    """Sort tests as their files are to begin, and give each an id of its own.

    Schemathesis gives all its tests one id, and xdist runs what has one id once.
    """
    places = {file: place for place, file in enumerate((*SERVED, *LONGEST))}
    items.sort(key=lambda item: places.get(item.id.path, len(places)))
    for item in items:
        parameters = item.name.removeprefix(item.originalname)
        item._id = NodeId.parse(item.nodeid.partition("[")[0] + parameters)
    assert len({item.nodeid for item in items}) == len(items), "tests of one id run once"


def mark_quick(items: list[pytest.Item]) -> None:
    """Mark the tests of files that are short and start nothing."""
    for item in items:
        starts = not STARTERS.isdisjoint(vars(item.module)) or "served" in item.fixturenames
        if not starts and item.id.path not in (*LONGEST, *SERVED):
            item.add_marker(pytest.mark.quick)
