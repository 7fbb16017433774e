"""Every job ends: timers that no clock of the wall can start, and what they end a job with."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ocps_jobmanager.limits import LimitTimers
from ocps_jobmanager.models import Job, JobState, Limits, Removal
from ocps_jobmanager.schedulers.base import HELD_TOO_LONG, RAN_TOO_LONG, SchedulerStatus
from ocps_jobmanager.times import utc_now
from tests.fakes import FakeScheduler, SchedulerAway
from tests.makers import eventually, job
from tests.world import World

S = JobState
HOUR_S = 3600
RAN_2_H = "It ran longer than 2 h (max_run_time) and was ended."


class SteppedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock a test can put forward."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


def pass_time(seconds: float) -> None:
    """Let so much time pass at once."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SteppedLoop)
    loop.ahead_s += seconds


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario on a loop of its own."""
    with asyncio.Runner(loop_factory=SteppedLoop) as runner:
        runner.run(scenario())


async def a_turn() -> None:
    """Let everything run that is due."""
    for _ in range(3):
        await asyncio.sleep(0)


class WallClock:
    """What the server takes for the time of day."""

    ahead = timedelta()

    def __call__(self) -> datetime:
        return utc_now() + self.ahead


class Timers:
    """Timers, and the jobs of which they have told."""

    def __init__(self) -> None:
        self.clock = WallClock()
        self.told: list[str] = []
        self.timers = LimitTimers(self.told.append, self.clock)

    async def are_up(self, job: Job) -> Removal | None:
        """What `overrun` says once all is done that is due."""
        await a_turn()
        removal = self.timers.overrun(job)
        assert removal is None or job.id in self.told
        return removal


def running(**changes: Any) -> Job:
    return job(
        **{
            "state": S.RUNNING,
            "limits": Limits(max_run_time_s=2 * HOUR_S, hold_limit_s=900),
            "num_starts": 1,
            "time_started": utc_now(),
        }
        | changes
    )


# The timers --------------------------------------------------------------------------------------


def test_a_job_may_run_for_its_time_and_no_longer() -> None:
    async def scenario() -> None:
        timers, one = Timers(), running()
        timers.timers.watch(one)
        pass_time(2 * HOUR_S - 60)
        assert await timers.are_up(one) is None
        pass_time(60)
        assert await timers.are_up(one) == Removal(final_state=S.FAILED, reason=RAN_2_H)

    run(scenario)


@pytest.mark.parametrize("state", [state for state in S if state is not S.HELD])
def test_without_a_limit_nothing_but_a_hold_is_ended(state: JobState) -> None:
    async def scenario() -> None:
        timers, one = Timers(), running(state=state, limits=Limits())
        timers.timers.take_up(one, None)
        pass_time(1000 * HOUR_S)
        assert await timers.are_up(one) is None
        assert timers.told == []

    run(scenario)


def test_a_hold_is_ended_after_an_hour_unless_the_type_says_otherwise() -> None:
    async def scenario() -> None:
        timers = Timers()
        one = running(state=S.HELD, limits=Limits(), hold_reason="Disk full.")
        short = running(state=S.HELD)
        for held in (one, short):
            timers.timers.watch(held)
        pass_time(900)
        assert await timers.are_up(one) is None
        ended = await timers.are_up(short)
        assert ended is not None
        assert ended.reason == "It was held for 15 min (hold_limit) and was ended."
        pass_time(HOUR_S - 900)
        ended = await timers.are_up(one)
        assert ended is not None
        assert ended.reason == "It was held for 1 h (hold_limit) and was ended: Disk full."

    run(scenario)


@pytest.mark.parametrize("after", [S.IDLE, S.HELD, S.COMPLETED, S.REMOVED])
def test_what_is_over_in_time_is_not_ended(after: JobState) -> None:
    async def scenario() -> None:
        timers, one = Timers(), running()
        timers.timers.watch(one)
        pass_time(2 * HOUR_S - 1)
        one = replace(one, state=after, limits=replace(one.limits, hold_limit_s=9 * HOUR_S))
        timers.timers.watch(one)
        pass_time(HOUR_S)
        assert await timers.are_up(one) is None
        assert timers.told == []

    run(scenario)


@pytest.mark.parametrize("between", [S.IDLE, None])
def test_each_start_has_the_whole_time(between: JobState | None) -> None:
    """Also where the scheduler says nothing of what is between two starts."""

    async def scenario() -> None:
        timers, one = Timers(), running()
        timers.timers.watch(one)
        pass_time(HOUR_S)
        if between is not None:
            timers.timers.watch(replace(one, state=between))
        assert one.time_started is not None
        again = replace(one, num_starts=2, time_started=one.time_started + timedelta(hours=1))
        timers.timers.watch(again)
        pass_time(HOUR_S + 60)
        assert await timers.are_up(again) is None
        pass_time(HOUR_S - 60)
        assert await timers.are_up(again) is not None

    run(scenario)


def test_to_suspend_a_job_does_not_make_it_last_for_ever() -> None:
    async def scenario() -> None:
        timers, one = Timers(), running()
        timers.timers.watch(one)
        for state in (S.SUSPENDED, S.RUNNING, S.TRANSFERRING_OUTPUT):
            pass_time(HOUR_S * 2 / 3)
            timers.timers.watch(one := replace(one, state=state))
        assert await timers.are_up(one) is not None

    run(scenario)


@pytest.mark.parametrize("state", [S.RUNNING, S.HELD])
@pytest.mark.parametrize("hours", [-50, 50])
def test_setting_the_clock_ends_no_job_and_spares_none(state: JobState, hours: int) -> None:
    async def scenario() -> None:
        timers, one = Timers(), running(state=state, limits=Limits(max_run_time_s=HOUR_S))
        timers.timers.watch(one)
        timers.clock.ahead = timedelta(hours=hours)
        late = running(state=state, limits=Limits(max_run_time_s=HOUR_S))
        timers.timers.watch(late)
        timers.timers.watch(one)
        for each in (one, late):
            assert await timers.are_up(each) is None
        pass_time(HOUR_S)
        for each in (one, late):
            assert await timers.are_up(each) is not None

    run(scenario)


@pytest.mark.parametrize("state", [S.RUNNING, S.HELD])
def test_what_passed_without_a_server_counts(state: JobState) -> None:
    async def scenario() -> None:
        timers, limits = Timers(), Limits(max_run_time_s=HOUR_S)
        begun = utc_now() - timedelta(minutes=50)
        one = running(state=state, limits=limits, time_started=begun)
        timers.timers.take_up(one, begun if state is S.HELD else None)
        assert await timers.are_up(one) is None
        pass_time(11 * 60)
        assert await timers.are_up(one) is not None
        over = running(state=state, limits=limits, time_started=begun - timedelta(hours=9))
        timers.timers.take_up(over, over.time_started if state is S.HELD else None)
        assert await timers.are_up(over) is not None

    run(scenario)


def test_a_start_in_the_future_is_one_of_now() -> None:
    """The clock was put back, or the execute host's is ahead."""

    async def scenario() -> None:
        timers = Timers()
        one = running(time_started=utc_now() + timedelta(days=1))
        timers.timers.take_up(one, None)
        pass_time(2 * HOUR_S)
        assert await timers.are_up(one) is not None

    run(scenario)


