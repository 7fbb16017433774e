"""A submission that is sent again: how it is known, and that two of it don't meet."""

import asyncio
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator

from ocps_jobmanager.errors import InvalidRequestError, Problem
from ocps_jobmanager.models import IdempotencyKey


def idempotency_key(owner: str | None, key: str, body: object) -> IdempotencyKey:
    """What a submission with an ``Idempotency-Key`` is known by.

    Parameters
    ----------
    owner : str or None
        The caller, where callers are known by name. Each has keys of their own.
    key : str
        As the caller sent it.
    body : object
        The parsed JSON: the order of an object's keys, blanks and escapes do not matter. ``1`` and
        ``1.0`` differ, as they do for the job that gets them.

    Raises
    ------
    InvalidRequestError
        The body is nested too deeply.
    """
    try:
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        raise InvalidRequestError([Problem("body", "is nested too deeply")]) from None
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return IdempotencyKey(owner=owner or "", key=key, body_sha256=digest)


class Turns:
    """Lets one at a time do something about the same thing.

    What is kept is bounded by the number of those that wait and work.
    """

    def __init__(self) -> None:
        self._locks: dict[object, asyncio.Lock] = {}
        self._users: Counter[object] = Counter()

    @contextlib.asynccontextmanager
    async def of(self, thing: object) -> AsyncIterator[None]:
        """Wait for the turn, and have it for the time of the block."""
        lock = self._locks.setdefault(thing, asyncio.Lock())
        self._users[thing] += 1
        try:
            async with lock:
                yield
        finally:
            self._users[thing] -= 1
            if not self._users[thing]:
                del self._users[thing], self._locks[thing]
