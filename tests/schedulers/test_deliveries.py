"""News get to the sink in order, once it takes them, and never two calls at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ocps_jobmanager.schedulers.base import SchedulerJob, SchedulerStatus, UpdateSink
from ocps_jobmanager.schedulers.deliveries import Deliveries

IDLE, RUNNING, DONE = SchedulerStatus.IDLE, SchedulerStatus.RUNNING, SchedulerStatus.COMPLETED


def news(job_id: str, status: SchedulerStatus, memory_mb: int | None = None) -> SchedulerJob:
    return SchedulerJob(job_id=job_id, cluster_id=1, proc_id=0, status=status, memory_mb=memory_mb)


@asynccontextmanager
async def running(deliveries: Deliveries, sink: UpdateSink) -> AsyncIterator[None]:
    task = asyncio.create_task(deliveries.run(sink))
    try:
        async with asyncio.timeout(10):
            yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Sink:
    """Takes news when it is let."""

    def __init__(self) -> None:
        self.calls: list[list[SchedulerJob]] = []
        self.let = asyncio.Semaphore(0)
        self.called = asyncio.Semaphore(0)
        self.fail = 0

    async def __call__(self, jobs: Sequence[SchedulerJob]) -> None:
        self.calls.append(list(jobs))
        self.called.release()
        await self.let.acquire()
        if self.fail:
            self.fail -= 1
            raise OSError("the database is away")


def test_news_that_come_meanwhile_wait_and_of_each_status_the_latest_counts() -> None:
    async def scenario() -> None:
        deliveries, sink = Deliveries(), Sink()
        async with running(deliveries, sink):
            deliveries.add(news("a", IDLE))
            await sink.called.acquire()
            deliveries.add(news("a", RUNNING, 1))
            deliveries.add(news("b", DONE))
            deliveries.add(news("a", RUNNING, 2))
            deliveries.add(news("a", DONE))
            sink.let.release()
            await sink.called.acquire()
        assert sink.calls == [
            [news("a", IDLE)],
            [news("a", RUNNING, 2), news("a", DONE), news("b", DONE)],
        ]

    asyncio.run(scenario())


def test_what_was_not_taken_comes_again_with_what_is_new() -> None:
    async def scenario() -> None:
        deliveries, sink = Deliveries(), Sink()
        sink.fail = 1
        async with running(deliveries, sink):
            deliveries.add(news("a", RUNNING))
            await sink.called.acquire()
            deliveries.add(news("a", DONE))
            sink.let.release()
            await sink.called.acquire()
            sink.let.release()
            deliveries.add(news("b", IDLE))
            await sink.called.acquire()
        assert sink.calls[1:] == [[news("a", RUNNING), news("a", DONE)], [news("b", IDLE)]]

    asyncio.run(scenario())


def test_nothing_comes_of_a_job_that_was_dropped() -> None:
    async def scenario() -> None:
        deliveries, sink = Deliveries(), Sink()
        async with running(deliveries, sink):
            deliveries.add(news("a", IDLE))
            deliveries.drop("a")
            deliveries.drop("unknown")
            deliveries.add(news("b", IDLE))
            await sink.called.acquire()
            deliveries.add(news("b", DONE))
            deliveries.drop("b")
            deliveries.add(news("c", IDLE))
            sink.let.release()
            await sink.called.acquire()
        assert sink.calls == [[news("b", IDLE)], [news("c", IDLE)]]

    asyncio.run(scenario())


def test_a_call_brings_a_bounded_number_of_news() -> None:
    async def scenario() -> None:
        deliveries, sink = Deliveries(at_a_time=2), Sink()
        for name in "abc":
            deliveries.add(news(name, IDLE))
        async with running(deliveries, sink):
            await sink.called.acquire()
            sink.let.release()
            await sink.called.acquire()
        assert sink.calls == [[news("a", IDLE), news("b", IDLE)], [news("c", IDLE)]]

    asyncio.run(scenario())
