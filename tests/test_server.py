"""The whole server with the local scheduler, and what it says when it can't start."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.server import PROJECT, ServerProcess, wait_until
from tests.server_suite import ServerSuite


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path, {"A_SECRET_OF_THE_SERVER": "x"}) as server:
        yield server


class TestLocalServer(ServerSuite):
    """The suite, on this machine alone."""


def test_the_first_lines_say_where_and_what(server: ServerProcess) -> None:
    first, second, *_ = server.log().splitlines()
    assert first.endswith("      main   INFO  Running at " + server.url.removeprefix("http://"))
    assert "local" in second
    assert "OCPS_SCHEDULER" in second


def test_only_loopback_is_listened_on(server: ServerProcess) -> None:
    """The prototype listened everywhere."""
    port = int(server.root.rpartition(":")[2])
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].partition(":")[2], 16) == port
    ]
    assert listening
    loopback = ("0100007F", "00000000000000000000000001000000")
    assert all(address.partition(":")[0] in loopback for address in listening)


def test_no_thread_per_monitor(server: ServerProcess) -> None:
    """Python's own watcher of child processes would start one for each."""
    ids = [server.submit() for _ in range(30)]
    wait_until(lambda: server.monitors().keys() == set(ids), "thirty monitors")
    assert server.process is not None
    assert len(list(Path(f"/proc/{server.process.pid}/task").iterdir())) < 30


def test_no_cross_origin_headers(server: ServerProcess) -> None:
    """The prototype allowed every web page to submit jobs."""
    answer = requests.get(f"{server.url}/job/list/all", headers={"Origin": "http://x"}, timeout=10)
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_the_state_is_for_the_server_alone(server: ServerProcess) -> None:
    server.submit()
    state = server.work / "state"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    for path in state.iterdir():
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_key_as_in_the_first_demonstration(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, {"OCPS_MONITOR_KEY": "job_id"}) as server:
        job_id = server.submit()
        requests.get(f"{server.url}/monitor/complete", params={"id": job_id}, timeout=10)
        server.ended(job_id)
        assert f"/api/v1/monitor/complete?id={job_id}" in server.log()


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"API_PORT": "http"}, ["API_PORT", "http", "65535"]),
        ({"OCPS_LISTEN": "0.0.0.0"}, ["OCPS_LISTEN", "0.0.0.0", "loopback"]),
        ({"OCPS_JOB_SPECS": "nowhere.yaml"}, ["OCPS_JOB_SPECS", "nowhere.yaml"]),
        ({"OCPS_SCHEDULER": "slurm"}, ["OCPS_SCHEDULER", "slurm", "local"]),
        ({"OCPS_STATE_DIR": "/proc/x"}, ["OCPS_STATE_DIR", "/proc/x"]),
    ],
)
def test_what_can_not_be_used_stops_the_start_with_one_line(
    tmp_path: Path, environ: dict[str, str], words: list[str]
) -> None:
    server = ServerProcess(tmp_path, environ)
    assert server.spawn().wait(60) == 2
    [line] = server.log().splitlines()
    for word in words:
        assert word in line


def test_a_port_in_use(server: ServerProcess, tmp_path: Path) -> None:
    port = server.root.rpartition(":")[2]
    other = ServerProcess(tmp_path / "other", {"API_PORT": port})
    assert other.spawn().wait(60) == 2
    [line] = other.log().splitlines()
    assert "API_PORT" in line
    assert port in line


def test_a_misspelt_setting_is_remarked_on(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, {"OCPS_POL_INTERVAL": "1"}) as server:
        [warning] = [line for line in server.log().splitlines() if "OCPS_POL_INTERVAL" in line]
        assert "OCPS_POLL_INTERVAL" in warning


def test_config_prints_every_setting() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ocps_jobmanager", "config"],
        cwd=PROJECT,
        env={"PATH": os.environ["PATH"], "API_PORT": "8181"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "8181" in lines["API_PORT"]
    assert "environment" in lines["API_PORT"]
    assert "default" in lines["OCPS_WORK_DIR"]
