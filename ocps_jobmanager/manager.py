"""JobManager: the life of a job, and the only module that decides a transition.

Requests record what is wanted, durably, and name the job to the reconciler; the reconciler brings
it about. Whatever line the power goes out on, a start reads the same records and goes on.
"""

import asyncio
import dataclasses
import logging
import secrets
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ocps_jobmanager.changes import Changes
from ocps_jobmanager.code import CodeStore
from ocps_jobmanager.errors import (
    ConflictError,
    InvalidRequestError,
    LaunchRefusedError,
    NotFoundError,
    SchedulerUnavailableError,
)
from ocps_jobmanager.idempotency import Turns, idempotency_key
from ocps_jobmanager.job_specs import JobType
from ocps_jobmanager.launches import LaunchPad
from ocps_jobmanager.limits import LimitTimers
from ocps_jobmanager.models import (
    FINAL_STATES,
    QUEUE_STATES,
    IdempotencyKey,
    Job,
    JobEvent,
    JobState,
    NewJob,
    Removal,
    Transition,
)
from ocps_jobmanager.monitors import MonitorSupervisor
from ocps_jobmanager.news import REMOVED_BY_US, transition_of
from ocps_jobmanager.reconciler import Reconciler
from ocps_jobmanager.schedulers.base import LaunchRequest, Scheduler, SchedulerJob
from ocps_jobmanager.store import JobStore
from ocps_jobmanager.submission import Submission, check_submission
from ocps_jobmanager.times import Clock, utc_now

logger = logging.getLogger("main")

