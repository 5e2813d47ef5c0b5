"""A bulk job's answers on disk: a line for each item, in order, each once whatever was killed.

OUTPUT.partial    the lines so far; the last one may be cut, or say that the job was cancelled, and
                  is then written again
OUTPUT.progress   what they are answers to, as JSON: who resumes must ask the same
OUTPUT            all of them, once the job is done
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from shared.errors import BadRequest

CANCELLED_LINE = b'{"cancelled":'
"""The begin of the last line of a file that says that the rest is missing on purpose."""
SYNC_SECONDS = 1.0
"""Of written lines at most so much is lost with the machine's power; a kill loses none."""
PARQUET_ROWS = 1024


class OutputFile:
    """The lines of one job, which may have been begun by an earlier process."""

    def __init__(
        self,
        path: Path,
        asked: Mapping[str, Any],
        *,
        restart: bool = False,
        job: str | None = None,
    ) -> None:
        """Open what was written so far, to go on behind it, unless `restart`.

        A `job` that is to restart does so once, however often it is begun.

        Raises BadRequest for a finished file, and for one that was begun for another job than is
        `asked` for; OSError where nothing can be written.
        """
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._progress = path.with_name(f"{path.name}.progress")
        if path.exists() and not restart:
            raise BadRequest(f"{path}: it is there already, --restart writes it anew")
        if path.suffix.lower() == ".parquet":
            _pyarrow()
        self._lock = self._locked()
        restarts = restart and (job is None or self._begun().get("job") != job)
        if restarts or not self._progress.stat().st_size:
            self._partial.unlink(missing_ok=True)
            begun = dict(asked) if job is None else {**asked, "job": job}
            self._progress.write_text(json.dumps(begun), encoding="utf-8")
        try:
            self._check(asked)
            self._stream = self._partial.open("ab")
            self.errors = 0
            self.lines = self._whole_lines()
        except (BadRequest, OSError):
            self._lock.close()
            raise
        self._synced = time.monotonic()

    def _locked(self) -> BinaryIO:
        """Return the opened file of what was asked, which no other process has meanwhile."""
        lock = self._progress.open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise BadRequest(f"{self._path}: another process writes it") from error
        return lock

    def _begun(self) -> dict[str, Any]:
        try:
            begun = json.loads(self._progress.read_text(encoding="utf-8"))
        except ValueError:
            return {}  # it was cut, or is new
        return begun if isinstance(begun, dict) else {}

    def _check(self, asked: Mapping[str, Any]) -> None:
        begun = self._begun()
        odd = sorted(name for name in asked if begun.get(name) != asked[name])
        if odd:
            raise BadRequest(
                f"{self._progress}: it was begun with another {odd[0]} ({begun.get(odd[0])!r}, now "
                f"{asked[odd[0]]!r}): ask the same to resume, or begin anew with --restart"
            )

    def _whole_lines(self) -> int:
        """Count the lines that are there, and the errors; cut off what is no whole answer."""
        count, end = 0, 0
        with self._partial.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n") or line.startswith(CANCELLED_LINE):
                    break
                count, end = count + 1, end + len(line)
                self.errors += b',"prediction":' not in line
        self._stream.truncate(end)
        return count

    def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add answers; raises OSError with a reason, and what stood there before stays."""
        for line in lines:
            self._stream.write(_encoded(line) + b"\n")
            self.lines += 1
        self._stream.flush()
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()

    def finish(self) -> None:
        """Give the file its name: all items are answered."""
        os.fsync(self._stream.fileno())
        self._stream.close()
        if self._path.suffix.lower() == ".parquet":
            made = self._path.with_name(f"{self._path.name}.making")
            try:
                _write_parquet(self._partial, made)
                made.replace(self._path)
            finally:
                made.unlink(missing_ok=True)  # half of it takes room that who resumes needs
            self._partial.unlink()
        else:
            self._partial.replace(self._path)
        self._progress.unlink()
        self._lock.close()

    def close(self, *, cancelled: str = "") -> None:
        """Leave what there is for who resumes; behind whole lines, if it was cancelled, why."""
        try:
            if cancelled and not self._stream.closed:
                self._stream.flush()
                self.lines = self._whole_lines()
                said = {"cancelled": cancelled, "rows": self.lines}
                self._stream.write(orjson.dumps(said) + b"\n")
        finally:
            try:
                self._stream.close()  # which raises where the disk is full
            finally:
                self._lock.close()


def _encoded(line: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # a file's name, or a message that tells it, that is no UTF-8
        shown = {
            name: said.encode(errors="backslashreplace").decode() if isinstance(said, str) else said
            for name, said in line.items()
        }
        return orjson.dumps(shown, option=orjson.OPT_SERIALIZE_NUMPY)


def _pyarrow() -> Any:
    try:
        import pyarrow  # type: ignore[import-not-found]  # noqa: PLC0415
        from pyarrow import parquet  # noqa: F401, PLC0415
    except ModuleNotFoundError:
        raise BadRequest("writing Parquet needs pyarrow: pip install pyarrow") from None
    return pyarrow


def _write_parquet(lines: Path, made: Path) -> None:
    """Write lines of JSON as columns: index, source, error, and the prediction as JSON."""
    arrow = _pyarrow()
    text = arrow.string()
    schema = arrow.schema(
        [("index", arrow.int64()), ("source", text), ("prediction", text), ("error", text)]
    )
    with lines.open("rb") as stream, arrow.parquet.ParquetWriter(made, schema) as writer:
        rows: list[dict[str, Any]] = []
        for line in stream:
            rows.append(_columns(orjson.loads(line)))
            if len(rows) == PARQUET_ROWS:
                writer.write_table(arrow.Table.from_pylist(rows, schema))
                rows = []
        writer.write_table(arrow.Table.from_pylist(rows, schema))


def _columns(line: dict[str, Any]) -> dict[str, Any]:
    found = line.get("prediction")
    return {
        "index": line["index"],
        "source": line["source"],
        "prediction": None if found is None else orjson.dumps(found).decode(),
        "error": line.get("error"),
    }
