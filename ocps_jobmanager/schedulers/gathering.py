"""One call for many requests."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from ocps_jobmanager.errors import JobManagerError, SchedulerUnavailableError

logger = logging.getLogger("main")

Q = TypeVar("Q")
R = TypeVar("R")


class Gathering(Generic[Q, R]):
    """Makes one call of the requests that come in one turn of the loop, or while one is made.

    Parameters
    ----------
    name : str
        Of its task.
    turn : asyncio.Lock
        Held around each call. What comes while it is waited for goes along.
    run : callable
        Makes the call: gives as many results, or exceptions, as it gets requests.
    take : callable
        Of the requests that wait, how many of the first may go together; at least 1.
    """

    def __init__(
        self,
        name: str,
        turn: asyncio.Lock,
        run: Callable[[Sequence[Q]], Awaitable[Sequence[R | Exception]]],
        take: Callable[[Sequence[Q]], int],
    ) -> None:
        self._name = name
        self._turn = turn
        self._run = run
        self._take = take
        self._waiting: deque[tuple[Q, asyncio.Future[R]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def ask(self, request: Q) -> R:
        """The result for `request`.

        A request that is cancelled while it waits is not made; one that is under way goes on.
        """
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answer))
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name=self._name)
        return await answer

    async def close(self) -> None:
        """Give up what waits or is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        batch: list[tuple[Q, asyncio.Future[R]]] = []
        try:
            while self._waiting:
                async with self._turn:
                    batch = self._next()
                    if batch:
                        await self._answer(batch)
                        batch = []
        finally:
            self._task = None
            for _, answer in [*batch, *self._waiting]:
                if not answer.done():
                    answer.set_exception(SchedulerUnavailableError("The server is stopping."))
            self._waiting.clear()

    def _next(self) -> list[tuple[Q, asyncio.Future[R]]]:
        """The next batch, without what nobody waits for any more."""
        self._waiting = deque(entry for entry in self._waiting if not entry[1].done())
        if not self._waiting:
            return []
        count = self._take([request for request, _ in self._waiting])
        return [self._waiting.popleft() for _ in range(count)]

    async def _answer(self, batch: list[tuple[Q, asyncio.Future[R]]]) -> None:
        results: Sequence[R | Exception]
        try:
            results = await self._run([request for request, _ in batch])
        except JobManagerError as error:
            results = [type(error)(str(error)) for _ in batch]
        except Exception:
            logger.exception("%s failed", self._name)
            results = [SchedulerUnavailableError("An internal error.") for _ in batch]
        for (_, answer), result in zip(batch, results, strict=True):
            if answer.done():
                continue
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)
