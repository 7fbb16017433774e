"""A whole server, its limits and what it clears away, on this machine alone."""

import contextlib
import fcntl
import re
import resource
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

from ocps_jobmanager.client import JobManagerClient, RefusedError
from tests.server import ServerProcess, wait_until

BODY: dict[str, Any] = {
    "type": "ledger",
    "env": {"LEDGER": "/dev/null", "THEN": "true"},
    "log_dir": "./logs",
}


def post(server: ServerProcess, key: str, **changes: Any) -> requests.Response:
    headers = {"Idempotency-Key": key}
    return requests.post(f"{server.url}/job", json=BODY | changes, headers=headers, timeout=10)


def limit_of(server: ServerProcess) -> tuple[int, int]:
    """The server's soft and hard limit of descriptors."""
    assert server.process is not None
    text = Path(f"/proc/{server.process.pid}/limits").read_text()
    found = re.search(r"Max open files +(\d+) +(\d+)", text)
    assert found is not None
    return int(found[1]), int(found[2])


class LimitedServer(ServerProcess):
    """A server that may not have as many descriptors as it likes."""

    limits = (256, 4096)

    def spawn(self, log_path: Path | None = None) -> "subprocess.Popen[bytes]":
        program = (
            f"import os, resource, sys\n"
            f"resource.setrlimit(resource.RLIMIT_NOFILE, {self.limits})\n"
            f"os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        )
        with (log_path or self.log_path).open("ab") as log:
            return subprocess.Popen(
                [
                    *(sys.executable, "-c", program),
                    *("-W", "error", "-m", "tests.audited_server", str(self.report)),
                ],
                cwd=Path(__file__).parents[1],
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


def test_a_limit_that_is_high_enough_is_left_as_it_is(tmp_path: Path) -> None:
    class Unlimited(LimitedServer):
        limits = (3000, 4096)

    with Unlimited(tmp_path, {"OCPS_MAX_WAITING": "10"}) as server:
        assert limit_of(server) == (3000, 4096)


@pytest.mark.parametrize(("hard", "words"), [(4096, "at most 1198 here"), (400, "must be raised")])
def test_what_can_not_be_served_is_refused_in_one_line(
    tmp_path: Path, hard: int, words: str
) -> None:
    class Limited(LimitedServer):
        limits = (min(256, hard), hard)

    server = Limited(tmp_path)
    assert server.spawn().wait(60) == 2
    [line] = server.log().splitlines()
    assert line.startswith('OCPS_MAX_WAITING is "2000"')
    assert f"is {hard}" in line
    assert words in line


def test_the_soft_limit_is_raised_to_what_waiting_jobs_take(tmp_path: Path) -> None:
    """With the largest number that the refusal above names."""
    with LimitedServer(tmp_path, {"OCPS_MAX_WAITING": "1198"}) as server:
        assert limit_of(server) == (1198 * 3 + 500, 4096)


def test_as_many_wait_as_may_and_no_more(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, {"OCPS_MAX_WAITING": "3"}) as server:
        ids = [server.submit() for _ in range(3)]
        refused = requests.post(f"{server.url}/job", json=BODY, timeout=10)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 0
        server.restart()
        assert requests.post(f"{server.url}/job", json=BODY, timeout=10).status_code == 429
        server.data_arrive(ids[0])
        server.ended(ids[0])
        server.submit()


def test_a_repetition_after_a_kill_gets_the_first_answer(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        first = post(server, "k")
        assert first.status_code == 200
        server.restart()
        again = post(server, "k")
        assert (again.status_code, again.content) == (200, first.content)
        assert post(server, "k", run_id="other").status_code == 422
        server.data_arrive(first.json()["job_id"])
        server.ended(first.json()["job_id"])
        assert post(server, "k").content == first.content
        assert server.ids_of("all") == [first.json()["job_id"]]


def test_whoever_repeats_until_there_is_an_answer_has_one_job_for_each_key(tmp_path: Path) -> None:
    """However often the server is killed in the middle of it."""
    with ServerProcess(tmp_path) as server:
        answers: dict[str, set[bytes]] = {}
        posts: list[str] = []
        stop = threading.Event()

        def repeat(client: int) -> None:
            number = 0
            while not stop.is_set():
                key = f"{client}.{number}"
                with contextlib.suppress(requests.RequestException):
                    answer = post(server, key, run_id=key)
                    assert answer.status_code == 200, answer.text
                    answers.setdefault(key, set()).add(answer.content)
                    posts.append(key)
                    number += number < 5  # from then on it repeats the last one

        with ThreadPoolExecutor(4) as threads:
            clients = [threads.submit(repeat, client) for client in range(4)]
            for _ in range(2):
                enough = len(posts) + 10
                wait_until(lambda enough=enough: len(posts) > enough, "more answers")
                server.kill()
                server.start()
            stop.set()
            for client in clients:
                client.result()
        assert all(len(seen) == 1 for seen in answers.values())
        run_ids = [server.job(job_id)["run_id"] for job_id in server.ids_of("all")]
        assert len(run_ids) == len(set(run_ids))
        assert set(answers) <= set(run_ids)


def test_the_client_sends_a_key(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server, closing(JobManagerClient(server.url)) as client:

        def submit(key: str | None) -> str:
            env = {"LEDGER": "/dev/null", "THEN": "true"}
            return client.submit("ledger", env, "logs", idempotency_key=key)["job_id"]

        assert submit("Nacht für Nacht €") == submit("Nacht für Nacht €") != submit("k")
        assert submit(None) != submit(None)
        with pytest.raises(RefusedError, match="255"):
            submit("x" * 256)


def test_an_old_job_goes_and_says_before_when(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, {"OCPS_KEEP_DAYS": "1"}) as server:
        job_id, waiting = server.submit(), server.submit()
        server.data_arrive(job_id)
        job = server.ended(job_id)
        uws = requests.get(f"{server.url}/job/{job_id}", timeout=10).json()
        assert uws["destruction"][11:] == uws["endTime"][11:]
        assert uws["destruction"][:10] > uws["endTime"][:10]
        left = [*job["logs"].values(), job["output_dir"], str(server.work / f"{job_id}.dat")]
        assert all(Path(path).exists() for path in left)
        assert server.stop() == 0
        server.environ["OCPS_KEEP_DAYS"] = "0.000001"
        server.start()
        url = f"{server.url}/job/{job_id}"
        wait_until(lambda: requests.get(url, timeout=10).status_code == 404, "it is gone")
        assert not [path for path in left if Path(path).exists()]
        uws = requests.get(f"{server.url}/job/{waiting}", timeout=10).json()
        assert (uws["phase"], uws["destruction"]) == ("pending", None)


def test_jobs_are_kept_for_ever_unless_told_otherwise(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        job_id = server.submit()
        server.delete(job_id)
        uws = requests.get(f"{server.url}/job/{job_id}", timeout=10).json()
        assert (uws["phase"], uws["destruction"]) == ("aborted", None)


def test_this_machine_lets_the_tests_have_their_limits() -> None:
    """Otherwise the others say nothing."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= 6500


def test_a_folder_that_a_killed_server_left_goes_with_the_next_start(tmp_path: Path) -> None:
    """It was killed after the end of the job was recorded, before its folder was deleted."""
    with ServerProcess(tmp_path) as server:
        job_id = server.submit(THEN=f"while [ ! -e '{tmp_path}/go' ]; do sleep 0.05; done")
        server.data_arrive(job_id)
        server.until(job_id, "running")
        server.kill()
        (tmp_path / "go").touch()
        folder = server.work / "state" / "local" / job_id
        wait_until((folder / "status").exists, "the job has ended")
        wait_until(lambda: not_locked(folder / "started"), "its launcher, too")
        shutil.copytree(folder, tmp_path / "copy")
        server.start()
        job = server.ended(job_id)
        assert job["state"] == "completed", "while its end is not recorded its folder is needed"
        wait_until(lambda: not folder.exists(), "the folder is deleted")
        server.kill()
        shutil.copytree(tmp_path / "copy", folder)
        server.start()
        wait_until(lambda: not folder.exists(), "the folder is deleted again")
        assert server.job(job_id) == job
        assert server.runs() == [job_id]


def not_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