def test_what_happened_without_a_server_is_timed_by_when_it_did_and_what_follows_is_not() -> None:
    async def scenario() -> None:
        timers, ago = Timers(), utc_now() - timedelta(hours=1.5)
        queued = running(state=S.IDLE, num_starts=0, time_started=None)
        missed, live = replace(queued, id="a" * 32), replace(queued, id="b" * 32)
        for one in (missed, live):
            timers.timers.take_up(one, None)
        missed = replace(missed, state=S.RUNNING, num_starts=1, time_started=ago)
        timers.timers.watch(missed)
        timers.timers.are_known([missed.id, live.id])
        # The second is told of as idle; then it starts, on a host whose clock is behind.
        live = replace(live, state=S.RUNNING, num_starts=1, time_started=ago)
        timers.timers.watch(live)
        pass_time(HOUR_S)
        assert await timers.are_up(missed) is not None
        assert await timers.are_up(live) is None

    run(scenario)


def test_more_precise_news_of_a_start_do_not_make_it_a_new_one() -> None:
    async def scenario() -> None:
        timers, begun = Timers(), utc_now() - timedelta(hours=1.5)
        one = running(time_started=begun)
        timers.timers.take_up(one, None)
        one = replace(one, time_started=begun + timedelta(seconds=5), remote_host="slot1@a")
        timers.timers.watch(one)
        pass_time(HOUR_S)
        assert await timers.are_up(one) is not None

    run(scenario)


