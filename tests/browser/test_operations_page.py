"""The operations page in a real browser: it follows what happens, and remembers it."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from browser import LONG_MS, chromium, opened, wait_for
from ferry_processes import free_port, running_gunicorn
from own_valkey import OwnValkey
from registered import register, register_drift, register_shadow, report_failure, spec
from waiting import wait_until

from shared.history.recorder import Recorder
from shared.messages import Tensor
from shared.model_spec import TensorSpec
from shared.operations.disagreements import Disagreement
from shared.operations.shadow_comparison import Comparisons
from shared.registry.catalog import Catalog
from shared.registry.registry import Registry
from shared.request_queue.keys import QueueKeys
from shared.settings import Settings
from shared.wire.client import connect

NUMBERS = TensorSpec(name="x", datatype="FP32", dims=(4,))
HOSTILE = "<img src=x onerror=\"document.title='hit'\">'&amp;"
ROW = json.dumps({"input_tensor": [list(range(16))]}).encode()


def ask(address: str, count: int) -> None:
    def one(_: int) -> None:
        request = urllib.request.Request(f"{address}/predict/tiny", ROW)
        with urllib.request.urlopen(request, timeout=60) as answered:
            answered.read()

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(one, range(count)))


def batches(page: Any) -> int:
    """Return how many batches the chosen version's panel counts."""
    text: str = page.inner_text("#panel dt:has-text('batches') + dd")
    return int(text.replace(",", ""))


def test_a_killed_instance_is_shown_gone_and_back(
    browser: Any, system: Settings, address: str
) -> None:
    registry = Registry(connect(system.redis_url), system.key_prefix)
    victim = next(each for each in registry.instances()[0] if each.model == "tiny")
    with opened(browser, f"{address}/ops") as page:
        page.wait_for_selector(f"#instances tr:has-text('{victim.id}')")

        os.kill(victim.pid, signal.SIGKILL)

        page.wait_for_selector(f"#instances tr.gone:has-text('{victim.id}')")
        page.wait_for_selector("#instances tr:not(.gone):has-text('tiny'):has-text('ready')")


def test_a_hundred_requests_move_the_histogram_and_the_history_outlives_the_api(
    browser: Any, system: Settings, address: str
) -> None:
    ask(address, 1)
    with opened(browser, f"{address}/ops") as page:
        page.wait_for_selector("#chosen option[value='tiny/1']", state="attached")
        page.select_option("#chosen", "tiny/1")
        page.wait_for_selector("#panel .histogram")
        before = batches(page)

        ask(address, 100)

        moved = "[...document.querySelectorAll('#panel dt')].some((name) => name.textContent === "
        moved += f"'batches' && Number(name.nextSibling.textContent.replace(',', '')) > {before})"
        wait_for(page, moved)

    registry = Registry(connect(system.redis_url), system.key_prefix)
    catalog = Catalog(registry)
    recorder = Recorder(connect(system.redis_url), system.key_prefix, catalog, registry)
    wait_until(lambda: any("tiny/1" in each.versions for each in recorder.seconds()), 30, "points")
    another = replace(system, port=free_port())
    with running_gunicorn(another):
        whole = "new Promise((done) => { const all = new EventSource('/ops/stream'); "
        whole += "all.onmessage = (event) => { all.close(); done(JSON.parse(event.data)) } })"
        with opened(browser, f"http://127.0.0.1:{another.port}/ops") as page:
            news = page.evaluate(whole)

    assert any("tiny/1" in versions for _, versions in news["seconds"])


def test_an_action_is_confirmed_by_its_name_and_done(browser: Any, address: str) -> None:
    with opened(browser, f"{address}/ops") as page:
        page.click("button[aria-label='Unload halves']")
        assert "halves will answer no more requests" in page.inner_text("#sure-text")
        page.click("#sure button[value=no]")
        wait_for(page, "!document.querySelector('#sure').open")
        assert page.locator("#models tr:has-text('halves'):has-text('ready')").count()

        page.click("button[aria-label='Unload halves']")
        page.click("#sure-yes")
        page.wait_for_selector("#done:has-text('halves is unloaded')")
        page.wait_for_selector("#models tr:has-text('halves'):has-text('unavailable')")

        page.click("button[aria-label='Load halves']")
        page.click("#sure-yes")
        page.wait_for_selector("#models tr:has-text('halves'):has-text('ready')")


