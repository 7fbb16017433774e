"""The UWS endpoints, which the OCPS CSC calls: the JSON job object, ``camelCase``, no envelope."""

from collections.abc import Mapping
from datetime import timedelta

from ocps_jobmanager.answers import (
    NameAndValue,
    UwsErrorSummary,
    UwsJob,
    UwsJobInfo,
    UwsParameters,
    UwsRefusal,
)
from ocps_jobmanager.handlers.base import BaseHandler
from ocps_jobmanager.handlers.ids import job_id_of
from ocps_jobmanager.handlers.rendering import code_of
from ocps_jobmanager.manager import JobManager
from ocps_jobmanager.models import Job, Phase
from ocps_jobmanager.times import Clock, iso, iso_or_none

#: How long DELETE waits for the scheduler to have ended the job, so that its answer says so.
_REMOVAL_WAIT_S = 0.7


class UwsJobHandler(BaseHandler):
    """``GET`` and ``DELETE /job/{job_id}``."""

    def initialize(self, manager: JobManager, clock: Clock, keep: timedelta | None) -> None:
        """Take what it works with."""
        self._manager = manager
        self._clock = clock
        self._keep = keep

    async def get(self, asked: str) -> None:
        """Tell about a job."""
        job = await self._manager.get(job_id_of(asked))
        self.write_json(job_object(job, asked, self._clock, self._keep))

    async def delete(self, asked: str) -> None:
        """Abort a job; its record stays."""
        job_id = job_id_of(asked)
        await self._manager.remove(job_id)
        job = await self._manager.wait(job_id, lambda job: job.is_final, _REMOVAL_WAIT_S)
        self.write_json(job_object(job, asked, self._clock, self._keep))

    def error_body(self, message: str) -> Mapping[str, object]:
        """Speak a UWS client's words."""
        return UwsRefusal(message=message)


def job_object(job: Job, asked: str, clock: Clock, keep: timedelta | None = None) -> UwsJob:
    """A job as UWS clients read it (IVOA UWS 1.1, section 2.1).

    Parameters
    ----------
    asked : str
        The id as the client wrote it; some compare it with what they get.
    keep : timedelta or None
        After its end; then the job is removed. None: it is kept for ever.
    """
    duration_s = destruction = None
    if job.is_final and job.time_completed is not None and keep is not None:
        destruction = job.time_completed + keep
    if job.time_started is not None:
        elapsed = (job.time_completed or clock()) - job.time_started
        duration_s = max(0.0, elapsed.total_seconds())
    ended_badly = job.phase in {Phase.ERROR, Phase.ABORTED}
    return UwsJob(
        jobId=asked,
        runId=job.run_id or job.id,
        ownerId=job.owner,
        phase=job.phase.value,
        creationTime=iso(job.time_submitted),
        startTime=iso_or_none(job.time_started),
        endTime=iso_or_none(job.time_completed),
        executionDuration=duration_s,
        destruction=iso_or_none(destruction),
        quote=None,
        parameters=UwsParameters(
            command=[job.code.path],
            environment=[NameAndValue(name=name, value=job.env[name]) for name in job.env],
        ),
        results=[],
        errorSummary=UwsErrorSummary(message=(job.reason or "") if ended_badly else ""),
        jobInfo=UwsJobInfo(
            type=job.type,
            state=job.state.value,
            clusterId=job.cluster_id,
            procId=job.proc_id,
            exitCode=job.exit_code,
            exitSignal=job.exit_signal,
            holdReason=job.hold_reason,
            code=code_of(job),
        ),
    )
