"""Who may call: hosts, tokens and origins, checked before a request is looked at any further."""

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import urlsplit

from tornado.httputil import HTTPServerRequest

from ocps_jobmanager.errors import ForbiddenError, NotAuthenticatedError, WrongHostError, shown
from ocps_jobmanager.tokens import Tokens

#: What an answer for want of a token offers: RFC 6750 (Bearer) and RFC 7617 (Basic).
CHALLENGES = ('Bearer realm="ocps-jobmanager"', 'Basic realm="ocps-jobmanager", charset="UTF-8"')
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@?#\s]+)(?::[0-9]{0,5})?", re.ASCII)
_DEFAULT_PORTS = (("http://", ":80"), ("https://", ":443"))
#: These are not thought to change anything, unless their handler says so.
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
#: What web pages of allowed origins may send and read beside what every page may (Fetch standard).
_REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID"
_ANSWER_HEADERS = "Link, Retry-After, WWW-Authenticate"
_PREFLIGHT_AGE_S = 600


@dataclass(frozen=True, kw_only=True)
class Access:
    """Decides whether a request is for us, and whether its sender may make it.

    Attributes
    ----------
    tokens : Tokens or None
        None: everybody may do everything.
    hosts : frozenset of str
        What the server is called, as `_host` writes it; loopback is always right.
    schemes : frozenset of str
        Of its own web pages.
    origins : frozenset of str
        Those of other web pages that may call, as `_origin` writes them.
    """

    tokens: Tokens | None
    hosts: frozenset[str]
    schemes: frozenset[str]
    origins: frozenset[str]

    @classmethod
    def build(
        cls,
        *,
        tokens: Tokens | None,
        urls: Iterable[str],
        allowed_hosts: Iterable[str] = (),
        cors_origins: Iterable[str] = (),
        tls: bool = False,
    ) -> "Access":
        """Put it together.

        Parameters
        ----------
        urls : iterable of str
            Under which the server is called.
        allowed_hosts : iterable of str
            Further names of it, without ports.
        cors_origins : iterable of str
            Origins of other web pages that may call.
        tls : bool
            Whether the server itself speaks TLS.
        """
        parts = [urlsplit(url) for url in urls]
        names = [part.netloc for part in parts] + list(allowed_hosts)
        return cls(
            tokens=tokens,
            hosts=frozenset(host for name in names if (host := _host(name)) is not None),
            # Not plain http beside TLS: whoever is on the line could be such a page.
            schemes=frozenset({part.scheme for part in parts} if not tls else {"https"}),
            origins=frozenset(_origin(origin) for origin in cors_origins),
        )

    def check_host(self, request: HTTPServerRequest) -> None:
        """Refuse what was meant for another server.

        A web page may let its own name point to this machine (DNS rebinding), and would then be
        thought to be of the same origin.

        Raises
        ------
        WrongHostError
        """
        # None at all: not from a browser, but from something that speaks HTTP/1.0.
        if (authority := request.headers.get("Host")) is None:
            return
        host = _host(authority)
        if host is None or not (host in self.hosts or _is_loopback(host)):
            raise WrongHostError(
                f'"{shown(authority)}" is no name of this server; OCPS_ALLOWED_HOSTS can add it.'
            )

    def owner(self, request: HTTPServerRequest) -> str | None:
        """Give the name of the caller; None where nobody needs one.

        Raises
        ------
        NotAuthenticatedError
            A token is needed, and there is none that is valid.
        """
        if self.tokens is None:
            return None
        shown_token = _credentials(request.headers.get("Authorization", ""))
        owner = None if shown_token is None else self.tokens.owner_of(*shown_token)
        if owner is None:
            raise NotAuthenticatedError(
                "A valid token is needed: as Authorization: Bearer, or as the password of Basic, "
                "with its name as the user."
            )
        return owner

    def check_origin(self, request: HTTPServerRequest, *, changes_something: bool) -> None:
        """Refuse to change anything for a web page that is not ours and not allowed.

        Raises
        ------
        ForbiddenError
        """
        origin = request.headers.get("Origin")
        if origin is None or not (changes_something or request.method not in _READING):
            return
        ours = {_origin(f"{scheme}://{request.headers.get('Host')}") for scheme in self.schemes}
        if _origin(origin) not in ours | self.origins:
            raise ForbiddenError(
                f'Web pages of "{shown(origin)}" may not change anything here; '
                "OCPS_CORS_ORIGINS can allow it."
            )

    def cors_headers(self, request: HTTPServerRequest) -> Mapping[str, str]:
        """Give the headers that let a page of an allowed origin read the answer; mostly none."""
        origin = request.headers.get("Origin")
        if origin is None or _origin(origin) not in self.origins:
            return MappingProxyType({})
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": _ANSWER_HEADERS,
            "Vary": "Origin",
        }

    def preflight_headers(
        self, request: HTTPServerRequest, methods: Iterable[str]
    ) -> Mapping[str, str] | None:
        """Give the answer to a browser that asks whether a page may call; None if it does not.

        Browsers ask without a token.

        Parameters
        ----------
        methods : iterable of str
            Those that there are at this path.
        """
        asks = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if not asks or not self.cors_headers(request):
            return None
        return {
            "Access-Control-Allow-Methods": ", ".join(methods),
            "Access-Control-Allow-Headers": _REQUEST_HEADERS,
            "Access-Control-Max-Age": str(_PREFLIGHT_AGE_S),
        }


def _credentials(header: str) -> tuple[bytes, bytes | None] | None:
    """Find the token, and with Basic the name, in an Authorization header."""
    scheme, _, rest = header.strip().partition(" ")
    match scheme.lower():
        case "bearer":
            # Tornado reads headers as Latin-1.
            return rest.strip().encode("latin-1", "replace"), None
        case "basic":
            try:
                pair = base64.b64decode(rest.strip(), validate=True)
            except (binascii.Error, ValueError):
                return None
            name, colon, token = pair.partition(b":")
            return (token, _in_utf8(name)) if colon else None
    return None


def _in_utf8(name: bytes) -> bytes:
    try:
        name.decode()
    except UnicodeDecodeError:
        # What `requests`, among others, makes of a name in a URL.
        return name.decode("latin-1").encode()
    return name


def _host(authority: str) -> str | None:
    """The host in a Host header, without its port, each in one way of writing it."""
    match = _AUTHORITY.fullmatch(authority.strip().lower())
    if match is None:
        return None
    name = match[1].removesuffix(".")
    try:
        return str(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return name


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _origin(origin: str) -> str:
    """An origin in one way of writing it."""
    text = origin.strip().lower()
    for scheme, port in _DEFAULT_PORTS:
        if text.startswith(scheme):
            text = text.removesuffix(port)
    return text
