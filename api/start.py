"""What every process of the API does first, whichever protocol it speaks."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from shared.errors import BadSetting
from shared.settings import Settings


def start(environ: Mapping[str, str]) -> Settings:
    """Read the settings and log as they say; raises BadSetting."""
    settings = Settings.from_env(environ)
    if not settings.redis_url:
        raise BadSetting("REDIS_URL is not set: `ferry up` sets it, or name a Redis server")
    logging.basicConfig(
        level=settings.log_level,
        format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s",
    )
    return settings
