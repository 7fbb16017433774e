"""What several answers show of a job."""

from typing import Literal, cast

from ocps_jobmanager.answers import Code
from ocps_jobmanager.models import Job


def code_of(job: Job) -> Code:
    """What exactly a job runs."""
    kind = cast(Literal["file"], job.code.kind)
    return Code(kind=kind, path=job.code.path, sha256=job.code.sha256)
