"""What the Job Manager answers, as its clients read it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from ocps_jobmanager.models import FINAL_STATES, Phase


class SubmitAnswer(TypedDict):
    """To ``POST /job``."""

    status: str
    msg: str
    job_id: str
    cluster_id: int | None


class HistoryEntry(TypedDict):
    """One step of a job's life."""

    time: str
    state: str
    reason: str | None


class JobLogs(TypedDict):
    """A job's three log files."""

    out: str
    err: str
    log: str


class JobInfo(TypedDict):
    """A job, as ``GET /job?id=`` shows it. Times are ISO 8601, UTC; what is not known is None."""

    job_id: str
    type: str
    run_id: str | None
    owner: str | None
    state: str
    phase: str
    reason: str | None
    cluster_id: int | None
    proc_id: int | None
    env: dict[str, str]
    code: dict[str, str]
    data: list[str]
    log_dir: str
    logs: JobLogs
    output_dir: str
    time_submitted: str
    time_data_arrived: str | None
    time_queued: str | None
    time_started: str | None
    time_completed: str | None
    exit_code: int | None
    exit_signal: int | None
    hold_reason: str | None
    remote_host: str | None
    num_starts: int
    memory_mb: int | None
    history: list[HistoryEntry]


#: The JSON job object of the Universal Worker Service; its keys are in the interface's description.
UwsJob = Mapping[str, Any]


class JobList(TypedDict):
    """To ``GET /job/list/{category}``; `next` is the cursor of the following page."""

    job_ids: list[str]
    next: str | None


def has_ended(job: JobInfo) -> bool:
    """Whether nothing will happen to the job any more."""
    return job["state"] in FINAL_STATES


def has_succeeded(job: JobInfo) -> bool:
    """Whether the job ran and its exit code is 0."""
    return job["phase"] == Phase.COMPLETED


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Some jobs at one moment.

    Attributes
    ----------
    jobs : tuple of JobInfo
        In the order asked for; as last seen if there is `trouble`, and then empty if never seen.
    trouble : str or None
        Why the Job Manager can't be asked at the moment; one sentence.
    """

    jobs: tuple[JobInfo, ...]
    trouble: str | None = None

    @property
    def all_ended(self) -> bool:
        """Whether nothing will happen to any of the jobs."""
        return self.trouble is None and all(has_ended(job) for job in self.jobs)
