"""Removing what others have written: never through a link, however deep, whatever its modes."""

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from itertools import islice

_ENTRIES_AT_A_TIME = 1000


class StoppedError(Exception):
    """It was not to go on; some is left."""


def remove_tree(name: str, parent: int, is_stopped: Callable[[], bool] = lambda: False) -> None:
    """Remove a directory with all that is in it, however deep; a link is removed, never followed.

    Subdirectories are moved up and emptied there, so that neither the stack nor the number of open
    files grows with the depth, and no path gets too long. Directories that their owner may not
    write to are removed like others.

    Parameters
    ----------
    parent : int
        A descriptor of the directory that `name` is in. No such name: nothing is to be done.

    Raises
    ------
    OSError
        Something can't be removed.
    StoppedError
        `is_stopped` said so.
    """
    try:
        top = _open_to_empty(name, parent)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        os.unlink(name, dir_fd=parent)
        return
    with closing(top):
        for entry in _entries(top, is_stopped):
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.name, dir_fd=top)
                continue
            below = _open_to_empty(entry.name, top)
            with closing(below):
                for deeper in _entries(below, is_stopped):
                    if deeper.is_dir(follow_symlinks=False):
                        _move_up(deeper.name, below, top)
                    else:
                        os.unlink(deeper.name, dir_fd=below)
            os.rmdir(entry.name, dir_fd=top)
    os.rmdir(name, dir_fd=parent)


def remove_file(name: str, parent: int) -> None:
    """Remove a file or a link; nothing happens if there is none, or a directory has the name."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(name, dir_fd=parent)


def _entries(directory: int, is_stopped: Callable[[], bool]) -> Iterator["os.DirEntry[str]"]:
    """The entries of a directory that is being emptied, until there are none."""
    while True:
        with os.scandir(directory) as found:
            some = list(islice(found, _ENTRIES_AT_A_TIME))
        if not some:
            return
        for entry in some:
            if is_stopped():
                raise StoppedError
            yield entry


def _move_up(name: str, below: int, top: int) -> None:
    # To move a directory one has to be allowed to write to it.
    os.close(_open_to_empty(name, below))
    os.rename(name, f".removed-{secrets.token_hex(16)}", src_dir_fd=below, dst_dir_fd=top)


def _open_to_empty(name: str, parent: int) -> int:
    """Open a directory, never through a link, whatever its mode is."""
    place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    with closing(place):
        mode = os.fstat(place).st_mode
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError
        itself = f"/proc/self/fd/{place}"
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(itself, stat.S_IRWXU)  # noqa: PTH101
        return os.open(itself, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


@contextlib.contextmanager
def closing(descriptor: int) -> Iterator[None]:
    """Close a descriptor at the end of the block."""
    try:
        yield
    finally:
        os.close(descriptor)
