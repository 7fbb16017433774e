"""The server's side of the schedd calls: one at a time, each with a deadline; and how they fare."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ocps_jobmanager.errors import SchedulerUnavailableError
from ocps_jobmanager.health import Health
from ocps_jobmanager.schedulers.condor_ads import ATTRIBUTES, Ad
from ocps_jobmanager.schedulers.condor_child import Child, Frame
from ocps_jobmanager.times import Clock

logger = logging.getLogger("main")

#: A call that takes longer than this is not in order, whatever becomes of it.
_SLOW_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """How long calls may take, seconds, before the child is killed.

    Attributes
    ----------
    query, act : float
        HTCondor itself gives up after 20 s.
    submit, history : float
        Without end if they are not ended.
    """

    query: float = 25.0
    act: float = 25.0
    submit: float = 30.0
    history: float = 60.0


class CallRefusedError(Exception):
    """The schedd, or the client for it, does not take these jobs; nothing is queued.

    Attributes
    ----------
    is_limit : bool
        Because there are too many: later it may.
    """

    def __init__(self, text: str, *, is_limit: bool) -> None:
        super().__init__(text)
        self.is_limit = is_limit


class CondorCalls:
    """Makes schedd calls in a child process.

    A caller holds `turn` while it calls, and may make several calls in one turn. When a call raises
    `SchedulerUnavailableError` nothing of it is under way any more; whether it had an effect is not
    known.
    """

    def __init__(self, child: Child, deadlines: Deadlines, clock: Clock) -> None:
        self.turn = asyncio.Lock()
        self._child = child
        self._deadlines = deadlines
        self._clock = clock
        self._closed = False
        self._health = Health(ok=False, since=clock(), detail="HTCondor has not answered yet.")
        self._call_began: tuple[float, Health] | None = None

    async def query(
        self, constraint: str, attributes: Sequence[str] = ATTRIBUTES, limit: int = -1
    ) -> tuple[list[Ad], int | None]:
        """The jobs in the queue that match, and the schedd's time if there is any.

        Raises
        ------
        SchedulerUnavailableError
            The schedd does not answer.
        """
        ads, answer = await self._call(
            self._deadlines.query,
            {
                "call": "query",
                "constraint": constraint,
                "attributes": list(attributes),
                "limit": limit,
            },
        )
        return ads, answer["server_time"]

    async def history(self, constraint: str, match: int, since: str | None) -> list[Ad]:
        """The jobs in the history that match, newest first.

        Parameters
        ----------
        match : int
            After so many no more are looked for.
        since : str or None
            The first (newest) ad that matches this, and those before it, are not looked at.

        Raises
        ------
        SchedulerUnavailableError
            The schedd does not answer.
        """
        request = {"call": "history", "constraint": constraint, "attributes": list(ATTRIBUTES)}
        ads, _ = await self._call(
            self._deadlines.history, {**request, "match": match, "since": since}
        )
        return ads

    async def submit(
        self, description: Mapping[str, str], items: Sequence[Mapping[str, str]]
    ) -> tuple[int, int]:
        """Queue one job for each of `items`, all or none.

        Returns
        -------
        tuple of int
            The cluster, and the first job's proc; the others follow in order.

        Raises
        ------
        CallRefusedError
            The schedd does not take them.
        SchedulerUnavailableError
            It can't be told whether they are queued.
        """
        request = {"call": "submit", "description": dict(description), "items": list(items)}
        _, answer = await self._call(self._deadlines.submit, request)
        if answer["queued"] != len(items):
            raise CallRefusedError(
                f"HTCondor made {answer['queued']} jobs of {len(items)}.", is_limit=False
            )
        return answer["cluster"], answer["first_proc"]

    async def remove(self, constraint: str, reason: str, code: int) -> None:
        """Remove the jobs in the queue that match.

        Raises
        ------
        SchedulerUnavailableError
            The schedd does not answer, or it forbids that.
        """
        request = {"call": "remove", "constraint": constraint, "reason": reason, "code": code}
        _, answer = await self._call(self._deadlines.act, request)
        if answer["denied"]:
            raise SchedulerUnavailableError("HTCondor does not let this account remove the job.")

    def health(self) -> Health:
        """How the calls fare."""
        if self._call_began is not None:
            began, slow = self._call_began
            if self._health.ok and asyncio.get_running_loop().time() - began > _SLOW_S:
                return slow
        return self._health

    async def close(self, grace_s: float) -> None:
        """End the child; a call that is under way gets `grace_s` seconds."""
        self._closed = True
        try:
            async with asyncio.timeout(grace_s):
                await self.turn.acquire()
        except TimeoutError:
            await self._child.kill()
        else:
            await self._child.end(grace_s)
            self.turn.release()

    async def _call(self, deadline_s: float, request: Frame) -> tuple[list[Ad], Frame]:
        assert self.turn.locked(), "a call out of turn"
        if self._closed:
            raise SchedulerUnavailableError("The server is stopping.")
        slow = Health(ok=False, since=self._clock(), detail="HTCondor is slow to answer.")
        began = asyncio.get_running_loop().time()
        self._call_began = began, slow
        try:
            ads, answer = await self._ask(deadline_s, request)
        except SchedulerUnavailableError as error:
            self._note(Health(ok=False, since=slow.since, detail=str(error)))
            raise
        finally:
            self._call_began = None
        if answer.get("error") == "failed" or ("error" in answer and request["call"] != "submit"):
            text = " ".join(answer["text"].split())
            detail = "HTCondor does not answer, or answers with an error; the log says more."
            self._note(Health(ok=False, since=slow.since, detail=detail), text)
            raise SchedulerUnavailableError(detail)
        was_slow = asyncio.get_running_loop().time() - began > _SLOW_S
        since = self._clock() if was_slow or not self._health.ok else self._health.since
        self._note(Health(ok=True, since=since, detail="HTCondor answers."))
        if "error" in answer:
            raise CallRefusedError(answer["text"].strip(), is_limit=answer["error"] == "limit")
        return ads, answer["ok"]

    async def _ask(self, deadline_s: float, request: Frame) -> tuple[list[Ad], Frame]:
        channel = await self._child.channel()
        ads: list[Ad] = []
        answered = False
        try:
            async with asyncio.timeout(deadline_s):
                channel.send(request)
                while "ads" in (frame := await channel.receive()):
                    ads += frame["ads"]
            answered = True
        except TimeoutError:
            raise SchedulerUnavailableError(
                f"HTCondor did not answer within {deadline_s:g} seconds."
            ) from None
        except EOFError:
            why = "The helper process for HTCondor has ended; it will be started again."
            self._child.failed(why)
            raise SchedulerUnavailableError(why) from None
        finally:
            # Before anything is concluded nothing may be under way any more.
            if not answered:
                await self._child.kill()
        self._child.works()
        return ads, frame

    def _note(self, health: Health, text: str = "") -> None:
        if health.ok != self._health.ok:
            if health.ok:
                logger.info("HTCondor answers.")
            else:
                logger.warning("%s %s", health.detail, text)
        elif not health.ok:
            health = Health(ok=False, since=self._health.since, detail=health.detail)
        self._health = health
