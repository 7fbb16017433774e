"""Restarts that nobody notices, and sockets that outlive their server."""

import contextlib
import http.client
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import requests

from ocps_jobmanager.restarts import Note, request_restart
from tests.polling import polling
from tests.server import PROJECT, ServerProcess, alive, frozen, wait_until
from tests.server_suite import UNTIL_FILE

#: Becomes the program that its arguments name, with the sockets that come after ``--`` left open
#: for it, as systemd does.
ACTIVATION = """
import os, sys
split = sys.argv.index("--")
program, descriptors = sys.argv[1:split], sys.argv[split + 1:]
high = [os.dup2(int(fd), 100 + place) for place, fd in enumerate(descriptors)]
for place, fd in enumerate(high):
    os.dup2(fd, 3 + place)
    os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ.setdefault("LISTEN_FDS", str(len(high)))
os.execv(program[0], program)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path) as server:
        yield server


def lock_of(server: ServerProcess) -> Path:
    return server.work / "state" / "server.lock"


def restart(server: ServerProcess) -> None:
    """Restart a server as the command does."""
    assert server.process is not None
    assert request_restart(lock_of(server), timeout_s=60) == server.process.pid


def run_command(server: ServerProcess) -> "subprocess.CompletedProcess[str]":
    """Run ``ocps-jobmanager restart``."""
    return subprocess.run(
        [sys.executable, "-m", "ocps_jobmanager", "restart"],
        cwd=PROJECT,
        env=server.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def connect(server: ServerProcess) -> http.client.HTTPConnection:
    """A connection that is kept, and never made anew."""
    connection = http.client.HTTPConnection(server.root.removeprefix("http://"), timeout=30)
    connection.connect()
    connection.auto_open = 0
    return connection


def ask(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    """Make a request, and read the whole answer."""
    connection.request("GET", "/healthz")
    answer = connection.getresponse()
    answer.read()
    return answer


# Clients ---------------------------------------------------------------------------------------


def test_ten_restarts_under_two_polling_clients(server: ServerProcess, tmp_path: Path) -> None:
    go = tmp_path / "go"
    waiting, running = server.submit(), server.submit(THEN=UNTIL_FILE.format(go))
    server.data_arrive(running)
    server.until(running, "running")
    with polling(f"{server.url}/job/{waiting}") as (_, idling):
        for _ in range(10):
            before = idling.answers
            restart(server)
            wait_until(lambda before=before: idling.answers > before, "the session has polled")
    assert server.log().count("Restarting") == 10
    assert server.job(running)["state"] == "running"
    server.data_arrive(waiting)
    go.touch()
    for job_id in (waiting, running):
        assert server.ended(job_id)["exit_code"] == 0
    assert sorted(server.runs()) == sorted([waiting, running])


def test_restarts_under_clients_that_never_pause(server: ServerProcess) -> None:
    """There is always a request on its way to a connection that is open."""
    with polling(f"{server.root}/healthz", greedy=2):
        for _ in range(3):
            restart(server)


def test_jobs_that_are_submitted_during_restarts_run_once(server: ServerProcess) -> None:
    ids = []
    with requests.Session() as session:
        for number in range(12):
            if number % 4 == 0:
                assert server.process is not None
                server.process.send_signal(signal.SIGUSR2)
            body = {
                "type": "ledger",
                "env": {"LEDGER": str(server.ledger), "THEN": "true"},
                "log_dir": "logs",
            }
            answer = session.post(f"{server.url}/job", json=body, timeout=30)
            assert answer.status_code == 200
            ids.append(answer.json()["job_id"])
            server.data_arrive(ids[-1])
    for job_id in ids:
        assert server.ended(job_id)["exit_code"] == 0
    assert sorted(server.runs()) == sorted(ids)


def test_an_idle_connection_is_answered_by_the_next_server(server: ServerProcess) -> None:
    connection = connect(server)
    assert ask(connection).getheader("Connection") is None
    for _ in range(2):
        restart(server)
        assert ask(connection).status == 200
    connection.close()


def test_a_request_that_comes_together_with_the_signal(server: ServerProcess) -> None:
    assert server.process is not None
    connections = [connect(server) for _ in range(10)]
    for connection in connections:
        ask(connection)
    with frozen(server.process.pid):
        server.process.send_signal(signal.SIGUSR2)
        for connection in connections:
            connection.request("GET", "/healthz")
    for connection in connections:
        assert connection.getresponse().status == 200
        connection.close()


def test_what_has_begun_is_answered_and_its_connection_closed(server: ServerProcess) -> None:
    assert server.process is not None
    body = b'{"type": "ledger"}'
    with contextlib.closing(connect(server)) as connection:
        connection.putrequest("POST", f"{server.url.removeprefix(server.root)}/job")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:5])
        requests.get(f"{server.root}/healthz", timeout=10)  # its beginning has been read
        server.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: "Restarting" in server.log(), "the server makes place")
        connection.send(body[5:])
        answer = connection.getresponse()
        assert answer.status == 400
        assert answer.getheader("Connection") == "close"
        assert "log_dir" in answer.read().decode()
    wait_until(lambda: server.log().count("Running at") == 2, "the next server")
    assert requests.get(f"{server.root}/healthz", timeout=30).ok


def test_restarts_with_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections with TLS can't be handed on: idle ones are closed, as their clients notice."""
    data = PROJECT / "tests" / "data"
    environ = {
        "OCPS_TLS_CERT": str(data / "localhost.crt"),
        "OCPS_TLS_KEY": str(_private(data / "localhost.key", tmp_path)),
        "OCPS_TLS_CA": str(data / "localhost.crt"),
        "API_PROTOCOL": "https",
    }
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", environ["OCPS_TLS_CERT"])
    with ServerProcess(tmp_path, environ) as server:
        job_id = server.submit()
        url = f"{server.url}/job/{job_id}"
        with polling(url, greedy=2, verify=environ["OCPS_TLS_CERT"]) as (_, idling):
            for _ in range(3):
                before = idling.answers
                restart(server)
                wait_until(lambda before=before: idling.answers > before, "the session has polled")


