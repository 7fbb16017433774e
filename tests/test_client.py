"""The client: what it asks, what it prints, and how it fails."""

import functools
import json
import random
import re
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from ocps_jobmanager import client as client_module
from ocps_jobmanager.butler import Image, RegistryError, Visit, images, make_registry
from ocps_jobmanager.client import (
    ClientError,
    JobManagerClient,
    NoAnswerError,
    RefusedError,
    choose,
)
from ocps_jobmanager.client_config import ClientConfig, UsageError, url_from
from tests.answering import AnsweringServer, Asked, Reply
from tests.trees import PROJECT

VISIT = Visit(
    number=421907,
    filter="g",
    time_observed="2015-03-14T04:11:37.204518",
    exposure_time_s=90.0,
    proposal="2015A-0000",
    object="field 1",
    ccds=(1, 2, 3, 4, 5, 6),
)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository whose path means something in a URI and in a configuration."""
    repo = tmp_path / "r ?a=1#b%41: x"
    repo.mkdir()
    make_registry(repo / "registry.sqlite3", [VISIT])
    return repo


@pytest.fixture
def config_file(repo: Path) -> Path:
    file = repo.parent / "config.yaml"
    sections = {
        "data": {
            "repo": f"{repo}/",
            "template": f"{repo}/templates/",
            "db": f"{repo}/registry.sqlite3",
            "calib": "/datasets/calib/",
            "filter": "g",
        },
        "job": {"output_dir": "./output", "log_dir": "./logs"},
    }
    file.write_text(yaml.safe_dump(sections))
    return file


def change(config_file: Path, section: str, **changes: object) -> None:
    """Change entries of a configuration; None removes one."""
    sections = yaml.safe_load(config_file.read_text())
    sections[section] |= changes
    sections[section] = {k: v for k, v in sections[section].items() if v is not None}
    config_file.write_text(yaml.safe_dump(sections))


def job_info(job_id: str, state: str, **more: object) -> dict[str, Any]:
    """As much of a job as is looked at."""
    phases = {"waiting": "pending", "completed": "completed", "failed": "error"}
    info = {"job_id": job_id, "state": state, "phase": phases[state], "reason": None}
    info |= {"cluster_id": None, "proc_id": None, "exit_code": None, "exit_signal": None}
    return info | more


class FakeJobManager:
    """Accepts every job and numbers it; what `GET /job` shows is told by the test."""

    def __init__(self) -> None:
        self.count = 0
        self.show: Callable[[str], dict[str, Any]] = lambda job_id: job_info(job_id, "waiting")

    def __call__(self, asked: Asked) -> Reply:
        if asked.method == "POST":
            self.count += 1
            job_id = f"{self.count:032x}"
            answer = {"status": "ok", "msg": "", "job_id": job_id, "cluster_id": None}
            return Reply(answer)
        job_id = asked.path.partition("id=")[2]
        return Reply({"status": "ok", "msg": "", "job": self.show(job_id)})


@pytest.fixture
def job_manager() -> FakeJobManager:
    return FakeJobManager()


@pytest.fixture
def server(job_manager: FakeJobManager) -> Iterator[AnsweringServer]:
    with AnsweringServer(job_manager) as server:
        yield server


@pytest.fixture
def main(config_file: Path, server: AnsweringServer, monkeypatch: pytest.MonkeyPatch):
    """Runs the program with a configuration and a server that are in order."""
    at_once = functools.partial(JobManagerClient, sleep=lambda _: None)
    monkeypatch.setattr(client_module, "JobManagerClient", at_once)

    def run(*arguments: str) -> int:
        given = ["--config", str(config_file), "--url", server.url]
        return client_module.main([*given, *arguments])

    return run


# What it asks and prints


def test_each_post_is_what_the_first_version_sent(main, server: AnsweringServer, repo) -> None:
    assert main() == 0
    assert [(asked.method, asked.path) for asked in server.asked] == [("POST", "/api/v1/job")] * 4
    ccds = [asked.body["env"].pop("AP_CCD_NUM") for asked in server.asked]
    assert set(ccds) <= set(VISIT.ccds)
    assert len(set(ccds)) == 4
    assert all(
        asked.body
        == {
            "type": "ap",
            "env": {
                "AP_JOB_OUTPUT_DIR": "./output",
                "AP_VISIT_ID": 421907,
                "AP_REPO": f"{repo}/",
                "AP_TEMPLATE": f"{repo}/templates/",
                "AP_CALIB": "/datasets/calib/",
                "AP_FILTER": "g",
            },
            "log_dir": "./logs",
        }
        for asked in server.asked
    )


def test_each_answer_is_printed_as_the_first_version_did(main, capsys) -> None:
    main("--count", "2")
    printed = capsys.readouterr()
    assert printed.err == ""
    assert re.sub(r"ccd \d", "ccd N", printed.out) == "".join(
        "Image of filter g: visit 421907, ccd N\n"
        "POST /api/v1/job : \n"
        "{\n"
        '  "status": "ok",\n'
        '  "msg": "",\n'
        f'  "job_id": "{number:032x}",\n'
        '  "cluster_id": null\n'
        "}\n"
        for number in (1, 2)
    )


def test_count_and_type_are_the_callers(main, server: AnsweringServer) -> None:
    main("--count", "3", "--type", "inspect")
    assert [asked.body["type"] for asked in server.asked] == ["inspect"] * 3


def test_a_seed_picks_the_same_images_again(main, server: AnsweringServer) -> None:
    for _ in range(2):
        main("--seed", "7")
    bodies = [asked.body for asked in server.asked]
    assert bodies[:4] == bodies[4:]


def test_images_differ_as_long_as_there_are_any() -> None:
    available = [Image(visit=1, ccd=ccd) for ccd in range(5)]
    chosen = choose(available, 12, random.Random(1))
    assert len(chosen) == 12
    assert set(chosen[:5]) == set(chosen[5:10]) == set(available)
    assert len(set(chosen[10:])) == 2


def test_without_wait_nothing_is_asked_after_the_posts(main, server: AnsweringServer) -> None:
    main()
    assert {asked.method for asked in server.asked} == {"POST"}


# --wait


def test_wait_shows_each_change_once_and_ends_when_all_have_ended(
    main, job_manager: FakeJobManager, capsys
) -> None:
    looks: dict[str, int] = {}

    def show(job_id: str) -> dict[str, Any]:
        looks[job_id] = looks.get(job_id, 0) + 1
        if looks[job_id] < 3 * int(job_id, 16):
            return job_info(job_id, "waiting")
        ids = {"cluster_id": int(job_id, 16), "proc_id": 0}
        return job_info(job_id, "completed", phase="completed", exit_code=0, **ids)

    job_manager.show = show
    assert main("--count", "2", "--wait") == 0
    lines = [line[10:] for line in capsys.readouterr().out.splitlines() if line[2:3] == ":"]
    one, two = f"{1:032x}", f"{2:032x}"
    assert lines == [
        f"{one}  waiting",
        f"{two}  waiting",
        f"{one}  1.0  completed, exit code 0",
        f"{two}  2.0  completed, exit code 0",
    ]
    assert looks == {one: 3, two: 6}


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (job_info("", "completed", phase="error", exit_code=3), "completed, exit code 3"),
        (job_info("", "completed", phase="error", exit_signal=9), "completed, signal 9"),
        (job_info("", "failed", reason="No such thing."), "failed: No such thing."),
    ],
)
def test_wait_fails_if_a_job_did(
    main, job_manager: FakeJobManager, capsys, job: dict[str, Any], words: str
) -> None:
    good = job_info("", "completed", phase="completed", exit_code=0)
    bad_id = f"{2:032x}"
    job_manager.show = lambda job_id: (job if job_id == bad_id else good) | {"job_id": job_id}
    assert main("--count", "2", "--wait") == 1
    printed = capsys.readouterr()
    assert f"{bad_id}  {words}\n" in printed.out
    assert printed.err == f"Not successful: {bad_id}\n"


def test_a_restart_of_the_server_is_waited_out(capsys, main, job_manager, monkeypatch) -> None:
    done = [job_info("", "waiting"), None, None, job_info("", "completed", exit_code=0)]

    def ask(self, method: str, path: str, key: str, **more: Any) -> dict[str, Any]:
        if method == "GET" and done.pop(0) is None:
            raise NoAnswerError("The Job Manager at its URL can't be reached.")
        return real_ask(self, method, path, key, **more)

    def show(job_id: str) -> dict[str, Any]:
        return job_info(job_id, *(("completed",) if not done else ("waiting",)))

    job_manager.show = show
    real_ask = JobManagerClient._ask
    monkeypatch.setattr(JobManagerClient, "_ask", ask)
    assert main("--count", "1", "--wait") == 0
    lines = [line[10:] for line in capsys.readouterr().out.splitlines() if line[2:3] == ":"]
    assert lines == [
        f"{1:032x}  waiting",
        "The Job Manager at its URL can't be reached. Waiting for it.",
        "The Job Manager answers again.",
        f"{1:032x}  completed",
    ]


class Clock:
    """Time passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_a_server_that_stays_away_is_waited_for_no_longer_than_said() -> None:
    clock = Clock()
    url = f"http://127.0.0.1:{free_port()}/api/v1"
    client = JobManagerClient(url, sleep=clock.sleep, clock=clock)
    with pytest.raises(NoAnswerError, match="connection refused"), closing(client):
        client.wait(["x"], interval_s=1.0, patience_s=60.0)
    assert clock.now == 60.0


