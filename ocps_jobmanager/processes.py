"""Child processes: started off the event loop, watched without a thread each.

``fork`` costs milliseconds and would stall every request, so it happens in threads that live as
long as the server. That they do matters: a child's ``PR_SET_PDEATHSIG`` fires when the *thread*
that made it ends (prctl(2)).
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class Process:
    """A running child process.

    Parameters
    ----------
    popen : subprocess.Popen
        Started just now; its exit status belongs to this object from here on.
    pidfd : int
        Of that process; belongs to this object, too.
    """

    def __init__(self, popen: "subprocess.Popen[bytes]", pidfd: int) -> None:
        self._popen = popen
        self._loop = asyncio.get_running_loop()
        self._pidfd: int | None = pidfd
        self.exited: asyncio.Future[int] = self._loop.create_future()
        """Done when the process has ended and is reaped: its return code, negative for a signal."""
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """The process id; of no use once `exited` is done."""
        return self._popen.pid

    @property
    def stdin_fd(self) -> int:
        """The writing end of the child's standard input, non-blocking; see `close_stdin`."""
        assert self._popen.stdin is not None, "started without a pipe"
        return self._popen.stdin.fileno()

    @property
    def stdout_fd(self) -> int:
        """The reading end of the child's standard output, non-blocking."""
        assert self._popen.stdout is not None, "started without a pipe"
        return self._popen.stdout.fileno()

    def close_stdin(self) -> None:
        """Give the child an end-of-file."""
        if self._popen.stdin is not None:
            self._popen.stdin.close()

    def send_signal(self, number: int) -> None:
        """Send a signal to this very process; nothing happens if it has ended."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):  # ended, and to be reaped soon
                signal.pidfd_send_signal(self._pidfd, number)

    async def end(self, grace_s: float) -> int:
        """Have the process end: SIGTERM, SIGKILL after `grace_s` seconds; wait until it is gone.

        Returns
        -------
        int
            Its return code.
        """
        self.close_stdin()
        self.send_signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(asyncio.shield(self.exited), grace_s)
        except TimeoutError:
            self.send_signal(signal.SIGKILL)
            return await asyncio.shield(self.exited)

    def abandon(self) -> None:
        """Stop watching a process that is meant to outlive the server."""
        self._close_pidfd()
        if self._popen.poll() is None:
            self._popen.returncode = 0  # or its destructor warns of a child still running
        self.exited.cancel()

    def _reap(self) -> None:
        if (code := self._popen.poll()) is None:
            return
        self._close_pidfd()
        self.close_stdin()
        if self._popen.stdout is not None:
            self._popen.stdout.close()
        if not self.exited.done():
            self.exited.set_result(code)

    def _close_pidfd(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None


class Spawner:
    """Starts processes from threads of its own.

    Parameters
    ----------
    at_a_time : int
        How many are started at once; further ones wait their turn.
    """

    def __init__(self, at_a_time: int) -> None:
        self._threads = ThreadPoolExecutor(at_a_time, thread_name_prefix="spawn")

    async def start(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        pass_fds: Sequence[int] = (),
        new_session: bool = False,
    ) -> Process:
        """Start a process. Only the three standard streams and `pass_fds` are open in it.

        Parameters
        ----------
        stdin : int
            ``subprocess.PIPE`` or ``DEVNULL``. The pipe's end in the server does not block.
        stdout : int or None
            ``subprocess.PIPE``, ``DEVNULL`` or, None, the server's own.

        Raises
        ------
        OSError
            It can't be started.
        """

        def start() -> tuple[subprocess.Popen[bytes], int]:
            popen = subprocess.Popen(
                [os.fspath(arg) for arg in argv],
                bufsize=0,
                cwd=cwd,
                env=dict(env),
                stdin=stdin,
                stdout=stdout,
                pass_fds=pass_fds,
                start_new_session=new_session,
            )
            for pipe in (popen.stdin, popen.stdout):
                if pipe is not None:
                    os.set_blocking(pipe.fileno(), False)
            try:
                return popen, os.pidfd_open(popen.pid)
            except OSError:  # no more descriptors: it could not be watched
                with popen:
                    popen.kill()
                raise

        turn = self._threads.submit(start)
        starting = asyncio.wrap_future(turn)
        try:
            return Process(*await asyncio.shield(starting))
        except asyncio.CancelledError:
            # The thread can't be stopped once it is at it: take what it starts, and end it.
            if not turn.cancel():
                with contextlib.suppress(OSError):
                    process = Process(*await starting)
                    process.send_signal(signal.SIGKILL)
                    await process.exited
            raise

    def close(self) -> None:
        """Let the threads go; to be called when no process needs them any more."""
        self._threads.shutdown(wait=False)
