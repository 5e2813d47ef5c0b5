"""Entry point of the API side, for gunicorn: `api.wsgi:app`."""

import os

from api.app import create_app
from shared.settings import start

app = create_app(start(os.environ))
