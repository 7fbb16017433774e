"""The supervisor: one monitor for each job that waits, for as long as it waits, and no longer."""

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ocps_jobmanager import monitors
from ocps_jobmanager.monitors import MonitorSupervisor
from ocps_jobmanager.processes import Process, Spawner
from tests.callbacks import (
    DEADLINE_S,
    KEY,
    PATH,
    CallbackServer,
    children,
    command,
    descriptors,
    eventually,
    state,
)

PYTHON = Path(sys.executable)
NOWHERE = "http://127.0.0.1:1/"
#: Longer than a test may take: nothing happens because it is up.
NEVER_S = 3600.0


def new_id() -> str:
    return uuid.uuid4().hex


def run(body: Callable[[], Awaitable[Any]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(3 * DEADLINE_S):
            await body()

    asyncio.run(main())


@contextlib.asynccontextmanager
async def supervising(
    work_dir: Path, url: str = NOWHERE, **options: Any
) -> AsyncIterator[MonitorSupervisor]:
    """A supervisor; when it is closed there must be neither a monitor nor a zombie."""
    before = set(children(os.getpid()))
    spawner = options.pop("spawner", None) or Spawner(2)
    given = {"python": PYTHON, "poll_interval_s": NEVER_S, **options}
    supervisor = MonitorSupervisor(spawner=spawner, work_dir=work_dir, api_url=url, **given)
    try:
        yield supervisor
    finally:
        await supervisor.close()
        spawner.close()
        assert set(children(os.getpid())) <= before


def pids(job_id: str, parent: int | None = None) -> list[int]:
    """The monitors of a job."""
    return [pid for pid in children(parent or os.getpid()) if job_id in command(pid)]


async def running(job_id: str) -> int:
    """Wait until a job has a monitor, one; its pid."""
    await eventually(lambda: pids(job_id))
    (pid,) = pids(job_id)
    return pid


def proc(pid: int, name: str) -> str:
    return (Path("/proc") / str(pid) / name).read_bytes().decode()


# Starting --------------------------------------------------------------------------------------


def test_a_monitor_is_started_as_its_contract_says_and_its_key_is_not_to_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCPS_API_TOKENS", "secret")
    work_dir = tmp_path / "a work dir"
    work_dir.mkdir()
    job_id = new_id()

    async def body() -> None:
        async with supervising(work_dir) as supervisor:
            supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            pid = await running(job_id)
            assert command(pid) == [
                *(str(PYTHON), "-I", "-S", str(Path(monitors.__file__).with_name("monitor.py"))),
                *("--id", job_id, "--type", "ap", "--api_url", NOWHERE),
            ]
            environment = proc(pid, "environ").split("\0")
            assert {entry.partition("=")[0] for entry in environment if entry} == {"PATH", "LANG"}
            assert KEY not in proc(pid, "environ")
            assert (Path("/proc") / str(pid) / "cwd").resolve() == work_dir
            # Or a Ctrl-C at the terminal would end it before its server knows.
            assert os.getsid(pid) == pid

    run(body)


def test_the_data_of_a_job_lead_to_its_callback(tmp_path: Path) -> None:
    job_id = new_id()

    async def body() -> None:
        async with (
            CallbackServer(200).running() as server,
            supervising(tmp_path, server.url, poll_interval_s=0.02) as supervisor,
        ):
            supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            await running(job_id)
            (tmp_path / f"{job_id}.dat").touch()
            assert (await server.next_request()).uri == f"{PATH}?id={KEY}"

    run(body)


def test_watching_a_job_again_starts_no_second_monitor(tmp_path: Path) -> None:
    first, second = new_id(), new_id()

    async def body() -> None:
        async with supervising(tmp_path) as supervisor:
            for job_id in (first, first, second):
                supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            pid = await running(first)
            supervisor.watch(first, "ap", KEY, [f"{first}.dat"])
            await running(second)
            assert pids(first) == [pid]

    run(body)


def test_a_nudged_monitor_looks_at_once(tmp_path: Path) -> None:
    job_id = new_id()

    async def body() -> None:
        async with (
            CallbackServer(200).running() as server,
            supervising(tmp_path, server.url) as supervisor,
        ):
            supervisor.nudge(job_id)  # it is not watched: no error
            supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            supervisor.nudge(job_id)  # it does not run yet: no error
            pid = await running(job_id)
            await eventually(lambda: proc(pid, "wchan") and state(pid) == "S")
            (tmp_path / f"{job_id}.dat").touch()
            while server.requests.empty():
                supervisor.nudge(job_id)
                await asyncio.sleep(0.01)

    run(body)


def test_any_number_of_nudges_is_no_error(tmp_path: Path) -> None:
    job_id = new_id()

    async def body() -> None:
        async with supervising(tmp_path) as supervisor:
            supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            pid = await running(job_id)
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0)
            for _ in range(200_000):  # more than its pipe holds
                supervisor.nudge(job_id)
            os.kill(pid, signal.SIGCONT)

    run(body)


def test_a_first_line_longer_than_a_pipe_arrives_whole(tmp_path: Path) -> None:
    job_id = new_id()
    (tmp_path / f"{job_id}.dat").touch()

    async def body() -> None:
        async with (
            CallbackServer(200).running() as server,
            supervising(tmp_path, server.url) as supervisor,
        ):
            supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"] * 10_000)
            await server.next_request()

    run(body)


def test_monitors_are_started_a_few_at_a_time(tmp_path: Path) -> None:
    class CountingSpawner(Spawner):
        under_way = most = 0

        async def start(self, argv: Sequence[str | Path], **options: Any) -> Process:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            try:
                return await super().start(argv, **options)
            finally:
                self.under_way -= 1

    jobs = [new_id() for _ in range(12)]

    async def body() -> None:
        spawner = CountingSpawner(8)
        async with supervising(tmp_path, spawner=spawner, at_a_time=3) as supervisor:
            for job_id in jobs:
                supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            for job_id in jobs:
                await running(job_id)
            assert spawner.most == 3

    run(body)


# Restarting ------------------------------------------------------------------------------------


def test_a_monitor_that_was_killed_is_replaced_and_leaves_no_zombie(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = new_id()

    async def body() -> None:
        async with supervising(tmp_path) as supervisor:
            supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            pid = await running(job_id)
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: state(pid) == "")
            assert await running(job_id) != pid
            assert supervisor.health().ok

    run(body)
    assert f'The monitor of job "{job_id}" ended with signal 9.' in caplog.text
    assert KEY not in caplog.text


def test_a_monitor_that_has_called_back_is_replaced_only_if_its_job_still_waits(
    tmp_path: Path,
) -> None:
    waits, launched = new_id(), new_id()
    for job_id in (waits, launched):
        (tmp_path / f"{job_id}.dat").touch()

    async def body() -> None:
        async with (
            CallbackServer(404).running() as server,
            supervising(tmp_path, server.url) as supervisor,
        ):
            supervisor.watch(launched, "ap", "b" * 32, [f"{launched}.dat"])
            assert (await server.next_request()).uri == f"{PATH}?id={'b' * 32}"
            supervisor.unwatch(launched, called_back=True)
            supervisor.watch(waits, "ap", "a" * 32, [f"{waits}.dat"])
            for _ in range(2):
                assert (await server.next_request()).uri == f"{PATH}?id={'a' * 32}"
            assert pids(launched) == []

    run(body)


def test_the_pauses_between_restarts_double_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = new_id()
    starts: list[float] = []

    class StartTimes(Spawner):
        async def start(self, argv: Sequence[str | Path], **options: Any) -> Process:
            starts.append(asyncio.get_running_loop().time())
            return await super().start(argv, **options)

    monkeypatch.setattr(monitors, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(monitors, "LONGEST_PAUSE_S", 0.4)

    async def body() -> None:
        options = {"spawner": StartTimes(2), "python": Path("/bin/false")}
        async with supervising(tmp_path, **options) as supervisor:
            supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            await eventually(lambda: len(starts) == 5)
        gaps = [later - earlier for earlier, later in pairwise(starts)]
        for gap, at_least in zip(gaps, (0.1, 0.2, 0.4, 0.4), strict=True):
            assert gap >= 0.9 * at_least

    run(body)


def test_a_monitor_that_had_run_well_is_replaced_after_the_first_pause_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = new_id()
    monkeypatch.setattr(monitors, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(monitors, "SETTLED_S", 0)  # every run is a good one

    async def body() -> None:
        async with supervising(tmp_path) as supervisor:
            supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            for _ in range(3):
                pid = await running(job_id)
                os.kill(pid, signal.SIGKILL)
                await eventually(lambda pid=pid: state(pid) == "")

    run(body)
    assert caplog.text.count("It is started again in 0.05 s.") == 3


# Ending ----------------------------------------------------------------------------------------


def test_a_job_that_waits_no_more_has_no_monitor(tmp_path: Path) -> None:
    job_id, other = new_id(), new_id()

    async def body() -> None:
        async with supervising(tmp_path) as supervisor:
            for watched in (job_id, other):
                supervisor.watch(watched, "ap", KEY, [f"{watched}.dat"])
            pid, kept = await running(job_id), await running(other)
            supervisor.unwatch(job_id)
            supervisor.unwatch(job_id)  # a repeat is no error
            supervisor.unwatch(new_id())  # nor one that never was
            await eventually(lambda: state(pid) == "")
            assert pids(other) == [kept]

    run(body)


def test_a_job_that_waits_no_more_before_its_monitor_was_started_gets_none(tmp_path: Path) -> None:
    jobs = [new_id() for _ in range(6)]

    async def body() -> None:
        async with supervising(tmp_path, at_a_time=1) as supervisor:
            for job_id in jobs:
                supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            await asyncio.sleep(0)  # the first is being started, the others wait their turn
            for job_id in jobs:
                supervisor.unwatch(job_id)
            last = new_id()
            supervisor.watch(last, "ap", KEY, [f"{last}.dat"])
            await running(last)
            await eventually(lambda: not any(pids(job_id) for job_id in jobs))

    run(body)


def test_a_monitor_whose_callback_is_being_answered_may_read_the_answer(tmp_path: Path) -> None:
    job_id = new_id()
    (tmp_path / f"{job_id}.dat").touch()

    async def body() -> None:
        script = CallbackServer(200)
        script.answer_when.clear()
        async with script.running() as server, supervising(tmp_path, server.url) as supervisor:
            supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            await server.next_request()
            pid = await running(job_id)
            supervisor.unwatch(job_id, called_back=True)
            for _ in range(10):
                await asyncio.sleep(0.01)
            assert state(pid) not in {"", "Z"}
            script.answer_when.set()
            await eventually(lambda: state(pid) == "")
            assert not script.hung_up.is_set()

    run(body)


def test_a_monitor_that_does_not_go_by_itself_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitors, "FAREWELL_S", 0.1)
    monkeypatch.setattr(monitors, "GRACE_S", 0.1)
    job_id = new_id()

    async def body() -> None:
        async with supervising(tmp_path) as supervisor:
            supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            pid = await running(job_id)
            os.kill(pid, signal.SIGSTOP)  # it heeds neither end-of-file nor SIGTERM
            supervisor.unwatch(job_id, called_back=True)
            await eventually(lambda: state(pid) == "")

    run(body)


def test_close_ends_all_monitors_and_none_is_started_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitors, "GRACE_S", 0.2)
    up, starting = [new_id() for _ in range(3)], [new_id() for _ in range(3)]

    async def body() -> None:
        async with supervising(tmp_path) as supervisor:
            for job_id in up:
                supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            started = [await running(job_id) for job_id in up]
            os.kill(started[0], signal.SIGSTOP)
            for job_id in starting:
                supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            await supervisor.close()
            supervisor.watch(new_id(), "ap", KEY, ["a.dat"])
            assert not [task for task in asyncio.all_tasks() if "monitor" in task.get_name()]
            supervisor.unwatch(up[0])
            supervisor.nudge(up[0])
            await supervisor.close()
            assert [state(pid) for pid in started] == ["", "", ""]

    run(body)


def test_a_server_that_is_killed_leaves_no_monitor(tmp_path: Path) -> None:
    script = """if True:
        import asyncio, sys
        from pathlib import Path
        from ocps_jobmanager.monitors import MonitorSupervisor
        from ocps_jobmanager.processes import Spawner

        async def main():
            supervisor = MonitorSupervisor(
                spawner=Spawner(2), python=Path(sys.executable), work_dir=Path.cwd(),
                api_url="http://127.0.0.1:1/", poll_interval_s=3600)
            for job_id in sys.argv[1:]:
                supervisor.watch(job_id, "ap", "0" * 32, [f"{job_id}.dat"])
            await asyncio.sleep(3600)

        asyncio.run(main())
    """
    jobs = [new_id() for _ in range(3)]
    (tmp_path / f"{jobs[2]}.dat").touch()  # this one is busy with a callback that is refused

    async def body() -> None:
        spawner = Spawner(1)
        root = Path(monitors.__file__).parents[1]
        server = await spawner.start(
            [PYTHON, "-c", script, *jobs], cwd=tmp_path, env={"PYTHONPATH": str(root)}
        )
        await eventually(lambda: all(pids(job_id, server.pid) for job_id in jobs))
        started = [pid for job_id in jobs for pid in pids(job_id, server.pid)]
        assert len(started) == 3
        server.send_signal(signal.SIGKILL)
        await server.exited
        # Nobody may be there to reap them.
        await eventually(lambda: all(state(pid) in {"", "Z"} for pid in started))
        spawner.close()

    run(body)


def test_monitors_that_have_ended_leave_no_descriptor_open(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervising(tmp_path) as supervisor:

            async def one() -> None:
                job_id = new_id()
                supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
                await running(job_id)
                supervisor.unwatch(job_id)
                await eventually(lambda: not pids(job_id))

            await one()
            before = descriptors("self")
            await asyncio.gather(*(one() for _ in range(5)))
            await eventually(lambda: descriptors("self") <= before)

    run(body)


# Health ----------------------------------------------------------------------------------------


class Clock:
    """Tells whatever time it is set to."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


def test_monitors_that_cannot_be_started_are_reported_until_they_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitors, "FIRST_PAUSE_S", 0.05)
    clock = Clock()
    began = clock.now
    python = tmp_path / "python"
    jobs = [new_id(), new_id()]

    async def body() -> None:
        async with supervising(tmp_path, python=python, clock=clock) as supervisor:
            assert supervisor.health().ok
            assert supervisor.health().since == began
            failed = clock.advance()
            for job_id in jobs:
                supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            await eventually(lambda: not supervisor.health().ok)
            health = supervisor.health()
            assert health.detail == "Monitors can't be started: No such file or directory."
            clock.advance()
            await asyncio.sleep(0.2)  # it fails again, and more than once
            assert supervisor.health().since == failed
            mended = clock.advance()
            python.symlink_to(PYTHON)
            await eventually(lambda: supervisor.health().ok)
            assert supervisor.health().since == mended
            for job_id in jobs:
                await running(job_id)

    run(body)
    assert caplog.text.count("Monitors can't be started") == 1


def test_where_nothing_is_to_be_started_nothing_is_out_of_order(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervising(tmp_path, python=tmp_path / "python") as supervisor:
            job_id = new_id()
            supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            await eventually(lambda: not supervisor.health().ok)
            supervisor.unwatch(job_id)
            assert supervisor.health().ok

    run(body)


def test_monitors_that_end_as_soon_as_they_are_started_are_reported(tmp_path: Path) -> None:
    job_id = new_id()

    async def body() -> None:
        async with supervising(tmp_path, python=Path("/bin/false")) as supervisor:
            supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            await eventually(lambda: not supervisor.health().ok)
            assert supervisor.health().detail == "Monitors end as soon as they are started."
            supervisor.unwatch(job_id)
            assert supervisor.health().ok

    run(body)


def test_a_monitor_that_has_settled_is_in_order_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitors, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(monitors, "SETTLED_S", 0.2)
    python = tmp_path / "python"
    python.symlink_to("/bin/false")
    job_id = new_id()

    async def body() -> None:
        async with supervising(tmp_path, python=python) as supervisor:
            supervisor.watch(job_id, "ap", KEY, [f"{job_id}.dat"])
            await eventually(lambda: not supervisor.health().ok)
            python.unlink()
            python.symlink_to(PYTHON)
            await eventually(lambda: supervisor.health().ok)
            await running(job_id)

    run(body)


def test_a_callback_url_that_leads_nowhere_is_reported(tmp_path: Path) -> None:
    async def body() -> None:
        clock = Clock()
        async with supervising(tmp_path, clock=clock) as supervisor:
            failed = clock.advance()
            supervisor.report_callback_url(False, "Monitors can't reach this server.")
            assert not supervisor.health().ok
            assert supervisor.health().since == failed
            assert supervisor.health().detail == "Monitors can't reach this server."
            mended = clock.advance()
            supervisor.report_callback_url(True, "")
            assert supervisor.health().ok
            assert supervisor.health().since == mended

    run(body)
