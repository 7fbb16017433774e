"""A site of the shared contract suite whose jobs run on this machine."""

import os
import signal
import sys
from itertools import count
from pathlib import Path

from ocps_jobmanager.models import Resources
from ocps_jobmanager.processes import Spawner
from ocps_jobmanager.schedulers.base import SchedulerStatus
from ocps_jobmanager.schedulers.local import LocalScheduler
from ocps_jobmanager.schedulers.local_folders import JobFolders
from tests.schedulers.contract import GATED, Server, Site

CORES = 4


class LocalSite(Site):
    """Jobs of this machine; `close` ends those that are left."""

    deadline_s = 30.0

    def __init__(self, directory: Path, *, first_cluster_id: int = 1) -> None:
        super().__init__(directory)
        self.state = directory / "state" / "local"
        self.state.parent.mkdir(exist_ok=True)
        self.folders = JobFolders(self.state, "test")
        self.python = Path(sys.executable)
        self.cores = CORES
        self.grace_s = 0.3
        self._spawner = Spawner(2)
        self._ids = count(first_cluster_id)

    async def next_cluster_id(self) -> int:
        return next(self._ids)

    def scheduler(self) -> LocalScheduler:
        return LocalScheduler(
            state=self.state,
            spawner=self._spawner,
            python=self.python,
            next_cluster_id=self.next_cluster_id,
            cores=self.cores,
            grace_s=self.grace_s,
        )

    async def crowd(self, server: Server) -> Resources:
        blocker = self.make_request(GATED, resources=Resources(cpus=self.cores))
        await server.scheduler.submit(blocker)
        await server.until(blocker, SchedulerStatus.RUNNING)
        return Resources()

    def close(self) -> None:
        self._spawner.close()
        self.stop_machine()

    def stop_machine(self) -> None:
        """End all jobs at once, as a power failure does."""
        for folder in self.state.iterdir() if self.state.exists() else ():
            if (launcher := self.folders.attach(folder.name)) is not None:
                signal.pidfd_send_signal(launcher, signal.SIGKILL)
                os.close(launcher)
