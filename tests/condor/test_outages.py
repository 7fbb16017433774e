"""The schedd stops, hangs and dies, and so do servers: no job is lost, and none is queued twice."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ocps_jobmanager.errors import SchedulerUnavailableError
from ocps_jobmanager.locks import try_lock
from ocps_jobmanager.schedulers.base import LaunchRequest, SchedulerStatus
from ocps_jobmanager.schedulers.condor_calls import Deadlines
from ocps_jobmanager.schedulers.htcondor import Timing
from ocps_jobmanager.times import utc_now
from tests.condor import by_hand
from tests.condor.pool import PROJECT, Pool
from tests.condor.site import CondorSite
from tests.condor.test_htcondor import FAST, children_of, workers
from tests.schedulers.contract import GATED, Server, count_starts, let_go, until_true

RUNNING = SchedulerStatus.RUNNING
COMPLETED, REMOVED = SchedulerStatus.COMPLETED, SchedulerStatus.REMOVED


@pytest.fixture
def site(tmp_path: Path, pool: Pool) -> Iterator[CondorSite]:
    deadlines = Deadlines(query=2.0, act=2.0, submit=2.0, history=10.0)
    site = CondorSite(tmp_path, pool, replace(FAST, deadlines=deadlines))
    yield site
    site.close()


@asynccontextmanager
async def stopped_schedd(pool: Pool) -> AsyncIterator[None]:
    """Freeze the schedd for a while."""
    pool.stop_schedd()
    try:
        yield
    finally:
        pool.continue_schedd()


async def hand_over(server: Server, requests: list[LaunchRequest], since_s: float = 60) -> None:
    """What the Job Manager does with jobs of which it can't tell whether they are queued."""
    after = utc_now() - timedelta(seconds=since_s)
    left = requests
    async with asyncio.timeout(60):
        while left:
            found = await asyncio.gather(
                *(server.scheduler.find(one.job_id, after) for one in left),
                return_exceptions=True,
            )
            sure = [one for one, job in zip(left, found, strict=True) if job is None]
            submitted = await asyncio.gather(
                *(server.scheduler.submit(one) for one in sure), return_exceptions=True
            )
            unsure = {
                one.job_id
                for one, job in [
                    *zip(left, found, strict=True),
                    *zip(sure, submitted, strict=True),
                ]
                if isinstance(job, SchedulerUnavailableError)
            }
            left = [one for one in left if one.job_id in unsure]


async def assert_ran_once(pool: Pool, server: Server, requests: list[LaunchRequest]) -> None:
    for request in requests:
        job = await server.until_found(request, COMPLETED)
        assert job.exit_code == 0
        assert await count_starts(request) == 1
    queued = await by_hand.jobs(pool, *(request.job_id for request in requests))
    assert len(queued) == len(requests)


async def until_health_is(server: Server, *, ok: bool) -> str:
    async def look() -> str | None:
        health = server.scheduler.health()
        return health.detail if health.ok == ok else None

    return await until_true(look, server.site.deadline_s)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_submission_that_hangs_is_ended_and_each_job_is_queued_once(
    site: CondorSite, pool: Pool, when: str
) -> None:
    """Where it is stopped meanwhile a race decides whether the jobs are queued."""

    async def scenario() -> None:
        requests = [site.make_request("echo started >> ledger") for _ in range(8)]
        async with site.server() as server:
            await until_health_is(server, ok=True)
            children = workers()
            submitting = [asyncio.create_task(server.scheduler.submit(one)) for one in requests]
            if when == "meanwhile":
                await asyncio.sleep(0.005)  # about half of what it takes
            async with stopped_schedd(pool):
                results = await asyncio.gather(*submitting, return_exceptions=True)
                if any(isinstance(result, SchedulerUnavailableError) for result in results):
                    assert not set(children) <= set(workers()), "the child that hung is alive"
            await hand_over(server, requests)
            await assert_ran_once(pool, server, requests)

    asyncio.run(scenario())


def test_while_the_schedd_hangs_nothing_is_concluded(site: CondorSite, pool: Pool) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request(GATED)
            job = await server.scheduler.submit(request)
            await server.until(request, RUNNING)
            async with stopped_schedd(pool):
                detail = await until_health_is(server, ok=False)
                assert "/" not in detail
                answers = await asyncio.gather(
                    server.scheduler.find(request.job_id, utc_now()),
                    server.scheduler.remove(request.job_id, "x", 1),
                    server.scheduler.submit(site.make_request("exit 0")),
                    return_exceptions=True,
                )
                for answer in answers:
                    assert isinstance(answer, SchedulerUnavailableError)
                assert server.of(request)[-1].status in (RUNNING, SchedulerStatus.UNKNOWN)
            await until_health_is(server, ok=True)
            await let_go(request)
            done = await server.until(request, COMPLETED)
            assert (done.cluster_id, done.exit_code) == (job.cluster_id, 0)

    asyncio.run(scenario())


