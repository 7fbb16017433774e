"""A whole server that knows who calls, or says that it does not."""

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from ocps_jobmanager.client import JobManagerClient, RefusedError
from tests.secrets_suite import NAME, TOKEN, USER_INFO, SecretsSuite, tokens_file
from tests.server import ServerProcess, wait_until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    environ = {"OCPS_API_TOKENS": str(tokens_file(tmp_path))}
    with ServerProcess(tmp_path, environ, user_info=USER_INFO) as server:
        yield server


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    return [tmp_path]


class TestSecretsWithLocalScheduler(SecretsSuite):
    """The suite, on this machine alone."""


def test_a_url_with_user_info_is_all_that_plain_requests_needs(server: ServerProcess) -> None:
    assert USER_INFO in server.url
    job_id = server.submit()
    server.data_arrive(job_id)
    job = server.ended(job_id)
    assert (job["owner"], job["exit_code"]) == (NAME, 0)
    bare = server.url.replace(USER_INFO, "")
    assert requests.get(f"{bare}/job/{job_id}", timeout=10).status_code == 401


def test_so_does_an_entry_in_netrc(
    server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = server.url.replace(USER_INFO, "")
    netrc = tmp_path / "netrc"
    netrc.touch(0o600)
    netrc.write_text(f"machine localhost login {NAME} password {TOKEN}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert requests.get(f"{bare}/job/list/all", timeout=10).status_code == 200
    client = JobManagerClient(bare)
    assert client.list()["job_ids"] == []
    client.close()


def test_the_client_takes_the_token_from_its_url(server: ServerProcess) -> None:
    client = JobManagerClient(server.url)
    assert client.list()["job_ids"] == []
    client.close()
    client = JobManagerClient(server.url.replace(TOKEN, f"{TOKEN}x"))
    with pytest.raises(RefusedError, match="token") as refused:
        client.list()
    assert refused.value.status == 401
    assert TOKEN not in str(refused.value)
    client.close()


def test_nothing_is_said_of_everybody_where_tokens_are_set(server: ServerProcess) -> None:
    assert "OCPS_API_TOKENS" not in server.log()


def test_with_tokens_other_addresses_are_listened_on(tmp_path: Path) -> None:
    environ = {"OCPS_API_TOKENS": str(tokens_file(tmp_path)), "OCPS_LISTEN": "0.0.0.0"}
    with ServerProcess(tmp_path, environ, user_info=USER_INFO) as server:
        assert requests.get(f"{server.url}/job/list/all", timeout=10).status_code == 200
        [warning] = [line for line in server.log().splitlines() if " WARNING " in line]
        assert "unencrypted" in warning


def test_without_tokens_the_first_lines_say_who_can_run_jobs(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        first, _, third, *_ = server.log().splitlines()
        assert "Running at" in first
        assert "every user of this host can run jobs as this account" in third


def test_without_tokens_other_addresses_need_leave(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, {"OCPS_LISTEN": "0.0.0.0"})
    assert server.spawn().wait(60) == 2
    [line] = server.log().splitlines()
    assert line.startswith('OCPS_LISTEN is "0.0.0.0": ')
    assert "OCPS_ALLOW_ANONYMOUS=1" in line


def test_with_leave_the_first_lines_say_that_everybody_can_run_jobs(tmp_path: Path) -> None:
    environ = {"OCPS_LISTEN": "0.0.0.0", "OCPS_ALLOW_ANONYMOUS": "1"}
    with ServerProcess(tmp_path, environ) as server:
        assert "everybody who can reach it can run jobs" in server.log().splitlines()[2]
        job_id = server.submit()
        assert server.job(job_id)["owner"] is None


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_token_file_that_others_may_read_stops_the_start(tmp_path: Path, mode: int) -> None:
    path = tokens_file(tmp_path)
    path.chmod(mode)
    server = ServerProcess(tmp_path, {"OCPS_API_TOKENS": str(path)})
    assert server.spawn().wait(60) == 2
    [line] = server.log().splitlines()
    assert line.startswith(f'OCPS_API_TOKENS is "{path}": ')
    assert "0600" in line or "600" in line
    assert TOKEN not in server.log()


def test_a_name_of_the_server_and_of_its_monitors_is_ours(tmp_path: Path) -> None:
    environ = {"OCPS_ALLOWED_HOSTS": "jobs.example.org", "API_DOMAIN": "127.0.0.2"}
    with ServerProcess(tmp_path, environ | {"OCPS_LISTEN": "127.0.0.2"}) as server:
        url = f"{server.url}/job/list/all"
        for host, status in (("jobs.example.org", 200), ("127.0.0.2:1", 200), ("x.org", 421)):
            answer = requests.get(url, headers={"Host": host}, timeout=10)
            assert answer.status_code == status
        wait_until(lambda: server.ready()[0] == 200, "its own probe gets through")


@pytest.mark.parametrize("umask", [0, 0o022])
def test_files_are_private_whatever_the_umask_is(tmp_path: Path, umask: int) -> None:
    environ = {"OCPS_API_TOKENS": str(tokens_file(tmp_path))}
    before = os.umask(umask)
    try:
        with ServerProcess(tmp_path, environ, user_info=USER_INFO) as server:
            waiting, ended = server.submit(), server.submit(THEN="echo heard; echo seen >&2")
            server.data_arrive(ended)
            assert server.ended(ended)["exit_code"] == 0
            wait_until(lambda: waiting in server.monitors(), "a monitor waits")
            state = server.work / "state"
            modes = {path: stat.S_IMODE(path.stat().st_mode) for path in server.work.rglob("*")}
            logs = [path for path in modes if path.is_relative_to(server.work / "logs")]
    finally:
        os.umask(before)
    assert modes[state] == 0o700
    assert {f"{ended}.{kind}" for kind in ("out", "err", "log")} <= {path.name for path in logs}
    for path in logs:
        assert modes[path] & 0o007 == 0, f"{path} is open to the world"
    for path, mode in modes.items():
        if path.parent == state and path.is_file():
            assert mode == 0o600, path
        if path.name == ended:
            assert mode & 0o007 == 0, f"{path} is open to the world"


def test_tokens_are_read_again_on_sighup_and_a_bad_file_changes_nothing(
    server: ServerProcess, tmp_path: Path
) -> None:
    other = TOKEN[::-1]
    bare = server.url.replace(USER_INFO, "")

    def status(token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.get(f"{bare}/job/list/all", headers=headers, timeout=10).status_code

    def reread(said: str) -> None:
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: said in server.log(), "the server says so")

    (tmp_path / "tokens").write_text(f"next:{other}\n{NAME}:{TOKEN}\n{NAME}:short\n")
    reread("The API tokens stay as they were (1 in force): OCPS_API_TOKENS is ")
    assert (status(TOKEN), status(other)) == (200, 401)
    (tmp_path / "tokens").write_text(f"next:{other}\n{NAME}:{TOKEN}\n")
    reread("The API tokens were read again (2 in force).")
    assert (status(TOKEN), status(other)) == (200, 200)
    assert other not in server.log()


def test_an_address_that_is_not_this_machines_is_told_by_its_setting(tmp_path: Path) -> None:
    environ = {"OCPS_LISTEN": "192.0.2.1", "OCPS_ALLOW_ANONYMOUS": "1"}
    server = ServerProcess(tmp_path, environ)
    assert server.spawn().wait(60) == 2
    [line] = server.log().splitlines()
    assert line == 'OCPS_LISTEN is "192.0.2.1": must be an address of this machine.'
