"""Runs jobs on this machine, in processes that outlive the server.

The truth is in the jobs' folders (`local_folders`); what is kept here can be lost at any moment. A
job runs under a launcher of its own (`local_launcher`), which decides by an exclusive file whether
the job is to be run at all: to start one launcher too many is harmless, so every doubt ends in
looking and, if the job still waits, in starting another.
"""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from ocps_jobmanager.errors import (
    LaunchRefusedError,
    SchedulerUnavailableError,
    StartupError,
    UnavailableError,
)
from ocps_jobmanager.health import Health
from ocps_jobmanager.processes import Spawner
from ocps_jobmanager.schedulers import local_launcher
from ocps_jobmanager.schedulers.base import (
    LaunchRequest,
    SchedulerJob,
    SchedulerStatus,
    UpdateSink,
)
from ocps_jobmanager.schedulers.deliveries import Deliveries
from ocps_jobmanager.schedulers.local_folders import JobFolders, Seen
from ocps_jobmanager.schedulers.local_runs import Attached, Run, hear
from ocps_jobmanager.times import Clock, utc_now

logger = logging.getLogger("main")

T = TypeVar("T")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 30.0
_PAUSE_OF_CHORES_S = 1.0
#: How often it is looked whether a job that may be run again was.
_LOOK_AGAIN_S = 0.5


class _NotStartedError(Exception):
    """A launcher ended without having started its job; the message is what it said."""


