"""What models and versions may be called: their names become paths and keys."""

from __future__ import annotations

import re

MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,18}")
