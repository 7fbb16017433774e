"""Stand-ins that keep the rules of what they stand for, named for what goes wrong."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

from ocps_jobmanager.errors import LaunchRefusedError, SchedulerUnavailableError
from ocps_jobmanager.health import Health
from ocps_jobmanager.schedulers.base import (
    LaunchRequest,
    SchedulerJob,
    SchedulerStatus,
    UpdateSink,
)
from ocps_jobmanager.times import Clock, utc_now

_ENDS = frozenset({SchedulerStatus.COMPLETED, SchedulerStatus.REMOVED, SchedulerStatus.BROKEN})


class FakeQueue:
    """The world behind a `FakeScheduler`: the jobs that are queued, whoever looks at them.

    It outlives schedulers as a schedd outlives servers: hand it to the next one.

    Parameters
    ----------
    run : callable, optional
        Told of every queued job: what is to run it. Without, the test moves the jobs itself.
    end : callable, optional
        Told of the id of a running job that is to be removed; tells in turn when it is gone, with
        ``set_status(job_id, REMOVED)``. Without, it is gone at once.
    """

    def __init__(
        self,
        clock: Clock = utc_now,
        run: Callable[[LaunchRequest], None] | None = None,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self.clock = clock
        self.jobs: dict[str, SchedulerJob] = {}
        self.requests: dict[str, LaunchRequest] = {}
        self.submissions: Counter[str] = Counter()
        """How often each job was queued. More than once is what must never happen."""
        self.followers: list[FakeScheduler] = []
        self._run = run
        self._end = end
        self.removals: dict[str, tuple[str, int]] = {}

    def put(self, request: LaunchRequest) -> SchedulerJob:
        """Queue a job."""
        self.submissions[request.job_id] += 1
        assert self.submissions[request.job_id] == 1, f"{request.job_id} was submitted again"
        job = SchedulerJob(
            job_id=request.job_id,
            cluster_id=len(self.jobs) + 1,
            proc_id=0,
            status=SchedulerStatus.IDLE,
            time_queued=self.clock(),
        )
        self.jobs[job.job_id] = job
        self.requests[job.job_id] = request
        if self._run is not None:
            self._run(request)
        return job

    def set_status(self, job_id: str, status: SchedulerStatus, **details: Any) -> None:
        """Something happened to a job: who follows it gets the news.

        Times, host and number of starts are filled in as a scheduler does; `details` are further
        fields of `SchedulerJob`. What has ended does not change any more.
        """
        job = self.jobs[job_id]
        if job.status in _ENDS:
            return
        told: dict[str, Any]
        if status is SchedulerStatus.RUNNING and job.status is not status:
            told = {
                "time_started": self.clock(),
                "remote_host": "slot1@fake",
                "num_starts": (job.num_starts or 0) + 1,
            }
        elif status is SchedulerStatus.COMPLETED:
            told = {"time_completed": self.clock()}
            if details.get("exit_signal") is None:
                told["exit_code"] = 0
        elif status is SchedulerStatus.REMOVED:
            reason, code = self.removals.get(job_id, ("via condor_rm (by user fake)", None))
            told = {"time_completed": self.clock(), "reason": reason, "reason_code": code}
        else:
            told = {}
        self.jobs[job_id] = replace(job, status=status, **(told | details))
        for scheduler in self.followers:
            scheduler.tell(self.jobs[job_id])

    def take_out(self, job_id: str, reason: str, code: int) -> None:
        """Remove a job, for the first of the reasons that are given."""
        job = self.jobs.get(job_id)
        if job is None or job.status in _ENDS or job_id in self.removals:
            return
        self.removals[job_id] = (reason, code)
        if self._end is not None and job.status is SchedulerStatus.RUNNING:
            self._end(job_id)
        else:
            self.set_status(job_id, SchedulerStatus.REMOVED)


class FakeScheduler:
    """A scheduler in memory. Its jobs do what the test says: `set_status`.

    Parameters
    ----------
    queue : FakeQueue, optional
        With the jobs of an earlier scheduler, as after a restart of the server.
    """

    name = "fake"

    def __init__(self, queue: FakeQueue | None = None) -> None:
        self.queue = FakeQueue() if queue is None else queue
        self.finds: Counter[str] = Counter()
        """How often each job was looked for."""
        self._since = self.queue.clock()
        self._followed: set[str] = set()
        self._submitting: set[str] = set()
        self._news: asyncio.Queue[SchedulerJob] = asyncio.Queue()
        self._teller: asyncio.Task[None] | None = None

    # What a test does

    def set_status(self, job_id: str, status: SchedulerStatus, **details: Any) -> None:
        """Move a job on; see `FakeQueue.set_status`."""
        self.queue.set_status(job_id, status, **details)

    async def settled(self) -> None:
        """Return when the sink has taken all news."""
        await self._news.join()

    def tell(self, job: SchedulerJob) -> None:
        """Send news to the sink, if they are of a job that is followed."""
        if job.job_id in self._followed:
            self._news.put_nowait(job)

    # What the Job Manager does

    async def start(self, sink: UpdateSink) -> None:
        assert self._teller is None, "started twice"
        self._teller = asyncio.create_task(self._tell(sink), name="news of the fake scheduler")
        self.queue.followers.append(self)

    async def submit(self, request: LaunchRequest) -> SchedulerJob:
        self._check_is_open()
        assert request.job_id not in self._submitting, "two submissions of one job at once"
        self._submitting.add(request.job_id)
        try:
            job = await self._submit(request)
        finally:
            self._submitting.remove(request.job_id)
        self._follow(job)
        return job

    async def find(self, job_id: str, submitted_after: datetime) -> SchedulerJob | None:
        self._check_is_open()
        assert submitted_after.tzinfo is not None
        assert job_id not in self._submitting, "asked while a submission is under way"
        self.finds[job_id] += 1
        await asyncio.sleep(0)
        job = self.queue.jobs.get(job_id)
        if job is not None:
            self._follow(job)
        return job

    def track(self, job_id: str, cluster_id: int, proc_id: int) -> None:
        self._check_is_open()
        lost = SchedulerJob(
            job_id=job_id, cluster_id=cluster_id, proc_id=proc_id, status=SchedulerStatus.LOST
        )
        self._follow(self.queue.jobs.get(job_id, lost))

    def forget(self, job_id: str) -> None:
        self._followed.discard(job_id)

    async def remove(self, job_id: str, reason: str, code: int) -> None:
        self._check_is_open()
        await asyncio.sleep(0)
        self.queue.take_out(job_id, reason, code)

    def health(self) -> Health:
        return Health(ok=True, since=self._since, detail="The fake scheduler works.")

    async def close(self) -> None:
        self.queue.followers = [other for other in self.queue.followers if other is not self]
        if self._teller is not None:
            self._teller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._teller

    # Within

    async def _submit(self, request: LaunchRequest) -> SchedulerJob:
        await asyncio.sleep(0)
        return self.queue.put(request)

    def _check_is_open(self) -> None:
        assert self._teller is not None, "not started"
        assert not self._teller.done(), "closed"

    def _follow(self, job: SchedulerJob) -> None:
        self._followed.add(job.job_id)
        self.tell(job)

    async def _tell(self, sink: UpdateSink) -> None:
        while True:
            job = await self._news.get()
            while True:
                try:
                    await sink([job])
                    break
                except Exception:  # noqa: BLE001
                    # The news of a job must not get lost.
                    await asyncio.sleep(0.01)
            self._news.task_done()


class SchedulerDiesAfterSubmit(FakeScheduler):
    """Queues a job, and fails before it can say so; once, or for the first `times` submissions."""

    def __init__(self, queue: FakeQueue | None = None, times: int = 1) -> None:
        super().__init__(queue)
        self.times = times

    async def _submit(self, request: LaunchRequest) -> SchedulerJob:
        job = await super()._submit(request)
        if self.times:
            self.times -= 1
            raise SchedulerUnavailableError("The scheduler did not answer in time.")
        return job


class SchedulerDiesBeforeSubmit(FakeScheduler):
    """Fails before it has queued a job; once, or for the first `times` submissions."""

    def __init__(self, queue: FakeQueue | None = None, times: int = 1) -> None:
        super().__init__(queue)
        self.times = times

    async def _submit(self, request: LaunchRequest) -> SchedulerJob:
        if self.times:
            self.times -= 1
            raise SchedulerUnavailableError("The scheduler can't be reached.")
        return await super()._submit(request)


class SchedulerRefuses(FakeScheduler):
    """Takes no job at all."""

    async def _submit(self, request: LaunchRequest) -> SchedulerJob:
        raise LaunchRefusedError(f"No job is taken, {request.job_id} neither.")


class SchedulerHangsInSubmit(FakeScheduler):
    """Waits in `submit`, before it has queued the job, until `go_on` is set."""

    def __init__(self, queue: FakeQueue | None = None) -> None:
        super().__init__(queue)
        self.reached = asyncio.Event()
        """Set when a submission waits."""
        self.go_on = asyncio.Event()

    async def _submit(self, request: LaunchRequest) -> SchedulerJob:
        self.reached.set()
        await self.go_on.wait()
        return await super()._submit(request)


class SchedulerAway(FakeScheduler):
    """Answers nothing while `away`; what is queued goes on, but its news wait too."""

    def __init__(self, queue: FakeQueue | None = None, *, away: bool = True) -> None:
        super().__init__(queue)
        self._away = away
        self._held_back: list[SchedulerJob] = []

    @property
    def away(self) -> bool:
        """Whether it is away. May be set at any time."""
        return self._away

    @away.setter
    def away(self, away: bool) -> None:
        if away != self._away:
            self._since = self.queue.clock()
        self._away = away
        if not away:
            held_back, self._held_back = self._held_back, []
            for job in held_back:
                self.tell(job)

    def tell(self, job: SchedulerJob) -> None:
        if self._away:
            self._held_back.append(job)
        else:
            super().tell(job)

    async def _submit(self, request: LaunchRequest) -> SchedulerJob:
        self._check_is_there()
        return await super()._submit(request)

    async def find(self, job_id: str, submitted_after: datetime) -> SchedulerJob | None:
        self._check_is_there()
        return await super().find(job_id, submitted_after)

    async def remove(self, job_id: str, reason: str, code: int) -> None:
        self._check_is_there()
        await super().remove(job_id, reason, code)

    def health(self) -> Health:
        if self._away:
            return Health(ok=False, since=self._since, detail="The scheduler can't be reached.")
        return super().health()

    def _check_is_there(self) -> None:
        if self._away:
            raise SchedulerUnavailableError("The scheduler can't be reached.")
