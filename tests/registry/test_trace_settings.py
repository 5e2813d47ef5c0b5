"""/v2/trace/setting: Triton's settings are kept and answered, of all models and of single ones."""

from __future__ import annotations

from typing import Any

import pytest
from answers import answer, refusal
from flask.testing import FlaskClient
from registered import register, spec
from triton_http import triton_client

from api.app import create_app
from shared.settings import Settings

TRACE, MODEL_TRACE = "/v2/trace/setting", "/v2/models/m/trace/setting"
DEFAULT = {
    "trace_file": "",
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_mode": "triton",
}
NO_FILE = "trace file location can not be updated through network protocol"
OUT_OF_RANGE = "Unable to parse 'trace_rate', value is out of range [ 0, 2147483647 ], got: "


@pytest.fixture
def client(settings: Settings) -> FlaskClient:
    """An API that knows the model m."""
    register(settings, spec("m"))
    return create_app(settings).test_client()


@pytest.mark.parametrize("path", [TRACE, MODEL_TRACE])
def test_nothing_set_shows_tritons_defaults(client: FlaskClient, path: str) -> None:
    assert answer(client.get(path)) == DEFAULT
    assert answer(client.post(path, json={})) == DEFAULT


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        ({"trace_level": ["TIMESTAMPS"]}, {}),
        ({"trace_level": ["TENSORS", "TIMESTAMPS", "TENSORS"]},
         {"trace_level": ["TIMESTAMPS", "TENSORS"]}),
        ({"trace_level": ["OFF"]}, {}),
        ({"trace_level": []}, {"trace_level": ["OFF"]}),
        ({"trace_rate": "1", "trace_count": "100", "log_frequency": "50"}, {}),
        ({"trace_rate": "+07", "trace_count": "-1"}, {"trace_rate": "7"}),
        ({"trace_rate": "2147483647"}, {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [TRACE, MODEL_TRACE])
def test_what_is_set_is_kept(
    client: FlaskClient, path: str, wanted: dict[str, Any], kept: dict[str, Any]
) -> None:
    found = answer(client.post(path, json=wanted))

    assert found == answer(client.get(path)) == DEFAULT | wanted | kept


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"trace_level": "TIMESTAMPS"}, "trace_level must be a list of strings"),
        ({"trace_level": [1]}, "trace_level must be a list of strings"),
        ({"trace_level": ["OFF", "TENSORS"]}, "Expect only one trace level 'OFF' is specified"),
        ({"trace_level": ["MAX"]}, "trace_level 'MAX' must be OFF, or some of TIMESTAMPS, TENSORS"),
        ({"trace_rate": 5}, "trace_rate must be a string"),
        ({"trace_rate": "often"}, "Unable to parse 'trace_rate', got: often"),
        ({"trace_rate": ""}, "Unable to parse 'trace_rate', got: "),
        ({"trace_rate": "1.5"}, "Unable to parse 'trace_rate', got: 1.5"),
        ({"trace_rate": ["1", "2"]}, "Unable to parse 'trace_rate', got: 1, 2"),
        ({"trace_rate": "-1"}, OUT_OF_RANGE + "-1"),
        ({"trace_rate": "2147483648"}, OUT_OF_RANGE + "2147483648"),
        ({"trace_rate": "9" * 5000}, "Unable to parse 'trace_rate'"),
        ({"trace_count": "-2"}, "Unable to parse 'trace_count'. Expecting value >= -1, got:-2"),
        ({"log_frequency": "x"}, "Unable to parse 'log_frequency', got: x"),
        ({"trace_mode": "opentelemetry"}, "'trace_mode' is not a trace setting"),
        ({"speed": "1"}, "'speed' is not a trace setting"),
        ([], "must be a JSON object"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_set(
    client: FlaskClient, wrong: Any, message: str
) -> None:
    body = {"trace_level": ["TENSORS"], "trace_count": "3"} | wrong if wrong else wrong

    assert message in refusal(client.post(MODEL_TRACE, json=body))
    assert answer(client.get(MODEL_TRACE)) == DEFAULT


@pytest.mark.parametrize("value", ["/tmp/trace", "", None])
def test_the_file_is_for_no_request_to_set(client: FlaskClient, value: str | None) -> None:
    message = refusal(client.post(TRACE, json={"trace_file": value}), 501, "unsupported")

    assert message == NO_FILE


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_model_has_none(client: FlaskClient, method: str) -> None:
    path = "/v2/models/nobody/trace/setting"
    response = client.open(path, method=method, json={"trace_rate": "1"})

    assert refusal(response, 404, "unknown_model") == "Request for unknown model : nobody"


def test_every_process_and_tritons_client_see_the_same(
    settings: Settings, client: FlaskClient
) -> None:
    with triton_client(settings) as triton:
        triton.update_trace_settings("m", {"trace_rate": "12", "log_frequency": "34"})
        triton.update_trace_settings(
            settings={"trace_rate": "56", "trace_count": "78", "trace_level": ["TENSORS"]}
        )
        cleared = triton.update_trace_settings(settings={"trace_rate": None, "trace_count": None})

        assert cleared == answer(client.get(TRACE)) == DEFAULT | {"trace_level": ["TENSORS"]}
        of_model = cleared | {"trace_rate": "12", "log_frequency": "34"}
        assert triton.get_trace_settings("m") == answer(client.get(MODEL_TRACE)) == of_model

        wanted = {"trace_rate": None, "trace_level": None}
        assert triton.update_trace_settings("m", wanted) == cleared | {"log_frequency": "34"}
        assert triton.get_trace_settings() == cleared
