"""API keys: their texts, what they allow, where they are kept, how soon a change counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from registered import spec
from waiting import wait_until

from api.access.guard import secret_of
from api.infer.options import RequestOptions
from api.infer.question import Question
from ferry.cli import main
from shared.access import keyring as keyrings
from shared.access.api_key import SECRET, ApiKey, digest, new_secret
from shared.access.key_store import FileOfKeys, KeysInRedis, Store, add, revoke
from shared.access.keyring import Keyring
from shared.access.protected import check_protected
from shared.errors import BadSetting, Forbidden, RedisUnavailable, Unauthorized
from shared.settings import Settings
from shared.wire.client import connect


def made(name: str = "app", **fields: Any) -> tuple[ApiKey, str]:
    """Return a key and its text."""
    key_id, secret = new_secret()
    return ApiKey(id=key_id, name=name, sha256=digest(secret), **fields), secret


@pytest.fixture(params=["file", "redis"])
def store(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Store:
    if request.param == "file":
        return FileOfKeys(tmp_path / "deep" / "keys.json")
    return KeysInRedis(connect(settings.redis_url), settings.key_prefix)


def test_a_key_counts_once_it_is_added_and_no_more_once_it_is_revoked(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret = made()
    add(store, key)
    keyring = Keyring(store, required=True)

    assert keyring.find(secret) == key
    revoke(store, key.name, 1.0)

    def refused() -> str:
        try:
            keyring.find(secret)
        except Unauthorized as error:
            return str(error)
        return ""

    wait_until(lambda: bool(refused()), 30, "the revoked key is refused")
    assert refused() == "this API key was revoked"
    assert keyrings.KEYS_SECONDS < 1


def test_without_keys_everybody_may_ask_until_there_is_one(settings: Settings) -> None:
    store = KeysInRedis(connect(settings.redis_url), settings.key_prefix)
    keyring = Keyring(store, required=False)
    assert keyring.find(None) is None and keyring.find("anything") is None

    key, secret = made()
    add(store, key)

    def is_closed() -> bool:
        try:
            return keyring.find(None) is not None
        except Unauthorized:
            return True

    wait_until(is_closed, 30, "the first key closes the door")
    assert keyring.find(secret) == key


def test_a_redis_that_lost_its_keys_opens_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyrings, "KEYS_SECONDS", -1.0)
    client = connect(settings.redis_url)
    store = KeysInRedis(client, settings.key_prefix)
    key, secret = made()
    add(store, key)
    keyring = Keyring(store, required=False)
    keyring.find(secret)

    client.delete(f"{settings.key_prefix}:keys")

    for text in (None, secret):
        with pytest.raises(Unauthorized):
            keyring.find(text)


def test_while_redis_is_away_the_keys_as_last_read_count(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyrings, "KEYS_SECONDS", -1.0)
    nobody = KeysInRedis(connect("redis://127.0.0.1:1"), "ferry")
    with pytest.raises(RedisUnavailable):
        Keyring(nobody, required=False).find(None)

    store = KeysInRedis(connect(settings.redis_url), settings.key_prefix)
    key, secret = made()
    add(store, key)
    keyring = Keyring(store, required=False)
    keyring.find(secret)
    monkeypatch.setattr(store, "read", nobody.read)

    assert keyring.find(secret) == key
    with pytest.raises(Unauthorized):
        keyring.find(None)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"keys": 3}', '{"keys": [3]}', '{"keys": [{"name": "a"}]}', "[" * 100_000],
)
def test_a_file_that_cannot_be_read_stops_the_start_and_later_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(keyrings, "KEYS_SECONDS", -1.0)
    file = tmp_path / "keys.json"
    store = FileOfKeys(file)
    key, secret = made()
    add(store, key)
    keyring = Keyring(store, required=False)
    keyring.find(secret)

    file.write_text(content)

    assert keyring.find(secret) == key
    with pytest.raises(BadSetting, match=r"FERRY_KEYS_FILE=.*keys.json: ") as raised:
        check_protected(Settings(keys_file=str(file)))
    assert key.sha256 not in str(raised.value)


def test_a_file_of_no_keys_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text('{"keys": []}')

    with pytest.raises(Unauthorized):
        Keyring(FileOfKeys(file), required=False).find(None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "nowhere.invalid"])
def test_where_others_ask_a_good_key_is_needed_unless_somebody_says_so(
    settings: Settings, host: str
) -> None:
    open_to_all = replace(settings, host=host)
    store = KeysInRedis(connect(settings.redis_url), settings.key_prefix)
    with pytest.raises(BadSetting, match="FERRY_INSECURE=1"):
        check_protected(open_to_all)
    check_protected(replace(open_to_all, insecure=True))

    old, _ = made("old", revoked=1.0)
    add(store, old)
    with pytest.raises(BadSetting, match="there is no API key"):
        check_protected(open_to_all)
    add(store, made("new")[0])
    check_protected(open_to_all)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_on_loopback_no_key_is_needed(settings: Settings, host: str) -> None:
    check_protected(replace(settings, host=host))


def test_the_commands_make_show_and_revoke_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    monkeypatch.setenv("FERRY_KEYS_FILE", str(file))
    limits = ["--model", "digits*", "--rate", "5/s", "--concurrency", "2", "--priority", "3"]

    assert main(["keys", "add", "app", *limits, "--expires", "30d"]) == 0
    secret = capsys.readouterr().out.strip()
    assert SECRET.fullmatch(secret) and secret not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert main(["keys", "add", "app"]) == 1
    assert "already" in capsys.readouterr().err
    assert main(["keys", "list", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["roles"] == ["infer"] and listed["state"] == "good" and "sha256" not in listed
    key = Keyring(FileOfKeys(file), required=True).find(secret)
    assert key is not None and (key.per_period, key.concurrency, key.priority) == ((5, 1), 2, 3)
    assert main(["keys", "revoke", "app"]) == 0
    assert main(["keys", "revoke", "app"]) == 1
    for wrong in (
        ["--rate", "5"],
        ["--model", "../x"],
        ["--expires", "soon"],
        ["--expires", "2001-01-01"],
    ):
        assert main(["keys", "add", "other", *wrong]) == 1


@pytest.mark.parametrize(("asked", "level"), [(0, 3), (1, 3), (4, 4)])
@pytest.mark.parametrize("is_known", [True, False])
def test_no_request_is_more_urgent_than_its_key(asked: int, level: int, is_known: bool) -> None:
    key, _ = made(priority=3)
    model = spec("levels").with_changes(priority_levels=5, default_priority_level=1)
    options = RequestOptions(priority=asked)
    question = Question(model, (), options=options, owner=key if is_known else None).of_key(key)

    assert (question.options.priority, question.owner) == (level, key)


def test_a_key_allows_its_roles_and_models_alone() -> None:
    infer = made(models=("digits", "image-*"))[0]

    infer.check("infer", "digits")
    infer.check("infer", "image-small")
    for role, model in (
        ("infer", "other"),
        ("infer", "Digits"),
        ("admin", None),
        ("metrics", None),
    ):
        with pytest.raises(Forbidden):
            infer.check(role, model)  # type: ignore[arg-type]
    made(roles=("admin",))[0].check("metrics", "whatever")


SECRETS = st.one_of(
    st.text(), st.from_regex(SECRET), st.just(made()[1]).map(lambda text: text + "\n"),
)  # fmt: skip


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    authorization=st.none() | SECRETS | SECRETS.map(lambda text: f"Bearer {text}"),
    other=st.none() | SECRETS,
)
@example(authorization="bearer", other=None)
@example(authorization="Basic YTpi", other=None)
@example(authorization="Bearer \ud800", other=None)
def test_whatever_is_sent_for_a_key_lets_nobody_in(
    authorization: str | None, other: str | None
) -> None:
    key, secret = made()
    keyring = Keyring(InMemory({key.id: key}), required=True)  # type: ignore[arg-type]

    with pytest.raises(Unauthorized):
        keyring.find(secret_of(authorization, other))
    for near in (
        secret[:-1],
        secret + "A",
        secret.upper(),
        secret[:-1] + ("A" if secret[-1] != "A" else "B"),
    ):
        with pytest.raises(Unauthorized):
            keyring.find(near)
    assert keyring.find(secret) == key
    assert len(keyring._keys_and_known[1]) == 1  # type: ignore[index]  # nothing is kept of guesses


class InMemory:
    def __init__(self, keys: dict[str, ApiKey]) -> None:
        self.keys = keys

    def read(self) -> dict[str, ApiKey]:
        return self.keys


FIELDS = ["id", "name", "sha256", "roles", "models", "rate", "concurrency", "priority", "expires"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changed=st.dictionaries(st.sampled_from(FIELDS), ANYTHING, min_size=1))
def test_whatever_stands_in_a_record_it_is_a_key_within_bounds_or_none(
    changed: dict[str, Any],
) -> None:
    try:
        key = ApiKey.model_validate(made()[0].model_dump(mode="json") | changed)
    except (ValidationError, ValueError):
        return
    count, seconds = key.per_period
    assert 0 <= count < 1e9 and seconds in (1, 60, 3600, 86_400)
    assert 0 <= key.concurrency <= 1_000_000 and 0 <= key.priority <= 100
    assert key.roles and set(key.roles) <= {"infer", "admin", "metrics"}
    assert len(key.name) <= 64 and "\n" not in key.name and len(key.models) <= 100
    key.may_ask("model")
