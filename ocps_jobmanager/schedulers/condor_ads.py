"""HTCondor's words: the one home of attribute names, and what an ad says of a job. Pure.

The names are those of HTCondor's manual, "Job ClassAd Attributes"; when each is there and may be
believed was measured with 23.9 daemons.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from ocps_jobmanager.schedulers.base import (
    HELD_TOO_LONG,
    RAN_TOO_LONG,
    SchedulerJob,
    SchedulerStatus,
)
from ocps_jobmanager.times import from_epoch

#: An ad as a child process sends it: numbers, strings, booleans, nested ads. What is undefined is
#: not in it.
Ad = Mapping[str, Any]

#: Our own attribute: the job's id, by which it is found.
JOB_ID = "OcpsJobId"
#: And the name of the shared event log that the job writes to.
EVENT_LOG = "OcpsEventLog"
#: Two limits of the job, seconds; of the first also ``undefined``.
MAX_RUN_TIME = "OcpsMaxRunTime"
HOLD_LIMIT = "OcpsHoldLimit"

#: What is asked of the queue and the history, and what the shared event log carries.
ATTRIBUTES = (
    JOB_ID,
    "ClusterId",
    "ProcId",
    "JobStatus",
    "LastJobStatus",
    "EnteredCurrentStatus",
    "QDate",
    "JobCurrentStartDate",
    "JobCurrentStartExecutingDate",
    "CompletionDate",
    "ExitBySignal",
    "ExitCode",
    "ExitSignal",
    "HoldReason",
    "RemoveReason",
    "RemoteHost",
    "LastRemoteHost",
    "NumJobStarts",
    "NumJobCompletions",
    "JobMaxRetries",
    "MemoryUsage",
)
#: Queue answers carry it unasked: the schedd's time, seconds since 1970.
SERVER_TIME = "ServerTime"

#: What the events add of their own to the ad that they carry (JOB_AD_INFORMATION, event 28).
TRIGGER = "TriggerEventTypeName"
EVENT_ATTRIBUTES = (
    TRIGGER,
    "Cluster",
    "Proc",
    "TerminatedNormally",
    "ReturnValue",
    "TerminatedBySignal",
    "ToE",
    "Reason",
    *ATTRIBUTES,
)

#: ``JobStatus`` of a job in the queue. One that is being removed is what it was until it is gone.
_IN_QUEUE: Mapping[int | None, SchedulerStatus] = MappingProxyType(
    {
        1: SchedulerStatus.IDLE,
        2: SchedulerStatus.RUNNING,
        4: SchedulerStatus.COMPLETED,
        5: SchedulerStatus.HELD,
        6: SchedulerStatus.TRANSFERRING_OUTPUT,
        7: SchedulerStatus.SUSPENDED,
    }
)
_BEING_REMOVED = 3
_HELD = 5
#: ``JobStatus`` in the history, where jobs are that have left the queue.
_IN_HISTORY: Mapping[int, SchedulerStatus] = MappingProxyType(
    {3: SchedulerStatus.REMOVED, 4: SchedulerStatus.COMPLETED}
)
#: What triggered an event → what has become of the job. At these events ``JobStatus`` may still be
#: the one before. Others change nothing.
EVENTS: Mapping[str, SchedulerStatus] = MappingProxyType(
    {
        "ULOG_SUBMIT": SchedulerStatus.IDLE,
        "ULOG_EXECUTE": SchedulerStatus.RUNNING,
        "ULOG_JOB_SUSPENDED": SchedulerStatus.SUSPENDED,
        "ULOG_JOB_UNSUSPENDED": SchedulerStatus.RUNNING,
        "ULOG_JOB_HELD": SchedulerStatus.HELD,
        "ULOG_JOB_RELEASED": SchedulerStatus.IDLE,
        "ULOG_JOB_TERMINATED": SchedulerStatus.COMPLETED,
        "ULOG_JOB_ABORTED": SchedulerStatus.REMOVED,
    }
)
#: Events after which a job may be idle, or held, or going: another event often follows at once, and
#: the queue is asked.
UNSURE_EVENTS = frozenset(
    {"ULOG_JOB_EVICTED", "ULOG_SHADOW_EXCEPTION", "ULOG_JOB_RECONNECT_FAILED"}
)

_ENDS = frozenset({SchedulerStatus.COMPLETED, SchedulerStatus.REMOVED, SchedulerStatus.BROKEN})
_STARTED = frozenset(
    {
        SchedulerStatus.RUNNING,
        SchedulerStatus.TRANSFERRING_OUTPUT,
        SchedulerStatus.SUSPENDED,
    }
)

# HTCondor keeps the text of a removal's reason and drops its code, so the code travels in the text.
_REMOVE_REASON = re.compile(r"(?P<reason>.*) \[OCPS (?P<code>-?\d+)\](?: \(by user .*\))?", re.S)
# What a schedd says that does not take the reason from the job's own ``PeriodicRemoveReason``.
_PERIODIC_REMOVE = re.compile(rf".*\bPeriodicRemove\b.*\b{MAX_RUN_TIME}\b.*", re.S)


def remove_reason(reason: str, code: int) -> str:
    """The text to remove a job with, from which `code` can be read back."""
    return f"{' '.join(reason.split())} [OCPS {code}]"


def is_end(status: SchedulerStatus | None) -> bool:
    """Whether nothing follows `status`."""
    return status in _ENDS or status is SchedulerStatus.LOST


def any_of(job_ids: Iterable[str]) -> str:
    """The constraint that matches the jobs with these ids (letters, digits, ``_`` and ``-``)."""
    return f"member({JOB_ID}, {{{', '.join(quoted(job_id) for job_id in job_ids)}}})"


def quoted(text: str) -> str:
    """`text` as a string of the ClassAd language (manual, "ClassAd Syntax")."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def from_queue(ad: Ad) -> SchedulerJob:
    """What an ad of the queue says of its job."""
    number = ad.get("JobStatus")
    if number == _BEING_REMOVED:
        number = ad.get("LastJobStatus")
    return _from_ad(ad, _IN_QUEUE.get(number, SchedulerStatus.UNKNOWN))


