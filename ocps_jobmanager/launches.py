"""From a job to what a scheduler needs to run it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ocps_jobmanager.environment import Account, job_environment
from ocps_jobmanager.layout import Layout
from ocps_jobmanager.log_dirs import LogDirs
from ocps_jobmanager.models import Job
from ocps_jobmanager.schedulers.base import LaunchRequest


@dataclass(frozen=True, kw_only=True)
class LaunchPad:
    """Prepares launches: makes a job's directories and files, and puts its environment together.

    Attributes
    ----------
    server_environ : mapping of str to str
        The server's own environment, for what a job type's ``getenv`` names.
    """

    layout: Layout
    log_dirs: LogDirs
    server_environ: Mapping[str, str]
    account: Account

    def prepare(self, job: Job, executable: Path) -> LaunchRequest:
        """Make what the job needs on the disk, and the request. Blocks: not for the event loop.

        Doing it again changes nothing.

        Raises
        ------
        LaunchRefusedError
            The log directory may not be used any more, or a variable can't be passed on.
        OSError
            The disk is full, or the work directory can't be written to just now.
        """
        environment = job_environment(
            job,
            layout=self.layout,
            server_environ=self.server_environ,
            account=self.account,
        )
        logs = self.layout.job_logs(job.log_dir, job.id)
        self.log_dirs.recheck(job.log_dir)
        self.log_dirs.create_files(logs)
        output = self.layout.output(job.id)
        output.mkdir(mode=0o750, parents=True, exist_ok=True)
        return LaunchRequest(
            job_id=job.id,
            executable=executable,
            environment=environment,
            initial_dir=output,
            out=logs.out,
            err=logs.err,
            log=logs.log,
            resources=job.resources,
            limits=job.limits,
        )