#: The categories of ``GET /job/list/{category}``.
CATEGORIES: Mapping[str, frozenset[JobState]] = {
    "all": frozenset(JobState),
    "pending": frozenset({JobState.WAITING, JobState.SUBMITTING, JobState.IDLE, JobState.HELD}),
    "running": frozenset({JobState.RUNNING, JobState.SUSPENDED, JobState.TRANSFERRING_OUTPUT}),
    "completed": FINAL_STATES,
}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On which jobs are accepted.

    Attributes
    ----------
    key_is_job_id : bool
        Make a monitor's key the job's id, as the first demonstration did. Job ids are public.
    max_waiting : int or None
        How many jobs may wait for their data at the same time; None: any number.
    """

    key_is_job_id: bool = False
    max_waiting: int | None = None


class JobManager:
    """Accepts jobs, has them wait for their data, launches them once, follows them to their end.

    Parameters
    ----------
    terms : Terms
        On which jobs are accepted.
    """

    def __init__(
        self,
        *,
        store: JobStore,
        scheduler: Scheduler,
        monitors: MonitorSupervisor,
        code: CodeStore,
        pad: LaunchPad,
        job_types: Mapping[str, JobType],
        terms: Terms = Terms(),
        clock: Clock = utc_now,
    ) -> None:
        self._store = store
        self._scheduler = scheduler
        self._monitors = monitors
        self._code = code
        self._pad = pad
        self._job_types = job_types
        self._terms = terms
        self._turns = Turns()
        self._clock = clock
        self._changes = Changes()
        self._reconciler = Reconciler(self._reconcile)
        self._limits = LimitTimers(self._reconciler.enqueue, clock)

    async def start(self) -> None:
        """Take up every job that has not ended, as the store has it."""
        unfinished = await self._store.unfinished()
        for job in unfinished:
            if job.state in QUEUE_STATES:
                assert job.cluster_id is not None
                assert job.proc_id is not None
                self._scheduler.track(job.id, job.cluster_id, job.proc_id)
            self._limits.take_up(job, await self._held_since(job))
            self._reconciler.enqueue(job.id)
        if unfinished:
            logger.info("%d unfinished jobs taken up again", len(unfinished))

    def replace_job_types(self, job_types: Mapping[str, JobType]) -> None:
        """Accept jobs of these types from now on; those accepted before keep what they have."""
        self._job_types = job_types

    async def close(self) -> None:
        """Stop where things stand. The jobs themselves go on."""
        self._limits.close()
        await self._reconciler.close()

    # What clients ask --------------------------------------------------------------------------

    async def submit(
        self, body: object, *, owner: str | None = None, key: str | None = None
    ) -> Job:
        """Accept a job: validate it, take its code, and store it durably.

        Parameters
        ----------
        body : object
            The parsed JSON of ``POST /job``.
        owner : str or None
            Who submits it.
        key : str or None
            The ``Idempotency-Key``: the same owner's same key is the same job. What was accepted
            once is not looked at again, whatever has become of its type or its log directory.

        Raises
        ------
        InvalidRequestError
            With all that is wrong.
        KeyReusedError
            The key was used for another body.
        TooManyWaitingError
            As many jobs wait as may.
        UnavailableError
            The script or the database can't be had now; nothing was accepted.
        """
        if key is None:
            return await self._accept(body, owner, None)
        known_by = idempotency_key(owner, key, body)
        async with self._turns.of((known_by.owner, key)):
            job = await self._store.by_idempotency_key(known_by)
            return job or await self._accept(body, owner, known_by)

    async def _accept(self, body: object, owner: str | None, key: IdempotencyKey | None) -> Job:
        submission = await self._check(body)
        log_dirs = self._pad.log_dirs
        log_dir = await asyncio.to_thread(log_dirs.resolve, submission.log_dir)
        await asyncio.to_thread(log_dirs.make, log_dir)
        job_id = uuid.uuid4().hex
        data = submission.type.data
        job = await self._store.add(
            NewJob(
                id=job_id,
                type=submission.type.name,
                run_id=submission.run_id,
                owner=owner,
                monitor_key=job_id if self._terms.key_is_job_id else secrets.token_hex(16),
                state=JobState.SUBMITTING if data == () else JobState.WAITING,
                env=submission.env,
                getenv=submission.type.getenv,
                code=await self._code.take(submission.type),
                data=(self._pad.layout.data_file(job_id).name,) if data is None else data,
                resources=submission.type.resources,
                limits=submission.type.limits,
                log_dir=log_dir,
                time_submitted=self._clock(),
            ),
            key=key,
            max_waiting=self._terms.max_waiting,
        )
        self._reconciler.enqueue(job.id)
        return job

    async def get(self, job_id: str) -> Job:
        """The job as it is now.

        Raises
        ------
        NotFoundError
        """
        job = await self._store.get(job_id)
        if job is None:
            raise NotFoundError("There is no job with this id.")
        return job

    async def history(self, job_id: str) -> list[JobEvent]:
        """All transitions of a job, oldest first; empty for an unknown one."""
        return await self._store.history(job_id)

    async def list_ids(
        self, states: Collection[JobState], *, limit: int, before_seq: int | None = None
    ) -> list[tuple[int, str]]:
        """A page of jobs in these states, newest first: number and id of each."""
        return await self._store.list_ids(states, limit=limit, before_seq=before_seq)

    async def data_arrived(self, monitor_key: str) -> Job:
        """Record that the data of the job with this key are there; its launch follows.

        However often and concurrently this is called, it is recorded once.

        Raises
        ------
        NotFoundError
            No job has this key.
        ConflictError
            The job was removed or has failed.
        """
        job = await self._store.by_monitor_key(monitor_key)
        if job is None:
            raise NotFoundError("No job has this key.")
        if job.state is JobState.WAITING:
            arrival = Transition(
                job_id=job.id,
                to=JobState.SUBMITTING,
                details={"time_data_arrived": self._clock()},
            )
            if await self._record(arrival):
                logger.info('Data arrived for job "%s". Launching job...', job.id)
            job = await self.get(job.id)
        if job.state in {JobState.REMOVED, JobState.FAILED}:
            raise ConflictError(f"The job is {job.state.value}; it will not be launched.")
        return job

    async def remove(self, job_id: str) -> Job:
        """Abort a job that has not ended; an ended one stays as it is.

        Returns
        -------
        Job
            As it is now. What the scheduler has still to carry out is kept, also across restarts.

        Raises
        ------
        NotFoundError
        """
        job = await self.get(job_id)
        if job.state is JobState.WAITING:
            ended = Transition(
                job_id=job_id,
                to=JobState.REMOVED,
                reason="Removed on request while it waited for its data.",
                details={"time_completed": self._clock()},
                # Its data may have arrived since: then the scheduler has to be asked.
                only_from=frozenset({JobState.WAITING}),
            )
            await self._record(ended)
        removal = Removal(final_state=JobState.REMOVED, reason="Removed on request.")
        if await self._store.request_removal(job_id, removal) is not None:
            self._reconciler.enqueue(job_id)
        return await self.get(job_id)

    async def wait(self, job_id: str, until: Callable[[Job], bool], timeout_s: float) -> Job:
        """Wait until the job is as `until` says, at most `timeout_s` seconds.

        Returns
        -------
        Job
            As it is then, whether `until` is content or not.

        Raises
        ------
        NotFoundError
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        with self._changes.of(job_id) as changed:
            while not until(job := await self.get(job_id)):
                left_s = deadline - asyncio.get_running_loop().time()
                try:
                    await asyncio.wait_for(changed.wait(), left_s)
                except TimeoutError:
                    break
                changed.clear()
        return job

    # What the scheduler tells ------------------------------------------------------------------

    async def take_news(self, news: Sequence[SchedulerJob]) -> None:
        """Commit what the scheduler says of jobs: its `UpdateSink`."""
        jobs = await self._store.get_many([item.job_id for item in news])
        now = self._clock()
        await self._record(
            *(transition_of(item, jobs[item.job_id], now) for item in news if item.job_id in jobs)
        )
        self._limits.are_known(jobs)

    # The one door ------------------------------------------------------------------------------

    async def _record(self, *transitions: Transition) -> bool:
        """Make transitions, then tell whom it concerns. True if any of them changed anything."""
        if not transitions:
            return False
        jobs = [job for job in await self._store.record(transitions) if job is not None]
        for job in jobs:
            self._changes.publish(job.id)
            self._limits.watch(job)
            if job.is_final or job.state is JobState.SUBMITTING:
                self._reconciler.enqueue(job.id)
        return bool(jobs)

    # The reconciler's work ---------------------------------------------------------------------

    async def _reconcile(self, job_id: str) -> bool:
        """Do for a job what its record asks for. Doing it twice changes nothing the second time."""
        job = await self._store.get(job_id)
        if job is None:  # removed long after its end
            self._monitors.unwatch(job_id)
            self._scheduler.forget(job_id)
            return True
        if job.state is JobState.WAITING:
            self._monitors.watch(job.id, job.type, job.monitor_key, job.data)
            return True
        self._monitors.unwatch(job.id, called_back=job.time_data_arrived is not None)
        if job.is_final:
            self._scheduler.forget(job.id)
            return True
        try:
            if job.state is JobState.SUBMITTING:
                return await self._launch(job)
            if self._limits.overrun(job) is not None:
                job = await self._end_overrun(job)
            if job.removal is not None:
                await self._scheduler.remove(job.id, job.removal.reason, REMOVED_BY_US)
        except SchedulerUnavailableError as error:
            await self._remark(job, str(error))
            return False
        return True

    async def _launch(self, job: Job) -> bool:
        """Have the job in the scheduler's queue, once, or ended. True when it is."""
        if job.attempt > 0:
            # An earlier attempt may have got through before its outcome was committed.
            found = await self._scheduler.find(job.id, _not_queued_before(job))
            if found is not None:
                await self._record_queued(job, found)
                self._reconciler.enqueue(job.id)  # it may have been asked to go in the meantime
                return True
        if job.removal is not None:
            return await self._end(job, job.removal.final_state, job.removal.reason)
        try:
            request = await self._prepare(job)
            if await self._store.begin_attempt(job.id) is None:
                return True  # it was asked to go just now, and is enqueued for that
            queued = await self._scheduler.submit(request)
        except LaunchRefusedError as error:
            return await self._end(job, JobState.FAILED, str(error))
        except OSError as error:
            await self._remark(job, f"It could not be launched: {error.strerror}.")
            return False
        await self._record_queued(job, queued)
        return True

    async def _record_queued(self, job: Job, queued: SchedulerJob) -> None:
        """Commit that the scheduler has the job, unless later news of it are there already."""
        transition = transition_of(queued, job, self._clock())
        if transition.to not in FINAL_STATES:  # an end is right whatever was told before it
            only_from = frozenset({JobState.SUBMITTING})
            transition = dataclasses.replace(transition, only_from=only_from)
        await self._record(transition)

    async def _prepare(self, job: Job) -> LaunchRequest:
        executable = await self._code.executable(job.code)
        return await asyncio.to_thread(self._pad.prepare, job, executable)

    async def _end(self, job: Job, state: JobState, reason: str) -> bool:
        details = {"time_completed": self._clock()}
        await self._record(Transition(job_id=job.id, to=state, reason=reason, details=details))
        return True

    async def _end_overrun(self, job: Job) -> Job:
        """Have a job end that is past a limit, unless it has ended or begun anew by now."""
        found = await self._scheduler.find(job.id, _not_queued_before(job))
        if found is not None:
            await self.take_news([found])
            job = await self.get(job.id)
        if (removal := self._limits.overrun(job)) is None:
            return job
        logger.warning('Job "%s": %s', job.id, removal.reason)
        return await self._store.request_removal(job.id, removal) or job

    async def _held_since(self, job: Job) -> datetime | None:
        if job.state is not JobState.HELD:
            return None
        history = await self._store.history(job.id)
        return max(event.time for event in history if event.state is JobState.HELD)

    async def _remark(self, job: Job, obstacle: str) -> None:
        """Say in the job's record what it waits for, where a client may read it."""
        to_launch = job.state is JobState.SUBMITTING and job.removal is None
        wish = "launched" if to_launch else "removed"
        reason = f"{obstacle} It will be {wish} when that is over."
        if await self._store.note(job.id, reason=reason) is not None:
            self._changes.publish(job.id)

    # Checks ------------------------------------------------------------------------------------

    async def _check(self, body: object) -> Submission:
        """Validate a submission; the problems of its log directory join the others."""
        try:
            return check_submission(body, self._job_types)
        except InvalidRequestError as error:
            if not isinstance(body, dict) or not isinstance(log_dir := body.get("log_dir"), str):
                raise
            try:
                await asyncio.to_thread(self._pad.log_dirs.resolve, log_dir)
            except InvalidRequestError as more:
                seen = set(error.problems)
                problems = [problem for problem in more.problems if problem not in seen]
                raise InvalidRequestError([*error.problems, *problems]) from error
            raise


def _not_queued_before(job: Job) -> datetime:
    """The earliest time at which a submission of the job can have reached the scheduler."""
    return (job.time_data_arrived or job.time_submitted) - timedelta(seconds=1)
