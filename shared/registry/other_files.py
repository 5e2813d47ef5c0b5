"""Tells of machines that have different files for one version of a model."""

from __future__ import annotations

from collections.abc import Iterable

from shared.registry.desired_state import SupervisorReport, revision_of

SHOWN_DIGITS = 12
"""Of a digest: enough to tell two apart."""


def differing_contents(reports: Iterable[SupervisorReport]) -> dict[str, dict[str, str]]:
    """Return the digests of the contents of which machines have several for one version.

    By name/version, then by content (`ModelSpec.key`), the lowest revision first; those that are
    loaded count.
    """
    found: dict[str, dict[str, str]] = {}
    for report in reports:
        for name, model in report.models.items():
            for version, told in model.versions.items():
                if told.state == "ready":
                    found.setdefault(f"{name}/{version}", {})[told.key] = told.digest
    return {
        version: {key: contents[key] for key in sorted(contents, key=revision_of)}
        for version, contents in found.items()
        if len(contents) > 1
    }


def other_files(
    holders: Iterable[tuple[str, str]], reports: list[SupervisorReport]
) -> dict[str, str]:
    """Return a sentence for each content beside which there is another, of who has which files.

    `holders` are contents, and the hosts on which they are ready.
    """
    hosts: dict[str, set[str]] = {}
    for key, host in holders:
        hosts.setdefault(key, set()).add(host)
    found: dict[str, str] = {}
    for contents in differing_contents(reports).values():
        have = " and ".join(
            f"{digest[:SHOWN_DIGITS]} on {', '.join(sorted(hosts.get(key, {'?'})))}"
            for key, digest in contents.items()
        )
        found |= dict.fromkeys(contents, f"machines have different files for it: {have}")
    return found
