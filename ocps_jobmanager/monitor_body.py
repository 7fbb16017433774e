"""What a monitor does: wait for a job's data, then call the Job Manager back.

One process per waiting job runs this (``monitor.py``), with one line of JSON on its standard input:
``key`` (the secret that it shows when it calls back), ``poll_interval_s`` (seconds between two
looks), ``paths`` (files that must all be there, relative ones to the current directory) and
``ca_file`` (the certificates that an ``https`` server is checked with, or null for the system's).
A later line means "look now". End-of-file means that the server is gone: whatever the monitor is
doing, it exits with 0 at once, so none outlives its server.

Thousands may wait at the same time, which decides how this reads: it stands alone and imports
little, the C modules beneath the usual ones. ``json`` (it brings ``re`` and ``enum``) would add
half to the memory of each, ``http.client`` would triple it, and take 15 ms when all wake up.
"""

import _signal  # type: ignore[import-not-found]  # the one without enum
import _thread
import posix
import select
import time
from _json import make_scanner  # what json.loads() itself uses

TYPE_CHECKING = False  # typing's own would import it
if TYPE_CHECKING:
    import _socket
    from typing import Any

ATTEMPT_S = 30.0
"""How long one callback may take, from the connection to the answer, in seconds."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
LONGEST_INTERVAL_S = 86400.0
LONGEST_LINE = 1 << 20
LONGEST_HEAD = 1 << 16

STDIN, STDOUT, STDERR = 0, 1, 2
_HTTP = b"HTTP/1."


class BadStartError(Exception):
    """The monitor was not started as its contract says: ``str(error)`` says what is wrong."""


class ServerGoneError(Exception):
    """The standard input has ended: nobody is left to call back."""


class Url:
    """Where to call back.

    Parameters
    ----------
    text : str
        ``http://`` or ``https://``, a name or a literal address (IPv6 in brackets), maybe a port,
        a path and a query.

    Raises
    ------
    BadStartError
        It is something else.
    """

    def __init__(self, text: str) -> None:
        scheme, separator, rest = text.partition("://")
        plain = all("!" <= letter <= "~" for letter in text)
        if not separator or scheme not in {"http", "https"} or not plain or "#" in text:
            raise BadStartError("--api_url must be an http or https URL")
        self.tls = scheme == "https"
        self.authority = rest.partition("?")[0].partition("/")[0]
        self.target = rest[len(self.authority) :] or "/"
        if self.target.startswith("?"):
            self.target = "/" + self.target
        host, port = self._split(self.authority)
        if not host or "@" in host:
            raise BadStartError("--api_url must name a host, and no user")
        if port and not (port.isdecimal() and 0 < int(port) < 65536):
            raise BadStartError("--api_url has a port that is none")
        self.host = host
        self.port = int(port) if port else (443 if self.tls else 80)

    @staticmethod
    def _split(authority: str) -> tuple[str, str]:
        if authority.startswith("["):
            host, closed, port = authority[1:].partition("]")
            if not closed or (port and not port.startswith(":")):
                raise BadStartError("--api_url must have an IPv6 address in brackets")
            return host, port[1:]
        host, _, port = authority.partition(":")
        return host, port


class Settings:
    """What the first line says.

    Parameters
    ----------
    line : str
        JSON, without its newline.

    Raises
    ------
    BadStartError
        It is not as the contract says. The message does not quote it, for it holds the key.
    """

    def __init__(self, line: str) -> None:
        values = _decode(line)
        key: Any = values.get("key")
        interval: Any = values.get("poll_interval_s")
        paths: Any = values.get("paths")
        ca_file: Any = values.get("ca_file")
        # It goes into a URL, and is hexadecimal.
        if not (isinstance(key, str) and key.isascii() and key.replace("-", "").isalnum()):
            raise BadStartError('"key" in the first line must be letters and digits')
        # A bool is an int, and a NaN fails every comparison.
        number = isinstance(interval, int | float) and not isinstance(interval, bool)
        if not number or not 0 < interval <= LONGEST_INTERVAL_S:
            raise BadStartError('"poll_interval_s" in the first line must be seconds, up to a day')
        if not isinstance(paths, list) or not paths or not all(map(_is_path, paths)):
            raise BadStartError('"paths" in the first line must be a list of file names')
        if ca_file is not None and not _is_path(ca_file):
            raise BadStartError('"ca_file" in the first line must be a file name or null')
        self.key: str = key
        self.poll_interval_s = float(interval)
        self.paths: list[str] = paths
        self.ca_file: str | None = ca_file


def _is_path(value: object) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


class _JsonContext:
    """What the scanner asks of its maker: the plain behaviour of ``json.loads``."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


