"""A site of the shared contract suite whose jobs run in a real pool."""

import os
import sys
from pathlib import Path

from ocps_jobmanager.models import Resources
from ocps_jobmanager.processes import Spawner
from ocps_jobmanager.schedulers.htcondor import HTCondorScheduler, Timing
from ocps_jobmanager.times import Clock, utc_now
from tests.condor.pool import Pool
from tests.schedulers.contract import Server, Site

#: What HTCondor puts into a job's environment.
_ADDED = frozenset(
    {
        "TMPDIR",
        "TEMP",
        "TMP",
        "BATCH_SYSTEM",
        "APPTAINER_CACHEDIR",
        "SINGULARITY_CACHEDIR",
        "CUDA_VISIBLE_DEVICES",
        "GPU_DEVICE_ORDINAL",
        "NVIDIA_VISIBLE_DEVICES",
        "CUBACORES",
        "GOMAXPROCS",
        "JULIA_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "OMP_NUM_THREADS",
        "OMP_THREAD_LIMIT",
        "OPENBLAS_NUM_THREADS",
        "PYTHON_CPU_COUNT",
        "ROOT_MAX_THREADS",
        "TF_LOOP_PARALLEL_ITERATIONS",
        "TF_NUM_THREADS",
    }
)
#: What bash adds to an environment in which it finds none of it.
_BASH = frozenset({"PWD", "SHLVL", "_", "OLDPWD"})


class CondorSite(Site):
    """Jobs in `pool`, submitted by servers with the state in `directory`."""

    def __init__(self, directory: Path, pool: Pool, timing: Timing | None = None) -> None:
        super().__init__(directory)
        self.pool = pool
        self.timing = timing
        self.python = Path(sys.executable)
        self.clock: Clock = utc_now
        self.state = directory / "state"
        self.state.mkdir(exist_ok=True)
        self._spawners: list[Spawner] = []

    @property
    def environ(self) -> dict[str, str]:
        """The environment in which HTCondor's tools and bindings find the pool."""
        return {**os.environ, "CONDOR_CONFIG": str(self.pool.config)}

    def scheduler(self) -> HTCondorScheduler:
        self._spawners.append(Spawner(2))
        return HTCondorScheduler(
            events_dir=self.state / "condor",
            lock_path=self.state / "condor.lock",
            spawner=self._spawners[-1],
            python=self.python,
            environ=self.environ,
            clock=self.clock,
            timing=self.timing,
        )

    async def crowd(self, server: Server) -> Resources:
        return Resources(cpus=999)

    def sets_itself(self, name: str) -> bool:
        return name in _ADDED or name in _BASH or name.startswith(("_CONDOR_", "_CHIRP_"))

    def close(self) -> None:
        """Let the threads go."""
        for spawner in self._spawners:
            spawner.close()
