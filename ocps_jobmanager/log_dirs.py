"""Log directories: clients name them, so nothing is believed of them, and twice.

A directory is checked when a job is accepted and again at its launch, because others may have
changed what lies in between. Below a log root directories are opened one by one without following
links, so that no link that is put there after a check leads anywhere else.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from ocps_jobmanager.errors import (
    InvalidRequestError,
    LaunchRefusedError,
    Problem,
    UnavailableError,
)
from ocps_jobmanager.layout import LogPaths, why_path_refused
from ocps_jobmanager.removal import remove_file
from ocps_jobmanager.submission import why_refused

_DIRECTORY_MODE = 0o750
_FILE_MODE = 0o640
#: Room for a job's file in a directory's path.
_MAX_PATH_BYTES = 4096 - 64
_MAX_NAME_BYTES = 255

#: What passes or is mended without anybody's changing the submission.
_PASSING = frozenset(
    {
        *(errno.EAGAIN, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
        *(errno.ENOSPC, errno.ESTALE, errno.ETIMEDOUT),
    }
)


class _NotAllowedError(Exception):
    """A directory may not be used; ``str(error)`` follows its name and shows no path."""


class LogDirs:
    """Says which directories jobs may log to, and makes what is needed there. All methods block.

    Parameters
    ----------
    work_dir : pathlib.Path
        What relative log directories are relative to.
    log_roots : sequence of pathlib.Path
        Absolute. Log directories lie under one of them, or are one; links are resolved before that
        is decided. A root may itself be reached through links. They are made when they are needed.
    forbidden : sequence of pathlib.Path
        Absolute. Never used, nor what lies in them, also where they lie under a root.
    """

    def __init__(
        self, *, work_dir: Path, log_roots: Sequence[Path], forbidden: Sequence[Path]
    ) -> None:
        self._work_dir = work_dir
        self._roots = tuple(log_roots)
        self._forbidden = tuple(forbidden)

    def resolve(self, log_dir: str) -> Path:
        """The directory that a client means.

        Returns
        -------
        pathlib.Path
            Absolute, without links below its log root. It need not exist.

        Raises
        ------
        InvalidRequestError
            It may not be used.
        """
        try:
            if (why := why_refused(log_dir)) is not None:
                raise _NotAllowedError(why)
            if len(log_dir.encode()) > _MAX_PATH_BYTES:
                # Links are resolved segment by segment, and that in quadratic time.
                raise _NotAllowedError("is too long")
            return self._allowed(self._work_dir / log_dir)
        except _NotAllowedError as error:
            raise _refusal(str(error)) from None

    def make(self, path: Path) -> None:
        """Make a directory that `resolve` has returned, and see whether it can be written to.

        Raises
        ------
        InvalidRequestError
            It can't be.
        UnavailableError
            Not now: the disk is full, or the file system does not answer.
        """
        try:
            with self._opened(path) as directory:
                _write_test(directory)
        except OSError as error:
            if error.errno in _PASSING:
                raise UnavailableError(
                    f"The log directory can't be written to just now ({error.strerror})."
                ) from None
            raise _refusal(f"can't be made or written to ({error.strerror})") from None

    def recheck(self, path: Path) -> None:
        """Check a directory again before a launch; make it again if somebody has removed it.

        Raises
        ------
        LaunchRefusedError
            It may not be used any more, or can't be written to.
        OSError
            Not now: the disk is full, or the file system does not answer.
        """
        try:
            with self._opened(self._allowed(path)) as directory:
                _write_test(directory)
        except _NotAllowedError as error:
            raise LaunchRefusedError(f"The log directory {error}.") from None
        except OSError as error:
            if error.errno in _PASSING:
                raise
            raise LaunchRefusedError(
                f"The log directory can't be written to any more ({error.strerror})."
            ) from None

    def create_files(self, paths: LogPaths) -> None:
        """Create a job's log files, so that they have their mode; those that exist are kept.

        Raises
        ------
        LaunchRefusedError
            The directory may not be used, or something else is in a file's place.
        OSError
            Not now: the disk is full, or the file system does not answer.
        """
        try:
            with self._opened(self._allowed(paths.out.parent)) as directory:
                for path in (paths.out, paths.err, paths.log):
                    _create_file(path.name, directory)
        except _NotAllowedError as error:
            raise LaunchRefusedError(f"The log directory {error}.") from None
        except OSError as error:
            if error.errno in _PASSING:
                raise
            raise LaunchRefusedError(
                f"The job's log files can't be written ({error.strerror})."
            ) from None

    def remove_files(self, paths: LogPaths) -> None:
        """Remove a job's log files, as far as they are there, durably. The directory stays.

        Nothing is removed where the directory is gone, or may not be used any more.

        Raises
        ------
        OSError
            They can't be removed.
        """
        with contextlib.suppress(_NotAllowedError, FileNotFoundError, NotADirectoryError):
            place = self._allowed(paths.out.parent)
            with self._opened(place, make=False) as directory:
                for path in (paths.out, paths.err, paths.log):
                    remove_file(path.name, directory)
                _sync(directory)

    def _allowed(self, path: Path) -> Path:
        """`path` with its links resolved, those on the way to its root excepted."""
        # Not Path.resolve: that raises for a loop of links, which is found when it is opened.
        place = Path(os.path.realpath(path))
        if len(os.fsencode(place)) > _MAX_PATH_BYTES or any(
            len(os.fsencode(part)) > _MAX_NAME_BYTES for part in place.parts
        ):
            raise _NotAllowedError("is too long")
        if (why := why_path_refused(str(place))) is not None:
            raise _NotAllowedError(why)
        if any(place.is_relative_to(os.path.realpath(own)) for own in self._forbidden):
            raise _NotAllowedError("must not lie in the output, code or state directory")
        for root in self._roots:
            if place.is_relative_to(real_root := os.path.realpath(root)):
                # The root keeps its own name: its real one need not exist on an execute host.
                return root / place.relative_to(real_root)
        raise _NotAllowedError("must lie under one of the log roots (OCPS_LOG_ROOTS)")

    @contextlib.contextmanager
    def _opened(self, path: Path, *, make: bool = True) -> Iterator[int]:
        """A descriptor of an allowed directory; what is missing on the way is made, or not."""
        # The nearest: a root may lie within another, behind a link.
        root = max((r for r in self._roots if path.is_relative_to(r)), key=lambda r: len(r.parts))
        if make:
            root.mkdir(_DIRECTORY_MODE, parents=True, exist_ok=True)
        directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in path.relative_to(root).parts:
                below = _open_below(name, directory, make=make)
                os.close(directory)
                directory = below
            yield directory
        finally:
            os.close(directory)


def _refusal(why: str) -> InvalidRequestError:
    return InvalidRequestError([Problem("log_dir", why)])


def _open_below(name: str, directory: int, *, make: bool) -> int:
    """Open a directory in another; if it is not there, make it or fail."""
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags | os.O_PATH, dir_fd=directory)
    except FileNotFoundError:
        if not make:
            raise
    try:
        os.mkdir(name, _DIRECTORY_MODE, dir_fd=directory)
    except FileExistsError:  # somebody else was faster
        return os.open(name, flags | os.O_PATH, dir_fd=directory)
    made = os.open(name, flags | os.O_RDONLY, dir_fd=directory)
    try:
        os.fchmod(made, _DIRECTORY_MODE)  # whatever the umask is
    except OSError:
        os.close(made)
        raise
    return made


def _sync(directory: int) -> None:
    with contextlib.suppress(PermissionError):  # it may be written to, but not read
        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.fsync(readable)
        finally:
            os.close(readable)


def _write_test(directory: int) -> None:
    # Asking for the permissions is not enough: servers of network file systems have their own.
    name = f".ocps-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(name, flags, 0o600, dir_fd=directory))
    os.unlink(name, dir_fd=directory)


def _create_file(name: str, directory: int) -> None:
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(name, flags | os.O_CREAT | os.O_EXCL, _FILE_MODE, dir_fd=directory)
    except FileExistsError:
        # From an earlier attempt. O_NONBLOCK, or opening a named pipe waits for a reader.
        file = os.open(name, flags, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError(errno.EEXIST, "Something else has the name")
        finally:
            os.close(file)
    else:
        try:
            os.fchmod(file, _FILE_MODE)  # whatever the umask is
        finally:
            os.close(file)
