"""What only a real pool can show: people, bursts, refusals, and what is not followed by the log."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ocps_jobmanager.errors import LaunchRefusedError, SchedulerUnavailableError
from ocps_jobmanager.models import Resources
from ocps_jobmanager.schedulers.base import SchedulerJob, SchedulerStatus
from ocps_jobmanager.schedulers.condor_calls import Deadlines
from ocps_jobmanager.schedulers.htcondor import Timing
from ocps_jobmanager.times import utc_now
from tests.condor import by_hand
from tests.condor.pool import Pool, running_pool
from tests.condor.site import CondorSite
from tests.schedulers.contract import (
    GATED,
    assert_in_order,
    count_starts,
    is_started,
    let_go,
    until_true,
)

IDLE, RUNNING, HELD = SchedulerStatus.IDLE, SchedulerStatus.RUNNING, SchedulerStatus.HELD
COMPLETED, REMOVED = SchedulerStatus.COMPLETED, SchedulerStatus.REMOVED

FAST = Timing(
    query_interval=0.3,
    idle_interval=0.3,
    lost_after=2.0,
    settle=0.0,
    discard_interval=0.3,
    deadlines=Deadlines(query=5.0, act=5.0, submit=2.0, history=10.0),
)


@pytest.fixture
def site(tmp_path: Path, pool: Pool) -> Iterator[CondorSite]:
    site = CondorSite(tmp_path, pool, FAST)
    yield site
    site.close()


# Others at work -----------------------------------------------------------------------------------


def test_a_job_that_somebody_holds_and_releases(site: CondorSite, pool: Pool) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request(GATED + "exit 4")
            await server.scheduler.submit(request)
            await server.until(request, RUNNING)
            await until_true(lambda: is_started(request))
            await by_hand.act(pool, "Hold", request.job_id, "look at this first")
            held = await server.until(request, HELD)
            assert "look at this first" in (held.reason or "")
            assert (held.exit_code, held.exit_signal) == (None, None)
            told = len(server.of(request))
            await by_hand.act(pool, "Release", request.job_id)
            await let_go(request)
            done = await server.until(request, COMPLETED)
            assert (done.exit_code, done.num_starts) == (4, 2)
            seen = [job.status for job in server.of(request)[told:]]
            assert [status for status in seen if status is not SchedulerStatus.UNKNOWN] == [
                IDLE,
                RUNNING,
                COMPLETED,
            ]

    asyncio.run(scenario())


def test_a_job_that_somebody_removes(site: CondorSite, pool: Pool) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request(GATED)
            await server.scheduler.submit(request)
            await server.until(request, RUNNING)
            await by_hand.act(pool, "Remove", request.job_id, "it was in the way")
            removed = await server.until(request, REMOVED)
            assert "it was in the way" in (removed.reason or "")
            assert removed.reason_code is None
            assert IDLE not in [job.status for job in server.of(request)]

    asyncio.run(scenario())


def test_a_job_that_is_suspended_and_goes_on(site: CondorSite, pool: Pool) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request(GATED)
            await server.scheduler.submit(request)
            await server.until(request, RUNNING)
            await until_true(lambda: is_started(request))
            await by_hand.act(pool, "Suspend", request.job_id)
            await server.until(request, SchedulerStatus.SUSPENDED)
            await by_hand.act(pool, "Continue", request.job_id)
            await let_go(request)
            assert (await server.until(request, COMPLETED)).exit_code == 0
            assert await count_starts(request) == 1

    asyncio.run(scenario())


def test_a_job_that_loses_its_machine_runs_again_and_says_so(site: CondorSite, pool: Pool) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request(GATED)
            await server.scheduler.submit(request)
            await server.until(request, RUNNING)
            await until_true(lambda: is_started(request))
            await by_hand.act(pool, "VacateFast", request.job_id)
            await let_go(request)
            done = await server.until(request, COMPLETED)
            assert (done.exit_code, done.num_starts) == (0, 2)

    asyncio.run(scenario())


# Many, and refused ones ---------------------------------------------------------------------------


def test_a_burst_goes_in_few_calls_and_so_does_its_removal(site: CondorSite, pool: Pool) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            resources = await site.crowd(server)
            requests = [site.make_request("exit 0", resources=resources) for _ in range(100)]
            queued = await asyncio.gather(*(server.scheduler.submit(one) for one in requests))
            assert len({(job.cluster_id, job.proc_id) for job in queued}) == 100
            assert len({job.cluster_id for job in queued}) <= 2
            (ad,) = await by_hand.jobs(pool, requests[42].job_id)
            assert (ad["ClusterId"], ad["ProcId"]) == (queued[42].cluster_id, queued[42].proc_id)
            found = await asyncio.gather(
                *(server.scheduler.find(one.job_id, utc_now()) for one in requests)
            )
            assert [(job.cluster_id, job.proc_id) for job in found if job is not None] == [
                (job.cluster_id, job.proc_id) for job in queued
            ]
            await asyncio.gather(
                *(server.scheduler.remove(one.job_id, "Enough.", 1) for one in requests)
            )
            for one in requests:
                assert (await server.until(one, REMOVED)).reason == "Enough."

    asyncio.run(scenario())


def test_a_job_that_can_not_be_launched_does_not_take_others_along(site: CondorSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            requests = [site.make_request("exit 0") for _ in range(7)]
            nowhere = requests[2].initial_dir / "gone"
            requests[2] = replace(requests[2], initial_dir=nowhere)
            results = await asyncio.gather(
                *(server.scheduler.submit(one) for one in requests), return_exceptions=True
            )
            assert isinstance(results.pop(2), LaunchRefusedError)
            assert all(isinstance(result, SchedulerJob) for result in results)
            del requests[2]
            for one in requests:
                assert (await server.until(one, COMPLETED)).exit_code == 0

    asyncio.run(scenario())


def test_the_limits_and_the_rules_of_a_schedd(tmp_path: Path, pool: Pool) -> None:
    rules = {
        "MAX_JOBS_PER_OWNER": "2",
        "SUBMIT_REQUIREMENT_NAMES": "Small",
        "SUBMIT_REQUIREMENT_Small": "RequestMemory < 500",
        "SUBMIT_REQUIREMENT_Small_REASON": '"jobs must be small here"',
    }

    async def scenario(site: CondorSite) -> None:
        async with site.server() as server:
            resources = await site.crowd(server)
            large = site.make_request("exit 0", resources=replace(resources, memory_mb=600))
            with pytest.raises(LaunchRefusedError, match="jobs must be small here"):
                await server.scheduler.submit(large)
            requests = [site.make_request("exit 0", resources=resources) for _ in range(4)]
            results = await asyncio.gather(
                *(server.scheduler.submit(one) for one in requests), return_exceptions=True
            )
            refused = [isinstance(one, SchedulerUnavailableError) for one in results]
            assert sorted(refused) == [False, False, True, True]
            for one, is_refused in zip(requests, refused, strict=True):
                found = await server.scheduler.find(one.job_id, utc_now())
                assert (found is None) == is_refused
            assert server.scheduler.health().ok

    with running_pool(settings=rules) as strict:  # `pool`: where none can be had, skip
        site = CondorSite(tmp_path, strict, FAST)
        asyncio.run(scenario(site))
        site.close()


def test_no_value_brings_the_schedd_down(site: CondorSite, pool: Pool) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            before = pool.schedd_pid()
            environment = {"A": "$$(NoSuchThing)", "$$(B)": "$$([nothing])"}
            # More than fit at a time: it came down when a shadow took on a second job.
            resources = Resources(cpus=2)
            done = await asyncio.gather(
                *(
                    server.run(
                        site.make_request("exit 0", environment=environment, resources=resources)
                    )
                    for _ in range(9)
                )
            )
            assert {job.exit_code for job in done} == {0}
            assert pool.schedd_pid() == before

    asyncio.run(scenario())


# What is not told by the event log ----------------------------------------------------------------


def test_without_its_event_log_a_job_is_followed_by_asking(site: CondorSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request(GATED + "exit 5")
            await server.scheduler.submit(request)
            (log,) = (site.state / "condor").glob("events-*.log")
            log.chmod(0o400)
            await server.until(request, RUNNING)
            await let_go(request)
            done = await server.until(request, COMPLETED)
            assert done.exit_code == 5
            assert_in_order(server.of(request))
            assert not ended_in_log(site)

    asyncio.run(scenario())


def test_the_end_of_a_job_that_left_the_queue_is_in_the_history(
    site: CondorSite, pool: Pool
) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request("exit 6")
            job = await server.scheduler.submit(request)
            await server.until(request, COMPLETED)
        await by_hand.act(pool, "Remove", request.job_id)
        for path in (site.state / "condor").iterdir():
            path.unlink()
        async with site.server() as server:
            server.scheduler.track(request.job_id, job.cluster_id, job.proc_id)
            done = await server.until(request, COMPLETED)
            assert (done.exit_code, done.reason) == (6, None)

    asyncio.run(scenario())


def test_the_end_of_a_job_that_is_in_no_history_is_in_the_event_log(
    site: CondorSite, tmp_path: Path
) -> None:
    async def scenario() -> None:
        request = site.make_request(GATED + "exit 8")
        async with site.server() as server:
            job = await server.scheduler.submit(request)
            await server.until(request, RUNNING)
        await let_go(request)
        await until_true(lambda: asyncio.to_thread(ended_in_log, site))
        with running_pool() as another:  # as after a history that was rotated away
            elsewhere = CondorSite(tmp_path, another, FAST)
            async with elsewhere.server() as server:
                server.scheduler.track(request.job_id, job.cluster_id, job.proc_id)
                done = await server.until(request, COMPLETED)
                assert done.exit_code == 8
            elsewhere.close()

    asyncio.run(scenario())


def ended_in_log(site: CondorSite) -> bool:
    return any(
        "ULOG_JOB_TERMINATED" in log.read_text()
        for log in (site.state / "condor").glob("events-*.log")
    )


def test_a_job_that_nobody_knows_is_lost(site: CondorSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request("exit 0")
            server.scheduler.track(request.job_id, 999_999, 0)
            lost = await server.until(request, SchedulerStatus.LOST)
            assert (lost.cluster_id, lost.proc_id) == (999_999, 0)

    asyncio.run(scenario())


def test_places_in_the_logs_are_kept_and_logs_that_are_done_with_go(site: CondorSite) -> None:
    events = site.state / "condor"

    def all_is_read(*names: str) -> bool:
        sizes = {log.name: log.stat().st_size for log in events.glob("events-*.log")}
        places = events / "places.json"
        return (
            sizes.keys() == set(names)
            and places.exists()
            and json.loads(places.read_text()) == sizes
        )

    async def scenario() -> None:
        now = utc_now()
        site.clock = lambda: now - timedelta(days=1)
        async with site.server() as server:
            idle = site.make_request("exit 0", resources=await site.crowd(server))
            job = await server.scheduler.submit(idle)
        (yesterday,) = [log.name for log in events.glob("events-*.log")]
        (events / "events-20200101.log").touch()
        site.clock = lambda: now
        async with site.server() as server:
            server.scheduler.track(idle.job_id, job.cluster_id, job.proc_id)
            await server.run(site.make_request("exit 0"))
            today = f"events-{now:%Y%m%d}.log"
            await until_true(lambda: asyncio.to_thread(all_is_read, yesterday, today))
            await server.scheduler.remove(idle.job_id, "Enough.", 1)
            await server.until(idle, REMOVED)
            await until_true(lambda: asyncio.to_thread(all_is_read, today))

    asyncio.run(scenario())


# Children -----------------------------------------------------------------------------------------


def children_of(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def workers() -> list[int]:
    """The children of this process that talk to HTCondor."""
    return [
        pid
        for pid in children_of(os.getpid())
        if b"condor_worker.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_children_that_die_are_replaced(site: CondorSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request(GATED + "exit 7")
            await server.scheduler.submit(request)
            await server.until(request, RUNNING)
            for pid in workers():
                os.kill(pid, signal.SIGKILL)
            await let_go(request)
            assert (await server.until(request, COMPLETED)).exit_code == 7

            async def is_ok() -> bool:
                return server.scheduler.health().ok and len(workers()) == 2

            await until_true(is_ok, site.deadline_s)
        assert not workers()

    asyncio.run(scenario())