def _private(key: Path, directory: Path) -> Path:
    copy = directory / "key"
    copy.touch(0o600)
    copy.write_bytes(key.read_bytes())
    return copy


# The process -----------------------------------------------------------------------------------


def test_the_process_and_its_port_stay(server: ServerProcess) -> None:
    assert server.process is not None
    before = Note.read(lock_of(server))
    done = run_command(server)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"process {server.process.pid}" in done.stdout
    after = Note.read(lock_of(server))
    assert before is not None
    assert after is not None
    assert (after.pid, after.ready) == (before.pid, True)
    assert after.start != before.start
    [first, second] = re.findall(r"Running at (\S+)", server.log())
    assert first == second
    assert server.stop() == 0


def test_nothing_is_left_behind(server: ServerProcess) -> None:
    """Neither descriptors nor children pile up from restart to restart."""
    assert server.process is not None
    pid = server.process.pid

    def descriptors() -> int:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    restart(server)
    wait_until(lambda: server.ready()[0] == 200, "ready")
    before = descriptors()
    for _ in range(2):
        restart(server)
        wait_until(lambda: server.ready()[0] == 200, "ready")
    wait_until(lambda: descriptors() <= before, "as many descriptors as before")
    environ = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    assert sum(item.startswith("LISTEN_FDS=") for item in environ) == 1


def test_a_job_that_outlives_a_restart_leaves_no_zombie(
    server: ServerProcess, tmp_path: Path
) -> None:
    assert server.process is not None
    go = tmp_path / "go"
    job_id = server.submit(THEN=UNTIL_FILE.format(go))
    server.data_arrive(job_id)
    server.until(job_id, "running")
    launchers = {pid for pid, argv in server.children().items() if "local_launcher" in str(argv)}
    assert launchers
    restart(server)
    go.touch()
    server.ended(job_id)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in launchers), "all reaped")


def test_monitors_of_the_server_before_are_gone(server: ServerProcess) -> None:
    job_id = server.submit()
    before = wait_until(server.monitors, "a monitor waits")
    restart(server)
    wait_until(lambda: job_id in server.monitors(), "another monitor waits")
    assert not alive(before[job_id])


def test_a_stop_during_a_restart_is_a_stop(server: ServerProcess) -> None:
    assert server.process is not None
    with frozen(server.process.pid):
        server.process.send_signal(signal.SIGUSR2)
        server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0


