"""From models to rows and back."""

import dataclasses
import hashlib
from pathlib import Path

import sqlalchemy as sa

from ocps_jobmanager.models import (
    CodeRef,
    Job,
    JobEvent,
    JobState,
    Limits,
    NewJob,
    Removal,
    Resources,
)


def values_of(new: NewJob) -> dict[str, object]:
    """The columns of an accepted job."""
    return {
        "id": new.id,
        "type": new.type,
        "run_id": new.run_id,
        "owner": new.owner,
        "monitor_key": new.monitor_key,
        "monitor_key_sha256": sha256(new.monitor_key),
        "state": new.state.value,
        "attempt": 0,
        "env": dict(new.env),
        "getenv": list(new.getenv),
        "code": dataclasses.asdict(new.code),
        "data": list(new.data),
        "resources": dataclasses.asdict(new.resources),
        "limits": dataclasses.asdict(new.limits),
        "log_dir": str(new.log_dir),
        "time_submitted": new.time_submitted,
        "num_starts": 0,
    }


def job_of(row: sa.Row[tuple[object, ...]]) -> Job:
    """The job of a row of ``job``."""
    fields = dict(row._mapping)
    del fields["monitor_key_sha256"]
    removal_state, removal_reason = fields.pop("removal_state"), fields.pop("removal_reason")
    if removal_state is not None:
        fields["removal"] = Removal(final_state=JobState(removal_state), reason=removal_reason)
    fields["state"] = JobState(fields["state"])
    fields["getenv"] = tuple(fields["getenv"])
    fields["data"] = tuple(fields["data"])
    fields["code"] = CodeRef(**fields["code"])
    fields["resources"] = Resources(**fields["resources"])
    fields["limits"] = Limits(**fields["limits"])
    fields["log_dir"] = Path(fields["log_dir"])
    return Job(**fields)


def event_of(row: sa.Row[tuple[object, ...]]) -> JobEvent:
    """The event of a row of ``job_event``."""
    fields = dict(row._mapping)
    fields["state"] = JobState(fields["state"])
    return JobEvent(**fields)


def sha256(text: str) -> str:
    """What a secret is looked up by."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