def _decode(line: str) -> "dict[str, Any]":
    try:
        scan = make_scanner(_JsonContext)  # type: ignore[arg-type]  # it asks for the attributes only
        values, end = scan(line.strip(), 0)
    except (ValueError, StopIteration, RecursionError, SystemError):
        # The scanner can't make a JSONDecodeError of its own, and fails at that (SystemError).
        values, end = None, 0
    if not isinstance(values, dict) or end != len(line.strip()):
        raise BadStartError("the first line of the standard input must be a JSON object")
    return values


class Server:
    """The server's end of the standard input: alive, impatient, or gone."""

    def first_line(self) -> str:
        """Wait for the first line.

        Raises
        ------
        BadStartError
            It is too long or not UTF-8.
        ServerGoneError
            There is none.
        """
        received = b""
        while b"\n" not in received:
            if len(received) > LONGEST_LINE:
                raise BadStartError("the first line of the standard input is too long")
            received += self._read()
        try:
            # What may follow it means "look now", and that is what happens next anyway.
            return received.partition(b"\n")[0].decode()
        except UnicodeDecodeError:
            raise BadStartError("the first line of the standard input is not UTF-8") from None

    def wait(self, seconds: float | None, fd: int = STDIN) -> bool:
        """Wait until the time is up, something comes from the server, or `fd` can be read.

        Returns
        -------
        bool
            Whether `fd` can be read, if that is not the standard input.

        Raises
        ------
        ServerGoneError
        """
        ready = select.select({STDIN, fd}, (), (), seconds)[0]
        if STDIN in ready:
            self._read()
        return fd in ready

    @staticmethod
    def _read() -> bytes:
        try:
            received = posix.read(STDIN, 4096)
        except OSError:
            received = b""
        if not received:
            raise ServerGoneError
        return received


def say(fd: int, line: str) -> None:
    """Print a line for people, or leave it: a reader that is stuck or gone holds nothing up."""
    try:
        if select.select((), (fd,), (), 0)[1]:
            posix.write(fd, f"{line}\n".encode(errors="backslashreplace"))
    except OSError:
        pass


def first_missing(paths: list[str]) -> str | None:
    """The first of `paths` that is not there as a regular file."""
    for path in paths:
        try:
            mode = posix.stat(path).st_mode
        except OSError:
            return path
        if mode & 0o170000 != 0o100000:  # S_IFMT, S_IFREG
            return path
    return None


def wait_for_data(server: Server, settings: Settings) -> str:
    """Look until all files are there; return the one that came last, as far as can be told."""
    last = settings.paths[-1]
    while (missing := first_missing(settings.paths)) is not None:
        last = missing
        server.wait(settings.poll_interval_s)
    return last


