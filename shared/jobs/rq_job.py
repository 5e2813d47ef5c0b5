"""rq's job without what rq would do for whoever can write to Redis.

rq imports the function that a job names, calls back others when it ends, sends webhooks, begins
dependents and repeats, and unpickles what it was not told to read as JSON. None of it is read here:
a job is its kind and its order, and all else that its hash holds is left where it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from redis import Redis
from rq.exceptions import DeserializationError, NoSuchJobError
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job
from rq.queue import Queue
from rq.serializers import JSONSerializer

from shared.errors import BadRequest
from shared.jobs.keys import JobKeys
from shared.jobs.orders import KINDS, is_id, read_order
from shared.jobs.places import UPLOAD_ENDING

FUNCTION = "ferry."
"""Before the kind, in the place of a function's dotted name; there is no such module function."""
READ_FIELDS = frozenset(
    b"created_at data description ended_at enqueued_at failure_ttl last_heartbeat meta origin "
    b"result_ttl retries_left started_at status timeout ttl worker_name".split()
)
"""What is read of a job's hash."""


class TableJob(Job):  # type: ignore[misc]
    """A job of the fixed table of kinds; JSON on both sides, and nothing to call back."""

    def __init__(
        self, id: str | None = None, connection: Any = None, serializer: Any = None
    ) -> None:
        """Take rq's arguments; the serializer is JSON's whatever is said."""
        super().__init__(id, connection=connection, serializer=JSONSerializer)
        self._asked: Mapping[bytes, bytes] = {}

    @classmethod
    def fetch(cls, id: str, connection: Any = None, serializer: Any = None) -> TableJob:
        """Return a job; what is no id is no job (rq's NoSuchJobError)."""
        if not is_id(id):
            raise NoSuchJobError(f"{id!r} is no id of a job")
        return super().fetch(id, connection, serializer)  # type: ignore[no-any-return]

    def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
        """Read the hash of a job; what cannot be read is no job (rq's NoSuchJobError)."""
        try:
            super().restore({k: v for k, v in raw_data.items() if k in READ_FIELDS})
        except NoSuchJobError:
            raise
        except Exception as error:  # a border: anybody may have written it, and rq would stop
            raise NoSuchJobError(f"job {self.id} cannot be read: {error}") from error
        self._asked = raw_data

    def _deserialize_data(self) -> None:
        """Read what rq is to call; what cannot be read is no function's name."""
        try:
            super()._deserialize_data()
        except DeserializationError:
            self._func_name, self._instance = "", None
            self._args: list[object] = []
            self._kwargs: dict[str, object] = {}

    @property
    def func(self) -> NoReturn:
        """Refuse what rq does with it: import a function by name."""
        raise BadRequest(f"job {self.id}: functions are not imported by name")

    @property
    def kind(self) -> str:
        """Return the kind of a job of ours; raises BadRequest for any other job."""
        kind = str(self.func_name).removeprefix(FUNCTION)
        known = self.func_name == FUNCTION + kind and kind in KINDS
        if not known or self.instance or self.args or self.kwargs:
            raise BadRequest(f"job {self.id} is none of Ferry's, and is not run")
        return kind

    @property
    def order(self) -> Any:
        """Return what is to be done, checked; raises BadRequest."""
        kind = self.kind
        try:
            fields = json.loads(self._asked.get(b"ferry_order", b""))
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise BadRequest(f"job {self.id}: its order is no JSON object")
        return read_order(kind, fields)

    @property
    def upload(self) -> str:
        """Return the ending of the file that was uploaded for it, "" for none."""
        found = self._asked.get(b"ferry_upload", b"").decode(errors="replace")
        if not UPLOAD_ENDING.fullmatch(found):
            raise BadRequest(f"job {self.id}: its upload ends in {found!r}")
        return found


class JobsQueue(Queue):  # type: ignore[misc]
    """rq's queue of jobs of ours, which have no dependents."""

    @classmethod
    def under(cls, client: Redis, prefix: str) -> JobsQueue:
        """Return the queue under a key prefix, whose name it has."""
        return cls(
            JobKeys(prefix).queue, connection=client, job_class=TableJob, serializer=JSONSerializer
        )

    @classmethod
    def lmove(cls, connection: Redis, queue_key: str, timeout: int | None) -> Any:
        """Take an id off the queue, as rq does; what is none is dropped, and fetched in vain."""
        taken = super().lmove(connection, queue_key, timeout)
        if taken is None:
            return None
        raw = taken[1]
        job_id = raw.decode(errors="replace")
        if not is_id(job_id):
            connection.lrem(IntermediateQueue(queue_key, connection).key, 1, raw)
        return queue_key, job_id

    def setup_dependencies(self, job: TableJob, *_: Any, **__: Any) -> TableJob:
        """Return the job, which depends on none."""
        return job

    def enqueue_dependents(self, *_: Any, **__: Any) -> None:
        """Do nothing: none depends on it."""
