"""The `dynamic_batching` block of a config: read in full, or refused with field and value."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from registered import spec
from tritonclient.grpc import model_config_pb2

from shared.model_spec import ModelSpec, QueuePolicy, TensorSpec
from worker.repository.config.batching import read_batching

POLICY = "{ timeout_action: DELAY default_timeout_microseconds: 1500 allow_timeout_override: true }"


def read(batching: str, max_batch_size: int = 8) -> dict[str, object]:
    text = f"max_batch_size: {max_batch_size} dynamic_batching {{ {batching} }}"
    return read_batching(text_format.Parse(text, model_config_pb2.ModelConfig()))


def test_every_field_is_read() -> None:
    found = read(
        "preferred_batch_size: [8, 4, 4] max_queue_delay_microseconds: 100 "
        "preserve_ordering: true priority_levels: 3 default_priority_level: 2 "
        "default_queue_policy { max_queue_size: 7 } "
        f"priority_queue_policy {{ key: 2 value {POLICY} }}"
    )

    default = QueuePolicy(max_queue_size=7)
    own = QueuePolicy(
        timeout_action="DELAY", default_timeout_seconds=0.0015, allow_timeout_override=True
    )
    assert found == {
        "max_queue_delay_seconds": 0.0001,
        "preferred_batch_sizes": (4, 8),
        "preserve_ordering": True,
        "priority_levels": 3,
        "default_priority_level": 2,
        "queue_policies": (default, own, default),
    }


def test_a_level_without_any_policy_has_tritons_defaults() -> None:
    found = read(
        "priority_levels: 2 default_priority_level: 1 "
        f"priority_queue_policy {{ key: 2 value {POLICY} }}"
    )

    policies = found["queue_policies"]
    assert isinstance(policies, tuple)
    assert policies[0] == QueuePolicy()
    assert policies[1].timeout_action == "DELAY"


def test_without_levels_the_default_policy_is_that_of_the_only_queue() -> None:
    assert read("default_queue_policy { }")["queue_policies"] == (QueuePolicy(),)
    assert read("")["queue_policies"] == ()


def of(batching: str) -> ModelSpec:
    return spec("m", TensorSpec(name="x", datatype="FP32", dims=(2,))).model_copy(
        update=read(batching)
    )


@pytest.mark.parametrize("levels", [1, 3, 100])
def test_each_of_few_levels_has_a_queue(levels: int) -> None:
    found = of(f"priority_levels: {levels} default_priority_level: 1")

    assert found.levels == levels and not found.level_floors
    assert [found.queue_of(level) for level in (1, levels)] == [1, levels]


@pytest.mark.parametrize("levels", [101, 1000, 2**31, 2**63, 2**64 - 1])
def test_more_levels_share_queues_and_keep_their_order(levels: int) -> None:
    some = sorted({1, 2, 31, 32, 33, 100, 101, levels // 3, levels // 2, levels - 1, levels})
    policy = "priority_queue_policy { key: 77 value { max_queue_size: 5 } }"
    found = of(f"priority_levels: {levels} default_priority_level: {levels // 3} {policy}")

    queues = [found.queue_of(level) for level in some]
    assert queues == sorted(queues) and queues[0] >= 1 and queues[-1] <= found.levels <= 120
    assert [found.queue_of(level) for level in range(1, 33)] == list(range(1, 33))
    assert [found.queue_of(level) - found.levels for level in (levels - 7, levels)] == [-7, 0]
    for alone in (77, levels // 3):
        around = [found.queue_of(level) for level in (alone - 1, alone, alone + 1)]
        assert len(set(around)) == 3 and found.level_of(around[1]) == alone
    assert len(found.queue_policies) == found.levels
    sizes = [each.max_queue_size for each in found.queue_policies]
    assert sizes[found.queue_of(77) - 1] == 5 and sum(sizes) == 5
    assert ModelSpec.model_validate_json(found.model_dump_json()) == found


def test_beside_max_batch_size_0_the_queues_fields_count() -> None:
    assert read("preserve_ordering: true", max_batch_size=0)["preserve_ordering"] is True


@pytest.mark.parametrize(
    ("batching", "said"),
    [
        ("preferred_batch_size: 9", "preferred_batch_size 9 must be from 1 to max_batch_size 8"),
        ("preferred_batch_size: 0", "preferred_batch_size 0 must be from 1 to max_batch_size 8"),
        ("priority_levels: 101", "default_priority_level 0 must be from 1 to 101"),
        (
            "priority_levels: 1000 default_priority_level: 1 "
            + " ".join(
                f"priority_queue_policy {{ key: {100 + n} value {{ }} }}" for n in range(64)
            ),
            "priority_queue_policy: 65 levels are named, of more than 100 priority_levels at most "
            "64 can be",
        ),
        ("priority_levels: 2", "default_priority_level 0 must be from 1 to 2"),
        (
            "priority_levels: 2 default_priority_level: 1 "
            "priority_queue_policy { key: 3 value { } }",
            "priority_queue_policy: key 3 must be a level, priority_levels is 2",
        ),
        (
            "priority_queue_policy { key: 1 value { } }",
            "priority_queue_policy: key 1 must be a level, priority_levels is 0",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_field_and_value(batching: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(batching)


def test_an_unknown_action_is_refused() -> None:
    message = model_config_pb2.ModelConfig(max_batch_size=8)
    message.dynamic_batching.default_queue_policy.timeout_action = 7

    with pytest.raises(ValueError, match="default_queue_policy: timeout_action 7: expected one of"):
        read_batching(message)


def test_a_preferred_size_beside_max_batch_size_0_is_refused() -> None:
    with pytest.raises(ValueError, match="preferred_batch_size 1 must be from 1 to max_batch_size"):
        read("preferred_batch_size: 1", max_batch_size=0)
