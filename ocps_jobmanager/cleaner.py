"""Removes ended jobs some days after their end: their files first, their records last.

A crash in between leaves the record, and the next sweep begins anew; nothing is removed of which
no record would tell any more.
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

from ocps_jobmanager.errors import JobManagerError
from ocps_jobmanager.layout import Layout
from ocps_jobmanager.log_dirs import LogDirs
from ocps_jobmanager.models import Job
from ocps_jobmanager.removal import StoppedError, closing, remove_file, remove_tree
from ocps_jobmanager.store import JobStore
from ocps_jobmanager.times import Clock, utc_now

logger = logging.getLogger("main")

T = TypeVar("T")

_JOBS_AT_A_TIME = 20
#: Between two batches: others write to the database and the disk, too.
_BREATH_S = 0.1
_LONGEST_PAUSE_S = 600.0
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Cleaner:
    """Removes jobs whose time is over, for as long as it runs.

    Parameters
    ----------
    keep : timedelta
        How long an ended job is kept.
    pause_s : float or None
        Between two sweeps, in seconds; None: as `keep` suggests, ten minutes at the most.
    """

    def __init__(
        self,
        *,
        store: JobStore,
        layout: Layout,
        log_dirs: LogDirs,
        keep: timedelta,
        clock: Clock = utc_now,
        pause_s: float | None = None,
    ) -> None:
        self._store = store
        self._layout = layout
        self._log_dirs = log_dirs
        self._keep = keep
        self._clock = clock
        suggested_s = max(1.0, min(_LONGEST_PAUSE_S, keep.total_seconds() / 10))
        self._pause_s = suggested_s if pause_s is None else pause_s
        self._stop = threading.Event()
        # Its own: deleting a large output takes long, and nothing else should wait for it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cleaner")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, and go on until `close`."""
        self._task = asyncio.create_task(self._run(), name="removal of old jobs")

    async def close(self) -> None:
        """Stop soon, wherever it is."""
        self._stop.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=False)

    async def _run(self) -> None:
        while True:
            # First of all, too: a machine that was just started may not know the time yet.
            await asyncio.sleep(self._pause_s)
            try:
                await self.sweep()
            except StoppedError:
                return
            except JobManagerError as error:
                logger.warning("Old jobs could not be removed: %s To be tried again.", error)
            except Exception:
                logger.exception("Old jobs could not be removed. To be tried again.")

    async def sweep(self) -> int:
        """Remove every job whose time is over; one that can't be removed keeps its record.

        Returns
        -------
        int
            How many were removed.
        """
        before = self._clock() - self._keep
        last: Job | None = None
        removed, failures = 0, dict[str, str]()
        while jobs := await self._store.ended_before(before, after=last, limit=_JOBS_AT_A_TIME):
            last = jobs[-1]
            failed = await self._on_disk(self._remove_files, jobs)
            gone = [job.id for job in jobs if job.id not in failed]
            if gone:
                await self._store.delete_ended(gone)
            removed += len(gone)
            failures.update(failed)
            await asyncio.sleep(_BREATH_S)
        if removed:
            logger.info("Jobs removed because their time was over: %d", removed)
        if failures:
            job_id, why = next(iter(failures.items()))
            logger.warning(
                'Jobs whose time is over, but whose files could not be removed: %d. For "%s": %s. '
                "To be tried again.",
                *(len(failures), job_id, why),
            )
        return removed

    def _remove_files(self, jobs: Iterable[Job]) -> dict[str, str]:
        """Remove what jobs have left on the disk; for those where that fails, say why."""
        failed = {}
        for job in jobs:
            if self._stop.is_set():
                raise StoppedError
            try:
                self._remove_files_of(job)
            except OSError as error:
                failed[job.id] = error.strerror or str(error)
        return failed

    def _remove_files_of(self, job: Job) -> None:
        work_dir = os.open(self._layout.work_dir, _DIRECTORY)
        with closing(work_dir):
            with contextlib.suppress(FileNotFoundError):
                outputs = os.open(self._layout.outputs, _DIRECTORY)
                with closing(outputs):
                    remove_tree(self._layout.output(job.id).name, outputs, self._stop.is_set)
                    os.fsync(outputs)
            self._log_dirs.remove_files(self._layout.job_logs(job.log_dir, job.id))
            remove_file(self._layout.data_file(job.id).name, work_dir)
            # On the disk before the record is deleted, or after a power failure nobody knows of it.
            os.fsync(work_dir)

    async def _on_disk(self, call: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)
