"""From a launch request to a submit description. Pure; all quoting and escaping is here.

A submit description is a macro language of lines (manual, "Submitting a Job"): whatever reaches it
unescaped is expanded (``$ENV(X)`` gives away the environment of the one who submits), and ``$$(X)``
once more when the job is matched, where a name that is not known brings a 23.9 schedd down. So
every value takes one way:

1. environment: V2 quoting. Each ``NAME=VALUE`` in single quotes with inner ones doubled, joined by
   blanks, all in double quotes with inner ones doubled;
2. everything: ``$$`` becomes ``$$(DOLLARDOLLAR)``, any other ``$`` becomes ``$(DOLLAR)``;
3. what a line or an item can't carry is refused.

One description serves a batch of jobs; what differs are the fields of its items (``itemdata``).
There blanks at the ends of a field, a first field that starts with ``#`` or ``)`` and a last one
that ends in a backslash do harm, so the first is the job's id and the last a constant.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from ocps_jobmanager.errors import LaunchRefusedError
from ocps_jobmanager.layout import why_path_refused
from ocps_jobmanager.models import Resources
from ocps_jobmanager.schedulers.base import (
    BACKSTOP_S,
    HELD_TOO_LONG,
    RAN_TOO_LONG,
    LaunchRequest,
)
from ocps_jobmanager.schedulers.condor_ads import (
    ATTRIBUTES,
    EVENT_LOG,
    HOLD_LIMIT,
    JOB_ID,
    MAX_RUN_TIME,
    quoted,
    remove_reason,
)

#: How long a finished job stays in the queue, seconds: so that a look there tells how it ended.
KEEP_S = 600
#: From SIGTERM to SIGKILL when a running job is removed, seconds.
VACATE_S = 30

#: Of ``NAME=VALUE``, bytes: what Linux passes to a program (MAX_ARG_STRLEN with its closing NUL).
_MAX_PAIR = 131_071

_RUNS_TOO_LONG = (
    f"{MAX_RUN_TIME} =!= undefined && member(JobStatus, {{2, 6, 7}})"
    f" && time() - JobCurrentStartDate > {MAX_RUN_TIME} + {BACKSTOP_S}"
)
_IS_HELD_TOO_LONG = f"JobStatus == 5 && time() - EnteredCurrentStatus > {HOLD_LIMIT} + {BACKSTOP_S}"
_WHY_RUN = quoted(remove_reason("It ran too long.", RAN_TOO_LONG))
_WHY_HELD = quoted(remove_reason("It was held too long.", HELD_TOO_LONG))
#: Ends a job that is past its limits if no server does. The schedd evaluates it every minute.
#: ``PeriodicRemoveReason`` has no submit command, but counts (measured with 23.9).
_BACKSTOP = {
    f"MY.{MAX_RUN_TIME}": "$(ocps_max_run_time)",
    f"MY.{HOLD_LIMIT}": "$(ocps_hold_limit)",
    "periodic_remove": f"({_RUNS_TOO_LONG}) || ({_IS_HELD_TOO_LONG})",
    "MY.PeriodicRemoveReason": f"ifThenElse(JobStatus == 5, {_WHY_HELD}, {_WHY_RUN})",
}

_JOB_ID = re.compile(r"[A-Za-z0-9_-]+")
_UNCARRIABLE = re.compile("[\0\n\r\x1f\ud800-\udfff]")
_DOLLARS = re.compile(r"\$\$|\$")


def description(resources: Resources, event_log: Path) -> dict[str, str]:
    """The submit description of jobs that ask for `resources` and share `event_log`.

    Raises
    ------
    LaunchRefusedError
        The path of the log can't be expressed.
    """
    commands = {
        "universe": "vanilla",
        "executable": "$(ocps_executable)",
        "environment": "$(ocps_environment)",
        "initialdir": "$(ocps_initial_dir)",
        "output": "$(ocps_out)",
        "error": "$(ocps_err)",
        "log": "$(ocps_log)",
        f"MY.{JOB_ID}": '"$(ocps_job_id)"',
        # Everything is on a shared file system; and never the environment of the server.
        "should_transfer_files": "NO",
        "transfer_executable": "False",
        "getenv": "False",
        "notification": "never",
        "job_max_vacate_time": str(VACATE_S),
        "leave_in_queue": f"JobStatus == 4 && (time() - EnteredCurrentStatus) < {KEEP_S}",
        # A second log of the same events for all jobs of a day: what is followed.
        "dagman_log": _path(event_log),
        f"MY.{EVENT_LOG}": quoted(event_log.name),
        "job_ad_information_attrs": ", ".join(ATTRIBUTES),
        # Also after a signal; each start finds empty output files.
        "max_retries": "$(ocps_max_retries)",
        **_BACKSTOP,
    }
    for command, wanted in (
        ("request_cpus", resources.cpus),
        ("request_memory", resources.memory_mb),
        ("request_disk", resources.disk_kb),
    ):
        if wanted is not None:
            commands[command] = str(wanted)
    return commands


def item(request: LaunchRequest) -> dict[str, str]:
    """The fields of one job: the first and the last are safe tokens.

    Raises
    ------
    LaunchRefusedError
        Something in it can't be expressed in a submit description.
    """
    if not _JOB_ID.fullmatch(request.job_id):
        raise LaunchRefusedError("HTCondor can't be given such a job id.")
    limits, run_time_s = request.limits, request.limits.max_run_time_s
    return {
        "ocps_job_id": request.job_id,
        "ocps_executable": _path(request.executable),
        "ocps_environment": escape(quote_environment(request.environment)),
        "ocps_initial_dir": _path(request.initial_dir),
        "ocps_out": _path(request.out),
        "ocps_err": _path(request.err),
        "ocps_log": _path(request.log),
        "ocps_max_retries": str(limits.max_retries),
        "ocps_max_run_time": "undefined" if run_time_s is None else str(run_time_s),
        "ocps_hold_limit": str(limits.hold_limit_s),
        "ocps_end": "z",
    }


def quote_environment(environment: Mapping[str, str]) -> str:
    """`environment` in V2 quoting, not yet escaped.

    Raises
    ------
    LaunchRefusedError
        A variable can't be carried.
    """
    pairs = []
    for name, value in environment.items():
        pair = f"{name}={value}"
        if not name or "=" in name or _UNCARRIABLE.search(pair) or len(pair.encode()) > _MAX_PAIR:
            raise LaunchRefusedError("HTCondor can't pass one of the job's variables on.")
        # What $(DOLLAR) gives is looked at again, so that "$(DOLLAR)" itself would become "$": the
        # quotes end before a bracket that follows a dollar, and begin again after it.
        pairs.append("'" + pair.replace("'", "''").replace("$(", "$'('") + "'")
    return '"' + " ".join(pairs).replace('"', '""') + '"'


def escape(value: str) -> str:
    """`value` so that expanding it in a submit description, and at the match, gives it back."""
    return _DOLLARS.sub(
        lambda match: "$$(DOLLARDOLLAR)" if match[0] == "$$" else "$(DOLLAR)", value
    )


def _path(path: Path) -> str:
    """An absolute path as a value; unquoted there, so blanks at its ends would be lost."""
    text = str(path)
    if not path.is_absolute() or _UNCARRIABLE.search(text) or text[-1] in " \t\v\f\\":
        raise LaunchRefusedError("HTCondor can't be given one of the job's paths.")
    if (why := why_path_refused(text)) is not None:
        raise LaunchRefusedError(f"A path of the job {why}.")
    return escape(text)
