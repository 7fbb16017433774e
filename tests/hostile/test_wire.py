"""What comes over the wire, byte by byte: it is answered in JSON or hung up on, never a hang."""

import json
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.hostile.conftest import check_log
from tests.hostile.wire import Answer, Wire
from tests.server import ServerProcess, wait_until

JOB = b'{"type": "ledger", "env": {"LEDGER": "/dev/null", "THEN": "true"}, "log_dir": "logs"}'
POST = b"POST /api/v1/job HTTP/1.1\r\nHOST\r\nContent-Type: application/json\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHOST\r\n\r\n"


def check_form(server: ServerProcess, answer: Answer) -> None:
    """Every answer is JSON, names no path of the server, and shows no traceback."""
    assert answer.headers["Content-Type"] == "application/json; charset=UTF-8"
    told = answer.json()
    if answer.status >= 400:
        assert told.get("msg") or told.get("message")
        assert str(server.work) not in answer.body.decode()
    assert b"Traceback" not in answer.body
    assert answer.status < 500


def jobs(server: ServerProcess) -> int:
    return len(server.ids_of("all"))


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\n\r\n\r\nx\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /healthz\r\nHOST\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\nHOST\r\n\r\n",
        b"GET  /healthz HTTP/1.1\r\nHOST\r\n\r\n",
        b"GET /heal thz HTTP/1.1\r\nHOST\r\n\r\n",
        b"G\0T /healthz HTTP/1.1\r\nHOST\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHOST\r\nHost: other\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHOST\r\nno colon\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHOST\r\nA b: c\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHOST\r\nA: b\0c\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n HOST\r\n\r\n",
        POST + b"Content-Length: x\r\n\r\n{}",
        POST + b"Content-Length: -1\r\n\r\n{}",
        POST + b"Content-Length: +2\r\n\r\n{}",
        POST + b"Content-Length: 1_0\r\n\r\n{}",
        POST + b"Content-Length: 2, 3\r\n\r\n{}",
        POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
        POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
        POST + b"Content-Length: \xb2\r\n\r\n{}",
        POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n{}",
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 70 + b"2\r\n{}\r\n0\r\n\r\n",
    ],
    ids=lambda raw: repr(raw[-50:]),
)
def test_what_is_not_http_is_refused_and_hung_up_on(server: ServerProcess, raw: bytes) -> None:
    before = jobs(server)
    with Wire(server.root) as wire:
        wire.send(raw)
        answer = wire.answer()
        if answer is not None:
            check_form(server, answer)
            assert answer.status in {400, 413}
        assert wire.closed()
    assert jobs(server) == before


def test_a_malformed_request_is_told_so_in_json(server: ServerProcess) -> None:
    with Wire(server.root) as wire:
        wire.send(b"GET /healthz HTTP/9.9\r\nHOST\r\n\r\n")
        answer = wire.answer()
        assert answer is not None
        assert answer.json() == {"status": "error", "msg": "This is not a request of HTTP/1.1."}
        assert wire.closed()


@pytest.mark.parametrize(
    "smuggled",
    [
        POST + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
        POST + b"Content-Length: 0, 44\r\n\r\n",
        POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding : chunked\r\nContent-Length: 0\r\n\r\n",
        POST + b"Transfer-Encoding: \x0bchunked\r\nContent-Length: 0\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n",
    ],
    ids=lambda raw: repr(raw[-60:]),
)
def test_a_request_within_a_request_is_none(server: ServerProcess, smuggled: bytes) -> None:
    """A proxy in front may read the first one's length another way."""
    inner = POST + b"Content-Length: %d\r\n\r\n" % len(JOB) + JOB
    before = jobs(server)
    with Wire(server.root) as wire:
        wire.send(smuggled + inner)
        answer = wire.answer()
        if answer is not None:
            check_form(server, answer)
            assert answer.status == 400
        assert wire.closed()
    assert jobs(server) == before


def test_two_equal_lengths_are_one(server: ServerProcess) -> None:
    with Wire(server.root) as wire:
        length = b"Content-Length: %d\r\n" % len(JOB)
        wire.send(POST + length + length + b"\r\n" + JOB)
        answer = wire.answer()
        assert answer is not None
        assert answer.status == 200
        server.delete(answer.json()["job_id"])