def test_a_start_that_is_only_counted_is_one_too() -> None:
    async def scenario() -> None:
        timers, one = Timers(), running()
        timers.timers.watch(one)
        pass_time(HOUR_S)
        again = replace(one, num_starts=2)
        timers.timers.watch(again)
        pass_time(HOUR_S + 60)
        assert await timers.are_up(again) is None

    run(scenario)


def test_what_is_to_end_anyway_is_not_timed() -> None:
    async def scenario() -> None:
        timers, one = Timers(), running()
        timers.timers.watch(one)
        asked = replace(one, removal=Removal(final_state=S.REMOVED, reason="On request."))
        timers.timers.watch(asked)
        pass_time(9 * HOUR_S)
        assert await timers.are_up(asked) is None
        assert timers.told == []

    run(scenario)


def test_closed_timers_tell_of_nothing() -> None:
    async def scenario() -> None:
        timers, one = Timers(), running()
        timers.timers.watch(one)
        timers.timers.close()
        pass_time(9 * HOUR_S)
        await a_turn()
        assert timers.told == []

    run(scenario)


def test_a_time_in_another_precision_is_no_later_start() -> None:
    """The store keeps milliseconds; a job must not be spared for ever over the rest."""

    async def scenario() -> None:
        begun = utc_now().replace(microsecond=700)
        for first, second in ((700, 1000), (1000, 700)):
            timers = Timers()
            one = running(time_started=begun.replace(microsecond=first))
            timers.timers.watch(one)
            pass_time(2 * HOUR_S)
            await a_turn()
            for microsecond in (second, first, second):
                told = replace(one, time_started=begun.replace(microsecond=microsecond))
                assert await timers.are_up(told) is not None

    run(scenario)


# In the Job Manager ------------------------------------------------------------------------------


class LimitedWorld(World):
    """A world in which all jobs have limits, and a wall clock of its own."""

    def __init__(self, tmp_path: Path, scheduler: FakeScheduler | None = None) -> None:
        self.clock = WallClock()
        super().__init__(tmp_path, scheduler, clock=self.clock)
        limits = "    max_run_time: 2h\n    max_retries: 3\n    hold_limit: 15m\n"
        self.specs.write_text(self.specs.read_text().rstrip("\n ") + "\n" + limits)

    async def in_state(self, status: SchedulerStatus, **details: Any) -> Job:
        """A job that the scheduler has in this state."""
        job = await self.submit("now")
        await self.until(job.id, lambda now: now.state is S.IDLE)
        self.scheduler.set_status(job.id, status, **details)
        wanted = {SchedulerStatus.RUNNING: S.RUNNING, SchedulerStatus.HELD: S.HELD}[status]
        return await self.until(job.id, lambda now: now.state is wanted)


