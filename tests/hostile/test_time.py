"""Clients that take their time: they are let go, and nothing of them stays."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tornado.testing import bind_unused_port

from ocps_jobmanager.app import AppParts, make_app
from ocps_jobmanager.handlers.auth import Access
from ocps_jobmanager.handlers.http_limits import LIMITS
from ocps_jobmanager.handlers.http_server import HttpServer
from ocps_jobmanager.times import utc_now
from tests.world import World

SHORT_S = 0.3
POST = b"POST /api/v1/job HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@asynccontextmanager
async def serving(tmp_path: Path, **limits: float) -> AsyncIterator[tuple[HttpServer, int]]:
    """An application in this process, with limits that a test can wait for."""
    async with World(tmp_path) as world:
        parts = AppParts(
            manager=world.manager,
            layout=world.layout,
            checks={},
            probe_key="f" * 32,
            clock=utc_now,
        )
        access = Access.build(tokens=None, urls=["http://localhost/api/v1"])
        app = make_app(parts, access=access, base_path="/api/v1", max_body=2**20, redact=True)
        http = HttpServer(app, **limits)
        http.take_s = SHORT_S
        listening, port = bind_unused_port()
        http.add_sockets([listening])
        try:
            yield http, port
        finally:
            http.stop()
            await http.close_all_connections()


def in_time(test: Any) -> None:
    """Run a test; what hangs fails."""

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(bounded())


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"G",
        b"GET /healthz HTTP/1.1\r\nHost: local",
        POST + b"Content-Length: 10\r\n\r\n",
        POST + b"Content-Length: 10\r\n\r\n{",
        POST + b"Transfer-Encoding: chunked\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
        POST + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n",
    ],
    ids=lambda raw: repr(raw[-30:]),
)
def test_a_request_that_does_not_go_on_is_given_up(tmp_path: Path, sent: bytes) -> None:
    async def test() -> None:
        limits = {"idle_connection_timeout": SHORT_S, "body_timeout": SHORT_S}
        async with serving(tmp_path, **limits) as (http, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            answer = await reader.read()
            assert answer in {b"", b"HTTP/1.1 100 (Continue)\r\n\r\n"}
            await http.request_callback.settings["active_requests"].none_left()
            writer.close()

    in_time(test())


@pytest.mark.parametrize("what", ["headers", "body"])
def test_a_sender_that_never_ends_gains_nothing_by_a_byte_now_and_then(
    tmp_path: Path, what: str
) -> None:
    async def test() -> None:
        limits = {"idle_connection_timeout": SHORT_S, "body_timeout": SHORT_S}
        async with serving(tmp_path, **limits) as (http, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = b"Content-Length: 100000\r\n\r\n" if what == "body" else b"A: "
            writer.write(POST + head)
            end = asyncio.create_task(reader.read())
            while not end.done():
                writer.write(b" ")
                await asyncio.wait([end], timeout=SHORT_S / 10)
            with contextlib.suppress(ConnectionError):  # the server has hung up with bytes unread
                assert end.result() == b""
            await http.request_callback.settings["active_requests"].none_left()
            writer.close()

    in_time(test())


def test_a_connection_may_idle_between_requests_and_not_for_ever(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, idle_connection_timeout=SHORT_S) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(3):
                writer.write(GET)
                assert b" 200 " in await reader.readline()
                await reader.readuntil(b"}")
            assert await reader.read() == b""
            writer.close()

    in_time(test())


@pytest.mark.parametrize(
    "sent", [b"Content-Length: 10\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n"]
)
def test_a_client_that_goes_away_keeps_no_shutdown_waiting(tmp_path: Path, sent: bytes) -> None:
    """A shutdown waits for requests that are being answered; this one never will be."""

    async def test() -> None:
        async with serving(tmp_path) as (http, port):
            active = http.request_callback.settings["active_requests"]
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(POST + sent)
            while not active._requests:
                await asyncio.sleep(0.005)
            writer.close()
            await active.none_left()

    in_time(test())


def test_a_client_that_takes_no_answer_is_let_go_and_costs_no_memory(tmp_path: Path) -> None:
    request = b"GET /api/v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"

    async def test() -> None:
        async with serving(tmp_path) as (http, port):
            with socket.socket() as stubborn:
                stubborn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                stubborn.connect(("127.0.0.1", port))
                stubborn.setblocking(False)
                largest = 0
                while not http._connections:
                    await asyncio.sleep(0.005)
                while http._connections:
                    with contextlib.suppress(OSError):
                        stubborn.send(request * 1000)
                    for connection in http._connections:
                        if not connection.stream.closed():
                            largest = max(largest, connection.stream._write_buffer._size)
                    await asyncio.sleep(0.01)
                assert 0 < largest < 2**20

    in_time(test())


def test_the_limits_are_finite_and_leave_a_poller_its_time() -> None:
    assert 60 <= LIMITS["idle_connection_timeout"] <= 600
    assert 30 <= LIMITS["body_timeout"] <= 600
    assert 30 <= HttpServer.take_s <= 600
    assert LIMITS["max_header_size"] == 65536


def test_they_hold_where_nothing_else_is_said() -> None:
    server = HttpServer(lambda _: None)
    assert server.conn_params.header_timeout == LIMITS["idle_connection_timeout"]
    assert server.conn_params.body_timeout == LIMITS["body_timeout"]
    assert server.conn_params.max_header_size == LIMITS["max_header_size"]
