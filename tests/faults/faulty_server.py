"""A server that dies, or dawdles, at a named step when a control file says so.

``python -m tests.faults.faulty_server CONTROL [SWITCH ...]`` is ``ocps-jobmanager serve`` with its
steps wrapped: production code has no such points. `Points` says what may be ordered. The switches:

``--hasty``
    Calls to HTCondor have short deadlines, so that short outages outlast them.
``--blind``
    The look-up by the job's tag is switched off: `find` never finds anything. Such a server does
    run jobs twice; this is how the harness shows that it would notice.
"""

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import json
import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ocps_jobmanager import app, cli
from ocps_jobmanager.code import CodeStore
from ocps_jobmanager.launches import LaunchPad
from ocps_jobmanager.manager import JobManager
from ocps_jobmanager.models import JobState
from ocps_jobmanager.schedulers.condor_calls import CondorCalls, Deadlines
from ocps_jobmanager.schedulers.htcondor import HTCondorScheduler, Timing
from ocps_jobmanager.schedulers.local import LocalScheduler
from ocps_jobmanager.schedulers.local_folders import JobFolders
from ocps_jobmanager.store import JobStore

BEFORE, AFTER = "before", "after"

#: The steps of a server on either scheduler: from "intent committed" to "outcome committed".
_STEPS: dict[str, tuple[type, str]] = {
    "take code": (CodeStore, "take"),
    "accept": (JobStore, "add"),
    "data arrived": (JobManager, "data_arrived"),
    "reconcile": (JobManager, "_reconcile"),
    "launch": (JobManager, "_launch"),
    "prepare": (LaunchPad, "prepare"),
    "begin attempt": (JobStore, "begin_attempt"),
    "record queued": (JobManager, "_record_queued"),
    "end": (JobManager, "_end"),
    "request removal": (JobStore, "request_removal"),
    "take news": (JobManager, "take_news"),
}
_LOCAL: dict[str, tuple[type, str]] = {
    "submit": (LocalScheduler, "submit"),
    "find": (LocalScheduler, "find"),
    "remove": (LocalScheduler, "remove"),
    "number cluster": (JobStore, "next_cluster_id"),
    "make folder": (JobFolders, "create"),
    "write wish": (JobFolders, "ask_removal"),
    "discard folder": (JobFolders, "discard"),
}
_HTCONDOR: dict[str, tuple[type, str]] = {
    "submit": (HTCondorScheduler, "submit"),
    "find": (HTCondorScheduler, "find"),
    "remove": (HTCondorScheduler, "remove"),
    "call submit": (CondorCalls, "submit"),
    "call query": (CondorCalls, "query"),
    "call remove": (CondorCalls, "remove"),
}
_RECORDED = (
    JobState.SUBMITTING,
    JobState.IDLE,
    JobState.RUNNING,
    JobState.COMPLETED,
    JobState.REMOVED,
)


def points(scheduler: str) -> list[tuple[str, str]]:
    """Every named point: a step, and before or after it."""
    steps = [*_STEPS, *(_LOCAL if scheduler == "local" else _HTCONDOR)]
    steps += [f"record {state.value}" for state in _RECORDED]
    return [(step, when) for step in steps for when in (BEFORE, AFTER)] + [("commit", BEFORE)]


@dataclasses.dataclass(kw_only=True)
class Order:
    """What is to happen when a point is reached.

    Attributes
    ----------
    skip : int
        How often the point is to be passed first.
    pause_s : float or None
        Dawdle so long, once; None: die.
    job_id : str or None
        Only with this job.
    """

    id: int
    step: str
    when: str
    skip: int = 0
    pause_s: float | None = None
    job_id: str | None = None


