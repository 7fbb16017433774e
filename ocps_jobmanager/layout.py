"""The one home of on-disk names: what lies where under the work and the state directory."""

from dataclasses import dataclass
from pathlib import Path


def why_path_refused(path: str) -> str | None:
    """Why a job can't have anything at `path`, in words that follow its name; None if it can.

    HTCondor uses paths before it matches a job, so what only the match makes ``$$`` of can't stand
    for it there; and ``$(DOLLAR)``, which stands for ``$``, can't stand for itself.
    """
    if "$$" in path or "$(dollar)" in path.lower():
        return 'must not contain "$$" or "$(DOLLAR)", because HTCondor can\'t use such a path'
    return None


@dataclass(frozen=True, kw_only=True)
class LogPaths:
    """A job's three log files."""

    out: Path
    err: Path
    log: Path


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where everything is. Only names: nothing is made or looked at here.

    Attributes
    ----------
    work_dir : pathlib.Path
        Absolute. With HTCondor on a file system that submit and execute hosts share.
    state_dir : pathlib.Path
        Absolute, local, 0700.
    """

    work_dir: Path
    state_dir: Path

    @property
    def code(self) -> Path:
        """The store of the code that jobs run."""
        return self.work_dir / "code"

    @property
    def outputs(self) -> Path:
        """The parent of all output directories."""
        return self.work_dir / "output"

    @property
    def logs(self) -> Path:
        """The default log root."""
        return self.work_dir / "logs"

    @property
    def database(self) -> Path:
        """The SQLite database."""
        return self.state_dir / "jobs.sqlite3"

    @property
    def server_lock(self) -> Path:
        """Locked while a server runs on this state directory."""
        return self.state_dir / "server.lock"

    @property
    def condor_lock(self) -> Path:
        """Locked while a server, or a child of one, may talk to the schedd."""
        return self.state_dir / "condor.lock"

    @property
    def condor_events(self) -> Path:
        """The directory of the shared event logs and the follower's places in them."""
        return self.state_dir / "condor"

    @property
    def local_jobs(self) -> Path:
        """The local scheduler's directory, one folder a job."""
        return self.state_dir / "local"

    def data_file(self, job_id: str) -> Path:
        """The file that a job waits for."""
        return self.work_dir / f"{job_id}.dat"

    def output(self, job_id: str) -> Path:
        """A job's output directory, where it starts."""
        return self.outputs / job_id

    def job_logs(self, log_dir: Path, job_id: str) -> LogPaths:
        """A job's log files in its log directory."""
        return LogPaths(
            out=log_dir / f"{job_id}.out",
            err=log_dir / f"{job_id}.err",
            log=log_dir / f"{job_id}.log",
        )
