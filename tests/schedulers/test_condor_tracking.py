"""Events and the queue's answers, in whatever order they come, make the right news."""

from typing import Any

import pytest

from ocps_jobmanager.schedulers.base import SchedulerJob, SchedulerStatus
from ocps_jobmanager.schedulers.condor_ads import from_history
from ocps_jobmanager.schedulers.condor_tracking import Tracker, found_in

IDLE, RUNNING, HELD = SchedulerStatus.IDLE, SchedulerStatus.RUNNING, SchedulerStatus.HELD
COMPLETED, REMOVED, LOST = (
    SchedulerStatus.COMPLETED,
    SchedulerStatus.REMOVED,
    SchedulerStatus.LOST,
)
UNKNOWN = SchedulerStatus.UNKNOWN
NUMBERS = {"idle": 1, "running": 2, "removing": 3, "completed": 4, "held": 5}


def ad(status: str, **more: Any) -> dict[str, Any]:
    return {
        "OcpsJobId": "a",
        "ClusterId": 7,
        "ProcId": 0,
        "JobStatus": NUMBERS[status],
        "ExitBySignal": False,
        **({"ExitCode": 0} if status == "completed" else {}),
        **more,
    }


def event(trigger: str, **more: Any) -> dict[str, Any]:
    return {
        "OcpsJobId": "a",
        "Cluster": 7,
        "Proc": 0,
        "TriggerEventTypeName": f"ULOG_{trigger}",
        **({"TerminatedNormally": True, "ReturnValue": 3} if trigger == "JOB_TERMINATED" else {}),
        **more,
    }


def statuses(news: list[SchedulerJob]) -> list[SchedulerStatus]:
    return [job.status for job in news]


@pytest.fixture
def tracker() -> Tracker:
    """Follows job ``a``, idle, since 0."""
    tracker = Tracker(lost_after_s=60.0)
    tracker.caught_up()
    tracker.settle()
    tracker.follow("a", 7, 0, 0.0, IDLE)
    return tracker


def test_events_are_news_in_their_order(tracker: Tracker) -> None:
    told = [event("SUBMIT"), event("EXECUTE"), event("JOB_TERMINATED")]
    news = tracker.take_events(told, 1.0)
    assert statuses(news) == [RUNNING, COMPLETED]
    assert news[-1].exit_code == 3


def test_nothing_follows_an_end(tracker: Tracker) -> None:
    tracker.take_events([event("JOB_TERMINATED")], 1.0)
    assert not tracker.take_events([event("EXECUTE"), event("JOB_ABORTED")], 2.0)
    assert not tracker.take_queue([ad("running")], 3.0)
    assert not tracker.missing([], 3.0, 3.0)
    assert len(tracker) == 0


def test_jobs_that_are_not_followed_make_no_news(tracker: Tracker) -> None:
    assert not tracker.take_events([event("EXECUTE", OcpsJobId="b")], 1.0)
    assert not tracker.take_queue([ad("running", OcpsJobId="b")], 1.0)
    tracker.forget("a")
    assert not tracker.take_events([event("EXECUTE")], 2.0)


def test_an_answer_that_is_older_than_an_event_is_not_believed(tracker: Tracker) -> None:
    tracker.take_events([event("EXECUTE"), event("JOB_HELD")], 5.0)
    assert not tracker.take_queue([ad("running")], 4.9)
    assert not tracker.take_queue([ad("completed")], 4.9)


def test_an_answer_from_before_the_job_was_followed_is_not_believed() -> None:
    tracker = Tracker(60.0)
    tracker.follow("a", 7, 0, 5.0, IDLE)
    assert not tracker.take_queue([ad("completed")], 4.0)
    assert not tracker.missing([], 4.0, 5.0)


def test_the_queue_mends_a_lost_event_when_it_says_so_twice(tracker: Tracker) -> None:
    assert not tracker.take_queue([ad("running")], 1.0)
    assert statuses(tracker.take_queue([ad("running")], 3.0)) == [RUNNING]
    assert not tracker.take_queue([ad("running")], 5.0)


