"""Child processes: what is started is watched, reaped and ended, and takes nothing along."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ocps_jobmanager.processes import Process, Spawner
from tests.callbacks import DEADLINE_S, children, descriptors, eventually, state

ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


@contextlib.asynccontextmanager
async def spawning(at_a_time: int = 2) -> AsyncIterator[Spawner]:
    spawner = Spawner(at_a_time)
    try:
        yield spawner
    finally:
        spawner.close()


def run(body: Callable[[Spawner], Awaitable[Any]], at_a_time: int = 2) -> Any:
    async def main() -> Any:
        async with spawning(at_a_time) as spawner, asyncio.timeout(2 * DEADLINE_S):
            return await body(spawner)

    return asyncio.run(main())


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9)])
def test_a_process_reports_how_it_ended_and_leaves_no_zombie(script: str, code: int) -> None:
    async def body(spawner: Spawner) -> None:
        process = await spawner.start(["sh", "-c", script], env=ENV)
        assert await process.exited == code
        assert state(process.pid) == ""

    run(body)


def test_a_process_has_the_environment_and_the_directory_it_was_given(tmp_path: Path) -> None:
    async def body(spawner: Spawner) -> None:
        process = await spawner.start(
            ["sh", "-c", "env > env; pwd -P > pwd"], env={"A": "b c"}, cwd=tmp_path
        )
        assert await process.exited == 0

    run(body)
    assert "A=b c" in (tmp_path / "env").read_text().splitlines()
    assert not {"PATH", "HOME"} & {
        line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()
    }
    assert (tmp_path / "pwd").read_text().strip() == str(tmp_path.resolve())


def test_what_is_written_to_a_process_comes_back_and_its_input_ends(tmp_path: Path) -> None:
    async def body(spawner: Spawner) -> None:
        process = await spawner.start(
            ["sh", "-c", "cat > copy"], env=ENV, cwd=tmp_path, stdin=subprocess.PIPE
        )
        os.write(process.stdin_fd, b"hello")
        process.close_stdin()
        assert await process.exited == 0

    run(body)
    assert (tmp_path / "copy").read_text() == "hello"


def test_a_process_inherits_no_descriptor_of_another() -> None:
    async def body(spawner: Spawner) -> None:
        first = await spawner.start(["cat"], env=ENV, stdin=subprocess.PIPE)
        second = await spawner.start(["cat"], env=ENV, stdin=subprocess.PIPE)
        await eventually(lambda: descriptors(second.pid) <= {"0", "1", "2"})
        first.close_stdin()  # would not end it if the second one had it, too
        assert await first.exited == 0
        await second.end(DEADLINE_S)

    run(body)


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    async def body(spawner: Spawner) -> None:
        script = "trap '' TERM; echo ready; while :; do sleep 1; done"
        process = await spawner.start(["sh", "-c", script], env=ENV, stdout=subprocess.PIPE)
        await eventually(lambda: _read(process))
        assert await process.end(0.1) == -signal.SIGKILL

    run(body)


def test_a_process_that_heeds_sigterm_is_not_killed() -> None:
    async def body(spawner: Spawner) -> None:
        process = await spawner.start(["sleep", "1000"], env=ENV)
        assert await process.end(DEADLINE_S) == -signal.SIGTERM
        assert await process.end(DEADLINE_S) == -signal.SIGTERM  # a repeat is no error
        process.send_signal(signal.SIGTERM)

    run(body)


def test_a_program_that_is_not_there_is_an_error_and_leaves_nothing() -> None:
    async def body(spawner: Spawner) -> None:
        before = set(children(os.getpid()))
        with pytest.raises(FileNotFoundError):
            await spawner.start(["/no/such/program"], env=ENV)
        assert set(children(os.getpid())) == before

    run(body)


def test_a_start_that_is_cancelled_leaves_no_process() -> None:
    async def body(spawner: Spawner) -> None:
        before = set(children(os.getpid()))
        starts = [asyncio.create_task(spawner.start(["sleep", "1000"], env=ENV)) for _ in range(5)]
        await asyncio.sleep(0)  # they are handed to the threads: one at work, four in the queue
        for start in starts:
            start.cancel()
        assert all(
            isinstance(result, asyncio.CancelledError)
            for result in await asyncio.gather(*starts, return_exceptions=True)
        )
        assert set(children(os.getpid())) == before

    run(body, at_a_time=1)


def test_a_process_that_cannot_be_watched_is_an_error_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_descriptors(pid: int) -> int:
        raise OSError(24, os.strerror(24))

    async def body(spawner: Spawner) -> None:
        before = set(children(os.getpid()))
        monkeypatch.setattr(os, "pidfd_open", no_descriptors)
        with pytest.raises(OSError, match=os.strerror(24)):
            await spawner.start(["sleep", "1000"], env=ENV, stdin=subprocess.PIPE)
        assert set(children(os.getpid())) == before

    run(body)


def test_processes_that_have_ended_leave_no_descriptor_open() -> None:
    async def body(spawner: Spawner) -> None:
        async def one() -> None:
            process = await spawner.start(
                ["true"], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            await process.exited

        await one()
        before = len(descriptors("self"))
        await asyncio.gather(*(one() for _ in range(10)))
        assert len(descriptors("self")) == before

    run(body)


def test_a_process_that_is_abandoned_goes_on() -> None:
    async def body(spawner: Spawner) -> int:
        process = await spawner.start(["sleep", "1000"], env=ENV, new_session=True)
        process.abandon()
        assert process.exited.cancelled()
        return process.pid

    pid = run(body)
    try:
        assert state(pid) in {"R", "S"}
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _read(process: Process) -> bytes:
    try:
        return os.read(process.stdout_fd, 100)
    except BlockingIOError:
        return b""
