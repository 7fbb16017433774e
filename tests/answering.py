"""An HTTP server that answers what a test tells it to, and writes down what it was asked."""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    body: Any


@dataclass(frozen=True)
class Reply:
    """An answer; without a body the connection is closed instead."""

    body: object = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class AnsweringServer:
    """Answers with what `answer` makes of each request.

    Parameters
    ----------
    answer : callable
        Called in one thread at a time.
    port : int
        0 for a free one.
    """

    def __init__(self, answer: Callable[[Asked], Reply], port: int = 0) -> None:
        self.asked: list[Asked] = []
        lock = threading.Lock()
        asked_so_far = self.asked

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                asked = Asked(self.command, self.path, json.loads(raw) if raw else None)
                with lock:
                    asked_so_far.append(asked)
                    reply = answer(asked)
                if reply.body is None:
                    self.close_connection = True
                    return
                text = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = do_DELETE = _serve  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/api/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
