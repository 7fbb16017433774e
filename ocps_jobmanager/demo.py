"""``ocps-jobmanager demo``: a server, four jobs that wait for their data, and what they find."""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from ocps_jobmanager.answers import JobInfo, has_ended, has_succeeded
from ocps_jobmanager.butler import RegistryError, Visit, image_file, images, make_registry
from ocps_jobmanager.client import ClientError, JobManagerClient, choose, submit_images
from ocps_jobmanager.client_config import ClientConfig, UsageError
from ocps_jobmanager.demo_server import DemoError, DemoServer, Interrupts
from ocps_jobmanager.models import JobState
from ocps_jobmanager.progress import Progress, state_in_words

#: Where a job finds its programs, as every job's environment says.
_JOB_PATH = "/usr/local/bin:/usr/bin:/bin"
_JOB_TYPE = "inspect"
_LOOK_INTERVAL_S = 0.25
#: Longer than the monitors' poll interval: they have looked and found nothing.
_WAIT_SHOWN_S = 1.5
_REMOVAL_DEADLINE_S = 5.0
_DEADLINE_S = {"local": 60.0, "htcondor": 300.0}

_VISITS = (
    Visit(
        number=421907,
        filter="g",
        time_observed="2015-03-14T04:11:37.204518",
        exposure_time_s=90.0,
        proposal="2015A-0000",
        object="demo_field_01",
        ccds=(5, 10, 28, 56),
    ),
    Visit(
        number=421951,
        filter="g",
        time_observed="2015-03-14T06:02:09.730142",
        exposure_time_s=90.0,
        proposal="2015A-0000",
        object="demo_field_02",
        ccds=(5, 10, 28, 56),
    ),
    Visit(
        number=421960,
        filter="r",
        time_observed="2015-03-14T06:24:51.118960",
        exposure_time_s=60.0,
        proposal="2015A-0000",
        object="demo_field_02",
        ccds=(5, 10),
    ),
)
#: Its images' file is in the demonstration's repository, the others' are not.
_VISIT_WITH_FILE = _VISITS[0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``demo``."""
    parser.add_argument(
        "--repo",
        type=Path,
        metavar="DIR",
        help="a Butler repository with a registry.sqlite3 (default: a small one is made)",
    )
    parser.add_argument(
        "--filter", default="g", metavar="NAME", help="of the images in it (default: g)"
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="where the temporary work directory is made, for HTCondor a file system that the"
        " execute hosts share (default: $TMPDIR or /tmp)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demonstration; leave no process and no file behind, however it ends.

    Returns
    -------
    int
        0; 1 if something failed; 2 if the registry can't be used; 130 if it was interrupted.
    """
    try:
        with Interrupts() as interrupts, contextlib.ExitStack() as stack:
            own_dir = stack.enter_context(_temporary_directory(None))
            shared_dir = own_dir
            if args.work_dir is not None:
                shared_dir = stack.enter_context(_temporary_directory(args.work_dir))
            environ, remarks = _server_environ(own_dir, shared_dir)
            demo = _Demo(Console(), environ, own_dir=own_dir, shared_dir=shared_dir)
            stack.callback(demo.close)
            with interrupts.allowed():
                for remark in remarks:
                    demo.say(remark)
                demo.run(args.repo, args.filter)
    except (UsageError, RegistryError) as error:
        return _fail(str(error), 2)
    except DemoError as error:
        return _fail(str(error), 1)
    except OSError as error:
        return _fail(f"The demonstration can't be run: {error}.", 1)
    except KeyboardInterrupt:
        return _fail("Interrupted; the server is stopped and its directory removed.", 130)
    print("The server is stopped and its directory removed.")
    return 0


def _fail(sentence: str, status: int) -> int:
    sys.stdout.flush()
    print(sentence, file=sys.stderr)
    return status


@contextlib.contextmanager
def _temporary_directory(parent: Path | None) -> Iterator[Path]:
    directory = tempfile.TemporaryDirectory(prefix="ocps-demo-", dir=parent)
    try:
        yield Path(directory.name).absolute()
    finally:
        # A shadow of HTCondor may still be writing the last line of a job's log.
        for attempts_left in reversed(range(10)):
            try:
                directory.cleanup()
                break
            except OSError:
                if attempts_left == 0:
                    raise
                time.sleep(0.2)


def _server_environ(own_dir: Path, shared_dir: Path) -> tuple[dict[str, str], list[str]]:
    """The server's environment, and what a person should know of it.

    Raises
    ------
    DemoError
        The job that is to be shown is not there.
    """
    scheduler = "htcondor" if os.environ.get("OCPS_SCHEDULER") == "htcondor" else "local"
    others = ("API_", "OCPS_", "PYTHON")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    home = Path(__file__).resolve().parents[1]
    specs = home / "jobs" / "job_specs.yaml"
    if not specs.is_file():
        raise DemoError(f"There is no {specs}: the demonstration runs from the project's folder.")
    remarks = []
    if scheduler == "local" and not _jobs_have_python():
        specs = _specs_with_path(specs, own_dir)
        python_dir = own_dir / "python"
        python_dir.mkdir()
        (python_dir / "python3").symlink_to(sys.executable)
        environ["PATH"] = f"{python_dir}:{environ.get('PATH', _JOB_PATH)}"
        remarks.append(
            f"There is no python3 on a job's PATH ({_JOB_PATH}) on this machine: for the "
            "demonstration the job type has `getenv: [PATH]`, which finds this one."
        )
    environ |= {
        "OCPS_HOME": str(home),
        "OCPS_JOB_SPECS": str(specs),
        "OCPS_SCHEDULER": scheduler,
        "OCPS_WORK_DIR": str(shared_dir / "work"),
        "OCPS_STATE_DIR": str(own_dir / "state"),
        "OCPS_POLL_INTERVAL": "1",
        "API_PORT": "0",
    }
    return environ, remarks


def _jobs_have_python() -> bool:
    python = shutil.which("python3", path=_JOB_PATH)
    check = "import sqlite3, sys; sys.exit(sys.version_info < (3, 7))"
    # Found by `which`, run with words of our own
    return python is not None and not subprocess.call([python, "-I", "-c", check])


def _specs_with_path(specs: Path, own_dir: Path) -> Path:
    """Copy a job type and its script, with the server's PATH for its jobs."""
    job_type = yaml.safe_load(specs.read_text(encoding="utf-8"))["type"][_JOB_TYPE]
    copy = own_dir / "jobs" / specs.name
    copy.parent.mkdir()
    shutil.copy(specs.parents[1] / job_type["script"], copy.parent)
    job_type |= {"script": f"jobs/{Path(job_type['script']).name}", "getenv": ["PATH"]}
    copy.write_text(yaml.safe_dump({"type": {_JOB_TYPE: job_type}}), encoding="utf-8")
    return copy


def _make_repo(repo: Path) -> None:
    for directory in (repo, repo / "templates", repo / "calib"):
        directory.mkdir()
    make_registry(repo / "registry.sqlite3", _VISITS)
    image = repo / image_file(_VISIT_WITH_FILE.number)
    image.parent.mkdir()
    image.touch()


class _Demo:
    """The demonstration from the server's start to its end.

    Parameters
    ----------
    environ : mapping of str to str
        The server's.
    own_dir, shared_dir : pathlib.Path
        For what this machine alone reads, and for what execute hosts read, too.
    """

    def __init__(
        self, console: Console, environ: Mapping[str, str], *, own_dir: Path, shared_dir: Path
    ) -> None:
        self._console = console
        self._scheduler = environ["OCPS_SCHEDULER"]
        self._own_dir = own_dir
        self._shared_dir = shared_dir
        self._work_dir = Path(environ["OCPS_WORK_DIR"])
        self._client: JobManagerClient | None = None
        self._job_ids: list[str] = []
        self._server = DemoServer(environ, own_dir / "server.log")
        self._server.launch()

    def say(self, line: str = "") -> None:
        """Print a line as it is: no markup, no wrapping."""
        self._console.out(line, highlight=False)

    def run(self, repo: Path | None, filter_name: str) -> None:
        """Show everything.

        Raises
        ------
        DemoError, RegistryError
        """
        try:
            self._run(repo, filter_name)
        except (DemoError, ClientError) as error:
            log = self._server.tail()
            raise DemoError(f"{error}\nThe last lines of the server's log:\n{log}") from error

    def close(self) -> None:
        """End the jobs that have not ended, and the server."""
        if self._client is not None:
            deadline = time.monotonic() + _REMOVAL_DEADLINE_S
            with contextlib.suppress(ClientError):
                for job_id in self._job_ids:
                    self._client.remove(job_id)
                for _ in self._client.follow(self._job_ids, interval_s=0.1, patience_s=0.0):
                    if time.monotonic() > deadline:
                        break
            self._client.close()
        self._server.stop()

    def _run(self, repo: Path | None, filter_name: str) -> None:
        if repo is None:
            repo = self._shared_dir / "repo"
            _make_repo(repo)
        config = self._config(repo.absolute(), filter_name)
        chosen = choose(images(Path(config.data.db), filter_name), 4, random.Random())  # noqa: S311
        self.say(f"Starting a Job Manager in {self._own_dir}; jobs are run by: {self._scheduler}.")
        url = self._server.wait_until_ready()
        self.say(f"Running at {url}")
        self._client = JobManagerClient(url, timeout_s=10.0)

        self.say("\nThe client submits four jobs of type inspect:\n")
        for image in chosen:
            self._job_ids += submit_images(self._client, config, _JOB_TYPE, [image])
        self.say("\nFour monitors look for the jobs' data every second.")
        first, last = self._job_ids[:3], self._job_ids[3:]
        with Progress(self._console) as progress:
            self._show_that_they_wait(progress)
            self._let_arrive(first, progress)
            self._let_arrive(last, progress)
        self._show_what_they_found()

    def _config(self, repo: Path, filter_name: str) -> ClientConfig:
        sections = {
            "data": {
                "repo": str(repo),
                "template": str(repo / "templates"),
                "db": str(repo / "registry.sqlite3"),
                "calib": str(repo / "calib"),
                "filter": filter_name,
            },
            "job": {"output_dir": "./output", "log_dir": "./logs"},
        }
        file = self._own_dir / "config.yaml"
        file.write_text(yaml.safe_dump(sections), encoding="utf-8")
        return ClientConfig.read(file)

    def _show_that_they_wait(self, progress: Progress) -> None:
        until = time.monotonic() + _WAIT_SHOWN_S
        for jobs in self._watch(progress):
            if any(job["state"] != JobState.WAITING for job in jobs):
                raise DemoError("A job does not wait for its data.")
            if time.monotonic() >= until:
                return

    def _let_arrive(self, job_ids: Sequence[str], progress: Progress) -> None:
        """Make the data of jobs arrive, and wait until these jobs have ended."""
        for job_id in job_ids:
            data = self._work_dir / f"{job_id}.dat"
            self.say(f"touch {data}")
            data.touch()
        deadline_s = _DEADLINE_S[self._scheduler]
        deadline = time.monotonic() + deadline_s
        for jobs in self._watch(progress):
            ended = {job["job_id"]: has_ended(job) for job in jobs}
            waiting = [job for job in jobs if job["state"] == JobState.WAITING]
            if all(ended[job_id] for job_id in job_ids):
                self.say(f"{sum(ended.values())} jobs have ended, {len(waiting)} waiting.")
                return
            if time.monotonic() > deadline:
                raise DemoError(f"The jobs have not ended within {deadline_s:g} s.")

    def _watch(self, progress: Progress) -> Iterator[Sequence[JobInfo]]:
        """Look at all jobs again and again, and show them."""
        assert self._client is not None, "the server is ready"
        for snapshot in self._client.follow(self._job_ids, interval_s=_LOOK_INTERVAL_S):
            progress.show(snapshot)
            self._server.check()
            if snapshot.trouble is None:
                yield snapshot.jobs

    def _show_what_they_found(self) -> None:
        assert self._client is not None, "the server is ready"
        self.say("\nWhat the jobs found:")
        for job in self._client.wait(self._job_ids):
            if not has_succeeded(job):
                raise DemoError(_what_went_wrong(job))
            for result in Path(job["output_dir"], "output").glob("inspect-*.json"):
                found = json.loads(result.read_text(encoding="utf-8"))
                self.say(f"  {job['job_id']}  {_in_words(found)}")


def _what_went_wrong(job: JobInfo) -> str:
    words = f"Job {job['job_id']} is {state_in_words(job)}. {job['reason'] or ''}"
    try:
        return f"{words}\n{Path(job['logs']['err']).read_text(encoding='utf-8', errors='replace')}"
    except OSError:
        return words


def _in_words(found: Mapping[str, Any]) -> str:
    there = "is there" if found["image"]["exists"] else "is missing"
    return (
        f"visit {found['visit']}, ccd {found['ccd']}: {found['object']}, {found['date']}, "
        f"filter {found['filter']}, {found['exposure_time_s']:g} s, image {there}"
    )
