"""The keys of body stores, the servers that `FERRY_BODY_URLS` names; `ferry` is FERRY_KEY_PREFIX.

    key                          type    holds                                              expires
    ferry:beside:<id>.<nonce>    string  the large tensors of a request, or of its answer   yes
    ferry:reader:<process>       string  an API process that reads answers in this store    20 s

A request's expire with the request, those of an answer after half a minute.
"""

from __future__ import annotations


class BodyKeys:
    """The names of the keys in a body store."""

    def __init__(self, prefix: str) -> None:
        """Name them under `prefix`: one ends with a reference's name, one with a process's."""
        self.beside = f"{prefix}:beside:"
        self.reader = f"{prefix}:reader:"
