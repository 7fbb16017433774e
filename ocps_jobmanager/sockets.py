"""The sockets that a server answers on: bound here, or inherited.

They are inherited as systemd hands them over, see sd_listen_fds(3): from systemd itself, which
bound them, or from the server whose place this one takes. Such a socket goes on to listen while
nobody accepts: whoever connects in the meantime waits, and is not refused.
"""

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ocps_jobmanager.errors import StartupError, shown

#: The variables of the protocol. They are meant for one process and go to no child.
VARIABLES = frozenset({"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID"})

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
_LISTENING, _CONNECTION = "ocps-listening", "ocps-connection"
#: Two sockets are to have the same free port; it may take a few attempts.
_PORT_ATTEMPTS = 20
#: As many monitors may call at the same moment without one being turned away.
_BACKLOG = 1024


@dataclass(frozen=True, kw_only=True)
class Inheritance:
    """What a server finds open when it starts.

    Attributes
    ----------
    listening : tuple of socket.socket
        It accepts connections on these, and binds none of its own; empty: it binds its own.
    connections : tuple of socket.socket
        Clients' connections that the server before left open; no request on them has been read.
    """

    listening: tuple[socket.socket, ...] = ()
    connections: tuple[socket.socket, ...] = ()

    def close(self) -> None:
        """Close all of them here; what another process holds stays open there."""
        close_all((*self.listening, *self.connections))


def take_inheritance(environ: Mapping[str, str], pid: int) -> Inheritance:
    """Take over the sockets that were left open for this process; none if it is not meant.

    Parameters
    ----------
    pid : int
        Of this process.

    Raises
    ------
    StartupError
        What is there can't be listened on.
    """
    if environ.get("LISTEN_PID") != str(pid) or "LISTEN_FDS" not in environ:
        return Inheritance()
    text = environ["LISTEN_FDS"]
    if not text.isdecimal() or len(text) > 6:
        raise StartupError(f'LISTEN_FDS is "{shown(text)}": must be a number of sockets.')
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    listening, connections = [], []
    for descriptor in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(text)):
        inherited = _take(descriptor)
        place = descriptor - _FIRST_DESCRIPTOR
        if inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            listening.append(inherited)
        elif place < len(names) and names[place] == _CONNECTION:
            connections.append(inherited)
        else:
            raise StartupError(
                f"LISTEN_FDS: descriptor {descriptor} is a socket that does not listen; a socket "
                "unit must say Accept=no."
            )
    return Inheritance(listening=tuple(listening), connections=tuple(connections))


def _take(descriptor: int) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        is_socket = stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError as error:
        raise StartupError(
            f"LISTEN_FDS: descriptor {descriptor} is not open ({error.strerror})."
        ) from error
    inherited = socket.socket(fileno=descriptor) if is_socket else None
    if (
        inherited is None
        or inherited.family not in {socket.AF_INET, socket.AF_INET6}
        or inherited.type != socket.SOCK_STREAM
    ):
        raise StartupError(
            f"LISTEN_FDS: descriptor {descriptor} is no TCP socket; a socket unit must say "
            "ListenStream= with a port."
        )
    inherited.setblocking(False)
    return inherited


def on_loopback(listening: Iterable[socket.socket]) -> bool:
    """Whether nobody but the users of this host can connect."""
    return all(
        ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback
        for sock in listening
    )


def require_loopback(listening: Iterable[socket.socket]) -> None:
    """Refuse inherited sockets that others can reach.

    Raises
    ------
    StartupError
        It names the address.
    """
    for sock in listening:
        address = sock.getsockname()[0].partition("%")[0]
        if not ipaddress.ip_address(address).is_loopback:
            raise StartupError(
                f"LISTEN_FDS: a socket listens on {address}, which others can reach: must be a "
                "loopback address such as 127.0.0.1 or ::1, unless OCPS_LISTEN may be another."
            )


def export(inheritance: Inheritance, pid: int) -> dict[str, str]:
    """Put sockets where the program that this process executes next looks for them.

    To be called just before ``exec``: whatever was open under these numbers is closed.

    Returns
    -------
    dict of str to str
        The variables that go with them.
    """
    sockets = (*inheritance.listening, *inheritance.connections)
    names = [_LISTENING] * len(inheritance.listening)
    names += [_CONNECTION] * len(inheritance.connections)
    # Out of the way first: one's place may be another's number now.
    above = _FIRST_DESCRIPTOR + len(sockets)
    copies = [fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, above) for sock in sockets]
    for place, copy in enumerate(copies, _FIRST_DESCRIPTOR):
        os.dup2(copy, place, inheritable=True)
    return {
        "LISTEN_PID": str(pid),
        "LISTEN_FDS": str(len(sockets)),
        "LISTEN_FDNAMES": ":".join(names),
    }


def bind(listen: str, port: int) -> list[socket.socket]:
    """Bind all addresses to one port; the first is bound when the port is known.

    Parameters
    ----------
    listen : str
        ``localhost``, both loopback addresses where there are two, or an IP address.

    Raises
    ------
    StartupError
        The port is taken, or the address is not this machine's.
    """
    addresses = ["127.0.0.1", "::1"] if listen == "localhost" else [listen]
    for attempt in range(_PORT_ATTEMPTS):
        sockets: list[socket.socket] = []
        try:
            for address in addresses:
                wanted = sockets[0].getsockname()[1] if sockets else port
                try:
                    sockets.append(_listen(address, wanted))
                except OSError as error:
                    if not sockets or error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                        raise
        except OSError as error:
            close_all(sockets)
            if port == 0 and error.errno == errno.EADDRINUSE and attempt < _PORT_ATTEMPTS - 1:
                continue
            if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                raise StartupError(
                    f'OCPS_LISTEN is "{listen}": must be an address of this machine.'
                ) from error
            raise StartupError(
                f"API_PORT is {port}: it can't be listened on at {listen} ({error.strerror}); "
                "choose another port, or 0 for any free one."
            ) from error
        return sockets
    raise AssertionError("the last attempt returns or raises")


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.create_server((address, port), family=family, backlog=_BACKLOG)
    listening.setblocking(False)
    return listening


def duplicates(sockets: Sequence[socket.socket]) -> tuple[socket.socket, ...]:
    """Further descriptors of the same sockets: these stay open when the first are closed."""
    return tuple(sock.dup() for sock in sockets)


def close_all(sockets: Iterable[socket.socket]) -> None:
    """Close sockets, here."""
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.close()
