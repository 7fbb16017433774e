"""The contract between the Job Manager and what runs its jobs.

HTCondor (``htcondor``), this machine (``local``) and the fakes of the tests all pass one shared
suite, ``tests/schedulers/contract.py``. A scheduler knows no jobs but those that it is handed.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from ocps_jobmanager.health import Health
from ocps_jobmanager.models import Limits, Resources

#: The codes with which a scheduler says that it ended a job itself, for a limit of the request:
#: `max_run_time_s`, or `hold_limit_s`.
RAN_TOO_LONG = 4243
HELD_TOO_LONG = 4244
#: How much later than the limit a scheduler does that: the Job Manager comes first if it is there.
BACKSTOP_S = 120


class SchedulerStatus(Enum):
    """What a scheduler says of a job."""

    IDLE = auto()
    RUNNING = auto()
    TRANSFERRING_OUTPUT = auto()
    SUSPENDED = auto()
    HELD = auto()
    COMPLETED = auto()
    REMOVED = auto()
    LOST = auto()
    """Known neither to the queue nor to the history, for as long as the scheduler allows for."""
    BROKEN = auto()
    """Ended without the scheduler being able to say how; never to be run again."""
    UNKNOWN = auto()
    """Nothing that changes the state; the details may still be news."""


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """All that a scheduler needs to run a job.

    Attributes
    ----------
    job_id : str
        32 hex digits; the scheduler marks the job with it, and finds it by it.
    executable : pathlib.Path
        The script's copy, read-only and executable.
    environment : mapping of str to str
        The job's *whole* environment. Free of what `submission` refuses.
    initial_dir : pathlib.Path
        Where the job starts; exists.
    out, err, log : pathlib.Path
        Standard output, standard error, user log; they exist, with their mode, and may be written.
    limits : Limits
        The scheduler runs the script again, up to `max_retries` times, while it ends otherwise than
        with exit code 0. The other limits it enforces only `BACKSTOP_S` after they are over.
    """

    job_id: str
    executable: Path
    environment: Mapping[str, str]
    initial_dir: Path
    out: Path
    err: Path
    log: Path
    resources: Resources
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, kw_only=True)
class SchedulerJob:
    """A scheduler's news of one job. ``None`` is "not known" or "not so", never "was erased".

    Attributes
    ----------
    exit_code, exit_signal : int or None
        One of them with ``COMPLETED``.
    reason : str or None
        Why it is held or was removed, in the scheduler's words.
    reason_code : int or None
        With ``REMOVED``: the code that the remover gave, so that our own are recognised; or
        `RAN_TOO_LONG` or `HELD_TOO_LONG`.
    memory_mb : int or None
        Peak, MiB.
    time_queued, time_started, time_completed : datetime or None
        Aware, UTC. `time_started` is the last start's.
    """

    job_id: str
    cluster_id: int
    proc_id: int
    status: SchedulerStatus
    exit_code: int | None = None
    exit_signal: int | None = None
    reason: str | None = None
    reason_code: int | None = None
    remote_host: str | None = None
    num_starts: int | None = None
    memory_mb: int | None = None
    time_queued: datetime | None = None
    time_started: datetime | None = None
    time_completed: datetime | None = None


#: Takes news of jobs; when it returns they are committed and the scheduler may forget them. If it
#: raises, they were not taken and are to come again. Late and repeated news are harmless.
UpdateSink = Callable[[Sequence[SchedulerJob]], Awaitable[None]]


class Scheduler(Protocol):
    """What the Job Manager asks of a scheduler. All methods are called on the event loop."""

    name: str
    """``htcondor`` or ``local``, for people."""

    async def start(self, sink: UpdateSink) -> None:
        """Begin to follow the jobs of `track`; return soon, whether the scheduler answers or not.

        Called once, before anything else. News come to `sink`, one call at a time.
        """

    async def submit(self, request: LaunchRequest) -> SchedulerJob:
        """Put a job into the queue and follow it.

        To be called only when no earlier `submit` of the same job is under way and it is certain
        that none has succeeded: for a new job, or after `find` has not found it.

        Returns
        -------
        SchedulerJob
            With the ids that it got.

        Raises
        ------
        LaunchRefusedError
            The scheduler will never take this; nothing is queued.
        SchedulerUnavailableError
            It can't be told whether it is queued: ask `find` before another attempt.
        """

    async def find(self, job_id: str, submitted_after: datetime) -> SchedulerJob | None:
        """Look for a job by its id: in the queue, then in the history. Follows it if it is there.

        Nothing that a previous `submit` began is still under way when this looks, so ``None`` is
        final: it is certain that the job was never queued.

        Parameters
        ----------
        submitted_after : datetime
            It can't have been queued before this; aware.

        Raises
        ------
        SchedulerUnavailableError
            It can't be told.
        """

    def track(self, job_id: str, cluster_id: int, proc_id: int) -> None:
        """Follow a job that an earlier server queued; its present status comes as news."""

    def forget(self, job_id: str) -> None:
        """Stop following a job (it has ended). Unknown ones are no error."""

    async def remove(self, job_id: str, reason: str, code: int) -> None:
        """Have a job removed from the queue, ended first if it runs. That it is comes as news.

        Repeating it, or removing a job that has ended, changes nothing.

        Parameters
        ----------
        reason : str
            One sentence, shown by the scheduler's own tools.
        code : int
            Comes back as `SchedulerJob.reason_code`.

        Raises
        ------
        SchedulerUnavailableError
            Try again later.
        """

    def health(self) -> Health:
        """Whether the scheduler answers, from what is known; asks nobody, returns at once."""

    async def close(self) -> None:
        """Stop following and end the scheduler's helpers; the jobs themselves go on."""
