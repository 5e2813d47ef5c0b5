"""The Redis user that docs/security.md gives to Ferry, for tests that run as this user."""

from __future__ import annotations

import os
import re

from ferry_processes import ROOT
from redis import Redis

from shared.wire.client import connect

NAME, PASSWORD = "ferry", "only-in-tests"
VARIABLE = "TEST_REDIS_USER"
OF_TESTS = (
    "+acl", "+client", "+config", "+debug", "+flushall", "+flushdb", "+keys", "+lset", "+memory",
    "+object", "+pubsub", "+replicaof", "+script", "+ttl", "+type", "+zadd",
)  # fmt: skip
"""What tests ask of a server besides what Ferry does."""


def rules(prefix: str) -> list[str]:
    """Return the rules of the line in the docs, for another FERRY_KEY_PREFIX than `ferry`."""
    text = (ROOT / "docs" / "security.md").read_text()
    found = re.search(r"^    ACL SETUSER ferry (.*(?:\n {8}.*)*)", text, re.M)
    assert found is not None, "the docs give the line"
    words = found[1].replace(">...", f">{PASSWORD}").split()
    return [re.sub(r"^([~&])ferry:", rf"\1{prefix}:", word) for word in words]


def commands(prefix: str) -> set[str]:
    """Return the commands that the user may call, as INFO names them."""
    return {word[1:] for word in rules(prefix) if word.startswith("+")}


def make(admin: Redis, prefix: str) -> None:
    """Make the user, as the docs say."""
    admin.execute_command("ACL", "SETUSER", NAME, *rules(prefix))


def url_for(url: str) -> str:
    """Return the URL by which tests ask a server: as this user where TEST_REDIS_USER is set.

    Each has a prefix of its own, and what they do besides Ferry they may as well.
    """
    if not os.environ.get(VARIABLE):
        return url
    with connect(url) as admin:
        admin.execute_command("ACL", "SETUSER", NAME, *rules("*"), *OF_TESTS)
    return url.replace("unix://", f"unix://{NAME}:{PASSWORD}@")


def refusals(admin: Redis) -> list[str]:
    """Return what the user was refused: commands, keys and channels."""
    return sorted(
        {f"{each['context']} {each['reason']} {each['object']}" for each in admin.acl_log()}
    )
