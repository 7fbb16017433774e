"""Makes valid objects for tests; each says only what it is about."""

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from ocps_jobmanager.models import CodeRef, Job, JobState, NewJob, Resources
from ocps_jobmanager.times import utc_now


def run(coroutine: Coroutine[Any, Any, Any], timeout_s: float = 60.0) -> Any:
    """Run a test's coroutine; every wait in it has this deadline over it."""

    async def with_deadline() -> Any:
        async with asyncio.timeout(timeout_s):
            return await coroutine

    return asyncio.run(with_deadline())


def new_job(**changes: Any) -> NewJob:
    """An accepted job that waits for its data."""
    job_id = changes.pop("id", uuid.uuid4().hex)
    fields: dict[str, Any] = {
        "id": job_id,
        "type": "ap",
        "run_id": None,
        "owner": None,
        "monitor_key": uuid.uuid4().hex,
        "state": JobState.WAITING,
        "env": {"AP_VISIT_ID": "413635"},
        "getenv": ("OCPS_STACK_SETUP",),
        "code": CodeRef(kind="file", path="jobs/ap_job.sh", sha256="0" * 64),
        "data": (f"{job_id}.dat",),
        "resources": Resources(cpus=2, memory_mb=2048),
        "log_dir": Path("/logs"),
        "time_submitted": utc_now(),
    }
    return NewJob(**(fields | changes))


def job(**changes: Any) -> Job:
    """A stored job."""
    seq = changes.pop("seq", 1)
    new = {name: changes.pop(name) for name in list(changes) if name in NewJob.__dataclass_fields__}
    return Job(**vars(new_job(**new)), seq=seq, **changes)


async def eventually(condition: Callable[[], object]) -> None:
    """Wait for something that nobody tells of; the deadline is the test's."""
    while not condition():
        await asyncio.sleep(0.002)
