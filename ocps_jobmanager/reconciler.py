"""The work queue that brings jobs to where they should be, one job at a time each.

A request only records what is wanted and names the job here; a start names every unfinished job. So
what a request does and what a restart does are the same code.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from ocps_jobmanager.errors import JobManagerError

logger = logging.getLogger("main")


class Reconciler:
    """Calls `reconcile` for every job that is named, and never twice at once for the same one.

    The queue is bounded by the number of unfinished jobs: a job stands in it once at most.

    Parameters
    ----------
    reconcile : callable
        Given a job's id, does what is to be done now. True: it is done. False: to be tried again,
        after a time that doubles. An exception is logged and counts as False.
    at_a_time : int
        How many jobs are worked on at the same time. Many: a launch keeps its place for as long as
        the scheduler is away, and must not keep others from being given their monitors.
    first_delay_s, last_delay_s : float
        The time before the second attempt, and the longest one.
    """

    def __init__(
        self,
        reconcile: Callable[[str], Awaitable[bool]],
        *,
        at_a_time: int = 10_000,
        first_delay_s: float = 0.5,
        last_delay_s: float = 5.0,
    ) -> None:
        self._reconcile = reconcile
        self._at_a_time = at_a_time
        self._first_delay_s = first_delay_s
        self._last_delay_s = last_delay_s
        self._queue: deque[str] = deque()
        self._queued: set[str] = set()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._failures: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    def enqueue(self, job_id: str) -> None:
        """Have the job looked at soon; once more if it is being looked at just now."""
        if self._closed:
            return
        if (timer := self._timers.pop(job_id, None)) is not None:
            timer.cancel()
        if job_id in self._running:
            self._again.add(job_id)
        elif job_id not in self._queued:
            self._queued.add(job_id)
            self._queue.append(job_id)
            self._start_some()

    async def close(self) -> None:
        """Stop: what is under way is cancelled where it stands; a start takes it up again."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start_some(self) -> None:
        while self._queue and len(self._running) < self._at_a_time and not self._closed:
            job_id = self._queue.popleft()
            self._queued.discard(job_id)
            self._running[job_id] = asyncio.create_task(
                self._run(job_id), name=f"reconcile {job_id}"
            )

    async def _run(self, job_id: str) -> None:
        done = False
        try:
            done = await self._reconcile(job_id)
        except JobManagerError as error:
            logger.warning('Job "%s": %s To be tried again.', job_id, error)
        except Exception:
            logger.exception('Job "%s" could not be worked on. To be tried again.', job_id)
        finally:
            del self._running[job_id]
            self._finish(job_id, done=done)
            self._start_some()

    def _finish(self, job_id: str, *, done: bool) -> None:
        again = job_id in self._again
        self._again.discard(job_id)
        if done:
            self._failures.pop(job_id, None)
        if again:
            self.enqueue(job_id)
        elif not done and not self._closed:
            failures = self._failures[job_id] = self._failures.get(job_id, 0) + 1
            delay_s = min(self._last_delay_s, self._first_delay_s * 2 ** min(failures - 1, 16))
            self._timers[job_id] = asyncio.get_running_loop().call_later(
                delay_s, self._retry, job_id
            )

    def _retry(self, job_id: str) -> None:
        self._timers.pop(job_id, None)
        self.enqueue(job_id)
