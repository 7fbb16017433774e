"""Restarts with a pool: nobody notices, no child is left, no job is lost or submitted again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ocps_jobmanager.restarts import request_restart
from tests.condor.pool import Pool
from tests.condor.test_server import clusters_of
from tests.polling import polling
from tests.server import ServerProcess, alive, wait_until
from tests.server_suite import UNTIL_FILE


@pytest.fixture
def server(pool: Pool, tmp_path: Path) -> Iterator[ServerProcess]:
    environ = {"OCPS_SCHEDULER": "htcondor", "CONDOR_CONFIG": str(pool.config)}
    with ServerProcess(tmp_path, environ) as server:
        yield server


def test_restarts_under_two_polling_clients_with_jobs_in_every_state(
    server: ServerProcess, pool: Pool, tmp_path: Path
) -> None:
    assert server.process is not None
    go = tmp_path / "go"
    waiting, running = server.submit(), server.submit(THEN=UNTIL_FILE.format(go))
    server.data_arrive(running)
    server.until(running, "running")
    ids = [waiting, running]
    children: set[int] = set()
    with polling(f"{server.url}/job/{waiting}") as (_, idling):
        for _ in range(3):
            ids.append(server.submit())
            server.data_arrive(ids[-1])  # to be submitted just now
            before = idling.answers
            children |= server.children().keys()
            request_restart(server.work / "state" / "server.lock", timeout_s=60)
            wait_until(lambda before=before: idling.answers > before, "the session has polled")
            assert server.job(running)["state"] == "running"
    server.data_arrive(waiting)
    go.touch()
    for job_id in ids:
        assert server.ended(job_id)["exit_code"] == 0
        assert len(clusters_of(pool, job_id)) == 1
    assert sorted(server.runs()) == sorted(ids)
    wait_until(lambda: not any(map(alive, children)), "no child of an earlier server is left")
