"""The Redis keys of jobs; `ferry` is FERRY_KEY_PREFIX. rq's own names cannot be changed.

key                          type    holds                                           expires
rq:job:<id>                  hash    rq's record of a job, and ours: see below       FERRY_JOB_KEEP_SECONDS
rq:queue:ferry               list    ids of the jobs that wait                       no
rq:queue:ferry:intermediate  list    ids that a worker has taken off and not begun   no
rq:wip:ferry                 zset    job:execution -> when it counts as abandoned    no
rq:finished|failed|canceled:ferry    zset, ids of ended jobs                         no (see 1)
rq:results|execution(s):*    rq's notes on executions                                with the job
rq:worker(s)*, rq:clean_registries:* rq's notes on its workers                       minutes
rq:pubsub:<worker>           channel what a worker is told                           -
ferry:jobs                   zset    id of each job -> when it was submitted         FERRY_JOB_KEEP_SECONDS
ferry:jobs:log:<id>          list    the last lines that a job said                  FERRY_JOB_KEEP_SECONDS

Fields of ours in a job's hash, which go with it: `ferry_kind`, `ferry_order` (JSON), `ferry_upload`,
`ferry_error`, `ferry_result` (JSON), `ferry_cancel` (it is to end) and `ferry_starts` (how often it was begun).
Its progress is rq's `meta`: {"progress": 0 to 1, "step": "..."}.

1: shortened by the worker, to those whose job is kept.
"""  # noqa: E501

from __future__ import annotations

RQ_JOB = "rq:job:"
ENDED_REGISTRIES = ("finished", "failed", "canceled")


class JobKeys:
    """The keys' names under one prefix."""

    def __init__(self, prefix: str) -> None:
        """Begin our own names with `prefix`, which is the name of rq's queue as well."""
        self.all = f"{prefix}:jobs"
        self.log = f"{prefix}:jobs:log:"
        self.queue = prefix
        self.waiting = f"rq:queue:{prefix}"
        self.ended = {name: f"rq:{name}:{prefix}" for name in ENDED_REGISTRIES}

    def of_job(self, job_id: str) -> tuple[str, ...]:
        """Return the keys that hold one job, its hash first."""
        return (RQ_JOB + job_id, self.log + job_id, f"rq:results:{job_id}",
                f"rq:executions:{job_id}")  # fmt: skip