def test_a_job_that_nobody_knows_is_not_waited_for() -> None:
    unknown = Reply({"status": "error", "msg": 'There is no job "x".', "job": None}, 404)
    with (
        AnsweringServer(lambda _: unknown) as server,
        closing(JobManagerClient(server.url)) as jm,
        pytest.raises(RefusedError, match=r'The Job Manager says: There is no job "x"\.'),
    ):
        jm.wait(["x"])


# The other requests


@pytest.mark.parametrize(
    ("call", "method", "path"),
    [
        (lambda jm: jm.job("a b/c"), "GET", "/api/v1/job?id=a+b%2Fc"),
        (lambda jm: jm.uws("a b/c"), "GET", "/api/v1/job/a%20b%2Fc"),
        (lambda jm: jm.remove("1f"), "DELETE", "/api/v1/job/1f"),
        (lambda jm: jm.list("pending"), "GET", "/api/v1/job/list/pending"),
        (
            lambda jm: jm.list(limit=5, cursor="a b"),
            "GET",
            "/api/v1/job/list/all?limit=5&cursor=a+b",
        ),
    ],
)
def test_each_method_is_one_request(call, method: str, path: str) -> None:
    answer = Reply({"job": {}, "jobId": "", "job_ids": ["1"], "phase": "pending"})
    with AnsweringServer(lambda _: answer) as server, closing(JobManagerClient(server.url)) as jm:
        call(jm)
        assert server.asked == [Asked(method, path, None)]


