"""The UWS endpoints, as the OCPS CSC calls them."""

import pytest

from ocps_jobmanager.schedulers.base import SchedulerStatus
from tests.handlers.conftest import Fetch
from tests.world import World

pytestmark = pytest.mark.gen_test(timeout=30)


async def test_the_job_object_of_a_waiting_job(fetch: Fetch, world: World) -> None:
    job = await world.submit(run_id="41")
    code, answer, _ = await fetch("GET", f"/api/v1/job/{job.id}")
    assert code == 200
    assert answer.pop("creationTime").endswith("Z")
    assert len(answer["jobInfo"]["code"].pop("sha256")) == 64
    assert answer == {
        "jobId": job.id,
        "runId": "41",
        "ownerId": None,
        "phase": "pending",
        "startTime": None,
        "endTime": None,
        "executionDuration": None,
        "destruction": None,
        "quote": None,
        "parameters": {
            "command": ["jobs/ap.sh"],
            "environment": [
                {"name": "AP_VISIT_ID", "value": "413635"},
                {"name": "AP_CCD_NUM", "value": "10"},
            ],
        },
        "results": [],
        "errorSummary": {"message": ""},
        "jobInfo": {
            "type": "ap",
            "state": "waiting",
            "clusterId": None,
            "procId": None,
            "exitCode": None,
            "exitSignal": None,
            "holdReason": None,
            "code": {"kind": "file", "path": "jobs/ap.sh"},
        },
    }


async def test_without_a_run_id_the_job_id_serves(fetch: Fetch, world: World) -> None:
    job = await world.submit()
    _, answer, _ = await fetch("GET", f"/api/v1/job/{job.id}")
    assert answer["runId"] == job.id


async def test_an_id_with_blanks_is_echoed_as_asked(fetch: Fetch, world: World) -> None:
    """The CSC does not trim its prerequisites, and compares what comes back."""
    job = await world.submit()
    _, answer, _ = await fetch("GET", f"/api/v1/job/%20{job.id}%20")
    assert answer["jobId"] == f" {job.id} "


async def test_a_failed_job_says_why(fetch: Fetch, world: World) -> None:
    job = await world.launched(await world.submit())
    world.scheduler.set_status(job.id, SchedulerStatus.RUNNING)
    world.scheduler.set_status(job.id, SchedulerStatus.COMPLETED, exit_code=127)
    await world.until(job.id, lambda now: now.is_final)
    _, answer, _ = await fetch("GET", f"/api/v1/job/{job.id}")
    assert answer["phase"] == "error"
    assert answer["errorSummary"] == {"message": "The script ended with exit code 127."}
    assert answer["executionDuration"] >= 0.0
    assert answer["jobInfo"]["exitCode"] == 127


async def test_delete_aborts_and_the_record_stays(fetch: Fetch, world: World) -> None:
    waiting = await world.submit()
    queued = await world.launched(await world.submit())
    for job in (waiting, queued):
        for _ in range(2):
            code, answer, _ = await fetch("DELETE", f"/api/v1/job/{job.id}")
            assert (code, answer["jobId"], answer["phase"]) == (200, job.id, "aborted")
            assert answer["errorSummary"]["message"].startswith("Removed on request")
        code, answer, _ = await fetch("GET", f"/api/v1/job/{job.id}")
        assert (code, answer["phase"]) == (200, "aborted")
    assert world.queue.submissions == {queued.id: 1}


async def test_delete_of_an_ended_job_deletes_nothing(fetch: Fetch, world: World) -> None:
    job = await world.launched(await world.submit())
    world.scheduler.set_status(job.id, SchedulerStatus.COMPLETED)
    await world.until(job.id, lambda now: now.is_final)
    code, answer, _ = await fetch("DELETE", f"/api/v1/job/{job.id}")
    assert (code, answer["phase"]) == (200, "completed")
    assert world.layout.output(job.id).is_dir()


@pytest.mark.parametrize(
    "odd",
    ["", "%20", ".", "..", "%2e%2e", "%2e%2e%2f", "0" * 31, "0" * 32, "G" * 32, "%ff", "*", "%00"],
)
async def test_an_odd_id_is_404_and_nothing_is_touched(
    fetch: Fetch, world: World, odd: str
) -> None:
    """Rubin's present server erases every job's files for ``DELETE /job/``."""
    job = await world.launched(await world.submit())
    canary = world.layout.output(job.id) / "canary"
    canary.write_text("alive")
    for method in ("DELETE", "GET"):
        code, answer, _ = await fetch(method, f"/api/v1/job/{odd}")
        assert code == 404
        assert set(answer) == {"message"}
    assert canary.read_text() == "alive"
    assert not (await world.manager.get(job.id)).is_final
