"""Locks on files, held as long as any process has the descriptor."""

import contextlib
import fcntl
import os
from pathlib import Path


def try_lock(path: Path) -> int | None:
    """Lock a file, made if need be, without waiting.

    Returns
    -------
    int or None
        The descriptor that holds the lock, closed on ``exec``; None if somebody else holds it.

    Raises
    ------
    OSError
        The file can't be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    os.close(descriptor)
    return None
