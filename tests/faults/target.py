"""The server under test: killed and started again, asked by clients that expect it to be away."""

import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import requests

from tests.faults.faulty_server import Order
from tests.faults.ledger import JOB_SPECS, SCRIPT
from tests.processes_of import processes_of
from tests.server import PROJECT, ServerProcess, wait_until

#: What an operator may expect of SIGTERM.
STOP_DEADLINE_S = 10.0


class FaultyServer(ServerProcess):
    """A server process that carries out orders (see `faulty_server`).

    Parameters
    ----------
    switches : sequence of str
        Of `faulty_server`.
    wrapper : sequence of str
        What runs the server: a command and its first arguments.
    """

    def __init__(
        self,
        directory: Path,
        environ: Mapping[str, str],
        *,
        switches: Sequence[str] = (),
        wrapper: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.port = _free_port()
        # Whoever calls a server that was killed is to find its successor.
        super().__init__(directory, {"API_PORT": str(self.port), **environ})
        self.switches = list(switches)
        self.wrapper = list(wrapper)
        self.root = f"http://localhost:{self.port}"
        self.url = f"{self.root}/api/v1"
        self.control = directory / "control"
        self.control.mkdir()
        self.database = self.work / "state" / "jobs.sqlite3"
        (self.home / "jobs" / "job_specs.yaml").write_text(JOB_SPECS)
        script = self.home / "jobs" / "fault.sh"
        script.write_text(SCRIPT)
        script.chmod(0o755)
        self._order = 0
        self._others = set(self._processes())
        self.answers: dict[int, int] = {}
        """How many answers of each status there were."""

    # The process -------------------------------------------------------------------------------

    def spawn(self, log_path: Path | None = None) -> "subprocess.Popen[bytes]":
        """Start a process, whatever becomes of it."""
        with (log_path or self.log_path).open("ab") as log:
            return subprocess.Popen(
                [
                    *self.wrapper,
                    *(sys.executable, "-m", "tests.faults.faulty_server"),
                    *(str(self.control), *self.switches),
                ],
                cwd=PROJECT,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def begin(self) -> bool:
        """Start the server; give whether it answers, or has died while it started.

        Raises
        ------
        AssertionError
            It has ended by itself, or does not answer.
        """
        process = self.process = self.spawn()
        wait_until(lambda: process.poll() is not None or self._answers(), "the server answers")
        code = process.poll()
        assert code in (None, -signal.SIGKILL), f"the server ended ({code}): {self.log()[-3000:]}"
        return code is None

    def lives(self) -> bool:
        """Whether it has not ended."""
        return self.process is not None and self.process.poll() is None

    def order(self, *orders: Order) -> list[int]:
        """Give orders to the server, the one that runs or the next one; give their numbers."""
        numbers = []
        for order in orders:
            self._order += 1
            order.id = self._order
            numbers.append(order.id)
        path = self.control / "new orders"
        path.write_text(json.dumps([asdict(order) for order in orders]))
        armed = self._reached().count("armed")
        path.rename(self.control / "orders")
        if self.lives():
            wait_until(
                lambda: not self.lives() or self._reached().count("armed") > armed,
                "the server knows the orders",
            )
        return numbers

    def reached(self, number: int) -> bool:
        """Whether an order has been carried out."""
        return str(number) in self._reached()

    def _reached(self) -> list[str]:
        path = self.control / "reached"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    def terminate(self) -> tuple[int | None, float]:
        """End it as an operator does; give its exit status and the seconds that it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            status: int | None = self.process.wait(3 * STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            status = None
        return status, time.monotonic() - began

    def end_all(self) -> None:
        """End the server and whatever else belongs to its directory, by number."""
        if self.lives():
            self.kill()
        for pid in self.left_over():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def left_over(self) -> dict[int, str]:
        """All processes that belong to its directory and were not there before it."""
        processes = self._processes()
        return {pid: what for pid, what in processes.items() if pid not in self._others}

    def _processes(self) -> dict[int, str]:
        found = (line.partition(": ") for line in processes_of(self.directory))
        return {int(pid): what for pid, _, what in found}

    # The API, which may be away ------------------------------------------------------------------

    def ask(self, method: str, path: str, **more: Any) -> requests.Response | None:
        """Make a request; None if there was no answer."""
        try:
            answer = requests.request(method, f"{self.url}/{path}", timeout=30, **more)
        except (requests.ConnectionError, requests.Timeout):
            return None
        self.answers[answer.status_code] = self.answers.get(answer.status_code, 0) + 1
        return answer

    def post(self, lasts_s: float, end: str) -> str | None:
        """Submit a job; give its id, unless the client was never told."""
        env = {"LEDGER": str(self.ledger), "LASTS": f"{lasts_s:g}", "END": end}
        body = {"type": "fault", "env": env, "log_dir": "logs"}
        answer = self.ask("POST", "job", json=body)
        if answer is None or answer.status_code != 200:
            return None
        return str(answer.json()["job_id"])

    def call_back(self, key: str) -> int | None:
        """Call as a job's monitor does; give the status."""
        answer = self.ask("GET", "monitor/complete", params={"id": key})
        return None if answer is None else answer.status_code

    # The database, read beside the server -------------------------------------------------------

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the database; it is only read."""
        if self.wrapper:
            return self._rows_inside(query, values)
        where = f"file:{self.database}?mode=ro"
        with closing(sqlite3.connect(where, uri=True, timeout=10)) as database:
            return database.execute(query, values).fetchall()

    def _rows_inside(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        """As `rows`, where the server sees the database, and this process does not."""
        program = (
            "import json, sqlite3, sys\n"
            "where, query, values = json.loads(sys.argv[1])\n"
            "database = sqlite3.connect(f'file:{where}?mode=ro', uri=True, timeout=10)\n"
            "print(json.dumps(database.execute(query, values).fetchall()))\n"
        )
        done = subprocess.run(
            [
                *(*self.wrapper, sys.executable, "-I", "-S", "-c", program),
                json.dumps([str(self.database), query, values]),
            ],
            check=True,
            stdout=subprocess.PIPE,
            timeout=60,
        )
        return [tuple(row) for row in json.loads(done.stdout)]

    def key_of(self, job_id: str) -> str:
        """A job's secret key."""
        return str(self.rows("SELECT monitor_key FROM job WHERE id = ?", job_id)[0][0])

    def states(self) -> dict[str, str]:
        """The state of every job that is stored."""
        return dict(self.rows("SELECT id, state FROM job"))


def _free_port() -> int:
    """A port that nobody listens on, and that is not given to clients."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
