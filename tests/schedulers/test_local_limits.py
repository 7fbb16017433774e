"""Limits on this machine: what the launcher does alone, and what is seen of it afterwards."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocps_jobmanager.models import Limits
from ocps_jobmanager.schedulers import local_folders
from ocps_jobmanager.schedulers.base import RAN_TOO_LONG, LaunchRequest, SchedulerStatus
from ocps_jobmanager.schedulers.local_launcher import AGAIN, JOB, STARTED
from tests.schedulers.contract import (
    GATED,
    count_starts,
    is_gone,
    is_started,
    let_go,
    log_events,
    until_true,
)
from tests.schedulers.local_site import LocalSite

#: Each run but the last waits for a file of its own.
COUNTED = (
    "echo x >> ledger; n=$(wc -l < ledger); exec 9> alive; flock 9\n"
    "until [ -e go$n ]; do sleep 0.05; done; exit $((40 + n))\n"
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LocalSite]:
    site = LocalSite(tmp_path)
    yield site
    site.close()


async def go(request: LaunchRequest, number: int) -> None:
    await asyncio.to_thread((request.initial_dir / f"go{number}").touch)


async def run_number(request: LaunchRequest, number: int) -> None:
    """Wait until this run of the script has begun."""

    async def has_begun() -> bool:
        return await count_starts(request) == number

    await until_true(has_begun)


def make_obstacle(site: LocalSite, request: LaunchRequest) -> Path:
    """Keep a job's launcher from writing that it runs the script again, as a full disk does."""
    folder = site.state / request.job_id
    obstacle = folder / f"{AGAIN}.{json.loads((folder / STARTED).read_text())['pid']}"
    obstacle.mkdir()
    return obstacle


