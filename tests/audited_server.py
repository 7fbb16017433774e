"""Runs the server under an audit hook: what blocks the event loop is written down.

``python -m tests.audited_server REPORT`` is ``ocps-jobmanager serve``, and appends to the file
REPORT a line for every file that is opened or changed, process that is started and SQL statement
that is executed in the event loop's thread once the server has started, and whenever the loop has
stood still for a second.
"""

import asyncio
import os
import sys
import threading
from typing import Any

import sqlalchemy as sa

from ocps_jobmanager import app, cli

_BLOCKING = (
    "open",
    "os.chmod",
    "os.exec",
    "os.fork",
    "os.link",
    "os.listdir",
    "os.mkdir",
    "os.posix_spawn",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.scandir",
    "os.symlink",
    "os.truncate",
    "shutil.",
    "sqlite3.connect",
    "subprocess.Popen",
)


#: No finer: machines that tests run on are busy.
_LATE_S = 1.0


class Audit:
    """Notes what the main thread does, from `begin` on."""

    def __init__(self, report: str) -> None:
        self._report = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._on = False
        sys.addaudithook(self._hook)
        sa.event.listen(sa.Engine, "before_cursor_execute", self._sql)

    def begin(self) -> None:
        """The server has started: from now on its loop must turn."""
        self._on = True
        self._tick(asyncio.get_running_loop())

    def end(self) -> None:
        """The server stops: nobody waits for its loop any more."""
        self._on = False

    def _tick(self, loop: asyncio.AbstractEventLoop, due: float | None = None) -> None:
        if not self._on:
            return
        if due is not None and (late := loop.time() - due) > _LATE_S:
            self._note(f"the loop stood still for {late:.1f} s")
        next_one = loop.time() + 0.1
        loop.call_at(next_one, self._tick, loop, next_one)

    def _hook(self, event: str, arguments: Any) -> None:
        if self._on and event.startswith(_BLOCKING):
            self._note(f"{event} {arguments!r}")

    def _sql(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if self._on:
            self._note(statement)

    def _note(self, what: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        where = []
        frame = sys._getframe(1)
        while frame.f_back is not None:
            frame = frame.f_back
            name = frame.f_code.co_filename
            if name.startswith("<frozen importlib") or name.endswith("/linecache.py"):
                return  # a module, or the source for a traceback: once each, and small
            where.append(f"{name}:{frame.f_lineno}")
        os.write(self._report, f"{what[:300]}  at {' '.join(where[:6])}\n".encode())


def main() -> int:
    """Serve, audited."""
    audit = Audit(sys.argv[1])
    start, stop = app.Server.start, app.Server.stop

    async def audited_start(server: app.Server) -> None:
        await start(server)
        audit.begin()

    async def audited_stop(server: app.Server) -> None:
        audit.end()
        await stop(server)

    app.Server.start = audited_start  # type: ignore[method-assign]
    app.Server.stop = audited_stop  # type: ignore[method-assign]
    return cli.main(["serve"])


if __name__ == "__main__":
    sys.exit(main())
