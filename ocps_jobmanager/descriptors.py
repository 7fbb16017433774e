"""File descriptors: as many as the server may come to need, or no start."""

import resource

from ocps_jobmanager.errors import StartupError

#: For a job that waits: its monitor's pipe and pidfd, and the connection of the monitor's call. All
#: of them may call at the same moment.
_PER_WAITING_JOB = 3
#: The database, the scheduler's children, processes being started, clients' connections.
_OTHERS = 500


def require_descriptors(max_waiting: int) -> None:
    """Raise this process's soft limit to what so many waiting jobs take.

    Parameters
    ----------
    max_waiting : int
        ``OCPS_MAX_WAITING``.

    Raises
    ------
    StartupError
        The hard limit, which is not ours to raise, is lower.
    """
    needed = _PER_WAITING_JOB * max_waiting + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _number(hard) < needed:
        most = (hard - _OTHERS) // _PER_WAITING_JOB
        allowed = f"must be at most {most} here, unless that limit is raised"
        if most < 1:
            allowed = "that limit must be raised"
        raise StartupError(
            f'OCPS_MAX_WAITING is "{max_waiting}": this takes up to {needed} file descriptors, '
            f"and the hard limit of this process (ulimit -Hn) is {hard}: {allowed}."
        )
    if _number(soft) < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _number(limit: int) -> float:
    return float("inf") if limit == resource.RLIM_INFINITY else limit