def test_what_hangs_does_not_prevent_a_restart(tmp_path: Path) -> None:
    program = (
        "import asyncio, os, sys\n"
        "from ocps_jobmanager import app, cli, running\n"
        "stop = app.Server.stop\n"
        "async def hang(server):\n"
        "    await asyncio.sleep(0 if 'LISTEN_FDS' in os.environ else 1000)\n"
        "    await stop(server)\n"
        "app.Server.stop, running._STOP_DEADLINE_S = hang, 1\n"
        "sys.exit(cli.main(['serve']))\n"
    )
    with ProgramServer(tmp_path, program) as server:
        restart(server)
        assert "Something hangs" in server.log()
        assert requests.get(f"{server.root}/healthz", timeout=10).ok


def test_parts_that_fail_to_stop_do_not_prevent_a_restart(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from ocps_jobmanager import app, cli\n"
        "async def fail(scheduler):\n"
        "    raise OSError('no more of this')\n"
        "app.LocalScheduler.close = fail\n"
        "sys.exit(cli.main(['serve']))\n"
    )
    with ProgramServer(tmp_path, program) as server:
        restart(server)
        assert "no more of this" in server.log()
        assert requests.get(f"{server.root}/healthz", timeout=10).ok


def test_with_too_few_descriptors_only_idle_connections_are_lost(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from ocps_jobmanager import cli, sockets\n"
        "export = sockets.export\n"
        "def refuse(inheritance, pid):\n"
        "    if inheritance.connections:\n"
        "        raise OSError(24, 'Too many open files')\n"
        "    return export(inheritance, pid)\n"
        "sockets.export = refuse\n"
        "sys.exit(cli.main(['serve']))\n"
    )
    with ProgramServer(tmp_path, program) as server:
        connection = connect(server)
        ask(connection)
        restart(server)
        assert "Too many open files" in server.log()
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(connection)
        connection.close()
        assert requests.get(f"{server.root}/healthz", timeout=10).ok


def test_signals_between_two_servers_wait(server: ServerProcess) -> None:
    """By default each of them ends a process."""
    assert server.process is not None
    pidfd = os.pidfd_open(server.process.pid)
    before = Note.read(lock_of(server))
    assert before is not None
    server.process.send_signal(signal.SIGUSR2)

    def restarted() -> bool:
        signal.pidfd_send_signal(pidfd, signal.SIGHUP)
        note = Note.read(lock_of(server))
        return note is not None and note.start != before.start and note.ready

    wait_until(restarted, "the next server is ready")
    os.close(pidfd)
    assert server.process.poll() is None
    wait_until(lambda: "none has changed" in server.log(), "a signal was obeyed")


# Refusals --------------------------------------------------------------------------------------


def test_with_job_types_that_can_not_be_used_the_server_stays(server: ServerProcess) -> None:
    specs = server.home / "jobs" / "job_specs.yaml"
    specs.write_text("type:\n  ledger:\n    skript: jobs/ledger.sh\n")
    done = run_command(server)
    assert done.returncode == 1
    assert "job_specs.yaml:3" in done.stderr
    assert "job_specs.yaml:3" in server.log()
    server.submit()
    assert server.log().count("Running at") == 1


def test_with_a_program_that_does_not_run_the_server_stays(tmp_path: Path) -> None:
    """As while another version is being installed."""
    program = (
        "import sys\n"
        "from ocps_jobmanager import cli, restarts\n"
        "restarts._REHEARSAL = 'import half_of_the_new_version'\n"
        "sys.exit(cli.main(['serve']))\n"
    )
    with ProgramServer(tmp_path, program) as server:
        done = run_command(server)
        assert done.returncode == 1
        assert "No module named 'half_of_the_new_version'" in done.stderr
        assert "No module named 'half_of_the_new_version'" in server.log()
        assert requests.get(f"{server.root}/healthz", timeout=10).ok


def test_a_next_server_that_can_not_start_says_so_and_ends(server: ServerProcess) -> None:
    assert server.process is not None
    database = server.work / "state" / "jobs.sqlite3"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    done = run_command(server)
    assert done.returncode == 1
    assert "has ended" in done.stderr
    assert server.process.wait(60) == 2
    assert "newer" in server.log().splitlines()[-1]


