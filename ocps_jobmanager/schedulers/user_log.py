"""A job's life in HTCondor's user-log text. Pure.

The text is what HTCondor's own tools read (``condor_wait``, ``htcondor2.JobEventLog``): HTCondor
manual, "Job Event Log Codes". Its times are local, as HTCondor writes them by default.
"""

import re
from collections import Counter
from datetime import datetime

_EVENT = re.compile(r"^(\d{3}) \(", re.MULTILINE)


def submitted(cluster_id: int, time: datetime, host: str) -> str:
    """Event 000: the job is in the queue of `host`."""
    return _event(0, cluster_id, time, f"Job submitted from host: <{host}>")


def executing(cluster_id: int, time: datetime, host: str) -> str:
    """Event 001: the job's script is started on `host`."""
    return _event(1, cluster_id, time, f"Job executing on host: <{host}>")


def terminated(
    cluster_id: int,
    time: datetime,
    *,
    exit_code: int | None,
    exit_signal: int | None,
    user_s: float,
    system_s: float,
) -> str:
    """Event 005: the job ended by itself, or a signal ended it.

    Parameters
    ----------
    exit_code, exit_signal : int or None
        One of them.
    user_s, system_s : float
        Processor time that the job used, seconds.
    """
    how = _how(exit_code, exit_signal)
    used = f"\t\tUsr {_days(user_s)}, Sys {_days(system_s)}  -  "
    none = f"\t\tUsr {_days(0)}, Sys {_days(0)}  -  "
    return _event(
        5,
        cluster_id,
        time,
        "Job terminated.",
        *how,
        f"{used}Run Remote Usage",
        f"{none}Run Local Usage",
        f"{used}Total Remote Usage",
        f"{none}Total Local Usage",
        "\t0  -  Run Bytes Sent By Job",
        "\t0  -  Run Bytes Received By Job",
        "\t0  -  Total Bytes Sent By Job",
        "\t0  -  Total Bytes Received By Job",
    )


def requeued(
    cluster_id: int,
    time: datetime,
    *,
    exit_code: int | None,
    exit_signal: int | None,
    user_s: float,
    system_s: float,
) -> str:
    """Event 004 as it is when a job that ended is run again; parameters as of `terminated`."""
    return _event(
        4,
        cluster_id,
        time,
        "Job was evicted.",
        "\t(0) Job terminated and was requeued",
        f"\t\tUsr {_days(user_s)}, Sys {_days(system_s)}  -  Run Remote Usage",
        f"\t\tUsr {_days(0)}, Sys {_days(0)}  -  Run Local Usage",
        "\t0  -  Run Bytes Sent By Job",
        "\t0  -  Run Bytes Received By Job",
        *_how(exit_code, exit_signal),
        "\tIt is run again (max_retries).",
    )


def aborted(cluster_id: int, time: datetime, reason: str) -> str:
    """Event 009: the job was taken out of the queue."""
    return _event(9, cluster_id, time, "Job was aborted.", "\t" + " ".join(reason.split()))


def events_in(text: str) -> Counter[int]:
    """The numbers of the events that a user log holds, and how often each is in it."""
    return Counter(int(number) for number in _EVENT.findall(text))


def _how(exit_code: int | None, exit_signal: int | None) -> list[str]:
    if exit_signal is None:
        return [f"\t(1) Normal termination (return value {exit_code})"]
    return [f"\t(0) Abnormal termination (signal {exit_signal})", "\t(0) No core file"]


def _event(number: int, cluster_id: int, time: datetime, *lines: str) -> str:
    stamp = time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    head = f"{number:03} ({cluster_id:03}.000.000) {stamp} "
    return head + "\n".join(lines) + "\n...\n"


def _days(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    day, hour = divmod(hours, 24)
    return f"{day} {hour:02}:{minute:02}:{second:02}"
