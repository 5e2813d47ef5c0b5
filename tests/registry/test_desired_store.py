"""What is desired, as read from a Redis that others may have written to."""

from __future__ import annotations

import json

import pytest

from shared.registry.desired_state import Desired
from shared.registry.desired_store import DesiredStore
from shared.registry.keys import RegistryKeys
from shared.settings import Settings
from shared.wire.client import connect


@pytest.mark.parametrize(
    ("name", "wish"),
    [
        ("m", {"use": "../../tmp"}),
        ("m", {"use": "01"}),
        ("m", {"shadow": "-1"}),
        ("m", {"split": {"1/../2": 1}}),
        ("m", {"taken_back": {"all": "of them"}}),
        ("m", {"config": {"parameters": {}}}),
        ("m", []),
        ("../m", {"loaded": True}),
        ("m/1", {"loaded": True}),
        ("", {"loaded": True}),
    ],
)
def test_a_wish_that_no_request_could_have_made_is_not_followed(
    settings: Settings, name: str, wish: object
) -> None:
    client = connect(settings.redis_url)
    store, keys = DesiredStore(client, settings.key_prefix), RegistryKeys(settings.key_prefix)
    client.hset(keys.desired, mapping={name: json.dumps(wish), "good": '{"loaded": true}'})

    assert store.read().desired == {"good": Desired(loaded=True)}
    if name == "m":  # whoever asks next begins anew
        assert store.change("m", lambda now, _: now.model_copy(update={"use": "2"})).use == "2"
        assert store.read().desired["m"].use == "2"
