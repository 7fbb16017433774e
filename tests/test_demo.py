"""The demonstration: it shows what it says, and leaves nothing behind, however it ends."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ocps_jobmanager.butler import Visit, make_registry
from tests.processes_of import processes_of
from tests.trees import PROJECT, bare_environment

VISIT = Visit(
    number=77,
    filter="i",
    time_observed="2020-09-15T09:24:08.770000",
    exposure_time_s=30.0,
    proposal="p",
    object="the moon",
    ccds=(1,),
)


class Demo:
    """Runs demonstrations whose temporary directories are in one place."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp = tmp_path / "temporary files"
        self.tmp.mkdir()

    def start(self, *arguments: str, program: str = "", **more: str) -> "subprocess.Popen[str]":
        """Start one; `program` is Python that comes first."""
        program += "\nimport sys; from ocps_jobmanager.cli import main; sys.exit(main())"
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-u", "-c", program, "demo", *arguments],
            cwd=PROJECT,
            env=bare_environment(TMPDIR=str(self.tmp)) | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **more: str) -> tuple[int, str, str]:
        """Run one to its end: exit status, standard output, standard error."""
        process = self.start(*arguments, **more)
        out, err = process.communicate(timeout=100)
        return process.returncode, out, err

    def assert_nothing_is_left(self) -> None:
        assert list(self.tmp.iterdir()) == []
        assert processes_of(self.tmp) == []


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    yield demo
    demo.assert_nothing_is_left()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    repo = tmp_path / "my repo"
    repo.mkdir()
    make_registry(repo / "registry.sqlite3", [VISIT])
    return repo


def test_four_jobs_wait_for_their_data_and_find_their_images(demo: Demo) -> None:
    # A user's settings, and another server's, are none of its business.
    settings = {"API_PORT": "1", "OCPS_WORK_DIR": "/nonexistent", "OCPS_SCHEDULER": "auto"}
    status, out, err = demo.run(**settings)
    assert (status, err) == (0, "")
    ids = re.findall(r'"job_id": "([0-9a-f]{32})"', out)
    assert len(set(ids)) == 4
    # What happens to each job, in order; the states between depend on who looks when.
    for number, job_id in enumerate(ids):
        of_job = [line for line in out.splitlines() if job_id in line and '"' not in line]
        states = re.findall(r"  (waiting|completed, exit code 0)$", "\n".join(of_job), re.MULTILINE)
        assert states == ["waiting", "completed, exit code 0"]
        touch = next(line for line in of_job if line.startswith("touch "))
        assert touch.endswith(f"/{job_id}.dat")
        assert of_job.index(touch) == 1
        assert re.search(
            r"  visit 4219(07, ccd \d+: .* image is there|51, ccd \d+: .* image is missing)$",
            of_job[-1],
        ), of_job[-1]
        if number == 3:
            assert out.index("3 jobs have ended, 1 waiting.") < out.index(touch)
    assert "4 jobs have ended, 0 waiting." in out


def test_a_repository_and_a_place_of_ones_own_are_used(
    demo: Demo, repo: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    arguments = ["--repo", str(repo), "--filter", "i", "--work-dir", str(shared)]
    status, out, err = demo.run(*arguments)
    assert (status, err) == (0, "")
    found = "visit 77, ccd 1: the moon, 2020-09-15, filter i, 30 s, image is missing\n"
    assert out.count(found) == 4
    touched = re.findall(r"^touch (.*)/[0-9a-f]{32}\.dat$", out, re.MULTILINE)
    assert len(touched) == 4
    assert {Path(work).parents[1] for work in touched} == {shared}
    assert list(shared.iterdir()) == []


def test_a_machine_without_python3_where_jobs_look_for_it(demo: Demo) -> None:
    program = "import ocps_jobmanager.demo as demo; demo._JOB_PATH = '/nonexistent'"
    process = demo.start(program=program)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (0, "")
    assert "for the demonstration the job type has `getenv: [PATH]`" in out


@pytest.mark.parametrize("arguments", [["--repo", "/no/such/repo"], ["--filter", "z"]])
def test_a_registry_of_no_use_is_one_line(demo: Demo, arguments: list[str]) -> None:
    status, _, err = demo.run(*arguments)
    assert status == 2
    assert re.fullmatch(r"(There is no registry|The registry) .*\.\n", err)


def test_a_work_directory_that_is_missing_is_one_line(demo: Demo) -> None:
    status, _, err = demo.run("--work-dir", "/no/such/dir")
    assert status == 1
    assert re.fullmatch(r"The demonstration can't be run: .*/no/such/dir.*\n", err)


def test_a_job_that_fails_is_told_with_its_own_words(demo: Demo, repo: Path) -> None:
    with closing(sqlite3.connect(repo / "registry.sqlite3")) as connection, connection:
        connection.execute("ALTER TABLE raw RENAME COLUMN object TO subject")
    status, _, err = demo.run("--repo", str(repo), "--filter", "i")
    assert status == 1
    assert re.match(r"Job [0-9a-f]{32} is completed, exit code 4\.", err)
    assert "can't be read: no such column: object." in err
    assert "  Running at localhost:" in err  # the server's log


def read_until(process: "subprocess.Popen[str]", words: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"ended before: {words}")


@pytest.mark.parametrize(
    ("number", "at"),
    [
        (signal.SIGINT, "Starting"),
        (signal.SIGTERM, '"job_id"'),
        (signal.SIGHUP, "  waiting"),
        (signal.SIGINT, "touch"),
    ],
)
def test_an_interruption_ends_everything(demo: Demo, number: int, at: str) -> None:
    process = demo.start()
    read_until(process, at)
    process.send_signal(number)
    process.send_signal(number)  # an impatient person's second one changes nothing
    _, err = process.communicate(timeout=60)
    assert err == "Interrupted; the server is stopped and its directory removed.\n"
    assert process.returncode == 130


def test_a_server_that_dies_is_told_with_its_last_words(demo: Demo) -> None:
    process = demo.start()
    read_until(process, "  waiting")
    (server,) = children_of(process.pid)
    os.kill(server, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("The Job Manager has ended by itself, exit status -9.\n")
    assert "  Running at localhost:" in err


def test_a_server_that_cannot_start_is_told_with_its_last_words(demo: Demo) -> None:
    unusable = demo.tmp / "tab\tin its name"
    unusable.mkdir()
    status, _, err = demo.run(TMPDIR=str(unusable))
    assert status == 1
    assert err.startswith("The Job Manager has ended by itself, exit status 2.\n")
    assert "    OCPS_WORK_DIR is " in err
    unusable.rmdir()


def children_of(pid: int) -> list[int]:
    text = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(child) for child in text.split()]
