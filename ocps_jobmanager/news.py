"""What a scheduler's news mean for a job: pure, one table from its words to ours."""

import signal
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType

from ocps_jobmanager.limits import Limit, sentence
from ocps_jobmanager.models import QUEUE_STATES, Job, JobState, Transition
from ocps_jobmanager.schedulers.base import (
    HELD_TOO_LONG,
    RAN_TOO_LONG,
    SchedulerJob,
    SchedulerStatus,
)

#: The code that the Job Manager gives with every removal of its own (HTCondor's remove code).
REMOVED_BY_US = 4242

#: What a scheduler ends of its own accord, because no server did.
_LIMITS: Mapping[int | None, Limit] = MappingProxyType(
    {RAN_TOO_LONG: Limit.MAX_RUN_TIME, HELD_TOO_LONG: Limit.HOLD_LIMIT}
)

_STATES: Mapping[SchedulerStatus, JobState] = MappingProxyType(
    {
        SchedulerStatus.IDLE: JobState.IDLE,
        SchedulerStatus.RUNNING: JobState.RUNNING,
        SchedulerStatus.TRANSFERRING_OUTPUT: JobState.TRANSFERRING_OUTPUT,
        SchedulerStatus.SUSPENDED: JobState.SUSPENDED,
        SchedulerStatus.HELD: JobState.HELD,
        SchedulerStatus.COMPLETED: JobState.COMPLETED,
        SchedulerStatus.REMOVED: JobState.REMOVED,
        SchedulerStatus.LOST: JobState.FAILED,
        SchedulerStatus.BROKEN: JobState.FAILED,
    }
)


def transition_of(news: SchedulerJob, job: Job, now: datetime) -> Transition:
    """The transition that news of `job` ask for; the store decides whether it is still news."""
    details = _details(news, job, now)
    if news.status is SchedulerStatus.UNKNOWN:
        return Transition(
            job_id=job.id, to=job.state, reason=job.reason, details=details, only_from=frozenset()
        )
    state, reason = _STATES[news.status], _reason(news)
    if news.status is SchedulerStatus.REMOVED and job.removal is not None:
        state, reason = job.removal.final_state, job.removal.reason
    elif news.status is SchedulerStatus.REMOVED and news.reason_code in _LIMITS:
        state, reason = JobState.FAILED, sentence(_LIMITS[news.reason_code], job)
    if state in QUEUE_STATES:
        details["hold_reason"] = news.reason if state is JobState.HELD else None
    else:
        ended = _not_before(news.time_completed or now, job.time_started or job.time_submitted)
        details["time_completed"] = ended
    return Transition(job_id=job.id, to=state, reason=reason, details=details)


def _details(news: SchedulerJob, job: Job, now: datetime) -> dict[str, object]:
    queued = job.time_queued or now
    details: dict[str, object] = {
        "cluster_id": news.cluster_id,
        "proc_id": news.proc_id,
        "exit_code": news.exit_code,
        "exit_signal": news.exit_signal,
        "remote_host": news.remote_host,
        "num_starts": news.num_starts,
        "memory_mb": news.memory_mb,
        "time_queued": queued,
    }
    if news.time_started is not None:
        details["time_started"] = _not_before(news.time_started, queued)
    return {name: value for name, value in details.items() if value is not None}


def _not_before(time: datetime, earlier: datetime) -> datetime:
    """`time`, unless only its being cut to whole seconds puts it before `earlier`."""
    return earlier if timedelta(0) < earlier - time < timedelta(seconds=1) else time


def _reason(news: SchedulerJob) -> str | None:
    match news.status:
        case SchedulerStatus.COMPLETED if news.exit_signal is not None:
            return f"The script was ended by {_signal_name(news.exit_signal)}."
        case SchedulerStatus.COMPLETED if news.exit_code:
            return f"The script ended with exit code {news.exit_code}."
        case SchedulerStatus.HELD:
            return f"Held by the scheduler: {news.reason or 'it gives no reason.'}"
        case SchedulerStatus.REMOVED:
            return f"Removed from the scheduler's queue: {news.reason or 'no reason was given.'}"
        case SchedulerStatus.LOST:
            return (
                "The scheduler knows it neither in its queue nor in its history any more; "
                "it was not run again."
            )
        case SchedulerStatus.BROKEN:
            return news.reason or "The scheduler can't tell how it ended; it was not run again."
        case _:
            return None


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
