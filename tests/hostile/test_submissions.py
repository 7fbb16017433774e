"""Submissions that mean harm: names, paths, links. Nothing leaves its place."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.hostile import names
from tests.hostile.conftest import check_log
from tests.server import ServerProcess


def submit(server: ServerProcess, **changes: Any) -> requests.Response:
    env = {"LEDGER": str(server.ledger), "THEN": "true"}
    body = {"type": "ledger", "env": env, "log_dir": "logs", **changes}
    return requests.post(f"{server.url}/job", json=body, timeout=30)


def everything_in(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


@pytest.mark.parametrize(
    "log_dir",
    [
        "",
        ".",
        "..",
        "/",
        "../..",
        "logs/..",
        "logs/../..",
        "logs/../state",
        "logs/../output/x",
        "./logs/../code",
        "/etc",
        "/etc/../tmp",
        "//etc",
        "/proc/self/cwd",
        "/proc/self/fd/3",
        "/dev/fd/0",
        "/dev/shm/x",
        "~",
        "~/logs",
        "$HOME",
        "file:///tmp",
        "logs\0/../../etc",
        "logs\n",
        "logs\r\nX: y",
        "logs\x1f",
        "logs\ud800",
        "a" * 300,
        "logs/" + "a" * 300,
        "logs/" + "a/" * 3000,
        "logs" + "/../logs" * 500 + "/../..",
        "state",
        "output",
        "code/x",
        "logsx",
        "LOGS",
        "logs/../logs/../../work/state",
    ],
    ids=lambda text: ascii(text[:30]),
)
def test_a_log_dir_out_of_its_place_is_refused_and_nothing_is_made(
    server: ServerProcess, log_dir: str
) -> None:
    before = everything_in(server.work.parent)
    answer = submit(server, log_dir=log_dir)
    assert answer.status_code == 400, answer.text
    assert {error["field"] for error in answer.json()["errors"]} == {"log_dir"}
    assert str(server.work) not in answer.text
    assert everything_in(server.work.parent) - before <= {"work/logs"}


@pytest.mark.parametrize(
    "log_dir",
    ["logs/$(HOME)", "logs/`id`", "logs/a b", "logs/ü", "logs/-rf", "logs/a;b", "logs/%2e%2e",
     "logs/..\\..", "logs/*", "logs/'\"", "logs/./a//b/", "logs/\u202e", "logs/a\tb"],
    ids=ascii,
)  # fmt: skip
def test_an_odd_name_of_a_log_dir_is_just_a_name(server: ServerProcess, log_dir: str) -> None:
    job_id = server.submit("dump", DUMP="/dev/null", A="1", B="2")
    server.ended(job_id)
    answer = submit(server, log_dir=log_dir)
    assert answer.status_code == 200, answer.text
    job = server.job(answer.json()["job_id"])
    assert Path(job["log_dir"]) == Path(os.path.normpath(server.work / log_dir))
    server.data_arrive(job["job_id"])
    assert server.ended(job["job_id"])["exit_code"] == 0
    assert Path(job["logs"]["out"]).exists()


def test_links_under_the_log_root_lead_nowhere(server: ServerProcess, outside: Path) -> None:
    logs = server.work / "logs"
    logs.mkdir(exist_ok=True)
    for number, target in enumerate(
        (outside, outside / "new", server.work / "state", Path("/etc"), Path("/proc/self/fd"))
    ):
        link = logs / f"link{number}"
        link.symlink_to(target)
        for log_dir in (f"logs/{link.name}", f"logs/{link.name}/below"):
            answer = submit(server, log_dir=log_dir)
            assert answer.status_code == 400
            assert str(outside) not in answer.text
    (logs / "loop").symlink_to("loop")
    assert submit(server, log_dir="logs/loop").status_code == 400
    assert everything_in(outside) == {"secret"}


def test_a_link_that_is_put_there_later_ends_the_job_not_the_server(
    server: ServerProcess, outside: Path
) -> None:
    answer = submit(server, log_dir="logs/swapped")
    job_id = answer.json()["job_id"]
    (server.work / "logs" / "swapped").rmdir()
    (server.work / "logs" / "swapped").symlink_to(outside)
    server.data_arrive(job_id)
    job = server.ended(job_id)
    assert (job["state"], job["phase"]) == ("failed", "error")
    assert "log directory" in job["reason"]
    assert everything_in(outside) == {"secret"}
    assert job_id not in server.runs()


def test_a_link_in_place_of_a_log_file_is_not_written_through(
    server: ServerProcess, outside: Path
) -> None:
    job_id = submit(server, log_dir="logs/files").json()["job_id"]
    for kind in ("out", "err", "log"):
        (server.work / "logs" / "files" / f"{job_id}.{kind}").symlink_to(outside / "secret")
    server.data_arrive(job_id)
    assert server.ended(job_id)["state"] == "failed"
    assert (outside / "secret").read_text() == "secret"


@pytest.mark.parametrize(
    "job_type",
    ["__class__", "__init__", "keys", "get", "../ledger", "ledger\0", "ledger ", "LEDGER", "",
     "None", "constructor", "jobs/ledger.sh", "ledger.sh", "a" * 10_000, "$(id)", "{0}", "%s"],
    ids=lambda text: ascii(text[:20]),
)  # fmt: skip
def test_a_type_that_is_not_declared_is_none(server: ServerProcess, job_type: str) -> None:
    answer = submit(server, type=job_type)
    assert answer.status_code == 400
    assert "; known: ledger, " in answer.json()["msg"]
    assert len(answer.text) < 1000


@pytest.mark.parametrize(
    "name",
    ["__class__", "LD_PRELOAD", "PATH", "JOB_ID", "OCPS_API_TOKENS", "BASH_ENV", "A=B", "", " ",
     "THEN ", "then", "\0", "a\nb", "BASH_FUNC_x%%", "ClusterId", "TARGET.x", "{0}"],
    ids=ascii,
)  # fmt: skip
def test_a_variable_that_is_not_declared_does_not_get_in(server: ServerProcess, name: str) -> None:
    env = {"LEDGER": str(server.ledger), "THEN": "true", name: "x"}
    answer = submit(server, env=env)
    assert answer.status_code == 400
    [error] = answer.json()["errors"]
    assert error["field"].startswith("env.")


@pytest.mark.parametrize(
    "run_id", ["", "a" * 64, "a\nb", "\0", "\x1b[2J", "\u202e", "\ud800", 5, None, [], {}],
    ids=lambda value: ascii(value)[:20],
)  # fmt: skip
def test_a_run_id_is_a_short_label(server: ServerProcess, run_id: object) -> None:
    answer = submit(server, run_id=run_id)
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == ["run_id"]


# Names that mean something elsewhere -------------------------------------------------------------


@pytest.fixture
def odd_server(tmp_path: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path)
    names.declare(server)
    with server:
        yield server
        check_log(server)


def test_types_and_variables_may_be_named_like_anything(
    odd_server: ServerProcess,
) -> None:
    given = [names.environment(number) for number in range(len(names.TYPES))]
    ids = []
    for job_type, env in zip(names.TYPES, given, strict=True):
        answer = submit(odd_server, type=job_type, env=env)
        assert answer.status_code == 200, answer.text
        ids.append(answer.json()["job_id"])
    for job_id, job_type, env in zip(ids, names.TYPES, given, strict=True):
        job = odd_server.ended(job_id)
        assert (job["type"], job["env"]) == (job_type, env)
        names.check_reached(job, env)
