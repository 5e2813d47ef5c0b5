"""A Triton Python model asks others (BLS), and is told why when one cannot answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ferry_processes import running_worker
from formats_repository import OWN, add_format
from triton_models import ASYNC_BLS, BLS
from versioned_models import add_model
from worker_processes import Served, numbers, seen

from shared.errors import BadRequest
from shared.settings import Settings

FIRST_VALUE = 'int(pb_utils.get_input_tensor_by_name(request, "x").as_numpy()[0, 0])'
BROKEN = OWN.replace("return", "raise ValueError('is broken')\n        return")


@pytest.fixture(scope="module")
def settings(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    repository = tmp_path_factory.mktemp("asks")
    add_format(repository, "torchscript", "double")
    add_format(repository, "python", "broken").write_text(BROKEN)
    add_format(repository, "triton_python", "passes").write_text(BLS.replace("other", "double"))
    add_model(repository, "times", 1, 2, more="version_policy: { all {} }")
    levels = (
        "dynamic_batching { priority_levels: 1000 default_priority_level: 500 priority_queue_policy"
        " { key: 900 value { max_queue_size: 9 } } }"
    )
    add_model(repository, "levelled", 1, more=levels)
    passes = add_format(repository, "triton_python", "passes_levelled")
    passes.write_text(BLS.replace("other", "levelled"))
    named = BLS.replace("inputs=", f"model_version={FIRST_VALUE}, inputs=")
    for name, code in (("names", named), ("names_none", BLS)):
        add_format(repository, "triton_python", name).write_text(code.replace("other", "times"))
    file = add_format(repository, "triton_python", "asks")
    file.write_text(ASYNC_BLS)
    (file.parent / "shared.py").write_text("STEPS = 3\n")
    found = Settings(redis_url=redis_url, key_prefix="asks", models=str(repository))
    with running_worker(found):
        yield found


@pytest.fixture
def asks(settings: Settings) -> Iterator[Served]:
    with seen(settings, "asks") as found:
        yield found


def test_another_model_s_answer_is_its_own(settings: Settings) -> None:
    with seen(settings, "passes") as passes:
        assert numbers(passes.push(3.0).wait()).tolist() == [[6.0, 6.0]]


def test_one_with_more_levels_than_queues_is_asked_on_its_default_level(
    settings: Settings,
) -> None:
    with seen(settings, "passes_levelled") as passes:
        assert numbers(passes.push(3.0).wait()).tolist() == [[3.0, 3.0]]


@pytest.mark.parametrize(
    ("model", "value", "expected"),
    [("names", 1.0, 1.0), ("names", 2.0, 4.0), ("names_none", 1.0, 2.0)],
)
def test_the_version_that_it_names_answers_though_another_serves(
    settings: Settings, model: str, value: float, expected: float
) -> None:
    """Version v answers v times what it is given; 2 takes the requests that name none."""
    with seen(settings, model) as asking:
        assert numbers(asking.push(value).wait()).tolist() == [[expected, expected]]


def test_a_coroutine_asks_several_times_at_once(asks: Served) -> None:
    answers = [asks.push(value, (2, 2)) for value in (1.0, 2.0, 5.0)]

    assert [numbers(each.wait()).tolist() for each in answers] == [
        [[6.0, 6.0]] * 2, [[12.0, 12.0]] * 2, [[30.0, 30.0]] * 2
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (90, "2: model 'nowhere': Request for unknown model: 'nowhere'"),
        (91, "5: model 'asks': a model cannot ask itself"),
        (92, "1: model 'broken': ValueError: is broken"),
        (93, "3: model 'double': tensor 'x': shape \\[1, 1\\], 'x' of 'double' wants \\[-1, 2\\]"),
        (94, "3: model 'double': 'double' has no output 'z'"),
        (95, "2: model 'double': .*version"),
        (96, "4: model 'double': Request timeout expired"),
    ],
)
def test_the_error_of_another_model_is_in_its_response(
    asks: Served, value: float, said: str
) -> None:
    with pytest.raises(BadRequest, match=said):
        asks.push(value).wait()
