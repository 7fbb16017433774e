"""The demonstration, with a pool that runs its jobs."""

import re
from pathlib import Path

from tests.condor.pool import Pool
from tests.processes_of import processes_of
from tests.server import wait_until
from tests.test_demo import Demo


def test_four_jobs_are_run_by_the_pool(pool: Pool, tmp_path: Path) -> None:
    demo = Demo(tmp_path)
    environment = {"OCPS_SCHEDULER": "htcondor", "CONDOR_CONFIG": str(pool.config)}
    status, out, err = demo.run(**environment)
    assert (status, err) == (0, "")
    assert "jobs are run by: htcondor." in out
    assert len(re.findall(r"^  [0-9a-f]{32}  visit \d+, ccd \d+: .*$", out, re.MULTILINE)) == 4

    assert list(demo.tmp.iterdir()) == []
    # The pool's own processes take a moment to end.
    wait_until(lambda: not processes_of(demo.tmp), "no process is left")
