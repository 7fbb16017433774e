"""What a job finds in its environment: what it was given and nothing else."""

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ocps_jobmanager.errors import LaunchRefusedError
from ocps_jobmanager.layout import Layout
from ocps_jobmanager.models import NewJob
from ocps_jobmanager.submission import why_variable_refused

#: HTCondor gives a job nothing at all unless it is asked to.
_BASE = MappingProxyType({"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"})


@dataclass(frozen=True, kw_only=True)
class Account:
    """The account that jobs run as: the server's.

    Attributes
    ----------
    name : str
        The login name.
    home : str
        The home directory.
    """

    name: str
    home: str


def server_account() -> Account:
    """The account that this process runs as. Blocks: it may ask a directory service."""
    uid = os.geteuid()
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:  # as in a container that is given any number
        return Account(name=str(uid), home="/")
    return Account(name=entry.pw_name, home=entry.pw_dir)


def job_environment(
    job: NewJob, *, layout: Layout, server_environ: Mapping[str, str], account: Account
) -> dict[str, str]:
    """A job's whole environment.

    What comes later wins: the base, what its type's ``getenv`` names, what was submitted, what the
    Job Manager tells it.

    Parameters
    ----------
    server_environ : mapping of str to str
        Where ``getenv`` is read; a name that is not there is left out.

    Raises
    ------
    LaunchRefusedError
        A variable of `server_environ` has a value that no job can get. It is named, not shown: it
        may be a secret.
    """
    handed_on = {name: server_environ[name] for name in job.getenv if name in server_environ}
    for name, value in handed_on.items():
        if (why := why_variable_refused(name, value)) is not None:
            raise LaunchRefusedError(
                f"The variable {name} of the server's environment can't be handed on to the job: "
                f"it {why}."
            )
    return {
        **_BASE,
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        **handed_on,
        **job.env,
        "JOB_ID": job.id,
        "JOB_OUTPUT_DIR": str(layout.output(job.id)),
    }
