"""The Job Manager's endpoints: ``snake_case`` in an envelope of ``status`` and ``msg``."""

import dataclasses
from collections.abc import Sequence

from ocps_jobmanager.errors import InvalidRequestError, NotFoundError, Problem
from ocps_jobmanager.handlers.base import BaseHandler
from ocps_jobmanager.handlers.ids import job_id_of
from ocps_jobmanager.layout import Layout
from ocps_jobmanager.manager import CATEGORIES, JobManager
from ocps_jobmanager.models import Job, JobEvent
from ocps_jobmanager.times import iso

_DEFAULT_LIMIT = 100
_LARGEST_LIMIT = 1000
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
        job = await self._manager.submit(self.json_body())
        self.write_json({"status": "ok", "msg": "", "job_id": job.id, "cluster_id": job.cluster_id})

    async def get(self) -> None:
        """Tell all about a job."""
        asked = self.query("id")
        if asked is None:
            raise InvalidRequestError([Problem("id", "is required")])
        job = await self._manager.get(job_id_of(asked))
        history = await self._manager.history(job.id)
        self.write_json({"status": "ok", "msg": "", "job": job_info(job, history, self._layout)})

    def error_body(self, message: str) -> dict[str, object]:
        """Give the endpoint's keys as null."""
        keys = ("job_id", "cluster_id") if self.request.method == "POST" else ("job",)
        return {**super().error_body(message), **dict.fromkeys(keys)}


class JobListHandler(BaseHandler):
    """``GET /job/list/{category}``."""

    def initialize(self, manager: JobManager) -> None:
        """Take what it works with."""
        self._manager = manager

    async def get(self, category: str) -> None:
        """List a page of job ids, newest first."""
        if (states := CATEGORIES.get(category.strip())) is None:
            raise NotFoundError(f"There is no such category; there are {', '.join(CATEGORIES)}.")
        limit = self._number("limit", _LARGEST_LIMIT) or _DEFAULT_LIMIT
        before_seq = self._number("cursor", _LARGEST_CURSOR)
        page = await self._manager.list_ids(states, limit=limit + 1, before_seq=before_seq)
        answer: dict[str, object] = {
            "status": "ok",
            "msg": "",
            "job_ids": [job_id for _, job_id in page[:limit]],
        }
        if len(page) > limit:
            answer["next"] = str(page[limit - 1][0])
        self.write_json(answer)

    def error_body(self, message: str) -> dict[str, object]:
        """Give the endpoint's key as null."""
        return {**super().error_body(message), "job_ids": None}

    def _number(self, name: str, largest: int) -> int | None:
        text = self.query(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise InvalidRequestError([Problem(name, "must be a whole number")])
        if not 1 <= (number := int(text)) <= largest:
            raise InvalidRequestError([Problem(name, f"must be from 1 to {largest}")])
        return number


def job_info(job: Job, history: Sequence[JobEvent], layout: Layout) -> dict[str, object]:
    """All about a job, as ``GET /job?id=`` shows it."""
    logs = layout.job_logs(job.log_dir, job.id)
    return {
        "job_id": job.id,
        "type": job.type,
        "run_id": job.run_id,
        "owner": job.owner,
        "state": job.state.value,
        "phase": job.phase.value,
        "reason": job.reason,
        "cluster_id": job.cluster_id,
        "proc_id": job.proc_id,
        "env": dict(job.env),
        "code": dataclasses.asdict(job.code),
        "data": list(job.data),
        "log_dir": str(job.log_dir),
        "logs": {"out": str(logs.out), "err": str(logs.err), "log": str(logs.log)},
        "output_dir": str(layout.output(job.id)),
        "time_submitted": iso(job.time_submitted),
        "time_data_arrived": iso(job.time_data_arrived),
        "time_queued": iso(job.time_queued),
        "time_started": iso(job.time_started),
        "time_completed": iso(job.time_completed),
        "exit_code": job.exit_code,
        "exit_signal": job.exit_signal,
        "hold_reason": job.hold_reason,
        "remote_host": job.remote_host,
        "num_starts": job.num_starts,
        "memory_mb": job.memory_mb,
        "history": [
            {"time": iso(event.time), "state": event.state.value, "reason": event.reason}
            for event in history
        ],
    }
