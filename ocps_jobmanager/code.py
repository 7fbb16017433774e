"""CodeStore: takes, pins and hands out the code that jobs run."""

import asyncio
import errno
import hashlib
import os
import re
import secrets
import stat
import threading
from concurrent.futures import Executor
from pathlib import Path, PurePosixPath

from ocps_jobmanager.errors import LaunchRefusedError, UnavailableError
from ocps_jobmanager.job_specs import JobType, ScriptError, read_script
from ocps_jobmanager.models import CodeRef

_READ_ONLY = 0o550
_SHA256 = re.compile("[0-9a-f]{64}")


class CodeStore:
    """Copies of scripts, stored by content: ``<root>/<sha256>/<the script's file name>``.

    What an accepted job runs is its copy, so that an edit of the script changes no accepted job. A
    copy has its final name only when it is whole and on the disk.

    Parameters
    ----------
    root : pathlib.Path
        Made when it is needed. No other server stores anything in it.
    executor : concurrent.futures.Executor or None
        Where files are read and written; None: the event loop's own.
    """

    def __init__(self, root: Path, executor: Executor | None = None) -> None:
        self._root = root
        self._executor = executor
        # One at a time stores: a directory is writable only while a copy is put there, and
        # unfinished copies are taken for left-overs.
        self._storing = threading.Lock()
        self._durable: set[tuple[str, str]] = set()

    async def take(self, job_type: JobType) -> CodeRef:
        """Take a job type's script as it is now. When this returns the copy is durable.

        Raises
        ------
        UnavailableError
            The script can't be read or run any more, or the copy can't be written.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._take, job_type)

    async def executable(self, ref: CodeRef) -> Path:
        """The copy that a job runs, its content checked just now.

        Raises
        ------
        LaunchRefusedError
            It is gone, or not what was taken.
        OSError
            It can't be read just now.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._executable, ref)

    def _take(self, job_type: JobType) -> CodeRef:
        try:
            content = read_script(job_type.script_path)
        except ScriptError as error:
            raise UnavailableError(
                f'The script "{job_type.script}" of the job type "{job_type.name}" can\'t be '
                f"taken: it {error}."
            ) from None
        ref = CodeRef(kind="file", path=job_type.script, sha256=hashlib.sha256(content).hexdigest())
        try:
            with self._storing:
                self._store(ref, content)
        except OSError as error:
            raise UnavailableError(
                f'The script "{job_type.script}" can\'t be copied to the code store '
                f"({error.strerror})."
            ) from None
        return ref

    def _store(self, ref: CodeRef, content: bytes) -> None:
        path = self._place(ref)
        key = (ref.sha256, path.name)
        # A copy that an earlier server left may not be durable: it died before it could say so.
        if key in self._durable and _content(path) == content:
            return
        self._make_root()
        if _content(path) != content:
            self._write(path, content)
        _sync(path)
        path.parent.chmod(_READ_ONLY)
        for directory in (path.parent, self._root):
            _sync(directory)
        self._durable.add(key)

    def _make_root(self) -> None:
        self._root.mkdir(0o755, parents=True, exist_ok=True)
        _sync(self._root.parent)
        # Nobody else writes here, and this is the only thread that does.
        for left_behind in self._root.glob(".new-*"):
            left_behind.unlink()

    def _write(self, path: Path, content: bytes) -> None:
        """Put a copy in its place, whole or not at all; replace one that was altered."""
        path.parent.mkdir(0o750, exist_ok=True)
        path.parent.chmod(0o750)
        new = self._root / f".new-{secrets.token_hex(8)}"
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:  # noqa: PTH123 a descriptor
                file.write(content)
                os.fchmod(fd, _READ_ONLY)
                file.flush()
                os.fsync(fd)
            new.rename(path)
        except OSError:
            new.unlink(missing_ok=True)
            raise

    def _executable(self, ref: CodeRef) -> Path:
        path = self._place(ref)
        content = _content(path)
        if content is None:
            raise LaunchRefusedError(f'The copy of the script "{ref.path}" is gone.')
        if hashlib.sha256(content).hexdigest() != ref.sha256:
            raise LaunchRefusedError(
                f'The copy of the script "{ref.path}" is not what was taken when the job was '
                "accepted."
            )
        return path

    def _place(self, ref: CodeRef) -> Path:
        assert _SHA256.fullmatch(ref.sha256)
        return self._root / ref.sha256 / PurePosixPath(ref.path).name


def _content(path: Path) -> bytes | None:
    """What a copy holds. None if it is not there, or not a file that can be run.

    Raises
    ------
    OSError
        It can't be told.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}:
            return None
        raise
    with open(fd, "rb") as file:  # noqa: PTH123 a descriptor
        mode = os.fstat(fd).st_mode
        return file.read() if stat.S_ISREG(mode) and mode & stat.S_IXUSR else None


def _sync(path: Path) -> None:
    """Have a file's content, or a directory's entries, on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
