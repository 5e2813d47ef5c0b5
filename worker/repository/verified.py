"""What proves that a version is what it should be: `verify.json` beside it, for its very bytes.

    models/<name>/<version>/verify.json    written by `ferry verify`: a verdict, and digests of all
                                           files of the version and of what its config means

Written beside the files that it is about, it is none of them: neither it nor other records of
Ferry's count as a version's content.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from shared.drift.reference import Reference
from shared.model_spec import ModelSpec

log = logging.getLogger(__name__)

VERIFY_RECORD = "verify.json"
RECORDS = frozenset({VERIFY_RECORD, "export.json", "report.json", "report.md", "report.html"})
"""Files beside a version's own that tell of it."""
PASSED = "pass"
MEANING = {
    "inputs", "outputs", "masks", "image", "text", "output_activation", "label_key",
    "max_batch_size",
}  # fmt: skip
"""The fields of a spec that answers depend on: another number of instances changes none."""
CONFIG_ENTRY = "config.pbtxt"
DIGESTED_BYTES = 1 << 20
LARGEST_RECORD = 1 << 22


def digests(spec: ModelSpec, version: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a version's directory by its path there, and the config's.

    What the config means is digested, not how it is written. Raises OSError.
    """
    found = {}
    for path in sorted(version.rglob("*")):
        inside = path.relative_to(version)
        is_ours = str(inside) in RECORDS or "__pycache__" in inside.parts
        if path.is_file() and not is_ours:
            found[str(inside)] = _digest(path)
    meaning = spec.model_dump(mode="json", include=MEANING)
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    return found | {CONFIG_ENTRY: hashlib.sha256(text.encode()).hexdigest()}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(DIGESTED_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def why_unverified(spec: ModelSpec, version: Path) -> str:
    """Return why a version is not proved to be right; empty when it is, or has no files."""
    if spec.steps:
        return ""  # an ensemble's steps are models themselves
    how = f"`ferry verify {spec.name} --version {spec.version}` proves it"
    where = f"{version / VERIFY_RECORD}"
    try:
        record: Any = json.loads((version / VERIFY_RECORD).read_bytes())
        verdict, known = str(record["verdict"]), dict(record["digests"])
    except FileNotFoundError:
        return f"FERRY_REQUIRE_VERIFIED=1 and {where} is missing: {how}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"FERRY_REQUIRE_VERIFIED=1 and {where} cannot be read ({error}): {how} again"
    if verdict != PASSED:
        return f"FERRY_REQUIRE_VERIFIED=1 and {where} says {verdict!r}"
    now = digests(spec, version)
    odd = sorted(name for name in now.keys() | known.keys() if now.get(name) != known.get(name))
    if odd:
        return f"FERRY_REQUIRE_VERIFIED=1 and {odd[0]} is not what {where} is about: {how} again"
    return ""


def record_stamp(version: Path) -> tuple[int, int] | None:
    """Return what is another one when the record was written anew, None without one."""
    try:
        status = (version / VERIFY_RECORD).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def reference_in(version: Path) -> Reference | None:
    """Return what a version's rows and answers were like when it was verified, if that is known."""
    file = version / VERIFY_RECORD
    try:
        if file.stat().st_size > LARGEST_RECORD:
            raise ValueError(f"it has more than {LARGEST_RECORD} bytes")
        record = json.loads(file.read_bytes())
        return Reference.of(record["reference"]) if "reference" in record else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        log.warning("%s: its reference cannot be read, drift is not looked for: %s", file, error)
        return None