class LocalScheduler:
    """The scheduler of a machine without HTCondor.

    Parameters
    ----------
    state : pathlib.Path
        The directory of the jobs' folders, on a local file system.
    spawner : Spawner
    python : pathlib.Path
        What runs the launchers.
    next_cluster_id : callable
        Gives a number that was never given before.
    cores : int
        Jobs are started, in the order of their submission, while the cores that they ask for (one,
        if they don't say) are not more than that.
    grace_s : float
        Time between the SIGTERM and the SIGKILL that end a job that is removed.
    unfinished_among : callable or None
        Gives those of some jobs whose end has not been recorded. With it a start deletes what the
        others left, where a server was killed between the record of an end and `forget`.
    """

    name = "local"

    def __init__(
        self,
        *,
        state: Path,
        spawner: Spawner,
        python: Path,
        next_cluster_id: Callable[[], Awaitable[int]],
        cores: int,
        clock: Clock = utc_now,
        grace_s: float = 10.0,
        unfinished_among: Callable[[Sequence[str]], Awaitable[set[str]]] | None = None,
    ) -> None:
        self._spawner = spawner
        self._python = python
        self._next_cluster_id = next_cluster_id
        self._cores = cores
        self._clock = clock
        self._grace_s = grace_s
        self._unfinished_among = unfinished_among
        self._folders = JobFolders(state, socket.gethostname())
        # One thread: what a call that was given up began is over when the next one looks.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="local-jobs")
        self._followed: set[str] = set()
        self._queue: dict[str, Seen] = {}
        self._runs: dict[str, Run] = {}
        self._to_track: dict[str, tuple[int, int]] = {}
        self._to_discard: set[str] = set()
        self._chores_wait = asyncio.Event()
        self._deliveries = Deliveries()
        self._tasks: list[asyncio.Task[None]] = []
        self._spawning: set[asyncio.Task[None]] = set()
        self._closing = False
        self._is_well, self._since = True, clock()

    # The contract

    async def start(self, sink: UpdateSink) -> None:
        """Take up the jobs that an earlier server left; see `Scheduler.start`.

        Raises
        ------
        StartupError
            The directory can't be used.
        """
        try:
            left = await self._on_disk(self._folders.open)
        except OSError as error:
            raise StartupError(
                f"The local scheduler can't use its directory under OCPS_STATE_DIR: {error}."
            ) from error
        self._tasks = [
            asyncio.create_task(self._deliveries.run(sink), name="news of local jobs"),
            asyncio.create_task(self._do_chores(), name="chores of the local scheduler"),
        ]
        for seen in left:
            self._adopt(seen)
        self._start_some()
        await self._forget_recorded()

    async def submit(self, request: LaunchRequest) -> SchedulerJob:
        """Put a job into the queue; see `Scheduler.submit`."""
        cpus = request.resources.cpus or 1
        if cpus > self._cores:
            raise LaunchRefusedError(
                f"The job asks for {cpus} cores, and this machine has {self._cores}."
            )
        try:
            cluster_id = await self._next_cluster_id()
        except UnavailableError as error:
            raise SchedulerUnavailableError(str(error)) from error
        self._followed.add(request.job_id)  # before it can start, or its first news would be lost
        with _disk_errors("The job can't be written to the local scheduler's directory"):
            seen = await self._on_disk(self._folders.create, request, cluster_id, self._clock())
        self._adopt(seen)
        self._start_some()
        return seen.job

    async def find(self, job_id: str, submitted_after: datetime) -> SchedulerJob | None:
        """Look for a job by its id; see `Scheduler.find`."""
        self._followed.add(job_id)
        with _disk_errors("The local scheduler's directory can't be read"):
            seen = await self._on_disk(self._folders.find, job_id)
        if seen is None:
            self._followed.discard(job_id)
            return None
        self._adopt(seen)
        self._start_some()
        return seen.job

    def track(self, job_id: str, cluster_id: int, proc_id: int) -> None:
        """Follow a job that an earlier server queued; see `Scheduler.track`."""
        self._followed.add(job_id)
        if (seen := self._known(job_id)) is not None:
            self._tell(seen.job)
        else:
            self._to_track[job_id] = (cluster_id, proc_id)
            self._chores_wait.set()

    def forget(self, job_id: str) -> None:
        """Stop following a job, and delete its folder if it has ended; see `Scheduler.forget`."""
        self._followed.discard(job_id)
        self._to_track.pop(job_id, None)
        self._deliveries.drop(job_id)
        if (run := self._runs.get(job_id)) is not None:
            run.discard = True  # not while there is a launcher that might look into it
        elif job_id not in self._queue:
            self._to_discard.add(job_id)
            self._chores_wait.set()

    async def remove(self, job_id: str, reason: str, code: int) -> None:
        """Have a job removed, ended first if it runs; see `Scheduler.remove`."""
        with _disk_errors("The wish can't be written to the local scheduler's directory"):
            seen = await self._on_disk(
                self._folders.ask_removal, job_id, reason, code, self._grace_s
            )
        if seen is None:
            return
        if not seen.has_ended:
            # A launcher was faster than we; perhaps one of an earlier server, that we don't know.
            run = self._runs.get(job_id) or self._start_run(seen)
            run.end()
        elif self._queue.pop(job_id, None) is not None:
            self._tell(seen.job)
            self._start_some()
        elif job_id in self._runs:
            self._runs[job_id].go_on()  # it tells, once its launcher has found out

    def health(self) -> Health:
        """Whether jobs can be started; see `Scheduler.health`."""
        if self._is_well:
            detail = f"The local scheduler runs jobs on {self._cores} cores."
        else:
            detail = "The local scheduler can't start jobs; the server's log says why."
        return Health(ok=self._is_well, since=self._since, detail=detail)

    async def close(self) -> None:
        """Leave the jobs running; see `Scheduler.close`."""
        self._closing = True
        # A launcher that is just being made must not be killed: it may have begun its job.
        while self._spawning:
            await asyncio.wait(self._spawning)
        tasks = [*self._tasks, *(run.task for run in self._runs.values() if run.task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for run in self._runs.values():
            run.abandon()
        if self._to_discard:
            with contextlib.suppress(OSError):
                await self._on_disk(self._folders.discard, tuple(self._to_discard))
        self._thread.shutdown(wait=False)

    # The queue

    def _adopt(self, seen: Seen) -> None:
        """Take up a job that is on the disk and has not ended, unless it is known."""
        if seen.has_ended or self._known(seen.job.job_id) is not None:
            return
        if seen.job.status is SchedulerStatus.RUNNING:
            self._start_run(seen)
        else:
            self._queue[seen.job.job_id] = seen

    def _start_some(self) -> None:
        """Start jobs, the longest queued first, while there are cores."""
        while self._queue and not self._closing:
            seen = next(iter(self._queue.values()))
            taken = sum(run.seen.cpus for run in self._runs.values())
            # With nothing else running it may have more than there are: it was accepted once.
            if taken and taken + seen.cpus > self._cores:
                return
            self._start_run(seen)

    def _start_run(self, seen: Seen) -> Run:
        self._queue.pop(seen.job.job_id, None)
        run = self._runs[seen.job.job_id] = Run(seen)
        run.task = asyncio.create_task(self._keep_running(run), name=f"local job {run.job_id}")
        run.task.add_done_callback(_log_failure)
        return run

    def _known(self, job_id: str) -> Seen | None:
        run = self._runs.get(job_id)
        return self._queue.get(job_id) if run is None else run.seen

    # One job's run

    async def _keep_running(self, run: Run) -> None:
        """See a job through to its end, whatever happens in between."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                if await self._advance(run):
                    break
            except (OSError, _NotStartedError) as error:
                logger.warning('Job "%s" can\'t be run just now: %s', run.job_id, error)
            except Exception:
                logger.exception('Job "%s" can\'t be run just now.', run.job_id)
            else:
                continue
            self._set_well(False)
            await run.pause(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
        del self._runs[run.job_id]
        if run.discard:
            self._to_discard.add(run.job_id)
            self._chores_wait.set()
        self._start_some()

    async def _advance(self, run: Run) -> bool:
        """See how the job stands, bring it one step on and wait for what comes of it.

        Returns
        -------
        bool
            Whether it has ended, and that was told.

        Raises
        ------
        OSError, _NotStartedError
            To be tried again later.
        """
        seen = await self._on_disk(self._folders.look, run.job_id)
        if seen is None:
            return True  # ended, and forgotten
        self._note(run, seen)
        if seen.has_ended:
            self._tell(seen.job)
            return True
        if seen.job.status is SchedulerStatus.RUNNING:
            await self._attach(run)
        elif run.last_words is not None:
            last_words, run.last_words = run.last_words, None
            raise _NotStartedError(last_words or "its launcher ended without a word")
        else:
            await self._launch(run)
        return False

    async def _attach(self, run: Run) -> None:
        """Wait for the end of the launcher that is at work on the job."""
        pidfd = await self._on_disk(self._folders.attach, run.job_id)
        if pidfd is None:
            # It has just ended. Or it holds the lock and is not to be seen from here: look again.
            await run.pause(_FIRST_PAUSE_S)
            return
        run.launcher = Attached(pidfd)
        if run.removing or run.seen.removing:
            run.end()
        self._set_well(True)
        await self._until_ended(run)

    async def _launch(self, run: Run) -> None:
        """Start a launcher and wait for its end.

        Raises
        ------
        OSError
            It can't be started.
        """
        ear, mouth = os.pipe()
        try:
            # A task of its own: what is begun here is finished even if this is cancelled.
            spawning = asyncio.create_task(self._spawn(run, mouth), name=f"start {run.job_id}")
            self._spawning.add(spawning)
            spawning.add_done_callback(self._spawning.discard)
            await asyncio.shield(spawning)
            if run.removing:
                run.end()
            said = await hear(ear)
        finally:
            os.close(ear)
        if said == local_launcher.RUNS:
            self._set_well(True)
            seen = await self._on_disk(self._folders.look, run.job_id)
            if seen is not None:
                self._note(run, seen)
        else:
            run.last_words = said
        await self._until_ended(run)

    async def _until_ended(self, run: Run) -> None:
        """Wait for the launcher's end; tell when it starts the script again."""
        while not await run.ended(_LOOK_AGAIN_S if run.seen.may_start_again else None):
            with contextlib.suppress(OSError):  # told the next time, or with the end
                seen = await self._on_disk(self._folders.look, run.job_id)
                if seen is not None:
                    self._note(run, seen)

    async def _spawn(self, run: Run, mouth: int) -> None:
        try:
            run.launcher = await self._spawner.start(
                [
                    self._python,
                    *("-I", "-S", "-X", "utf8"),
                    local_launcher.__file__,
                    self._folders.folder(run.job_id),
                    str(mouth),
                ],
                env={},
                stdout=subprocess.DEVNULL,
                pass_fds=(mouth,),
                new_session=True,
            )
        finally:
            os.close(mouth)

    # Within

    async def _forget_recorded(self) -> None:
        """Have the folders deleted of jobs whose end an earlier server has recorded."""
        if self._unfinished_among is None:
            return
        try:
            ended = await self._on_disk(self._folders.ended)
            needed = await self._unfinished_among(ended)
        except (OSError, UnavailableError) as error:
            logger.warning("Old folders of local jobs can't be tidied up: %s", error)
            return
        self._to_discard.update(set(ended) - needed)
        self._chores_wait.set()

    async def _do_chores(self) -> None:
        """Look at the jobs that are to be tracked, delete the folders of the forgotten ones."""
        while True:
            await self._chores_wait.wait()
            self._chores_wait.clear()
            try:
                for job_id, ids in list(self._to_track.items()):
                    seen = await self._on_disk(self._folders.look, job_id)
                    if self._to_track.pop(job_id, None) is not None:  # or it was forgotten
                        self._take_up(seen, job_id, *ids)
                forgotten, self._to_discard = self._to_discard, set()
                await self._on_disk(self._folders.discard, tuple(forgotten))
            except Exception:
                logger.exception("The local scheduler can't use its directory.")
                self._set_well(False)
                self._chores_wait.set()
                await asyncio.sleep(_PAUSE_OF_CHORES_S)

    def _take_up(self, seen: Seen | None, job_id: str, cluster_id: int, proc_id: int) -> None:
        """Tell how a job stands that is tracked but was not known, and take it up."""
        if seen is None:
            self._tell(
                SchedulerJob(
                    job_id=job_id,
                    cluster_id=cluster_id,
                    proc_id=proc_id,
                    status=SchedulerStatus.LOST,
                )
            )
        else:
            self._tell(seen.job)
            self._adopt(seen)
            self._start_some()

    def _tell(self, job: SchedulerJob) -> None:
        if job.job_id in self._followed:
            self._deliveries.add(job)

    def _note(self, run: Run, seen: Seen) -> None:
        """Keep what was seen; tell that the job was started (again), even if it is over by then."""
        if (seen.job.num_starts or 0) > (run.seen.job.num_starts or 0):
            self._tell(_as_started(seen.job))
        run.seen = seen

    def _set_well(self, well: bool) -> None:
        if well != self._is_well:
            self._is_well, self._since = well, self._clock()

    async def _on_disk(self, call: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)


def _as_started(job: SchedulerJob) -> SchedulerJob:
    """What the news of `job` were when it was started."""
    return replace(
        job,
        status=SchedulerStatus.RUNNING,
        exit_code=None,
        exit_signal=None,
        reason=None,
        reason_code=None,
        memory_mb=None,
        time_completed=None,
    )


@contextlib.contextmanager
def _disk_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SchedulerUnavailableError(f"{what} ({error.strerror}).") from error


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("The task %r ended: %r", task.get_name(), error, exc_info=error)
