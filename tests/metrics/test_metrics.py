"""/metrics: what Prometheus reads of each model version."""

from __future__ import annotations

from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from registered import SUPERVISOR, register, spec

from api.app import create_app
from shared.registry.desired_state import ModelReport, Serving, SupervisorReport, VersionReport
from shared.registry.desired_store import DesiredStore
from shared.registry.snapshot import InstanceRecord
from shared.settings import Settings
from shared.wire.client import connect

Samples = dict[tuple[str | None, ...], float]
LABELS = ("model", "version", "reason")


def scraped(client: FlaskClient) -> Samples:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.mimetype == "text/plain"
    return {
        (sample.name.removeprefix("ferry_model_"), *map(sample.labels.get, LABELS)): sample.value
        for family in text_string_to_metric_families(response.text)
        if family.name.startswith("ferry_model_")
        for sample in family.samples
    }


def test_a_version_that_serves_and_one_that_cannot_be_loaded_are_told(settings: Settings) -> None:
    register(settings, spec("m"))
    versions = {
        "1": VersionReport(key="m/1", state="ready"),
        "2": VersionReport(key="m/2", state="failed", reason='m/2/model.pt: "damaged"'),
    }
    models = {"m": ModelReport(versions=versions), "bad": ModelReport(reason="config.pbtxt: x")}
    with connect(settings.redis_url) as redis:
        store = DesiredStore(redis, settings.key_prefix)
        store.put_report(SUPERVISOR, SupervisorReport(models=models | {"idle": ModelReport()}))
        store.serve("m", Serving(versions={"1": "m/1"}, default="1"), (), store.changes())

    found = scraped(create_app(settings).test_client())

    assert found == {
        ("ready", "m", "1", None): 1.0,
        ("ready", "m", "2", None): 0.0,
        ("request_share", "m", "1", None): 1.0,
        ("request_share", "m", "2", None): 0.0,
        ("load_failure", "m", "2", 'm/2/model.pt: "damaged"'): 1.0,
        ("load_failure", "bad", "", "config.pbtxt: x"): 1.0,
    }


def test_a_split_is_told_in_shares(settings: Settings) -> None:
    second = spec("m").model_copy(update={"version": "2"})
    register(settings, spec("m"), second)
    both = {"1": "m/1", "2": "m/2"}
    with connect(settings.redis_url) as redis:
        store = DesiredStore(redis, settings.key_prefix)
        store.serve(
            "m", Serving(versions=both, default="1", split={"1": 3, "2": 1}), (), store.changes()
        )

    found = scraped(create_app(settings).test_client())

    assert found["request_share", "m", "1", None] == 0.75
    assert found["request_share", "m", "2", None] == 0.25


def test_devices_that_failed_and_versions_that_lack_instances_are_told(settings: Settings) -> None:
    registry = register(settings, spec("m"))
    closed = InstanceRecord(
        id="m-3", supervisor=SUPERVISOR, model="m", version="1", state="failed", host="h",
        device="cuda:3", reason="it is bad", device_faults=4, device_closed="it is bad",
    )  # fmt: skip
    registry.put_instance(closed)

    text = create_app(settings).test_client().get("/metrics").text

    assert 'ferry_model_degraded{model="m",version="1"} 1.0' in text
    assert 'ferry_device_faults{device="cuda:3",host="h"} 4.0' in text
    assert 'ferry_device_closed{device="cuda:3",host="h",reason="it is bad"} 1.0' in text
    assert 'device="cpu"' not in text
