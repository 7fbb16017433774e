"""What the Job Manager answers: rendered by the server, read by clients, described in OpenAPI.

Plain dictionaries at run time; pydantic makes JSON Schemas of their types.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, NotRequired

from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from ocps_jobmanager.models import FINAL_STATES, JobState, Phase

State = Annotated[
    str, WithJsonSchema({"type": "string", "enum": [state.value for state in JobState]})
]
PhaseName = Annotated[
    str, WithJsonSchema({"type": "string", "enum": [phase.value for phase in Phase]})
]
Time = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$",
            "examples": ["2026-01-02T03:04:05.678Z"],
        }
    ),
]
JobId = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "pattern": "^[0-9a-f]{32}$",
            "examples": ["730f55f5cd6941e4ba047b06ed0e36dd"],
        }
    ),
]


# The Job Manager's endpoints ----------------------------------------------------------------------


class Done(TypedDict):
    """It is done."""

    status: Literal["ok"]
    msg: str


class SubmitAnswer(Done):
    """To ``POST /job``: the job is accepted, durably."""

    job_id: JobId
    cluster_id: int | None


class HistoryEntry(TypedDict):
    """One step of a job's life."""

    time: Time
    state: State
    reason: str | None


class JobLogs(TypedDict):
    """A job's three log files."""

    out: str
    err: str
    log: str


class Code(TypedDict):
    """What exactly a job runs."""

    kind: Literal["file"]
    path: Annotated[str, Field(description="The script, as the job type names it.")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="Of the script's bytes.")]


class JobInfo(TypedDict):
    """All about a job. Times are ISO 8601, UTC; what is not known yet is null."""

    job_id: JobId
    type: str
    run_id: Annotated[str | None, Field(description="The client's own label.")]
    owner: Annotated[str | None, Field(description="Who submitted it.")]
    state: State
    phase: PhaseName
    reason: Annotated[
        str | None, Field(description="One sentence on the last transition, if there is any.")
    ]
    cluster_id: int | None
    proc_id: int | None
    env: Annotated[dict[str, str], Field(description="The variables as the job gets them.")]
    code: Code
    data: Annotated[list[str], Field(description="The files that the job waits for.")]
    log_dir: str
    logs: JobLogs
    output_dir: str
    time_submitted: Time
    time_data_arrived: Time | None
    time_queued: Time | None
    time_started: Annotated[Time | None, Field(description="Of the last start.")]
    time_completed: Time | None
    exit_code: int | None
    exit_signal: int | None
    hold_reason: str | None
    remote_host: str | None
    num_starts: int
    memory_mb: Annotated[int | None, Field(description="Peak, MiB.")]
    history: list[HistoryEntry]


class JobAnswer(Done):
    """To ``GET /job?id=``."""

    job: JobInfo


class JobListAnswer(Done):
    """To ``GET /job/list/{category}``: a page of ids, newest first."""

    job_ids: list[JobId]
    next: NotRequired[
        Annotated[str, Field(description="The cursor of the following page, if there is one.")]
    ]


class CallbackAnswer(Done):
    """To a monitor: what it calls about is recorded."""

    cluster_id: int | None
    proc_id: int | None


# The Universal Worker Service's -------------------------------------------------------------------


class NameAndValue(TypedDict):
    """A variable of a job's environment."""

    name: str
    value: str


class UwsParameters(TypedDict):
    """What a job runs, and with what."""

    command: list[str]
    environment: list[NameAndValue]


#: A file that a job has left.
UwsResult = TypedDict(
    "UwsResult", {"id": int, "uri": str, "size": int | None, "mime-type": str | None}
)


class UwsErrorSummary(TypedDict):
    """Why a job ended badly; empty if it didn't."""

    message: str


class UwsJobInfo(TypedDict):
    """What the pattern has no place for."""

    type: str
    state: State
    clusterId: int | None
    procId: int | None
    exitCode: int | None
    exitSignal: int | None
    holdReason: str | None
    code: Code


class UwsJob(TypedDict):
    """The job object of the Universal Worker Service pattern (IVOA UWS 1.1, section 2.1)."""

    jobId: Annotated[str, Field(description="As asked for.")]
    runId: str
    ownerId: str | None
    phase: PhaseName
    creationTime: Time
    startTime: Time | None
    endTime: Time | None
    executionDuration: Annotated[
        float | None, Field(ge=0, description="The elapsed run time, seconds.")
    ]
    destruction: Time | None
    quote: None
    parameters: UwsParameters
    results: list[UwsResult]
    errorSummary: UwsErrorSummary
    jobInfo: UwsJobInfo


# Around them --------------------------------------------------------------------------------------


class PartHealth(TypedDict):
    """How a part of the server is."""

    ok: bool
    since: Time
    detail: str


class Readiness(TypedDict):
    """Whether all parts of the server are in order."""

    status: Literal["ok", "error"]
    msg: str
    checks: dict[str, PartHealth]


# Errors -------------------------------------------------------------------------------------------


class WrongField(TypedDict):
    """One thing that is wrong with a request."""

    field: Annotated[str, Field(description="Where, as a dotted path.")]
    msg: Annotated[str, Field(description="What, in words that follow the field's name.")]


class Refusal(TypedDict):
    """It is not done."""

    status: Literal["error"]
    msg: Annotated[str, Field(description="One sentence that a person can act on.")]
    errors: NotRequired[Annotated[list[WrongField], Field(description="All that is wrong.")]]


class SubmitRefusal(Refusal):
    """Nothing was accepted."""

    job_id: None
    cluster_id: None


class JobRefusal(Refusal):
    """There is nothing to tell about a job."""

    job: None


class JobListRefusal(Refusal):
    """There is nothing to list."""

    job_ids: None


class CallbackRefusal(Refusal):
    """What a monitor calls about is not recorded."""

    cluster_id: None
    proc_id: None


class UwsRefusal(TypedDict):
    """It is not done, in a UWS client's words."""

    message: Annotated[str, Field(description="One sentence that a person can act on.")]
    errors: NotRequired[Annotated[list[WrongField], Field(description="All that is wrong.")]]


# What clients make of it --------------------------------------------------------------------------


class JobList(TypedDict):
    """A page of job ids, as the client returns it; `next` is the cursor of the following page."""

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
