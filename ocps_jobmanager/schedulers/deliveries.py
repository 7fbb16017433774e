"""News on their way from a scheduler to the Job Manager: none lost, none overtaken."""

import asyncio
import logging
from itertools import chain, islice

from ocps_jobmanager.schedulers.base import SchedulerJob, UpdateSink

logger = logging.getLogger("main")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


class Deliveries:
    """Hands news to the sink, one call at a time, and again until it has taken them.

    Of each job and status only the latest news are kept, so that there are never more than a few
    for each job.

    Parameters
    ----------
    at_a_time : int
        The most news in one call.
    """

    def __init__(self, at_a_time: int = 500) -> None:
        self._at_a_time = at_a_time
        self._news: dict[str, list[SchedulerJob]] = {}
        self._there_are = asyncio.Event()

    def add(self, job: SchedulerJob) -> None:
        """Have news delivered, after those of the same job that wait already."""
        waiting = [news for news in self._news.get(job.job_id, []) if news.status != job.status]
        self._news[job.job_id] = [*waiting, job]
        self._there_are.set()

    def drop(self, job_id: str) -> None:
        """Deliver nothing more of a job."""
        self._news.pop(job_id, None)

    async def run(self, sink: UpdateSink) -> None:
        """Deliver, for ever."""
        pause_s = _FIRST_PAUSE_S
        while True:
            await self._there_are.wait()
            batch = list(islice(chain.from_iterable(self._news.values()), self._at_a_time))
            try:
                if batch:
                    await sink(batch)
            except Exception as error:  # noqa: BLE001
                # The sink's part, whatever it is: the news must not get lost over it.
                logger.warning("News of %d jobs could not be taken: %s", len(batch), error)
                await asyncio.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
                continue
            pause_s = _FIRST_PAUSE_S
            for job in batch:
                self._strike_out(job)
            if not self._news:
                self._there_are.clear()

    def _strike_out(self, job: SchedulerJob) -> None:
        waiting = [news for news in self._news.get(job.job_id, []) if news is not job]
        if waiting:
            self._news[job.job_id] = waiting
        else:
            self._news.pop(job.job_id, None)
