"""What a server that was killed left of local jobs: the next start clears it away, and no more."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ocps_jobmanager.errors import UnavailableError
from ocps_jobmanager.schedulers.base import LaunchRequest, SchedulerStatus
from ocps_jobmanager.schedulers.local import LocalScheduler
from tests.makers import eventually, run
from tests.schedulers.contract import GATED
from tests.schedulers.local_site import LocalSite


class Site(LocalSite):
    """A machine whose schedulers can ask which jobs' ends have not been recorded."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.unfinished: set[str] = set()
        self.asked: list[list[str]] = []
        self.database_is_away = False

    async def unfinished_among(self, job_ids: Sequence[str]) -> set[str]:
        self.asked.append(sorted(job_ids))
        await asyncio.sleep(0)
        if self.database_is_away:
            raise UnavailableError("The database can't be read now.")
        return self.unfinished & set(job_ids)

    def scheduler(self) -> LocalScheduler:
        return LocalScheduler(
            state=self.state,
            spawner=self._spawner,
            python=self.python,
            next_cluster_id=self.next_cluster_id,
            cores=self.cores,
            unfinished_among=self.unfinished_among,
        )

    def has_folder(self, request: LaunchRequest) -> bool:
        return (self.state / request.job_id).exists()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


async def leave(site: Site, *scripts: str) -> list[LaunchRequest]:
    """Jobs that an earlier server saw end, or that still run when it is killed."""
    requests = [site.make_request(script) for script in scripts]
    async with site.server() as server:
        for request in requests:
            await server.scheduler.submit(request)
            gated = request.executable.read_text().endswith(GATED)
            aim = SchedulerStatus.RUNNING if gated else SchedulerStatus.COMPLETED
            await server.until(request, aim)
    return requests


def test_folders_go_whose_jobs_ends_were_recorded(site: Site) -> None:
    async def scenario() -> None:
        recorded, unknown, unrecorded, running = await leave(
            site, "exit 0", "exit 3", "exit 0", GATED
        )
        assert all(map(site.has_folder, (recorded, unknown, unrecorded, running)))
        site.unfinished = {unrecorded.job_id, running.job_id}
        async with site.server() as server:
            await eventually(lambda: not site.has_folder(recorded))
            await eventually(lambda: not site.has_folder(unknown))
            ended = sorted(r.job_id for r in (recorded, unknown, unrecorded))
            assert site.asked[-1] == ended, "of one that runs nobody has to be asked"
            assert site.has_folder(unrecorded)
            assert site.has_folder(running)
            # What was left is what the Job Manager tracks once the scheduler has started.
            server.scheduler.track(unrecorded.job_id, 3, 0)
            server.scheduler.track(running.job_id, 4, 0)
            assert (await server.until(unrecorded, SchedulerStatus.COMPLETED)).exit_code == 0
            (running.initial_dir / "go").touch()
            await server.until(running, SchedulerStatus.COMPLETED)
            assert site.has_folder(unrecorded)
            server.scheduler.forget(unrecorded.job_id)
            await eventually(lambda: not site.has_folder(unrecorded))

    run(scenario())


def test_nothing_goes_while_it_can_not_be_told(site: Site) -> None:
    async def scenario() -> None:
        [request] = await leave(site, "exit 0")
        site.database_is_away = True
        async with site.server() as server:
            assert site.asked[-1] == [request.job_id]
            server.scheduler.track(request.job_id, 1, 0)
            await server.until(request, SchedulerStatus.COMPLETED)
            assert site.has_folder(request)
        site.database_is_away = False
        async with site.server():
            await eventually(lambda: not site.has_folder(request))

    run(scenario())
