"""The keys in Redis about API keys. `ferry` is FERRY_KEY_PREFIX.

key                      type    holds                                           expires
ferry:keys               hash    id -> ApiKey as JSON, without FERRY_KEYS_FILE   no (see 1)
ferry:key-use            hash    <id>:<outcome> -> number of requests            no (see 1)
ferry:refused            hash    an error's code -> requests refused by an API   no (see 2)
ferry:key:{<id>}:rate    string  when the key's next request is due, in ms       once it is due
ferry:key:{<id>}:active  zset    its requests under way, by when they are over   after the last

1: there are as many as API keys, 1000 at most; revoked ones stay for `ferry keys list`.
2: there are as many as codes of errors.
"""

from __future__ import annotations


class AccessKeys:
    """The names of the keys under a prefix."""

    def __init__(self, prefix: str) -> None:
        """Name them."""
        self.keys = f"{prefix}:keys"
        self.use = f"{prefix}:key-use"
        self.refused = f"{prefix}:refused"
        self._key = f"{prefix}:key:"

    def rate(self, key_id: str) -> str:
        """Name a key's clock."""
        return f"{self._key}{{{key_id}}}:rate"

    def active(self, key_id: str) -> str:
        """Name a key's requests under way."""
        return f"{self._key}{{{key_id}}}:active"