def test_no_server_to_restart(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path)
    done = run_command(server)
    assert (done.returncode, done.stdout) == (2, "")
    assert str(server.work / "state") in done.stderr
    assert "No server runs" in done.stderr


def test_a_note_of_long_ago_restarts_nobody(tmp_path: Path) -> None:
    """The process that has the number now is another."""
    server = ServerProcess(tmp_path)
    server.start()
    assert server.stop() == 0
    lock = lock_of(server)
    lock.write_text(lock.read_text().replace(str(server.process.pid), str(os.getpid())))  # type: ignore[union-attr]
    note = Note.read(lock)
    assert note is not None
    assert note.pid == os.getpid()
    assert "No server runs" in run_command(server).stderr


# Socket activation -----------------------------------------------------------------------------


class ProgramServer(ServerProcess):
    """A server that a Python program is."""

    def __init__(self, directory: Path, program: str) -> None:
        super().__init__(directory)
        self._program = program

    def spawn(self, log_path: Path | None = None) -> "subprocess.Popen[bytes]":
        """Start a process."""
        with (log_path or self.log_path).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", self._program],
                cwd=PROJECT,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


class ActivatedServer(ServerProcess):
    """A server whose sockets somebody else has made, and keeps.

    Parameters
    ----------
    sockets : sequence of socket.socket
    """

    def __init__(
        self, directory: Path, *sockets: socket.socket, environ: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(directory, environ)
        self._sockets = sockets

    def spawn(self, log_path: Path | None = None) -> "subprocess.Popen[bytes]":
        """Start a process."""
        descriptors = [sock.fileno() for sock in self._sockets]
        program = [sys.executable, "-m", "tests.audited_server", str(self.report)]
        with (log_path or self.log_path).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", ACTIVATION, *program, "--", *map(str, descriptors)],
                cwd=PROJECT,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=descriptors,
            )


def listening(address: str = "127.0.0.1") -> socket.socket:
    return socket.create_server((address, 0), family=socket.AF_INET, backlog=100)


def test_a_socket_that_is_there_before_the_server(tmp_path: Path) -> None:
    """Who connects while no server runs waits for the next."""
    with listening() as one, listening() as other:
        ports = [sock.getsockname()[1] for sock in (one, other)]
        server = ActivatedServer(tmp_path, one, other)
        for _ in range(2):
            early = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for port in ports]
            for connection in early:
                connection.request("GET", "/healthz")
            server.start()
            assert server.root == f"http://localhost:{ports[0]}"
            for connection in early:
                assert connection.getresponse().status == 200
                connection.close()
            restart(server)
            assert requests.get(f"{server.root}/healthz", timeout=10).ok
            job_id = server.submit()
            server.data_arrive(job_id)
            assert server.ended(job_id)["exit_code"] == 0
            assert server.stop() == 0
        server.check_the_loop()


def test_sockets_that_are_meant_for_another_process_are_left_alone(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}) as server:
        assert requests.get(f"{server.root}/healthz", timeout=10).ok


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: socket.socket(type=socket.SOCK_DGRAM), "no TCP socket"),
        (lambda: socket.socket(socket.AF_UNIX), "no TCP socket"),
        (socket.socket, "Accept=no"),
        (lambda: listening("0.0.0.0"), "0.0.0.0"),
    ],
)
def test_a_socket_that_is_of_no_use_is_refused(tmp_path: Path, make: object, words: str) -> None:
    assert callable(make)
    with make() as sock:
        server = ActivatedServer(tmp_path, sock)
        assert server.spawn().wait(60) == 2
    [line] = server.log().splitlines()
    assert "LISTEN_FDS" in line
    assert words in line


@pytest.mark.parametrize(("value", "words"), [("two", '"two"'), ("2", "descriptor 4")])
def test_a_number_of_sockets_that_is_not_true(tmp_path: Path, value: str, words: str) -> None:
    with listening() as sock:
        server = ActivatedServer(tmp_path, sock, environ={"LISTEN_FDS": value})
        assert server.spawn().wait(60) == 2
    [line] = server.log().splitlines()
    assert words in line
