"""Every job ends, on a real pool: retries, the backstop of a dead server, holds, lost jobs."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocps_jobmanager.models import Limits
from ocps_jobmanager.schedulers import submit
from ocps_jobmanager.schedulers.base import (
    BACKSTOP_S,
    HELD_TOO_LONG,
    RAN_TOO_LONG,
    LaunchRequest,
    SchedulerStatus,
)
from tests.condor import by_hand
from tests.condor.pool import Pool, running_pool
from tests.condor.site import CondorSite
from tests.condor.test_htcondor import FAST
from tests.schedulers.contract import GATED, Server, is_started, until_true

RUNNING, HELD, REMOVED = SchedulerStatus.RUNNING, SchedulerStatus.HELD, SchedulerStatus.REMOVED


@pytest.fixture
def site(tmp_path: Path, pool: Pool) -> Iterator[CondorSite]:
    site = CondorSite(tmp_path, pool, FAST)
    yield site
    site.close()


def test_jobs_with_different_limits_go_in_one_call(site: CondorSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            failing = "echo x >> ledger; exit $((40 + $(wc -l < ledger)))"
            requests = [
                site.make_request(failing, limits=Limits(max_retries=retries, max_run_time_s=limit))
                for retries, limit in ((0, None), (2, 3600), (1, 60), (0, 60))
            ]
            queued = await asyncio.gather(*(server.scheduler.submit(one) for one in requests))
            assert len({job.cluster_id for job in queued}) == 1
            for request in requests:
                done = await server.until(request, SchedulerStatus.COMPLETED)
                starts = 1 + request.limits.max_retries
                assert (done.exit_code, done.num_starts) == (40 + starts, starts)

    asyncio.run(scenario())


def test_without_a_server_the_schedd_ends_what_is_past_its_limits(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limits, and every second; in life it is two minutes later, and every minute."""
    at_once = str(submit._BACKSTOP["periodic_remove"]).replace(f"+ {BACKSTOP_S}", "+ 0")
    assert str(BACKSTOP_S) not in at_once
    monkeypatch.setitem(submit._BACKSTOP, "periodic_remove", at_once)

    async def gone(another: Pool, *requests: LaunchRequest) -> bool:
        ads = await by_hand.jobs(another, *(request.job_id for request in requests))
        return {ad["JobStatus"] for ad in ads} == {3}

    async def scenario(site: CondorSite) -> None:
        # The first is ended although it could be run again.
        long = site.make_request(GATED, limits=Limits(max_run_time_s=1, max_retries=3))
        held = site.make_request(GATED, limits=Limits(hold_limit_s=1))
        free = site.make_request(GATED)
        requests = (long, held, free)
        async with site.server() as server:
            jobs = [await server.scheduler.submit(request) for request in requests]
            for request in (held, free):
                await server.until(request, RUNNING)
            await until_true(lambda: is_started(free))
            await by_hand.act(site.pool, "Hold", held.job_id, "look at this first")
        await until_true(lambda: gone(site.pool, long, held))
        async with site.server() as server:
            for request, job in zip(requests, jobs, strict=True):
                server.scheduler.track(request.job_id, job.cluster_id, job.proc_id)
            assert (await server.until(long, REMOVED)).reason_code == RAN_TOO_LONG
            assert (await server.until(held, REMOVED)).reason_code == HELD_TOO_LONG
            await server.until(free, RUNNING)
        # The history says the same as the event log.
        for path in (site.state / "condor").iterdir():
            path.unlink()
        async with site.server() as server:
            assert (await server.until_found(long, REMOVED)).reason_code == RAN_TOO_LONG
            assert (await server.until_found(held, REMOVED)).reason_code == HELD_TOO_LONG

    with running_pool(settings={"PERIODIC_EXPR_INTERVAL": "1"}) as quick:
        site = CondorSite(tmp_path, quick, FAST)
        asyncio.run(scenario(site))
        site.close()


def test_a_job_within_its_limits_is_left_alone_and_so_is_one_without(
    tmp_path: Path, pool: Pool
) -> None:
    """Also by an expression that is undefined where there is no limit."""

    async def scenario(site: CondorSite) -> None:
        async with site.server() as server:
            limits = (Limits(), Limits(max_run_time_s=1), Limits(hold_limit_s=1))
            requests = [site.make_request(GATED, limits=one) for one in limits]
            for request in requests:
                await server.scheduler.submit(request)
            for request in requests:
                await server.until(request, RUNNING)
            idle = site.make_request(
                "exit 0", resources=await site.crowd(server), limits=Limits(max_run_time_s=1)
            )
            await server.scheduler.submit(idle)
            # As long as several looks of the schedd at its expressions take.
            for _ in range(3):
                await full_look(server, site)
            for request in (*requests, idle):
                found = await server.until_found(
                    request, RUNNING if request is not idle else SchedulerStatus.IDLE
                )
                assert found.reason is None

    async def full_look(server: Server, site: CondorSite) -> None:
        """Until the schedd has ended a job for an expression of its own."""
        probe = site.make_request("exit 0", resources=await site.crowd(server))
        await server.scheduler.submit(probe)
        await by_hand.edit(site.pool, probe.job_id, "PeriodicRemove", "true")
        await server.until(probe, REMOVED)

    with running_pool(settings={"PERIODIC_EXPR_INTERVAL": "1"}) as quick:
        site = CondorSite(tmp_path, quick, FAST)
        asyncio.run(scenario(site))
        site.close()


def test_a_job_that_the_schedd_has_lost_is_told_as_lost(site: CondorSite, pool: Pool) -> None:
    """Taken out by force and its history rotated away; or the spool directory was lost."""

    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request("exit 0", resources=await site.crowd(server))
            job = await server.scheduler.submit(request)
            other = site.make_request(GATED)
            kept = await server.scheduler.submit(other)
            await server.until(other, RUNNING)
        await by_hand.act(pool, "Remove", request.job_id)
        await by_hand.act(pool, "RemoveX", request.job_id)

        def forget() -> None:
            for path in (site.state / "condor").iterdir():
                path.unlink()
            history = pool.directory / "spool" / "history"
            os.truncate(history, 0)

        async def is_forgotten() -> bool:
            return not await by_hand.jobs(pool, request.job_id)

        async def is_in_history() -> bool:
            return [ad["JobStatus"] for ad in await by_hand.jobs(pool, request.job_id)] == [3]

        await until_true(is_in_history)
        await asyncio.to_thread(forget)
        await until_true(is_forgotten)
        async with site.server() as server:
            server.scheduler.track(request.job_id, job.cluster_id, job.proc_id)
            server.scheduler.track(other.job_id, kept.cluster_id, kept.proc_id)
            lost = await server.until(request, SchedulerStatus.LOST)
            assert (lost.cluster_id, lost.proc_id) == (job.cluster_id, job.proc_id)
            await server.until(other, RUNNING)
            assert await server.scheduler.find(request.job_id, site.clock()) is None
            await server.scheduler.remove(request.job_id, "It is lost.", 7)
            await server.scheduler.remove(other.job_id, "Enough.", 7)
            await server.until(other, REMOVED)

    asyncio.run(scenario())