@pytest.mark.parametrize("size", [1, 7, len(JOB)])
def test_a_body_in_chunks(server: ServerProcess, size: int) -> None:
    with Wire(server.root) as wire:
        wire.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(JOB), size):
            piece = JOB[start : start + size]
            wire.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        wire.send(b"0\r\n\r\n")
        answer = wire.answer()
        assert answer is not None
        assert answer.status == 200
        server.delete(answer.json()["job_id"])


def test_requests_one_after_the_other_are_answered_in_their_order(server: ServerProcess) -> None:
    body = POST + b"Content-Length: %d\r\n\r\n" % len(JOB) + JOB
    with Wire(server.root) as wire:
        wire.send((GET + body) * 20)
        ids = []
        for _ in range(20):
            health, submitted = wire.answer(), wire.answer()
            assert health is not None
            assert submitted is not None
            assert (health.status, submitted.status) == (200, 200)
            ids.append(submitted.json()["job_id"])
    assert server.ids_of("all")[:20] == ids[::-1]
    for job_id in ids:
        server.delete(job_id)


# Too much -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/v1/job/", "/api/v1/job?id=", "/api/v1/job/list/", "/"])
@pytest.mark.parametrize("length", [300, 5_000, 60_000])
def test_a_long_path_is_nothing_that_there_is(
    server: ServerProcess, path: str, length: int
) -> None:
    seen = len(server.log())
    with Wire(server.root) as wire:
        wire.send(f"GET {path}{'a' * length} HTTP/1.1\r\nHOST\r\n\r\n".encode())
        answer = wire.answer()
        assert answer is not None
        check_form(server, answer)
        assert answer.status == 404
        assert len(answer.body) < 500
    lines = wait_until(lambda: server.log()[seen:], "the access line").splitlines()
    assert max(map(len, lines)) < 3000


@pytest.mark.parametrize(
    "headers",
    [
        b"A: " + b"a" * 70_000 + b"\r\n",
        b"".join(b"A%d: a\r\n" % number for number in range(10_000)),
        b"A: a\r\n" * 20_000,
        b"Cookie: " + b"a=b; " * 20_000 + b"\r\n",
    ],
    ids=["one", "many", "one again and again", "cookies"],
)
def test_headers_beyond_64_kib_are_hung_up_on(server: ServerProcess, headers: bytes) -> None:
    with Wire(server.root) as wire:
        refused = wire.send_until_refused(
            b"GET /healthz HTTP/1.1\r\nHost: " + wire.host.encode() + b"\r\n" + headers, 1
        )
        assert refused or wire.answer() is None


def test_many_headers_within_64_kib_are_read(server: ServerProcess) -> None:
    with Wire(server.root) as wire:
        wire.send(b"GET /healthz HTTP/1.1\r\nHOST\r\n" + b"A: a\r\n" * 8_000 + b"\r\n")
        answer = wire.answer()
        assert answer is not None
        assert answer.status in {200, 400}


def test_headers_that_never_end_are_hung_up_on(server: ServerProcess) -> None:
    with Wire(server.root) as wire:
        wire.send(b"GET /healthz HTTP/1.1\r\nHOST\r\n")
        assert wire.send_until_refused(b"A: a\r\n" * 1000, 10_000)


