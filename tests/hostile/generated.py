"""Requests made up out of the interface's description, against a running server.

``python -m tests.hostile.generated --requests 20000`` is the long run, and prints what was
answered. Nothing but 503 may be an answer of 500 or above, every answer has to be as described and
in time, and the server's log has to be free of bugs.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.hostile.conftest import check_log
from tests.server import PROJECT, ServerProcess

#: What is made up may be anything, so no script looks at it.
JOB_SPECS = """
type:
  waits:
    script: "jobs/nothing.sh"
    env: ["A", "B"]
  runs:
    script: "jobs/nothing.sh"
    env: []
    data: []
"""
MAX_WAITING = 5
TOKEN = "0123456789abcdef0123456789abcdef"
#: An answer that takes longer is a hang.
HANG_S = 20

_ACCESS_LINE = re.compile(r"^\S+ \S+ +tornado\.access +\w+ +(\d{3}) .* ([0-9.]+)ms$", re.MULTILINE)
_CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503"]

[phases.stateful]
inference.algorithms = []
generation.mode = "positive"
"""
#: Which types there are, and which log directories may be used, the description can't know; and the
#: record of a job that was removed stays.
_NOT_CHECKED = "positive_data_acceptance,use_after_free"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What came of a run.

    Attributes
    ----------
    requests : int
        How many were made up and checked.
    answers : Counter of int
        How many answers had which status, by the server's log: those to the harness, too.
    slowest_ms : float
        By the same.
    accepted : int
        Jobs.
    seconds : float
    """

    requests: int
    answers: Counter[int]
    slowest_ms: float
    accepted: int
    seconds: float

    def __str__(self) -> str:
        statuses = ", ".join(f"{n} times {status}" for status, n in sorted(self.answers.items()))
        return (
            f"{self.requests} requests in {self.seconds:.0f} s; answers in the log: {statuses}; "
            f"{self.accepted} jobs accepted; slowest answer {self.slowest_ms:.0f} ms"
        )


class HostileServer(ServerProcess):
    """A server whose scripts do nothing; callers show a token."""

    def __init__(self, directory: Path) -> None:
        tokens = directory / "tokens"
        directory.mkdir(parents=True, exist_ok=True)
        tokens.touch(0o600)
        tokens.write_text(f"fuzzer:{TOKEN}\n")
        super().__init__(
            directory, {"OCPS_API_TOKENS": str(tokens), "OCPS_MAX_WAITING": str(MAX_WAITING)}
        )
        jobs = self.home / "jobs"
        (jobs / "job_specs.yaml").write_text(JOB_SPECS)
        (jobs / "nothing.sh").write_text("#!/bin/sh\nexit 0\n")
        (jobs / "nothing.sh").chmod(0o755)

    def ask(self, method: str, url: str) -> Any:
        """Ask with the token; give the answer's JSON."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return requests.request(method, url, headers=headers, timeout=30).json()

    def ids_of(self, category: str) -> list[str]:
        """A page of job ids."""
        ids: list[str] = self.ask("GET", f"{self.url}/job/list/{category}?limit=1000")["job_ids"]
        return ids

    def delete(self, job_id: str) -> dict[str, Any]:
        """Remove a job."""
        found: dict[str, Any] = self.ask("DELETE", f"{self.url}/job/{job_id}")
        return found

    def description(self, *, keys: bool) -> dict[str, Any]:
        """The description that is served, narrower where it is read and where it is written.

        Nothing may be in an answer that is not described, and many submissions are ones that this
        server would accept; fewer with `keys`, which are the same again and again.
        """
        document: dict[str, Any] = _closed(self.ask("GET", f"{self.url}/openapi.json"))
        body = document["components"]["schemas"]["SubmitBody"]
        value = body["properties"]["env"]["additionalProperties"]
        env = {"type": "object", "required": ["A", "B"], "additionalProperties": False}
        valid: list[dict[str, Any]] = [
            {"type": {"const": "waits"}, "env": {**env, "properties": {"A": value, "B": value}}},
            {"type": {"const": "runs"}, "env": {"const": {}}},
        ]
        log_dir = {"type": "string", "pattern": "^logs(/[a-z]{1,8}){0,3}$"}
        document["components"]["schemas"]["SubmitBody"] = {
            "anyOf": [
                {**body, "properties": {**body["properties"], **of_type, "log_dir": log_dir}}
                for of_type in valid
            ]
        }
        if not keys:
            document["paths"]["/api/v1/job"]["post"]["parameters"] = []
        return document

    @contextlib.contextmanager
    def kept_in_motion(self) -> Iterator[None]:
        """Remove waiting jobs all the time, so that others are accepted."""
        done = threading.Event()

        def remove() -> None:
            while not done.wait(0.5):
                for job_id in self.ids_of("pending"):
                    self.delete(job_id)

        thread = threading.Thread(target=remove)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _closed(schema: Any) -> Any:
    """A document in whose objects nothing is allowed that is not described."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed(value) for key, value in schema.items()}
    if made.get("type") == "object" and isinstance(made.get("properties"), dict):
        made["additionalProperties"] = False
    return made


def run(directory: Path, *, examples: int, seed: int, keys: bool) -> Figures:
    """Start a server, send it made-up requests, and see that it has come to no harm.

    Parameters
    ----------
    examples : int
        How many requests are made up for each operation in each phase, about.
    keys : bool
        Whether submissions have idempotency keys.

    Raises
    ------
    AssertionError
        It has.
    """
    with HostileServer(directory) as server:
        description = directory / "openapi.json"
        description.write_text(json.dumps(server.description(keys=keys)))
        config = directory / "schemathesis.toml"
        config.write_text(_CONFIG)
        started = time.monotonic()
        with server.kept_in_motion():
            generated = _schemathesis(server, description, config, examples, seed)
        seconds = time.monotonic() - started
        answers = [(int(status), float(ms)) for status, ms in _ACCESS_LINE.findall(server.log())]
        figures = Figures(
            requests=generated,
            answers=Counter(status for status, _ in answers),
            slowest_ms=max(ms for _, ms in answers),
            accepted=len(re.findall(r" 200 POST /\S*/job ", server.log())),
            seconds=seconds,
        )
        print(figures)  # noqa: T201
        assert not [status for status in figures.answers if status >= 500 and status != 503]
        assert figures.answers[200] > figures.requests / 10
        check_log(server)
        assert server.ask("GET", f"{server.root}/readyz")["status"] == "ok"
        return figures


def _schemathesis(
    server: ServerProcess, description: Path, config: Path, examples: int, seed: int
) -> int:
    """Make requests up and check their answers; give how many there were."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", f"--config-file={config}", "--no-color"),
            *("run", str(description), f"--url={server.root}", "--workers=1"),
            *("--checks=all", f"--exclude-checks={_NOT_CHECKED}"),
            *(f"--header=Authorization: Bearer {TOKEN}", f"--max-examples={examples}"),
            *(
                "--phases=coverage,fuzzing,stateful",
                f"--seed={seed}",
                "--continue-on-failure",
                "--no-shrink",
            ),
            *(f"--request-timeout={HANG_S}", "--suppress-health-check=all", "--warnings=off"),
        ],
        cwd=config.parent,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "NO_PROXY": "*"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    [generated] = re.findall(r"^ *(\d+) generated, \1 passed", done.stdout, re.MULTILINE)
    return int(generated)


def main() -> int:
    """Go on until so many requests have been answered."""
    parser = argparse.ArgumentParser(prog="run_tests.sh hostile", description=main.__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    made = 0
    answers: Counter[int] = Counter()
    seed = arguments.seed
    while made < arguments.requests:
        with tempfile.TemporaryDirectory(prefix="ocps-hostile-") as directory:
            figures = run(Path(directory), examples=400, seed=seed, keys=seed % 2 == 1)
        made += figures.requests
        answers += figures.answers
        seed += 1
    statuses = ", ".join(f"{count} times {status}" for status, count in sorted(answers.items()))
    print(  # noqa: T201
        f"{made} requests, seeds {arguments.seed} to {seed - 1}; answers in the logs: {statuses}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
