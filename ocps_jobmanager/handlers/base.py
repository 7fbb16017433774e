"""What all handlers share: JSON both ways, the one place where errors become HTTP, the log line."""

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Mapping, Sequence
from types import TracebackType
from urllib.parse import parse_qsl, unquote, urlencode

import tornado.web
from tornado.httputil import HTTPInputError, HTTPServerRequest

from ocps_jobmanager.answers import Refusal, UwsRefusal, WrongField
from ocps_jobmanager.errors import (
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    JobManagerError,
    KeyReusedError,
    NotAuthenticatedError,
    NotFoundError,
    Problem,
    SchedulerUnavailableError,
    TooManyWaitingError,
    UnavailableError,
    WrongHostError,
)
from ocps_jobmanager.handlers.auth import CHALLENGES, Access
from ocps_jobmanager.submission import parse_json

logger = logging.getLogger("main")
access_logger = logging.getLogger("tornado.access")

_STATUS: Mapping[type[JobManagerError], int] = {
    InvalidRequestError: 400,
    NotAuthenticatedError: 401,
    ForbiddenError: 403,
    NotFoundError: 404,
    ConflictError: 409,
    WrongHostError: 421,
    KeyReusedError: 422,
    TooManyWaitingError: 429,
    UnavailableError: 503,
    SchedulerUnavailableError: 503,
}
_RETRY_AFTER_S = 5
RETRY_AFTER_STATUSES = frozenset({429, 503})
#: A body that is too large is read to its end up to here, so that its sender sees the answer.
_DRAIN_BYTES = 16 * 2**20
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_LOGGED_URI_LENGTH = 2000


class ActiveRequests:
    """The requests that are being answered; a shutdown waits for them."""

    def __init__(self) -> None:
        self._requests: set[object] = set()
        self._none_left = asyncio.Event()
        self._none_left.set()

    def add(self, request: object) -> None:
        """Count a request in."""
        self._requests.add(request)
        self._none_left.clear()

    def discard(self, request: object) -> None:
        """Count a request out."""
        self._requests.discard(request)
        if not self._requests:
            self._none_left.set()

    async def none_left(self) -> None:
        """Wait until none is being answered."""
        await self._none_left.wait()


class _AnyMethod(tuple[str, ...]):
    """Lets an unknown method come as far as `prepare`, where it is asked for its token first."""

    __slots__ = ()

    def __contains__(self, _: object) -> bool:
        return True


