"""The Job Manager's endpoints, byte for byte where clients compare."""

import re
import uuid
from typing import Any

import pytest

from ocps_jobmanager.schedulers.base import SchedulerStatus
from tests.handlers.conftest import PROBE_KEY, Fetch
from tests.makers import eventually
from tests.world import World

pytestmark = pytest.mark.gen_test(timeout=30)

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
BODY: dict[str, Any] = {
    "type": "ap",
    "env": {"AP_VISIT_ID": 413635, "AP_CCD_NUM": 10.5},
    "log_dir": "./logs",
    "run_id": "41",
}


async def post(fetch: Fetch, **changes: Any) -> str:
    code, answer, _ = await fetch("POST", "/api/v1/job", BODY | changes)
    assert code == 200, answer
    return str(answer["job_id"])


async def test_post_answers_four_keys_in_order(fetch: Fetch) -> None:
    code, answer, response = await fetch("POST", "/api/v1/job", BODY)
    assert code == 200
    job_id = answer["job_id"]
    assert uuid.UUID(job_id).version == 4
    assert response.body.decode() == (
        f'{{"status": "ok", "msg": "", "job_id": "{job_id}", "cluster_id": null}}'
    )


async def test_the_content_type_may_have_parameters(fetch: Fetch) -> None:
    """The prototype compared the whole header."""
    kind = {"Content-Type": "Application/JSON; charset=utf-8"}
    code, answer, _ = await fetch("POST", "/api/v1/job", BODY, headers=kind)
    assert (code, answer["status"]) == (200, "ok")


async def test_doubled_slashes_count_as_one(fetch: Fetch) -> None:
    """The CSC joins its URL without care."""
    code, answer, _ = await fetch("POST", "//api//v1///job", BODY)
    assert code == 200
    code, answer, _ = await fetch("GET", f"/api/v1//job//{answer['job_id']}")
    assert code == 200


async def test_get_tells_all_about_a_waiting_job(fetch: Fetch, world: World) -> None:
    """The prototype said "Job not found", with 200."""
    job_id = await post(fetch)
    code, answer, _ = await fetch("GET", f"/api/v1/job?id={job_id}")
    assert (code, answer["status"], answer["msg"]) == (200, "ok", "")
    job = answer["job"]
    logs = world.layout.work_dir / "logs"
    times = [job.pop("time_submitted"), job["history"][0].pop("time")]
    assert all(TIME.fullmatch(time) for time in times)
    assert len(job["code"].pop("sha256")) == 64
    assert job == {
        "job_id": job_id,
        "type": "ap",
        "run_id": "41",
        "owner": None,
        "state": "waiting",
        "phase": "pending",
        "reason": None,
        "cluster_id": None,
        "proc_id": None,
        "env": {"AP_VISIT_ID": "413635", "AP_CCD_NUM": "10.5"},
        "code": {"kind": "file", "path": "jobs/ap.sh"},
        "data": [f"{job_id}.dat"],
        "log_dir": str(logs),
        "logs": {kind: str(logs / f"{job_id}.{kind}") for kind in ("out", "err", "log")},
        "output_dir": str(world.layout.work_dir / "output" / job_id),
        "time_data_arrived": None,
        "time_queued": None,
        "time_started": None,
        "time_completed": None,
        "exit_code": None,
        "exit_signal": None,
        "hold_reason": None,
        "remote_host": None,
        "num_starts": 0,
        "memory_mb": None,
        "history": [{"state": "waiting", "reason": None}],
    }


async def test_get_tells_all_about_an_ended_job(fetch: Fetch, world: World) -> None:
    job_id = await post(fetch)
    await world.launched(await world.manager.get(job_id))
    world.scheduler.set_status(job_id, SchedulerStatus.RUNNING, remote_host="slot1@host")
    world.scheduler.set_status(job_id, SchedulerStatus.COMPLETED, exit_code=3, memory_mb=12)
    await world.until(job_id, lambda job: job.is_final)
    _, answer, _ = await fetch("GET", f"/api/v1/job?id=%20{job_id}%20")
    job = answer["job"]
    assert [event["state"] for event in job["history"]] == [
        "waiting",
        "submitting",
        "idle",
        "running",
        "completed",
    ]
    times = ["submitted", "data_arrived", "queued", "started", "completed"]
    stamps = [job[f"time_{name}"] for name in times]
    assert all(TIME.fullmatch(stamp) for stamp in stamps)
    assert stamps == sorted(stamps)
    assert (job["state"], job["phase"], job["exit_code"]) == ("completed", "error", 3)
    assert job["reason"] == "The script ended with exit code 3."
    assert (job["remote_host"], job["num_starts"], job["memory_mb"]) == ("slot1@host", 1, 12)


