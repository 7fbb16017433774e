"""Ended jobs go when their time is over, with all that is theirs and with nothing else."""

import asyncio
import logging
import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ocps_jobmanager.cleaner import Cleaner
from ocps_jobmanager.errors import NotFoundError
from ocps_jobmanager.log_dirs import LogDirs
from ocps_jobmanager.models import Job, JobState
from ocps_jobmanager.schedulers.base import SchedulerStatus
from ocps_jobmanager.times import utc_now
from tests.makers import run
from tests.world import World

KEEP = timedelta(days=30)
BODY = {"type": "ap", "env": {"AP_VISIT_ID": 1, "AP_CCD_NUM": "10"}, "log_dir": "logs/night"}


class Ahead:
    """A clock that is some days ahead."""

    def __init__(self, days: float) -> None:
        self.days = days

    def __call__(self) -> datetime:
        return utc_now() + timedelta(days=self.days)


def cleaner_of(world: World, *, days: float = 31, **options: Any) -> Cleaner:
    log_dirs = LogDirs(
        work_dir=world.layout.work_dir,
        log_roots=options.pop("log_roots", (world.layout.logs,)),
        forbidden=(world.layout.outputs, world.layout.code, world.layout.state_dir),
    )
    return Cleaner(
        store=world.store,
        layout=world.layout,
        log_dirs=log_dirs,
        keep=KEEP,
        clock=Ahead(days),
        **options,
    )


async def ended(world: World, key: str | None = None) -> Job:
    """A job that has run to its end and left something everywhere."""
    job = await world.manager.submit(BODY, key=key)
    world.layout.data_file(job.id).touch()
    await world.launched(job)
    output = world.layout.output(job.id)
    (output / "deep" / "er").mkdir(parents=True)
    (output / "deep" / "er" / "result.fits").write_text("stars")
    world.scheduler.set_status(job.id, SchedulerStatus.RUNNING)
    world.scheduler.set_status(job.id, SchedulerStatus.COMPLETED)
    return await world.until(job.id, lambda now: now.is_final)


def files_of(world: World, job: Job) -> set[str]:
    """What there is of a job under the work directory."""
    work_dir = world.layout.work_dir
    every = {str(path.relative_to(work_dir)) for path in work_dir.rglob("*")}
    return {path for path in every if job.id in path}


ALL = 8
"""The data file, three logs, the output directory, and three things in it."""


async def sweep(world: World, **options: Any) -> int:
    cleaner = cleaner_of(world, **options)
    try:
        return await cleaner.sweep()
    finally:
        await cleaner.close()


async def is_gone(world: World, job: Job) -> bool:
    try:
        await world.manager.get(job.id)
    except NotFoundError:
        return not files_of(world, job) and not await world.store.history(job.id)
    return False


def test_a_job_goes_with_everything_when_its_time_is_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await ended(world, key="k")
            assert len(files_of(world, job)) == ALL
            assert await sweep(world, days=29.99) == 0
            assert len(files_of(world, job)) == ALL
            assert await sweep(world, days=30.01) == 1
            assert await is_gone(world, job)
            assert (world.layout.logs / "night").is_dir()
            again = await world.manager.submit(BODY, key="k")
            assert again.id != job.id, "its key went with it"

    run(scenario())


