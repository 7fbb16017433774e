"""A Job Manager of the demonstration's own: a process that is started, watched and ended."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Self

import requests

from ocps_jobmanager.errors import shown

_START_DEADLINE_S = 30.0
_LOOK_INTERVAL_S = 0.05
_STOP_DEADLINE_S = 15.0
_ORPHANS_DEADLINE_S = 5.0
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_INTERRUPTING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_Handler = Callable[[int, FrameType | None], object] | int | None


class DemoError(Exception):
    """The demonstration can't go on: one sentence, perhaps with what belongs to it below."""


class Interrupts:
    """A context that turns SIGINT, SIGTERM and SIGHUP into one KeyboardInterrupt.

    It is raised in the block of `allowed` only: what is made before that block is not lost before
    it has an owner, and the tidying-up after it, which takes a bounded time, is not interrupted.
    """

    def __init__(self) -> None:
        self._allowed = False
        self._came = False
        self._before: list[_Handler] = []

    def __enter__(self) -> Self:
        self._before = [signal.signal(number, self._take) for number in _INTERRUPTING]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(_INTERRUPTING, self._before, strict=True):
            signal.signal(number, handler)

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """The block that is interrupted; at its beginning if a signal came before."""
        self._allowed = not self._came
        if self._came:
            raise KeyboardInterrupt
        try:
            yield
        finally:
            self._allowed = False

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        if self._allowed:
            self._allowed = False
            raise KeyboardInterrupt


class DemoServer:
    """A server process.

    Parameters
    ----------
    environ : mapping of str to str
        Its whole environment. `OCPS_HOME` in it is the project's folder, `API_PORT` is 0.
    log : pathlib.Path
        Where its output goes.
    """

    def __init__(self, environ: Mapping[str, str], log: Path) -> None:
        self._environ = environ
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start the process; `stop` is to be called whatever happens next."""
        _adopt_orphans()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ocps_jobmanager", "serve"],
                cwd=self._environ["OCPS_HOME"],
                env=dict(self._environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for the demonstration, which ends it in order
            )

    def wait_until_ready(self) -> str:
        """Wait until it answers and all its parts are in order.

        Returns
        -------
        str
            The URL with the base path.

        Raises
        ------
        DemoError
            It has ended, or is not ready in time.
        """
        deadline = time.monotonic() + _START_DEADLINE_S
        said = "it has not said where it listens"
        while time.monotonic() < deadline:
            self.check()
            text = self._log.read_text(encoding="utf-8", errors="replace")
            if match := re.search(r"Running at ([^/\s]+)(/\S*)\n", text):
                root = f"http://{match[1]}"
                if (reason := _not_ready(root)) is None:
                    return root + match[2]
                said = reason
            time.sleep(_LOOK_INTERVAL_S)
        raise DemoError(f"The Job Manager is not ready within {_START_DEADLINE_S:g} s: {said}")

    def check(self) -> None:
        """See that it still runs.

        Raises
        ------
        DemoError
            It has ended.
        """
        assert self._process is not None, "not started"
        if (code := self._process.poll()) is not None:
            raise DemoError(f"The Job Manager has ended by itself, exit status {code}.")

    def stop(self) -> int | None:
        """End it and all that it has left.

        Returns
        -------
        int or None
            Its exit status; None if it was never started.
        """
        if self._process is None:
            return None
        self._process.terminate()
        try:
            code = self._process.wait(_STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        _end_orphans()
        return code

    def tail(self) -> str:
        """The last lines of its log, without the requests that went well."""
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        told = [line for line in lines if not re.search(r" tornado\.access +INFO ", line)]
        return "\n".join(f"    {line}" for line in told[-20:])


def _not_ready(root: str) -> str | None:
    try:
        answer = requests.get(f"{root}/readyz", timeout=5, proxies={"no_proxy": "*"})
        return None if answer.ok else str(answer.json()["msg"])
    except (requests.RequestException, KeyError) as error:
        return shown(str(error), 200)


def _adopt_orphans() -> None:
    """Become the parent of what the server leaves: its local jobs are made to outlive it."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_orphans() -> None:
    """Wait for the children that are left, then kill them."""
    deadline = time.monotonic() + _ORPHANS_DEADLINE_S
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return  # none is left
        if pid == 0:
            if time.monotonic() > deadline:
                _kill_children()
            time.sleep(0.02)


def _kill_children() -> None:
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text(encoding="ascii").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
