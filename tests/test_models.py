"""The states, the table, and the phases that clients see."""

import itertools

import pytest

from ocps_jobmanager.models import (
    FINAL_STATES,
    QUEUE_STATES,
    TRANSITIONS,
    JobState,
    Phase,
    Transition,
    allowed_before,
)
from tests.makers import job

S = JobState


def test_the_table_has_a_row_for_every_state() -> None:
    assert set(TRANSITIONS) == set(JobState)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(JobState, JobState)))
def test_the_grid(before: JobState, after: JobState) -> None:
    """What may follow what, said a second way."""
    if before in FINAL_STATES or before is after:
        expected = False
    elif before is S.WAITING:
        expected = after in {S.SUBMITTING, S.REMOVED, S.FAILED}
    else:
        expected = after not in {S.WAITING, S.SUBMITTING}
    assert (after in TRANSITIONS[before]) is expected
    assert (before in allowed_before(after)) is expected


def test_a_transition_can_be_narrowed_but_not_widened() -> None:
    narrowed = Transition(job_id="x", to=S.IDLE, only_from=frozenset({S.SUBMITTING, S.WAITING}))
    assert narrowed.allowed_from == {S.SUBMITTING}


@pytest.mark.parametrize(
    ("state", "exit_code", "phase"),
    [
        (S.WAITING, None, "pending"),
        (S.SUBMITTING, None, "queued"),
        (S.IDLE, None, "queued"),
        (S.RUNNING, None, "executing"),
        (S.TRANSFERRING_OUTPUT, None, "executing"),
        (S.SUSPENDED, None, "suspended"),
        (S.HELD, None, "held"),
        (S.COMPLETED, 0, "completed"),
        (S.COMPLETED, 3, "error"),
        (S.COMPLETED, None, "error"),  # ended by a signal
        (S.REMOVED, None, "aborted"),
        (S.FAILED, None, "error"),
    ],
)
def test_phases(state: JobState, exit_code: int | None, phase: str) -> None:
    assert job(state=state, exit_code=exit_code).phase == phase


def test_unknown_is_never_answered() -> None:
    """The CSC takes it for an end."""
    assert "unknown" not in set(Phase)


def test_a_job_is_waiting_submitting_queued_or_ended() -> None:
    assert set(JobState) == {S.WAITING, S.SUBMITTING} | QUEUE_STATES | FINAL_STATES
