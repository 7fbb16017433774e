"""A real server process, driven over HTTP as a client would; may be killed and started again."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

PROJECT = Path(__file__).resolve().parents[1]
DEADLINE_S = 60.0

JOB_SPECS = """
type:
  # Appends to the ledger when it starts, then does as it is told.
  ledger:
    script: "jobs/ledger.sh"
    env: ["LEDGER", "THEN"]
  # The same, with limits.
  brief:
    script: "jobs/ledger.sh"
    env: ["LEDGER", "THEN"]
    data: []
    max_run_time: 3s
    max_retries: 2
  short-hold:
    script: "jobs/ledger.sh"
    env: ["LEDGER", "THEN"]
    data: []
    hold_limit: 2s
  dump:
    script: "jobs/dump.py"
    env: ["DUMP", "A", "B"]
    data: []
"""
SCRIPTS = {
    "ledger.sh": '#!/bin/bash\necho "$JOB_ID" >> "$LEDGER"\neval "$THEN"\n',
    "dump.py": (
        "#!/usr/bin/env python3\n"
        "import os, pathlib\n"
        "dump = b'\\0'.join(b'='.join(item) for item in os.environb.items())\n"
        "pathlib.Path(os.environ['DUMP']).write_bytes(dump)\n"
    ),
}


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Look until `condition` gives something true, and give that."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {deadline_s:g} s: {what}")


class ServerProcess:
    """A server with job types of its own in a directory of its own.

    Parameters
    ----------
    directory : pathlib.Path
        Holds everything: job types, work directory, log.
    environ : mapping of str to str
        Further settings; they win.
    user_info : str
        In the URLs that the server is asked with: ``name:token@``.
    """

    def __init__(
        self, directory: Path, environ: Mapping[str, str] | None = None, *, user_info: str = ""
    ) -> None:
        self.user_info = user_info
        self.home = directory / "home"
        self.work = directory / "work"
        self.log_path = directory / "server.log"
        self.report = directory / "audit"
        self.ledger = directory / "ledger"
        (self.home / "jobs").mkdir(parents=True, exist_ok=True)
        (self.home / "jobs" / "job_specs.yaml").write_text(JOB_SPECS)
        for name, text in SCRIPTS.items():
            script = self.home / "jobs" / name
            script.write_text(text)
            script.chmod(0o755)
        self.environ = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "OCPS_HOME": str(self.home),
            "OCPS_WORK_DIR": str(self.work),
            "OCPS_SCHEDULER": "local",
            "OCPS_POLL_INTERVAL": "0.2",
            "API_PORT": "0",
            **(environ or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.root = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.stdout.write(self.log())  # shown where a test fails
        if self.process is not None and self.process.poll() is None:
            for job_id in self.ids_of("pending") + self.ids_of("running"):
                self.delete(job_id)
            self.stop()
        self.check_the_loop()

    def check_the_loop(self) -> None:
        """Nothing has blocked the event loop."""
        blocked = self.report.read_text() if self.report.exists() else ""
        assert not blocked, f"done in the event loop's thread:\n{blocked[:5000]}"

    # The process -------------------------------------------------------------------------------

    def spawn(self, log_path: Path | None = None) -> "subprocess.Popen[bytes]":
        """Start a process, whatever becomes of it."""
        with (log_path or self.log_path).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "tests.audited_server", str(self.report)],
                cwd=PROJECT,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        seen = len(self.log())
        self.process = self.spawn()

        def listening() -> re.Match[str] | None:
            assert self.process is not None
            assert self.process.poll() is None, f"the server has ended: {self.log()[seen:]}"
            return re.search(r"Running at ([^/\s]+)(/\S*)\n", self.log()[seen:])

        where = wait_until(listening, "the server says where it listens")
        scheme = self.environ.get("API_PROTOCOL", "http")
        self.root = f"{scheme}://{self.user_info}{where[1]}"
        self.url = self.root + where[2]
        wait_until(self._answers, "the server answers")

    def _answers(self) -> bool:
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(f"{self.root}/healthz", timeout=10).ok
        return False

    def kill(self) -> None:
        """End it as the power going out does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it as an operator does; give its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def restart(self) -> None:
        """Kill it and start another."""
        self.kill()
        self.start()

    def log(self) -> str:
        """All that it, and those before it, have logged."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    def children(self) -> dict[int, list[str]]:
        """The server's child processes: pid and arguments."""
        assert self.process is not None
        return children_of(self.process.pid)

    def monitors(self) -> dict[str, int]:
        """The monitors that run: job id and pid."""
        found = {}
        for pid, argv in self.children().items():
            if len(argv) > 5 and argv[3].endswith("monitor.py"):
                found[argv[argv.index("--id") + 1]] = pid
        return found

    # The API -----------------------------------------------------------------------------------

    def submit(self, job_type: str = "ledger", **env: Any) -> str:
        """Submit a job; give its id."""
        if job_type in {"ledger", "brief", "short-hold"}:
            env = {"LEDGER": str(self.ledger), "THEN": "true"} | env
        body = {"type": job_type, "env": env, "log_dir": "./logs"}
        answer = requests.post(f"{self.url}/job", json=body, timeout=10)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["job_id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """All about a job."""
        answer = requests.get(f"{self.url}/job", params={"id": job_id}, timeout=10)
        assert answer.status_code == 200, answer.text
        job: dict[str, Any] = answer.json()["job"]
        return job

    def until(self, job_id: str, *states: str, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
        """Wait until a job is in one of some states."""

        def there() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["state"] in states else None

        found: dict[str, Any] = wait_until(there, f"{job_id} is {states}", deadline_s)
        return found

    def ended(self, job_id: str) -> dict[str, Any]:
        """Wait until a job has ended."""
        return self.until(job_id, "completed", "removed", "failed")

    def ids_of(self, category: str) -> list[str]:
        """A page of job ids."""
        answer = requests.get(f"{self.url}/job/list/{category}?limit=1000", timeout=10)
        ids: list[str] = answer.json()["job_ids"]
        return ids

    def delete(self, job_id: str) -> dict[str, Any]:
        """Remove a job."""
        answer = requests.delete(f"{self.url}/job/{job_id}", timeout=10)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def ready(self) -> tuple[int, dict[str, Any]]:
        """What ``/readyz`` says."""
        answer = requests.get(f"{self.root}/readyz", timeout=10)
        return answer.status_code, answer.json()

    def data_arrive(self, job_id: str) -> None:
        """Put the file there that a job waits for."""
        (self.work / f"{job_id}.dat").touch()

    def runs(self) -> list[str]:
        """The ids of the jobs that have started, as they themselves have written."""
        return self.ledger.read_text().split() if self.ledger.exists() else []


def children_of(pid: int) -> dict[int, list[str]]:
    """The living child processes of a process: pid and arguments."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                argv = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")[:-1]
                if argv:  # a zombie has none
                    found[int(child)] = argv
    return found


def alive(pid: int) -> bool:
    """Whether a process runs, and is no zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process for the time of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
