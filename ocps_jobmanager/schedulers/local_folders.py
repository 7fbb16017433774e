"""The local scheduler's truth: one folder for each job, read and changed so that no crash matters.

Everything here blocks, and is called from one thread only: what one call began is over when the
next one looks. `local_launcher` says what is in a folder.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ocps_jobmanager.schedulers import user_log
from ocps_jobmanager.schedulers.base import (
    BACKSTOP_S,
    RAN_TOO_LONG,
    LaunchRequest,
    SchedulerJob,
    SchedulerStatus,
)
from ocps_jobmanager.schedulers.local_launcher import (
    AGAIN,
    JOB,
    REMOVE,
    STARTED,
    STATUS,
    claim,
    sync_directory,
    write_durably,
)
from ocps_jobmanager.times import from_epoch, utc_now

_NEW = ".new-"
_OLD = ".old-"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a job's folder says.

    Attributes
    ----------
    cpus : int
        Cores that it takes while it runs.
    removing : bool
        It is wished that it end.
    may_start_again : bool
        Its launcher runs the script once more if it fails.
    """

    job: SchedulerJob
    cpus: int
    removing: bool = False
    may_start_again: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether it will not run, or not any more."""
        return self.job.status not in (SchedulerStatus.IDLE, SchedulerStatus.RUNNING)


class JobFolders:
    """The folders of all local jobs.

    Parameters
    ----------
    directory : pathlib.Path
        Made if missing, 0700. On a local file system.
    host : str
        This machine's name, for the user logs.
    """

    def __init__(self, directory: Path, host: str) -> None:
        self._directory = directory
        self._host = host

    def folder(self, job_id: str) -> Path:
        """Where a job's folder is, if there is one."""
        return self._directory / job_id

    def open(self) -> list[Seen]:
        """Clear away what a crash left half-made or half-deleted; look at all jobs.

        Returns
        -------
        list of Seen
            Those that have not ended, in the order of their submission.

        Raises
        ------
        OSError
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in self._directory.iterdir():
            if folder.name.startswith((_NEW, _OLD)):
                shutil.rmtree(folder, ignore_errors=True)
        # The last server may have been killed between a rename and this.
        sync_directory(os.fspath(self._directory))
        sync_directory(os.fspath(self._directory.parent))
        every = [self.look(folder.name) for folder in self._directory.iterdir()]
        alive = [seen for seen in every if seen is not None and not seen.has_ended]
        return sorted(alive, key=lambda seen: seen.job.cluster_id)

    def ended(self) -> list[str]:
        """The jobs that have ended and still have a folder.

        Raises
        ------
        OSError
        """
        names = [folder.name for folder in self._directory.iterdir()]
        every = [self.look(name) for name in names if not name.startswith((_NEW, _OLD))]
        return [seen.job.job_id for seen in every if seen is not None and seen.has_ended]

    def create(self, request: LaunchRequest, cluster_id: int, time_queued: datetime) -> Seen:
        """Put a job into the queue: when this returns, the job survives the power going out.

        Raises
        ------
        OSError
            It may be in the queue, or not: `look`.
        """
        limit_s = request.limits.max_run_time_s
        record = {
            "job_id": request.job_id,
            "cluster_id": cluster_id,
            "time_queued": time_queued.timestamp(),
            "cpus": request.resources.cpus or 1,
            "executable": os.fspath(request.executable),
            "environment": dict(request.environment),
            "initial_dir": os.fspath(request.initial_dir),
            "out": os.fspath(request.out),
            "err": os.fspath(request.err),
            "log": os.fspath(request.log),
            "max_retries": request.limits.max_retries,
            "end_after_s": None if limit_s is None else limit_s + BACKSTOP_S,
        }
        new = self._directory / f"{_NEW}{request.job_id}-{secrets.token_hex(4)}"
        new.mkdir(mode=0o700)
        try:
            write_durably(os.fspath(new), JOB, record)
            new.rename(self._directory / request.job_id)  # fails if there is one with a job in it
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            raise
        sync_directory(os.fspath(self._directory))
        seen = self.look(request.job_id)
        assert seen is not None, "the folder was made just now"
        return seen

    def find(self, job_id: str) -> Seen | None:
        """`look`, in such a way that who is told that a job is there may rely on it.

        A submission that failed half-way may have left a folder whose name is not durable.
        """
        if (self._directory / job_id).exists():
            sync_directory(os.fspath(self._directory))
        return self.look(job_id)

    def look(self, job_id: str) -> Seen | None:
        """See how a job stands, by its folder alone; bring its user log up to date.

        A wish that a job end is carried out here if it was never started.

        Returns
        -------
        Seen or None
            None: there is no such job, and that is certain.

        Raises
        ------
        OSError
        """
        folder = self._directory / job_id
        try:
            record = _read(folder / JOB)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not record:
            return _damaged(job_id)
        content = _read_content(folder, record)
        job = _job(content)
        with contextlib.suppress(OSError):  # as with HTCondor, a job does not need its user log
            _write_missing(Path(record["log"]), _events(content, job, self._host))
        return Seen(
            job=job,
            cpus=record["cpus"],
            removing=content.wish is not None,
            may_start_again=(job.num_starts or 0) <= record.get("max_retries", 0),
        )

    def ask_removal(self, job_id: str, reason: str, code: int, grace_s: float) -> Seen | None:
        """Write down the wish that a job end; see how it stands then. The first wish stays.

        Parameters
        ----------
        grace_s : float
            Seconds between SIGTERM and SIGKILL.

        Raises
        ------
        OSError
        """
        seen = self.look(job_id)
        if seen is None or seen.has_ended or seen.removing:
            return seen
        wish = {"reason": reason, "code": code, "grace_s": grace_s}
        write_durably(os.fspath(self._directory / job_id), REMOVE, wish)
        return self.look(job_id)

    def attach(self, job_id: str) -> int | None:
        """A pidfd of the launcher that is at work on a job; None if there is none.

        Raises
        ------
        OSError
        """
        started = self._directory / job_id / STARTED
        try:
            pidfd = os.pidfd_open(int(_read(started)["pid"]))
        except (FileNotFoundError, ProcessLookupError, KeyError):
            return None
        # Only now: that the lock is still held proves that the launcher lived when the pidfd was
        # opened, so that its number was not another process's.
        try:
            held = _is_locked(started)
        except BaseException:
            os.close(pidfd)
            raise
        if not held:
            os.close(pidfd)
        return pidfd if held else None

    def discard(self, job_ids: Iterable[str]) -> None:
        """Delete the folders of those of the jobs that have ended.

        Raises
        ------
        OSError
        """
        old = []
        for job_id in job_ids:
            seen = self.look(job_id)
            if seen is not None and seen.has_ended:
                old.append((self._directory / job_id).rename(self._directory / f"{_OLD}{job_id}"))
        if old:
            # Were `started` deleted before the new name is durable, a power failure could bring
            # the folder back as that of a job that never ran.
            sync_directory(os.fspath(self._directory))
        for folder in old:
            shutil.rmtree(folder)


@dataclass(frozen=True, kw_only=True)
class _Content:
    """What is in a job's folder, each file's content or None; read so that it fits together.

    Attributes
    ----------
    ends : list of dict
        How the script ended each time after which it was run again.
    """

    record: dict[str, Any]
    wish: dict[str, Any] | None
    started: dict[str, Any] | None
    ends: list[dict[str, Any]]
    status: dict[str, Any] | None
    locked: bool


def _read_content(folder: Path, record: dict[str, Any]) -> _Content:
    wish = _read_if_there(folder / REMOVE)
    if wish is not None and not (folder / STARTED).exists():
        # From here on no launcher can start it.
        claimed = claim(os.fspath(folder), {"claimed": True, "time": time.time()})
        if claimed is not None:
            os.close(claimed)
    status = _read_if_there(folder / STATUS)
    started = _read_if_there(folder / STARTED)
    locked = False
    if status is None and started is not None:
        locked = _is_locked(folder / STARTED)
        # A launcher writes the status, then lets the lock go: free, it may be there by now.
        status = _read_if_there(folder / STATUS)
    # Last: what is written there is older than a status that was read.
    ends = (_read_if_there(folder / AGAIN) or {}).get("ends", [])
    return _Content(
        record=record, wish=wish, started=started, ends=ends, status=status, locked=locked
    )


def _job(content: _Content) -> SchedulerJob:
    record, started, status = content.record, content.started, content.status
    job = SchedulerJob(
        job_id=record["job_id"],
        cluster_id=record["cluster_id"],
        proc_id=0,
        status=SchedulerStatus.IDLE,
        time_queued=from_epoch(record["time_queued"]),
        num_starts=0,
    )
    if started is None:
        return job
    # Each start follows at once on the end before it; but the last need not have come about.
    starts = [started["time"], *(end["time"] for end in content.ends)] if "pid" in started else []
    if status is not None:
        del starts[status.get("starts", 0 if "error" in status else 1) :]
    if starts:
        job = replace(
            job,
            num_starts=len(starts),
            remote_host=started["host"],
            time_started=from_epoch(starts[-1]),
        )
    if status is None and content.locked:
        return replace(job, status=SchedulerStatus.RUNNING)
    if status is None and "claimed" in started:
        return replace(_removed(job, content), time_completed=from_epoch(started["time"]))
    if status is None:
        if content.wish is not None:
            return _removed(job, content)
        reason = "It was running when the machine stopped; not run again."
        return replace(job, status=SchedulerStatus.BROKEN, reason=reason)
    return _ended(job, content, status)


def _ended(job: SchedulerJob, content: _Content, status: dict[str, Any]) -> SchedulerJob:
    if "time" not in status:
        reason = "How it ended is not known: the record of it is damaged; not run again."
        return replace(job, status=SchedulerStatus.BROKEN, reason=reason)
    job = replace(job, time_completed=from_epoch(status["time"]))
    if "error" in status:
        return replace(job, status=SchedulerStatus.BROKEN, reason=status["error"])
    peak_kib = max(run["memory_kib"] for run in [*content.ends, status])
    job = replace(job, memory_mb=math.ceil(peak_kib / 1024))
    if status["removed"]:
        return _removed(job, content)
    if status.get("overran"):
        return replace(
            job,
            status=SchedulerStatus.REMOVED,
            reason="It ran too long.",
            reason_code=RAN_TOO_LONG,
        )
    return replace(
        job,
        status=SchedulerStatus.COMPLETED,
        exit_code=status["exit_code"],
        exit_signal=status["exit_signal"],
    )


def _removed(job: SchedulerJob, content: _Content) -> SchedulerJob:
    wish = content.wish or {}
    return replace(
        job,
        status=SchedulerStatus.REMOVED,
        reason=wish.get("reason"),
        reason_code=wish.get("code"),
    )


def _damaged(job_id: str) -> Seen:
    job = SchedulerJob(
        job_id=job_id,
        cluster_id=0,
        proc_id=0,
        status=SchedulerStatus.BROKEN,
        reason="The local scheduler's record of it is damaged; it will not be run.",
    )
    return Seen(job=job, cpus=1)


def _events(content: _Content, job: SchedulerJob, host: str) -> list[str]:
    """The events that belong into the user log of a job which stands so, in their order."""
    cluster_id, status = job.cluster_id, content.status or {}
    ended = job.time_completed or utc_now()
    assert job.time_queued is not None, "every record has it"
    events = [user_log.submitted(cluster_id, job.time_queued, host)]
    if job.time_started is not None:
        assert content.started is not None, "or it would have no time"
        begun, where = from_epoch(content.started["time"]), job.remote_host or host
        for end in content.ends:
            events.append(user_log.executing(cluster_id, begun, where))
            begun = from_epoch(end["time"])
            events.append(user_log.requeued(cluster_id, begun, **_how(end)))
        if job.num_starts == len(content.ends) + 1:
            events.append(user_log.executing(cluster_id, begun, where))
    if job.status is SchedulerStatus.COMPLETED:
        events.append(user_log.terminated(cluster_id, ended, **_how(status)))
    elif job.status in (SchedulerStatus.REMOVED, SchedulerStatus.BROKEN):
        events.append(user_log.aborted(cluster_id, ended, job.reason or ""))
    return events


def _how(end: dict[str, Any]) -> dict[str, Any]:
    return {name: end[name] for name in ("exit_code", "exit_signal", "user_s", "system_s")}


def _write_missing(path: Path, events: list[str]) -> None:
    """Append to a user log those of `events` that it does not hold yet."""
    with open(path, "r+b", buffering=0, opener=_regular) as file:
        there = user_log.events_in(file.read().decode(errors="replace"))
        # An event that was written is one of the first of its kind.
        text = ""
        for event in events:
            (number,) = user_log.events_in(event)
            if there[number]:
                there[number] -= 1
            else:
                text += event
        if text:
            file.write(text.encode())


def _regular(path: str, flags: int) -> int:
    """Open for appending; what somebody put there in place of the file must not hold us up."""
    descriptor = os.open(path, flags | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def _read(path: Path) -> dict[str, Any]:
    """The content of a file that was written as a whole; empty if it is damaged all the same."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _read_if_there(path: Path) -> dict[str, Any] | None:
    try:
        return _read(path)
    except FileNotFoundError:
        return None


def _is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
