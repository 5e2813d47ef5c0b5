"""The examples in /openapi.json are what the sample models really answer."""

from __future__ import annotations

from typing import Any

import pytest
from ferry_processes import SAMPLES
from flask.testing import FlaskClient
from openapi_document import check_answer, document, operations

from tools.openapi.examples import Example, examples

FIRST_ONLY = "top_k"
"""Where classes are close to each other, the order behind the best is the processor's."""


def assert_like(answer: Any, wanted: Any, where: str) -> None:
    """Numbers within a hundredth, timings of any size, all else the same."""
    assert type(answer) is type(wanted), where
    if isinstance(wanted, dict):
        assert answer.keys() == wanted.keys(), where
        for key, value in wanted.items():
            if key == "timings":
                assert answer[key].keys() == value.keys(), where
            else:
                assert_like(answer[key], value, f"{where}.{key}")
    elif isinstance(wanted, list):
        assert len(answer) == len(wanted), where
        count = 1 if where.endswith(FIRST_ONLY) else len(wanted)
        for index in range(count):
            assert_like(answer[index], wanted[index], f"{where}[{index}]")
    elif isinstance(wanted, float):
        assert answer == pytest.approx(wanted, rel=0.01, abs=0.01), where
    else:
        assert answer == wanted, where


@pytest.mark.parametrize("name", examples())
def test_an_example_is_what_the_server_answers(client: FlaskClient, name: str) -> None:
    example: Example = examples()[name]

    response = client.open(
        example.path.format(**example.parameters), method=example.method, data=example.raw()
    )

    assert response.status_code == example.status, response.text
    assert_like(response.get_json(), example.answer, name)
    check_answer(example.method, example.path, response)


@pytest.mark.parametrize("name", examples())
def test_an_example_stands_in_the_document_with_its_request(name: str) -> None:
    example = examples()[name]
    operation = document()["paths"][example.path][example.method.lower()]

    answered = operation["responses"][str(example.status)]["content"]["application/json"]
    assert answered["examples"][name]["value"] == example.answer
    if example.raw():
        asked = operation["requestBody"]["content"][example.media_type]["examples"][name]
        assert asked == example.request()
    values = {item["name"]: item["examples"][name]["value"] for item in operation["parameters"][:1]}
    assert values == example.parameters


def test_every_sample_model_has_an_example_that_infers() -> None:
    asked = {
        example.parameters["name"] for example in examples().values() if example.method == "POST"
    }

    assert asked >= set(SAMPLES)


def test_every_inferring_route_of_a_model_has_an_example() -> None:
    shown = {example.path for example in examples().values()}
    inferring = {
        path
        for _, path, operation in operations()
        if "202" in operation["responses"] and path.count("{") == 1 and "requests" not in path
    }

    assert inferring <= shown
