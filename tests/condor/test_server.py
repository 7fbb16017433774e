"""The whole server against a real pool: the suite, outages of the schedd, the demonstration."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.condor import by_hand
from tests.condor.pool import Pool
from tests.server import PROJECT, ServerProcess, alive, children_of, wait_until
from tests.server_suite import UNTIL_FILE, ServerSuite

#: How long the schedd is stopped; longer than every deadline of a call but the history's.
OUTAGE_S = float(os.environ.get("OCPS_TEST_OUTAGE_S", "60"))


def _environ(pool: Pool, **more: str) -> dict[str, str]:
    return {
        "OCPS_SCHEDULER": "htcondor",
        "CONDOR_CONFIG": str(pool.config),
        "A_SECRET_OF_THE_SERVER": "x",
        **more,
    }


@pytest.fixture
def server(pool: Pool, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path, _environ(pool)) as server:
        yield server


class TestServerWithPool(ServerSuite):
    """The suite, on the pool."""


def clusters_of(pool: Pool, job_id: str) -> set[tuple[int, int]]:
    """Every cluster and proc that carries a job's id, in the queue or the history."""
    found = set()
    for tool in ("queue", "history"):
        program = (
            "import htcondor2, json, sys\n"
            "schedd = htcondor2.Schedd(htcondor2.Collector(htcondor2.param['COLLECTOR_HOST'])"
            ".locate(htcondor2.DaemonType.Schedd))\n"
            "ask = {'queue': schedd.query, 'history': schedd.history}[sys.argv[1]]\n"
            "ads = ask(f'OcpsJobId =?= \"{sys.argv[2]}\"', projection=['ClusterId', 'ProcId'])\n"
            "print(json.dumps([[ad['ClusterId'], ad['ProcId']] for ad in ads]))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, tool, job_id],
            env={**os.environ, "CONDOR_CONFIG": str(pool.config)},
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        found |= {(cluster, proc) for cluster, proc in json.loads(done.stdout)}
    return found


@pytest.mark.timeout(300)
def test_an_outage_is_not_a_failure(pool: Pool, server: ServerProcess) -> None:
    """Jobs arrive and are launched; nothing fails or is slow; each runs once when it is over."""
    before = [server.submit() for _ in range(3)]
    slowest = 0.0
    during = []

    def timed(what: str, **request: Any) -> requests.Response:
        nonlocal slowest
        started = time.monotonic()
        answer = requests.request(what, timeout=30, **request)
        slowest = max(slowest, time.monotonic() - started)
        return answer

    pool.stop_schedd()
    try:
        ends = time.monotonic() + OUTAGE_S
        for job_id in before:
            server.data_arrive(job_id)
        seen_unready = ""
        while time.monotonic() < ends:
            if len(during) < 20:
                env = {"LEDGER": str(server.ledger), "THEN": "true"}
                body = {"type": "ledger", "env": env, "log_dir": "logs"}
                posted = timed("POST", url=f"{server.url}/job", json=body)
                assert posted.status_code == 200
                during.append(posted.json()["job_id"])
                server.data_arrive(during[-1])
            for job_id in (before[0], during[-1]):
                assert timed("GET", url=f"{server.url}/job/{job_id}").status_code == 200
                phase = timed("GET", url=f"{server.url}/job/{job_id}").json()["phase"]
                assert phase in {"pending", "queued"}
            ready = timed("GET", url=f"{server.root}/readyz")
            if ready.status_code == 503:
                seen_unready = ready.json()["checks"]["scheduler"]["detail"]
            time.sleep(0.5)
        assert ready.status_code == 503
        assert seen_unready
        assert timed("DELETE", url=f"{server.url}/job/{during[-1]}").status_code == 200
    finally:
        pool.continue_schedd()
    assert slowest < 1.0
    for job_id in before + during[:-1]:
        job = server.ended(job_id)
        assert (job["state"], job["exit_code"]) == ("completed", 0), job
        assert len(clusters_of(pool, job_id)) == 1
    assert server.ended(during[-1])["state"] == "removed"
    assert sorted(set(server.runs()) - {during[-1]}) == sorted(before + during[:-1])
    assert len(server.runs()) == len(set(server.runs()))
    wait_until(lambda: server.ready()[0] == 200, "the server is ready again")


@pytest.mark.timeout(300)
def test_killed_while_submit_hangs_in_a_stopped_schedd(pool: Pool, server: ServerProcess) -> None:
    ids = [server.submit() for _ in range(5)]
    for job_id in ids:
        wait_until(lambda job_id=job_id: job_id in server.monitors(), "monitors wait")
    children = [pid for pid, argv in server.children().items() if "condor_worker" in str(argv)]
    assert children
    pool.stop_schedd()
    try:
        for job_id in ids:
            server.data_arrive(job_id)
        for job_id in ids:
            server.until(job_id, "submitting")
        time.sleep(2)  # the call is under way, or waits behind a query that is
        server.kill()
        wait_until(lambda: not any(alive(pid) for pid in children), "the children died with it")
        server.start()
        for job_id in ids:
            assert server.job(job_id)["state"] == "submitting"
    finally:
        pool.continue_schedd()
    for job_id in ids:
        job = server.ended(job_id)
        assert (job["state"], job["exit_code"]) == ("completed", 0), job
        assert len(clusters_of(pool, job_id)) == 1
    assert sorted(server.runs()) == sorted(ids)


@pytest.mark.timeout(300)
def test_killed_schedd_and_children(pool: Pool, server: ServerProcess, tmp_path: Path) -> None:
    go = tmp_path / "go"
    ids = [server.submit(THEN=UNTIL_FILE.format(go)) for _ in range(3)]
    for job_id in ids:
        server.data_arrive(job_id)
    for job_id in ids:
        server.until(job_id, "running")
    for pid, argv in server.children().items():
        if "condor_worker" in str(argv):
            os.kill(pid, signal.SIGKILL)
    pool.kill_schedd()
    late = server.submit()
    server.data_arrive(late)
    go.touch()
    for job_id in (*ids, late):
        job = server.ended(job_id)
        assert (job["state"], job["exit_code"]) == ("completed", 0), job
        assert len(clusters_of(pool, job_id)) == 1


def test_a_job_that_somebody_holds_is_ended_after_its_limit(
    pool: Pool, server: ServerProcess, tmp_path: Path
) -> None:
    then = UNTIL_FILE.format(tmp_path / "never")
    job_id = server.submit("short-hold", THEN=then)
    server.until(job_id, "running")
    asyncio.run(by_hand.act(pool, "Hold", job_id, "look at this first"))
    job = server.ended(job_id)
    assert (job["state"], job["phase"]) == ("failed", "error")
    why = "It was held for 2 s (hold_limit) and was ended: "
    assert job["reason"].startswith(why)
    assert "look at this first" in job["reason"]
    assert "held" in [event["state"] for event in job["history"]]
    answer = requests.get(f"{server.url}/job/{job_id}", timeout=10).json()
    assert answer["errorSummary"]["message"] == job["reason"]


def test_no_value_is_a_submit_command_and_the_schedd_stays_up(
    pool: Pool, server: ServerProcess
) -> None:
    schedd = pool.schedd_pid()
    for value in ("$$(NoSuchThing)", "x +Injected=1", "queue 5", "#x", ")", "\\", "z\\\\"):
        dump = server.home / "dump"
        job = server.ended(server.submit("dump", DUMP=str(dump), A=value, B=value))
        assert job["exit_code"] == 0
        found = dict(item.split(b"=", 1) for item in dump.read_bytes().split(b"\0"))
        assert (found[b"A"], found[b"B"]) == (value.encode(), value.encode())
    assert pool.schedd_pid() == schedd


# The seed's demonstration ------------------------------------------------------------------------


def _registry(repo: Path) -> None:
    """A Butler registry with the DECam schema; a real one where OCPS_TEST_REGISTRY names it."""
    repo.mkdir()
    if real := os.environ.get("OCPS_TEST_REGISTRY"):
        shutil.copy(real, repo / "registry.sqlite3")
        return
    with contextlib.closing(sqlite3.connect(repo / "registry.sqlite3")) as registry:
        registry.execute(
            "CREATE TABLE raw (id integer primary key autoincrement, visit int, filter text, "
            "date text, taiObs text, expTime double, ccdnum int, ccd int, hdu int, instcal text, "
            "dqmask text, wtmap text, proposal text, object text, unique(visit, ccdnum))"
        )
        registry.executemany(
            "INSERT INTO raw (visit, filter, date, taiObs, expTime, ccdnum, ccd, hdu) "
            "VALUES (413635, 'g', '2015-02-24', '2015-02-24T02:39:58.686289', 86.0, ?, ?, ?)",
            [(ccd, ccd, ccd) for ccd in range(1, 62)],
        )
        registry.commit()


@pytest.fixture
def demonstration(pool: Pool, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server with the job types of the project, as the README starts it."""
    stack = tmp_path / "stack"
    stack.mkdir()
    for name in ("make_apdb.py", "ap_pipe.py"):
        # What the LSST stack would bring: here they say how they were called.
        (stack / name).write_text('#!/bin/bash\necho "$(basename "$0") $*"\n')
        (stack / name).chmod(0o755)
    (tmp_path / "setup.sh").write_text(f'export PATH="{stack}:$PATH"\n')
    environ = _environ(
        pool,
        OCPS_JOB_SPECS=str(PROJECT / "jobs" / "job_specs.yaml"),
        OCPS_STACK_SETUP=str(tmp_path / "setup.sh"),
        OCPS_POLL_INTERVAL="1",
    )
    with ServerProcess(tmp_path, environ) as server:
        yield server


def test_the_first_demonstration_line_for_line(
    demonstration: ServerProcess, tmp_path: Path
) -> None:
    server = demonstration
    repo = tmp_path / "repo"
    _registry(repo)
    config = tmp_path / "config.yaml"
    config.write_text(
        "data:\n"
        f'  repo:     "{repo}/"\n'
        f'  template: "{repo}/templates/"\n'
        f'  db:       "{repo}/registry.sqlite3"\n'
        f'  calib:    "{tmp_path}/calib/"\n'
        '  filter:   "g"\n'
        "job:\n"
        "  output_dir: './output'\n"
        "  log_dir:    './logs'\n"
    )
    port = server.root.rpartition(":")[2]
    client = subprocess.run(
        [sys.executable, "-m", "ocps_jobmanager.client", "--config", str(config)],
        cwd=PROJECT,
        env={"PATH": os.environ["PATH"], "API_PORT": port},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answer = (
        r"POST /api/v1/job : \n"
        r"\{\n"
        r'  "status": "ok",\n'
        r'  "msg": "",\n'
        r'  "job_id": "[0-9a-f]{32}",\n'
        r'  "cluster_id": null\n'
        r"\}\n"
    )
    assert len(re.findall(answer, client.stdout)) == 4, client.stdout
    ids = re.findall('"job_id": "([0-9a-f]{32})"', client.stdout)

    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    assert re.match(
        rf"{stamp}      main   INFO  Running at localhost:{port}/api/v1\n", server.log()
    )
    post = rf"^{stamp}  tornado\.access   INFO  200 POST /api/v1/job \(\S+\) \d+\.\d\dms$"
    assert len(re.findall(post, server.log(), re.MULTILINE)) == 4

    wait_until(lambda: server.monitors().keys() == set(ids), "four monitors")
    assert server.process is not None
    for argv in children_of(server.process.pid).values():
        if "monitor.py" in argv[3]:
            job_id = argv[5]
            assert argv[1:3] == ["-I", "-S"]
            assert argv[4:] == [
                *("--id", job_id),
                *("--type", "ap"),
                *("--api_url", f"http://localhost:{port}/api/v1/monitor/complete"),
            ]

    for job_id in ids[:3]:
        server.data_arrive(job_id)
    for job_id in ids[:3]:
        job = server.ended(job_id)
        assert (job["state"], job["exit_code"]) == ("completed", 0), job
        assert job["cluster_id"] is not None
    for job_id in ids[:3]:
        assert f'Data file "{job_id}.dat" found. Making API request...\n' in server.log()
        line = rf'^{stamp}      main   INFO  Data arrived for job "{job_id}"\. Launching job\.\.\.$'
        assert re.search(line, server.log(), re.MULTILINE)
    call = (
        rf"^{stamp}  tornado\.access   INFO  200 GET /api/v1/monitor/complete"
        r"\?id=\[secret_key\] \(\S+\) \d+\.\d\dms$"
    )
    assert len(re.findall(call, server.log(), re.MULTILINE)) == 3

    wait_until(lambda: server.monitors().keys() == {ids[3]}, "one monitor is left")
    assert server.job(ids[3])["state"] == "waiting"
    for job_id in ids[:3]:
        job = server.job(job_id)
        out = Path(job["logs"]["out"]).read_text()
        assert Path(job["logs"]["out"]) == server.work / "logs" / f"{job_id}.out"
        ccd = job["env"]["AP_CCD_NUM"]
        assert "make_apdb.py --config" in out
        assert re.search(rf"ap_pipe\.py {repo}/ --id visit=413635 ccdnum={ccd}\b", out)
        assert (Path(job["output_dir"]) / "output" / "apdb").is_dir()