def test_examples_drift_and_refusals_are_shown(
    browser: Any, redis_url: str, settings: Settings
) -> None:
    chromium()
    settings = replace(settings, port=free_port())
    served = spec("seen", NUMBERS)
    shadow = register_shadow(settings, served)
    register_drift(settings, served, 300)
    one, other = ((Tensor.of("out", np.float32([row])),) for row in ([0, 9, 0], [9, 0, 0]))
    example = Disagreement(1.0, (Tensor.of("x", np.float32([[1, 2, 3, 4]])),), one, other)
    Comparisons(connect(redis_url), settings.key_prefix).keep(shadow.key, "1", [example], 2)
    with running_gunicorn(settings):
        address = f"http://127.0.0.1:{settings.port}"
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{address}/v2/models/nobody", timeout=60)
        with opened(browser, f"{address}/ops") as page:
            page.wait_for_selector("#drift tr:has-text('seen'):has-text('1: 33% -> 100%')")
            page.wait_for_selector("#panel dt:has-text('404 unknown_model')")
            page.click("button:has-text('Show')")
            page.wait_for_selector("#examples :text('1, 2, 3, 4')")


@pytest.fixture(scope="module")
def crowded(redis_url: str) -> Iterator[str]:
    """The address of an API whose registry holds 200 models and 5,000 dead requests."""
    chromium()
    settings = Settings(redis_url=redis_url, key_prefix="crowded", port=free_port())
    register(
        settings, *(spec(f"model-{n:03}", NUMBERS) for n in range(200)), spec(HOSTILE, NUMBERS)
    )
    report_failure(settings, f"{HOSTILE}2", HOSTILE)
    redis, keys = connect(redis_url), QueueKeys("crowded", "model-000/1")
    entries = [
        msgpack.packb([f"{n:032x}", 1, 1, 3, 1000.0, 1001.0 + n, HOSTILE, b"s" * 8])
        for n in range(5000)
    ]
    redis.lpush(keys.dead, *entries)
    with running_gunicorn(settings):
        yield f"http://127.0.0.1:{settings.port}"


def test_200_models_and_5000_dead_requests_stay_usable(browser: Any, crowded: str) -> None:
    with opened(browser, f"{crowded}/ops") as page:
        wait_for(page, "document.querySelectorAll('#models tbody tr').length >= 200")
        page.wait_for_selector("#dead-count:has-text('5,000')")
        assert page.locator("#dead tbody tr").count() == 50

        page.fill("#filter", "model-17")
        wait_for(page, "document.querySelectorAll('#models tbody tr').length === 10")
        page.click("#older")
        page.wait_for_selector("#newer:visible")
        first = page.locator("#dead tbody tr code").first.inner_text()
        assert first == f"{4949:032x}"

        page.locator("#dead button:has-text('Drop')").first.click()
        assert first in page.inner_text("#sure-text")
        page.click("#sure-yes")
        page.wait_for_selector("#dead-count:has-text('4,999')")


def test_hostile_names_and_errors_are_text(browser: Any, crowded: str) -> None:
    for path in ("/", "/ops", f"/?model={urllib.request.quote(HOSTILE)}"):
        with opened(browser, f"{crowded}{path}") as page:
            page.wait_for_selector(f"text={HOSTILE}", state="attached")
            assert not page.locator("img[src=x]").count()
            assert "hit" not in page.title()


def test_two_hundred_models_are_filtered_in_the_playground(browser: Any, crowded: str) -> None:
    with opened(browser, f"{crowded}/") as page:
        page.fill("#filter", "model-199")
        assert page.locator("#models li:visible").count() == 1


def test_redis_that_goes_is_told_and_that_comes_back_too(browser: Any, tmp_path: Path) -> None:
    chromium()
    valkey = OwnValkey(tmp_path)
    settings = Settings(redis_url=valkey.server.url, key_prefix="gone", port=free_port())
    register(settings, spec("numbers", NUMBERS))
    address = f"http://127.0.0.1:{settings.port}"
    with running_gunicorn(settings), opened(browser, f"{address}/ops") as page:
        page.wait_for_selector("#models tr:has-text('numbers')")
        valkey.kill()
        page.wait_for_selector("#trouble:has-text('Redis is away')")
        with opened(browser, address) as playground:
            playground.click("#send")
            playground.wait_for_selector("#result .trouble:has-text('Redis')")

        valkey.start_again()
        register(settings, spec("numbers", NUMBERS))

        page.wait_for_selector("#trouble", state="hidden")
        page.wait_for_selector("#models tr:has-text('numbers')")
    valkey.server.stop()


def test_without_a_model_the_page_names_the_command_that_adds_one(
    browser: Any, settings: Settings
) -> None:
    empty = replace(settings, port=free_port())
    with running_gunicorn(empty), opened(browser, f"http://127.0.0.1:{empty.port}/") as page:
        assert "ferry serve" in page.inner_text("main")

        register(empty, spec("numbers", NUMBERS))

        page.wait_for_selector("[data-model=numbers]", timeout=LONG_MS)
