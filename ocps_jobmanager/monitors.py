"""Starts, watches, nudges, restarts and ends the monitors of the jobs that wait for data."""

import asyncio
import contextlib
import json
import logging
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ocps_jobmanager.health import Health
from ocps_jobmanager.processes import Process, Spawner
from ocps_jobmanager.times import Clock, utc_now

logger = logging.getLogger("main")

PROGRAM = Path(__file__).with_name("monitor.py")
#: All that a monitor sees of the server's environment: nothing.
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
#: A monitor that has run for so long was started well: the next pause is the first again.
SETTLED_S = 10.0
#: Between SIGTERM and SIGKILL. A monitor needs none of it, unless its file system hangs.
GRACE_S = 2.0
#: For a monitor whose callback is being answered to read the answer and go by itself. The server
#: holds the answer back for 2 s at most.
FAREWELL_S = 4.0
#: Between two attempts to write to a full pipe.
FULL_PIPE_PAUSE_S = 0.05


@dataclass(eq=False)
class _Watch:
    """A job that waits, and its monitor if it runs just now."""

    job_id: str
    job_type: str
    key: str = field(repr=False)
    paths: tuple[str, ...]
    process: Process | None = None
    called_back: bool = False


class MonitorSupervisor:
    """Keeps one monitor running for each job that is watched.

    Each job has a task of its own that starts its monitor, waits for its end, and starts it again
    for as long as the job is watched. Nothing here blocks, and nothing is started from within a
    request.

    Parameters
    ----------
    spawner : Spawner
        Starts the processes. It is not closed with the supervisor.
    python : pathlib.Path
        The interpreter that monitors run under.
    work_dir : pathlib.Path
        Where monitors look for data; absolute.
    api_url : str
        What they call back, without the key: ``http://localhost:8080/api/v1/monitor/complete``.
    poll_interval_s : float
        Between two looks, in seconds.
    ca_file : pathlib.Path or None
        The certificates that an ``https`` server is checked with; None: the system's.
    at_a_time : int or None
        How many monitors are started at once; None: two for each core.
    clock : Clock
        For `health`.
    """

    def __init__(
        self,
        *,
        spawner: Spawner,
        python: Path,
        work_dir: Path,
        api_url: str,
        poll_interval_s: float,
        ca_file: Path | None = None,
        at_a_time: int | None = None,
        clock: Clock = utc_now,
    ) -> None:
        self._spawner = spawner
        self._python = python
        self._work_dir = work_dir
        self._api_url = api_url
        self._poll_interval_s = poll_interval_s
        self._ca_file = ca_file
        # Narrower than the spawner, whose queue others wait in, too.
        self._turn = asyncio.Semaphore(at_a_time or 2 * (os.cpu_count() or 1))
        self._clock = clock
        self._watches: dict[str, _Watch] = {}
        self._tasks: dict[_Watch, asyncio.Task[None]] = {}
        self._cannot_start: str | None = None
        self._cannot_run: set[str] = set()
        self._cannot_call: str | None = None
        self._health = Health(ok=True, since=clock(), detail="Monitors are in order.")
        self._closed = False

    def watch(self, job_id: str, job_type: str, key: str, paths: Sequence[str]) -> None:
        """Have a monitor wait for the data of a job, from soon on. Repeating it changes nothing.

        Parameters
        ----------
        key : str
            What the monitor shows when it calls back. Given to it on its standard input only.
        paths : sequence of str
            The files that must all be there; relative ones to the work directory.
        """
        if self._closed or job_id in self._watches:
            return
        watch = _Watch(job_id, job_type, key, tuple(paths))
        self._watches[job_id] = watch
        self._tasks[watch] = asyncio.create_task(self._keep(watch), name=f"monitor {job_id}")
        self._tasks[watch].add_done_callback(lambda _: self._tasks.pop(watch))

    def unwatch(self, job_id: str, *, called_back: bool = False) -> None:
        """End the monitor of a job that waits no more, if it has one; returns at once.

        Parameters
        ----------
        called_back : bool
            The job's data have arrived, so its monitor is probably reading the answer just now: it
            gets the time to go by itself.
        """
        if (watch := self._watches.pop(job_id, None)) is not None:
            watch.called_back = called_back
            self._tasks[watch].cancel()
            self._cannot_run.discard(job_id)
            if not self._watches:
                self._cannot_start = None  # nothing is to be started that could show it is over
            self._update_health()

    def nudge(self, job_id: str) -> None:
        """Have the monitor of a job look now; nothing happens if it does not run."""
        watch = self._watches.get(job_id)
        if watch is None or watch.process is None or watch.process.exited.done():
            return
        # A pipe that is full holds enough of them.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(watch.process.stdin_fd, b"\n")

    def health(self) -> Health:
        """Whether monitors can be started, keep running and can call back."""
        return self._health

    def report_callback_url(self, ok: bool, detail: str) -> None:
        """Take note whether the server could call itself as its monitors do.

        Parameters
        ----------
        detail : str
            One sentence, if not: neither a path nor a secret.
        """
        self._cannot_call = None if ok else detail
        self._update_health()

    async def close(self) -> None:
        """End all monitors, within a few seconds."""
        self._closed = True
        for job_id in list(self._watches):
            self.unwatch(job_id)
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=GRACE_S + FAREWELL_S)
        for watch in self._tasks:
            logger.warning('The monitor of job "%s" does not end.', watch.job_id)

    async def _keep(self, watch: _Watch) -> None:
        """Keep a monitor running until this task is cancelled."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                code, settled = await self._run(watch)
            except OSError as error:
                code, settled = None, False
                self._note_start(error)
            except Exception:
                code, settled = None, False
                logger.exception('The monitor of job "%s" could not be kept.', watch.job_id)
            if settled:
                pause_s = FIRST_PAUSE_S
            if code:
                # Not for 0: its callback was answered, and unwatch() is usually about to come.
                logger.warning(
                    'The monitor of job "%s" ended with %s. It is started again in %g s.',
                    *(watch.job_id, _ending(code), pause_s),
                )
            await asyncio.sleep(pause_s)
            if code == 0:
                logger.warning(
                    'The callback for job "%s" was answered, and still it waits for its data. '
                    "Its monitor is started again.",
                    watch.job_id,
                )
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _run(self, watch: _Watch) -> tuple[int, bool]:
        """Run a monitor from its start to its end, which comes with a cancellation at the latest.

        Returns
        -------
        tuple of int and bool
            How it ended, and whether it had run for long enough to be well.

        Raises
        ------
        OSError
            It can't be started.
        """
        loop = asyncio.get_running_loop()
        async with self._turn:
            process = await self._start(watch)
        began = loop.time()
        try:
            await self._feed(process, watch)
            watch.process = process
            code = await _ends_within(process, SETTLED_S)
            self._note_run(watch, well=code is None or code <= 0)
            if code is None:
                code = await asyncio.shield(process.exited)
            return code, loop.time() - began >= SETTLED_S
        finally:
            watch.process = None
            if watch.called_back:
                await _ends_within(process, FAREWELL_S)
            await process.end(GRACE_S)

    async def _start(self, watch: _Watch) -> Process:
        about = ["--id", watch.job_id, "--type", watch.job_type, "--api_url", self._api_url]
        process = await self._spawner.start(
            [self._python, "-I", "-S", PROGRAM, *about],
            env=ENVIRONMENT,
            cwd=self._work_dir,
            stdin=subprocess.PIPE,
            # A Ctrl-C at the terminal is for the server, which ends its monitors in order.
            new_session=True,
        )
        self._note_start(None)
        return process

    async def _feed(self, process: Process, watch: _Watch) -> None:
        """Give a monitor its first line."""
        words = {
            "key": watch.key,
            "poll_interval_s": self._poll_interval_s,
            "paths": watch.paths,
            "ca_file": None if self._ca_file is None else str(self._ca_file),
        }
        rest = f"{json.dumps(words)}\n".encode()
        while rest and not process.exited.done():
            try:
                rest = rest[os.write(process.stdin_fd, rest) :]
            except BlockingIOError:
                # Long names in a small pipe (pipe(7): 8 KiB for who has many), and a monitor that
                # is not up yet.
                await asyncio.sleep(FULL_PIPE_PAUSE_S)
            except BrokenPipeError:
                return  # it has ended, as will be seen

    def _note_start(self, error: OSError | None) -> None:
        before, self._cannot_start = self._cannot_start, None
        if error is not None:
            # The error's own text would hold a path.
            self._cannot_start = f"Monitors can't be started: {error.strerror}."
            if self._cannot_start != before:
                logger.error("%s It is tried again and again.", self._cannot_start)
        self._update_health()

    def _note_run(self, watch: _Watch, *, well: bool) -> None:
        if well:
            self._cannot_run.discard(watch.job_id)
        else:
            self._cannot_run.add(watch.job_id)
        self._update_health()

    def _update_health(self) -> None:
        failing = "Monitors end as soon as they are started." if self._cannot_run else None
        problems = [text for text in (self._cannot_start, failing, self._cannot_call) if text]
        ok = not problems
        since = self._health.since if ok == self._health.ok else self._clock()
        detail = " ".join(problems) or "Monitors are in order."
        self._health = Health(ok=ok, since=since, detail=detail)


async def _ends_within(process: Process, seconds: float) -> int | None:
    """Wait for the end of a process, but not for longer; None if it still runs."""
    done, _ = await asyncio.wait({process.exited}, timeout=seconds)
    return process.exited.result() if done else None


def _ending(code: int) -> str:
    return f"exit status {code}" if code > 0 else f"signal {-code}"