@pytest.mark.parametrize("odd", ["0" * 32, "x", "", "..", "%2e%2e", "%ff", "%00", "a" * 5000])
async def test_an_unknown_id_is_404(fetch: Fetch, odd: str) -> None:
    """The prototype answered 500."""
    code, answer, _ = await fetch("GET", f"/api/v1/job?id={odd}")
    if odd == "%ff":
        assert code == 400
    else:
        assert code == 404
    assert answer["status"] == "error"
    assert answer["job"] is None
    assert answer["msg"]


async def test_get_without_an_id_says_what_is_missing(fetch: Fetch) -> None:
    code, answer, _ = await fetch("GET", "/api/v1/job")
    assert code == 400
    assert answer == {
        "status": "error",
        "msg": "id is required.",
        "job": None,
        "errors": [{"field": "id", "msg": "is required"}],
    }


async def test_all_that_is_wrong_with_a_submission_is_listed(fetch: Fetch) -> None:
    code, answer, _ = await fetch(
        "POST",
        "/api/v1/job",
        {"type": "ap", "env": {"AP_VISIT_ID": True, "HOME": "/"}, "log_dir": "/etc", "extra": 1},
    )
    assert code == 400
    assert (answer["job_id"], answer["cluster_id"]) == (None, None)
    assert {error["field"] for error in answer["errors"]} == {
        "env.AP_VISIT_ID",
        "env.AP_CCD_NUM",
        "env.HOME",
        "log_dir",
        "extra",
    }


async def test_an_unknown_type_names_the_known_ones(fetch: Fetch) -> None:
    """The prototype answered 500."""
    code, answer, _ = await fetch("POST", "/api/v1/job", BODY | {"type": "apx"})
    assert code == 400
    assert "ap" in answer["msg"]
    assert "now" in answer["msg"]


@pytest.mark.parametrize(
    ("raw", "kind", "expected"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"type": "ap", "type": "ap"}', "application/json", 400),
        (b'{"type": NaN}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"a":' * 100_000, "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"type=ap", "application/x-www-form-urlencoded", 415),
        (b"x" * (2**20 + 1), "application/json", 413),
        (b"x" * (2**20), "application/json", 400),
    ],
)
async def test_a_body_that_is_no_submission(
    fetch: Fetch, raw: bytes, kind: str, expected: int
) -> None:
    code, answer, _ = await fetch("POST", "/api/v1/job", raw=raw, headers={"Content-Type": kind})
    assert code == expected
    assert answer["status"] == "error"
    assert (answer["job_id"], answer["cluster_id"]) == (None, None)
    assert len(answer["msg"]) < 2000


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/api/v1/job", "GET, HEAD, POST"),
        ("DELETE", "/api/v1/job", "GET, HEAD, POST"),
        ("POST", "/api/v1/job/list/all", "GET, HEAD"),
        ("DELETE", "/api/v1/monitor/complete", "GET, HEAD, POST"),
        ("POST", f"/api/v1/job/{'0' * 32}", "GET, HEAD, DELETE"),
        ("OPTIONS", "/healthz", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_says_which_are_right(
    fetch: Fetch, method: str, path: str, allow: str
) -> None:
    code, _, response = await fetch(method, path)
    assert code == 405
    assert response.headers["Allow"] == allow


async def test_head_is_get_without_the_body(fetch: Fetch) -> None:
    job_id = await post(fetch)
    code, answer, _ = await fetch("HEAD", f"/api/v1/job?id={job_id}")
    assert (code, answer) == (200, None)


@pytest.mark.parametrize("path", ["/", "/api/v1", "/api/v1/jobs", "/api/v1/job/list", "/x/y"])
async def test_an_unknown_path_is_404(fetch: Fetch, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        code, answer, _ = await fetch(method, path)
        assert code == (405 if path == "/api/v1/job/list" and method == "POST" else 404)
        assert answer.get("msg") or answer.get("message")


# The list ----------------------------------------------------------------------------------------


async def test_lists_are_newest_first_and_go_on_where_they_ended(fetch: Fetch) -> None:
    ids = [await post(fetch) for _ in range(5)]
    seen: list[str] = []
    path = "/api/v1/job/list/all?limit=2"
    for expected in (2, 2, 1):
        code, answer, _ = await fetch("GET", path)
        assert (code, answer["status"], len(answer["job_ids"])) == (200, "ok", expected)
        seen += answer["job_ids"]
        path = f"/api/v1/job/list/all?limit=2&cursor={answer.get('next')}"
    assert "next" not in answer
    assert seen == ids[::-1]


async def test_the_categories(fetch: Fetch, world: World) -> None:
    waiting, running, ended = [await post(fetch) for _ in range(3)]
    for job_id in (running, ended):
        await world.launched(await world.manager.get(job_id))
        world.scheduler.set_status(job_id, SchedulerStatus.RUNNING)
    world.scheduler.set_status(ended, SchedulerStatus.COMPLETED)
    await world.until(ended, lambda job: job.is_final)
    for category, expected in {
        "all": [ended, running, waiting],
        "pending": [waiting],
        "running": [running],
        "completed": [ended],
    }.items():
        _, answer, _ = await fetch("GET", f"/api/v1/job/list/{category}")
        assert answer["job_ids"] == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("all?limit=0", 400),
        ("all?limit=1001", 400),
        ("all?limit=-1", 400),
        ("all?limit=ten", 400),
        ("all?limit=%C2%B2", 400),
        ("all?cursor=x", 400),
        ("all?cursor=99999999999999999999", 400),
        ("nothing", 404),
    ],
)
async def test_a_list_that_there_is_not(fetch: Fetch, query: str, expected: int) -> None:
    code, answer, _ = await fetch("GET", f"/api/v1/job/list/{query}")
    assert code == expected
    assert answer["job_ids"] is None


