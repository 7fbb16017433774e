"""The life of a job: accepted once, launched once, ended once, whatever is interrupted where."""

import asyncio
import stat
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ocps_jobmanager.errors import ConflictError, InvalidRequestError, NotFoundError
from ocps_jobmanager.manager import Terms
from ocps_jobmanager.models import Job, JobState, Resources
from ocps_jobmanager.schedulers.base import SchedulerJob, SchedulerStatus
from ocps_jobmanager.store import JobStore
from ocps_jobmanager.times import Clock
from tests.fakes import (
    FakeScheduler,
    SchedulerAway,
    SchedulerDiesAfterSubmit,
    SchedulerDiesBeforeSubmit,
    SchedulerHangsInSubmit,
    SchedulerRefuses,
)
from tests.makers import eventually, run
from tests.world import World

S = JobState


def test_an_accepted_job_waits_and_its_monitor_knows_what_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await world.submit()
            assert (job.state, job.cluster_id) == (S.WAITING, None)
            await eventually(lambda: world.monitors.watched)
            assert world.monitors.watched == {job.id: ("ap", job.monitor_key, (f"{job.id}.dat",))}
            assert job.monitor_key != job.id
            assert job.env == {"AP_VISIT_ID": "413635", "AP_CCD_NUM": "10"}
            assert stat.S_IMODE((world.layout.work_dir / "logs").stat().st_mode) == 0o750

    run(scenario())


def test_a_job_is_launched_with_what_it_was_given_and_nothing_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await world.launched(await world.submit())
            assert job.state is S.IDLE
            request = world.queue.requests[job.id]
            own = {k: v for k, v in request.environment.items() if k not in {"HOME", "USER"}}
            assert own == {
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "LOGNAME": request.environment["USER"],
                "LANG": "C.UTF-8",
                "SITE": "summit",
                "AP_VISIT_ID": "413635",
                "AP_CCD_NUM": "10",
                "JOB_ID": job.id,
                "JOB_OUTPUT_DIR": str(world.layout.output(job.id)),
            }
            assert request.executable.read_text() == "#!/bin/bash\necho first\n"
            assert request.initial_dir == world.layout.output(job.id)
            assert request.initial_dir.is_dir()
            for log in (request.out, request.err, request.log):
                assert stat.S_IMODE(log.stat().st_mode) == 0o640
            assert world.monitors.watched == {}

    run(scenario())


def test_a_type_without_data_is_launched_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await world.submit("now")
            assert (job.state, job.data) == (S.SUBMITTING, ())
            job = await world.until(job.id, lambda now: now.state is S.IDLE)
            assert world.queue.requests[job.id].resources == Resources(cpus=2, memory_mb=2048)
            assert world.monitors.watched == {}

    run(scenario())