@tornado.web.stream_request_body
class BaseHandler(tornado.web.RequestHandler):
    """The base of all handlers.

    The body is taken in piece by piece, so that too large a one can be answered, not cut off.

    Attributes
    ----------
    needs_token : bool
        Whether a caller has to show a token, where tokens are set.
    get_changes_something : bool
        Whether even GET does.
    owner : str or None
        Who calls, by the name of the token.
    """

    SUPPORTED_METHODS = _AnyMethod(tornado.web.RequestHandler.SUPPORTED_METHODS)
    needs_token = True
    get_changes_something = False
    owner: str | None = None

    def prepare(self) -> None:
        """See who calls, and refuse a body that is announced to be far too large, unread."""
        self._chunks: list[bytes] = []
        self._received = 0
        self.settings["active_requests"].add(self)
        if self._admit():
            self._check_body_size()

    def _admit(self) -> bool:
        """Refuse what is not for us or from nobody we know; False if it is answered already."""
        access: Access = self.settings["access"]
        access.check_host(self.request)
        preflight = access.preflight_headers(self.request, self._allowed_methods())
        if preflight is not None:
            for name, value in preflight.items():
                self.set_header(name, value)
            self.set_status(204)
            self.finish()
            return False
        if self.needs_token:
            self.owner = access.owner(self.request)
        access.check_origin(self.request, changes_something=self.get_changes_something)
        if self.request.method not in tornado.web.RequestHandler.SUPPORTED_METHODS:
            raise tornado.web.HTTPError(405 if self._allowed_methods() else 404)
        return True

    def _check_body_size(self) -> None:
        announced = self.request.headers.get("Content-Length", "0")
        # Counted before it is converted: Python refuses to convert very many digits.
        if announced.isdecimal() and (len(announced) > 18 or int(announced) > _DRAIN_BYTES):
            raise tornado.web.HTTPError(413)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Take in a piece of the body, as far as it may be used."""
        self._received += len(chunk)
        if self._received > _DRAIN_BYTES:
            if not self._finished:  # raising would be a bug in Tornado's eyes
                self.send_error(413)
        elif not self._finished and self._received <= self.settings["max_body"]:
            self._chunks.append(chunk)
        return None

    def on_finish(self) -> None:
        """Let a shutdown know that this request is done."""
        self.settings["active_requests"].discard(self)

    def on_connection_close(self) -> None:
        """Give a request up whose client went away before its end: nothing else finishes it."""
        if not self.request._body_future.done():
            self._chunks.clear()
            self.settings["active_requests"].discard(self)
        super().on_connection_close()

    async def head(self, *args: str) -> None:
        """Answer as to GET; Tornado leaves the body away."""
        await self.get(*args)  # type: ignore[misc]

    # Requests ----------------------------------------------------------------------------------

    def body(self) -> bytes:
        """Give the whole body, at most ``OCPS_MAX_BODY`` bytes."""
        if self._received > self.settings["max_body"]:
            raise tornado.web.HTTPError(413)
        return b"".join(self._chunks)

    def content_type(self) -> str:
        """Give the body's media type, without parameters, in lower case."""
        return self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    def json_body(self) -> object:
        """Parse the body.

        Raises
        ------
        tornado.web.HTTPError
            415 if it isn't said to be JSON, 413 if it is too large.
        InvalidRequestError
            It isn't JSON.
        """
        body = self.body()
        if self.content_type() != "application/json":
            raise tornado.web.HTTPError(415)
        return parse_json(body)

    def idempotency_key(self) -> str | None:
        """Give the ``Idempotency-Key``; None if there is none.

        Raises
        ------
        InvalidRequestError
            It is no key, or there are several.
        """
        values = self.request.headers.get_list("Idempotency-Key")
        if not values:
            return None
        key = _header_text(values[0])
        if len(values) > 1:
            raise InvalidRequestError([Problem("Idempotency-Key", "is given more than once")])
        if not 1 <= len(key) <= 255 or not key.isprintable():
            why = "must be 1 to 255 printable characters"
            raise InvalidRequestError([Problem("Idempotency-Key", why)])
        return key

    def query(self, name: str) -> str | None:
        """Give the value of a query parameter, byte for byte; None if there is none.

        Raises
        ------
        InvalidRequestError
            There are several.
        """
        values = self.request.query_arguments.get(name, [])
        if len(values) > 1:
            raise InvalidRequestError([Problem(name, "is given more than once")])
        # Tornado's own way to get it would make blanks of control characters.
        return self.decode_argument(values[0], name) if values else None

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Decode a part of the path or the query; what is not UTF-8 in a path is no known id."""
        return value.decode(errors="replace") if name is None else super().decode_argument(value)

    # Answers -----------------------------------------------------------------------------------

    def set_default_headers(self) -> None:
        """Say no more of the server than its name."""
        self.set_header("Server", "ocps-jobmanager")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        for name, value in self.settings["access"].cors_headers(self.request).items():
            self.set_header(name, value)

    def compute_etag(self) -> str | None:
        """Give none: answers are small and change."""
        return None

    def write_json(self, value: object, status: int = 200) -> None:
        """Finish with `value` as JSON, its keys in their order."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(json.dumps(value))

    def error_body(self, message: str) -> Mapping[str, object]:
        """Give the answer to a request that failed, in this endpoint's vocabulary."""
        return Refusal(status="error", msg=message)

    def write_error(self, status_code: int, **kwargs: object) -> None:
        """Answer an error: every class has its status here, and nowhere else."""
        exc_info = kwargs.get("exc_info")
        error = exc_info[1] if isinstance(exc_info, tuple) else None
        problems: Sequence[Problem] = ()
        if isinstance(error, JobManagerError):
            status_code = next((_STATUS[c] for c in type(error).__mro__ if c in _STATUS), 500)
            message = str(error)
            if isinstance(error, InvalidRequestError):
                problems = error.problems
        else:
            message = self._message(status_code)
        if status_code == 401:
            for challenge in CHALLENGES:
                self.add_header("WWW-Authenticate", challenge)
        if status_code == 405:
            self.set_header("Allow", ", ".join(self._allowed_methods()))
        if status_code in RETRY_AFTER_STATUSES:
            self.set_header("Retry-After", str(_RETRY_AFTER_S))
        body = self.error_body(message)
        if problems:
            errors = [WrongField(field=item.field, msg=item.msg) for item in problems]
            body = {**body, "errors": errors}
        self.write_json(body, status_code)

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Log a bug with its traceback; what the access line says already is not said twice."""
        if not isinstance(value, JobManagerError | tornado.web.HTTPError):
            assert typ is not None
            logger.error(
                "A bug: %s could not be answered.",
                request_summary(self.request, self.settings["redact_monitor_key"]),
                exc_info=(typ, value or typ(), tb),
            )

    def _message(self, status: int) -> str:
        match status:
            case 404:
                return "There is nothing at this path."
            case 405:
                allowed = ", ".join(self._allowed_methods())
                return f"This method is not allowed here; allowed: {allowed}."
            case 413:
                return f"The body is larger than {self.settings['max_body']} bytes."
            case 415:
                return "The body must be JSON: Content-Type: application/json."
            case 500:
                return "An internal error: the server's log has the details."
            case _:
                return f"{self._reason}."

    def _allowed_methods(self) -> list[str]:
        own = [
            method
            for method in _METHODS
            if getattr(type(self), method.lower())
            is not getattr(tornado.web.RequestHandler, method.lower())
        ]
        return own if "GET" in own else [method for method in own if method != "HEAD"]


class UnknownPathHandler(BaseHandler):
    """Everything that is no route; below ``/job/`` a UWS client is listening."""

    def prepare(self) -> None:
        """Answer 404, whatever the method."""
        super().prepare()
        if not self._finished:
            raise tornado.web.HTTPError(404)

    def error_body(self, message: str) -> Mapping[str, object]:
        """Answer a UWS client in its words."""
        if self.request.path.startswith(f"{self.settings['base_path']}/job/"):
            return UwsRefusal(message=message)
        return super().error_body(message)


class Application(tornado.web.Application):
    """Tornado's, but runs of slashes in a path count as one."""

    def find_handler(self, request: HTTPServerRequest, **kwargs: object) -> object:  # type: ignore[override]
        """Find the handler of the path, its doubled slashes gone."""
        request.path = re.sub("/{2,}", "/", request.path)
        return super().find_handler(request, **kwargs)


