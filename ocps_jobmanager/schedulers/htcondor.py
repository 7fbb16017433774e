"""HTCondor as a scheduler: the server's side.

Nothing in this process calls HTCondor. One child makes the calls, each with a deadline; another one
follows the event log. What comes together from callers goes out as one call, and nobody's question
causes a query: one query every few seconds serves all jobs.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from ocps_jobmanager.errors import LaunchRefusedError, SchedulerUnavailableError, StartupError
from ocps_jobmanager.health import Health
from ocps_jobmanager.models import Resources
from ocps_jobmanager.processes import Spawner
from ocps_jobmanager.schedulers import submit
from ocps_jobmanager.schedulers.base import (
    LaunchRequest,
    SchedulerJob,
    SchedulerStatus,
    UpdateSink,
)
from ocps_jobmanager.schedulers.condor_ads import (
    EVENT_LOG,
    JOB_ID,
    Ad,
    any_of,
    quoted,
    remove_reason,
)
from ocps_jobmanager.schedulers.condor_calls import CallRefusedError, CondorCalls, Deadlines
from ocps_jobmanager.schedulers.condor_child import Child, ScheddLock
from ocps_jobmanager.schedulers.condor_events import EventLogs
from ocps_jobmanager.schedulers.condor_tracking import Tracker, found_in
from ocps_jobmanager.schedulers.gathering import Gathering
from ocps_jobmanager.times import Clock

logger = logging.getLogger("main")

T = TypeVar("T")

#: How many jobs go into one call, and how many characters.
_MAX_BATCH = 500
_MAX_BATCH_SIZE = 1_000_000
#: Not more than this part of the time is spent on queries, but they are never further apart.
_MAX_DUTY = 0.1
_SLOWEST_QUERY_S = 10.0
#: An unclear state is asked about after this.
_SOON_S = 0.5
#: The queue is asked for what completed since the last answer, and this much before, seconds.
_OVERLAP_S = 60
#: The history is searched this far back beyond the time at which a job can have been queued: its
#: order is that in which jobs leave the queue, some long after their end, and clocks differ.
_HISTORY_MARGIN = timedelta(days=1)
_LOCK_RETRY_S = 0.2
_RETRY_S = 1.0
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 5.0
_CLOSE_GRACE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How often and how long, seconds.

    Attributes
    ----------
    query_interval : float
        Between two queries while jobs are followed; more if they take long.
    idle_interval : float
        The same while none is: only to know whether HTCondor answers.
    lost_after : float
        How long a job must be in neither queue nor history to count as lost.
    settle : float
        For how long after the start jobs are still taken over from an earlier server.
    discard_interval : float
        Between two attempts to delete event logs of earlier days.
    """

    query_interval: float = 2.0
    idle_interval: float = 10.0
    lost_after: float = 60.0
    settle: float = 30.0
    discard_interval: float = 3600.0
    deadlines: Deadlines = field(default_factory=Deadlines)


@dataclass(frozen=True, kw_only=True)
class _Launch:
    """A request as it will be submitted."""

    resources: Resources
    item: Mapping[str, str]
    size: int