def end_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have launchers end their jobs at the limit itself: no server is to be first here."""
    monkeypatch.setattr(local_folders, "BACKSTOP_S", 0)


@pytest.mark.parametrize("trap", ["", "trap 'exit 0' TERM\n"])
def test_without_a_server_the_launcher_ends_what_runs_too_long(
    site: LocalSite, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    end_soon(monkeypatch)

    async def scenario() -> None:
        limits = Limits(max_run_time_s=1, max_retries=5)
        request = site.make_request(trap + GATED, limits=limits)
        async with site.server() as server:
            await server.scheduler.submit(request)
            await until_true(lambda: is_started(request))
        await until_true(lambda: is_gone(request))
        async with site.server() as server:
            server.scheduler.track(request.job_id, 1, 0)
            removed = await server.until(request, SchedulerStatus.REMOVED)
            assert removed.reason_code == RAN_TOO_LONG
            assert removed.time_completed is not None
        assert await count_starts(request) == 1
        assert await log_events(request, "009")

    asyncio.run(scenario())


def test_each_run_has_the_whole_time(site: LocalSite, monkeypatch: pytest.MonkeyPatch) -> None:
    end_soon(monkeypatch)

    async def scenario() -> None:
        limits = Limits(max_run_time_s=2, max_retries=2)
        script = "echo x >> ledger; sleep 0.8; [ $(wc -l < ledger) = 3 ]"
        async with site.server() as server:
            done = await server.run(site.make_request(script, limits=limits))
            assert (done.exit_code, done.num_starts) == (0, 3)

    asyncio.run(scenario())


def test_the_server_s_own_removal_is_told_as_such(
    site: LocalSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_soon(monkeypatch)

    async def scenario() -> None:
        site.grace_s = 1000
        async with site.server() as server:
            request = site.make_request(
                "trap '' TERM\n" + GATED, limits=Limits(max_run_time_s=1, max_retries=3)
            )
            await server.scheduler.submit(request)
            await until_true(lambda: is_started(request))
            await server.scheduler.remove(request.job_id, "Enough.", 7)
            await let_go(request)
            removed = await server.until(request, SchedulerStatus.REMOVED)
            assert (removed.reason, removed.reason_code) == ("Enough.", 7)
        assert await count_starts(request) == 1

    asyncio.run(scenario())


def test_a_machine_that_stops_in_a_later_run_has_broken_the_job(site: LocalSite) -> None:
    async def scenario() -> None:
        request = site.make_request(COUNTED, limits=Limits(max_retries=9))
        async with site.server() as server:
            await server.scheduler.submit(request)
            await run_number(request, 1)
            await go(request, 1)
            await run_number(request, 2)
        site.stop_machine()
        await until_true(lambda: is_gone(request))
        async with site.server() as server:
            server.scheduler.track(request.job_id, 1, 0)
            broken = await server.until(request, SchedulerStatus.BROKEN)
            assert broken.num_starts == 2
            assert "not run again" in (broken.reason or "")
        assert await count_starts(request) == 2

    asyncio.run(scenario())


def test_a_wish_between_two_runs_is_seen_before_the_next(site: LocalSite) -> None:
    """A full disk holds the launcher up there; nothing is run again once it goes on."""

    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request(COUNTED, limits=Limits(max_retries=9))
            await server.scheduler.submit(request)
            await run_number(request, 1)
            obstacle = make_obstacle(site, request)
            await go(request, 1)
            await until_true(lambda: is_gone(request))
            await server.scheduler.remove(request.job_id, "Enough.", 7)
            obstacle.rmdir()
            removed = await server.until(request, SchedulerStatus.REMOVED)
            assert (removed.reason_code, removed.num_starts) == (7, 1)
        assert await count_starts(request) == 1
        assert [number for number, _ in await log_events(request, "009")] == [
            *("000", "001", "004", "009"),
        ]

    asyncio.run(scenario())


def test_what_a_run_leaves_behind_is_ended_before_the_next(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            script = (
                "echo x >> ledger\n"
                "exec 9> alive; flock -n 9 || exit 77\n"  # somebody of the last run is alive
                "sleep 1000 & [ $(wc -l < ledger) = 3 ]"
            )
            request = site.make_request(script, limits=Limits(max_retries=2))
            done = await server.run(request)
            assert (done.exit_code, done.num_starts) == (0, 3)

    asyncio.run(scenario())


def test_the_peak_of_memory_is_that_of_all_runs(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            script = (
                "echo x >> ledger; [ $(wc -l < ledger) = 2 ] && exit 0\n"
                "x=$(head -c 60000000 /dev/zero | tr '\\0' x); exit 1"
            )
            request = site.make_request(script, limits=Limits(max_retries=1))
            done = await server.run(request)
            assert (done.exit_code, done.num_starts) == (0, 2)
            assert (done.memory_mb or 0) > 50

    asyncio.run(scenario())


def test_a_script_that_can_not_be_run_again_says_so(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            script = 'echo x >> ledger; rm -f "$0"; exit 3'
            request = site.make_request(script, limits=Limits(max_retries=2))
            await server.scheduler.submit(request)
            broken = await server.until(request, SchedulerStatus.BROKEN)
            assert (broken.reason or "").startswith("The job was not run again: the script")
            assert broken.num_starts == 1

    asyncio.run(scenario())


def test_only_one_launcher_runs_it_however_often_it_may_be_run(site: LocalSite) -> None:
    """A launcher that is killed between two runs leaves a job that is broken, not one to run."""

    async def scenario() -> None:
        request = site.make_request(COUNTED, limits=Limits(max_retries=9))
        async with site.server() as server:
            await server.scheduler.submit(request)
            await run_number(request, 1)
            obstacle = make_obstacle(site, request)
            await go(request, 1)
            await until_true(lambda: is_gone(request))
            os.kill(int(obstacle.suffix[1:]), signal.SIGKILL)
            broken = await server.until(request, SchedulerStatus.BROKEN)
            assert broken.num_starts == 1
        assert await count_starts(request) == 1

    asyncio.run(scenario())


def test_a_job_of_an_earlier_release_has_no_limits(site: LocalSite) -> None:
    async def scenario() -> None:
        request = site.make_request("echo x >> ledger; exit 3")
        async with site.server() as server:
            crowd = await site.crowd(server)
            await server.scheduler.submit(request)
            path = site.state / request.job_id / JOB
            record = json.loads(path.read_text())
            del record["max_retries"], record["end_after_s"]
            path.write_text(json.dumps(record))
            assert crowd is not None
        site.stop_machine()
        async with site.server() as server:
            done = await server.until_found(request, SchedulerStatus.COMPLETED)
            assert (done.exit_code, done.num_starts) == (3, 1)

    asyncio.run(scenario())


def test_the_user_log_has_every_run_once(site: LocalSite) -> None:
    htcondor2 = pytest.importorskip("htcondor2")

    async def scenario() -> LaunchRequest:
        script = "echo x >> ledger; [ $(wc -l < ledger) = 2 ] && kill -KILL $$; exit 5"
        async with site.server() as server:
            request = site.make_request(script, limits=Limits(max_retries=2))
            await server.run(request)
        for _ in range(2):
            async with site.server() as server:
                await server.until_found(request, SchedulerStatus.COMPLETED)
        return request

    events = list(htcondor2.JobEventLog(str(asyncio.run(scenario()).log)).events(0))
    kind = htcondor2.JobEventType
    assert [event.type for event in events] == [
        kind.SUBMIT,
        *(kind.EXECUTE, kind.JOB_EVICTED) * 2,
        *(kind.EXECUTE, kind.JOB_TERMINATED),
    ]
    first, second = (event for event in events if event.type == kind.JOB_EVICTED)
    assert first["TerminatedAndRequeued"] is True
    assert first["ReturnValue"] == 5
    assert second["TerminatedBySignal"] == 9
    assert events[-1]["ReturnValue"] == 5
