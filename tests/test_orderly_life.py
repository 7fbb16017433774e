"""How a server ends, reads its files again, and says in one line why it does not start."""

import contextlib
import http.client
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from ocps_jobmanager.job_specs import JobType, changes_between
from ocps_jobmanager.models import Resources
from tests.server import JOB_SPECS, PROJECT, ServerProcess, alive, wait_until
from tests.server_suite import UNTIL_FILE


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path) as server:
        yield server


# SIGTERM ---------------------------------------------------------------------------------------


class Submitter:
    """Submits jobs, one after another, until it can't any more."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self.accepted: list[str] = []
        self.thread = threading.Thread(target=self._submit)
        self.thread.start()

    def _submit(self) -> None:
        with contextlib.suppress(requests.ConnectionError):
            while True:
                job_id = self._server.submit(THEN="sleep 0.1")
                self.accepted.append(job_id)
                self._server.data_arrive(job_id)


def test_a_stop_under_load_loses_nothing(server: ServerProcess) -> None:
    """Within 10 s, too: if something had to be forced, the exit status were another."""
    submitters = [Submitter(server) for _ in range(4)]
    wait_until(lambda: all(len(one.accepted) >= 8 for one in submitters), "many jobs")
    wait_until(server.runs, "some jobs run")
    children = server.children()
    assert server.stop() == 0
    for submitter in submitters:
        submitter.thread.join()
    monitors = [pid for pid, argv in children.items() if "monitor.py" in str(argv)]
    wait_until(lambda: not any(alive(pid) for pid in monitors), "no monitor is left")
    accepted = {job_id for one in submitters for job_id in one.accepted}
    server.start()
    # Whose answer was lost is not known to anybody, and may still have been accepted.
    unknown = set(server.ids_of("all")) - accepted
    assert len(unknown) <= len(submitters)
    for job_id in unknown:
        server.delete(job_id)
    for job_id in accepted:
        job = server.ended(job_id)
        assert (job["state"], job["exit_code"]) == ("completed", 0), job
    runs = server.runs()
    assert len(runs) == len(set(runs))
    assert accepted <= set(runs) <= accepted | unknown


def test_a_stop_answers_what_has_begun(server: ServerProcess) -> None:
    assert server.process is not None
    body = b'{"type": "ledger"}'
    connection = http.client.HTTPConnection(server.root.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", f"{server.url.removeprefix(server.root)}/job")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[:5])
    assert requests.get(f"{server.root}/healthz", timeout=10).ok  # its beginning has been read
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "Stopping" in server.log(), "the server stops")
    connection.send(body[5:])
    answer = connection.getresponse()
    assert answer.status == 400
    assert answer.getheader("Connection") == "close"
    connection.close()
    assert server.process.wait(60) == 0


# SIGHUP ----------------------------------------------------------------------------------------


def hang_up(server: ServerProcess, until: str) -> None:
    """Have the server read its files again, until the log says something once more."""
    assert server.process is not None
    before = server.log().count(until)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: server.log().count(until) > before, until)


def specs_of(server: ServerProcess) -> Path:
    """The file that declares its job types."""
    return server.home / "jobs" / "job_specs.yaml"


def test_other_job_types_are_in_force_for_the_next_submission(server: ServerProcess) -> None:
    specs_of(server).write_text(
        'type:\n  ledger:\n    script: "jobs/ledger.sh"\n    env: ["LEDGER", "THEN"]\n'
        '  dump:\n    script: "jobs/dump.py"\n    env: ["DUMP"]\n'
    )
    hang_up(server, "The job types were read again; ")
    accepted = server.submit()
    specs_of(server).write_text(
        'type:\n  ledger:\n    script: "jobs/ledger.sh"\n    env: ["MORE"]\n'
        '  fresh:\n    script: "jobs/dump.py"\n    env: ["DUMP"]\n    data: []\n'
    )
    (server.home / "jobs" / "ledger.sh").write_text("#!/bin/bash\nexit 7\n")
    hang_up(server, "The job types were read again; added: fresh; removed: dump; changed: ledger.")
    body: dict[str, Any] = {"type": "dump", "env": {}, "log_dir": "logs"}
    answer = requests.post(f"{server.url}/job", json=body, timeout=10)
    assert answer.status_code == 400
    assert "fresh" in answer.text
    dump = server.home / "dump"
    assert server.ended(server.submit("fresh", DUMP=str(dump)))["exit_code"] == 0
    body = {"type": "ledger", "env": {"MORE": "1"}, "log_dir": "logs"}
    answer = requests.post(f"{server.url}/job", json=body, timeout=10)
    assert answer.status_code == 200, answer.text
    server.data_arrive(answer.json()["job_id"])
    assert server.ended(answer.json()["job_id"])["exit_code"] == 7
    server.data_arrive(accepted)
    assert server.ended(accepted)["exit_code"] == 0
    assert server.runs() == [accepted]
    hang_up(server, "none has changed")


def test_job_types_that_can_not_be_used_are_refused(server: ServerProcess) -> None:
    specs_of(server).write_text("type:\n  ledger:\n    script: 1\n  dump: []\n")
    hang_up(server, "those from before stay in force")
    log = server.log()
    assert "job_specs.yaml:3: " in log
    assert "job_specs.yaml:4: " in log
    server.submit()
    specs_of(server).unlink()
    hang_up(server, "those from before stay in force")
    server.submit()
    specs_of(server).write_text(JOB_SPECS)
    hang_up(server, "none has changed")


def test_tokens_are_read_again(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text("csc:an-old-token-of-the-csc\n")
    environ = {"OCPS_API_TOKENS": str(tokens)}
    with ServerProcess(tmp_path, environ, user_info="csc:an-old-token-of-the-csc@") as server:
        url = f"{server.url}/job/list/all"

        def status(token: str) -> int:
            answer = requests.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=10)
            return answer.status_code

        url = url.replace("csc:an-old-token-of-the-csc@", "")
        assert status("an-old-token-of-the-csc") == 200
        tokens.write_text("csc:a-new-token-of-the-csc\ncsc:an-old-token-of-the-csc\n")
        assert status("a-new-token-of-the-csc") == 401
        hang_up(server, "The API tokens were read again")
        assert status("a-new-token-of-the-csc") == 200
        tokens.write_text("csc:short\n")
        hang_up(server, "The API tokens stay as they were")
        assert status("a-new-token-of-the-csc") == 200
        assert "token-of-the-csc" not in server.log()


def job_type(name: str, **changes: Any) -> JobType:
    fields: dict[str, Any] = {
        "name": name,
        "description": None,
        "script": "jobs/x.sh",
        "script_path": Path("/x.sh"),
        "env": (),
        "getenv": (),
        "data": None,
        "resources": Resources(),
    }
    return JobType(**(fields | changes))


def test_what_differs_between_job_types() -> None:
    one, other = job_type("one"), job_type("other")
    same = {"one": one, "other": other}
    assert changes_between(same, dict(same)).endswith("; none has changed.")
    changed = {"one": job_type("one", env=("A",)), "third": job_type("third")}
    assert changes_between(same, changed).endswith("; added: third; removed: other; changed: one.")


# Refusals --------------------------------------------------------------------------------------


def refusal(server: ServerProcess, *before: str) -> str:
    """Start a server that can't start; give the one line that it says. Others come `before` it."""
    with server.log_path.open("ab") as log:
        done = subprocess.run(
            [*before, sys.executable, "-m", "ocps_jobmanager", "serve"],
            cwd=PROJECT,
            env=server.environ,
            stdout=log,
            stderr=log,
            timeout=60,
            check=False,
        )
    lines = server.log().splitlines()
    assert done.returncode == 2, lines
    assert len(lines) == 1, lines
    return lines[0]


