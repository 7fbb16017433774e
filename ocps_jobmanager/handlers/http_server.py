"""Tornado's HTTP server, which can be left without cutting anybody off."""

import asyncio
import logging
import select
import socket
from collections.abc import Awaitable
from typing import Any, cast

import tornado.httpserver
from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream, SSLIOStream

from ocps_jobmanager.handlers.http_limits import (
    LIMITS,
    TAKE_S,
    answer_in_json,
    limit_taking,
    most_connections,
)

logger = logging.getLogger("main")

#: Between two looks at the connections that are left.
_LOOK_S = 0.01
#: Who is busy makes a request within that, and learns from its answer that the connection ends.
_FAREWELL_S = 0.3
#: More would not fit into the variable that names them for the successor.
_MOST_KEPT = 4000


class _Message(HTTPMessageDelegate):
    """A request, from before its first byte to the next one on its connection."""

    def __init__(self, delegate: HTTPMessageDelegate, connection: HTTP1Connection) -> None:
        self._delegate = delegate
        self.connection = connection
        self.has_begun = False

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        self.has_begun = True
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        self._delegate.finish()

    def on_connection_close(self) -> None:
        self._delegate.on_connection_close()

    def close_when_answered(self) -> None:
        """Have the answer say ``Connection: close``, and the connection closed behind it."""
        # With its head out the answer has said otherwise: the client may use the connection again.
        if self.has_begun and self.connection._response_start_line is None:
            self.connection._disconnect_on_finish = True


class HttpServer(tornado.httpserver.HTTPServer):
    """Tornado's server; `leave` ends it.

    Attributes
    ----------
    take_s : float
        How long a client may take no byte of an answer.
    """

    take_s = TAKE_S

    def initialize(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 Tornado's
        """Take what Tornado's takes; without it `LIMITS` hold."""
        super().initialize(*args, **{**LIMITS, **kwargs})
        self._messages: dict[HTTP1ServerConnection, _Message] = {}
        self._most_connections = most_connections()
        self._is_crowded = False
        #: Of clients that wait for nothing; filled by `leave`.
        self.kept: list[socket.socket] = []

    def adopt(self, connection: socket.socket) -> None:
        """Go on with a client's connection that another server has kept."""
        try:
            address = connection.getpeername()
        except OSError:  # the client is gone
            connection.close()
            return
        self.handle_stream(IOStream(connection), address)

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Serve a connection; if there are too many, in place of one that is idle."""
        if len(self._connections) < self._most_connections:
            self._is_crowded = False
        else:
            if not self._is_crowded:
                logger.warning("%d clients are connected; some are let go.", len(self._connections))
            self._is_crowded = True
            if not self._let_one_go():
                stream.close()
                return
        limit_taking(stream, self.take_s)
        answer_in_json(stream)
        super().handle_stream(stream, address)

    def _let_one_go(self) -> bool:
        """Close the oldest connection that is idle, if there is any."""
        for connection, message in self._messages.items():
            if not message.has_begun and not connection.stream.closed():
                connection.stream.close()
                return True
        return False

    def start_request(
        self, server_conn: object, request_conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        """Expect the next request of a connection."""
        delegate = super().start_request(server_conn, request_conn)
        message = _Message(delegate, cast(HTTP1Connection, request_conn))
        self._messages[cast(HTTP1ServerConnection, server_conn)] = message
        return message

    def on_close(self, server_conn: object) -> None:
        """Forget a connection."""
        self._messages.pop(cast(HTTP1ServerConnection, server_conn), None)
        super().on_close(server_conn)

    async def leave(self, *, keep: bool, within_s: float) -> None:
        """Accept nothing new, answer what has begun, and part with every client.

        Answers say ``Connection: close`` from now on. A connection that is idle can't simply be
        closed: its client may be sending a request at this very moment, and would fail.

        Parameters
        ----------
        keep : bool
            Take idle connections out, unread, for a successor to adopt: `kept`. Not those with
            TLS, whose keys stay here: these are closed when nothing has come for a moment.
        within_s : float
            What is not answered by then is cut off.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        self.stop()
        self.conn_params.no_keep_alive = True
        part_at = loop.time() + _FAREWELL_S
        self._look(keep, part=False)
        while self._connections and loop.time() < deadline:
            await asyncio.sleep(_LOOK_S)
            self._look(keep, part=loop.time() >= part_at)
        await self.close_all_connections()

    def _look(self, keep: bool, *, part: bool) -> None:
        for connection in list(self._connections):
            stream, message = connection.stream, self._messages.get(connection)
            if message is None or stream.closed():
                continue  # just accepted, or about to go
            if message.has_begun or not stream.reading() or stream._read_buffer_size:
                message.close_when_answered()
            elif isinstance(stream, SSLIOStream):
                if part and not stream._ssl_accepting and not _has_news(stream.socket):
                    stream.close()
            elif keep and len(self.kept) < _MOST_KEPT:
                # The connection lives on in the copy. What has come is still in the kernel.
                self.kept.append(stream.socket.dup())
                stream.close()
            elif not _has_news(stream.socket):
                stream.close()


def _has_news(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