def test_the_limits_of_its_type_are_kept_with_a_job_and_given_to_the_scheduler(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with LimitedWorld(tmp_path) as world:
            job = await world.submit("now")
            job = await world.until(job.id, lambda now: now.state is S.IDLE)
            limits = Limits(max_run_time_s=2 * HOUR_S, hold_limit_s=900, max_retries=3)
            assert job.limits == limits
            assert world.queue.requests[job.id].limits == limits
            plain = await world.submit()
            assert plain.limits == Limits()

    run(scenario)


def test_a_job_that_runs_too_long_is_removed_and_has_failed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with LimitedWorld(tmp_path) as world:
            job = await world.in_state(SchedulerStatus.RUNNING)
            pass_time(2 * HOUR_S)
            job = await world.until(job.id, lambda now: now.is_final)
            assert (job.state, job.phase, job.reason) == (S.FAILED, "error", RAN_2_H)
            assert world.queue.removals.keys() == {job.id}

    run(scenario)


def test_a_job_that_is_held_too_long_is_removed_and_has_failed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with LimitedWorld(tmp_path) as world:
            job = await world.in_state(SchedulerStatus.HELD, reason="No such file.")
            pass_time(900)
            job = await world.until(job.id, lambda now: now.is_final)
            assert job.state is S.FAILED
            assert job.reason == (
                "It was held for 15 min (hold_limit) and was ended: No such file."
            )

    run(scenario)


def test_a_job_that_has_just_ended_has_ended(tmp_path: Path) -> None:
    """The scheduler is asked before a job is ended: its news may be on their way."""

    async def scenario() -> None:
        async with LimitedWorld(tmp_path, SchedulerAway(away=False)) as world:
            job = await world.in_state(SchedulerStatus.RUNNING)
            world.queue.followers.clear()  # no news
            world.scheduler.set_status(job.id, SchedulerStatus.COMPLETED)
            pass_time(2 * HOUR_S)
            job = await world.until(job.id, lambda now: now.is_final)
            assert (job.state, job.exit_code, job.removal) == (S.COMPLETED, 0, None)

    run(scenario)


def test_a_job_that_was_just_started_again_is_not_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with LimitedWorld(tmp_path) as world:
            job = await world.in_state(SchedulerStatus.RUNNING)
            follower = world.queue.followers.pop()
            world.scheduler.set_status(job.id, SchedulerStatus.IDLE)
            world.scheduler.set_status(job.id, SchedulerStatus.RUNNING)
            pass_time(2 * HOUR_S)
            now = await world.until(job.id, lambda now: now.num_starts == 2)
            assert (now.state, now.removal) == (S.RUNNING, None)
            world.queue.followers.append(follower)
            pass_time(2 * HOUR_S)
            job = await world.until(job.id, lambda now: now.is_final)
            assert job.state is S.FAILED

    run(scenario)


def test_an_end_that_comes_before_the_removal_wins(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with LimitedWorld(tmp_path, SchedulerAway(away=False)) as world:
            job = await world.in_state(SchedulerStatus.RUNNING)
            world.scheduler.away = True  # type: ignore[attr-defined]
            pass_time(2 * HOUR_S)
            told = await world.until(job.id, lambda now: now.reason is not None)
            assert "removed when that is over" in (told.reason or "")
            world.queue.set_status(job.id, SchedulerStatus.COMPLETED, exit_code=3)
            world.scheduler.away = False  # type: ignore[attr-defined]
            job = await world.until(job.id, lambda now: now.is_final)
            assert (job.state, job.exit_code) == (S.COMPLETED, 3)

    run(scenario)


def test_an_outage_only_delays_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with LimitedWorld(tmp_path, SchedulerAway(away=False)) as world:
            job = await world.in_state(SchedulerStatus.RUNNING)
            world.scheduler.away = True  # type: ignore[attr-defined]
            pass_time(2 * HOUR_S)
            await world.until(job.id, lambda now: now.reason is not None)
            world.scheduler.away = False  # type: ignore[attr-defined]
            pass_time(5)
            job = await world.until(job.id, lambda now: now.is_final)
            assert (job.state, job.reason) == (S.FAILED, RAN_2_H)

    run(scenario)


@pytest.mark.parametrize("status", [SchedulerStatus.RUNNING, SchedulerStatus.HELD])
def test_the_time_goes_on_while_no_server_runs(tmp_path: Path, status: SchedulerStatus) -> None:
    async def scenario() -> None:
        async with LimitedWorld(tmp_path) as world:
            job = await world.in_state(status)
            await world.restart()
            await world.scheduler.settled()
            assert not (await world.manager.get(job.id)).is_final
            await world.stop()
            world.clock.ahead = timedelta(hours=2)
            await world.start_again()
            job = await world.until(job.id, lambda now: now.is_final)
            assert job.state is S.FAILED

    run(scenario)


def test_the_clock_of_the_server_alone_ends_no_job(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with LimitedWorld(tmp_path) as world:
            jobs = [
                await world.in_state(SchedulerStatus.RUNNING),
                await world.in_state(SchedulerStatus.HELD),
            ]
            world.clock.ahead = timedelta(days=400)
            jobs.append(await world.in_state(SchedulerStatus.RUNNING))
            pass_time(60)
            await a_turn()
            await world.scheduler.settled()
            for job in jobs:
                now = await world.manager.get(job.id)
                assert (now.is_final, now.removal) == (False, None)

    run(scenario)


def test_nor_does_it_end_a_job_that_an_earlier_server_had_queued(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with LimitedWorld(tmp_path) as world:
            job = await world.submit("now")
            await world.until(job.id, lambda now: now.state is S.IDLE)
            await world.restart()
            await world.scheduler.settled()  # it has told that the job is idle
            world.clock.ahead = timedelta(days=400)
            began = utc_now()
            world.scheduler.set_status(job.id, SchedulerStatus.RUNNING, time_started=began)
            await world.until(job.id, lambda now: now.state is S.RUNNING)
            await a_turn()
            await world.scheduler.settled()
            now = await world.manager.get(job.id)
            assert (now.state, now.removal) == (S.RUNNING, None)

    run(scenario)


def test_of_several_holds_the_last_one_counts(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with LimitedWorld(tmp_path) as world:
            job = await world.in_state(SchedulerStatus.HELD)
            world.clock.ahead = timedelta(hours=3)
            world.scheduler.set_status(job.id, SchedulerStatus.IDLE)
            world.scheduler.set_status(job.id, SchedulerStatus.HELD)
            await world.scheduler.settled()
            await world.restart()
            await a_turn()
            await world.scheduler.settled()
            now = await world.manager.get(job.id)
            assert (now.state, now.removal) == (S.HELD, None)
            await world.stop()
            world.clock.ahead += timedelta(minutes=16)
            await world.start_again()
            assert (await world.until(job.id, lambda now: now.is_final)).state is S.FAILED

    run(scenario)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (RAN_TOO_LONG, RAN_2_H),
        (HELD_TOO_LONG, "It was held for 15 min (hold_limit) and was ended: No such file."),
    ],
)
def test_what_the_scheduler_ended_for_a_limit_has_failed_with_the_same_sentence(
    tmp_path: Path, code: int, reason: str
) -> None:
    """The backstop of HTCondor and of the local launcher, while no server ran."""

    async def scenario() -> None:
        async with LimitedWorld(tmp_path) as world:
            held = code == HELD_TOO_LONG
            status = SchedulerStatus.HELD if held else SchedulerStatus.RUNNING
            job = await world.in_state(status, reason="No such file." if held else None)
            await world.stop()
            world.queue.set_status(
                job.id, SchedulerStatus.REMOVED, reason="It took too long.", reason_code=code
            )
            await world.start_again()
            job = await world.until(job.id, lambda now: now.is_final)
            assert (job.state, job.reason) == (S.FAILED, reason)

    run(scenario)


def test_who_asked_first_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with LimitedWorld(tmp_path, SchedulerAway(away=False)) as world:
            job = await world.in_state(SchedulerStatus.RUNNING)
            world.scheduler.away = True  # type: ignore[attr-defined]
            await world.manager.remove(job.id)
            pass_time(2 * HOUR_S)
            await a_turn()
            world.scheduler.away = False  # type: ignore[attr-defined]
            pass_time(10)
            job = await world.until(job.id, lambda now: now.is_final)
            assert (job.state, job.reason) == (S.REMOVED, "Removed on request.")

    run(scenario)


def test_a_stopped_server_ends_nothing_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with LimitedWorld(tmp_path) as world:
            job = await world.in_state(SchedulerStatus.RUNNING)
            await world.stop()
            pass_time(3 * HOUR_S)
            await a_turn()
            assert not world.queue.removals
            await world.start_again()
            await eventually(lambda: world.queue.jobs[job.id].status is SchedulerStatus.RUNNING)

    run(scenario)