def call_back(server: Server, url: Url, settings: Settings, job_id: str) -> None:
    """Tell the Job Manager that the data are there, until it has taken note."""
    pause_s = FIRST_PAUSE_S
    while (problem := _attempt(server, url, settings)) is not None:
        if pause_s == FIRST_PAUSE_S:
            say(STDERR, f'The callback for job "{job_id}" failed ({problem}); it will be repeated.')
        server.wait(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _attempt(server: Server, url: Url, settings: Settings) -> str | None:
    """Call back once; return what went wrong, or None.

    The request has a thread of its own, for a look-up of a name can't be interrupted or watched,
    and the end of the server must be noticed all the while.
    """
    problems: list[str | None] = []

    def ask() -> None:
        try:
            problems.append(_verdict(_request(url, settings)))
        except (OSError, ValueError) as error:
            problems.append(getattr(error, "strerror", None) or str(error))
        finally:
            posix.close(writer)

    reader, writer = posix.pipe()
    try:
        _thread.start_new_thread(ask, ())
    except RuntimeError as error:  # no more threads for this user
        posix.close(writer)
        problems.append(str(error))
    while not server.wait(None, reader):
        pass
    posix.close(reader)
    return problems[0] if problems else "an unexpected error"


def _verdict(status: int) -> str | None:
    # 404 and 409: the job waits no more, and never will again.
    return None if 200 <= status < 300 or status in {404, 409} else f"HTTP status {status}"


def _request(url: Url, settings: Settings) -> int:
    """Ask the addresses of the host in turn, until one answers; return the HTTP status.

    Raises
    ------
    OSError, ValueError
        None did, not in HTTP at least; or the host has no address.
    """
    import _socket  # noqa: PLC0415 - a monitor that waits has no use for it

    # Bytes, for a str would be encoded as an international name, which imports a megabyte.
    addresses = _socket.getaddrinfo(url.host.encode(), url.port, 0, _socket.SOCK_STREAM)
    deadline = time.monotonic() + ATTEMPT_S
    failure = OSError("the host has no address")
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        now = time.monotonic()
        # One that swallows everything may not use up the time of those after it.
        answer_by = now + (deadline - now) / (len(addresses) - tried)
        try:
            connection = _socket.socket(family, kind, protocol)
            try:
                connection.settimeout(_left(answer_by))
                connection.connect(address)
                return _ask(connection, url, settings, answer_by)
            finally:
                connection.close()
        except OSError as error:
            failure = error
    raise failure


def _ask(connection: "_socket.socket", url: Url, settings: Settings, answer_by: float) -> int:
    if url.tls:
        # Some megabytes, only for those who need them.
        import socket  # noqa: PLC0415
        import ssl  # noqa: PLC0415

        context = ssl.create_default_context(cafile=settings.ca_file)
        plain = socket.socket(fileno=connection.detach())
        plain.settimeout(_left(answer_by))
        connection = context.wrap_socket(plain, server_hostname=url.host)
    try:
        joint = "&" if "?" in url.target else "?"
        request = (
            f"GET {url.target}{joint}id={settings.key} HTTP/1.1\r\n"
            f"Host: {url.authority}\r\nConnection: close\r\n\r\n"
        )
        connection.settimeout(_left(answer_by))
        connection.sendall(request.encode())
        return _status(connection, answer_by)
    finally:
        connection.close()


def _status(connection: "_socket.socket", answer_by: float) -> int:
    received = b""
    while True:
        while b"\r\n\r\n" not in received:
            connection.settimeout(_left(answer_by))
            more = connection.recv(8192)
            received += more
            start = received[: len(_HTTP)]
            if not more or start != _HTTP[: len(start)] or len(received) > LONGEST_HEAD:
                raise OSError("the answer is not HTTP")
        head, _, received = received.partition(b"\r\n\r\n")
        status = head.split(maxsplit=2)[1:2] or [b""]
        if len(status[0]) != 3 or not status[0].isdigit():
            raise OSError("the answer is not HTTP")
        if not status[0].startswith(b"1"):  # RFC 9110: interim ones precede the answer
            return int(status[0])


def _left(until: float) -> float:
    """The seconds until then, for a socket."""
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds


def parse_arguments(arguments: list[str]) -> tuple[str, Url]:
    """Take the command line apart.

    Returns
    -------
    tuple of str and Url
        The job's id and where to call back.

    Raises
    ------
    BadStartError
        An argument is missing, unknown or given twice.
    """
    values = dict(zip(arguments[::2], arguments[1::2], strict=False))
    if len(arguments) != 6 or set(values) != {"--id", "--type", "--api_url"}:
        raise BadStartError("usage: monitor.py --id ID --type TYPE --api_url URL")
    return values["--id"], Url(values["--api_url"])


def main(arguments: list[str]) -> int:
    """Do what a monitor does.

    Returns
    -------
    int
        The exit status: 0 when the Job Manager knows or is gone, 2 for a wrong start.
    """
    # Python's own handler would wait for the next look if the signal came just before it sleeps.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    try:
        job_id, url = parse_arguments(arguments)
        server = Server()
        settings = Settings(server.first_line())
        path = wait_for_data(server, settings)
        say(STDOUT, f'Data file "{path}" found. Making API request...')
        call_back(server, url, settings, job_id)
    except BadStartError as error:
        say(STDERR, f"monitor.py: {error}")
        return 2
    except ServerGoneError:
        return 0
    return 0
