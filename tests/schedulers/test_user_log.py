"""The user log's text, character for character as HTCondor writes it."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from ocps_jobmanager.schedulers import user_log

TIME = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)


@pytest.fixture(autouse=True)
def _in_chile(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CLST+3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_submission_and_start_have_the_local_time_and_the_host() -> None:
    assert user_log.submitted(7, TIME, "crater") == (
        "000 (007.000.000) 2026-01-02 00:04:05 Job submitted from host: <crater>\n...\n"
    )
    assert user_log.executing(12345, TIME, "crater") == (
        "001 (12345.000.000) 2026-01-02 00:04:05 Job executing on host: <crater>\n...\n"
    )


def test_a_normal_termination_has_the_exit_code_and_the_processor_time() -> None:
    text = user_log.terminated(
        7, TIME, exit_code=213, exit_signal=None, user_s=93784.9, system_s=59.99
    )
    assert text == (
        "005 (007.000.000) 2026-01-02 00:04:05 Job terminated.\n"
        "\t(1) Normal termination (return value 213)\n"
        "\t\tUsr 1 02:03:04, Sys 0 00:00:59  -  Run Remote Usage\n"
        "\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Run Local Usage\n"
        "\t\tUsr 1 02:03:04, Sys 0 00:00:59  -  Total Remote Usage\n"
        "\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Total Local Usage\n"
        "\t0  -  Run Bytes Sent By Job\n"
        "\t0  -  Run Bytes Received By Job\n"
        "\t0  -  Total Bytes Sent By Job\n"
        "\t0  -  Total Bytes Received By Job\n"
        "...\n"
    )


def test_a_termination_by_a_signal_says_so() -> None:
    text = user_log.terminated(7, TIME, exit_code=None, exit_signal=9, user_s=0, system_s=0)
    assert text.splitlines()[1:3] == [
        "\t(0) Abnormal termination (signal 9)",
        "\t(0) No core file",
    ]


def test_no_reason_can_forge_an_event() -> None:
    text = user_log.aborted(7, TIME, "Because.\n...\n005 (007.000.000) Job terminated.\r\n")
    assert text == (
        "009 (007.000.000) 2026-01-02 00:04:05 Job was aborted.\n"
        "\tBecause. ... 005 (007.000.000) Job terminated.\n...\n"
    )
    assert user_log.events_in(text) == {9: 1}


def test_the_events_of_a_log_are_recognised() -> None:
    text = user_log.submitted(7, TIME, "crater") + 2 * user_log.executing(7, TIME, "crater")
    assert user_log.events_in(text) == {0: 1, 1: 2}
    assert user_log.events_in("") == {}
