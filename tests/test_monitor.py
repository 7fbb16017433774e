"""The monitor's contract, point by point, with a real process and a real server."""

import asyncio
import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from ocps_jobmanager import monitor_body
from tests.callbacks import DATA, DEADLINE_S, KEY, PATH, CallbackServer, eventually, state

PROGRAM = Path(monitor_body.__file__).with_name("monitor.py")
PYTHON = [sys.executable, "-I", "-S"]
JOB = "730f55f5cd6941e4ba047b06ed0e36dd"
FILE = f"{JOB}.dat"
FOUND = f'Data file "{FILE}" found. Making API request...\n'
#: Longer than a test may take: nothing happens because it is up.
NEVER_S = 3600


class Monitor:
    """A monitor that a test has started, standing in for the server."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        assert process.stdin is not None
        self.stdin = process.stdin

    def begin(self, paths: list[str], *, interval_s: float, ca_file: str | None) -> None:
        """Write the first line."""
        words = {"key": KEY, "poll_interval_s": interval_s, "paths": paths, "ca_file": ca_file}
        self.stdin.write(json.dumps(words).encode() + b"\n")

    def nudge(self) -> None:
        """Write a later line."""
        self.stdin.write(b"\n")

    def hang_up(self) -> None:
        """End its standard input."""
        self.stdin.close()

    async def exit_code(self) -> int:
        """Wait for its end."""
        return await asyncio.wait_for(self.process.wait(), DEADLINE_S)

    async def output(self) -> str:
        """What it prints until its end."""
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.read(), DEADLINE_S)).decode()

    async def error_line(self) -> str:
        """The next line that it complains with; empty when there is none any more."""
        assert self.process.stderr is not None
        return (await asyncio.wait_for(self.process.stderr.readline(), DEADLINE_S)).decode()

    async def is_waiting(self) -> None:
        """Wait until it has looked, and sleeps."""
        # It sleeps nowhere between its first read, which begins the look, and the next wait.
        await eventually(lambda: _unread(self.stdin) == 0 and state(self.process.pid) == "S")


@contextlib.asynccontextmanager
async def started(
    url: str,
    cwd: Path,
    *,
    paths: list[str] | None = None,
    interval_s: float = NEVER_S,
    ca_file: str | None = None,
    begin: bool = True,
    stdout: int = subprocess.PIPE,
) -> AsyncIterator[Monitor]:
    process = await asyncio.create_subprocess_exec(
        *(*PYTHON, PROGRAM, "--id", JOB, "--type", "ap", "--api_url", url),
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
    monitor = Monitor(process)
    try:
        if begin:
            monitor.begin(paths or [FILE], interval_s=interval_s, ca_file=ca_file)
        yield monitor
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def run(body: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(3 * DEADLINE_S):
            return await body()

    return asyncio.run(main())


def touch(path: Path) -> None:
    path.touch()


# Looking ---------------------------------------------------------------------------------------


def test_it_finds_data_that_are_there_already_says_so_and_calls_back(tmp_path: Path) -> None:
    touch(tmp_path / FILE)

    async def body() -> None:
        async with CallbackServer(200).running() as server, started(server.url, tmp_path) as it:
            assert await it.output() == FOUND
            assert await it.exit_code() == 0
            request = await server.next_request()
            assert (request.method, request.uri) == ("GET", f"{PATH}?id={KEY}")
            assert request.headers["Host"] == f"127.0.0.1:{server.port}"
            assert server.requests.empty()
            assert await it.error_line() == ""

    run(body)


def test_it_looks_again_and_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with (
            CallbackServer(200).running() as server,
            started(server.url, tmp_path, interval_s=0.02) as it,
        ):
            await it.is_waiting()
            touch(tmp_path / FILE)
            assert await it.output() == FOUND
            assert await it.exit_code() == 0

    run(body)


def test_it_looks_at_once_when_it_is_nudged(tmp_path: Path) -> None:
    async def body() -> None:
        async with CallbackServer(200).running() as server, started(server.url, tmp_path) as it:
            await it.is_waiting()
            it.nudge()
            await it.is_waiting()
            touch(tmp_path / FILE)
            it.nudge()
            assert await it.output() == FOUND
            assert await it.exit_code() == 0

    run(body)


def test_a_directory_is_not_data(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()

    async def body() -> None:
        async with CallbackServer(200).running() as server, started(server.url, tmp_path) as it:
            await it.is_waiting()
            assert server.requests.empty()
            (tmp_path / FILE).rmdir()
            touch(tmp_path / FILE)
            it.nudge()
            assert await it.exit_code() == 0

    run(body)


def test_of_several_files_all_must_be_there_wherever_they_are(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    absolute = tmp_path / "elsewhere é.fits"
    paths = ["a b.fits", str(absolute)]

    async def body() -> None:
        async with (
            CallbackServer(200).running() as server,
            started(server.url, tmp_path / "work", paths=paths) as it,
        ):
            touch(absolute)
            it.nudge()
            await it.is_waiting()
            assert server.requests.empty()
            touch(tmp_path / "work" / "a b.fits")
            it.nudge()
            assert await it.output() == 'Data file "a b.fits" found. Making API request...\n'
            assert await it.exit_code() == 0

    run(body)


# Calling back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 202, 204, 404, 409])
def test_an_answer_that_settles_it_ends_the_monitor(tmp_path: Path, status: int) -> None:
    touch(tmp_path / FILE)

    async def body() -> None:
        async with (
            CallbackServer(status).running() as server,
            started(server.url, tmp_path) as it,
        ):
            assert await it.exit_code() == 0
            assert server.requests.qsize() == 1

    run(body)


def test_any_other_answer_is_asked_for_again_after_a_pause_that_grows(tmp_path: Path) -> None:
    touch(tmp_path / FILE)

    async def body() -> None:
        async with (
            CallbackServer(500, 302, 200).running() as server,
            started(server.url, tmp_path) as it,
        ):
            assert await it.output() == FOUND  # once
            assert await it.exit_code() == 0
            assert [(await server.next_request()).uri for _ in range(3)] == [f"{PATH}?id={KEY}"] * 3
            first, second, third = server.times
            assert second - first >= 0.45  # at the least; a busy machine takes longer
            assert third - second >= 0.95

    run(body)


def test_a_server_that_is_not_up_yet_is_called_until_it_is(tmp_path: Path) -> None:
    touch(tmp_path / FILE)

    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with socket.socket() as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", port))  # and refuses, for it does not listen
            async with started(f"http://127.0.0.1:{port}{PATH}", tmp_path) as it:
                complaint = await it.error_line()
                assert JOB in complaint
                assert "Connection refused" in complaint
                assert KEY not in complaint
                held.listen()
                held.setblocking(False)
                connection, _ = await asyncio.wait_for(
                    asyncio.get_running_loop().sock_accept(held), DEADLINE_S
                )
                with connection:
                    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    assert await it.exit_code() == 0

    run(body)


def test_the_pause_doubles_up_to_thirty_seconds_and_it_never_gives_up() -> None:
    pauses: list[float] = []

    class Patient(monitor_body.Server):
        """Lets requests take their time, and pauses pass at once."""

        def wait(self, seconds: float | None, fd: int = monitor_body.STDIN) -> bool:
            if fd != monitor_body.STDIN:
                return bool(select.select([fd], [], [], DEADLINE_S)[0])
            assert seconds is not None
            pauses.append(seconds)
            if len(pauses) == 10:
                raise monitor_body.ServerGoneError
            return True

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = monitor_body.Url(f"http://127.0.0.1:{listener.getsockname()[1]}/")
    with pytest.raises(monitor_body.ServerGoneError):
        monitor_body.call_back(Patient(), url, settings(), JOB)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]


def test_a_nudge_cuts_a_pause_short(tmp_path: Path) -> None:
    touch(tmp_path / FILE)

    async def body() -> None:
        async with (
            CallbackServer(503).running() as server,
            started(server.url, tmp_path) as it,
        ):
            for _ in range(12):  # minutes, without
                await server.next_request()
                while server.requests.empty():
                    it.nudge()  # lost if it is still reading the answer
                    await asyncio.sleep(0.01)

    run(body)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("localhost", "127.0.0.1"),
        ("localhost", "::1"),
    ],
)
def test_names_are_looked_up_and_their_addresses_tried_in_turn(
    tmp_path: Path, host: str, address: str
) -> None:
    if not _can_listen(address):
        pytest.skip(f"this machine has no {address}")
    if host == "localhost" and address not in _addresses(host):
        pytest.skip(f"localhost is not {address} on this machine")
    touch(tmp_path / FILE)

    async def body() -> None:
        async with (
            CallbackServer(200).running(address=address, host=host) as server,
            started(server.url, tmp_path) as it,
        ):
            assert await it.exit_code() == 0
            assert (await server.next_request()).headers["Host"] == f"{host}:{server.port}"

    run(body)


def test_the_addresses_of_a_name_share_the_time_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import _socket  # noqa: PLC0415

    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        answering(b"HTTP/1.1 200 OK\r\n\r\n") as port,
    ):
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", silent.getsockname()[1])),
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)),
        ]
        monkeypatch.setattr(_socket, "getaddrinfo", lambda *_: found)
        monkeypatch.setattr(monitor_body, "ATTEMPT_S", 1.0)
        assert monitor_body._request(monitor_body.Url("http://two.example/"), settings()) == 200


def test_https_is_checked_with_the_certificates_it_was_given(tmp_path: Path) -> None:
    touch(tmp_path / FILE)
    ca_file = str(DATA / "localhost.crt")

    async def body() -> None:
        async with CallbackServer(200).running(host="localhost", tls=True) as server:
            async with started(server.url, tmp_path, ca_file=ca_file) as it:
                assert await it.exit_code() == 0
                assert (await server.next_request()).uri == f"{PATH}?id={KEY}"
            for url, given in [
                (server.url, None),  # a certificate that nobody vouches for
                (server.url.replace("localhost", "127.0.0.1"), ca_file),  # one of another host
                (server.url.replace("https", "http"), None),  # no TLS at all
            ]:
                async with started(url, tmp_path, ca_file=given) as it:
                    assert "failed" in await it.error_line()
            assert server.requests.empty()

    run(body)


def settings() -> monitor_body.Settings:
    line = json.dumps({"key": KEY, "poll_interval_s": 5, "paths": [FILE], "ca_file": None})
    return monitor_body.Settings(line)


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A server that gives one connection this answer, whatever is asked; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            listener.settimeout(DEADLINE_S)
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield cast(int, listener.getsockname()[1])
        thread.join(DEADLINE_S)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", 200),
        (b"HTTP/1.0 204\r\nA: b\r\n\r\n", 204),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nA: b\r\n\r\nHTTP/1.1 409 C\r\n\r\n", 409),
    ],
)
def test_the_status_is_read_from_an_answer_in_http(answer: bytes, status: int) -> None:
    with answering(answer) as port:
        url = monitor_body.Url(f"http://127.0.0.1:{port}/")
        assert monitor_body._request(url, settings()) == status


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",  # cut off
        b"HTTP/1.1 \r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 -20 OK\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000,
        b"\0" * 100_000,
    ],
)
def test_what_is_not_http_is_no_answer(answer: bytes) -> None:
    with answering(answer) as port, pytest.raises(OSError, match=r"not HTTP|reset"):
        monitor_body._request(monitor_body.Url(f"http://127.0.0.1:{port}/"), settings())


def test_an_answer_that_never_comes_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(monitor_body, "ATTEMPT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = monitor_body.Url(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with pytest.raises(TimeoutError):
            monitor_body._request(url, settings())


# Ending ----------------------------------------------------------------------------------------


def test_it_ends_with_its_server_while_it_waits(tmp_path: Path) -> None:
    async def body() -> None:
        async with started("http://127.0.0.1:1/", tmp_path) as it:
            await it.is_waiting()
            it.hang_up()
            assert await it.exit_code() == 0
            assert await it.output() == ""
            assert await it.error_line() == ""

    run(body)


def test_it_ends_with_its_server_before_the_first_line(tmp_path: Path) -> None:
    async def body() -> None:
        async with started("http://127.0.0.1:1/", tmp_path, begin=False) as it:
            it.stdin.write(b'{"key": ')
            it.hang_up()
            assert await it.exit_code() == 0
            assert await it.error_line() == ""

    run(body)


def test_it_ends_with_its_server_in_the_middle_of_a_callback(tmp_path: Path) -> None:
    touch(tmp_path / FILE)
    assert monitor_body.ATTEMPT_S > DEADLINE_S, "else it may end because of that"

    async def body() -> None:
        async with CallbackServer(None).running() as server, started(server.url, tmp_path) as it:
            await server.next_request()
            it.hang_up()
            assert await it.exit_code() == 0
            await asyncio.wait_for(server.hung_up.wait(), DEADLINE_S)

    run(body)


def test_it_ends_with_its_server_between_two_callbacks(tmp_path: Path) -> None:
    touch(tmp_path / FILE)

    async def body() -> None:
        async with CallbackServer(500).running() as server, started(server.url, tmp_path) as it:
            await server.next_request()
            await it.error_line()
            it.hang_up()
            assert await it.exit_code() == 0

    run(body)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -15), (signal.SIGINT, -2)])
def test_a_signal_ends_it_without_a_word(tmp_path: Path, number: int, code: int) -> None:
    async def body() -> None:
        async with started("http://127.0.0.1:1/", tmp_path) as it:
            await it.is_waiting()
            it.process.send_signal(number)
            assert await it.exit_code() == code
            assert await it.output() == ""
            assert await it.error_line() == ""

    run(body)


def test_an_output_that_nobody_reads_does_not_keep_it_from_calling(tmp_path: Path) -> None:
    touch(tmp_path / FILE)

    async def body() -> None:
        gone_reader, gone = os.pipe()
        os.close(gone_reader)
        reader, full = os.pipe()
        os.set_blocking(full, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(full, b"x" * 65536)
        os.set_blocking(full, True)
        try:
            for stdout in (gone, full):
                async with (
                    CallbackServer(200).running() as server,
                    started(server.url, tmp_path, stdout=stdout) as it,
                ):
                    assert await it.exit_code() == 0
                    assert server.requests.qsize() == 1
        finally:
            for fd in (gone, reader, full):
                os.close(fd)

    run(body)


# Starting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--id", JOB, "--type", "ap"],
        ["--id", JOB, "--type", "ap", "--api_url"],
        ["--id", JOB, "--type", "ap", "--api_url", "http://localhost/", "more"],
        ["--id", JOB, "--id", JOB, "--api_url", "http://localhost/"],
        ["--id", JOB, "--type", "ap", "--url", "http://localhost/"],
        *(
            ["--id", JOB, "--type", "ap", "--api_url", url]
            for url in (
                "",
                "localhost:8080",
                "ftp://localhost/",
                "http://",
                "http:///path",
                "http://:8080/",
                "http://user:word@localhost/",
                "http://localhost:0/",
                "http://localhost:65536/",
                "http://localhost:eighty/",
                "http://[::1/",
                "http://[::1]8080/",
                "http://localhost/#fragment",
                "http://localhost/a b",
                "http://localhost/\r\nEvil: 1",
                "http://höst/",
            )
        ),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(tmp_path: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [*PYTHON, PROGRAM, *arguments],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.startswith(b"monitor.py: ")
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.endswith(b"\n")


GOOD = {"key": KEY, "poll_interval_s": 5, "paths": [FILE], "ca_file": None}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        KEY.encode(),
        b"\xff",
        b"[]",
        b'{"key": "',
        json.dumps(GOOD).encode() + b"}",
        b"[" * 100_000,
        b" " * (2 << 20),
        *(
            json.dumps({**GOOD, name: value}).encode()
            for name, values in {
                "key": [None, "", 1, f"{KEY} x", f"{KEY}&x=y", f"{KEY}\r\nEvil: 1", "é"],
                "poll_interval_s": [None, "5", 0, -1, True, float("nan"), float("inf"), 1e9],
                "paths": [None, [], FILE, [1], [""], ["a\0b"], {FILE: 1}],
                "ca_file": [1, "", "a\0b"],
            }.items()
            for value in values
        ),
    ],
)
def test_a_wrong_first_line_is_refused_in_one_line_that_does_not_show_the_key(
    tmp_path: Path, line: bytes
) -> None:
    touch(tmp_path / FILE)
    done = subprocess.run(
        [*PYTHON, PROGRAM, "--id", JOB, "--type", "ap", "--api_url", "http://127.0.0.1:1/"],
        cwd=tmp_path,
        input=line + b"\n",
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.startswith(b"monitor.py: ")
    assert done.stderr.count(b"\n") == 1
    assert KEY.encode() not in done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://localhost", (False, "localhost", 80, "/")),
        ("https://localhost", (True, "localhost", 443, "/")),
        ("http://localhost?a=b", (False, "localhost", 80, "/?a=b")),
        ("http://[::1]:8080/a//b?c=/d", (False, "::1", 8080, "/a//b?c=/d")),
        ("https://[::1]/", (True, "::1", 443, "/")),
        ("http://host.example:81/api/v1", (False, "host.example", 81, "/api/v1")),
    ],
)
def test_a_url_is_taken_apart(text: str, expected: tuple[bool, str, int, str]) -> None:
    url = monitor_body.Url(text)
    assert (url.tls, url.host, url.port, url.target) == expected


def test_a_later_servers_words_in_the_first_line_are_no_error() -> None:
    line = json.dumps({**GOOD, "later": [1.5, {"a": None}]}) + " \r"
    assert monitor_body.Settings(f" {line}").key == KEY


# Being many ------------------------------------------------------------------------------------


def test_one_that_waits_has_not_imported_what_only_a_callback_needs() -> None:
    script = (
        "import sys; sys.path.append(sys.argv[1]); import monitor_body;"
        "print('\\n'.join(sys.modules))"
    )
    done = subprocess.run(
        [*PYTHON, "-c", script, str(PROGRAM.parent)], capture_output=True, text=True, check=True
    )
    imported = set(done.stdout.split())
    assert "monitor_body" in imported
    assert not imported & {
        *("ctypes", "http", "http.client", "email", "ssl", "socket", "_socket", "selectors"),
        *("json", "re", "enum", "typing", "argparse", "os", "site", "urllib", "threading"),
    }


def test_one_that_waits_needs_little_more_memory_than_python_itself(tmp_path: Path) -> None:
    async def body() -> None:
        async with started("http://127.0.0.1:1/", tmp_path) as first:
            await first.is_waiting()  # its bytecode is stored by now
        async with started("http://127.0.0.1:1/", tmp_path) as it:
            await it.is_waiting()
            bare = await asyncio.create_subprocess_exec(
                *(*PYTHON, "-c", "import sys, time; print(flush=True); time.sleep(1000)"),
                stdout=subprocess.PIPE,
            )
            assert bare.stdout is not None
            await asyncio.wait_for(bare.stdout.readline(), DEADLINE_S)
            try:
                assert _pss_kb(it.process.pid) <= 1.3 * _pss_kb(bare.pid)
            finally:
                bare.kill()
                await bare.communicate()

    run(body)


def _pss_kb(pid: int) -> int:
    """Its own memory and its share of what it shares with others, in kB (proc(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _can_listen(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _addresses(host: str) -> set[str]:
    return {str(found[4][0]) for found in socket.getaddrinfo(host, 0)}


def _unread(pipe: asyncio.StreamWriter) -> int:
    fd = pipe.get_extra_info("pipe").fileno()
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4), sys.byteorder)
