"""What an ad says of a job, and what it does not say."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocps_jobmanager.models import Resources
from ocps_jobmanager.schedulers.base import HELD_TOO_LONG, RAN_TOO_LONG, SchedulerStatus
from ocps_jobmanager.schedulers.condor_ads import (
    any_of,
    from_event,
    from_history,
    from_queue,
    quoted,
    remove_reason,
)
from ocps_jobmanager.schedulers.submit import description
from ocps_jobmanager.times import from_epoch

BACKSTOP = description(Resources(), Path("/x"))["periodic_remove"]
AD = {"OcpsJobId": "a", "ClusterId": 7, "ProcId": 1, "QDate": 100, "JobStatus": 2}


def make(**more: Any) -> dict[str, Any]:
    return {**AD, **more}


def test_exit_attributes_mean_nothing_before_the_end() -> None:
    job = from_queue(make(ExitBySignal=True, ExitSignal=15, ExitCode=0))
    assert (job.status, job.exit_code, job.exit_signal) == (SchedulerStatus.RUNNING, None, None)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"ExitBySignal": False, "ExitCode": 3}, (3, None)),
        ({"ExitBySignal": True, "ExitSignal": 9}, (None, 9)),
        ({"ExitBySignal": True, "ExitSignal": 9, "ExitCode": 0}, (None, 9)),
    ],
)
def test_a_completed_job_has_an_exit_code_or_a_signal(
    more: dict[str, Any], expected: tuple[int | None, int | None]
) -> None:
    job = from_queue(make(JobStatus=4, CompletionDate=200, **more))
    assert job.status is SchedulerStatus.COMPLETED
    assert (job.exit_code, job.exit_signal) == expected
    assert job.time_completed == from_epoch(200)


def test_an_end_that_nobody_can_tell_is_broken() -> None:
    assert from_queue(make(JobStatus=4)).status is SchedulerStatus.BROKEN
    assert from_history(make(JobStatus=1)).status is SchedulerStatus.BROKEN


def test_a_job_that_is_being_removed_is_told_of_when_it_is_gone() -> None:
    assert from_queue(make(JobStatus=3)).status is SchedulerStatus.UNKNOWN
    assert from_queue(make(JobStatus=3, LastJobStatus=2)).status is SchedulerStatus.RUNNING
    assert from_queue(make(JobStatus=3, LastJobStatus=5)).status is SchedulerStatus.HELD
    job = from_history(make(JobStatus=3, RemoveReason="x", EnteredCurrentStatus=300))
    assert (job.status, job.reason) == (SchedulerStatus.REMOVED, "x")
    assert job.time_completed == from_epoch(300)


def test_a_completed_job_that_was_cleared_from_the_queue_is_completed() -> None:
    job = from_history(make(JobStatus=3, RemoveReason="x", CompletionDate=200, ExitCode=4))
    assert (job.status, job.exit_code, job.reason) == (SchedulerStatus.COMPLETED, 4, None)


def test_an_event_tells_the_end_and_not_the_attributes_of_an_earlier_start() -> None:
    ended = {
        "OcpsJobId": "a",
        "Cluster": 7,
        "Proc": 1,
        "TriggerEventTypeName": "ULOG_JOB_TERMINATED",
        "JobStatus": 2,
        "ExitBySignal": True,
        "ExitSignal": 15,
        "TerminatedNormally": True,
        "ReturnValue": 0,
        "ToE": {"When": 250},
        "NumJobStarts": 2,
    }
    job = from_event(ended)
    assert (job.status, job.exit_code, job.exit_signal) == (SchedulerStatus.COMPLETED, 0, None)
    assert (job.time_completed, job.num_starts) == (from_epoch(250), 2)
    killed = {**ended, "TerminatedNormally": False, "TerminatedBySignal": 9}
    del killed["ReturnValue"]
    assert (from_event(killed).exit_code, from_event(killed).exit_signal) == (None, 9)


@pytest.mark.parametrize("ending", ["", " (by user ocps)", " (by user a (b) c)"])
@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers())
def test_the_code_of_a_removal_comes_back(ending: str, reason: str, code: int) -> None:
    text = remove_reason(reason, code) + ending
    job = from_history(make(JobStatus=3, RemoveReason=text))
    assert job.reason_code == code
    assert job.reason == " ".join(reason.split())


def test_a_removal_by_others_has_no_code() -> None:
    for reason in ("via condor_rm (by user ocps)", "[OCPS x] (by user y)", "", None):
        job = from_history({**make(JobStatus=3), "RemoveReason": reason})
        assert (job.reason, job.reason_code) == (reason, None)


def test_where_it_runs_or_ran_last() -> None:
    last = {"LastRemoteHost": "slot1@b"}
    assert from_queue(make(RemoteHost="slot1@a", **last)).remote_host == "slot1@a"
    assert from_queue(make(**last)).remote_host == "slot1@b"


def test_the_start_is_that_of_the_script_and_never_an_earlier_one() -> None:
    for shadow, script, expected in ((10, 15, 15), (20, 15, 20), (10, None, 10), (None, None, 0)):
        times = {"JobCurrentStartDate": shadow, "JobCurrentStartExecutingDate": script}
        job = from_queue(make(**{name: time for name, time in times.items() if time}))
        assert job.time_started == (from_epoch(expected) if expected else None)


def test_memory_is_in_mib_and_rounded() -> None:
    assert from_queue(make(MemoryUsage=12.6)).memory_mb == 13
    assert from_queue(make()).memory_mb is None


def test_constraints_quote() -> None:
    assert any_of(["a", "b-1"]) == 'member(OcpsJobId, {"a", "b-1"})'
    assert quoted('a"b\\c') == '"a\\"b\\\\c"'


@pytest.mark.parametrize(
    ("reason", "last", "code"),
    [
        ("It ran too long. [OCPS 4243]", 2, RAN_TOO_LONG),
        ("It was held too long. [OCPS 4244]", 5, HELD_TOO_LONG),
        # What a schedd says that does not know of PeriodicRemoveReason.
        (f"The job attribute PeriodicRemove expression '{BACKSTOP}' evaluated to TRUE", 2, 4243),
        (f"The job attribute PeriodicRemove expression '{BACKSTOP}' evaluated to TRUE", 5, 4244),
        ("The job attribute PeriodicRemove expression 'Mine > 1' evaluated to TRUE", 2, None),
        (f"via condor_rm (by user me), not for {BACKSTOP}", 2, None),
    ],
)
def test_the_backstop_is_recognised(reason: str, last: int, code: int | None) -> None:
    ad = make(JobStatus=3, LastJobStatus=last, RemoveReason=reason)
    assert from_history(ad).reason_code == code
    event = {"Cluster": 7, "Proc": 0, "TriggerEventTypeName": "ULOG_JOB_ABORTED", **ad}
    assert from_event(event).reason_code == code


@pytest.mark.parametrize(
    ("more", "starts"),
    [
        ({}, 1),
        ({"NumJobStarts": 0}, 1),
        ({"NumJobStarts": 1, "NumJobCompletions": 1, "JobMaxRetries": 2}, 2),
        ({"NumJobStarts": 3, "NumJobCompletions": 2, "JobMaxRetries": 2}, 3),
        # The last run is over, and the job has not left the state.
        ({"NumJobStarts": 3, "NumJobCompletions": 3, "JobMaxRetries": 2}, 3),
        ({"NumJobStarts": 1, "NumJobCompletions": 1}, 1),
        ({"JobStatus": 1, "NumJobStarts": 2, "NumJobCompletions": 2}, 2),
    ],
)
def test_a_start_that_the_schedd_has_not_counted_yet_counts(
    more: dict[str, int], starts: int
) -> None:
    assert from_queue(make(**more)).num_starts == starts
