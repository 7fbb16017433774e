"""Types and variables named like ClassAd attributes, on a real pool: names, and nothing more."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.condor.pool import Pool
from tests.hostile import names
from tests.hostile.conftest import check_log
from tests.server import ServerProcess

#: What differs between any two jobs, and what comes of them.
_OWN = frozenset(
    {
        *("ClusterId", "GlobalJobId", "OcpsJobId", "Environment", "Env", "Iwd", "Out", "Err"),
        *("UserLog", "DAGManNodesLog", "QDate", "EnteredCurrentStatus", "JobSubmitFile", "Cmd"),
    }
)
_PROGRAM = """
import htcondor2, json, sys
schedd = htcondor2.Schedd(htcondor2.Collector(htcondor2.param["COLLECTOR_HOST"])
    .locate(htcondor2.DaemonType.Schedd))
ads = schedd.query(f'OcpsJobId =?= "{sys.argv[1]}"') + list(
    schedd.history(f'OcpsJobId =?= "{sys.argv[1]}"'))
print(json.dumps([{name: str(ad.get(name)) for name in ad} for ad in ads]))
"""


def ad_of(pool: Pool, job_id: str) -> dict[str, str]:
    """A job's one ad."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, job_id],
        env={**os.environ, "CONDOR_CONFIG": str(pool.config)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    ads: list[dict[str, str]] = json.loads(done.stdout)
    assert len(ads) == 1
    return ads[0]


@pytest.fixture
def server(pool: Pool, tmp_path: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(
        tmp_path, {"OCPS_SCHEDULER": "htcondor", "CONDOR_CONFIG": str(pool.config)}
    )
    names.declare(server)
    with server:
        yield server
        check_log(server)


def submit(server: ServerProcess, job_type: str, env: dict[str, str]) -> str:
    body: dict[str, Any] = {"type": job_type, "env": env, "log_dir": "logs"}
    answer = requests.post(f"{server.url}/job", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["job_id"])


@pytest.mark.timeout(300)
def test_a_variable_reaches_the_job_and_changes_nothing_else(
    pool: Pool, server: ServerProcess
) -> None:
    schedd = pool.schedd_pid()
    plain = submit(server, "plain", {})
    given = {number: names.environment(number) for number in range(len(names.VALUES))}
    ids = {
        submit(server, names.TYPES[number % len(names.TYPES)], env): env
        for number, env in given.items()
    }
    for job_id, env in ids.items():
        names.check_reached(server.ended(job_id), env)
    assert server.ended(plain)["exit_code"] == 0
    expected = ad_of(pool, plain)
    for job_id in ids:
        ad = ad_of(pool, job_id)
        assert ad["OcpsJobId"] == job_id
        assert ad["ClusterId"] == str(server.job(job_id)["cluster_id"])
        wanted = ("Owner", "Requirements", "Rank", "JobPrio", "Arguments", "Args", "JobUniverse")
        for name in wanted:
            assert ad.get(name) == expected.get(name)
        # No attribute has come in or gone by a variable's name.
        odd = {name.lower() for name in names.VARIABLES} - {name.lower() for name in _OWN}
        assert {n.lower() for n in ad} & odd == {n.lower() for n in expected} & odd
    assert pool.schedd_pid() == schedd
