"""The playground in a real browser: any model answers at one click, and so does the code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import opened, wait_for
from PIL import Image

from shared.settings import Settings

MODELS = [
    "digits", "sentiment", "tiny", "datatypes", "halves", "echo_BYTES", "vectors", "large",
    "unbatched", "ensemble",
]  # fmt: skip
PASTED = """
const clipboardData = new DataTransfer(), place = document.querySelector('.grid input');
clipboardData.setData('text', '1.5\\t-2\\n3\\t4e1\\n');
place.dispatchEvent(new ClipboardEvent('paste', { bubbles: true, clipboardData }));
"""
"""A table of two rows, as a spreadsheet has it, pasted into the first cell."""
NUMBERS = re.compile(r"-?\d+\.?\d*(?:e[-+]?\d+)?")


def sent(page: Any) -> dict[str, Any]:
    """Send what the form holds, and return the answer as it came."""
    page.click("#send")
    page.wait_for_selector("#result details, #result .trouble")
    assert not page.locator("#result .trouble").count(), page.inner_text("#result")
    page.click("#result summary")
    found: dict[str, Any] = json.loads(page.inner_text("#result details pre"))
    return found


def code(page: Any, client: str) -> str:
    page.get_by_role("tab", name=client, exact=True).click()
    text: str = page.text_content("#snippet")
    return text


def ran(command: list[str], text: str, directory: Path) -> bytes:
    environ = os.environ | {"no_proxy": "*"}
    done = subprocess.run(
        [*command, text], cwd=directory, env=environ, capture_output=True, check=True, timeout=90
    )
    return done.stdout


def without_timings(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "timings"}


def body(raw: bytes) -> dict[str, Any]:
    """Return an answer's JSON, which binary outputs may follow."""
    start = raw.index(b"{")
    found: dict[str, Any] = json.JSONDecoder().raw_decode(raw[start:].decode("latin-1"))[0]
    return found


@pytest.mark.parametrize("model", MODELS)
def test_one_click_answers_for_any_model_and_so_does_the_copied_code(
    browser: Any, address: str, tmp_path: Path, model: str
) -> None:
    with opened(browser, f"{address}/?model={model}") as page:
        page.wait_for_selector("#send")
        answer = without_timings(sent(page))
        curl = ran(["bash", "-c"], code(page, "curl"), tmp_path)
        requests = ran([sys.executable, "-c"], code(page, "Python, requests"), tmp_path)
        if model == "sentiment":
            page.get_by_role("tab", name="Python, tritonclient").click()
            wait_for(page, "snippet.textContent.includes('InferInput')")
        triton = ran([sys.executable, "-c"], code(page, "Python, tritonclient"), tmp_path)
        script = "async () => { let said; const console = { log: (...all) => said = all };\n"
        said = page.evaluate(f"{script}{code(page, 'JavaScript')}\nreturn said }}")

    assert without_timings(body(curl)) == answer
    assert requests.startswith(b"200 ")
    assert without_timings(body(requests)) == answer
    assert said[0] == 200
    assert without_timings(body(said[1].encode("latin-1", "replace"))) == answer
    if "outputs" in answer and all("data" in output for output in answer["outputs"]):
        agrees(triton.decode(), answer["outputs"])
    if model == "digits":
        logits = json.loads(triton.decode().split(" ", 1)[1])[0]
        assert int(np.argmax(logits)) == answer["class"]


def agrees(printed: str, outputs: list[dict[str, Any]]) -> None:
    """Check that tritonclient's lines, `name values`, hold the same values."""
    lines = dict(line.split(" ", 1) for line in printed.splitlines())
    for output in outputs:
        text = lines[output["name"]]
        if output["datatype"] == "BYTES":
            assert re.findall(r"b'(.*?)'", text) == output["data"]
        elif output["datatype"] == "BOOL":
            assert re.findall("True|False", text) == [str(value) for value in output["data"]]
        else:
            found = [float(value) for value in NUMBERS.findall(text)]
            np.testing.assert_allclose(found, output["data"], rtol=1e-6)


