"""What is known of the jobs that are followed, and which news that makes. Pure.

News come from two sides. The shared event log tells within milliseconds, and is all there is of
what happened while no server ran; but a log can be lost, or not be shared. The queue is asked every
few seconds, and tells the truth of a moment that is past when it arrives. So events count first,
and the queue mends what they left out: where it differs it is believed when it says the same twice
with no event between, or at once if it tells of an end, if nothing else is known, or if an event
left the job's state open.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from ocps_jobmanager.schedulers.base import SchedulerJob, SchedulerStatus
from ocps_jobmanager.schedulers.condor_ads import (
    EVENTS,
    JOB_ID,
    TRIGGER,
    UNSURE_EVENTS,
    Ad,
    from_event,
    from_history,
    from_queue,
    is_end,
)

#: How often a job that is in neither is looked for again, as a part of the time after which it
#: counts as lost; and at most, seconds.
_LOOKS = 6
_LOOK_EVERY_S = 10.0


@dataclass
class _Followed:
    """A job that is followed.

    Attributes
    ----------
    since : float
        When that began: a query that was sent before need not have seen it.
    status : SchedulerStatus or None
        As of the last news; None before the first.
    ad : Ad or None
        What the queue said last.
    event_at : float
        When the last event was taken in.
    unsure : bool
        Whether the last event left the state open.
    differs : SchedulerStatus or None
        What the last query said against what is known, not yet believed.
    absent_since : float or None
        When it was first found neither in the queue nor in the history, and always since.
    look_at : float
        When to look for it again.
    details : tuple
        What was told last that may be news without a change of status.
    """

    job_id: str
    cluster_id: int
    proc_id: int
    since: float
    status: SchedulerStatus | None
    ad: Ad | None = None
    event_at: float = float("-inf")
    unsure: bool = False
    differs: SchedulerStatus | None = None
    absent_since: float | None = None
    look_at: float = float("-inf")
    num_starts: int = 0
    details: tuple[object, ...] = (None, 0, None, None)


class Tracker:
    """The followed jobs. All times are the event loop's, seconds.

    Parameters
    ----------
    lost_after_s : float
        How long a job must be in neither queue nor history to be lost.
    """

    def __init__(self, lost_after_s: float) -> None:
        self._lost_after_s = lost_after_s
        self._look_every_s = min(_LOOK_EVERY_S, lost_after_s / _LOOKS)
        self._jobs: dict[str, _Followed] = {}
        self._backlog: dict[str, SchedulerJob] = {}
        self._catching_up = True
        self._settled = False

    def __len__(self) -> int:
        """How many are followed and have not ended."""
        return sum(not is_end(job.status) for job in self._jobs.values())

    def follow(
        self,
        job_id: str,
        cluster_id: int,
        proc_id: int,
        now: float,
        status: SchedulerStatus | None = None,
    ) -> None:
        """Follow a job from `now` on; `status` is what whoever asks for it knows already."""
        job = self._jobs.get(job_id)
        if job is None:
            self._jobs[job_id] = _Followed(job_id, cluster_id, proc_id, now, status)
        elif status is not None and not is_end(job.status):
            job.status = status

    def forget(self, job_id: str) -> None:
        """Follow it no more."""
        self._jobs.pop(job_id, None)

    # The event log --------------------------------------------------------------------------------

    def take_events(self, ads: Iterable[Ad], now: float) -> list[SchedulerJob]:
        """The news in events, in their order."""
        news = []
        for ad in ads:
            trigger = ad.get(TRIGGER)
            if JOB_ID not in ad or (trigger not in EVENTS and trigger not in UNSURE_EVENTS):
                continue
            told = from_event(ad)
            job = self._jobs.get(told.job_id)
            if self._catching_up or job is None:
                self._keep(told)
                continue
            self._backlog.pop(told.job_id, None)
            if is_end(job.status):
                continue
            job.event_at, job.differs = now, None
            job.unsure = trigger in UNSURE_EVENTS
            if trigger == "ULOG_SUBMIT" and job.status is not None:
                continue  # known from the submission itself, or something later is
            news.append(self._news(job, told))
        return news

    @property
    def is_unsure(self) -> bool:
        """Whether the queue should be asked soon."""
        return any(
            job.unsure or (job.status is None and job.ad is None) for job in self._jobs.values()
        )

    @property
    def is_settled(self) -> bool:
        """Whether all that was taken in has been told, or is of no use to anybody."""
        return self._settled

    def _keep(self, told: SchedulerJob) -> None:
        if self._settled:
            return
        known = self._backlog.get(told.job_id)
        if known is not None and told.status is SchedulerStatus.UNKNOWN:
            told = replace(told, status=known.status, reason=known.reason)
        if known is None or not is_end(known.status):
            self._backlog[told.job_id] = told

    def caught_up(self) -> None:
        """To be told when the events from before this server have been taken in."""
        self._catching_up = False

    def take_backlog(self) -> list[SchedulerJob]:
        """The news from before this server, or from before a job was followed.

        Of each job it is only what it came to: much of what led there may have been told before.
        """
        news: list[SchedulerJob] = []
        if self._catching_up:
            return news
        for job_id in [job_id for job_id in self._backlog if job_id in self._jobs]:
            told, job = self._backlog.pop(job_id), self._jobs[job_id]
            # What the queue said since then is newer, unless this is the end.
            if job.status is None or (is_end(told.status) and not is_end(job.status)):
                news.append(self._news(job, told))
        return news

    def settle(self) -> None:
        """Keep nothing any more for jobs that may be followed later: all of them are by now."""
        self._settled = True
        self._backlog = {one: told for one, told in self._backlog.items() if one in self._jobs}

    # The queue and the history --------------------------------------------------------------------

    def take_queue(self, ads: Iterable[Ad], sent_at: float) -> list[SchedulerJob]:
        """The news in an answer of the queue to a query that was sent at `sent_at`."""
        news = []
        for ad in ads:
            job = self._jobs.get(ad.get(JOB_ID, ""))
            if job is None:
                continue
            job.absent_since = None
            # The usual case, for thousands of jobs, has to be quick.
            if ad == job.ad and job.differs is None and not job.unsure:
                continue
            if is_end(job.status) or job.event_at >= sent_at or job.since >= sent_at:
                continue
            if (told := self._believed(job, from_queue(ad))) is None:
                continue
            job.ad = ad
            told_before = job.details
            told = self._news(job, told)
            if told.status is not SchedulerStatus.UNKNOWN or job.details != told_before:
                news.append(told)
        return news

    def missing(self, seen: Collection[str], sent_at: float, now: float) -> list[str]:
        """Those that `seen`, the answer to a query sent at `sent_at`, lacks: to be looked for."""
        found = []
        for job in self._jobs.values():
            if job.job_id in seen or is_end(job.status) or job.since >= sent_at:
                continue
            if now >= job.look_at:
                job.look_at = now + self._look_every_s
                found.append(job.job_id)
        return found

    def take_search(
        self, job_id: str, told: SchedulerJob | None, now: float
    ) -> SchedulerJob | None:
        """The news in the result of looking for a missing job, in the queue and the history."""
        job = self._jobs.get(job_id)
        if job is None or is_end(job.status):
            return None
        if told is not None:
            job.absent_since = None
            return self._news(job, told)
        if job.absent_since is None:
            job.absent_since = now
        if now - job.absent_since < self._lost_after_s:
            return None
        lost = SchedulerJob(
            job_id=job_id,
            cluster_id=job.cluster_id,
            proc_id=job.proc_id,
            status=SchedulerStatus.LOST,
        )
        return self._news(job, lost)

    def cannot_tell(self) -> None:
        """The scheduler did not answer: who is absent is not known any more."""
        for job in self._jobs.values():
            job.absent_since = None

    def _believed(self, job: _Followed, told: SchedulerJob) -> SchedulerJob | None:
        """What of a queue's answer is believed; None: nothing yet."""
        told_status = told.status
        if told_status in (job.status, SchedulerStatus.UNKNOWN):
            job.differs, job.unsure = None, False
            return replace(told, status=SchedulerStatus.UNKNOWN, reason=None)
        if job.status is None or job.unsure or is_end(told_status) or job.differs is told_status:
            return told
        job.differs = told_status
        return None

    # Both -----------------------------------------------------------------------------------------

    def _news(self, job: _Followed, told: SchedulerJob) -> SchedulerJob:
        if told.status is not SchedulerStatus.UNKNOWN:
            job.status, job.differs = told.status, None
            job.unsure = False
        if told.status is SchedulerStatus.COMPLETED and told.num_starts:
            job.num_starts = told.num_starts  # only an end is sure to be counted right
        else:
            job.num_starts = max(job.num_starts, told.num_starts or 0)
        job.details = (told.remote_host, job.num_starts, told.memory_mb, told.time_started)
        return replace(told, num_starts=job.num_starts or None)


def found_in(queue: Iterable[Ad], history: Iterable[Ad]) -> dict[str, SchedulerJob]:
    """What the two say of their jobs, by id; the queue's word counts, then the newest one's."""
    found: dict[str, SchedulerJob] = {}
    for ad in queue:
        found[ad[JOB_ID]] = from_queue(ad)
    for ad in history:
        found.setdefault(ad[JOB_ID], from_history(ad))
    return found
