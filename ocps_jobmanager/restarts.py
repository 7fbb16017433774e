"""One server after another in the same process: how it makes place, and how it is asked to.

On SIGUSR2 a server ends all its parts and executes its own program anew, which may have been
upgraded in the meantime. The process stays the same, and so do its sockets: at no time are there
two servers, and at no time is a connection refused.
"""

import contextlib
import json
import logging
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ocps_jobmanager import sockets
from ocps_jobmanager.errors import StartupError, shown

logger = logging.getLogger("main")

#: What a server listens to. Between two servers they wait: by default each would end the process.
SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2})

_LOOK_S = 0.05
_REHEARSAL = "import sys; from ocps_jobmanager.cli import rehearse; sys.exit(rehearse())"
_REHEARSAL_DEADLINE_S = 30
_LONGEST_WHY = 2000


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a server writes into its lock, for `request_restart`.

    Attributes
    ----------
    start : str
        Another one for each start, also in the same process.
    ready : bool
        It answers requests.
    refusals : int
        How often it was asked to restart and stayed.
    why : str
        What the last of these refusals said.
    """

    pid: int
    start: str
    ready: bool = False
    refusals: int = 0
    why: str = ""

    @classmethod
    def of_this_process(cls) -> "Note":
        """Begin the note of a server that starts."""
        return cls(pid=os.getpid(), start=secrets.token_hex(8))

    @classmethod
    def read(cls, path: Path) -> "Note | None":
        """Read a note. Blocks. None if there is none, or it is just being written."""
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        return None

    def with_refusal(self, why: str) -> "Note":
        """Say that a restart was refused just now."""
        return replace(self, refusals=self.refusals + 1, why=why[:_LONGEST_WHY])

    def write(self, descriptor: int) -> None:
        """Write it in place of the one before. Blocks."""
        text = f"{json.dumps(asdict(self))}\n".encode()
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))


# In the server ---------------------------------------------------------------------------------


class Successor:
    """The server that this process is to become.

    Parameters
    ----------
    environ : mapping of str to str
        Its environment.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.inheritance: Callable[[], sockets.Inheritance] = sockets.Inheritance
        """Gives what it will find open."""

    def rehearse(self) -> None:
        """See whether it would start, as far as that can be seen without starting it. Blocks.

        In a process of its own, because what is installed by now may be another version.

        Raises
        ------
        StartupError
            It would not.
        """
        # What the interpreter was given before the program: -m and a module, -c, or a file.
        options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
        options = options[:-2] if options[-2:-1] in (["-m"], ["-c"]) else options[:-1]
        try:
            done = subprocess.run(
                [sys.executable, *options, "-c", _REHEARSAL],
                env=dict(self._environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=_REHEARSAL_DEADLINE_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StartupError(f"The server's program can't be run: {error}.") from error
        said = done.stderr.decode(errors="replace").strip()
        if done.returncode == 2 and said:
            raise StartupError(said)
        if done.returncode != 0:
            last = said.splitlines()[-1] if said else f"exit status {done.returncode}"
            raise StartupError(f"The server's program does not run: {shown(last, 500)}.")

    def execute(self) -> None:
        """Become it, at once and whatever else goes on in this process.

        Raises
        ------
        StartupError
            Its program can't be executed.
        """
        signal.alarm(0)  # it would be kept
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        try:
            variables = self._export()
            argv = [sys.executable, *sys.orig_argv[1:]]
            os.execve(sys.executable, argv, {**self._environ, **variables})  # noqa: S606 no shell
        except OSError as error:
            raise StartupError(
                f"The server can't be started again: {sys.executable}: {error.strerror}."
            ) from error

    def _export(self) -> dict[str, str]:
        inheritance = self.inheritance()
        try:
            return sockets.export(inheritance, os.getpid())
        except OSError as error:  # there are not enough descriptors
            logger.warning("Idle connections are closed: %s.", error.strerror)
            return sockets.export(replace(inheritance, connections=()), os.getpid())


class Foundlings:
    """The children that the server before has left to this one.

    Launchers of local jobs outlive a server. After a restart they are still children of this
    process, and nobody else would reap them.
    """

    def __init__(self, pids: frozenset[int]) -> None:
        self._pids = pids
        self._pidfds: dict[int, int] = {}

    @classmethod
    def of_this_process(cls) -> "Foundlings":
        """Find them. Blocks; to be called before the first child is started."""
        pids: set[int] = set()
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):
                pids.update(map(int, (task / "children").read_text().split()))
        return cls(frozenset(pids))

    def watch(self, loop: AbstractEventLoop) -> None:
        """Reap each when it ends."""
        for pid in self._pids:
            with contextlib.suppress(OSError):
                self._pidfds[pid] = os.pidfd_open(pid)
                loop.add_reader(self._pidfds[pid], self._reap, loop, pid)

    def _reap(self, loop: AbstractEventLoop, pid: int) -> None:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                return
        pidfd = self._pidfds.pop(pid)
        loop.remove_reader(pidfd)
        os.close(pidfd)


# Beside it -------------------------------------------------------------------------------------


class RestartError(Exception):
    """The server was asked to restart and is not ready again: one sentence."""


def request_restart(lock: Path, *, timeout_s: float) -> int:
    """Have the server that holds this lock restart, and wait until it answers requests again.

    Returns
    -------
    int
        Its process id.

    Raises
    ------
    StartupError
        There is none.
    RestartError
        It refused, or has ended, or is not ready in time.
    """
    where = f'OCPS_STATE_DIR "{shown(str(lock.parent), 200)}"'
    try:
        before = Note.read(lock)
        pidfd = None if before is None else _open_holder(before.pid, lock)
    except PermissionError as error:
        raise StartupError(f"The server on {where} is another account's.") from error
    if before is None or pidfd is None:
        raise StartupError(f"No server runs on {where}: there is nothing to restart.")
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGUSR2)
        _wait_until_ready(pidfd, before, lock, timeout_s)
    except (PermissionError, ProcessLookupError) as error:
        raise StartupError(f"The server on {where} can't be asked: {error.strerror}.") from error
    finally:
        os.close(pidfd)
    return before.pid


def _open_holder(pid: int, lock: Path) -> int | None:
    """A descriptor of the process if it has the lock's file open; a note may be of long ago."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        wanted = lock.stat()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(link.stat(), wanted):
                    return pidfd
    except FileNotFoundError:  # it has just ended
        pass
    except BaseException:
        os.close(pidfd)
        raise
    os.close(pidfd)
    return None


def _wait_until_ready(pidfd: int, before: Note, lock: Path, timeout_s: float) -> None:
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if ended.poll(_LOOK_S * 1000):
            raise RestartError("The server has ended and did not start again; its log says why.")
        note = Note.read(lock)
        if note is None:
            continue
        if note.start != before.start:
            if note.ready:
                return
        elif note.refusals > before.refusals:
            raise RestartError(f"The server refused and goes on as before: {note.why}")
    raise RestartError(f"The server is not ready after {timeout_s:g} s; its log may say why.")
