"""Bytes to the server and bytes back: no client in between that would mend what is sent."""

import json
import socket
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

#: None of these tests waits for so long; it is what a hang would be.
HANG_S = 15.0


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A connection to a server.

    Parameters
    ----------
    root : str
        The server's URL.
    """

    def __init__(self, root: str) -> None:
        url = urlsplit(root)
        assert url.hostname is not None
        assert url.port is not None
        self.host = f"{url.hostname}:{url.port}"
        self._socket = socket.create_connection((url.hostname, url.port), timeout=HANG_S)
        self._read = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def send(self, raw: bytes) -> None:
        """Send bytes; HOST in them becomes the header that the server wants."""
        self._socket.sendall(raw.replace(b"HOST", b"Host: " + self.host.encode()))

    def send_until_refused(self, raw: bytes, times: int) -> bool:
        """Send bytes again and again; say whether the server has hung up meanwhile."""
        try:
            for _ in range(times):
                self._socket.sendall(raw)
        except OSError:
            return True
        return False

    def ends(self) -> None:
        """Send nothing more, as a client that goes away in the middle."""
        self._socket.shutdown(socket.SHUT_WR)

    def answer(self, *, head: bool = False) -> Answer | None:
        """The next answer, or None if the server has hung up before one."""
        while b"\r\n\r\n" not in self._read:
            if not self._more():
                assert not self._read, f"half an answer: {self._read[:500]!r}"
                return None
        top, _, self._read = self._read.partition(b"\r\n\r\n")
        first, *lines = top.decode("latin-1").split("\r\n")
        headers = {
            name.title(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        length = 0 if head else int(headers.get("Content-Length", 0))
        while len(self._read) < length:
            assert self._more(), "the answer's body ends too soon"
        body, self._read = self._read[:length], self._read[length:]
        version, status, *_ = first.split(" ")
        assert version == "HTTP/1.1"
        return Answer(int(status), headers, body)

    def closed(self) -> bool:
        """Whether nothing more comes and the server has hung up."""
        return not self._read and not self._more()

    def _more(self) -> bool:
        try:
            piece = self._socket.recv(65536)
        except ConnectionError:
            return False
        self._read += piece
        return bool(piece)
