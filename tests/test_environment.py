"""What a job finds in its environment."""

import os
import pwd
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ocps_jobmanager.environment import Account, job_environment, server_account
from ocps_jobmanager.errors import LaunchRefusedError
from ocps_jobmanager.layout import Layout
from ocps_jobmanager.models import CodeRef, JobState, NewJob, Resources

LAYOUT = Layout(work_dir=Path("/shared/work"), state_dir=Path("/var/state"))
ACCOUNT = Account(name="ocps", home="/home/ocps")
BASE = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/home/ocps",
    "USER": "ocps",
    "LOGNAME": "ocps",
    "LANG": "C.UTF-8",
    "JOB_ID": "0" * 32,
    "JOB_OUTPUT_DIR": "/shared/work/output/" + "0" * 32,
}


def environment(env=None, getenv=(), server_environ=None) -> dict[str, str]:
    job = NewJob(
        id="0" * 32,
        type="ap",
        run_id=None,
        owner=None,
        monitor_key="f" * 32,
        state=JobState.WAITING,
        env=env or {},
        getenv=getenv,
        code=CodeRef(kind="file", path="jobs/a.sh", sha256="0" * 64),
        data=(),
        resources=Resources(),
        log_dir=Path("/shared/work/logs"),
        time_submitted=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return job_environment(job, layout=LAYOUT, server_environ=server_environ or {}, account=ACCOUNT)


def test_a_job_gets_the_base_and_nothing_of_the_servers_environment():
    secrets = {"OCPS_API_TOKENS": "/t", "AWS_SECRET": "s", "PATH": "/evil", "LANG": "de_DE"}
    assert environment(server_environ=secrets) == BASE


def test_a_job_gets_what_was_submitted_byte_for_byte():
    env = {"A": " 'b' \"c\" $(HOME) \\", "B": "", "C": "é\x01\t"}
    assert environment(env) == {**BASE, **env}


def test_a_job_gets_what_its_type_reads_from_the_servers_environment():
    server_environ = {"OCPS_STACK_SETUP": "/stack/setup.sh", "EMPTY": "", "B": "not this"}
    given = environment(getenv=("OCPS_STACK_SETUP", "EMPTY"), server_environ=server_environ)
    assert given == {**BASE, "OCPS_STACK_SETUP": "/stack/setup.sh", "EMPTY": ""}


def test_a_name_that_the_server_does_not_have_is_left_out():
    assert environment(getenv=("NOT_THERE",)) == BASE


def test_what_comes_later_wins():
    server_environ = {"PATH": "/server/bin", "HOME": "/server", "A": "server"}
    given = environment(
        {"A": "submitted", "HOME": "/submitted"},
        getenv=("PATH", "HOME", "A", "JOB_ID"),
        server_environ={**server_environ, "JOB_ID": "another"},
    )
    assert given == {**BASE, "PATH": "/server/bin", "HOME": "/submitted", "A": "submitted"}


@pytest.mark.parametrize("value", ["a\nhunter2", "hunter2\r", "hunter2\udce4", "hunter2" * 20_000])
def test_a_value_that_no_job_can_get_refuses_the_launch_and_is_not_shown(value):
    with pytest.raises(LaunchRefusedError, match=r"^The variable SECRET of .* it .*\.$") as refused:
        environment(getenv=("SECRET",), server_environ={"SECRET": value})
    assert "hunter2" not in str(refused.value)


def test_a_variable_that_is_not_handed_on_may_have_any_value():
    assert environment(server_environ={"BASH_FUNC_x%%": "() {\n}"}) == BASE


def test_the_account_is_the_servers_own():
    account = server_account()
    assert account.name == pwd.getpwuid(os.geteuid()).pw_name
    assert account.home == pwd.getpwuid(os.geteuid()).pw_dir


def test_an_account_without_a_name_will_do(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_017)
    assert server_account() == Account(name="4000000017", home="/")
