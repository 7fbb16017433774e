"""Files that hold secrets: read only if nobody else can."""

import os
import stat
from pathlib import Path

_LARGEST = 1024 * 1024


class PrivateFileError(Exception):
    """It can't be used; ``str(error)`` follows the file's name: ``does not exist``."""


def read_private(path: Path) -> bytes:
    """Read a file that is for its owner alone. Blocks.

    Raises
    ------
    PrivateFileError
        It is not there, not a regular file, too large, or others may read or write it.
    """
    try:
        # O_NONBLOCK, or opening a named pipe waits for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            # Of what was opened: its name may mean something else by now.
            _check_mode(os.fstat(fd).st_mode)
            with open(fd, "rb", closefd=False) as file:
                content = file.read(_LARGEST + 1)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise PrivateFileError("must be a file that exists") from None
    except OSError as error:
        raise PrivateFileError(f"can't be read ({error.strerror})") from None
    if len(content) > _LARGEST:
        raise PrivateFileError(f"must not be larger than {_LARGEST} bytes")
    return content


def _check_mode(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise PrivateFileError("must be a regular file")
    if mode & 0o077:
        raise PrivateFileError(
            f"must be for its owner alone (its mode is {mode & 0o7777:04o}): chmod 600"
        )
