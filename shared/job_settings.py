"""The settings of jobs: slow work that a process of its own does, beside the requests."""

from __future__ import annotations

from dataclasses import dataclass

from shared import setting_checks as check
from shared.setting_checks import setting


@dataclass(frozen=True)
class JobSettings:
    """Part of `Settings`."""

    jobs: bool = setting(
        True, "FERRY_JOBS", "0 refuses /jobs, and `ferry up` starts no worker for them", check.flag
    )
    job_inputs: str = setting(
        "", "FERRY_JOB_INPUTS", "directory that jobs may read; unset: uploads alone", check.text
    )
    job_outputs: str = setting(
        "", "FERRY_JOB_OUTPUTS", "directory that jobs may write; unset: results are fetched",
        check.text,
    )  # fmt: skip
    job_files: str = setting(
        "",
        "FERRY_JOB_FILES",
        "directory of uploads and their results, which the API and the jobs worker share; unset: "
        "`jobs` in FERRY_STATE_DIR",
        check.text,
    )
    job_modules: str = setting(
        "",
        "FERRY_JOB_MODULES",
        "Python modules, separated by commas, whose callables jobs may import; unset: none",
        check.modules,
    )
    job_upload_bytes: int = setting(
        64 * 2**20, "FERRY_JOB_UPLOAD_BYTES", "larger uploads to /jobs are refused with 413",
        check.whole(1024),
    )  # fmt: skip
    job_timeout_seconds: float = setting(
        86400.0, "FERRY_JOB_TIMEOUT_SECONDS", "a job that runs longer is ended, and has failed",
        check.seconds,
    )  # fmt: skip
    job_keep_seconds: float = setting(
        7 * 86400.0, "FERRY_JOB_KEEP_SECONDS", "how long an ended job and its files are kept",
        check.long_seconds,
    )  # fmt: skip
    job_keep_count: int = setting(
        10_000, "FERRY_JOB_KEEP_COUNT", "jobs that are kept; the oldest ended ones go first",
        check.whole(1),
    )  # fmt: skip
    max_jobs: int = setting(100, "FERRY_MAX_JOBS", "jobs waiting before 503", check.whole(1))
    job_cores: int = setting(
        1, "FERRY_JOB_CORES", "cores that a job may use, and its libraries' threads",
        check.whole(1, 1024),
    )  # fmt: skip
    job_nice: int = setting(
        10,
        "FERRY_JOB_NICE",
        "how far jobs and `ferry predict` stand back behind the models' instances: 0 not at all, "
        "19 most",
        check.whole(0, 19),
    )
