"""Ends what runs, or is held, for longer than its job type allows.

The times run on the event loop's clock, which nobody sets: were the server's wall clock moved, no
job would end of it. Only for a job that an earlier server followed, the time that has passed is
taken from the record, once. The schedulers have a backstop of their own, for when no server runs.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto

from ocps_jobmanager.models import Job, JobState, Removal
from ocps_jobmanager.times import Clock


class Limit(Enum):
    """What it is that lasts too long."""

    MAX_RUN_TIME = auto()
    HOLD_LIMIT = auto()


#: A job that is suspended has been started all the same; were it not timed, it need never end.
_TIMED = {
    JobState.RUNNING: Limit.MAX_RUN_TIME,
    JobState.SUSPENDED: Limit.MAX_RUN_TIME,
    JobState.TRANSFERRING_OUTPUT: Limit.MAX_RUN_TIME,
    JobState.HELD: Limit.HOLD_LIMIT,
}


_PRECISION_S = 1.0


def sentence(limit: Limit, job: Job) -> str:
    """Why a job was ended that went past a limit."""
    if limit is Limit.MAX_RUN_TIME:
        lasted = _words(job.limits.max_run_time_s or 0)
        return f"It ran longer than {lasted} (max_run_time) and was ended."
    why = f": {job.hold_reason}" if job.hold_reason else "."
    return f"It was held for {_words(job.limits.hold_limit_s)} (hold_limit) and was ended{why}"


def _words(seconds: int) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


@dataclass
class _Timed:
    """A job that is in a timed state.

    Attributes
    ----------
    since : float
        When that began, by the loop's clock.
    num_starts, time_started : int, datetime or None
        Which start of the job it was.
    """

    limit: Limit
    limit_s: int
    since: float
    num_starts: int
    time_started: datetime | None
    timer: asyncio.TimerHandle | None = None


class LimitTimers:
    """One timer for each job that is in a state which may last only so long.

    Parameters
    ----------
    expired : callable
        Told of a job whose time is up: that `overrun` is to be asked, now.
    """

    def __init__(self, expired: Callable[[str], None], clock: Clock) -> None:
        self._expired = expired
        self._clock = clock
        self._timed: dict[str, _Timed] = {}
        self._taken_up: set[str] = set()

    def take_up(self, job: Job, held_since: datetime | None) -> None:
        """Time a job that an earlier server followed; what it missed comes as the first news.

        Parameters
        ----------
        held_since : datetime or None
            When it was held, if it is.
        """
        self._taken_up.add(job.id)
        self._watch(job, held_since)

    def watch(self, job: Job) -> None:
        """Time a job by its record as it is now; to be told at every change."""
        self._watch(job, None)

    def are_known(self, job_ids: Iterable[str]) -> None:
        """Note that the scheduler has told of these jobs: what comes now happens now."""
        self._taken_up.difference_update(job_ids)

    def overrun(self, job: Job) -> Removal | None:
        """The wish that a job end whose time is up; None if it is not, or not any more."""
        self.watch(job)
        timed = self._timed.get(job.id)
        if timed is None or timed.timer is not None:
            return None
        return Removal(final_state=JobState.FAILED, reason=sentence(timed.limit, job))

    def close(self) -> None:
        """End nothing any more."""
        for timed in self._timed.values():
            if timed.timer is not None:
                timed.timer.cancel()
        self._timed.clear()

    def _watch(self, job: Job, held_since: datetime | None) -> None:
        limit, timed = _TIMED.get(job.state), self._timed.get(job.id)
        limit_s = job.limits.max_run_time_s
        if limit is Limit.HOLD_LIMIT:
            limit_s = job.limits.hold_limit_s
        if limit is None or limit_s is None or job.removal is not None:
            self._disarm(job.id)
            if job.is_final:
                self._taken_up.discard(job.id)
        elif timed is None or timed.limit is not limit:
            self._disarm(job.id)
            begun = job.time_started if limit is Limit.MAX_RUN_TIME else held_since
            timed = self._timed[job.id] = _Timed(
                limit=limit,
                limit_s=limit_s,
                since=self._now() - self._elapsed_s(job, begun),
                num_starts=job.num_starts,
                time_started=job.time_started,
            )
            self._arm(job.id, timed)
        elif limit is Limit.MAX_RUN_TIME and self._is_later_start(job, timed):
            self._arm(job.id, timed)

    def _elapsed_s(self, job: Job, begun: datetime | None) -> float:
        """How long a state has lasted of which is learned now."""
        if begun is None or job.id not in self._taken_up:
            return 0.0
        return max(0.0, (self._clock() - begun).total_seconds())

    def _is_later_start(self, job: Job, timed: _Timed) -> bool:
        """Whether a job that runs was started again; its time then begins anew.

        How much later that was, the scheduler's own times tell; less than a second is none, but the
        same time cut to another precision.
        """
        known, told = timed.time_started, job.time_started
        later_s = 0.0
        if known is not None and told is not None:
            later_s = (told - known).total_seconds()
        is_counted = job.num_starts > timed.num_starts
        if known is None or later_s >= _PRECISION_S:
            timed.time_started = told
        if later_s < _PRECISION_S:
            later_s = float("inf") if is_counted else 0.0
        timed.num_starts = max(timed.num_starts, job.num_starts)
        timed.since = min(self._now(), timed.since + later_s)
        return later_s > 0.0

    def _arm(self, job_id: str, timed: _Timed) -> None:
        if timed.timer is not None:
            timed.timer.cancel()
        at = timed.since + timed.limit_s
        timed.timer = asyncio.get_running_loop().call_at(at, self._expire, job_id, timed)

    def _disarm(self, job_id: str) -> None:
        timed = self._timed.pop(job_id, None)
        if timed is not None and timed.timer is not None:
            timed.timer.cancel()

    def _expire(self, job_id: str, timed: _Timed) -> None:
        timed.timer = None
        self._expired(job_id)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
