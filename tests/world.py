"""A Job Manager without HTTP: the real store, code, logs and reconciler over a fake scheduler."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ocps_jobmanager.code import CodeStore
from ocps_jobmanager.environment import server_account
from ocps_jobmanager.health import Health
from ocps_jobmanager.job_specs import load_job_types
from ocps_jobmanager.launches import LaunchPad
from ocps_jobmanager.layout import Layout
from ocps_jobmanager.log_dirs import LogDirs
from ocps_jobmanager.manager import JobManager
from ocps_jobmanager.models import Job
from ocps_jobmanager.store import JobStore
from ocps_jobmanager.times import utc_now
from tests.fakes import FakeScheduler

JOB_SPECS = """
type:
  ap:
    script: "jobs/ap.sh"
    env: ["AP_VISIT_ID", "AP_CCD_NUM"]
    getenv: ["SITE"]
  now:
    script: "jobs/ap.sh"
    env: []
    data: []
    request_cpus: 2
    request_memory: 2GB
"""


class RecordingMonitors:
    """Remembers which jobs are watched; no process is started."""

    def __init__(self) -> None:
        self.watched: dict[str, tuple[str, str, tuple[str, ...]]] = {}
        self.unwatched: set[str] = set()

    def watch(self, job_id: str, job_type: str, key: str, paths: Sequence[str]) -> None:
        self.watched[job_id] = (job_type, key, tuple(paths))

    def unwatch(self, job_id: str, *, called_back: bool = False) -> None:
        self.watched.pop(job_id, None)
        self.unwatched.add(job_id)

    def health(self) -> Health:
        return Health(ok=True, since=utc_now(), detail="No monitors here.")


class World:
    """A Job Manager in `tmp_path`, started on entry; `restart` is what a new server finds."""

    def __init__(
        self,
        tmp_path: Path,
        scheduler: FakeScheduler | None = None,
        *,
        store: type[JobStore] = JobStore,
        server_environ: Mapping[str, str] = {"SITE": "summit", "SECRET": "of the server"},
        **manager_options: Any,
    ) -> None:
        home = tmp_path / "home"
        (home / "jobs").mkdir(parents=True, exist_ok=True)
        self.script = home / "jobs" / "ap.sh"
        if not self.script.exists():
            self.script.write_text("#!/bin/bash\necho first\n")
            self.script.chmod(0o755)
        self.specs = home / "jobs" / "job_specs.yaml"
        self.specs.write_text(JOB_SPECS)
        self.layout = Layout(work_dir=tmp_path / "work", state_dir=tmp_path / "state")
        self.layout.work_dir.mkdir(exist_ok=True)
        self.layout.state_dir.mkdir(exist_ok=True)
        self.scheduler = FakeScheduler() if scheduler is None else scheduler
        self.queue = self.scheduler.queue
        self._tmp_path = tmp_path
        self._store_type = store
        self._environ = server_environ
        self._options = manager_options

    async def __aenter__(self) -> Self:
        self.store = self._store_type(self.layout.database, self._options.get("clock", utc_now))
        await self.store.open()
        self.monitors = RecordingMonitors()
        log_dirs = LogDirs(
            work_dir=self.layout.work_dir,
            log_roots=(self.layout.logs,),
            forbidden=(self.layout.outputs, self.layout.code, self.layout.state_dir),
        )
        self.manager = JobManager(
            store=self.store,
            scheduler=self.scheduler,
            monitors=self.monitors,  # type: ignore[arg-type]
            code=CodeStore(self.layout.code),
            pad=LaunchPad(
                layout=self.layout,
                log_dirs=log_dirs,
                server_environ=self._environ,
                account=server_account(),
            ),
            job_types=load_job_types(self.specs),
            **self._options,
        )
        await self.scheduler.start(self.manager.take_news)
        await self.manager.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.manager.close()
        await self.scheduler.close()
        await self.store.close()

    async def stop(self) -> None:
        """Drop everything in memory."""
        await self.__aexit__(None, None, None)

    async def restart(self, scheduler: FakeScheduler | None = None) -> None:
        """Drop everything in memory and start anew on the same disk and queue."""
        await self.stop()
        await self.start_again(scheduler)

    async def start_again(self, scheduler: FakeScheduler | None = None) -> None:
        """Start anew on the same disk and queue."""
        self.scheduler = FakeScheduler(self.queue) if scheduler is None else scheduler
        await self.__aenter__()

    async def submit(self, job_type: str = "ap", **fields: Any) -> Job:
        """Submit a valid job."""
        env = {"AP_VISIT_ID": 413635, "AP_CCD_NUM": "10"} if job_type == "ap" else {}
        body = {"type": job_type, "env": env, "log_dir": "./logs"} | fields
        return await self.manager.submit(body)

    async def until(self, job_id: str, condition: Callable[[Job], bool]) -> Job:
        """Wait until the job is as said; the deadline is the test's."""
        return await self.manager.wait(job_id, condition, 30.0)

    async def launched(self, job: Job) -> Job:
        """Let the data of a waiting job arrive and wait until it is queued."""
        await self.manager.data_arrived(job.monitor_key)
        return await self.until(job.id, lambda now: now.cluster_id is not None)