def test_a_label_is_sent_if_there_is_one(server: AnsweringServer) -> None:
    with closing(JobManagerClient(server.url)) as jm:
        jm.submit("ap", {"A": 1.5}, "logs", run_id="41")
        jm.submit("ap", {"A": 1.5}, "logs")
    body = {"type": "ap", "env": {"A": 1.5}, "log_dir": "logs"}
    assert [asked.body for asked in server.asked] == [body | {"run_id": "41"}, body]


def test_a_list_says_where_it_goes_on() -> None:
    pages = [Reply({"job_ids": ["2"], "next": "c"}), Reply({"job_ids": ["1"]})]
    answer = AnsweringServer(lambda _: pages.pop(0))
    with answer as server, closing(JobManagerClient(server.url)) as jm:
        assert jm.list() == {"job_ids": ["2"], "next": "c"}
        assert jm.list() == {"job_ids": ["1"], "next": None}


def test_a_proxy_is_not_asked_for_what_is_on_this_machine(
    server: AnsweringServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with closing(JobManagerClient(server.url)) as jm:
        assert jm.job("1")["state"] == "waiting"


# How it fails: one line on standard error, exit status 1 or 2


def error_line(capsys) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error.strip()


def test_a_server_that_is_away(main, capsys) -> None:
    url = f"http://localhost:{free_port()}/api/v1"
    assert main("--url", url) == 1
    expected = f"The Job Manager at {url} can't be reached (connection refused): does it run?"
    assert error_line(capsys) == expected


def test_a_server_that_hangs_up(config_file: Path, capsys) -> None:
    with AnsweringServer(lambda _: Reply()) as server:
        assert client_module.main(["--config", str(config_file), "--url", server.url]) == 1
    assert "can't be reached (" in error_line(capsys)


def test_a_server_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api/v1"
        expected = pytest.raises(NoAnswerError, match=r"has not answered in time \(0\.1 s\)\.$")
        with closing(JobManagerClient(url, timeout_s=0.1)) as jm, expected:
            jm.job("1")


def test_a_submission_that_is_refused_is_shown_and_ends_it(config_file: Path, capsys) -> None:
    body = {"status": "error", "msg": 'type "ap" is unknown.', "job_id": None, "cluster_id": None}
    with AnsweringServer(lambda _: Reply(body, 400)) as server:
        assert client_module.main(["--config", str(config_file), "--url", server.url]) == 1
        assert len(server.asked) == 1
    printed = capsys.readouterr()
    assert printed.out.endswith(f"POST /api/v1/job : \n{json.dumps(body, indent=2)}\n")
    assert printed.err == 'The Job Manager says: type "ap" is unknown.\n'


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (Reply({"msg": "The disk is full."}, 503), NoAnswerError, "serve now: The disk is full."),
        (Reply("<html>Bad Gateway</html>", 502), NoAnswerError, "serve now: HTTP status 502"),
        (Reply({"message": "Slowly."}, 429), NoAnswerError, "serve now: Slowly."),
        (Reply("<html>hello</html>"), ClientError, "not a Job Manager (HTTP status 200)."),
        (Reply(["job"]), ClientError, "not a Job Manager (HTTP status 200)."),
        (Reply({"hello": 1}), ClientError, "not a Job Manager (HTTP status 200)."),
        (Reply({"error": "?"}, 404), ClientError, "not a Job Manager (HTTP status 404)."),
        (
            Reply({}, 301, {"Location": "https://other/api"}),
            ClientError,
            "(HTTP status 301, redirects to https://other/api).",
        ),
    ],
)
def test_answers_that_are_no_use(reply: Reply, kind: type[ClientError], words: str) -> None:
    with AnsweringServer(lambda _: reply) as server, closing(JobManagerClient(server.url)) as jm:
        with pytest.raises(ClientError) as caught:
            jm.job("1")
        assert len(server.asked) == 1
    assert type(caught.value) is kind
    assert str(caught.value).endswith(words)


