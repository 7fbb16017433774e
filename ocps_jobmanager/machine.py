"""What this machine is like: whether HTCondor is set up, and which file systems it has."""

import contextlib
import importlib.util
import os
import pwd
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ocps_jobmanager.config import SchedulerChoice, Settings
from ocps_jobmanager.errors import StartupError, shown

#: File systems on which SQLite's write-ahead log and our locks can't be trusted. Not 9p and not
#: virtiofs: a virtual machine's or a sandbox's own disk often comes over these.
_NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "ceph", "lustre", "gpfs"),
        *("beegfs", "panfs", "orangefs", "pvfs2", "wekafs", "glusterfs", "moosefs", "juicefs"),
        *("sshfs", "s3fs", "gcsfuse", "rclone", "davfs", "curlftpfs", "dfs", "lizardfs", "mfs"),
    }
)


def choose_scheduler(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    config_dirs: Sequence[Path] | None = None,
    bindings: str = "htcondor2",
) -> tuple[SchedulerChoice, str]:
    """Decide what runs the jobs, without importing HTCondor's bindings.

    Importing them where there is no configuration prints warnings, and does work in the server that
    belongs into its children.

    Parameters
    ----------
    config_dirs : sequence of pathlib.Path, optional
        Where a ``condor_config`` may stand; by default where HTCondor itself looks.
    bindings : str
        The module to look for.

    Returns
    -------
    choice : SchedulerChoice
        ``HTCONDOR`` or ``LOCAL``.
    why : str
        What that follows from, for the log.

    Raises
    ------
    StartupError
        It is HTCondor, and its bindings are not installed.
    """
    if settings.scheduler is SchedulerChoice.AUTO:
        sign = _sign_of_htcondor(environ, _config_dirs() if config_dirs is None else config_dirs)
        choice = SchedulerChoice.LOCAL if sign is None else SchedulerChoice.HTCONDOR
        why = sign or "no CONDOR_CONFIG, no condor_config and no condor_master on this machine"
    else:
        choice, why = settings.scheduler, f"OCPS_SCHEDULER is {settings.scheduler}"
    if choice is SchedulerChoice.HTCONDOR and importlib.util.find_spec(bindings) is None:
        raise StartupError(
            f"HTCondor is to run the jobs ({why}), but its Python bindings are not installed: "
            "install the package htcondor, or set OCPS_SCHEDULER=local."
        )
    return choice, why


def _config_dirs() -> list[Path]:
    dirs = [Path("/etc/condor"), Path("/usr/local/etc")]
    with contextlib.suppress(KeyError):  # no such account
        dirs.append(Path(pwd.getpwnam("condor").pw_dir))
    return dirs


def _sign_of_htcondor(environ: Mapping[str, str], config_dirs: Sequence[Path]) -> str | None:
    if environ.get("CONDOR_CONFIG"):
        return "CONDOR_CONFIG is set"
    for directory in config_dirs:
        file = directory / "condor_config"
        if os.path.exists(file):  # noqa: PTH110 Path.exists raises there if one may not look
            return f"there is {file}"
    if master := shutil.which("condor_master", path=environ.get("PATH", "")):
        return f"there is {master}"
    return None


def state_dir_on_network(path: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The type of the network file system that `path`, which need not exist, lies on.

    Parameters
    ----------
    mountinfo : pathlib.Path
        The table of mounts, see proc(5).

    Returns
    -------
    str or None
        None for a disk of this machine, or where that can't be told.
    """
    try:
        table = mountinfo.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    place = path.resolve()
    depth, kind = -1, ""
    for line in table.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        mount = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        # The last of several mounts in one place hides the others.
        if place.is_relative_to(mount) and len(mount.parts) >= depth:
            depth, kind = len(mount.parts), right.split(" ")[0]
    return kind if kind.removeprefix("fuse.") in _NETWORK_FILE_SYSTEMS else None


def require_local_state_dir(
    settings: Settings, mountinfo: Path = Path("/proc/self/mountinfo")
) -> None:
    """Refuse a state directory on a network file system: its locks and its database would not hold.

    Raises
    ------
    StartupError
        It names the setting and the file system's type.
    """
    if (kind := state_dir_on_network(settings.state_dir, mountinfo)) is not None:
        raise StartupError(
            f'OCPS_STATE_DIR is "{shown(str(settings.state_dir), 200)}", which lies on a network '
            f"file system ({kind}): must be a directory on a disk of this machine."
        )