def test_a_schedd_that_dies_comes_back_and_its_jobs_go_on(site: CondorSite, pool: Pool) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            running = site.make_request(GATED)
            idle = site.make_request(GATED, resources=await site.crowd(server))
            for request in (running, idle):
                await server.scheduler.submit(request)
            await server.until(running, RUNNING)
            killing = asyncio.create_task(asyncio.to_thread(pool.kill_schedd))
            await until_health_is(server, ok=False)
            await killing
            await until_health_is(server, ok=True)
            await hand_over(server, [late := site.make_request("echo started >> ledger")])
            await server.scheduler.remove(idle.job_id, "Enough.", 3)
            assert (await server.until(idle, REMOVED)).reason_code == 3
            await let_go(running)
            assert (await server.until(running, COMPLETED)).exit_code == 0
            await assert_ran_once(pool, server, [late])

    asyncio.run(scenario())


def test_closing_while_the_schedd_hangs_leaves_no_child(site: CondorSite, pool: Pool) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            await until_health_is(server, ok=True)
            async with stopped_schedd(pool):
                request = site.make_request("echo started >> ledger")
                submitting = asyncio.create_task(server.scheduler.submit(request))
                await until_health_is(server, ok=False)
                await server.scheduler.close()
                with pytest.raises(SchedulerUnavailableError):
                    await submitting
        assert not workers()
        async with site.server() as server:
            await hand_over(server, [request])
            await assert_ran_once(pool, server, [request])

    asyncio.run(scenario())


# Servers ------------------------------------------------------------------------------------------


def test_nothing_is_done_while_a_helper_of_another_server_may_be_at_it(site: CondorSite) -> None:
    async def scenario() -> None:
        lock = try_lock(site.state / "condor.lock")
        assert lock is not None
        async with site.server() as server:
            request = site.make_request("echo started >> ledger")
            for _ in range(3):
                with pytest.raises(SchedulerUnavailableError):
                    await server.scheduler.submit(request)
                with pytest.raises(SchedulerUnavailableError):
                    await server.scheduler.find(request.job_id, utc_now())
            health = server.scheduler.health()
            assert not health.ok
            assert "earlier server" in health.detail
            assert not workers()
            os.close(lock)
            await until_health_is(server, ok=True)
            assert (await server.run(request)).exit_code == 0

    asyncio.run(scenario())


#: A server that is killed while its child hangs in submit().
_DOOMED = """
import asyncio, sys
from pathlib import Path
from tests.condor.pool import Pool
from tests.condor.test_outages import doomed
asyncio.run(doomed(Path(sys.argv[1]), Path(sys.argv[2])))
"""


async def doomed(directory: Path, config: Path) -> None:
    """Submit what standard input says, once it does; tell when the call hangs."""

    class Here:
        """The pool, seen from another process."""

    pool = Here()
    pool.config = config  # type: ignore[attr-defined]
    site = CondorSite(directory, pool, Timing(query_interval=1000.0, idle_interval=1000.0))  # type: ignore[arg-type]
    async with site.server() as server:
        await until_health_is(server, ok=True)
        request = site.make_request("echo started >> ledger")
        sys.stdout.write(f"{request.job_id}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        submitting = asyncio.create_task(server.scheduler.submit(request))
        await until_health_is(server, ok=False)
        sys.stdout.write("hangs\n")
        sys.stdout.flush()
        await submitting


def test_a_server_that_is_killed_while_it_submits(site: CondorSite, pool: Pool) -> None:
    async def scenario() -> None:
        killed = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _DOOMED, site.directory, pool.config),
            cwd=PROJECT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert killed.stdin is not None
        assert killed.stdout is not None
        job_id = (await killed.stdout.readline()).decode().strip()
        async with stopped_schedd(pool):
            killed.stdin.write(b"now\n")
            assert await killed.stdout.readline() == b"hangs\n"
            children = children_of(killed.pid)
            assert len(children) == 2
            killed.kill()
            await killed.wait()
            async with site.server() as server:
                await until_true(lambda: gone(children), site.deadline_s)
                with pytest.raises(SchedulerUnavailableError):
                    await server.scheduler.find(job_id, utc_now())
        request = LaunchRequest(
            **{**vars(site.make_request("echo started >> ledger")), "job_id": job_id}
        )
        async with site.server() as server:
            await hand_over(server, [request])
            await server.until_found(request, COMPLETED)
            assert len(await by_hand.jobs(pool, job_id)) == 1

    asyncio.run(scenario())


async def gone(pids: list[int]) -> bool:
    def look() -> bool:
        for pid in pids:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                continue
            return False
        return True

    return await asyncio.to_thread(look)
