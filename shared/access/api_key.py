"""An API key: its secret, of which a hash is kept, and what it allows.

    ferry_<id>_<secret>      10 letters and digits, then 43 of base64url: 32 random bytes

The hash is a plain SHA-256 of all of it. A slow hash protects secrets that people choose, by making
each guess dear; 256 random bits cannot be guessed at any price, and here each request is a check.
"""

from __future__ import annotations

import re
import secrets
import string
import time
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import sha256
from hmac import compare_digest
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from shared.errors import Forbidden

Role = Literal["infer", "admin", "metrics"]
ROLES: tuple[Role, ...] = ("infer", "admin", "metrics")
SECRET = re.compile(r"ferry_([a-z0-9]{10})_[A-Za-z0-9_-]{43}")
ID_PATTERN = r"^[a-z0-9]{10}$"
NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"
MODELS = re.compile(r"[A-Za-z0-9_.*?-]{1,128}")
RATE = re.compile(r"([1-9][0-9]{0,8})/(s|m|h|d)")
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
MAX_GLOBS = 100
ALL_MODELS = ("*",)


class ApiKey(BaseModel):
    """One key, without its secret.

    `models` are names, with `*` and `?`. `rate` is as in `100/s`, of which all may come at once;
    `concurrency` bounds its requests under way. Both are without limit when left out. `priority` is
    the most urgent level that its requests have, 0 for any. `expires` and `revoked` are seconds
    since the epoch, 0 for never.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(pattern=ID_PATTERN)
    name: str = Field(pattern=NAME_PATTERN)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    roles: tuple[Role, ...] = Field(("infer",), min_length=1)
    models: tuple[str, ...] = Field(("*",), min_length=1, max_length=MAX_GLOBS)
    rate: str = ""
    concurrency: int = Field(0, ge=0, le=1_000_000)
    priority: int = Field(0, ge=0, le=100)
    created: float = 0.0
    expires: float = Field(0.0, ge=0, allow_inf_nan=False)
    revoked: float = Field(0.0, ge=0, allow_inf_nan=False)

    @field_validator("models")
    @classmethod
    def _check_models(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        for each in models:
            if not MODELS.fullmatch(each):
                raise ValueError(f"model {each!r} must be a name, in which * and ? may stand")
        return models

    @field_validator("rate")
    @classmethod
    def _check_rate(cls, rate: str) -> str:
        if rate and not RATE.fullmatch(rate):
            raise ValueError(f"rate {rate!r} must be like 100/s, 1000/m, 5000/h or 100000/d")
        return rate

    @property
    def is_admin(self) -> bool:
        """Tell whether it may do and see everything."""
        return "admin" in self.roles

    @property
    def is_limited(self) -> bool:
        """Tell whether a request has to ask whether it is one too many."""
        return bool(self.rate or self.concurrency)

    @property
    def per_period(self) -> tuple[int, int]:
        """Return how many requests may come in how many seconds; 0 of them for any number."""
        found = RATE.fullmatch(self.rate)
        return (int(found[1]), UNIT_SECONDS[found[2]]) if found else (0, 1)

    def is_good(self, now: float | None = None) -> bool:
        """Tell whether it is neither revoked nor expired."""
        return not self.revoked and (not self.expires or (now or time.time()) < self.expires)

    def has_role(self, role: Role) -> bool:
        """Tell whether it may do what `role` may."""
        return role in self.roles or self.is_admin

    def may_ask(self, model: str) -> bool:
        """Tell whether it may know of a model, and ask it."""
        return self.models == ALL_MODELS or _fits(self.models, model)

    def check(self, role: Role | None, model: str | None = None) -> None:
        """Raise Forbidden unless it may do this, to `model` if one is named."""
        # fast: twice for each request, so the usual key costs no further call.
        if role is not None and role not in self.roles and not self.is_admin:
            raise Forbidden(f"key {self.name!r} lacks the role {role}")
        if model is not None and self.models != ALL_MODELS and not _fits(self.models, model):
            raise Forbidden(f"key {self.name!r} is not for model {model[:128]!r}")

    def matches(self, secret: str) -> bool:
        """Tell whether this is its secret, in the same time whatever it is."""
        return compare_digest(self.sha256, digest(secret))


@lru_cache(4096)
def _fits(models: tuple[str, ...], model: str) -> bool:
    return any(fnmatchcase(model, each) for each in models)


def digest(secret: str) -> str:
    """Return the hash of a key's text, of any text."""
    return sha256(secret.encode(errors="surrogatepass")).hexdigest()


def new_secret() -> tuple[str, str]:
    """Return a new key's id and its text, which is not kept anywhere."""
    letters = string.ascii_lowercase + string.digits
    key_id = "".join(secrets.choice(letters) for _ in range(10))
    return key_id, f"ferry_{key_id}_{secrets.token_urlsafe(32)}"
