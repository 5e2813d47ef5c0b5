"""A worker's own /metrics: its instances, its GPUs, its machine's memory."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from ferry_processes import free_port, running_worker
from scripted_models import Slow, add_model
from waiting import wait_until
from worker_processes import seen

from shared.registry.device_report import DeviceReport
from shared.settings import Settings
from worker.supervisor.worker_metrics import serve_metrics


def scraped(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        text: str = response.read().decode()
    return text


def test_a_worker_tells_what_its_instances_did(settings: Settings, tmp_path: Path) -> None:
    add_model(tmp_path, Slow())
    serving = replace(settings, models=str(tmp_path), metrics_port=free_port())
    with running_worker(serving), seen(serving, "slow") as slow:
        slow.push(1.0).wait()
        slow.push(1.0).wait()
        answered = re.compile(
            r'^ferry_worker_rows_total\{device="cpu",instance_id="\S+",model="slow",version="1"\} '
            r"2.0$",
            re.MULTILINE,
        )
        wait_until(lambda: answered.search(scraped(serving.metrics_port)), 10, "both are counted")
        text = scraped(serving.metrics_port)

    assert 'ferry_worker_instances{model="slow",state="ready",version="1"} 1.0' in text
    assert 'ferry_worker_instances{model="slow",state="failed",version="1"} 0.0' in text
    assert re.search(r"^nv_cpu_memory_total_bytes [1-9]", text, re.MULTILINE)
    assert re.search(r"^process_resident_memory_bytes [1-9]", text, re.MULTILINE)


def test_a_second_worker_of_a_machine_goes_on_without(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    both = replace(settings, metrics_port=free_port())
    first = serve_metrics(both, list, DeviceReport)
    assert first is not None

    second = serve_metrics(both, list, DeviceReport)

    assert second is None
    assert f"FERRY_METRICS_PORT={both.metrics_port}: cannot listen at 127.0.0.1" in caplog.text
    assert "nv_cpu_memory_used_bytes" in scraped(both.metrics_port)
    first[0].shutdown()
    first[0].server_close()


def test_a_port_of_zero_has_none(settings: Settings) -> None:
    assert serve_metrics(replace(settings, metrics_port=0), list, DeviceReport) is None
    with pytest.raises(URLError):
        scraped(free_port())