def test_a_job_is_launched_once_however_often_its_monitor_calls(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await world.submit()
            key = job.monitor_key
            await asyncio.gather(*(world.manager.data_arrived(key) for _ in range(20)))
            await world.until(job.id, lambda now: now.state is S.IDLE)
            again = await world.manager.data_arrived(key)
            assert again.cluster_id == 1
            assert world.queue.submissions == {job.id: 1}
            assert [event.state for event in await world.manager.history(job.id)] == [
                S.WAITING,
                S.SUBMITTING,
                S.IDLE,
            ]

    run(scenario())


def test_an_unknown_key_launches_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await world.submit()
            for wrong in (job.id, "", "0" * 32):
                with pytest.raises(NotFoundError):
                    await world.manager.data_arrived(wrong)
            assert (await world.manager.get(job.id)).state is S.WAITING

    run(scenario())


def test_the_key_can_be_the_job_id_as_in_the_first_demonstration(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, terms=Terms(key_is_job_id=True)) as world:
            job = await world.submit()
            assert (await world.manager.data_arrived(job.id)).state is not S.WAITING

    run(scenario())


def test_what_waits_waits_again_after_a_restart_with_the_same_key(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            jobs = [await world.submit() for _ in range(3)]
            await world.restart()
            await eventually(lambda: len(world.monitors.watched) == 3)
            assert {key for _, key, _ in world.monitors.watched.values()} == {
                job.monitor_key for job in jobs
            }

    run(scenario())


@pytest.mark.parametrize("kind", [SchedulerDiesAfterSubmit, SchedulerDiesBeforeSubmit])
@pytest.mark.parametrize("restart", [False, True])
def test_a_submission_in_doubt_is_looked_for_and_never_repeated_blindly(
    tmp_path: Path, kind: Any, restart: bool
) -> None:
    async def scenario() -> None:
        async with World(tmp_path, kind()) as world:
            job = await world.submit("now")
            await eventually(lambda: world.scheduler.times == 0)  # type: ignore[attr-defined]
            if restart:
                await world.restart()
            job = await world.until(job.id, lambda now: now.state is S.IDLE)
            assert world.queue.submissions == {job.id: 1}
            assert world.scheduler.finds[job.id] >= 1
            assert job.cluster_id == 1

    run(scenario())


def test_a_job_never_handed_over_needs_no_look(tmp_path: Path) -> None:
    """The scheduler is asked for what may be there, not for what can't."""

    async def scenario() -> None:
        async with World(tmp_path) as world:
            await world.launched(await world.submit())
            assert not world.scheduler.finds

    run(scenario())


def test_an_outage_is_not_a_failure(tmp_path: Path) -> None:
    async def scenario() -> None:
        scheduler = SchedulerAway()
        async with World(tmp_path, scheduler) as world:
            jobs = [await world.submit("now") for _ in range(5)]
            for job in jobs:
                told = await world.until(job.id, lambda now: now.reason is not None)
                assert told.state is S.SUBMITTING
                assert "can't be reached" in (told.reason or "")
            scheduler.away = False
            for job in jobs:
                job = await world.until(job.id, lambda now: now.state is S.IDLE)
                assert job.reason is None
            assert world.queue.submissions == {job.id: 1 for job in jobs}

    run(scenario())


def test_what_is_queued_is_followed_after_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await world.launched(await world.submit())
            world.scheduler.set_status(job.id, SchedulerStatus.RUNNING)
            await world.until(job.id, lambda now: now.state is S.RUNNING)
            await world.restart()
            world.scheduler.set_status(job.id, SchedulerStatus.COMPLETED, exit_code=3)
            job = await world.until(job.id, lambda now: now.is_final)
            assert (job.state, job.exit_code, job.phase) == (S.COMPLETED, 3, "error")
            assert job.reason == "The script ended with exit code 3."
            assert job.num_starts == 1

    run(scenario())


def test_news_that_came_while_the_server_was_away_are_not_missed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await world.launched(await world.submit())
            await world.stop()
            world.queue.set_status(job.id, SchedulerStatus.RUNNING)
            world.queue.set_status(job.id, SchedulerStatus.COMPLETED, exit_signal=9)
            await world.start_again()
            job = await world.until(job.id, lambda now: now.is_final)
            assert (job.exit_code, job.exit_signal) == (None, 9)
            assert job.reason == "The script was ended by signal 9 (SIGKILL)."

    run(scenario())


def test_a_held_job_says_why_until_it_is_released(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await world.launched(await world.submit())
            world.scheduler.set_status(job.id, SchedulerStatus.HELD, reason="via condor_hold")
            job = await world.until(job.id, lambda now: now.state is S.HELD)
            assert job.hold_reason == "via condor_hold"
            assert "via condor_hold" in (job.reason or "")
            world.scheduler.set_status(job.id, SchedulerStatus.IDLE)
            job = await world.until(job.id, lambda now: now.state is S.IDLE)
            assert job.hold_reason is None

    run(scenario())


def test_late_news_of_an_ended_job_change_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await world.launched(await world.submit())
            world.scheduler.set_status(job.id, SchedulerStatus.COMPLETED)
            ended = await world.until(job.id, lambda now: now.is_final)
            for status in SchedulerStatus:
                late = world.queue.jobs[job.id]
                await world.manager.take_news([type(late)(**(vars(late) | {"status": status}))])
            assert await world.manager.get(job.id) == ended

    run(scenario())


# Removal -----------------------------------------------------------------------------------------


def test_a_waiting_job_is_removed_at_once_and_its_data_come_too_late(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await world.submit()
            removed = await world.manager.remove(job.id)
            assert (removed.state, removed.phase) == (S.REMOVED, "aborted")
            with pytest.raises(ConflictError):
                await world.manager.data_arrived(job.monitor_key)
            assert await world.manager.remove(job.id) == removed, "a repeat changes nothing"
            await eventually(lambda: job.id in world.monitors.unwatched)
            assert not world.queue.submissions

    run(scenario())


def test_removed_before_its_launch_it_is_never_launched(tmp_path: Path) -> None:
    async def scenario() -> None:
        scheduler = SchedulerAway()
        async with World(tmp_path, scheduler) as world:
            job = await world.submit("now")
            await world.until(job.id, lambda now: now.reason is not None)
            removed = await world.manager.remove(job.id)
            assert removed.state is S.SUBMITTING, "it may be in the queue: nobody can tell"
            scheduler.away = False
            job = await world.until(job.id, lambda now: now.is_final)
            assert job.state is S.REMOVED
            assert not world.queue.submissions

    run(scenario())


def test_removed_while_it_is_launched_it_is_taken_out_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        scheduler = SchedulerHangsInSubmit()
        async with World(tmp_path, scheduler) as world:
            job = await world.submit("now")
            await scheduler.reached.wait()
            await world.manager.remove(job.id)
            scheduler.go_on.set()
            job = await world.until(job.id, lambda now: now.is_final)
            assert (job.state, job.reason) == (S.REMOVED, "Removed on request.")
            assert world.queue.submissions == {job.id: 1}
            assert world.queue.removals.keys() == {job.id}

    run(scenario())


def test_a_wish_to_remove_survives_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, SchedulerAway(away=False)) as world:
            job = await world.launched(await world.submit())
            world.scheduler.away = True  # type: ignore[attr-defined]
            await world.manager.remove(job.id)
            await world.restart()
            job = await world.until(job.id, lambda now: now.is_final)
            assert job.state is S.REMOVED

    run(scenario())


def test_a_job_that_ends_before_its_removal_has_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, SchedulerAway(away=False)) as world:
            job = await world.launched(await world.submit())
            world.scheduler.away = True  # type: ignore[attr-defined]
            await world.manager.remove(job.id)
            world.queue.set_status(job.id, SchedulerStatus.COMPLETED)
            world.scheduler.away = False  # type: ignore[attr-defined]
            job = await world.until(job.id, lambda now: now.is_final)
            assert (job.state, job.exit_code) == (S.COMPLETED, 0)

    run(scenario())


def test_removed_by_somebody_else_it_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await world.launched(await world.submit())
            world.scheduler.set_status(job.id, SchedulerStatus.REMOVED)
            job = await world.until(job.id, lambda now: now.is_final)
            assert job.state is S.REMOVED
            assert "via condor_rm (by user fake)" in (job.reason or "")

    run(scenario())


# What can't be launched --------------------------------------------------------------------------


def test_a_refused_job_has_failed_and_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, SchedulerRefuses()) as world:
            job = await world.submit("now")
            job = await world.until(job.id, lambda now: now.is_final)
            assert (job.state, job.phase) == (S.FAILED, "error")
            assert "No job is taken" in (job.reason or "")

    run(scenario())


@pytest.mark.parametrize(
    ("status", "words"),
    [(SchedulerStatus.LOST, "neither in its queue"), (SchedulerStatus.BROKEN, "can't tell how")],
)
def test_a_job_that_the_scheduler_loses_has_failed(
    tmp_path: Path, status: SchedulerStatus, words: str
) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await world.launched(await world.submit())
            world.scheduler.set_status(job.id, status)
            job = await world.until(job.id, lambda now: now.is_final)
            assert job.state is S.FAILED
            assert words in (job.reason or "")

    run(scenario())


def test_the_script_is_the_one_of_the_acceptance(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            first = await world.submit()
            world.script.write_text("#!/bin/bash\necho second\n")
            second = await world.submit()
            for job in (first, second):
                await world.launched(job)
            texts = [world.queue.requests[job.id].executable.read_text() for job in (first, second)]
            assert texts == ["#!/bin/bash\necho first\n", "#!/bin/bash\necho second\n"]
            assert first.code.sha256 != second.code.sha256

    run(scenario())


def test_altered_code_is_not_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await world.submit()
            [copy] = [path for path in world.layout.code.rglob("*") if path.is_file()]
            copy.chmod(0o700)
            copy.write_text("#!/bin/bash\necho other\n")
            await world.manager.data_arrived(job.monitor_key)
            job = await world.until(job.id, lambda now: now.is_final)
            assert job.state is S.FAILED
            assert not world.queue.submissions

    run(scenario())


def test_a_log_directory_that_became_a_link_is_not_followed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await world.submit(log_dir="logs/night")
            (world.layout.logs / "night").rmdir()
            elsewhere = tmp_path / "elsewhere"
            elsewhere.mkdir()
            (world.layout.logs / "night").symlink_to(elsewhere)
            await world.manager.data_arrived(job.monitor_key)
            job = await world.until(job.id, lambda now: now.is_final)
            assert job.state is S.FAILED
            assert "log" in (job.reason or "")
            assert not list(elsewhere.iterdir())

    run(scenario())


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_stored(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            body = {"type": "ap", "env": {"AP_VISIT_ID": None, "X": "1"}, "log_dir": "/etc", "y": 1}
            with pytest.raises(InvalidRequestError) as caught:
                await world.manager.submit(body)
            assert {problem.field for problem in caught.value.problems} == {
                "env.AP_VISIT_ID",
                "env.AP_CCD_NUM",
                "env.X",
                "log_dir",
                "y",
            }
            assert await world.store.unfinished() == []

    run(scenario())


# Waiting for a change ----------------------------------------------------------------------------


def test_a_waiter_is_woken_by_the_change(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            job = await world.submit()
            waiter = asyncio.create_task(world.until(job.id, lambda now: now.is_final))
            await asyncio.sleep(0)
            await world.manager.remove(job.id)
            assert (await waiter).state is S.REMOVED

    run(scenario())


def test_a_wait_ends_with_its_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, FakeScheduler()) as world:
            job = await world.submit()
            now = await world.manager.wait(job.id, lambda job: job.is_final, 0.01)
            assert now.state is S.WAITING

    run(scenario())


class StoreThatAnswersLate(JobStore):
    """Gives the first answer of `get` only after something else has happened."""

    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__(path, clock)
        self.meanwhile: Callable[[], Awaitable[Any]] | None = None

    async def get(self, job_id: str) -> Job | None:
        job = await super().get(job_id)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return job


def test_removed_in_the_moment_of_its_launch_it_is_taken_out_of_the_queue(tmp_path: Path) -> None:
    """Who removes it has seen it waiting; when the removal is recorded it is in the queue."""

    async def scenario() -> None:
        async with World(tmp_path, store=StoreThatAnswersLate) as world:
            job = await world.submit()
            await eventually(lambda: world.monitors.watched)  # nobody else looks at it any more
            world.store.meanwhile = lambda: world.launched(job)  # type: ignore[attr-defined]
            await world.manager.remove(job.id)
            job = await world.until(job.id, lambda now: now.is_final)
            assert (job.state, job.reason) == (S.REMOVED, "Removed on request.")
            assert world.queue.removals.keys() == {job.id}

    run(scenario())


def test_an_end_that_is_found_counts_whatever_was_told_before(tmp_path: Path) -> None:
    """An event tells that it runs while it is looked for; the look finds that it has ended."""

    class Ended(SchedulerDiesAfterSubmit):
        async def find(self, job_id: str, submitted_after: datetime) -> SchedulerJob | None:
            await super().find(job_id, submitted_after)
            self.set_status(job_id, SchedulerStatus.RUNNING)
            await self.settled()
            self.forget(job_id)  # nobody else will tell of its end
            self.set_status(job_id, SchedulerStatus.COMPLETED, exit_code=0)
            return self.queue.jobs[job_id]

    async def scenario() -> None:
        async with World(tmp_path, Ended()) as world:
            job = await world.submit("now")
            job = await world.until(job.id, lambda now: now.is_final)
            assert (job.state, job.exit_code) == (S.COMPLETED, 0)

    run(scenario())
