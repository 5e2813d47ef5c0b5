"""The response cache over gRPC, which shares it with HTTP."""

from __future__ import annotations

from dataclasses import replace

from answers import answer
from counting_model import counting_model, v2
from ferry_processes import free_port
from grpc_process import grpc_client, row, running_grpc

from api.app import create_app
from shared.settings import Settings


def test_an_answer_from_the_cache_says_so_over_grpc(settings: Settings) -> None:
    settings = replace(settings, grpc_port=free_port())
    http = create_app(settings).test_client()
    with (
        counting_model(settings, cached=True) as model,
        running_grpc(settings),
        grpc_client(settings) as client,
    ):
        first, second = (client.infer("fake", [row(3, 3)]) for _ in range(2))
        over_http = http.post("/v2/models/fake/infer", json=v2(3.0))
        (statistics,) = client.get_inference_statistics("fake", as_json=True)["model_stats"]

    assert "cached" not in first.get_response().parameters
    assert second.get_response().parameters["cached"].bool_param is True
    assert second.as_numpy("y").tolist() == [[6.0, 6.0]]
    assert answer(over_http)["timings"]["cached"] is True
    assert model.passes == 1
    assert statistics["inference_stats"]["cache_hit"]["count"] == "2"
    assert statistics["inference_stats"]["cache_miss"]["count"] == "1"
