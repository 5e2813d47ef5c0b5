"""Entry point of the API side, for gunicorn: `api.wsgi:app`."""

import logging
import os

from api.app import create_app
from shared.errors import BadSetting
from shared.settings import Settings

_settings = Settings.from_env(os.environ)
if not _settings.redis_url:
    raise BadSetting("REDIS_URL is not set: `ferry up` sets it, or name a Redis server")
logging.basicConfig(
    level=_settings.log_level,
    format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s",
)
app = create_app(_settings)
