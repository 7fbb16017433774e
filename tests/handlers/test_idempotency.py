"""``Idempotency-Key`` and ``OCPS_MAX_WAITING``, as clients meet them."""

import asyncio
import dataclasses
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest
from tornado.httpserver import HTTPServer

from ocps_jobmanager.manager import Terms
from ocps_jobmanager.schedulers.base import SchedulerStatus
from tests.handlers.conftest import Fetch
from tests.handlers.test_job import BODY
from tests.makers import eventually
from tests.world import World

pytestmark = pytest.mark.gen_test(timeout=30)

Answer = tuple[int, Any]


async def post(fetch: Fetch, key: str, raw: bytes | None = None) -> Answer:
    headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
    body = raw or json.dumps(BODY).encode()
    code, answer, _ = await fetch("POST", "/api/v1/job", raw=body, headers=headers)
    return code, answer


async def test_a_repetition_gets_the_first_answer_byte_for_byte(fetch: Fetch, world: World) -> None:
    headers = {"Idempotency-Key": "night 1, visit 413635"}
    code, answer, first = await fetch("POST", "/api/v1/job", BODY, headers=headers)
    assert code == 200
    job = await world.launched(await world.manager.get(answer["job_id"]))
    assert job.cluster_id is not None
    world.scheduler.set_status(job.id, SchedulerStatus.RUNNING)
    world.scheduler.set_status(job.id, SchedulerStatus.COMPLETED)
    await world.until(job.id, lambda now: now.is_final)
    code, _, again = await fetch("POST", "/api/v1/job", BODY, headers=headers)
    assert (code, again.body) == (200, first.body)


async def test_the_same_value_written_otherwise_is_the_same_body(fetch: Fetch) -> None:
    written = json.dumps(dict(reversed(BODY.items())), indent=2).replace("ap", "\\u0061p", 1)
    assert json.loads(written) == BODY
    code, first = await post(fetch, "k")
    assert code == 200
    assert await post(fetch, "k", written.encode()) == (code, first)


async def test_concurrent_repetitions_get_one_answer(fetch: Fetch, world: World) -> None:
    answers = await asyncio.gather(*(post(fetch, "k") for _ in range(10)))
    assert answers == answers[:1] * 10
    assert answers[0][0] == 200
    assert len(await world.store.unfinished()) == 1


async def test_another_body_is_422(fetch: Fetch) -> None:
    await post(fetch, "k")
    code, answer = await post(fetch, "k", json.dumps(BODY | {"run_id": "42"}).encode())
    assert code == 422
    msg = answer.pop("msg")
    assert "Idempotency-Key" in msg
    assert answer == {"status": "error", "job_id": None, "cluster_id": None}


@pytest.mark.parametrize("key", ["x" * 256, "", "   ", "\x85", "a\xa0b"])
async def test_what_is_no_key_is_400(fetch: Fetch, world: World, key: str) -> None:
    code, answer = await post(fetch, key)
    assert code == 400
    assert answer["errors"] == [
        {"field": "Idempotency-Key", "msg": "must be 1 to 255 printable characters"}
    ]
    assert await world.store.unfinished() == []


@pytest.mark.parametrize("key", ["x" * 255, "x", "  visit 1  ", "Besuch für Nacht 1"])
async def test_what_is_a_key_is_taken(fetch: Fetch, key: str) -> None:
    code, first = await post(fetch, key)
    assert code == 200
    assert await post(fetch, key.strip()) == (200, first)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (b"Idempotency-Key: a\r\nIdempotency-Key: a", "is given more than once"),
        (b"Idempotency-Key: a\r\nidempotency-key: ", "is given more than once"),
        (b"Idempotency-Key: a\tb", "must be 1 to 255 printable characters"),
        (b"Idempotency-Key: a\x01b", ""),
        (b"Idempotency-Key: a\x00b", ""),
        (b"Idempotency-Key: a\x7fb", ""),
    ],
)
async def test_what_only_an_odd_client_sends_is_400(
    http_server: HTTPServer, base_url: str, world: World, lines: bytes, words: str
) -> None:
    body = json.dumps(BODY).encode()
    head = (
        b"POST /api/v1/job HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\n%b\r\nContent-Length: %d\r\n\r\n"
    )
    where = urlsplit(base_url)
    reader, writer = await asyncio.open_connection(
        where.hostname, where.port, family=socket.AF_INET
    )
    writer.write(head % (lines, len(body)) + body)
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    assert " 400 " in answer.splitlines()[0]
    assert words in answer
    assert await world.store.unfinished() == []


async def test_too_many_waiting_is_429_with_a_time_to_come_back(fetch: Fetch, world: World) -> None:
    world.manager._terms = dataclasses.replace(Terms(), max_waiting=1)
    code, first = await post(fetch, "k")
    assert code == 200
    code, answer, response = await fetch("POST", "/api/v1/job", BODY)
    assert code == 429
    assert int(response.headers["Retry-After"]) > 0
    assert answer == {
        "status": "error",
        "msg": "As many jobs as may (1) wait for their data already; try again later.",
        "job_id": None,
        "cluster_id": None,
    }
    assert await post(fetch, "k") == (200, first), "it was accepted before"
    await eventually(lambda: world.monitors.watched)
    assert list(world.monitors.watched) == [first["job_id"]]