class Points:
    """Carries out orders. They are read from ``orders``, what is done is told in ``reached``."""

    def __init__(self, control: Path) -> None:
        self._orders_path = control / "orders"
        self._reached = os.open(control / "reached", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._lock = threading.Lock()
        self._orders: list[Order] = []
        self._seen = 0
        self._read()
        threading.Thread(target=self._watch, daemon=True, name="orders").start()

    def reach(self, step: str, when: str, about: Sequence[Any] = ()) -> float | None:
        """Die here if that is ordered; give how long to dawdle."""
        with self._lock:
            for order in self._orders:
                if (order.step, order.when) != (step, when):
                    continue
                if order.job_id is not None and order.job_id not in map(_job_id, about):
                    continue
                if order.skip:
                    order.skip -= 1
                    continue
                os.write(self._reached, f"{order.id}\n".encode())
                if order.pause_s is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                self._orders.remove(order)
                return order.pause_s
        return None

    def _read(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            changed = self._orders_path.stat().st_mtime_ns
            if changed != self._seen:
                self._seen = changed
                orders = [Order(**order) for order in json.loads(self._orders_path.read_text())]
                with self._lock:
                    self._orders = orders
                os.write(self._reached, f"armed {os.getpid()}\n".encode())

    def _watch(self) -> None:
        while True:
            self._read()
            _wait(0.01)

    # What reaches points ------------------------------------------------------------------------

    def wrap(self, owner: type, method: str, names: Callable[..., Sequence[str]]) -> None:
        """Have a method reach points before and after it."""
        original = getattr(owner, method)

        @functools.wraps(original)
        async def awaited(*args: Any, **more: Any) -> Any:
            for name in names(*args, **more):
                await asyncio.sleep(self.reach(name, BEFORE, args) or 0)
            result = await original(*args, **more)
            for name in names(*args, **more):
                await asyncio.sleep(self.reach(name, AFTER, args) or 0)
            return result

        @functools.wraps(original)
        def called(*args: Any, **more: Any) -> Any:
            for name in names(*args, **more):
                _wait(self.reach(name, BEFORE, args) or 0.0)
            result = original(*args, **more)
            for name in names(*args, **more):
                _wait(self.reach(name, AFTER, args) or 0.0)
            return result

        setattr(owner, method, awaited if inspect.iscoroutinefunction(original) else called)

    def install(self, scheduler: str) -> None:
        """Wrap every step."""
        steps = _STEPS | (_LOCAL if scheduler == "local" else _HTCONDOR)
        for step, (owner, method) in steps.items():
            self.wrap(owner, method, lambda *_, step=step, **__: (step,))
        self.wrap(
            JobStore,
            "record",
            lambda _store, changes: sorted({f"record {change.to.value}" for change in changes}),
        )
        sa.event.listen(sa.Engine, "commit", lambda _: self.reach("commit", BEFORE))


def _wait(seconds: float) -> None:
    """Sleep; `time.sleep` fails under libfaketime."""
    if seconds:
        threading.Event().wait(seconds)


def _job_id(thing: Any) -> str | None:
    """The job that something is, or is about."""
    found = thing if isinstance(thing, str) else getattr(thing, "job_id", None)
    return found or getattr(thing, "id", None)


def _be_hasty() -> None:
    make = HTCondorScheduler.__init__

    @functools.wraps(make)
    def hasty(self: HTCondorScheduler, **more: Any) -> None:
        deadlines = Deadlines(query=3.0, act=3.0, submit=3.0, history=15.0)
        make(self, **{**more, "timing": Timing(deadlines=deadlines)})

    HTCondorScheduler.__init__ = hasty  # type: ignore[method-assign]


def _be_blind() -> None:
    async def find_nothing(*_: Any) -> None:
        return None

    LocalScheduler.find = find_nothing  # type: ignore[assignment]
    HTCondorScheduler.find = find_nothing  # type: ignore[assignment]
    # A local job's tag is the name of its folder, which is there once only: that goes, too.
    create = JobFolders.create

    @functools.wraps(create)
    def create_another(self: JobFolders, request: Any, *more: Any) -> Any:
        folder = self.folder(request.job_id)
        if folder.exists():
            shutil.move(folder, folder.with_name(secrets.token_hex(16)))
        return create(self, request, *more)

    JobFolders.create = create_another  # type: ignore[assignment,method-assign]


def _keep_the_clock_to_ourselves() -> None:
    """Only this process is to see a moved clock: none that it starts."""
    make = app.Server.__init__

    @functools.wraps(make)
    def with_less(self: app.Server, settings: Any, environ: Any, *args: Any, **more: Any) -> None:
        kept = {
            name: value
            for name, value in environ.items()
            if name != "LD_PRELOAD" and not name.startswith("FAKETIME")
        }
        make(self, settings, kept, *args, **more)

    app.Server.__init__ = with_less  # type: ignore[method-assign]


def main() -> int:
    """Serve, with faults."""
    control, switches = Path(sys.argv[1]), set(sys.argv[2:])
    if "--blind" in switches:
        _be_blind()
    if "--hasty" in switches:
        _be_hasty()
    _keep_the_clock_to_ourselves()
    Points(control).install(os.environ["OCPS_SCHEDULER"])
    return cli.main(["serve"])


if __name__ == "__main__":
    sys.exit(main())
