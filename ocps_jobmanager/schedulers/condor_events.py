"""The shared event logs: one a day, followed by a child process from where the last server was."""

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from ocps_jobmanager.errors import SchedulerUnavailableError
from ocps_jobmanager.health import Health
from ocps_jobmanager.schedulers.condor_ads import EVENT_ATTRIBUTES, Ad
from ocps_jobmanager.schedulers.condor_child import Channel, Child
from ocps_jobmanager.times import Clock

logger = logging.getLogger("main")

T = TypeVar("T")

#: How many events are taken in at once.
_AT_MOST = 200
_RETRY_S = 1.0


class EventLogs:
    """Follows what HTCondor writes to the event logs.

    The place in each log is kept in a file, written only after what is before it was taken in: a
    restarted server hears again of the last few seconds, and never misses anything.

    Parameters
    ----------
    directory : pathlib.Path
        Where the logs and the places are. HTCondor writes there as this account.
    take : callable
        Takes in the ads of some events; the next come when it returns.
    caught_up : callable
        Told when all that was there at the start has been taken in.
    files : concurrent.futures.Executor
        Where files are worked on.
    """

    def __init__(
        self,
        directory: Path,
        *,
        child: Child,
        take: Callable[[Sequence[Ad]], Awaitable[None]],
        caught_up: Callable[[], None],
        files: Executor,
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._child = child
        self._take = take
        self._files = files
        self._clock = clock
        self._places: dict[str, int] = {}
        self._saved: dict[str, int] = {}
        self._channel: Channel | None = None
        self._trouble: Health | None = None
        self._caught_up = caught_up

    async def open(self) -> None:
        """Find out which logs there are, and where the last server was in them.

        Raises
        ------
        OSError
            The directory can't be used.
        """
        self._places = await self._in_files(self._load)

    async def log_of_today(self) -> Path:
        """The log for jobs that are submitted now; exists, and is followed.

        HTCondor would run jobs whose log can't be written, and say nothing: hence the look.

        Raises
        ------
        OSError
            It can't be written.
        """
        name = _name_of(self._clock())
        path = self._directory / name
        await self._in_files(lambda: _touch(path))
        if name not in self._places:
            self._places[name] = 0
            self._follow(name)
        return path

    async def run(self) -> None:
        """Follow the logs until this is cancelled; a child that ends is replaced."""
        while True:
            try:
                await self._run_child()
            except (SchedulerUnavailableError, EOFError) as error:
                self._note_trouble(error)
            finally:
                self._channel = None
                await self._child.kill()
            await asyncio.sleep(_RETRY_S)

    async def save(self) -> None:
        """Keep the places for the next server."""
        if (places := dict(self._places)) != self._saved:
            await self._in_files(lambda: self._store(places))
            self._saved = places

    def old_logs(self) -> list[str]:
        """The names of the logs to which no job is submitted any more."""
        return sorted(name for name in self._places if name != _name_of(self._clock()))

    async def discard_if_read(self, name: str) -> None:
        """Delete an old log, to which nobody writes any more, unless some of it is unread."""
        path = self._directory / name
        place = self._places[name]
        if await self._in_files(lambda: path.stat().st_size if path.exists() else 0) > place:
            return
        del self._places[name]
        if self._channel is not None:
            self._channel.send({"unfollow": str(path)})
        await self._in_files(lambda: path.unlink(missing_ok=True))
        await self.save()

    def trouble(self) -> Health | None:
        """What is wrong with following, if something is."""
        return self._trouble

    async def _run_child(self) -> None:
        channel = await self._child.channel()
        channel.send({"attributes": list(EVENT_ATTRIBUTES), "at_most": _AT_MOST})
        self._channel = channel
        for name in self._places:
            self._follow(name)
        channel.send({"begin": True})
        self._trouble = None
        while True:
            frame = await channel.receive()
            if "caught_up" in frame:
                self._child.works()
                self._caught_up()
                continue
            await self._take(frame["ads"])
            name = Path(frame["path"]).name
            if name in self._places:
                self._places[name] = frame["offset"]
            channel.send({"taken": True})

    def _follow(self, name: str) -> None:
        if self._channel is not None:
            path = str(self._directory / name)
            self._channel.send({"follow": path, "offset": self._places[name]})

    def _note_trouble(self, error: Exception) -> None:
        detail = "The helper process that follows HTCondor's event log does not run."
        if isinstance(error, EOFError):
            self._child.failed(detail)
        if self._trouble is None:
            logger.warning("%s", detail)
            self._trouble = Health(ok=False, since=self._clock(), detail=detail)

    async def _in_files(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._files, work)

    # In the executor ------------------------------------------------------------------------------

    @property
    def _places_file(self) -> Path:
        return self._directory / "places.json"

    def _load(self) -> dict[str, int]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            stored = dict(json.loads(self._places_file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            stored = {}  # hearing everything again does no harm
        logs = sorted(path.name for path in self._directory.glob("events-*.log"))
        return {name: stored.get(name, 0) for name in logs}

    def _store(self, places: dict[str, int]) -> None:
        new = self._places_file.with_suffix(".new")
        new.write_text(json.dumps(places))
        new.replace(self._places_file)


def _name_of(time: datetime) -> str:
    return f"events-{time:%Y%m%d}.log"


def _touch(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
