"""The application over a `World`, and a client that checks what every answer must be."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.ioloop import IOLoop

from ocps_jobmanager.app import AppParts, make_app
from ocps_jobmanager.handlers.auth import Access
from ocps_jobmanager.handlers.base import Application
from ocps_jobmanager.times import utc_now
from tests.world import World

PROBE_KEY = "f" * 32
Fetch = Callable[..., Awaitable[tuple[int, Any, HTTPResponse]]]


@pytest.fixture
def io_loop() -> Iterator[IOLoop]:
    """The loop that pytest-tornado works with; its own leaves another one unclosed."""
    asyncio.set_event_loop(asyncio.new_event_loop())
    loop = IOLoop.current()
    yield loop
    loop.close(all_fds=True)
    asyncio.set_event_loop(None)


@pytest.fixture
def world(tmp_path: Path, io_loop: IOLoop) -> Iterator[World]:
    world = World(tmp_path)
    io_loop.run_sync(world.__aenter__)
    yield world
    io_loop.run_sync(lambda: world.__aexit__(None, None, None))


@pytest.fixture
def access() -> Access:
    """Everybody may call."""
    return Access.build(tokens=None, urls=["http://localhost:8080/api/v1"])


@pytest.fixture
def app(world: World, access: Access) -> Application:
    parts = AppParts(
        manager=world.manager,
        layout=world.layout,
        checks={"database": world.store.health, "scheduler": world.scheduler.health},
        probe_key=PROBE_KEY,
        clock=utc_now,
    )
    return make_app(parts, access=access, base_path="/api/v1", max_body=2**20, redact=True)


@pytest.fixture
def fetch(http_client: AsyncHTTPClient, base_url: str, tmp_path: Path) -> Fetch:
    """Ask the server; every answer is JSON and shows neither a traceback nor a server path."""

    async def fetch(
        method: str,
        path: str,
        body: object = None,
        *,
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any, HTTPResponse]:
        sent = headers or {}
        if body is not None:
            raw = json.dumps(body).encode()
            sent = {"Content-Type": "application/json"} | sent
        request = HTTPRequest(
            base_url + path,
            method=method,
            body=raw,
            headers=sent,
            allow_nonstandard_methods=True,
            follow_redirects=False,
        )
        response = await http_client.fetch(request, raise_error=False)
        text = response.body.decode()
        assert response.headers["Content-Type"] == "application/json; charset=UTF-8"
        assert "Traceback" not in text
        assert response.code != 500
        if response.code >= 400:
            assert str(tmp_path) not in text
        return response.code, json.loads(text) if text else None, response

    return fetch
