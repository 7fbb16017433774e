"""``/monitor/complete``: a monitor calls it when its job's data have arrived."""

import secrets
from collections.abc import Mapping
from urllib.parse import parse_qs

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from ocps_jobmanager.answers import CallbackAnswer, CallbackRefusal
from ocps_jobmanager.errors import InvalidRequestError, Problem
from ocps_jobmanager.handlers.base import BaseHandler
from ocps_jobmanager.manager import JobManager
from ocps_jobmanager.models import JobState

#: How long the callback waits for the job to be in the scheduler's queue.
_LAUNCH_WAIT_S = 2.0
_MOST_FIELDS = 8


class CallbackBody(TypedDict):
    """What a callback may have in its body, in place of the query."""

    id: str


class MonitorCompleteHandler(BaseHandler):
    """``GET`` and ``POST /monitor/complete?id=<secret key>``."""

    needs_token = False  # the key is one
    get_changes_something = True

    def initialize(self, manager: JobManager, probe_key: str) -> None:
        """Take what it works with.

        Parameters
        ----------
        probe_key : str
            What the server calls itself with, to find out whether monitors can reach it.
        """
        self._manager = manager
        self._probe_key = probe_key
        self.unlogged = False

    async def get(self) -> None:
        """Record the arrival; say where the job is in the queue, if it gets there soon."""
        key = self._key()
        if secrets.compare_digest(key.encode(), self._probe_key.encode()):
            self.unlogged = True
            self._answer(None, None, 200)
            return
        job = await self._manager.data_arrived(key)
        if job.state is JobState.SUBMITTING:
            job_id = job.id
            await self._manager.wait(
                job_id, lambda job: job.state is not JobState.SUBMITTING, _LAUNCH_WAIT_S
            )
            job = await self._manager.data_arrived(key)
        queued = job.cluster_id is not None
        self._answer(job.cluster_id, job.proc_id, 200 if queued else 202)

    async def post(self) -> None:
        """Do as GET does."""
        await self.get()

    def error_body(self, message: str) -> Mapping[str, object]:
        """Give the endpoint's keys as null."""
        return CallbackRefusal(status="error", msg=message, cluster_id=None, proc_id=None)

    def _answer(self, cluster_id: int | None, proc_id: int | None, status: int) -> None:
        answer = CallbackAnswer(status="ok", msg="", cluster_id=cluster_id, proc_id=proc_id)
        self.write_json(answer, status)

    def _key(self) -> str:
        """Find the key in the query, or in the body, as JSON or as a form."""
        key: object = self.query("id")
        if key is None and self.content_type() == "application/x-www-form-urlencoded":
            values = _form(self.body()).get("id")
            key = values[-1] if values else None
        elif key is None and self.body():
            body = self.json_body()
            key = body.get("id") if isinstance(body, dict) else None
        if not isinstance(key, str) or not key.strip():
            raise InvalidRequestError([Problem("id", "is required")])
        return key.strip()


def _form(body: bytes) -> dict[str, list[str]]:
    try:
        return parse_qs(body.decode(errors="replace"), max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise InvalidRequestError([Problem("body", "has too many fields")]) from None
