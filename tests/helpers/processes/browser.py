"""Debian's Chromium, driven by Playwright; tests/browser is skipped where either is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from waiting import wait_until

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
LONG_MS = 60_000.0
"""Tests run beside others: what takes a second alone may take many."""


def chromium() -> str:
    """Return the browser's path; skips the test without one, or says so where one must be."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        missing("no Chromium: apt-get install chromium")
    assert found is not None
    return found


def missing(what: str) -> None:
    if os.environ.get("BROWSER_REQUIRED"):
        pytest.fail(what)
    pytest.skip(what)


@contextmanager
def running_browser() -> Iterator[Any]:
    """Run the browser without a window until the block ends."""
    path = chromium()
    try:
        from playwright.sync_api import sync_playwright  # noqa: PLC0415  make test-browser has it
    except ImportError:
        missing("no Playwright: make test-browser installs it")
    with sync_playwright() as playwright:
        # Its sandbox needs rights that containers lack, and it sees pages of our own alone.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """Open `url` in a window of its own; fails for what a page's scripts raise or may not load."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    context.set_default_timeout(LONG_MS)
    page = context.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda said: troubles.append(said.text) if _is_policy(said) else None)
    page.on("request", lambda asked: troubles.append(asked.url) if _is_away(asked, url) else None)
    page.goto(url)
    yield page
    context.close()
    assert not troubles


def wait_for(page: Any, expression: str) -> None:
    """Wait until JavaScript is true in the page.

    Playwright's own `wait_for_function` evaluates it within the page, whose policy forbids that.
    """
    wait_until(lambda: page.evaluate(expression), LONG_MS / 3000, expression)


def _is_policy(said: Any) -> bool:
    return said.type == "error" and "Content Security Policy" in said.text


def _is_away(asked: Any, url: str) -> bool:
    here = url.split("/")[2]
    return not asked.url.startswith(("data:", "blob:")) and asked.url.split("/")[2] != here