class HTCondorScheduler:
    """A `Scheduler` that hands its jobs to the schedd of this host.

    Parameters
    ----------
    events_dir : pathlib.Path
        For the shared event logs, which HTCondor writes as this account.
    lock_path : pathlib.Path
        The lock that a server, and its children, hold while they may talk to the schedd.
    python : pathlib.Path
        The interpreter for the children, which has the bindings.
    environ : mapping of str to str
        The children's environment: it says where HTCondor's configuration is.
    """

    name = "htcondor"

    def __init__(
        self,
        *,
        events_dir: Path,
        lock_path: Path,
        spawner: Spawner,
        python: Path,
        environ: Mapping[str, str],
        clock: Clock,
        timing: Timing | None = None,
    ) -> None:
        self._events_dir = events_dir
        self._clock = clock
        self._timing = timing or Timing()
        self._files = ThreadPoolExecutor(1, thread_name_prefix="condor-files")
        self._lock = ScheddLock(lock_path, self._files, clock)

        def child(role: str) -> Child:
            return Child(role, spawner=spawner, python=python, environ=environ, lock=self._lock)

        self._calls = CondorCalls(child("calls"), self._timing.deadlines, clock)
        self._logs = EventLogs(
            events_dir,
            child=child("follow"),
            take=self._take_events,
            caught_up=self._caught_up,
            files=self._files,
            clock=clock,
        )
        self._tracker = Tracker(self._timing.lost_after)
        turn = self._calls.turn
        self._submissions = Gathering("condor-submit", turn, self._submit, _fit_together)
        self._searches = Gathering("condor-find", turn, self._find, _fit)
        self._removals = Gathering("condor-remove", turn, self._remove, _fit_same_reason)
        self._sink: UpdateSink | None = None
        self._delivery = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._query_interval_s = self._timing.query_interval
        self._queried_at = float("-inf")
        self._discarded_at = float("-inf")
        self._caught_up_at: float | None = None
        self._completed_since = 0

    async def start(self, sink: UpdateSink) -> None:
        """See `Scheduler.start`.

        Raises
        ------
        StartupError
            The lock or the directory of the event logs can't be used.
        """
        self._sink = sink
        try:
            submit.description(Resources(), self._events_dir)  # refuses what can't be said
            await self._logs.open()
            await self._lock.try_acquire()
        except (OSError, LaunchRefusedError) as error:
            raise StartupError(
                f"OCPS_STATE_DIR can't be used for what HTCondor needs there: {error}"
            ) from error
        self._tasks = [
            asyncio.create_task(self._supervised(work), name=name)
            for name, work in (("condor-follow", self._follow), ("condor-query", self._query))
        ]

    async def submit(self, request: LaunchRequest) -> SchedulerJob:
        """See `Scheduler.submit`."""
        item = submit.item(request)
        size = sum(map(len, item.values()))
        return await self._submissions.ask(
            _Launch(resources=request.resources, item=item, size=size)
        )

    async def find(self, job_id: str, submitted_after: datetime) -> SchedulerJob | None:
        """See `Scheduler.find`."""
        return await self._searches.ask((job_id, submitted_after))

    def track(self, job_id: str, cluster_id: int, proc_id: int) -> None:
        """See `Scheduler.track`."""
        self._tracker.follow(job_id, cluster_id, proc_id, self._now())
        self._wake.set()

    def forget(self, job_id: str) -> None:
        """See `Scheduler.forget`."""
        self._tracker.forget(job_id)

    async def remove(self, job_id: str, reason: str, code: int) -> None:
        """See `Scheduler.remove`."""
        await self._removals.ask((job_id, reason, code))

    def health(self) -> Health:
        """See `Scheduler.health`."""
        if not self._lock.held:
            detail = "A helper process of an earlier server has not ended yet."
            return Health(ok=False, since=self._lock.since, detail=detail)
        health = self._calls.health()
        return (self._logs.trouble() or health) if health.ok else health

    async def close(self) -> None:
        """See `Scheduler.close`."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._calls.close(_CLOSE_GRACE_S)
        for gathering in (self._submissions, self._searches, self._removals):
            await gathering.close()
        if self._tracker.is_settled:
            with contextlib.suppress(OSError):
                await self._logs.save()
        self._lock.release()
        self._files.shutdown(wait=False)

    # Calls, each in its turn ----------------------------------------------------------------------

    async def _submit(self, launches: Sequence[_Launch]) -> list[SchedulerJob | Exception]:
        try:
            event_log = await self._logs.log_of_today()
        except OSError as error:
            logger.warning("The event log for HTCondor can't be written: %s", error)
            raise SchedulerUnavailableError(
                "The event log for HTCondor can't be written."
            ) from error
        description = submit.description(launches[0].resources, event_log)
        return await self._submit_or_divide(description, launches)

    async def _submit_or_divide(
        self, description: Mapping[str, str], launches: Sequence[_Launch]
    ) -> list[SchedulerJob | Exception]:
        """Submit jobs all at once; if they are refused, halves of them, to find out which are."""
        try:
            cluster, proc = await self._calls.submit(description, [one.item for one in launches])
        except CallRefusedError as error:
            if half := len(launches) // 2:
                first = await self._submit_or_divide(description, launches[:half])
                return [*first, *await self._submit_or_divide(description, launches[half:])]
            return [_refusal(error)]
        self._wake.set()
        jobs: list[SchedulerJob | Exception] = []
        for number, launch in enumerate(launches, start=proc):
            job = SchedulerJob(
                job_id=launch.item["ocps_job_id"],
                cluster_id=cluster,
                proc_id=number,
                status=SchedulerStatus.IDLE,
                time_queued=self._clock(),
            )
            self._tracker.follow(job.job_id, cluster, number, self._now(), job.status)
            jobs.append(job)
        return jobs

    async def _find(
        self, questions: Sequence[tuple[str, datetime]]
    ) -> list[SchedulerJob | Exception | None]:
        after = min(submitted_after for _, submitted_after in questions)
        found = await self._search({job_id for job_id, _ in questions}, after)
        for job in found.values():
            known = None if job.status is SchedulerStatus.UNKNOWN else job.status
            self._tracker.follow(job.job_id, job.cluster_id, job.proc_id, self._now(), known)
        if found:
            self._wake.set()
        return [found.get(job_id) for job_id, _ in questions]

    async def _search(
        self, job_ids: set[str], submitted_after: datetime | None = None
    ) -> dict[str, SchedulerJob]:
        """Look in the queue, then in the history: who leaves the one is in the other before."""
        in_queue, _ = await self._calls.query(any_of(sorted(job_ids)))
        left = sorted(job_ids - {ad[JOB_ID] for ad in in_queue})
        if not left:
            return found_in(in_queue, [])
        since = None
        if submitted_after is not None:
            # Only jobs of ours bound the search: others may stay in the queue for any time after
            # their end, and stand before one of ours with an older date.
            oldest = int((submitted_after - _HISTORY_MARGIN).timestamp())
            since = f"{JOB_ID} =!= undefined && EnteredCurrentStatus < {oldest}"
        return found_in(in_queue, await self._calls.history(any_of(left), len(left), since))

    async def _remove(self, wishes: Sequence[tuple[str, str, int]]) -> list[Exception | None]:
        _, reason, code = wishes[0]
        # Not again what is being removed, and not what has ended and only stays to be looked at.
        there = "JobStatus =!= 3 && JobStatus =!= 4"
        constraint = f"{any_of(job_id for job_id, _, _ in wishes)} && {there}"
        await self._calls.remove(constraint, remove_reason(reason, code), code)
        return [None for _ in wishes]

    # News -----------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while not self._lock.held:
            await asyncio.sleep(_LOCK_RETRY_S)
            await self._lock.try_acquire()
        self._wake.set()
        await self._logs.run()

    async def _take_events(self, ads: Sequence[Ad]) -> None:
        news = self._tracker.take_events(ads, self._now())
        if self._tracker.is_unsure:
            self._wake.set()
        await self._deliver(news)

    def _caught_up(self) -> None:
        if self._caught_up_at is None:
            self._caught_up_at = self._now()
            self._tracker.caught_up()
            self._wake.set()

    async def _query(self) -> None:
        """Ask the queue when it is time, and do what else is due."""
        while True:
            self._wake.clear()
            await self._deliver(self._tracker.take_backlog())
            is_due = self._lock.held and self._now() >= self._next_query()
            if is_due and await self._query_once():
                await self._tidy_up()
            left = self._next_query() - self._now() if self._lock.held else _RETRY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()

    def _next_query(self) -> float:
        interval = self._query_interval_s if len(self._tracker) else self._timing.idle_interval
        if self._tracker.is_unsure:
            interval = min(interval, _SOON_S)
        return self._queried_at + interval

    async def _query_once(self) -> bool:
        """Ask the queue; False if it did not answer."""
        constraint = "false"  # only to know whether it answers
        if len(self._tracker):
            constraint = (
                f"isString({JOB_ID}) && "
                f"(JobStatus =!= 4 || EnteredCurrentStatus >= {self._completed_since})"
            )
        async with self._calls.turn:
            sent_at = self._now()
            try:
                ads, server_time = await self._calls.query(constraint)
            except SchedulerUnavailableError:
                self._tracker.cannot_tell()
                return False
            finally:
                self._queried_at = self._now()
        took_s = self._queried_at - sent_at
        self._query_interval_s = min(
            max(self._timing.query_interval, took_s / _MAX_DUTY), _SLOWEST_QUERY_S
        )
        seen: set[str] = set()
        for part in _parts(ads):
            seen.update(ad.get(JOB_ID, "") for ad in part)
            await self._deliver(self._tracker.take_queue(part, sent_at))
            await asyncio.sleep(0)  # thousands of ads: let requests in
        if constraint != "false":
            await self._look_for(self._tracker.missing(seen, sent_at, self._now()))
            self._completed_since = max(self._completed_since, (server_time or 0) - _OVERLAP_S, 0)
        return True

    async def _look_for(self, missing: Sequence[str]) -> None:
        for part in _parts(missing):
            async with self._calls.turn:
                try:
                    found = await self._search(set(part))
                except SchedulerUnavailableError:
                    self._tracker.cannot_tell()
                    return
            now = self._now()
            told = (self._tracker.take_search(one, found.get(one), now) for one in part)
            await self._deliver([news for news in told if news is not None])

    async def _tidy_up(self) -> None:
        """Keep the places in the logs; delete those of earlier days that nobody writes to."""
        now = self._now()
        if self._caught_up_at is None or now - self._caught_up_at < self._timing.settle:
            return  # what was read may still be needed after another start
        self._tracker.settle()
        try:
            await self._logs.save()
            if now - self._discarded_at < self._timing.discard_interval:
                return
            self._discarded_at = now
            for name in self._logs.old_logs():
                async with self._calls.turn:
                    writers = f"{EVENT_LOG} =?= {quoted(name)}"
                    if (await self._calls.query(writers, [JOB_ID], limit=1))[0]:
                        continue
                    await self._logs.discard_if_read(name)
        except (OSError, SchedulerUnavailableError) as error:
            logger.warning("The event logs can't be tidied up: %s", error)

    async def _deliver(self, news: Sequence[SchedulerJob]) -> None:
        """Hand over news, again until they are taken."""
        if not news:
            return
        assert self._sink is not None, "not started"
        delay_s = _FIRST_RETRY_S
        async with self._delivery:
            while True:
                try:
                    await self._sink(news)
                except Exception as error:  # noqa: BLE001
                    # The sink's part, whatever it is: the news must not get lost over it.
                    logger.warning("News of %d jobs could not be taken: %s", len(news), error)
                    await asyncio.sleep(delay_s)
                    delay_s = min(2 * delay_s, _LAST_RETRY_S)
                else:
                    return

    async def _supervised(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await work()
            except Exception:
                logger.exception("Following the jobs in HTCondor failed; it goes on")
                await asyncio.sleep(_RETRY_S)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _refusal(error: CallRefusedError) -> Exception:
    text = " ".join(str(error).split())
    if error.is_limit:
        logger.warning("HTCondor takes no more jobs now: %s", text)
        return SchedulerUnavailableError("HTCondor takes no more jobs now.")
    return LaunchRefusedError(f"HTCondor does not take this job: {text[:500]}")


def _parts(whole: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(whole), _MAX_BATCH):
        yield whole[start : start + _MAX_BATCH]


def _fit(requests: Sequence[object]) -> int:
    return min(len(requests), _MAX_BATCH)


def _fit_together(launches: Sequence[_Launch]) -> int:
    """How many of the first launches can share a description, and a call of a bearable size."""
    size = count = 0
    for launch in launches[:_MAX_BATCH]:
        size += launch.size
        if count and (launch.resources != launches[0].resources or size > _MAX_BATCH_SIZE):
            break
        count += 1
    return count


def _fit_same_reason(wishes: Sequence[tuple[str, str, int]]) -> int:
    count = 0
    for wish in wishes[:_MAX_BATCH]:
        if wish[1:] != wishes[0][1:]:
            break
        count += 1
    return count
