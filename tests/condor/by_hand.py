"""What a person does with HTCondor's tools, in a process of its own; and what the pool knows.

``python -m tests.condor.by_hand act ACTION CONSTRAINT REASON`` and
``python -m tests.condor.by_hand list CONSTRAINT``, or ``edit CONSTRAINT ATTRIBUTE EXPRESSION``.
"""

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

from tests.condor.pool import PROJECT, Pool

NAMES = ["OcpsJobId", "ClusterId", "ProcId", "JobStatus"]


async def act(pool: Pool, action: str, job_id: str, reason: str = "by hand") -> None:
    """Do something (``Hold``, ``Release``, ``Remove``, …) to a job."""
    await asyncio.to_thread(_run, pool, "act", action, f'OcpsJobId =?= "{job_id}"', reason)


async def edit(pool: Pool, job_id: str, attribute: str, expression: str) -> None:
    """Set an attribute of a job that is in the queue."""
    constraint = f'OcpsJobId =?= "{job_id}"'
    await asyncio.to_thread(_run, pool, "edit", constraint, attribute, expression)


async def jobs(pool: Pool, *job_ids: str) -> list[dict[str, Any]]:
    """All jobs, in the queue and in the history, that carry one of these ids."""
    quoted = ", ".join(f'"{job_id}"' for job_id in job_ids)
    output = await asyncio.to_thread(_run, pool, "list", f"member(OcpsJobId, {{{quoted}}})")
    found: list[dict[str, Any]] = json.loads(output)
    return found


def _run(pool: Pool, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "tests.condor.by_hand", *arguments],
        cwd=PROJECT,
        env={**os.environ, "CONDOR_CONFIG": str(pool.config)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


def main(what: str, *arguments: str) -> None:
    """Do it."""
    # Not in the process of the tests, which it would block.
    import htcondor2  # noqa: PLC0415

    schedd = htcondor2.Schedd()
    if what == "act":
        action, constraint, reason = arguments
        schedd.act(getattr(htcondor2.JobAction, action), constraint, reason=(reason, 7))
        return
    if what == "edit":
        schedd.edit(*arguments)
        return
    ads = [*schedd.query(arguments[0], NAMES), *schedd.history(arguments[0], NAMES)]
    json.dump([{name: ad[name] for name in NAMES} for ad in ads], sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