def test_an_event_between_two_answers_makes_the_first_one_void(tracker: Tracker) -> None:
    assert not tracker.take_queue([ad("held")], 1.0)
    tracker.take_events([event("EXECUTE")], 2.0)
    assert not tracker.take_queue([ad("held")], 3.0)


def test_an_end_in_the_queue_is_believed_at_once(tracker: Tracker) -> None:
    news = tracker.take_queue([ad("completed", ExitCode=9)], 1.0)
    assert statuses(news) == [COMPLETED]
    assert news[0].exit_code == 9


def test_the_first_answer_for_a_job_of_an_earlier_server_is_believed_at_once() -> None:
    tracker = Tracker(60.0)
    tracker.follow("a", 7, 0, 0.0)
    assert tracker.is_unsure
    assert statuses(tracker.take_queue([ad("held", HoldReason="x")], 1.0)) == [HELD]
    assert not tracker.is_unsure


@pytest.mark.parametrize("trigger", ["JOB_EVICTED", "SHADOW_EXCEPTION", "JOB_RECONNECT_FAILED"])
def test_after_an_unclear_event_the_queue_is_believed_at_once(
    tracker: Tracker, trigger: str
) -> None:
    tracker.take_events([event("EXECUTE")], 1.0)
    assert statuses(tracker.take_events([event(trigger)], 2.0)) == [UNKNOWN]
    assert tracker.is_unsure
    assert statuses(tracker.take_queue([ad("idle")], 3.0)) == [IDLE]
    assert not tracker.is_unsure


def test_an_eviction_before_a_removal_is_not_told_as_idle(tracker: Tracker) -> None:
    told = [event("EXECUTE"), event("JOB_EVICTED"), event("JOB_ABORTED", Reason="x")]
    assert statuses(tracker.take_events(told, 1.0)) == [RUNNING, UNKNOWN, REMOVED]


def test_a_job_that_is_being_removed_has_not_ended(tracker: Tracker) -> None:
    for sent_at in (1.0, 3.0, 5.0):
        assert REMOVED not in statuses(tracker.take_queue([ad("removing")], sent_at))


def test_details_are_news_without_a_status(tracker: Tracker) -> None:
    tracker.take_events([event("EXECUTE", NumJobStarts=0)], 1.0)
    tracker.take_queue([ad("running", NumJobStarts=1)], 2.0)
    news = tracker.take_queue([ad("running", NumJobStarts=1, MemoryUsage=12)], 4.0)
    assert [(job.status, job.memory_mb, job.num_starts) for job in news] == [(UNKNOWN, 12, 1)]


def test_an_answer_that_tells_nothing_new_makes_no_news(tracker: Tracker) -> None:
    assert not tracker.take_queue([ad("idle", QDate=1, NumJobStarts=0)], 1.0)
    assert not tracker.take_queue([ad("idle", QDate=1, NumJobStarts=0, Other=2)], 2.0)


def test_the_end_says_how_many_starts_there_really_were(tracker: Tracker) -> None:
    """At the end of a run the queue may seem to be at the next one already."""
    tracker.take_events([event("EXECUTE")], 1.0)
    over = ad("running", NumJobStarts=1, NumJobCompletions=1, JobMaxRetries=5)
    assert [job.num_starts for job in tracker.take_queue([over], 2.0)] == [2]
    told = event("JOB_TERMINATED", NumJobStarts=1)
    assert [job.num_starts for job in tracker.take_events([told], 3.0)] == [1]


def test_the_number_of_starts_never_goes_back(tracker: Tracker) -> None:
    assert tracker.take_events([event("EXECUTE", NumJobStarts=1)], 1.0)[0].num_starts == 2
    news = tracker.take_queue([ad("running", NumJobStarts=1, MemoryUsage=5)], 2.0)
    assert [job.num_starts for job in news] == [2]


# From before this server --------------------------------------------------------------------------


