"""The Job Manager's endpoints: ``snake_case`` in an envelope of ``status`` and ``msg``."""

from collections.abc import Mapping, Sequence

from ocps_jobmanager.answers import (
    HistoryEntry,
    JobAnswer,
    JobInfo,
    JobListAnswer,
    JobListRefusal,
    JobLogs,
    JobRefusal,
    SubmitAnswer,
    SubmitRefusal,
)
from ocps_jobmanager.errors import InvalidRequestError, NotFoundError, Problem
from ocps_jobmanager.handlers.base import BaseHandler
from ocps_jobmanager.handlers.ids import job_id_of
from ocps_jobmanager.handlers.rendering import code_of
from ocps_jobmanager.layout import Layout
from ocps_jobmanager.manager import CATEGORIES, JobManager
from ocps_jobmanager.models import Job, JobEvent
from ocps_jobmanager.times import iso, iso_or_none

DEFAULT_LIMIT = 100
LARGEST_LIMIT = 1000
#: SQLite's integers end here; a page can't begin behind it.
_LARGEST_CURSOR = 2**63 - 1


class JobHandler(BaseHandler):
    """``POST /job`` and ``GET /job?id=``."""

    def initialize(self, manager: JobManager, layout: Layout) -> None:
        """Take what it works with."""
        self._manager = manager
        self._layout = layout

    async def post(self) -> None:
        """Accept a job; the answer means that it is durable."""
        job = await self._manager.submit(
            self.json_body(), owner=self.owner, key=self.idempotency_key()
        )
        # A repetition gets the first answer, and then no job was in the queue yet.
        self.write_json(SubmitAnswer(status="ok", msg="", job_id=job.id, cluster_id=None))

    async def get(self) -> None:
        """Tell all about a job."""
        asked = self.query("id")
        if asked is None:
            raise InvalidRequestError([Problem("id", "is required")])
        job = await self._manager.get(job_id_of(asked))
        history = await self._manager.history(job.id)
        info = job_info(job, history, self._layout)
        self.write_json(JobAnswer(status="ok", msg="", job=info))

    def error_body(self, message: str) -> Mapping[str, object]:
        """Give the endpoint's keys as null."""
        if self.request.method == "POST":
            return SubmitRefusal(status="error", msg=message, job_id=None, cluster_id=None)
        return JobRefusal(status="error", msg=message, job=None)


class JobListHandler(BaseHandler):
    """``GET /job/list/{category}``."""

    def initialize(self, manager: JobManager) -> None:
        """Take what it works with."""
        self._manager = manager

    async def get(self, category: str) -> None:
        """List a page of job ids, newest first."""
        if (states := CATEGORIES.get(category.strip())) is None:
            raise NotFoundError(f"There is no such category; there are {', '.join(CATEGORIES)}.")
        limit = self._number("limit", LARGEST_LIMIT) or DEFAULT_LIMIT
        before_seq = self._number("cursor", _LARGEST_CURSOR)
        page = await self._manager.list_ids(states, limit=limit + 1, before_seq=before_seq)
        ids = [job_id for _, job_id in page[:limit]]
        answer = JobListAnswer(status="ok", msg="", job_ids=ids)
        if len(page) > limit:
            answer["next"] = str(page[limit - 1][0])
        self.write_json(answer)

    def error_body(self, message: str) -> Mapping[str, object]:
        """Give the endpoint's key as null."""
        return JobListRefusal(status="error", msg=message, job_ids=None)

    def _number(self, name: str, largest: int) -> int | None:
        text = self.query(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise InvalidRequestError([Problem(name, "must be a whole number")])
        if not 1 <= (number := int(text)) <= largest:
            raise InvalidRequestError([Problem(name, f"must be from 1 to {largest}")])
        return number


def job_info(job: Job, history: Sequence[JobEvent], layout: Layout) -> JobInfo:
    """All about a job, as ``GET /job?id=`` shows it."""
    logs = layout.job_logs(job.log_dir, job.id)
    return JobInfo(
        job_id=job.id,
        type=job.type,
        run_id=job.run_id,
        owner=job.owner,
        state=job.state.value,
        phase=job.phase.value,
        reason=job.reason,
        cluster_id=job.cluster_id,
        proc_id=job.proc_id,
        env=dict(job.env),
        code=code_of(job),
        data=list(job.data),
        log_dir=str(job.log_dir),
        logs=JobLogs(out=str(logs.out), err=str(logs.err), log=str(logs.log)),
        output_dir=str(layout.output(job.id)),
        time_submitted=iso(job.time_submitted),
        time_data_arrived=iso_or_none(job.time_data_arrived),
        time_queued=iso_or_none(job.time_queued),
        time_started=iso_or_none(job.time_started),
        time_completed=iso_or_none(job.time_completed),
        exit_code=job.exit_code,
        exit_signal=job.exit_signal,
        hold_reason=job.hold_reason,
        remote_host=job.remote_host,
        num_starts=job.num_starts,
        memory_mb=job.memory_mb,
        history=[
            HistoryEntry(time=iso(event.time), state=event.state.value, reason=event.reason)
            for event in history
        ],
    )