# The monitor's callback --------------------------------------------------------------------------


async def key_of(world: World, job_id: str) -> str:
    return (await world.manager.get(job_id)).monitor_key


async def test_the_callback_says_where_the_job_is_queued(fetch: Fetch, world: World) -> None:
    job_id = await post(fetch)
    key = await key_of(world, job_id)
    for method in ("GET", "POST", "GET"):
        code, answer, _ = await fetch(method, f"/api/v1/monitor/complete?id={key}")
        assert code == 200
        assert answer == {"status": "ok", "msg": "", "cluster_id": 1, "proc_id": 0}
    assert world.queue.submissions == {job_id: 1}


async def test_the_key_may_come_in_the_body(fetch: Fetch, world: World) -> None:
    ids = [await post(fetch), await post(fetch)]
    keys = [await key_of(world, job_id) for job_id in ids]
    code, _, _ = await fetch("POST", "/api/v1/monitor/complete", {"id": keys[0]})
    assert code == 200
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    code, _, _ = await fetch(
        "POST", "/api/v1/monitor/complete", raw=f"id={keys[1]}".encode(), headers=form
    )
    assert code == 200


async def test_a_wrong_key(fetch: Fetch, world: World) -> None:
    job_id = await post(fetch)
    path = "/api/v1/monitor/complete"
    for query, expected in (("", 400), ("?id=", 400), (f"?id={job_id}", 404), ("?id=%C3%BC", 404)):
        code, answer, _ = await fetch("GET", path + query)
        assert code == expected
        assert (answer["cluster_id"], answer["proc_id"]) == (None, None)
    await world.manager.remove(job_id)
    code, answer, _ = await fetch("GET", f"{path}?id={await key_of(world, job_id)}")
    assert (code, answer["status"]) == (409, "error")


async def test_the_servers_own_probe_is_answered_and_launches_nothing(
    fetch: Fetch, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await post(fetch)
    caplog.clear()
    code, answer, _ = await fetch("GET", f"/api/v1/monitor/complete?id={PROBE_KEY}")
    assert (code, answer["cluster_id"]) == (200, None)
    assert not world.queue.submissions
    assert not caplog.records


@pytest.mark.parametrize(
    "path", ["/api/v1/monitor/complete", "//api/v1//monitor/complete", "/api/v1/monitor/c%6fmplete"]
)
@pytest.mark.parametrize("query", ["id={}", "%69d={}", "a=b&id={}&id={}", "id={}#x"])
async def test_keys_do_not_get_into_the_log(
    fetch: Fetch, world: World, path: str, query: str, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = await post(fetch)
    key = await key_of(world, job_id)
    caplog.set_level("DEBUG")
    await fetch("GET", f"{path}?{query.format(key, key)}")
    await eventually(lambda: "tornado.access" in [record.name for record in caplog.records])
    assert "id=[secret_key]" in caplog.text
    assert key not in caplog.text


# The root ----------------------------------------------------------------------------------------


async def test_healthz_and_readyz(fetch: Fetch) -> None:
    assert (await fetch("GET", "/healthz"))[0] == 200
    code, answer, _ = await fetch("GET", "/readyz")
    assert (code, answer["status"]) == (200, "ok")
    assert {check["ok"] for check in answer["checks"].values()} == {True}
    assert all(TIME.fullmatch(check["since"]) for check in answer["checks"].values())
