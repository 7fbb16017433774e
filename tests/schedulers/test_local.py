"""The local scheduler: the rules of every scheduler, and what only a machine of its own can break."""

import asyncio
from collections.abc import Iterator
from itertools import count
from pathlib import Path
import sys

import pytest

from ocps_jobmanager.models import Resources
from ocps_jobmanager.processes import Spawner
from ocps_jobmanager.schedulers.base import Scheduler
from ocps_jobmanager.schedulers.local import LocalScheduler
from tests.schedulers.contract import GATED, ExecutionContract, Server, Site

CORES = 4


class LocalSite(Site):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.state = directory / "state" / "local"
        self.state.parent.mkdir()
        self.spawner = Spawner(2)
        self._ids = count(1)

    async def next_cluster_id(self) -> int:
        return next(self._ids)

    def scheduler(self) -> LocalScheduler:
        return LocalScheduler(
            state=self.state,
            spawner=self.spawner,
            python=Path(sys.executable),
            next_cluster_id=self.next_cluster_id,
            cores=CORES,
            grace_s=0.3,
        )

    async def crowd(self, server: Server) -> Resources:
        await server.scheduler.submit(self.make_request(GATED, resources=Resources(cpus=CORES)))
        return Resources()

    def close(self) -> None:
        self.spawner.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LocalSite]:
    site = LocalSite(tmp_path)
    yield site
    site.close()


class TestLocal(ExecutionContract):
    @pytest.fixture
    def site(self, site: LocalSite) -> LocalSite:
        return site
