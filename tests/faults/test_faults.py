"""Short runs of the harness: nothing is lost, nothing runs twice; and it would notice."""

import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.condor.pool import Pool
from tests.faults.ledger import Runs, parse_ledger
from tests.faults.plans import Plan, blind_plan, short_plan
from tests.faults.report import Report
from tests.faults.run import Run
from tests.faults.sites import LocalSite, PoolSite, Site
from tests.faults.target import FaultyServer
from tests.faults.verdict import Given, judge

SEED = int(os.environ.get("OCPS_FAULTS_SEED") or random.SystemRandom().randrange(10**6))


def run(directory: Path, site: Site, plan: Plan, *switches: str) -> Report:
    environ = {"OCPS_SCHEDULER": site.scheduler, **site.environ}
    sys.stdout.write(f"OCPS_FAULTS_SEED={plan.seed}\n")
    server = FaultyServer(directory, environ, switches=["--hasty", *switches])
    report = Run(server, site, plan, lambda line: print(line, flush=True)).carry_out()  # noqa: T201
    sys.stdout.write(report.text())
    return report


# Servers ------------------------------------------------------------------------------------------


@pytest.mark.timeout(400)
def test_nothing_is_lost_or_run_twice(tmp_path: Path) -> None:
    """The server is killed at every step, monitors are, callbacks come twice and too late."""
    report = run(tmp_path, LocalSite(), short_plan("local", SEED))
    assert report.is_well, report.text()
    assert report.counts["servers killed at a named step"] >= 15


@pytest.mark.timeout(400)
def test_nothing_is_lost_or_run_twice_on_a_pool(tmp_path: Path, pool: Pool) -> None:
    """As well, and the schedd stops, hangs and dies, and so do the helpers that call it."""
    report = run(tmp_path, PoolSite(pool), short_plan("htcondor", SEED))
    assert report.is_well, report.text()
    assert report.counts["servers killed at a named step"] >= 15
    assert report.counts["schedd outages"] >= 3


@pytest.mark.timeout(300)
def test_a_server_that_does_not_look_is_found_out(tmp_path: Path) -> None:
    report = run(tmp_path, LocalSite(), blind_plan(SEED), "--blind")
    assert report.verdict.wrong["twice"]


@pytest.mark.timeout(300)
def test_a_server_that_does_not_look_is_found_out_on_a_pool(tmp_path: Path, pool: Pool) -> None:
    report = run(tmp_path, PoolSite(pool), blind_plan(SEED), "--blind")
    assert report.verdict.wrong["twice"]


# The verdict --------------------------------------------------------------------------------------

ID, OTHER = "1" * 32, "2" * 32
RECORD: dict[str, Any] = {
    "state": "completed",
    "exit_code": 0,
    "exit_signal": None,
    "reason": None,
    "cluster_id": 7,
    "proc_id": 0,
    "num_starts": 1,
}
ONCE = Runs(starts=["7.0"], ends=1)
REMOVED = {**RECORD, "state": "removed", "exit_code": None}


def wrong(
    given: Given, record: dict[str, Any] | None, runs: Runs, ads: set[str] | None = None
) -> set[str]:
    records = {} if record is None else {ID: record}
    queued = None if ads is None else {ID: ads}
    verdict = judge({ID: given}, records, {ID: runs} if runs.starts else {}, queued)
    return {kind for kind, sentences in verdict.wrong.items() if sentences}


@pytest.mark.parametrize(
    ("given", "record", "runs", "ads"),
    [
        (Given(ID, 0, "0"), RECORD, ONCE, None),
        (Given(ID, 0, "3"), {**RECORD, "exit_code": 3}, ONCE, None),
        (Given(ID, 0, "TERM"), {**RECORD, "exit_code": None, "exit_signal": 15}, ONCE, None),
        (Given(ID, 600, "0", removal=True), REMOVED, Runs(starts=["7.0"]), None),
        (Given(ID, 0, "0", removal=True), {**REMOVED, "num_starts": 0}, Runs(), None),
        (Given(ID, 0, "0", removal=True), RECORD, ONCE, {"7.0"}),
        (Given(ID, 0, "0"), {**RECORD, "num_starts": 2}, Runs(["7.0", "7.0"], 2), {"7.0"}),
    ],
)
def test_what_is_well(
    given: Given, record: dict[str, Any], runs: Runs, ads: set[str] | None
) -> None:
    assert wrong(given, record, runs, ads) == set()


@pytest.mark.parametrize(
    ("kind", "given", "record", "runs", "ads"),
    [
        ("lost", Given(ID, 0, "0"), None, Runs(), None),
        ("lost", Given(ID, 0, "0"), {**RECORD, "state": "idle"}, ONCE, None),
        ("lost", Given(ID, 0, "0"), {**RECORD, "state": "failed"}, ONCE, None),
        ("lost", Given(ID, 0, "0"), {**RECORD, "exit_code": 1}, ONCE, None),
        ("lost", Given(ID, 0, "0"), REMOVED, ONCE, None),
        ("lost", Given(ID, 600, "0", removal=True), RECORD, ONCE, None),
        ("lost", Given(ID, 0, "0"), RECORD, Runs(["7.0"], 0), None),
        ("twice", Given(ID, 0, "0"), RECORD, Runs(["7.0", "8.0"], 2), None),
        ("twice", Given(ID, 0, "0"), RECORD, Runs(["7.0", "7.0"], 2), None),
        ("twice", Given(ID, 0, "0"), RECORD, ONCE, {"7.0", "8.0"}),
        ("twice", Given(ID, 0, "0"), RECORD, Runs(["8.0"], 1), {"8.0"}),
        ("num_starts", Given(ID, 0, "0"), RECORD, Runs(["7.0", "7.0"], 1), {"7.0"}),
        ("num_starts", Given(ID, 0, "0"), {**RECORD, "num_starts": 2}, ONCE, {"7.0"}),
        ("num_starts", Given(ID, 0, "0", removal=True), {**REMOVED, "num_starts": 0}, ONCE, None),
    ],
)
def test_what_is_wrong(
    kind: str, given: Given, record: dict[str, Any] | None, runs: Runs, ads: set[str] | None
) -> None:
    assert kind in wrong(given, record, runs, ads)


def test_what_nobody_was_given_is_a_stranger() -> None:
    verdict = judge({}, {}, {OTHER: ONCE}, {ID: {"9.0"}})
    assert len(verdict.wrong["stranger"]) == 2


def test_the_ledger_is_read_line_by_line() -> None:
    lines = [f"start {ID} 7.0 1", f"start {OTHER} 8.3 1", f"end {ID} 7.0 1", f"start {ID}"]
    runs, nonsense = parse_ledger(lines)
    assert runs == {ID: ONCE, OTHER: Runs(starts=["8.3"])}
    assert nonsense == [f"start {ID}"]
