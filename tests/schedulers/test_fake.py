"""The fake scheduler keeps the rules that the real ones keep."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocps_jobmanager.models import Resources
from ocps_jobmanager.schedulers.base import LaunchRequest, Scheduler, SchedulerStatus
from tests.fakes import FakeQueue, FakeScheduler
from tests.schedulers.contract import SchedulerContract, Server, Site


class FakeSite(Site):
    """A fake queue whose jobs really run, as children of the tests."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.queue = FakeQueue(run=self._run, end=self._end)
        self._full = False
        self._jobs: dict[str, subprocess.Popen[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def scheduler(self) -> Scheduler:
        return FakeScheduler(self.queue)

    async def crowd(self, server: Server) -> Resources:
        self._full = True
        return Resources()

    def close(self) -> None:
        for process in self._jobs.values():
            process.kill()
            process.wait()

    def _run(self, request: LaunchRequest) -> None:
        if not self._full:
            task = asyncio.get_running_loop().create_task(self._live(request))
            self._tasks.add(task)

    async def _live(self, request: LaunchRequest) -> None:
        for _ in range(1 + request.limits.max_retries):
            code = await self._run_once(request)
            if code == 0 or request.job_id in self.queue.removals:
                break
        self.queue.set_status(
            request.job_id,
            SchedulerStatus.REMOVED
            if request.job_id in self.queue.removals
            else SchedulerStatus.COMPLETED,
            **({"exit_code": code} if code >= 0 else {"exit_signal": -code}),
        )

    async def _run_once(self, request: LaunchRequest) -> int:
        if request.job_id in self._jobs:
            self.queue.set_status(request.job_id, SchedulerStatus.IDLE)
        process = await asyncio.to_thread(self._start, request)
        if request.job_id in self.queue.removals:
            self._end(request.job_id)
        self.queue.set_status(request.job_id, SchedulerStatus.RUNNING)
        return await asyncio.to_thread(process.wait)

    def _start(self, request: LaunchRequest) -> "subprocess.Popen[bytes]":
        # Kept here, in the thread: the test may be over before it is told of.
        process = self._jobs[request.job_id] = subprocess.Popen(
            [request.executable], cwd=request.initial_dir, env=dict(request.environment)
        )
        return process

    def _end(self, job_id: str) -> None:
        os.kill(self._jobs[job_id].pid, signal.SIGTERM)


class TestFake(SchedulerContract):
    @pytest.fixture
    def site(self, tmp_path: Path) -> Iterator[FakeSite]:
        site = FakeSite(tmp_path)
        yield site
        site.close()
