"""Findings of `ferry doctor`: what was looked at, what is there, and what to do about it."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """One of them; an `action` only where something is to be done."""

    check: str
    state: Literal["ok", "warning", "error"]
    found: str
    action: str = ""


def fine(check: str, found: str) -> Finding:
    """Return that nothing is wrong."""
    return Finding(check, "ok", found)


def warning(check: str, found: str, action: str) -> Finding:
    """Return what works, and may not for long or not well."""
    return Finding(check, "warning", found, action)


def error(check: str, found: str, action: str) -> Finding:
    """Return what does not work, or loses what was accepted."""
    return Finding(check, "error", found, action)
