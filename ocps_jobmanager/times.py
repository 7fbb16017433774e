"""Times: always aware and in UTC inside, ISO 8601 with three decimals outside."""

from collections.abc import Callable
from datetime import UTC, datetime

#: Tells the time; injected, so that tests can move it.
Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Now, aware, in UTC."""
    return datetime.now(UTC)


def iso(time: datetime) -> str:
    """`time` as clients read it: ``2026-01-02T03:04:05.678Z``."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def iso_or_none(time: datetime | None) -> str | None:
    """`time` as clients read it, or None for None."""
    return None if time is None else iso(time)


def from_epoch(seconds: float) -> datetime:
    """The aware time of `seconds` since 1970, as HTCondor counts."""
    return datetime.fromtimestamp(seconds, UTC)
