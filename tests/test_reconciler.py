"""The work queue: each job once at a time, no naming lost, failures tried again."""

import asyncio
from collections import Counter

import pytest

from ocps_jobmanager.errors import UnavailableError
from ocps_jobmanager.reconciler import Reconciler
from tests.makers import eventually, run


def test_a_job_is_never_worked_on_twice_at_once_and_a_later_naming_is_not_lost() -> None:
    async def scenario() -> None:
        at_once: Counter[str] = Counter()
        most: Counter[str] = Counter()
        looks: Counter[str] = Counter()
        go_on = asyncio.Event()

        async def work(job_id: str) -> bool:
            at_once[job_id] += 1
            most[job_id] = max(most[job_id], at_once[job_id])
            looks[job_id] += 1
            await go_on.wait()
            at_once[job_id] -= 1
            return True

        reconciler = Reconciler(work)
        for _ in range(5):
            reconciler.enqueue("a")
        reconciler.enqueue("b")
        await eventually(lambda: looks["a"] == 1 and looks["b"] == 1)
        for _ in range(5):
            reconciler.enqueue("a")  # while it is being worked on: one more look, not five
        go_on.set()
        await eventually(lambda: looks["a"] == 2)
        await asyncio.sleep(0)
        assert looks == {"a": 2, "b": 1}
        assert max(most.values()) == 1
        await reconciler.close()

    run(scenario())


@pytest.mark.parametrize("failure", [None, UnavailableError("Not now."), RuntimeError("a bug")])
def test_what_fails_is_tried_again(failure: Exception | None) -> None:
    async def scenario() -> None:
        looks = 0

        async def work(_: str) -> bool:
            nonlocal looks
            looks += 1
            if looks < 4 and failure is not None:
                raise failure
            return looks >= 4

        reconciler = Reconciler(work, first_delay_s=0.001, last_delay_s=0.01)
        reconciler.enqueue("a")
        await eventually(lambda: looks == 4)
        await asyncio.sleep(0.05)
        assert looks == 4, "it is done, and not looked at any more"
        await reconciler.close()

    run(scenario())


def test_no_more_than_so_many_at_a_time() -> None:
    async def scenario() -> None:
        now = most = done = 0

        async def work(_: str) -> bool:
            nonlocal now, most, done
            now += 1
            most = max(most, now)
            await asyncio.sleep(0)
            now -= 1
            done += 1
            return True

        reconciler = Reconciler(work, at_a_time=3)
        for number in range(20):
            reconciler.enqueue(str(number))
        await eventually(lambda: done == 20)
        assert most == 3
        await reconciler.close()

    run(scenario())


def test_close_ends_what_is_under_way_and_takes_no_more() -> None:
    async def scenario() -> None:
        started = asyncio.Event()
        cancelled = False

        async def work(_: str) -> bool:
            nonlocal cancelled
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled = True
                raise
            return True

        reconciler = Reconciler(work)
        reconciler.enqueue("a")
        await started.wait()
        await reconciler.close()
        assert cancelled
        started.clear()
        reconciler.enqueue("b")
        await asyncio.sleep(0.01)
        assert not started.is_set()

    run(scenario())
