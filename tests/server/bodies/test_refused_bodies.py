"""Who is refused before the body came hears why, and the connection goes on behind the body."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ferry_processes import free_port, running_gunicorn
from raw_http import Reply, connected, message
from waiting import wait_until

from api.server.gunicorn_worker import SCRATCH_BYTES
from shared.access.api_key import ApiKey, digest, new_secret
from shared.access.key_store import FileOfKeys, add
from shared.messages import LARGE_BYTES
from shared.settings import Settings

PATHS = ("/v2/models/nothing/infer", "/predict/nothing")
"""On the fast path, and by Flask's route."""
SIZES = (2, 3000, LARGE_BYTES + 1, 2 * SCRATCH_BYTES)
KEY_ID, SECRET = new_secret()


@pytest.fixture(scope="module")
def port(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Serve no model to one key: who has it hears that, others that they want one."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    add(FileOfKeys(file), ApiKey(id=KEY_ID, name="app", sha256=digest(SECRET)))
    port = free_port()
    settings = Settings(
        redis_url=redis_url, key_prefix="refused-bodies", port=port, api_processes=1,
        keys_file=str(file),
    )  # fmt: skip
    with running_gunicorn(settings):
        yield port


def statuses(replies: list[Reply | None]) -> list[int]:
    return [reply.status if reply else 0 for reply in replies]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sent", [0, 1])
def test_a_body_that_comes_behind_the_refusal_is_skipped(
    port: int, path: str, size: int, sent: int
) -> None:
    refused = message(path, b"{" * size)
    head, known = len(refused) - size + sent, message(PATHS[0], b"{}", f"X-API-Key: {SECRET}")
    replies = []
    with connected(port) as connection:
        for _ in range(3):  # from the second on the head is known
            connection.send(refused[:head])
            replies.append(connection.read())
            connection.send(refused[head:])
            replies.append(connection.ask(known))

    assert statuses(replies) == [401, 404] * 3


def test_keys_that_begin_to_count_refuse_what_was_answered_before(
    redis_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    FileOfKeys(file).change(lambda keys: keys)
    settings = Settings(
        redis_url=redis_url, key_prefix="later-keys", port=free_port(), api_processes=1,
        keys_file=str(file),
    )  # fmt: skip
    add(FileOfKeys(file), ApiKey(id=KEY_ID, name="app", sha256=digest(SECRET)))
    asked = message(PATHS[0], b"{}", f"X-API-Key: {SECRET}")
    with running_gunicorn(settings), connected(settings.port) as connection:
        assert connection.ask(asked).status == 404
        FileOfKeys(file).change(
            lambda keys: {
                name: key.model_copy(update={"revoked": 1.0}) for name, key in keys.items()
            }
        )

        wait_until(lambda: connection.ask(asked).status == 401, 30, "it counts")

        connection.send(asked[:-2])
        assert statuses([connection.read()]) == [401]
        assert connection.ask(asked[-2:] + asked).status == 401