def _header_text(value: str) -> str:
    """A header's value; Tornado takes every byte for a character, most clients send UTF-8."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def log_request(handler: tornado.web.RequestHandler) -> None:
    """Write the access line of a request: Tornado's, with no secret and no control characters."""
    if getattr(handler, "unlogged", False):
        return
    status = handler.get_status()
    level = logging.INFO if status < 400 else logging.WARNING if status < 500 else logging.ERROR
    summary = request_summary(handler.request, handler.settings["redact_monitor_key"])
    milliseconds = 1000.0 * handler.request.request_time()
    access_logger.log(level, "%d %s %.2fms", status, summary, milliseconds)


class UnquotedRequests(logging.Filter):
    """Keeps out of the log what Tornado quotes of a request that it can't parse: maybe a token."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record pass, without the quotation."""
        if isinstance(record.args, tuple):
            record.args = tuple(
                re.split("['\"]", str(arg))[0].rstrip(" :b")
                if isinstance(arg, HTTPInputError)
                else arg
                for arg in record.args
            )
        return True


def request_summary(request: HTTPServerRequest, redact_monitor_key: bool) -> str:
    """Describe a request in a line of the log.

    Parameters
    ----------
    redact_monitor_key : bool
        Write ``[secret_key]`` in place of what the monitor's callback was called with.
    """
    uri = request.uri or ""
    path, _, query = uri.partition("?")
    is_callback = "/monitor/complete" in unquote(re.sub("/{2,}", "/", path))
    if redact_monitor_key and is_callback and query:
        pairs = parse_qsl(query, keep_blank_values=True, errors="replace")
        redacted = [(name, "[secret_key]" if name == "id" else value) for name, value in pairs]
        uri = f"{path}?{urlencode(redacted, safe='[]')}"
    uri = re.sub(r"^([a-z]+://)[^/?#]*@", r"\1", uri, flags=re.I)  # a token, as to a proxy
    uri = re.sub(r"[^\x21-\x7e]", lambda match: f"%{ord(match[0]):02X}", uri)
    if len(uri) > _LOGGED_URI_LENGTH:
        uri = f"{uri[:_LOGGED_URI_LENGTH]}..."
    return f"{request.method} {uri} ({request.remote_ip})"
