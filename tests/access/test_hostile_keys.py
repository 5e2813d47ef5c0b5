"""Whatever stands in a header, a file of keys or a limit: it is read as meant, or refused in words.

`HOSTILE_EXAMPLES=100000` looks for longer.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some
from pydantic import ValidationError
from test_api_keys import made

from api.access.guard import secret_of
from shared.access.admission import Admission
from shared.access.api_key import ROLES, SECRET, ApiKey
from shared.access.key_store import FileOfKeys, Keys
from shared.access.keyring import Keyring
from shared.errors import BadSetting, Forbidden, RateLimited, Unauthorized
from shared.settings import Settings
from shared.wire.client import connect

searched = settings(
    max_examples=int(os.environ.get("HOSTILE_EXAMPLES", "150")),
    deadline=timedelta(seconds=2),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
KEY, KNOWN = made()
HEADERS = (
    some.none()
    | some.text(some.characters(max_codepoint=255), max_size=80)
    | some.builds(
        lambda scheme, space, rest: scheme + space + rest,
        some.sampled_from(["Bearer", "bearer", "BASIC", "Basic", "Digest", ""]),
        some.sampled_from([" ", "  ", "\t", ""]),
        some.sampled_from(
            [KNOWN, KNOWN[:-1], "", base64.b64encode(b"u:" + KNOWN.encode()).decode()]
        )
        | some.binary(max_size=30).map(lambda raw: base64.b64encode(raw).decode()),
    )
)
NUMBERS = some.sampled_from([0, 1, -1, 100, 101, 2**31, 2**63, 1e308, math.inf, math.nan, "5"])
VALUES = some.recursive(
    some.none()
    | some.booleans()
    | NUMBERS
    | some.text(max_size=6)
    | some.sampled_from(
        [*ROLES, "*", "a*", "0/s", "5/s", "5/y", "9" * 10 + "/s", "\u0665/s", "\n"]
    ),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=3), inner),
    max_leaves=5,
)
FIELDS = some.dictionaries(some.sampled_from(sorted(ApiKey.model_fields)), VALUES, max_size=4)


class OneKey:
    """A store of one key."""

    place = "here"

    def read(self) -> Keys:
        return {KEY.id: KEY}


@searched
@given(HEADERS, HEADERS)
@example(f"Bearer {KNOWN}", KNOWN)
@example(f"Bearer {KNOWN}\0", None)
@example("Basic " + base64.b64encode(f":{KNOWN}".encode()).decode(), None)
def test_a_header_names_the_one_key_or_is_refused(
    authorization: str | None, x_api_key: str | None
) -> None:
    ring = Keyring(OneKey(), required=True)  # type: ignore[arg-type]
    with suppress(Unauthorized):
        assert ring.find(secret_of(authorization, x_api_key)) is KEY
        said = f"{authorization} {x_api_key}"
        assert (
            KNOWN in said
            or base64.b64encode(KNOWN.encode()).decode()[4:40] in said
            or ("asic" in said.lower())
        )


@searched
@given(some.integers(0, len(KNOWN) - 1), some.characters(max_codepoint=0x24F))
def test_a_key_with_another_letter_is_not_known(place: int, letter: str) -> None:
    other = KNOWN[:place] + letter + KNOWN[place + 1 :]
    ring = Keyring(OneKey(), required=True)  # type: ignore[arg-type]

    for secret in (other, KNOWN + letter, letter + KNOWN, KNOWN[: place + 1]):
        if secret != KNOWN:
            with pytest.raises(Unauthorized):
                ring.find(secret)


@searched
@given(FIELDS, VALUES)
def test_a_file_of_keys_is_read_as_it_was_written_or_refused(
    tmp_path: Path, fields: dict[str, Any], beside: Any
) -> None:
    file = tmp_path / "keys.json"
    row = KEY.model_dump(mode="json") | fields
    file.write_text(json.dumps({"keys": [row, *([] if beside is None else [beside])]}))

    try:
        keys = FileOfKeys(file).read()
    except BadSetting as error:
        assert str(file) in str(error) and KNOWN not in str(error) and KEY.sha256 not in str(error)
        return
    for key in keys.values():
        assert ApiKey.model_validate_json(key.model_dump_json()) == key
        count, seconds = key.per_period
        assert key.rate == "" or (f"{count}/" in key.rate and seconds in (1, 60, 3600, 86_400))
        assert math.isfinite(key.expires) and 0 <= key.concurrency <= 1_000_000
        key.is_good()
        with suppress(Forbidden):
            key.check("infer", "m")
            assert "infer" in key.roles or key.is_admin


@searched
@given(some.binary(max_size=200) | some.sampled_from([b"[" * 100_000, b'{"keys":', b"\xff\xfe{}"]))
def test_a_file_that_is_none_is_refused(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(raw)

    with pytest.raises(BadSetting, match=r"keys\.json"):
        FileOfKeys(file).read()


@searched
@given(some.text(max_size=12) | some.from_regex(r"[0-9]{1,11}/[smhdy]\n?", fullmatch=True))
def test_a_rate_is_a_number_and_a_unit(rate: str) -> None:
    try:
        key = ApiKey.model_validate(KEY.model_dump() | {"rate": rate})
    except ValidationError:
        return
    number, _, unit = rate.partition("/")
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    assert key.per_period == ((int(number), units[unit]) if rate else (0, 1))
    assert rate == "" or int(number) > 0


@pytest.fixture
def admission(settings: Settings) -> Iterator[Admission]:
    with connect(settings.redis_url) as client:
        yield Admission(client, settings.key_prefix)


@searched
@given(some.integers(1, 4), some.lists(some.booleans(), max_size=25))
def test_places_are_what_a_counter_says(
    admission: Admission, concurrency: int, steps: list[bool]
) -> None:
    key, _ = made(concurrency=concurrency)
    places: list[ExitStack] = []
    for takes in steps:
        if not takes:
            if places:
                places.pop().close()
            continue
        with ExitStack() as place:
            try:
                place.enter_context(admission.place(key, 1.0))
            except RateLimited:
                assert len(places) == concurrency
            else:
                places.append(place.pop_all())
        assert len(places) <= concurrency
    for place in places:
        place.close()


def test_the_pattern_of_keys_has_no_other_letters() -> None:
    assert SECRET.fullmatch(KNOWN) and not SECRET.fullmatch(KNOWN + "\n")
