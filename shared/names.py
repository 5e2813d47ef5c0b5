"""Patterns of the names of models and versions, which become paths and keys.

A module of its own: settings check names too, and load nothing else of the vocabulary.
"""

from __future__ import annotations

import re

MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,18}")
