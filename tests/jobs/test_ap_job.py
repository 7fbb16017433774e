"""``jobs/ap_job.sh``: what it calls, and how it fails."""

import shlex
import stat
import subprocess
from pathlib import Path

import pytest

from tests.jobs.running import run_script

#: Writes down how it was called. It stands in for programs of the LSST Science Pipelines.
PROGRAM = """#!/bin/sh
printf '%s\\n' "${{0##*/}}" "$@" '' >>{calls}
exit {status}
"""

VARIABLES = {
    "AP_JOB_OUTPUT_DIR": "./my output",
    "AP_VISIT_ID": "421907",
    "AP_CCD_NUM": "10",
    "AP_REPO": "/data/a repo/",
    "AP_TEMPLATE": "/data/a repo/$(templates)/",
    "AP_CALIB": '/data/ca\'lib "x"/',
    "AP_FILTER": "g; touch oops",
}


class Stack:
    """A folder of programs, and what was called of them."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "stack bin"
        self.bin.mkdir()
        self._calls = folder / "calls"
        for name in ("make_apdb.py", "ap_pipe.py"):
            self.install(name, 0)

    def install(self, name: str, status: int) -> None:
        program = self.bin / name
        program.write_text(PROGRAM.format(calls=shlex.quote(str(self._calls)), status=status))
        program.chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        if not self._calls.exists():
            return []
        return [call.splitlines() for call in self._calls.read_text().split("\n\n")[:-1]]


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path)


@pytest.fixture
def job_dir(tmp_path: Path) -> Path:
    job_dir = tmp_path / "job"
    job_dir.mkdir()
    return job_dir


def run(job_dir: Path, stack: Stack | None, **changes: str) -> subprocess.CompletedProcess[str]:
    path = "/usr/local/bin:/usr/bin:/bin"
    if stack is not None:
        path = f"{stack.bin}:{path}"
    return run_script("ap_job.sh", job_dir, {**VARIABLES, **changes}, path)


def test_the_two_programs_get_the_variables_as_they_are(stack: Stack, job_dir: Path) -> None:
    done = run(job_dir, stack)
    assert (done.returncode, done.stderr) == (0, "")
    apdb = [
        "--config",
        "diaPipe.apdb.isolation_level=READ_UNCOMMITTED",
        "--config",
        "diaPipe.apdb.db_url=sqlite:///./my output/apdb/association.db",
    ]
    assert stack.calls == [
        ["make_apdb.py", *apdb],
        [
            *("ap_pipe.py", "/data/a repo/"),
            *("--id", "visit=421907", "ccdnum=10", "filter=g; touch oops"),
            *("--calib", '/data/ca\'lib "x"/'),
            *("--template", "/data/a repo/$(templates)/"),
            *apdb,
            *("--output", "./my output/repo"),
        ],
    ]


def test_the_output_folders_are_made_in_the_jobs_own_directory(stack: Stack, job_dir: Path) -> None:
    run(job_dir, stack)
    made = {str(path.relative_to(job_dir)) for path in job_dir.rglob("*")}
    assert made == {"my output", "my output/repo", "my output/apdb"}


def test_the_stack_is_set_up_by_the_script_that_is_named(stack: Stack, job_dir: Path) -> None:
    setup = job_dir.parent / "set up.sh"
    # As real ones are: it reads what is not set, ends with a failure, and goes elsewhere.
    setup.write_text(f'PATH="{stack.bin}:$PATH"\n: $NOT_SET\nfalse | true\ncd /\nfalse\n')
    done = run(job_dir, None, OCPS_STACK_SETUP=str(setup))
    assert (done.returncode, done.stderr) == (0, "")
    assert [call[0] for call in stack.calls] == ["make_apdb.py", "ap_pipe.py"]
    assert (job_dir / "my output" / "repo").is_dir()


def test_a_setup_script_that_is_missing_is_exit_127_and_a_sentence(job_dir: Path) -> None:
    done = run(job_dir, None, OCPS_STACK_SETUP="/no/such/setup.sh")
    assert done.returncode == 127
    assert done.stderr == (
        "OCPS_STACK_SETUP names /no/such/setup.sh, which can't be read on this machine.\n"
    )


@pytest.mark.parametrize("missing", ["make_apdb.py", "ap_pipe.py"])
def test_without_the_pipelines_nothing_is_run_and_it_is_exit_127_and_a_sentence(
    stack: Stack, job_dir: Path, missing: str
) -> None:
    (stack.bin / missing).unlink()
    done = run(job_dir, stack)
    assert done.returncode == 127
    assert done.stderr.startswith(f"{missing} is not on the PATH: ")
    assert done.stderr.count("\n") == 1
    assert stack.calls == []
    assert list(job_dir.iterdir()) == []


@pytest.mark.parametrize("failing", ["make_apdb.py", "ap_pipe.py"])
def test_a_program_that_fails_makes_the_job_fail_at_once(
    stack: Stack, job_dir: Path, failing: str
) -> None:
    stack.install(failing, 5)
    assert run(job_dir, stack).returncode == 5
    assert stack.calls[-1][0] == failing


@pytest.mark.parametrize("name", sorted(VARIABLES))
def test_a_variable_that_is_missing_is_exit_2_and_a_sentence(
    stack: Stack, job_dir: Path, name: str
) -> None:
    done = run(job_dir, stack, **{name: ""})
    assert (done.returncode, done.stderr) == (2, f"The variable {name} is not set.\n")
    assert stack.calls == []


def test_the_scripts_are_executable_for_all() -> None:
    jobs = Path(__file__).resolve().parents[2] / "jobs"
    for script in (jobs / "ap_job.sh", jobs / "inspect_job.py"):
        assert stat.S_IMODE(script.stat().st_mode) & 0o111 == 0o111, script