def test_of_what_happened_before_only_the_outcome_is_told() -> None:
    tracker = Tracker(60.0)
    tracker.follow("a", 7, 0, 0.0)
    told = [event("SUBMIT"), event("EXECUTE"), event("JOB_TERMINATED")]
    assert not tracker.take_events(told, 1.0)
    assert not tracker.take_backlog()
    tracker.caught_up()
    news = tracker.take_backlog()
    assert statuses(news) == [COMPLETED]
    assert news[0].exit_code == 3
    assert not tracker.take_backlog()


def test_it_is_told_when_the_job_is_followed_later() -> None:
    tracker = Tracker(60.0)
    tracker.take_events([event("JOB_TERMINATED")], 1.0)
    tracker.caught_up()
    assert not tracker.take_backlog()
    tracker.follow("a", 7, 0, 2.0)
    assert statuses(tracker.take_backlog()) == [COMPLETED]


def test_settling_loses_nothing_of_what_is_followed() -> None:
    tracker = Tracker(60.0)
    tracker.follow("a", 7, 0, 0.0)
    tracker.take_events([event("JOB_TERMINATED")], 1.0)
    tracker.caught_up()
    tracker.settle()
    assert statuses(tracker.take_backlog()) == [COMPLETED]


def test_what_the_queue_said_meanwhile_is_newer_unless_it_is_the_end() -> None:
    for trigger, expected in (("EXECUTE", []), ("JOB_TERMINATED", [COMPLETED])):
        tracker = Tracker(60.0)
        tracker.follow("a", 7, 0, 0.0)
        tracker.take_events([event(trigger)], 1.0)
        tracker.take_queue([ad("held")], 2.0)
        tracker.caught_up()
        assert statuses(tracker.take_backlog()) == expected


def test_an_event_makes_what_was_before_it_void() -> None:
    tracker = Tracker(60.0)
    tracker.take_events([event("JOB_HELD")], 1.0)
    tracker.caught_up()
    tracker.follow("a", 7, 0, 2.0)
    assert statuses(tracker.take_events([event("JOB_RELEASED")], 3.0)) == [IDLE]
    assert not tracker.take_backlog()


# Neither here nor there ---------------------------------------------------------------------------


def test_a_job_that_the_queue_lacks_is_looked_for_and_not_all_the_time(tracker: Tracker) -> None:
    assert tracker.missing([], 1.0, 1.0) == ["a"]
    assert not tracker.missing([], 3.0, 3.0)
    assert not tracker.missing(["a"], 20.0, 20.0)
    assert tracker.missing([], 21.0, 21.0) == ["a"]


def test_one_that_is_in_neither_for_long_enough_is_lost(tracker: Tracker) -> None:
    assert tracker.take_search("a", None, 100.0) is None
    assert tracker.take_search("a", None, 159.0) is None
    news = tracker.take_search("a", None, 160.0)
    assert news is not None
    assert (news.status, news.cluster_id) == (LOST, 7)
    assert tracker.take_search("a", None, 170.0) is None


@pytest.mark.parametrize("how", ["an outage", "the queue", "the history of another"])
def test_it_must_be_in_neither_all_the_time(tracker: Tracker, how: str) -> None:
    tracker.take_search("a", None, 100.0)
    if how == "an outage":
        tracker.cannot_tell()
    elif how == "the queue":
        tracker.take_queue([ad("idle")], 110.0)
    else:
        tracker.follow("b", 8, 0, 0.0, IDLE)
        tracker.take_search("b", None, 160.0)
        assert tracker.take_search("a", None, 159.0) is None
        return
    assert tracker.take_search("a", None, 160.0) is None


def test_one_that_is_in_the_history_has_ended(tracker: Tracker) -> None:
    found = from_history(ad("completed", ExitBySignal=True, ExitSignal=15))
    news = tracker.take_search("a", found, 1.0)
    assert news is not None
    assert (news.status, news.exit_signal) == (COMPLETED, 15)


def test_the_queue_counts_before_the_history() -> None:
    found = found_in([ad("running")], [ad("completed"), ad("held", OcpsJobId="b")])
    assert found["a"].status is RUNNING
    assert found["b"].status is SchedulerStatus.BROKEN
