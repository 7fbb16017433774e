"""What monitors are tested with: a server that they call, and looks at their processes."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

DEADLINE_S = 20.0
PATH = "/api/v1/monitor/complete"
KEY = "0123456789abcdef" * 2
DATA = Path(__file__).with_name("data")


class CallbackServer:
    """Answers callbacks with a script of its own; the last answer is repeated.

    Parameters
    ----------
    answers : int or None
        HTTP statuses; None never answers.
    """

    def __init__(self, *answers: int | None) -> None:
        self.answers = list(answers)
        self.requests: asyncio.Queue[HTTPServerRequest] = asyncio.Queue()
        self.times: list[float] = []
        """When each request came, in seconds of the loop's clock."""
        self.hung_up = asyncio.Event()
        """A caller left before it had its answer."""
        self.answer_when = asyncio.Event()
        """Answers are held back until this is set."""
        self.answer_when.set()
        self.port = 0
        self.url = ""

    @contextlib.asynccontextmanager
    async def running(
        self, *, address: str = "127.0.0.1", host: str | None = None, tls: bool = False
    ) -> AsyncIterator["CallbackServer"]:
        """Listen on a free port of `address`; `url` names `host`."""
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(DATA / "localhost.crt", DATA / "localhost.key")
        server = HTTPServer(
            Application([(".*", _Callback, {"script": self})], log_function=lambda _: None),
            ssl_options=context,
        )
        sockets = bind_sockets(0, address, backlog=1024)
        server.add_sockets(sockets)
        self.port = sockets[0].getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{host or address}:{self.port}{PATH}"
        try:
            yield self
        finally:
            server.stop()
            await server.close_all_connections()

    async def next_request(self) -> HTTPServerRequest:
        """Wait for the next request."""
        return await asyncio.wait_for(self.requests.get(), DEADLINE_S)


class _Callback(RequestHandler):
    def initialize(self, script: CallbackServer) -> None:
        self.script = script

    async def get(self) -> None:
        script = self.script
        script.times.append(asyncio.get_running_loop().time())
        answer = script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
        script.requests.put_nowait(self.request)
        if answer is None:
            await script.hung_up.wait()
            return
        await script.answer_when.wait()
        self.set_status(answer)
        if answer != 204:
            self.write({"status": "ok", "msg": "", "cluster_id": 1, "proc_id": 0})

    def on_connection_close(self) -> None:
        self.script.hung_up.set()


async def eventually(true: Callable[[], object]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(DEADLINE_S):
        while not true():
            await asyncio.sleep(0.01)  # of other processes there are no events


def children(of: int) -> Iterator[int]:
    """The processes whose parent is `of`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))) and int(stat[1]) == of:
            yield int(entry.name)


def state(pid: int) -> str:
    """R, S, T, Z, ... as proc(5) has it; empty if there is no such process."""
    stat = _stat(pid)
    return stat[0] if stat else ""


def command(pid: int) -> list[str]:
    """The command line of a process; empty for a zombie."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode().split("\0")[:-1]
    except OSError:
        return []


def descriptors(pid: int | str) -> set[str]:
    """The numbers of the descriptors that a process has open."""
    return {entry.name for entry in (Path("/proc") / str(pid) / "fd").iterdir()}


def _stat(pid: int) -> list[str] | None:
    try:
        text = (Path("/proc") / str(pid) / "stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()