def from_history(ad: Ad) -> SchedulerJob:
    """What an ad of the history says of its job, which has ended."""
    status = _IN_HISTORY.get(ad.get("JobStatus", 0), SchedulerStatus.BROKEN)
    if status is SchedulerStatus.REMOVED and ad.get("CompletionDate", 0) > 0:
        # It had completed, and was removed from the queue where it stayed to be looked at.
        status = SchedulerStatus.COMPLETED
    return _from_ad(ad, status)


def from_event(ad: Ad) -> SchedulerJob:
    """What an event of the shared log says of its job."""
    status = EVENTS.get(ad.get(TRIGGER, ""), SchedulerStatus.UNKNOWN)
    ad = {**ad, "ClusterId": ad["Cluster"], "ProcId": ad["Proc"]}
    if ad.get(TRIGGER) == "ULOG_EXECUTE":
        ad["NumJobStarts"] = ad.get("NumJobStarts", 0) + 1  # counted right after the event
    if status is SchedulerStatus.COMPLETED:
        # The event's own fields: the job's attributes may still be those of an earlier start.
        ad["ExitBySignal"] = not ad.get("TerminatedNormally", True)
        ad["ExitCode"] = ad.get("ReturnValue", ad.get("ExitCode"))
        ad["ExitSignal"] = ad.get("TerminatedBySignal", ad.get("ExitSignal"))
        ad["CompletionDate"] = (ad.get("ToE") or {}).get("When", 0)
    if status is SchedulerStatus.REMOVED:
        ad.setdefault("RemoveReason", ad.get("Reason"))
    return _from_ad(ad, status)


def _from_ad(ad: Ad, status: SchedulerStatus) -> SchedulerJob:
    exit_code: int | None = None
    exit_signal: int | None = None
    reason, code = _reason(ad, status)
    if status is SchedulerStatus.COMPLETED:
        # These attributes exist before, with no meaning: only an end says what they say.
        if ad.get("ExitBySignal", False):
            exit_signal = ad.get("ExitSignal")
        else:
            exit_code = ad.get("ExitCode")
        if exit_code is None and exit_signal is None:
            status, reason = SchedulerStatus.BROKEN, "HTCondor does not say how it ended."
    return SchedulerJob(
        job_id=ad[JOB_ID],
        cluster_id=ad["ClusterId"],
        proc_id=ad["ProcId"],
        status=status,
        exit_code=exit_code,
        exit_signal=exit_signal,
        reason=reason,
        reason_code=code,
        remote_host=ad.get("RemoteHost") or ad.get("LastRemoteHost"),
        num_starts=_num_starts(ad, status),
        memory_mb=_memory_mb(ad),
        time_queued=_time(ad, "QDate"),
        time_started=_time_started(ad),
        time_completed=_time_completed(ad, status),
    )


def _reason(ad: Ad, status: SchedulerStatus) -> tuple[str | None, int | None]:
    if status is SchedulerStatus.HELD:
        return ad.get("HoldReason"), None
    if status is not SchedulerStatus.REMOVED:
        return None, None
    reason = ad.get("RemoveReason")
    if reason is not None and (ours := _REMOVE_REASON.fullmatch(reason)) is not None:
        return ours["reason"], int(ours["code"])
    if reason is not None and _PERIODIC_REMOVE.fullmatch(reason) is not None:
        return reason, HELD_TOO_LONG if ad.get("LastJobStatus") == _HELD else RAN_TOO_LONG
    return reason, None


def _num_starts(ad: Ad, status: SchedulerStatus) -> int | None:
    starts: int | None = ad.get("NumJobStarts")
    if status not in _STARTED:
        return starts
    # The queue's count lags behind while a job runs. That of the runs that ended does not; but for
    # a moment at the end of a run, which may be the last, it counts that one already.
    ended: int = min(ad.get("NumJobCompletions", 0), ad.get("JobMaxRetries", 0))
    return max(starts or 0, ended + 1)


def _memory_mb(ad: Ad) -> int | None:
    memory = ad.get("MemoryUsage")
    return round(memory) if isinstance(memory, int | float) else None


def _time(ad: Ad, name: str) -> datetime | None:
    seconds = ad.get(name)
    return from_epoch(seconds) if isinstance(seconds, int | float) and seconds > 0 else None


def _time_started(ad: Ad) -> datetime | None:
    """When the last start was: of the script, or while it is under way of HTCondor's shadow."""
    shadow, script = _time(ad, "JobCurrentStartDate"), _time(ad, "JobCurrentStartExecutingDate")
    if shadow is not None and script is not None:
        return max(shadow, script)  # an earlier one is of the start before
    return script or shadow


def _time_completed(ad: Ad, status: SchedulerStatus) -> datetime | None:
    if status not in _ENDS:
        return None
    return _time(ad, "CompletionDate") or (
        _time(ad, "EnteredCurrentStatus") if status is SchedulerStatus.REMOVED else None
    )
