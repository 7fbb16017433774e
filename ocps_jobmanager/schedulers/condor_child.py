"""The server's side of a child process: frames, its life, and the lock that all of them share."""

import asyncio
import json
import os
import signal
import subprocess
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from ocps_jobmanager.errors import SchedulerUnavailableError
from ocps_jobmanager.locks import try_lock
from ocps_jobmanager.processes import Process, Spawner
from ocps_jobmanager.times import Clock

Frame = dict[str, Any]

_WORKER = Path(__file__).with_name("condor_worker.py")
#: Importing the bindings takes a third of a second; a loaded machine gets a hundred times that.
_START_DEADLINE_S = 30.0
_FIRST_DELAY_S = 0.5
_LAST_DELAY_S = 30.0
_READ_BYTES = 1 << 20


class ScheddLock:
    """What must be held before anything is done towards the schedd.

    The children inherit the descriptor: a child of a killed server that hangs in ``submit()``, and
    would queue its job after the next server has looked for it, still has the lock.

    Parameters
    ----------
    files : concurrent.futures.Executor
        Where files are opened.
    """

    def __init__(self, path: Path, files: Executor, clock: Clock) -> None:
        self._path = path
        self._files = files
        self._clock = clock
        self._descriptor: int | None = None
        self.since = clock()
        """Since when it is held, or not."""

    @property
    def held(self) -> bool:
        """Whether it is."""
        return self._descriptor is not None

    @property
    def descriptor(self) -> int:
        """What children inherit."""
        assert self._descriptor is not None, "the lock is not held"
        return self._descriptor

    async def try_acquire(self) -> bool:
        """Take it if it is free. Raises `OSError` if the file can't be opened."""
        loop = asyncio.get_running_loop()
        self._descriptor = await loop.run_in_executor(self._files, try_lock, self._path)
        if self.held:
            self.since = self._clock()
        return self.held

    def release(self) -> None:
        """Let go of it; the children must have ended."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Channel:
    """Frames to and from a child: four bytes of length, big-endian, and as much JSON.

    The descriptors are its own, so that it may outlive the `Process` by what is still to be read.
    """

    def __init__(self, process: Process) -> None:
        self._loop = asyncio.get_running_loop()
        self._to_child = os.dup(process.stdin_fd)
        self._from_child = os.dup(process.stdout_fd)
        self._outgoing = bytearray()
        self._incoming = bytearray()
        self._frames: deque[Frame] = deque()
        self._news = asyncio.Event()
        self._ended = False
        self._closed = False
        self._loop.add_reader(self._from_child, self._read)

    def send(self, frame: Frame) -> None:
        """Send a frame, in the background as far as the child does not take it at once."""
        if self._closed:
            return
        text = json.dumps(frame, separators=(",", ":")).encode()
        waiting = bool(self._outgoing)
        self._outgoing += len(text).to_bytes(4, "big") + text
        if not waiting:
            self._loop.add_writer(self._to_child, self._write)
            self._write()

    async def receive(self) -> Frame:
        """The next frame. Raises `EOFError` when the child has ended."""
        while not self._frames:
            if self._ended:
                raise EOFError
            self._news.clear()
            await self._news.wait()
        return self._frames.popleft()

    def close(self) -> None:
        """Let the child see an end-of-file; what it still sends is lost."""
        if self._closed:
            return
        self._closed = self._ended = True
        self._loop.remove_reader(self._from_child)
        self._loop.remove_writer(self._to_child)
        os.close(self._from_child)
        os.close(self._to_child)
        self._news.set()

    def _write(self) -> None:
        try:
            written = os.write(self._to_child, self._outgoing)
            del self._outgoing[:written]
        except BlockingIOError:
            return
        except OSError:  # the child has ended: the reader says so
            self._outgoing.clear()
        if not self._outgoing:
            self._loop.remove_writer(self._to_child)

    def _read(self) -> None:
        try:
            part = os.read(self._from_child, _READ_BYTES)
        except BlockingIOError:
            return
        if not part:
            self._ended = True
            self._loop.remove_reader(self._from_child)
            self._news.set()
            return
        self._incoming += part
        while len(self._incoming) >= 4:
            end = 4 + int.from_bytes(self._incoming[:4], "big")
            if len(self._incoming) < end:
                break
            self._frames.append(json.loads(self._incoming[4:end]))
            del self._incoming[:end]
            self._news.set()


class Child:
    """A child process that is started when it is needed, again if it has ended.

    Parameters
    ----------
    role : str
        ``calls`` or ``follow``.
    environ : mapping of str to str
        Its environment: where HTCondor's configuration is found.
    """

    def __init__(
        self,
        role: str,
        *,
        spawner: Spawner,
        python: Path,
        environ: Mapping[str, str],
        lock: ScheddLock,
    ) -> None:
        self._role = role
        self._spawner = spawner
        self._python = python
        self._environ = environ
        self._lock = lock
        self._process: Process | None = None
        self._channel: Channel | None = None
        self._delay_s = 0.0
        self._not_before = 0.0
        self._why = ""

    async def channel(self) -> Channel:
        """Frames to and from the running child, which is started if there is none.

        Raises
        ------
        SchedulerUnavailableError
            The lock is not held, or the child does not start: after each failure it is tried again
            later only, up to half a minute.
        """
        if self._channel is not None:
            return self._channel
        loop = asyncio.get_running_loop()
        if not self._lock.held:
            raise SchedulerUnavailableError("A helper of an earlier server has not ended yet.")
        if loop.time() < self._not_before:
            raise SchedulerUnavailableError(self._why)
        await self.kill()
        try:
            return await self._start()
        except (OSError, EOFError, TimeoutError) as error:
            self.failed("The helper process for HTCondor does not start.")
            await self.kill()
            raise SchedulerUnavailableError(self._why) from error

    async def _start(self) -> Channel:
        arguments = ["--parent", str(os.getpid()), "--lock-fd", str(self._lock.descriptor)]
        async with asyncio.timeout(_START_DEADLINE_S):
            self._process = await self._spawner.start(
                [self._python, "-P", _WORKER, self._role, *arguments],
                env=self._environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[self._lock.descriptor],
            )
            channel = Channel(self._process)
            try:
                await channel.receive()
            except BaseException:
                channel.close()
                raise
        self._channel = channel
        return channel

    def works(self) -> None:
        """To be told when it has done something: the next start need not wait."""
        self._delay_s = 0.0

    def failed(self, why: str) -> None:
        """To be told when it has ended of its own: the next start waits, longer each time."""
        self._why = why
        self._delay_s = min(max(2 * self._delay_s, _FIRST_DELAY_S), _LAST_DELAY_S)
        self._not_before = asyncio.get_running_loop().time() + self._delay_s

    async def kill(self) -> None:
        """Kill the child if it runs. When this returns it has ended and is reaped.

        If this is cancelled the child stays known, and whoever needs one next waits for its end.
        """
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            await asyncio.shield(self._process.exited)
            self._process = None

    async def end(self, grace_s: float) -> None:
        """Have the child end, by force after `grace_s` seconds."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            await self._process.end(grace_s)
            self._process = None
