"""A job, its states, and the table of transitions. Immutable, typed, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType


class JobState(StrEnum):
    """Where a job is in its life: the Job Manager's own vocabulary."""

    WAITING = "waiting"
    SUBMITTING = "submitting"
    IDLE = "idle"
    RUNNING = "running"
    TRANSFERRING_OUTPUT = "transferring_output"
    SUSPENDED = "suspended"
    HELD = "held"
    COMPLETED = "completed"
    REMOVED = "removed"
    FAILED = "failed"


class Phase(StrEnum):
    """The same in the vocabulary of the Universal Worker Service, lower case as the CSC reads it.

    There is no ``unknown``: a client would take it for an end.
    """

    PENDING = "pending"
    QUEUED = "queued"
    EXECUTING = "executing"
    SUSPENDED = "suspended"
    HELD = "held"
    COMPLETED = "completed"
    ERROR = "error"
    ABORTED = "aborted"


FINAL_STATES = frozenset({JobState.COMPLETED, JobState.REMOVED, JobState.FAILED})
#: Known to the scheduler and not ended.
QUEUE_STATES = frozenset(
    {
        JobState.IDLE,
        JobState.RUNNING,
        JobState.TRANSFERRING_OUTPUT,
        JobState.SUSPENDED,
        JobState.HELD,
    }
)

#: From each state, the states that may follow. A job that is looked for after a crash may be found
#: anywhere in the scheduler's queue, hence the wide rows; nothing follows an end.
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        JobState.WAITING: frozenset({JobState.SUBMITTING, JobState.REMOVED, JobState.FAILED}),
        JobState.SUBMITTING: QUEUE_STATES | FINAL_STATES,
        **{state: (QUEUE_STATES - {state}) | FINAL_STATES for state in QUEUE_STATES},
        **{state: frozenset() for state in FINAL_STATES},
    }
)


def allowed_before(state: JobState) -> frozenset[JobState]:
    """The states from which a job may get into `state`."""
    return frozenset(before for before, after in TRANSITIONS.items() if state in after)


_PHASES: Mapping[JobState, Phase] = MappingProxyType(
    {
        JobState.WAITING: Phase.PENDING,
        JobState.SUBMITTING: Phase.QUEUED,
        JobState.IDLE: Phase.QUEUED,
        JobState.RUNNING: Phase.EXECUTING,
        JobState.TRANSFERRING_OUTPUT: Phase.EXECUTING,
        JobState.SUSPENDED: Phase.SUSPENDED,
        JobState.HELD: Phase.HELD,
        JobState.REMOVED: Phase.ABORTED,
        JobState.FAILED: Phase.ERROR,
    }
)


@dataclass(frozen=True, kw_only=True)
class CodeRef:
    """What exactly a job runs.

    Attributes
    ----------
    kind : str
        ``file``: a script of this installation, copied when the job was accepted.
    path : str
        The script as the job type names it.
    sha256 : str
        Of the script's bytes, 64 hex digits; also its name in the code store.
    """

    kind: str
    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job asks of a machine; ``None`` leaves it to the scheduler.

    Attributes
    ----------
    cpus : int or None
        Cores.
    memory_mb : int or None
        MiB.
    disk_kb : int or None
        KiB, HTCondor's unit for disk.
    """

    cpus: int | None = None
    memory_mb: int | None = None
    disk_kb: int | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What ends a job, or runs it again.

    Attributes
    ----------
    max_run_time_s : int or None
        Seconds from a start; a job that runs longer is ended as failed. None: as long as it likes.
    hold_limit_s : int
        Seconds in the state ``held``; then the job is ended as failed.
    max_retries : int
        How often the scheduler runs the script again when it ends with another exit code than 0.
    """

    max_run_time_s: int | None = None
    hold_limit_s: int = 3600
    max_retries: int = 0


@dataclass(frozen=True, kw_only=True)
class IdempotencyKey:
    """A client's own name for a submission: the same one again is the same job.

    Attributes
    ----------
    owner : str
        The caller; empty for anybody, where nobody is known by name.
    key : str
        1 to 255 printable characters.
    body_sha256 : str
        Of the body as canonical JSON: the same value has the same digest, however it is written.
    """

    owner: str
    key: str
    body_sha256: str


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """An accepted submission, not yet stored.

    Attributes
    ----------
    id : str
        UUID4, 32 hex digits.
    monitor_key : str
        What the job's monitor shows when it calls back. A secret.
    state : JobState
        ``WAITING``, or ``SUBMITTING`` for a type that waits for no data.
    env : mapping of str to str
        The variables as the job gets them: as submitted, defaults filled in.
    getenv : tuple of str
        Names of variables that are read from the server's environment at the launch.
    data : tuple of str
        What the job waits for: paths, relative ones to the work directory. Empty: nothing.
    """

    id: str
    type: str
    run_id: str | None
    owner: str | None
    monitor_key: str
    state: JobState
    env: Mapping[str, str]
    getenv: tuple[str, ...]
    code: CodeRef
    data: tuple[str, ...]
    resources: Resources
    limits: Limits = Limits()
    log_dir: Path
    time_submitted: datetime


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A wish that a job end, kept with the job until the scheduler has carried it out.

    Attributes
    ----------
    final_state : JobState
        What the job becomes: ``REMOVED`` if somebody asked, ``FAILED`` if the Job Manager did.
    reason : str
        One sentence.
    """

    final_state: JobState
    reason: str


@dataclass(frozen=True, kw_only=True)
class Job(NewJob):
    """A job as stored.

    Attributes
    ----------
    seq : int
        Grows with every accepted job.
    reason : str or None
        One plain sentence on the last transition.
    attempt : int
        How often the hand-over to the scheduler was begun; 0 while waiting.
    removal : Removal or None
        A wish that has not been carried out, or that was.
    time_started : datetime or None
        Of the last start.
    num_starts : int
        As the scheduler counts: more than 1 if it restarted the job itself.
    memory_mb : int or None
        Peak, MiB.
    """

    seq: int
    reason: str | None = None
    attempt: int = 0
    removal: Removal | None = None
    cluster_id: int | None = None
    proc_id: int | None = None
    time_data_arrived: datetime | None = None
    time_queued: datetime | None = None
    time_started: datetime | None = None
    time_completed: datetime | None = None
    exit_code: int | None = None
    exit_signal: int | None = None
    hold_reason: str | None = None
    remote_host: str | None = None
    num_starts: int = 0
    memory_mb: int | None = None

    @property
    def phase(self) -> Phase:
        """The UWS phase of `state`."""
        if self.state is JobState.COMPLETED:
            return Phase.COMPLETED if self.exit_code == 0 else Phase.ERROR
        return _PHASES[self.state]

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self.state in FINAL_STATES


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """One row of a job's history.

    Attributes
    ----------
    number : int
        Grows with every event of the server.
    """

    number: int
    job_id: str
    time: datetime
    state: JobState
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Transition:
    """A change of state that is to be made, with what is learned along with it.

    Attributes
    ----------
    job_id : str
    to : JobState
    reason : str or None
        One plain sentence, if there is something to remark.
    details : mapping of str to object
        Fields of `Job` to set in the same transaction.
    only_from : frozenset of JobState or None
        States to which the table is narrowed: a transition that may come late has to be refused
        even where the table would allow it.
    """

    job_id: str
    to: JobState
    reason: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)
    only_from: frozenset[JobState] | None = None

    @property
    def allowed_from(self) -> frozenset[JobState]:
        """The states from which it may be made."""
        allowed = allowed_before(self.to)
        return allowed if self.only_from is None else allowed & self.only_from