def test_a_drawn_seven_is_a_seven(browser: Any, address: str) -> None:
    with opened(browser, f"{address}/?model=digits") as page:
        page.wait_for_selector("canvas")
        page.click("text=Clear")
        box = page.locator("canvas").bounding_box()
        corners = [(0.25, 0.2), (0.75, 0.2), (0.45, 0.85)]
        points = [(box["x"] + a * box["width"], box["y"] + b * box["height"]) for a, b in corners]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=8)
        page.mouse.up()

        answer = sent(page)

        assert answer["label"] == "7"
        assert page.inner_text("#result .best") == "7"
        assert page.locator("#result .stack").get_attribute("aria-label").startswith("edge")


def test_a_sentence_gets_its_label_and_lines_get_one_each(browser: Any, address: str) -> None:
    with opened(browser, f"{address}/?model=sentiment") as page:
        page.fill("textarea", "The soup was cold and nobody cared.\nWhat a lovely evening!")
        page.check("#each-line")
        answer = sent(page)

        assert [row["sentiment"] for row in answer["predictions"]] == ["negative", "positive"]
        assert page.locator("#result .best").all_inner_texts() == ["negative", "positive"]


def test_a_truncated_picture_is_told_in_a_sentence(browser: Any, address: str) -> None:
    whole = BytesIO()
    Image.effect_noise((64, 64), 90).save(whole, "PNG")
    cut = {"name": "<b>cut</b>.png", "mimeType": "image/png", "buffer": whole.getvalue()[:900]}
    with opened(browser, f"{address}/?model=digits") as page:
        page.set_input_files("input[type=file] >> nth=0", cut)
        page.wait_for_selector("text=<b>cut</b>.png")
        page.click("#send")
        page.wait_for_selector("#result .trouble")

        assert "the picture" in page.inner_text("#result .trouble")
        assert not page.locator("b").count()


def test_a_hundred_requests_at_once_share_batches(browser: Any, address: str) -> None:
    with opened(browser, f"{address}/?model=digits") as page:
        page.wait_for_selector("#send")
        page.select_option("form select", "100")
        page.click("#send")
        page.wait_for_selector("#result .batches")
        said = page.inner_text("#result .best")

        found = re.fullmatch(r"100 requests travelled in (\d+) batch(es)?", said)
        assert found is not None
        assert int(found[1]) < 50
        assert not page.locator("#result .trouble").count()


def test_wrong_values_are_told_before_and_after_they_are_sent(browser: Any, address: str) -> None:
    with opened(browser, f"{address}/?model=tiny") as page:
        page.get_by_label("Shown as").select_option("json")
        page.fill("textarea", "[1, 2")
        page.click("#send")
        page.wait_for_selector("#result .trouble")
        assert "not JSON" in page.inner_text("#result .trouble")

        page.fill("textarea", "[1, 2, 3]")
        page.click("#send")
        page.wait_for_selector("#result .trouble:has-text('16')")


def test_a_table_of_values_is_typed_pasted_and_grown(browser: Any, address: str) -> None:
    with opened(browser, f"{address}/?model=twice") as page:
        page.wait_for_selector(".grid input")
        page.click("text=Add a row")
        wait_for(page, "document.querySelectorAll('.grid input').length === 4")
        page.evaluate(PASTED)
        page.get_by_label("row 1, column 2").fill("7")
        answer = sent(page)

        assert answer["outputs"][0]["data"] == [3.0, 14.0, 6.0, 80.0]
        page.get_by_label("row 2, column 1").fill("a lot")
        page.click("#send")
        page.wait_for_selector("#result .trouble")
        said = page.inner_text("#result .trouble")
        assert said == 'x, row 2, column 1: "a lot" is no number'


def test_a_model_that_is_not_there_says_so(browser: Any, system: Settings, address: str) -> None:
    with opened(browser, f"{address}/") as page:
        page.wait_for_selector("#send")
        told = page.evaluate("fetch('/pages/models/no%3Cb%3E').then((found) => found.text())")

        assert "unknown model" in told
