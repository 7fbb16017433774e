"""Where the server's jobs run: this machine, or a pool whose schedd can be stopped and killed."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.condor.pool import Pool

_ADS = """
import htcondor2, json, sys
schedd = htcondor2.Schedd(
    htcondor2.Collector(htcondor2.param["COLLECTOR_HOST"]).locate(htcondor2.DaemonType.Schedd)
)
wanted = ["OcpsJobId", "ClusterId", "ProcId", "JobStatus", "NumJobStarts", "Iwd"]
for ask in (schedd.query, schedd.history):
    for ad in ask("OcpsJobId =!= undefined", projection=wanted):
        if ad["Iwd"].startswith(sys.argv[1]):
            print(json.dumps([ad.get(name) for name in wanted[:-1]]))
"""


class LocalSite:
    """Jobs run on this machine."""

    scheduler = "local"
    environ: Mapping[str, str] = {}

    def ads(self, work: Path) -> dict[str, set[str]] | None:
        """``cluster.proc`` of all that was ever queued, by job id; None: nobody keeps it."""
        return None


class PoolSite:
    """Jobs run in a pool."""

    scheduler = "htcondor"

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.environ = {"CONDOR_CONFIG": str(pool.config)}

    def ads(self, work: Path) -> dict[str, set[str]] | None:
        """``cluster.proc`` of all that was ever queued, by job id: queue first, then history."""
        done = subprocess.run(
            [sys.executable, "-c", _ADS, str(work)],
            env={**os.environ, **self.environ},
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        found: dict[str, set[str]] = {}
        for line in done.stdout.splitlines():
            job_id, cluster, proc, _, _ = json.loads(line)
            found.setdefault(job_id, set()).add(f"{cluster}.{proc}")
        return found

    @contextlib.contextmanager
    def stopped_schedd(self) -> Iterator[None]:
        """Freeze the schedd for the time of the block."""
        self.pool.stop_schedd()
        try:
            yield
        finally:
            self.pool.continue_schedd()


Site = LocalSite | PoolSite