@pytest.mark.parametrize("length", [2**20 + 1, 20 * 2**20, 2**40, 2**70])
def test_a_body_that_is_announced_too_large(server: ServerProcess, length: int) -> None:
    with Wire(server.root) as wire:
        wire.send(POST + b"Content-Length: %d\r\n\r\n" % length)
        wire.send_until_refused(b"x" * 2**16, min(length, 20 * 2**20) // 2**16 + 1)
        answer = wire.answer()
        if answer is not None:  # a sender that goes on sending may see a reset in its place
            check_form(server, answer)
            assert answer.status in ({413} if length < 2**60 else {400, 413})


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(
    server: ServerProcess,
) -> None:
    with Wire(server.root) as wire:
        wire.send(POST + b"Expect: 100-continue\r\nContent-Length: 999999999\r\n\r\n")
        answer = wire.answer()
        assert answer is not None
        check_form(server, answer)
        assert answer.status == 413


def test_a_body_in_chunks_that_never_ends_is_hung_up_on(server: ServerProcess) -> None:
    with Wire(server.root) as wire:
        wire.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        assert wire.send_until_refused(b"10000\r\n" + b"x" * 65536 + b"\r\n", 10_000)


def test_a_thousand_idle_connections_keep_nobody_waiting(server: ServerProcess) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    wires = []
    try:
        for number in range(1000):
            wires.append(Wire(server.root))
            if number % 3 == 1:
                wires[-1].send(b"GET /healthz HTTP/1.1\r\nHO")
            elif number % 3 == 2:
                wires[-1].send(POST + b"Content-Length: 100\r\n\r\n{")
        started = time.monotonic()
        for _ in range(20):
            assert requests.get(f"{server.root}/healthz", timeout=10).ok
        job_id = server.submit()
        assert server.delete(job_id)["phase"] == "aborted"
        assert time.monotonic() - started < 10  # a hang, not a benchmark
    finally:
        for wire in wires:
            wire.__exit__(None, None, None)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert server.process is not None
    fds = Path(f"/proc/{server.process.pid}/fd")
    wait_until(lambda: len(list(fds.iterdir())) < 200, "the connections are let go")


@pytest.fixture
def small_server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that may have few descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    server = ServerProcess(tmp_path, {"OCPS_MAX_WAITING": "20"})
    resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
    try:
        server.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield server
        check_log(server)
    finally:
        server.__exit__(None, None, None)


def test_more_idle_connections_than_descriptors_keep_nobody_out(
    small_server: ServerProcess,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    wires = []
    try:
        for number in range(1500):
            wires.append(Wire(small_server.root))
            if number % 2:
                wires[-1].send(b"GET /healthz HTTP/1.1\r\nHO")
            if number % 100 == 0:
                assert requests.get(f"{small_server.root}/healthz", timeout=10).ok
        job_id = small_server.submit()
        small_server.data_arrive(job_id)
        assert small_server.ended(job_id)["exit_code"] == 0
        with Wire(small_server.root) as wire:
            wire.send(GET)
            assert wire.answer() is not None
    finally:
        for wire in wires:
            wire.__exit__(None, None, None)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "some are let go" in small_server.log()


@pytest.mark.parametrize(
    "sent",
    [
        b"G",
        b"GET /healthz HTTP/1.1\r\nHOST\r\n",
        POST + b"Content-Length: 100\r\n\r\n",
        POST + b"Content-Length: 100\r\n\r\n{",
        POST + b"Transfer-Encoding: chunked\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
        GET,
        POST + b"Content-Length: %d\r\n\r\n" % len(JOB) + JOB,
    ],
    ids=lambda raw: repr(raw[-30:]),
)
@pytest.mark.parametrize("gone", ["shut down", "closed"])
def test_a_client_that_goes_away_in_the_middle(
    server: ServerProcess, sent: bytes, gone: str
) -> None:
    with Wire(server.root) as wire:
        wire.send(sent)
        if gone == "shut down":
            wire.ends()
            wire.answer()


# Odd bytes ----------------------------------------------------------------------------------------

ODD_PLACES = (
    *("/api/v1/job/", "/api/v1/job?id=", "/api/v1/job?", "/api/v1/job/list/", "/api/v1/", "/"),
    *(
        "/api/v1/job/list/all?limit=",
        "/api/v1/job/list/all?cursor=",
        "/api/v1/monitor/complete?id=",
    ),
)
ODD = [
    "%00",
    "%0a%0dX:y",
    "%ff%fe",
    "%",
    "%zz",
    "%u0041",
    "..",
    "../../../etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..%5cetc",
    "~root",
    "$HOME",
    "$(id)",
    "`id`",
    "'%20OR%201=1--",
    "%7B%7B7*7%7D%7D",
    "__class__",
    "jobs.sqlite3",
    "%EF%BC%8E%EF%BC%8E",
    "%E2%80%AE",
    ";a=b",
    "None",
    "null",
    "-1",
]


@pytest.mark.parametrize("odd", ODD)
def test_odd_bytes_in_path_and_query_are_no_job(server: ServerProcess, odd: str) -> None:
    for method in ("GET", "DELETE", "POST", "HEAD", "FOO"):
        for path in ODD_PLACES:
            with Wire(server.root) as wire:
                wire.send(f"{method} {path}{odd} HTTP/1.1\r\nHOST\r\n\r\n".encode())
                answer = wire.answer(head=method == "HEAD")
                assert answer is not None
                if method != "HEAD":
                    check_form(server, answer)
                assert answer.status in {400, 404, 405, 415}, (method, path)


@pytest.mark.parametrize(
    "query", ["limit=1%00", "limit=%1f1", "limit=1%20", "limit=+1", "limit=1&limit=2", "limit=1%ff"]
)
def test_a_number_is_nothing_but_a_number(server: ServerProcess, query: str) -> None:
    answer = requests.get(f"{server.url}/job/list/all?{query}", timeout=30)
    assert answer.status_code == 400
    assert answer.json()["job_ids"] is None


def test_control_characters_and_repetitions_make_an_id_another(server: ServerProcess) -> None:
    job_id = server.submit("dump", DUMP="/dev/null", A="1", B="2")
    for query, status in (
        (f"{job_id}%00", 404),
        (f"%01{job_id}", 404),
        (f"{job_id}&id={job_id}", 400),
        (f"%20{job_id}%20", 200),
    ):
        answer = requests.get(f"{server.url}/job?id={query}", timeout=30)
        assert answer.status_code == status, query
    assert requests.get(f"{server.url}/job/{job_id}%00", timeout=30).status_code == 404
    server.ended(job_id)


@pytest.mark.parametrize("query", ["a&", "&", "=", "id=x&", "id&", "%00=%00&", ";", "a=1;"])
@pytest.mark.parametrize("path", ["/api/v1/job", "/api/v1/monitor/complete", "/healthz"])
def test_a_query_of_very_many_fields(server: ServerProcess, path: str, query: str) -> None:
    with Wire(server.root) as wire:
        wire.send(f"GET {path}?{query * (60_000 // len(query))} HTTP/1.1\r\nHOST\r\n\r\n".encode())
        answer = wire.answer()
        assert answer is not None
        check_form(server, answer)
        # Tornado takes a thousand fields, and older ones any number.
        assert answer.status in ({200, 400} if path == "/healthz" else {400, 404})


@pytest.mark.parametrize(
    "method",
    [
        *("PREPARE", "FINISH", "INITIALIZE", "ON_FINISH", "WRITE_JSON", "BODY", "__INIT__"),
        *("SETTINGS", "_EXECUTE", "CONNECT", "TRACE", "PROPFIND", "get", "G"),
    ],
)
def test_a_method_is_none_of_pythons(server: ServerProcess, method: str) -> None:
    for path in ("/api/v1/job", "/healthz", "/nowhere"):
        with Wire(server.root) as wire:
            wire.send(f"{method} {path} HTTP/1.1\r\nHOST\r\n\r\n".encode())
            answer = wire.answer()
            assert answer is not None
            check_form(server, answer)
            assert answer.status in {400, 404, 405}


@pytest.mark.parametrize(
    "target", [b"*", b"http://other/healthz", b"//other/healthz", b"healthz", b"?", b"/healthz#x"]
)
@pytest.mark.parametrize("method", [b"GET", b"OPTIONS", b"CONNECT"])
def test_odd_targets(server: ServerProcess, method: bytes, target: bytes) -> None:
    with Wire(server.root) as wire:
        wire.send(method + b" " + target + b" HTTP/1.1\r\nHOST\r\n\r\n")
        answer = wire.answer()
        if answer is not None:
            check_form(server, answer)
            assert answer.status in {400, 404, 405}


def test_raw_bytes_in_the_path_do_not_get_into_the_log(server: ServerProcess) -> None:
    seen = len(server.log())
    for raw in (b"\xff\xfe", b"\x1b[2J", b"a\x7fb", "\u202e".encode(), b"\x85x"):
        with Wire(server.root) as wire:
            wire.send(b"GET /api/v1/job/" + raw + b"?q=" + raw + b" HTTP/1.1\r\nHOST\r\n\r\n")
            answer = wire.answer()
            assert answer is not None
            check_form(server, answer)
    assert re.fullmatch(r"[\x20-\x7e\n]*", server.log()[seen:])


@pytest.mark.parametrize("name", ["Content-Type", "Idempotency-Key", "Origin", "Authorization"])
@pytest.mark.parametrize("value", [b"\xff\xfe", b"\x80", "ü".encode(), b"a" * 9000, b",", b'"'])
def test_odd_bytes_in_headers(server: ServerProcess, name: str, value: bytes) -> None:
    with Wire(server.root) as wire:
        kind = b"" if name == "Content-Type" else b"Content-Type: application/json\r\n"
        wire.send(
            b"POST /api/v1/job HTTP/1.1\r\nHOST\r\n"
            + kind
            + name.encode()
            + b": "
            + value
            + b"\r\nContent-Length: 2\r\n\r\n{}"
        )
        answer = wire.answer()
        assert answer is not None
        check_form(server, answer)
        assert answer.status in {400, 401, 403, 415}


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500_000,
        b'{"a":' * 150_000,
        b'{"env": ' + b"[" * 900 + b"]" * 900 + b"}",
        b"1" * 1_000_000,
        b"-" + b"9" * 1_000_000,
        b'{"env": {"THEN": 1' + b"0" * 900_000 + b"}}",
        b'{"env": {"THEN": 1e' + b"9" * 900_000 + b"}}",
        b'{"type": "' + b"\\u0000" * 100_000 + b'"}',
        b'{"type": "' + b"\\ud800" * 100_000 + b'"}',
        b"{" + b",".join(b'"%d": 0' % number for number in range(80_000)) + b"}",
        b'{"env": {' + b",".join(b'"%d": 0' % number for number in range(80_000)) + b"}}",
        b'{"log_dir": "' + b"a/" * 400_000 + b'"}',
        b'{"log_dir": "' + b"../" * 300_000 + b'"}',
        b'{"type": "' + b"ledge" * 190_000 + b'"}',
        b"\x00" * 1_000_000,
        b"\xef\xbb\xbf{}",
        b"NaN",
        b'{"__class__": {"__init__": {"__globals__": 1}}, "type": "__class__", "env": []}',
    ],
    ids=lambda raw: repr(raw[:20]),
)
def test_a_hostile_body_is_refused_soon_and_briefly(server: ServerProcess, body: bytes) -> None:
    with Wire(server.root) as wire:
        wire.send(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        answer = wire.answer()
        assert answer is not None
        check_form(server, answer)
        assert answer.status == 400
        assert len(answer.body) < 100_000
        assert json.loads(answer.body)["errors"]


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/x-www-form-urlencoded", b"a=b&" * 100_000, 400),
        ("application/x-www-form-urlencoded", b"&" * 900_000, 400),
        ("application/x-www-form-urlencoded", b"id=" + b"a" * 900_000, 404),
        ("application/x-www-form-urlencoded", b"id=%ff%00%0a", 404),
        ("application/x-www-form-urlencoded", b"id=a;id=b", 404),
        ("application/json", b'{"id": ["x"]}', 400),
        ("application/json", b'{"id": {"$ne": ""}}', 400),
        ("application/json", b'["id"]', 400),
        ("application/json", b'{"id": "\\ud800"}', 400),
        ("application/json", b'{"id": "\\u0000"}', 404),
        ("application/json", b'{"id": "' + b"a" * 900_000 + b'"}', 404),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="id"',
            415,
        ),
        ("", b"id=x", 415),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_hostile_callback(server: ServerProcess, kind: str, body: bytes, status: int) -> None:
    with Wire(server.root) as wire:
        wire.send(
            b"POST /api/v1/monitor/complete HTTP/1.1\r\nHOST\r\n"
            + (b"Content-Type: %b\r\n" % kind.encode() if kind else b"")
            + b"Content-Length: %d\r\n\r\n" % len(body)
            + body
        )
        answer = wire.answer()
        assert answer is not None
        check_form(server, answer)
        assert answer.status == status
