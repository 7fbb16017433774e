"""Where tokens and keys are on a running server: in the database and the token file, only."""

import base64
import contextlib
import os
import socket
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import requests

from tests.server import ServerProcess, children_of, wait_until
from tests.server_suite import UNTIL_FILE

NAME = "csc"
TOKEN = "0123456789abcdef-the-tokens-own-0123456789abcdef"
USER_INFO = f"{NAME}:{TOKEN}@"


def tokens_file(directory: Path) -> Path:
    """Make a token file."""
    path = directory / "tokens"
    path.touch(0o600)
    path.write_text(f"{NAME}:{TOKEN}\n")
    return path


def monitor_keys(server: ServerProcess) -> list[str]:
    """The keys of all jobs, from where alone they are."""
    with contextlib.closing(sqlite3.connect(server.work / "state" / "jobs.sqlite3")) as database:
        return [str(row[0]) for row in database.execute("SELECT monitor_key FROM job")]


def shown_to_others(pid: int) -> bytes:
    """What a process shows of itself; nothing of one that has ended."""
    with contextlib.suppress(OSError):
        folder = Path(f"/proc/{pid}")
        return (folder / "cmdline").read_bytes() + b"\0" + (folder / "environ").read_bytes()
    return b""


def descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for child in children_of(pid):
            yield child
            yield from descendants(child)


def files_below(directories: Iterable[Path]) -> Iterator[Path]:
    for directory in directories:
        for path in directory.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield path


class SecretsSuite:
    """Tests of a running server that has the tokens of `tokens_file`, in its own directory.

    ``server`` and ``places`` (directories: where the server and the scheduler write anything) are
    fixtures of who inherits it.
    """

    def test_only_the_database_and_the_token_file_hold_tokens_and_keys(
        self, server: ServerProcess, places: list[Path], tmp_path: Path
    ) -> None:
        waiting, ended, running = (
            server.submit(),
            server.submit(THEN="echo heard"),
            server.submit(THEN=UNTIL_FILE.format(tmp_path / "go")),
        )
        for job_id in (ended, running):
            server.data_arrive(job_id)
        server.ended(ended)
        server.until(running, "running")
        wait_until(lambda: waiting in server.monitors(), "a monitor waits")

        keys = monitor_keys(server)
        assert len(keys) == 3
        pair = base64.b64encode(f"{NAME}:{TOKEN}".encode())
        secrets = [TOKEN.encode(), pair, *map(str.encode, keys)]

        def found_in(content: bytes) -> bool:
            return any(secret in content for secret in secrets)

        answers = self._answers(server, [waiting, ended, running], keys)
        for what, answer in answers.items():
            assert not found_in(answer), what

        assert server.process is not None
        own = {server.process.pid, *descendants(server.process.pid)}
        assert server.monitors()[waiting] in own
        searched = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        shown = {pid: shown_to_others(pid) for pid in searched | own}
        # The job is one of them, whoever its parent is.
        assert any(f"JOB_ID={running}".encode() in content for content in shown.values())
        assert shown[server.process.pid]
        for pid, content in shown.items():
            assert pid == os.getpid() or not found_in(content), content

        database = server.work / "state" / "jobs.sqlite3"
        holders = {path for path in files_below(places) if found_in(path.read_bytes())}
        beside = {database.with_name(f"{database.name}{suffix}") for suffix in ("-wal", "-shm")}
        assert holders - beside - {database} == {tmp_path / "tokens"}
        assert holders & {database, *beside}
        for path in {database, *beside} & holders:
            assert TOKEN.encode() not in path.read_bytes(), "the server stores no token"
        (tmp_path / "go").touch()

    def test_requests_that_are_none_leave_no_token_or_key_in_the_log(
        self, server: ServerProcess
    ) -> None:
        server.submit()
        [key] = monitor_keys(server)
        pair = base64.b64encode(f"{NAME}:{TOKEN}".encode()).decode()
        host, path = "Host: localhost", "/api/v1/monitor/complete"
        requests_ = [
            ("GET /readyz HTTP/1.1", host, f"Authorization: Bearer {TOKEN}\x01"),
            ("GET /readyz HTTP/1.1", host, f"Authorization: Basic {pair}\x7f'"),
            ("GET /readyz HTTP/1.1", host, f"Authorization Bearer {TOKEN}: x"),
            ("GET /readyz HTTP/1.1", host, f"Authorization: \n Bearer {TOKEN}"),
            ("GET /readyz HTTP/1.1", f"Host: {USER_INFO}localhost"),
            (f"GET http://{USER_INFO}localhost/api/v1/job HTTP/1.1", host),
            (f"GET {USER_INFO} HTTP/1", host, "x"),
            (f"GET {path}?id={key} HTTP/9.9", host),
            (f"GET {path}?id={key}",),
            (f"GET {path}?id={key}&%ff=%fe HTTP/1.1", host),
            (f"GET {path}#?id={key} HTTP/1.1", host),
            (f"GET http://localhost{path}?id={key}&x HTTP/1.1", host, f"Cookie: {TOKEN}"),
            (f"POST {path} HTTP/1.1", host, "Content-Length: x", "", f"id={key}"),
            (f"POST {path} HTTP/1.1", host, "Content-Length: 3", "", f"id={key}"),
        ]
        port = int(server.root.rpartition(":")[2])
        for lines in requests_:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall("\r\n".join((*lines, "", "")).encode("latin-1"))
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
        assert server.log().count("Malformed HTTP message") >= 5
        for secret in (TOKEN, pair, key):
            assert secret not in server.log()

    @staticmethod
    def _answers(server: ServerProcess, ids: list[str], keys: list[str]) -> dict[str, bytes]:
        """What is answered to everything that can be asked, rightly and wrongly."""
        asked = [
            *(("GET", f"{server.url}/job?id={job_id}") for job_id in ids),
            *(("GET", f"{server.url}/job/{job_id}") for job_id in ids),
            # Those of the jobs whose data have arrived, written in every way.
            *(("GET", f"{server.url}/monitor/complete?id={key}") for key in keys[1:]),
            *(("GET", f"{server.url}//monitor//complete?x&id={key}") for key in keys[1:]),
            *(("POST", f"{server.url}/monitor/%63omplete?i%64={key}") for key in keys[1:]),
            *(("DELETE", f"{server.url}/monitor/complete/?id={key}") for key in keys),
            ("GET", f"{server.url}/monitor/complete?id={TOKEN}"),
            ("GET", f"{server.url}/job/list/all"),
            ("GET", f"{server.url}/openapi.json"),
            ("GET", f"{server.root}/readyz"),
            ("GET", f"{server.root}/healthz"),
            ("GET", f"{server.root}/no/such/path"),
            ("PUT", f"{server.url}/job/list/all"),
            ("POST", f"{server.url}/job"),
            ("DELETE", f"{server.url}/job/x"),
        ]
        answers = {}
        for method, url in asked:
            for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Host": "evil.example"}):
                answer = requests.request(method, url, headers=headers, timeout=10)
                assert answer.status_code < 500, answer.text
                about = "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
                answers[f"{method} {url} {headers}"] = about.encode() + answer.content
        return answers
