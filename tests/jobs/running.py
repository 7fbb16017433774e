"""Runs a job's script as a job is run: its environment is what it was given and nothing else."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

JOBS = Path(__file__).resolve().parents[2] / "jobs"


def run_script(
    name: str, cwd: Path, variables: Mapping[str, str], path: str = "/usr/local/bin:/usr/bin:/bin"
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path, "HOME": str(cwd), "LANG": "C.UTF-8", **variables}
    return subprocess.run(
        [JOBS / name],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
