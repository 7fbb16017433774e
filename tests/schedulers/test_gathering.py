"""Requests that come together go as one call; none is lost, and none made that nobody waits for."""

import asyncio
from collections.abc import Sequence

import pytest

from ocps_jobmanager.errors import LaunchRefusedError, SchedulerUnavailableError
from ocps_jobmanager.schedulers.gathering import Gathering


class Calls:
    """Doubles numbers, and keeps what it was called with. Odd ones are refused."""

    def __init__(self) -> None:
        self.made: list[list[int]] = []
        self.go = asyncio.Event()
        self.go.set()
        self.turn = asyncio.Lock()
        self.gathering = Gathering("calls", self.turn, self.run, lambda asked: min(3, len(asked)))
        self.failure: Exception | None = None

    async def run(self, asked: Sequence[int]) -> list[int | Exception]:
        self.made.append(list(asked))
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        return [LaunchRefusedError(str(one)) if one % 2 else 2 * one for one in asked]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_what_comes_in_one_turn_of_the_loop_goes_together() -> None:
    async def scenario() -> None:
        calls = Calls()
        assert await asyncio.gather(*(calls.gathering.ask(one) for one in (2, 4, 6))) == [4, 8, 12]
        assert calls.made == [[2, 4, 6]]

    asyncio.run(scenario())


def test_what_comes_while_a_call_is_made_goes_with_the_next_and_batches_are_bounded() -> None:
    async def scenario() -> None:
        calls = Calls()
        calls.go.clear()
        asked = [asyncio.create_task(calls.gathering.ask(2))]
        await turns()
        asked += [asyncio.create_task(calls.gathering.ask(one)) for one in (4, 6, 8, 10)]
        await turns()
        calls.go.set()
        assert await asyncio.gather(*asked) == [4, 8, 12, 16, 20]
        assert calls.made == [[2], [4, 6, 8], [10]]

    asyncio.run(scenario())


def test_what_comes_while_the_turn_is_another_s_goes_along() -> None:
    async def scenario() -> None:
        calls = Calls()
        async with calls.turn:
            asked = [asyncio.create_task(calls.gathering.ask(2))]
            await turns()
            asked += [asyncio.create_task(calls.gathering.ask(4))]
            await turns()
            assert not calls.made
        await asyncio.gather(*asked)
        assert calls.made == [[2, 4]]

    asyncio.run(scenario())


def test_each_gets_its_own_result_or_exception() -> None:
    async def scenario() -> None:
        calls = Calls()
        results = await asyncio.gather(
            *(calls.gathering.ask(one) for one in (2, 3)), return_exceptions=True
        )
        assert results[0] == 4
        assert isinstance(results[1], LaunchRefusedError)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "failure", [SchedulerUnavailableError("It does not answer."), ZeroDivisionError()]
)
def test_a_failed_call_fails_all_that_were_in_it_and_the_next_is_made(failure: Exception) -> None:
    async def scenario() -> None:
        calls = Calls()
        calls.failure = failure
        results = await asyncio.gather(
            *(calls.gathering.ask(one) for one in (2, 4)), return_exceptions=True
        )
        assert all(isinstance(result, SchedulerUnavailableError) for result in results)
        calls.failure = None
        assert await calls.gathering.ask(6) == 12

    asyncio.run(scenario())


def test_a_request_that_is_cancelled_while_it_waits_is_not_made() -> None:
    async def scenario() -> None:
        calls = Calls()
        async with calls.turn:
            given_up = asyncio.create_task(calls.gathering.ask(2))
            asked = asyncio.create_task(calls.gathering.ask(4))
            await turns()
            given_up.cancel()
            await turns()
        assert await asked == 8
        assert calls.made == [[4]]

    asyncio.run(scenario())


def test_a_call_that_is_under_way_goes_on_when_one_who_asked_is_cancelled() -> None:
    async def scenario() -> None:
        calls = Calls()
        calls.go.clear()
        given_up = asyncio.create_task(calls.gathering.ask(2))
        asked = asyncio.create_task(calls.gathering.ask(4))
        await turns()
        given_up.cancel()
        await turns()
        calls.go.set()
        assert await asked == 8
        assert calls.made == [[2, 4]]

    asyncio.run(scenario())


def test_closing_answers_all_who_wait() -> None:
    async def scenario() -> None:
        calls = Calls()
        calls.go.clear()
        asked = [asyncio.create_task(calls.gathering.ask(one)) for one in (2, 4, 6, 8)]
        await turns()
        await calls.gathering.close()
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(result, SchedulerUnavailableError) for result in results)

    asyncio.run(scenario())
