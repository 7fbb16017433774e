"""What HTCondor's side of the server is before there is any HTCondor."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from ocps_jobmanager.errors import SchedulerUnavailableError, StartupError
from ocps_jobmanager.models import Resources
from ocps_jobmanager.processes import Spawner
from ocps_jobmanager.schedulers.base import LaunchRequest
from ocps_jobmanager.schedulers.htcondor import HTCondorScheduler
from ocps_jobmanager.times import utc_now


def make(state: Path, python: Path = Path(sys.executable)) -> HTCondorScheduler:
    return HTCondorScheduler(
        events_dir=state / "condor",
        lock_path=state / "condor.lock",
        spawner=Spawner(1),
        python=python,
        environ={},
        clock=utc_now,
    )


async def no_news(news: object) -> None:
    raise AssertionError(news)


def test_the_bindings_are_not_imported_into_the_server() -> None:
    program = (
        "import sys, ocps_jobmanager.app, ocps_jobmanager.schedulers.htcondor\n"
        "assert not {'htcondor2', 'classad2', 'htcondor'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", ["a$$(Arch)", "a\nb"])
def test_a_state_directory_that_htcondor_can_not_be_given_stops_the_start(
    tmp_path: Path, name: str
) -> None:
    async def scenario() -> None:
        scheduler = make(tmp_path / name)
        with pytest.raises(StartupError, match="OCPS_STATE_DIR"):
            await scheduler.start(no_news)
        await scheduler.close()

    asyncio.run(scenario())


def test_before_htcondor_has_answered_it_is_not_in_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        scheduler = make(tmp_path)
        assert not scheduler.health().ok
        await scheduler.start(no_news)
        assert not scheduler.health().ok
        await scheduler.close()

    asyncio.run(scenario())


def test_where_the_children_do_not_start_it_says_so_and_nothing_is_submitted(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        scheduler = make(tmp_path, tmp_path / "no python here")
        await scheduler.start(no_news)
        request = LaunchRequest(
            job_id="0" * 32,
            executable=tmp_path / "x",
            environment={},
            initial_dir=tmp_path,
            out=tmp_path / "out",
            err=tmp_path / "err",
            log=tmp_path / "log",
            resources=Resources(),
        )
        with pytest.raises(SchedulerUnavailableError, match="does not start"):
            await scheduler.submit(request)
        health = scheduler.health()
        assert not health.ok
        assert "does not start" in health.detail
        assert "/" not in health.detail
        await scheduler.close()

    asyncio.run(scenario())
