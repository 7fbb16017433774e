"""Runs one local job to its end, whether the server lives or not. Standard library only.

Started as ``python -I -S local_launcher.py FOLDER FD`` in a session of its own, by `local`. What it
finds and leaves in the job's folder is also what a server that is started later goes by:

``job.json``
    What to run. The server writes it before anything else.
``started``
    Made before the script is executed, by one launcher only, and locked for as long as that lives:
    a job can't be run twice, and a launcher that was killed is told from one that is at work.
``remove``
    The wish that the job end. The server writes it, then sends SIGTERM.
``again``
    How the script ended each time after which it was run again: written before that is done, so
    that what is told of a start is never too little.
``status``
    How it ended.

``FD`` is a pipe: one line in it tells whether the job was started, or why not.
"""
# pathlib takes as long to import as all the rest:
# ruff: noqa: PTH104, PTH108, PTH112, PTH118, PTH123

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

JOB = "job.json"
STARTED = "started"
REMOVE = "remove"
AGAIN = "again"
STATUS = "status"
#: What the launcher says when the script runs; anything else is why it does not.
RUNS = "runs"

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_RETRY_S = 1.0
#: Between SIGTERM and SIGKILL for a script that the launcher ends of its own accord.
_GRACE_S = 10.0


# What the launcher and the server both do in a job's folder


def write_durably(folder: str, name: str, content: dict[str, Any]) -> None:
    """Write a file as a whole: after a crash it is there complete, or not at all."""
    temporary = os.path.join(folder, f"{name}.{os.getpid()}")
    with open(temporary, "w", opener=_private) as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, os.path.join(folder, name))
    sync_directory(folder)


def claim(folder: str, content: dict[str, Any]) -> int | None:
    """Make ``started`` unless it is there: who makes it decides what becomes of the job.

    The file has its content and its lock before it has its name, so that nobody sees a ``started``
    that is not locked yet and takes its owner for dead.

    Returns
    -------
    int or None
        The descriptor that holds the lock; None if another was first, or the job is no more.
    """
    name = os.path.join(folder, STARTED)
    temporary = f"{name}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)  # of a dead process that had this number
    lock = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(lock, json.dumps(content).encode())
        os.fsync(lock)
        os.link(temporary, name)
        # The folder of a job that has ended is renamed, then emptied. Whoever slept through all of
        # that job's life finds the name free again in there, but the folder not under its path.
        sync_directory(folder)
        os.unlink(temporary)
    except (FileExistsError, FileNotFoundError):
        os.close(lock)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        return None
    except BaseException:
        os.close(lock)
        raise
    return lock


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


# The launcher


class _CannotRunError(Exception):
    """The script can't be executed. The sentence goes to clients, so no path is in it."""


def main() -> int:
    """Run the job of the folder that the command line names, if nobody has yet."""
    folder, tell = sys.argv[1], int(sys.argv[2])
    os.set_inheritable(tell, False)
    # From here on a signal waits until it is asked for: none can end the launcher and leave the
    # script, and the one that says "look at `remove`" can't get lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    os.chdir("/")
    _let_go_of_standard_streams()
    try:
        with open(os.path.join(folder, JOB)) as file:
            job = json.load(file)
        started = {"pid": os.getpid(), "time": time.time(), "host": os.uname().nodename}
        lock = claim(folder, started)
    except (OSError, ValueError) as error:
        _say(tell, f"{type(error).__name__}: {error}")
        return 1
    if lock is None:
        return 0
    _keep(folder, STATUS, _run_until_done(job, folder, lock, tell))
    return 0


def _let_go_of_standard_streams() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    os.close(null)


def _say(tell: int, line: str) -> None:
    with contextlib.suppress(OSError):  # the server is gone: it will look when it is back
        os.write(tell, line.encode(errors="replace")[:500])
        os.close(tell)


def _run_until_done(job: dict[str, Any], folder: str, lock: int, tell: int) -> dict[str, Any]:
    """Run the script, and again while it fails and may be; how it ended in the end.

    As with HTCondor, a signal is a failure too, and each run finds empty output files.
    """
    wish = os.path.join(folder, REMOVE)
    earlier: list[dict[str, Any]] = []
    while True:
        try:
            ended = _run(job, wish, lock, None if earlier else tell)
            ended["starts"] = len(earlier) + 1
        except _CannotRunError as error:
            again = "was not run again:" if earlier else "was not run:"
            told = str(error).replace("was not run:", again, 1)
            ended = {"error": told, "starts": len(earlier)}
        ended["time"] = time.time()
        if (
            "error" in ended
            or ended["exit_code"] == 0
            or ended["removed"]
            or ended["overran"]
            or len(earlier) >= job.get("max_retries", 0)
        ):
            return ended
        earlier.append(ended)
        if not _keep(folder, AGAIN, {"ends": earlier}) or _grace(wish) is not None:
            return {**ended, "removed": True}


def _run(job: dict[str, Any], wish: str, lock: int, tell: int | None) -> dict[str, Any]:
    try:
        guard = _start_guard(close=(lock,) if tell is None else (lock, tell))
    except OSError as error:
        raise _CannotRunError(f"The job was not run: {error.strerror}.") from error
    try:
        script = _execute(job, guard)
        if tell is not None:
            _say(tell, RUNS)
        return _follow(script, guard, wish, job.get("end_after_s"))
    finally:
        # What the script left behind goes with it, as with HTCondor. The guard is not waited for
        # until then: its number can't become that of anybody else's group.
        os.killpg(guard, signal.SIGKILL)
        os.waitpid(guard, 0)