@pytest.mark.parametrize(
    "url", ["nonsense", "ftp://localhost/api", "http://[::1/api", "http:///api", "http://a:x/api"]
)
def test_a_url_that_is_none(main, capsys, url: str) -> None:
    assert main("--url", url) == 2
    expected = f"{url} is not a Job Manager's URL: one is such as http://localhost:8080/api/v1."
    assert error_line(capsys) == expected


@pytest.mark.parametrize("arguments", [["--count", "0"], ["--count", "x"], ["--colour", "red"]])
def test_arguments_that_cannot_be_used(main, capsys, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(*arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


# The configuration


def test_the_example_is_the_first_versions() -> None:
    example = ClientConfig.read(PROJECT / "config.example.yaml")
    assert example.model_dump() == {
        "data": {
            "repo": "/datasets/des_sn/repo_Y3/",
            "template": "/datasets/des_sn/repo_Y3/templates/",
            "db": "/datasets/des_sn/repo_Y3/registry.sqlite3",
            "calib": "/datasets/des_sn/calib/",
            "filter": "g",
        },
        "job": {"output_dir": "./output", "log_dir": "./logs"},
    }


def test_relative_paths_of_the_data_are_relative_to_the_file(config_file: Path) -> None:
    change(config_file, "data", repo="repo/", db="repo/registry.sqlite3", calib="~/calib")
    data = ClientConfig.read(config_file).data
    assert data.repo == f"{config_file.parent}/repo/"
    assert data.db == f"{config_file.parent}/repo/registry.sqlite3"
    assert data.calib == str(Path("~/calib").expanduser())


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("data", {"filter": None}, "data.filter is missing."),
        ("data", {"filter": 5}, "data.filter must be text."),
        ("data", {"repo": ""}, "data.repo must be text."),
        (
            "data",
            {"calibs": "x", "db": None},
            'data.db is missing; data.calibs is not known; did you mean "calib"?.',
        ),
        ("job", {"log_dir": []}, "job.log_dir must be text."),
    ],
)
def test_a_configuration_with_mistakes(
    main, capsys, config_file: Path, section: str, changes: dict[str, object], words: str
) -> None:
    change(config_file, section, **changes)
    assert main() == 2
    assert error_line(capsys) == f"{config_file}: {words}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"data:\n  a: [\n", ", line 3 is not YAML."),
        (b"\xff\xfe\xff", " is not YAML."),
        (b"", ": the whole must be a section with names and values."),
        (b"- data\n", ": the whole must be a section with names and values."),
        (b"data: 5\n", ": data must be a section with names and values."),
    ],
)
def test_a_configuration_that_is_none(
    main, capsys, config_file: Path, content: bytes, words: str
) -> None:
    config_file.write_bytes(content)
    assert main() == 2
    assert error_line(capsys) == f"{config_file}{words}"


