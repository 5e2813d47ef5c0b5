"""Finds out with which API key a request comes (stop 1), for HTTP and gRPC alike.

What passes on a key is `KEY` in WSGI's environment; None where there are no keys, and everybody may
do everything.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Mapping
from typing import Any

import redis

from api.access.fair_line import ASKING, UNKEYED, Asking
from shared.access.admission import Admission
from shared.access.api_key import ApiKey, Role
from shared.access.key_store import store_of
from shared.access.keyring import Keyring
from shared.access.protected import wants_keys
from shared.errors import FerryError, Forbidden, Unauthorized
from shared.settings import Settings

KEY = "ferry.key"
AUTHORIZATION, X_API_KEY = "HTTP_AUTHORIZATION", "HTTP_X_API_KEY"


class Guard:
    """One process's door; opens no connection before the first request."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        """Know keys by the settings."""
        store = store_of(settings, client)
        self.keyring = Keyring(store, required=wants_keys(settings))
        self.admission = Admission(client, settings.key_prefix)

    def enter(
        self, environ: Mapping[str, Any], role: Role | None, model: str | None
    ) -> ApiKey | None:
        """Return the key of a request, WSGI's; raises Unauthorized, Forbidden, RedisUnavailable."""
        secret = secret_of(environ.get(AUTHORIZATION), environ.get(X_API_KEY))
        return self.admit(secret, role, model)

    def sees_inside(self, environ: Mapping[str, Any]) -> bool:
        """Tell whether who asks an open route may see reasons, as admins do."""
        try:
            return is_admin(self.enter(environ, None, None))
        except FerryError:
            return False

    def still_lets_in(self, environ: Mapping[str, Any], role: Role | None) -> bool:
        """Tell whether who was let in would be now; an answer without an end asks it."""
        try:
            self.enter(environ, role, None)
        except (Unauthorized, Forbidden):
            return False
        return True

    def enter_call(
        self,
        metadata: Iterable[tuple[str, str | bytes]],
        role: Role | None,
        model: str | None = None,
    ) -> ApiKey | None:
        """Return the key of a gRPC call; raises as `enter`."""
        found: dict[str, str] = {}
        for name, value in metadata:
            if name in ("authorization", "x-api-key"):
                text = value.decode(errors="replace") if isinstance(value, bytes) else value
                found[name] = f"{found[name]},{text}" if name in found else text
        return self.admit(
            secret_of(found.get("authorization"), found.get("x-api-key")), role, model
        )

    def admit(self, secret: str | None, role: Role | None, model: str | None) -> ApiKey | None:
        """Return the key of this secret, if it may do this; raises as `enter`."""
        key = self.keyring.find(secret)
        ASKING.set(Asking(key.id) if key else UNKEYED)
        if key is not None:
            self.check(key, role, model)
        return key

    def check(self, key: ApiKey, role: Role | None, model: str | None) -> None:
        """Raise Forbidden, and count it, unless a key may do this."""
        try:
            key.check(role, model)
        except Forbidden:
            self.admission.count(key, "forbidden")
            raise


def secret_of(authorization: str | None, x_api_key: str | None) -> str | None:
    """Return a request's key, None without one; raises Unauthorized for two that differ.

    People who look at pages type it into their browser's form, as the password.
    """
    secret = None if authorization is None else _credential(authorization)
    if authorization is not None and secret is None and x_api_key is None:
        raise Unauthorized("Authorization must be Bearer, with an API key behind it")
    if None not in (secret, x_api_key) and secret != x_api_key:
        raise Unauthorized("Authorization and X-API-Key hold two different keys")
    return x_api_key if secret is None else secret


def _credential(authorization: str) -> str | None:
    """Return the key in the header, None where there is none."""
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            user_and_password = b64decode(rest.strip(), validate=True).decode()
        except ValueError:
            return None
        return user_and_password.partition(":")[2]
    return None


def is_admin(key: ApiKey | None) -> bool:
    """Tell whether who asks may see what is inside: everybody, where there are no keys."""
    return key is None or key.is_admin


def may_know(key: ApiKey | None, model: str) -> bool:
    """Tell whether who asks may know of a model."""
    return key is None or key.may_ask(model)