def test_nothing_of_a_job_that_has_not_ended_is_touched(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            waiting = await world.manager.submit(BODY)
            idle = await world.launched(await world.manager.submit(BODY))
            running = await world.launched(await world.manager.submit(BODY))
            world.scheduler.set_status(running.id, SchedulerStatus.RUNNING)
            held = await world.launched(await world.manager.submit(BODY))
            world.scheduler.set_status(held.id, SchedulerStatus.HELD)
            await world.scheduler.settled()
            old = await ended(world)
            jobs = [waiting, idle, running, held]
            for job in jobs:
                world.layout.data_file(job.id).touch()
            before = [files_of(world, job) for job in jobs]
            records = [await world.store.get(job.id) for job in jobs]
            assert await sweep(world, days=10_000) == 1
            assert await is_gone(world, old)
            assert [files_of(world, job) for job in jobs] == before
            assert [await world.store.get(job.id) for job in jobs] == records
            await world.store.delete_ended([job.id for job in jobs])
            assert [await world.store.get(job.id) for job in jobs] == records

    run(scenario())


def test_all_go_however_many_there_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            jobs = [await world.submit() for _ in range(55)]
            for job in jobs:
                await world.manager.remove(job.id)
            kept = await world.submit()
            assert await sweep(world) == 55
            page = await world.store.list_ids(list(JobState), limit=100, before_seq=None)
            assert [job_id for _, job_id in page] == [kept.id]

    run(scenario())


@pytest.fixture
def in_the_way(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Removing the file or directory of this name fails with these words."""
    trouble: dict[str, str] = {}

    def guarded(call: Any) -> Any:
        def guard(name: Any, **options: Any) -> None:
            if name in trouble:
                raise OSError(5, trouble[name])
            call(name, **options)

        return guard

    monkeypatch.setattr(os, "unlink", guarded(os.unlink))
    monkeypatch.setattr(os, "rmdir", guarded(os.rmdir))
    yield trouble
    monkeypatch.undo()


@pytest.mark.parametrize("place", ["{}", "{}.out", "{}.log", "{}.dat", "result.fits"])
def test_whatever_fails_the_record_stays_and_others_go(
    tmp_path: Path, in_the_way: dict[str, str], place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The record is what tells of the files: it goes last, or nobody would ever remove them."""

    async def scenario() -> None:
        async with World(tmp_path) as world:
            stuck = await ended(world)
            world_others = [await world.submit() for _ in range(30)]
            for job in world_others:
                await world.manager.remove(job.id)
            in_the_way[place.format(stuck.id)] = "Input/output error"
            assert await sweep(world) == 30
            assert await world.manager.get(stuck.id)
            assert files_of(world, stuck)
            in_the_way.clear()
            assert await sweep(world) == 1
            assert await is_gone(world, stuck)

    with caplog.at_level(logging.WARNING, "main"):
        run(scenario())
    [warning] = [record.getMessage() for record in caplog.records]
    assert "could not be removed: 1." in warning
    assert "Input/output error" in warning


def test_links_lead_nowhere(tmp_path: Path) -> None:
    """Not in the output, not in its place, not on the way to the logs, not in the logs' places."""

    async def scenario() -> None:
        async with World(tmp_path) as world:
            precious = tmp_path / "precious"
            precious.mkdir()
            first, second, third = [await ended(world) for _ in range(3)]
            for job in (first, second, third):
                (precious / f"{job.id}.out").write_text("kept")
            (precious / "file").write_text("kept")
            (world.layout.output(first.id) / "link").symlink_to(precious)
            world.layout.output(second.id).rename(tmp_path / "aside")
            world.layout.output(second.id).symlink_to(precious)
            log = world.layout.job_logs(third.log_dir, third.id).err
            log.unlink()
            log.symlink_to(precious / "file")
            world.layout.data_file(third.id).unlink()
            world.layout.data_file(third.id).symlink_to(precious / "file")
            assert await sweep(world) == 3
            assert all([await is_gone(world, job) for job in (first, second, third)])
            assert len(list(precious.iterdir())) == 4

            fourth = await ended(world)
            (precious / f"{fourth.id}.out").write_text("kept")
            (world.layout.logs / "night").rename(world.layout.logs / "aside")
            (world.layout.logs / "night").symlink_to(precious)
            assert await sweep(world) == 1
            assert (precious / f"{fourth.id}.out").exists(), "it is not under a log root"

    run(scenario())


def test_logs_that_are_gone_or_elsewhere_keep_nothing_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            first = await ended(world)
            world.layout.logs.rename(tmp_path / "another disk")
            assert await sweep(world) == 1
            assert await is_gone(world, first)
            assert not world.layout.logs.exists(), "it is not made again"
            second = await ended(world)
            assert await sweep(world, log_roots=(tmp_path / "other root",)) == 1
            assert len(files_of(world, second)) == 3, "a root that is none any more is left alone"

    run(scenario())


def test_a_work_directory_without_outputs_keeps_nothing_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await world.submit()
            await world.manager.remove(job.id)
            assert not world.layout.outputs.exists()
            assert await sweep(world) == 1

    run(scenario())


def test_without_its_work_directory_nothing_is_concluded(tmp_path: Path) -> None:
    """A file system that is not mounted just now still holds the files."""

    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await ended(world)
            world.layout.work_dir.rename(tmp_path / "away")
            assert await sweep(world) == 0
            (tmp_path / "away").rename(world.layout.work_dir)
            assert await world.manager.get(job.id)
            assert await sweep(world) == 1

    run(scenario())


def test_it_runs_by_itself_and_survives_a_bad_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await ended(world)
            cleaner = cleaner_of(world, pause_s=0.01)
            sound, failures = world.store.delete_ended, iter([RuntimeError("a bug"), OSError()])

            async def delete(job_ids: Any) -> None:
                if (failure := next(failures, None)) is not None:
                    raise failure
                await sound(job_ids)

            monkeypatch.setattr(world.store, "delete_ended", delete)
            cleaner.start()
            while not await is_gone(world, job):
                await asyncio.sleep(0.01)
            later = await ended(world)
            while not await is_gone(world, later):
                await asyncio.sleep(0.01)
            await cleaner.close()
            kept = await ended(world)
            assert await world.manager.get(kept.id)

    run(scenario())


def test_it_stops_in_the_middle_of_a_large_output(tmp_path: Path) -> None:
    """A shutdown must not wait for the removal of a million files."""

    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await ended(world)
            output = world.layout.output(job.id)
            for number in range(5000):
                (output / str(number)).touch()
            cleaner = cleaner_of(world, pause_s=0)
            cleaner.start()
            while sum(1 for _ in output.iterdir()) > 4990:
                await asyncio.sleep(0)
            await cleaner.close()
            assert await world.manager.get(job.id)
            assert await sweep(world) == 1

    run(scenario())


def test_after_a_crash_at_any_point_the_rest_goes_with_the_next_sweep(tmp_path: Path) -> None:
    """What was removed already is no obstacle."""

    async def scenario() -> None:
        async with World(tmp_path) as world:
            for left in range(ALL):
                job = await ended(world)
                places = sorted(files_of(world, job), reverse=True)  # what is within comes first
                for place in places[: ALL - left]:
                    path = world.layout.work_dir / place
                    path.rmdir() if path.is_dir() else path.unlink()
                await world.restart()
                assert await sweep(world) == 1
                assert await is_gone(world, job)

    run(scenario())
