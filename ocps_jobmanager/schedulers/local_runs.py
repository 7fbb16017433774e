"""The local jobs that run, as the server sees them: a launcher each, its own child or not."""

import asyncio
import contextlib
import os
import signal

from ocps_jobmanager.processes import Process
from ocps_jobmanager.schedulers.local_folders import Seen


class Run:
    """A job that runs or is about to, and what sees to it.

    Attributes
    ----------
    launcher : Process or Attached or None
        The launcher that is alive, if it is known.
    removing : bool
        Once there is a launcher, it is to end the job.
    discard : bool
        Once there is none any more, the folder is to be deleted.
    last_words : str or None
        What the last launcher said that did not start the job.
    """

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.task: asyncio.Task[None] | None = None
        self.launcher: Process | Attached | None = None
        self.removing = False
        self.discard = False
        self.last_words: str | None = None
        self._go_on = asyncio.Event()

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.seen.job.job_id

    def end(self) -> None:
        """Have the launcher look for the wish that the job end."""
        self.removing = True
        if self.launcher is not None:
            self.launcher.send_signal(signal.SIGTERM)

    async def pause(self, seconds: float) -> None:
        """Wait before the next attempt, or until `go_on`."""
        self._go_on.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._go_on.wait()

    def go_on(self) -> None:
        """Look again at once: something has changed."""
        self._go_on.set()

    async def ended(self, at_most_s: float | None = None) -> bool:
        """Wait for the launcher's end, or for so many seconds; whether it has ended."""
        assert self.launcher is not None, "there is a launcher"
        if not (await asyncio.wait([self.launcher.exited], timeout=at_most_s))[0]:
            return False
        self.launcher = None
        return True

    def abandon(self) -> None:
        """Let the launcher be."""
        if self.launcher is not None:
            self.launcher.abandon()


class Attached:
    """A launcher that an earlier server started; like a `Process`, but not our child.

    Parameters
    ----------
    pidfd : int
        Closed here.
    """

    def __init__(self, pidfd: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._pidfd: int | None = pidfd
        self.exited: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(pidfd, self._notice)

    def send_signal(self, number: int) -> None:
        """Send a signal to this very process; nothing happens if it has ended."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def abandon(self) -> None:
        """Stop watching it."""
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        self.exited.cancel()

    def _notice(self) -> None:
        if not self.exited.done():
            self.exited.set_result(None)
        self.abandon()


async def hear(pipe: int) -> str:
    """The line that a launcher writes, empty if it ends without."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    os.set_blocking(pipe, False)
    loop.add_reader(pipe, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(pipe)
    return os.read(pipe, 512).decode(errors="replace")
