"""How long clients may take, and the answer to what is no HTTP."""

import contextlib
import json
import resource
import socket
from asyncio import Future
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tornado.iostream import IOStream

from ocps_jobmanager.answers import Refusal

#: What Tornado's server is given: else it waits for an hour, and for a body for ever.
LIMITS: Mapping[str, Any] = MappingProxyType(
    {
        # Between two requests on a connection, and from the first byte of one to the end of its
        # headers.
        "idle_connection_timeout": 120.0,
        "body_timeout": 60.0,
        "max_header_size": 64 * 1024,
        # Bodies are limited by the handlers, which answer; Tornado would only hang up.
        "max_body_size": 2**62,
    }
)
#: How long a client may take no byte of an answer.
TAKE_S = 60.0
#: The rest of the descriptors is for what the server itself needs: see `descriptors`.
_SHARE_OF_CLIENTS = 1 / 3
_MOST_CLIENTS = 10_000
#: What Tornado writes where it can't read a request; there is no handler then.
_BARE_400 = b"HTTP/1.1 400 Bad Request\r\n\r\n"


def most_connections() -> int:
    """How many clients may be connected, by this process's limit of descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST_CLIENTS
    return min(_MOST_CLIENTS, int(soft * _SHARE_OF_CLIENTS))


def limit_taking(stream: IOStream, take_s: float) -> None:
    """Have a connection end whose client takes nothing of its answers; Tornado would wait on."""
    with contextlib.suppress(OSError):  # it is gone already
        stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * take_s))


def answer_in_json(stream: IOStream) -> None:
    """Have a connection answer in JSON also to what is no request."""
    stream.write = _in_json(stream.write)  # type: ignore[method-assign,assignment]


_Write = Callable[[bytes | memoryview], "Future[None]"]


def _in_json(write: _Write) -> _Write:
    def write_json(data: bytes | memoryview) -> "Future[None]":
        return write(_malformed() if data == _BARE_400 else data)

    return write_json


def _malformed() -> bytes:
    body = json.dumps(Refusal(status="error", msg="This is not a request of HTTP/1.1.")).encode()
    return (
        b"HTTP/1.1 400 Bad Request\r\n"
        b"Server: ocps-jobmanager\r\n"
        b"Content-Type: application/json; charset=UTF-8\r\n"
        b"Content-Length: %d\r\n"
        b"Connection: close\r\n\r\n" % len(body)
    ) + body
