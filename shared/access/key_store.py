"""Where API keys are kept: in the file FERRY_KEYS_FILE, else in Redis."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import redis

from shared.access.api_key import ApiKey
from shared.access.keys import AccessKeys
from shared.errors import BadSetting
from shared.settings import Settings
from shared.wire.client import asking, connect

log = logging.getLogger(__name__)

MAX_KEYS = 1000
MAX_FILE_BYTES = 4 * 2**20
Keys = dict[str, ApiKey]


class FileOfKeys:
    """A JSON file `{"keys": [...]}`; it is read again when it is another one."""

    def __init__(self, path: Path) -> None:
        """Read nothing yet."""
        self.path = path
        self.place = str(path)
        self._seen: object = None
        self._keys: Keys = {}

    def read(self) -> Keys:
        """Return all keys, revoked ones too, by id; raises BadSetting for what cannot be read."""
        seen = self._stamp()
        if seen != self._seen:
            self._keys = self._read()
            self._seen = seen
        return self._keys

    def change(self, update: Callable[[Keys], Keys]) -> None:
        """Replace all keys by what `update` makes of them, whole or not at all."""
        with self._locked():
            keys = update(self._read() if self.path.exists() else {})
            rows = [key.model_dump(mode="json") for key in keys.values()]
            fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(json.dumps({"keys": rows}, indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)

    def _stamp(self) -> object:
        try:
            found = self.path.stat()
        except OSError as error:
            raise BadSetting(f"FERRY_KEYS_FILE={self.path}: {error.strerror}") from error
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _read(self) -> Keys:
        try:
            with self.path.open("rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
            if len(raw) > MAX_FILE_BYTES:
                raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
            rows = json.loads(raw)["keys"]
            keys = [ApiKey.model_validate(row) for row in rows]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadSetting(f"FERRY_KEYS_FILE={self.path}: {sentence_of(error)}") from error
        return _by_id(keys)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let nobody else change the file meanwhile."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_CREAT, 0o600)
        except OSError as error:
            raise BadSetting(f"FERRY_KEYS_FILE={self.path}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


class KeysInRedis:
    """Keys in a hash; every method raises RedisUnavailable."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        """Use `client`."""
        self._client = client
        self._name = AccessKeys(prefix).keys
        self.place = f"{self._name} in Redis"
        self._rows: Mapping[bytes, bytes] = {}
        self._keys: Keys = {}

    def read(self) -> Keys:
        """Return all keys, revoked ones too, by id; one that cannot be read is none."""
        rows = asking(lambda: self._client.hgetall(self._name))
        if rows != self._rows:
            self._rows, self._keys = rows, _by_id(_valid(rows))
        return self._keys

    def change(self, update: Callable[[Keys], Keys]) -> None:
        """Replace all keys by what `update` makes of them."""

        def write(pipeline: redis.client.Pipeline) -> None:
            rows: dict[bytes, bytes] = pipeline.hgetall(self._name)  # type: ignore[assignment]
            keys = update(_by_id(_valid(rows)))
            pipeline.multi()
            for key_id in {key.decode(errors="replace") for key in rows} - keys.keys():
                pipeline.hdel(self._name, key_id)
            for key in keys.values():
                pipeline.hset(self._name, key.id, key.model_dump_json())

        asking(lambda: self._client.transaction(write, self._name))


Store = FileOfKeys | KeysInRedis


def store_of(settings: Settings, client: redis.Redis | None = None) -> Store:
    """Return where the settings keep keys."""
    if settings.keys_file:
        return FileOfKeys(Path(settings.keys_file))
    client = client or connect(settings.redis_url, settings.key_prefix)
    return KeysInRedis(client, settings.key_prefix)


def add(store: Store, key: ApiKey) -> None:
    """Add a key; raises ValueError for a name that is taken, or one key too many."""

    def update(keys: Keys) -> Keys:
        if any(each.name == key.name and each.is_good() for each in keys.values()):
            raise ValueError(f"there is a key {key.name!r} already: revoke it first")
        if len(keys) >= MAX_KEYS:
            old = min((each for each in keys.values() if not each.is_good()), default=None,
                      key=lambda each: each.revoked or each.expires)  # fmt: skip
            if old is None:
                raise ValueError(f"there are {MAX_KEYS} keys, which is the limit")
            keys = {name: each for name, each in keys.items() if name != old.id}
        return keys | {key.id: key}

    store.change(update)


def revoke(store: Store, name: str, now: float) -> list[ApiKey]:
    """Revoke the keys of this name, or the one of this id; returns them."""
    found: list[ApiKey] = []

    def update(keys: Keys) -> Keys:
        hit = {key.id: key for key in keys.values() if name in (key.id, key.name)}
        found[:] = [key for key in hit.values() if not key.revoked]
        gone = {key.id: key.model_copy(update={"revoked": now}) for key in found}
        return keys | gone

    store.change(update)
    return found


def _by_id(keys: Iterable[ApiKey]) -> Keys:
    return {key.id: key for key in keys}


def _valid(rows: Mapping[bytes, bytes]) -> Iterator[ApiKey]:
    for row in rows.values():
        try:
            yield ApiKey.model_validate_json(row)
        except ValueError as error:
            log.warning("a key in Redis is none: %s", sentence_of(error))


def sentence_of(error: Exception) -> str:
    """Return what is wrong, without what was given: it may be a secret."""
    from pydantic import ValidationError  # noqa: PLC0415 - only for its errors

    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if isinstance(error, KeyError | TypeError):
        return 'expected {"keys": [...]}'
    return getattr(error, "strerror", None) or str(error)