def test_a_configuration_that_is_missing(main, capsys, config_file: Path) -> None:
    config_file.unlink()
    assert main() == 2
    assert error_line(capsys).startswith(f"There is no {config_file}: copy config.example.yaml")


def test_the_url_is_made_of_the_servers_settings() -> None:
    assert url_from({}) == "http://localhost:8080/api/v1"
    settings = {"API_PROTOCOL": "https", "API_DOMAIN": "jobs.example", "API_PORT": "99"}
    assert url_from({**settings, "API_BASEPATH": "x/"}) == "https://jobs.example:99/x"
    assert url_from({"OCPS_SCHEDULER": "nonsense"}) == "http://localhost:8080/api/v1"


@pytest.mark.parametrize("port", ["0", "x"])
def test_settings_that_make_no_url(port: str) -> None:
    with pytest.raises(UsageError, match="API_PORT") as caught:
        url_from({"API_PORT": port})
    assert "\n" not in str(caught.value)


# The registry


def alter(repo: Path, statement: str) -> None:
    with closing(sqlite3.connect(repo / "registry.sqlite3")) as connection, connection:
        connection.execute(statement)


def test_all_images_of_the_filter_and_no_others(repo: Path) -> None:
    alter(repo, "UPDATE raw SET filter = 'r' WHERE ccd > 4")
    found = images(repo / "registry.sqlite3", "g")
    assert found == [Image(visit=421907, ccd=ccd) for ccd in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE raw SET ccd = 9 WHERE id = 5", "visit 421907, ccd 9, ccdnum 5;"),
        ("UPDATE raw SET ccd = NULL WHERE id = 5", "visit 421907, ccd None, ccdnum 5;"),
        ("UPDATE raw SET visit = NULL WHERE id = 5", "visit None, ccd 5, ccdnum 5;"),
    ],
)
def test_a_row_whose_ccd_is_in_doubt_is_named_and_nothing_is_submitted(
    main, capsys, repo: Path, server: AnsweringServer, statement: str, row: str
) -> None:
    alter(repo, statement)
    assert main() == 2
    line = error_line(capsys)
    assert line.startswith(f"Row 5 of the table raw in {repo}/registry.sqlite3 ")
    assert row in line
    assert server.asked == []


def test_a_filter_without_images(main, capsys, config_file: Path, repo: Path) -> None:
    change(config_file, "data", filter="z")
    assert main() == 2
    expected = f'The registry {repo}/registry.sqlite3 has no image in the filter "z".'
    assert error_line(capsys) == expected


def test_a_registry_that_is_missing_is_not_made(main, capsys, repo: Path) -> None:
    registry = repo / "registry.sqlite3"
    registry.unlink()
    assert main() == 2
    assert error_line(capsys) == f"There is no registry {registry}."
    assert not registry.exists()


def test_a_registry_that_is_none(main, capsys, repo: Path) -> None:
    registry = repo / "registry.sqlite3"
    registry.write_text("x" * 4096)
    assert main() == 2
    assert error_line(capsys).startswith(f"The registry {registry} can't be read: ")


def test_a_registry_is_never_overwritten(repo: Path) -> None:
    with pytest.raises(FileExistsError):
        make_registry(repo / "registry.sqlite3", [VISIT])
    with pytest.raises(RegistryError):
        images(repo / "registry.sqlite3", "z")


TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    "url",
    [
        f"http://csc:{TOKEN}@localhost:1/api/v1",
        f"http://csc:{TOKEN}@localhost:1",
        f"http://csc:{TOKEN}@",
        f"http://csc:{TOKEN}@x:99999/",
        f"http://csc:{TOKEN}@[/",
        f"ftp://csc:{TOKEN}@localhost/",
        f"csc:{TOKEN}@localhost:8080",
        f"http://a@b:{TOKEN}@localhost:1",
        f"http://csc:{TOKEN}@a\nb/",
        f"http://csc:{TOKEN}@{'x' * 300}/",
    ],
)
def test_a_token_in_the_url_is_in_no_message(url: str) -> None:
    with pytest.raises((ValueError, ClientError)) as failed:
        JobManagerClient(url, timeout_s=5).list()
    assert TOKEN not in str(failed.value)


def test_the_clients_url_is_without_the_token() -> None:
    client = JobManagerClient(f"https://csc:{TOKEN}@jobs.example:99/api/v1/")
    assert client.url == "https://jobs.example:99/api/v1"
    assert client.base_path == "/api/v1"
    client.close()
