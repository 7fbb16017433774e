"""Tells those who wait for a job that it has changed."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Changes:
    """Wakes the waiters of a job; nobody polls.

    A waiter looks at the job *after* it has begun to wait, so no change falls between.
    """

    def __init__(self) -> None:
        self._waiters: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    @contextmanager
    def of(self, job_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set at every change of the job, for the time of the block."""
        event = asyncio.Event()
        self._waiters[job_id].add(event)
        try:
            yield event
        finally:
            self._waiters[job_id].discard(event)
            if not self._waiters[job_id]:
                del self._waiters[job_id]

    def publish(self, job_id: str) -> None:
        """Wake all who wait for the job."""
        for event in self._waiters.get(job_id, ()):
            event.set()