def _start_guard(close: tuple[int, ...]) -> int:
    """Start the leader of the job's process group, which ends the group if the launcher is killed.

    Parameters
    ----------
    close : tuple of int
        Descriptors that are the launcher's alone: the lock would outlive it, the pipe stay open.

    Returns
    -------
    int
        Its process id, which is the group's.
    """
    reader, writer = os.pipe()
    guard = os.fork()
    if guard == 0:
        os.setpgid(0, 0)
        for descriptor in (writer, *close):
            os.close(descriptor)
        os.read(reader, 1)  # nobody writes: it returns when the launcher is no more
        os.kill(0, signal.SIGKILL)
    os.close(reader)
    with contextlib.suppress(PermissionError):  # it was faster
        os.setpgid(guard, guard)
    # `writer` stays open for as long as the launcher lives.
    return guard


def _execute(job: dict[str, Any], group: int) -> int:
    """Start the script; return its process id when it is really executing.

    Raises
    ------
    _CannotRunError
    """
    prctl = ctypes.CDLL(None).prctl
    launcher = os.getpid()
    try:
        reader, writer = os.pipe()
        script = os.fork()
    except OSError as error:
        raise _CannotRunError(f"The job was not run: {error.strerror}.") from error
    if script == 0:
        try:
            prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
            if os.getppid() == launcher:  # or it was killed before the line above took effect
                _become(job, group)
        except Exception as error:  # noqa: BLE001
            os.write(writer, str(error).encode())
        finally:
            os._exit(127)
    os.close(writer)
    with open(reader, "rb") as file:
        why_not = file.read().decode()
    if why_not:
        os.waitpid(script, 0)
        raise _CannotRunError(why_not)
    return script


def _become(job: dict[str, Any], group: int) -> NoReturn:
    """Turn this process into the script, with what a job gets and nothing of the server's."""
    os.setpgid(0, group)
    os.umask(0o022)
    _try("its directory can't be entered", os.chdir, job["initial_dir"])
    for stream, name in ((1, "out"), (2, "err")):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        what = f"its standard {'output' if name == 'out' else 'error'} file can't be opened"
        os.dup2(_try(what, os.open, job[name], flags, 0o640), stream)
    environment = {name.encode(): value.encode() for name, value in job["environment"].items()}
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    executable = job["executable"]
    _try("the script can't be executed", os.execve, executable, [executable], environment)
    raise AssertionError("execve returned")


def _try(what: str, call: Callable[..., Any], *args: Any) -> Any:  # noqa: ANN401
    try:
        return call(*args)
    except OSError as error:
        raise _CannotRunError(f"The job was not run: {what} ({error.strerror}).") from error


def _follow(script: int, group: int, wish: str, end_after_s: float | None) -> dict[str, Any]:
    """Wait for the script's end, and bring it about if that is wished, or it takes too long.

    Parameters
    ----------
    wish : str
        Where a wish would be: read when SIGTERM comes, so that a SIGTERM to everybody, as of a
        machine that shuts down, is not taken for one.
    """
    removed = overran = False
    kill_at = None
    end_at = None if end_after_s is None else time.monotonic() + end_after_s
    while True:
        pid, status, usage = os.wait4(script, os.WNOHANG)
        if pid:
            break
        if kill_at is None:
            number = _next_signal({signal.SIGCHLD, signal.SIGTERM}, end_at)
        else:
            number = _next_signal({signal.SIGCHLD}, kill_at)
        if number is None and kill_at is not None:
            with contextlib.suppress(PermissionError):  # a set-user-ID script: wait for its end
                os.kill(script, signal.SIGKILL)
            kill_at = time.monotonic() + _RETRY_S
            continue
        grace_s = None
        if number is None:
            overran, grace_s = True, _GRACE_S
        elif number == signal.SIGTERM and (grace_s := _grace(wish)) is not None:
            removed = True
        if grace_s is not None:
            kill_at = time.monotonic() + grace_s
            os.killpg(group, signal.SIGTERM)
            os.killpg(group, signal.SIGCONT)
    code = os.waitstatus_to_exitcode(status)
    return {
        "removed": removed,
        "overran": overran,
        "exit_code": code if code >= 0 else None,
        "exit_signal": -code if code < 0 else None,
        "memory_kib": usage.ru_maxrss,
        "user_s": usage.ru_utime,
        "system_s": usage.ru_stime,
    }


def _next_signal(wanted: set[signal.Signals], at: float | None) -> int | None:
    """The next of these signals, or None once it is `at` (monotonic time)."""
    if at is None:
        return signal.sigwait(wanted)
    info = signal.sigtimedwait(wanted, max(at - time.monotonic(), 0.0))
    return None if info is None else info.si_signo


def _grace(wish: str) -> float | None:
    """How many seconds the script has after it was asked to end; None if that is not wished."""
    try:
        with open(wish) as file:
            return float(json.load(file)["grace_s"])
    except (OSError, ValueError, KeyError):
        return None


def _keep(folder: str, name: str, content: dict[str, Any]) -> bool:
    """Write how the script ended; as long as the disk is full it counts as running.

    Returns
    -------
    bool
        False: the folder is gone, and the job with it.
    """
    while os.path.isdir(folder):
        with contextlib.suppress(OSError):
            write_durably(folder, name, content)
            return True
        time.sleep(_RETRY_S)
    return False


if __name__ == "__main__":
    sys.exit(main())
