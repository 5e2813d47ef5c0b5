"""For everybody: nothing serious found by axe-core, phone to desktop, light and dark, by keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from browser import opened

from shared.settings import Settings

PATHS = ["/?model=digits", "/?model=sentiment", "/?model=tiny", "/ops"]
DOCS = Path(__file__).parents[2] / "docs"


def ready(page: Any, path: str) -> None:
    if path == "/ops":
        page.wait_for_selector("#live.good")
        page.wait_for_selector("#instances tbody tr")
        return
    page.wait_for_selector("#send")
    page.click("#send")
    page.wait_for_selector("#result details")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PATHS)
def test_axe_finds_nothing_serious(browser: Any, address: str, path: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-core")
    with opened(browser, address + path, color_scheme=scheme) as page:
        ready(page, path)
        found = axe.Axe().run(page).response["violations"]

        serious = [
            (each["id"], each["nodes"][0]["html"], each["nodes"][0]["failureSummary"])
            for each in found
            if each["impact"] in ("serious", "critical")
        ]
        assert not serious


@pytest.mark.parametrize("path", PATHS)
def test_a_phone_shows_it_without_scrolling_sideways(browser: Any, address: str, path: str) -> None:
    with opened(browser, address + path, viewport={"width": 360, "height": 740}) as page:
        ready(page, path)

        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_keyboard_alone_sends_a_request(browser: Any, address: str) -> None:
    with opened(browser, f"{address}/?model=digits") as page:
        page.wait_for_selector("#send")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.tagName") == "CANVAS":
                page.keyboard.press("4")
            if page.evaluate("document.activeElement.id") == "send":
                break
        page.keyboard.press("Enter")
        page.wait_for_selector("#result .best")

        assert page.inner_text("#result .best") == "4"


def test_the_playground_says_why_a_model_is_not_there(
    browser: Any, system: Settings, address: str
) -> None:
    with opened(browser, f"{address}/?model=digits") as page:
        page.wait_for_selector("#send")
        page.route("**/predict/**", lambda route: route.abort())
        page.click("#send")
        page.wait_for_selector("#result .trouble:has-text('does not answer')")


@pytest.mark.skipif("SCREENSHOTS" not in os.environ, reason="SCREENSHOTS=1 writes them anew")
@pytest.mark.parametrize(
    ("name", "path", "scheme"),
    [("playground", "/?model=digits", "light"), ("operations", "/ops", "dark")],
)
def test_screenshots(browser: Any, address: str, name: str, path: str, scheme: str) -> None:
    from PIL import Image  # noqa: PLC0415

    size = {"width": 1100, "height": 720}
    with opened(browser, address + path, color_scheme=scheme, viewport=size) as page:
        ready(page, path)
        file = DOCS / f"{name}.png"
        page.screenshot(path=file)
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(48).save(file, optimize=True)