def stopped(tmp_path: Path) -> ServerProcess:
    """A server that ran, and left a database with a job that waits."""
    server = ServerProcess(tmp_path)
    server.start()
    server.submit()
    assert server.stop() == 0
    server.log_path.unlink()
    return server


@pytest.mark.parametrize("setting", ["OCPS_WORK_DIR", "OCPS_STATE_DIR"])
def test_a_directory_that_is_read_only(tmp_path: Path, setting: str) -> None:
    directory = tmp_path / "read only"
    directory.mkdir()
    server = ServerProcess(tmp_path, {setting: str(directory)})
    if setting == "OCPS_WORK_DIR":
        server.environ["OCPS_STATE_DIR"] = str(tmp_path / "state")
    if os.geteuid() == 0:  # to whom modes mean nothing
        bwrap = shutil.which("bwrap")
        assert bwrap, "bubblewrap is needed"
        line = refusal(server, bwrap, "--dev-bind", "/", "/", "--ro-bind", *[str(directory)] * 2)
    else:
        directory.chmod(0o500)
        line = refusal(server)
    assert setting in line
    assert str(directory) in line


def test_a_state_directory_on_a_network_file_system(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path)
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(
        "22 1 252:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        f"23 22 0:40 / {tmp_path} rw,relatime shared:2 - nfs4 filer:/export rw\n"
    )
    program = (
        "import functools, pathlib, sys\n"
        "from ocps_jobmanager import app, cli\n"
        "app.require_local_state_dir = functools.partial(\n"
        f"    app.require_local_state_dir, mountinfo=pathlib.Path({str(mountinfo)!r}))\n"
        "sys.exit(cli.main(['serve']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PROJECT,
        env=server.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    [line] = (done.stdout + done.stderr).splitlines()
    assert "OCPS_STATE_DIR" in line
    assert "nfs4" in line
    assert not (server.work / "state").exists()


def newer(database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()


def no_database(database: Path) -> None:
    database.write_bytes(b"this is no database, " * 1000)


def damaged(database: Path) -> None:
    """All but the first pages, which say that it is a database."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [page] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'job'")
        [size] = connection.execute("PRAGMA page_size")
    with database.open("r+b") as file:
        file.seek((page[0] - 1) * size[0])
        file.write(b"\xff" * size[0])


def cut_short(database: Path) -> None:
    os.truncate(database, database.stat().st_size // 2)


def a_directory(database: Path) -> None:
    for path in database.parent.glob("jobs.sqlite3*"):
        path.unlink()
    database.mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (newer, "newer version"),
        (no_database, "not a database"),
        (cut_short, "can't be used"),
        (a_directory, "Is a directory"),
    ],
)
def test_a_database_that_can_not_be_used(
    tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    server = stopped(tmp_path)
    spoil(server.work / "state" / "jobs.sqlite3")
    line = refusal(server)
    assert words in line
    assert "OCPS_STATE_DIR" in line


def test_a_damaged_database_is_found_when_it_is_read(tmp_path: Path) -> None:
    """Not before: to look through all of a large one would take long at each start."""
    server = stopped(tmp_path)
    damaged(server.work / "state" / "jobs.sqlite3")
    assert server.spawn().wait(60) == 2
    line = server.log().splitlines()[-1]
    assert "The database in OCPS_STATE_DIR can't be used" in line
    assert "Traceback" not in server.log()


def test_a_stop_while_it_starts_is_a_stop(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path)
    server.process = server.spawn()
    wait_until(lambda: "Running at" in server.log(), "it is about to answer")
    assert server.stop() == 0


def test_a_running_job_goes_on_while_its_server_is_stopped(
    server: ServerProcess, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    job_id = server.submit(THEN=UNTIL_FILE.format(go))
    server.data_arrive(job_id)
    server.until(job_id, "running")
    assert server.stop() == 0
    go.touch()
    server.start()
    assert server.ended(job_id)["exit_code"] == 0
    assert server.runs() == [job_id]
