"""Whoever is killed at whatever step: a local job is neither lost nor run twice."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ocps_jobmanager.schedulers import local_launcher
from ocps_jobmanager.schedulers.base import SchedulerStatus
from tests.schedulers.contract import ENDS, count_starts, is_gone, until_true
from tests.schedulers.local_site import LocalSite


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LocalSite]:
    site = LocalSite(tmp_path)
    yield site
    site.close()


@pytest.mark.parametrize(
    ("scenario", "end", "starts"),
    [
        ("submit", "COMPLETED", {1}),
        ("forget", "COMPLETED", {1}),
        ("remove", "REMOVED", {0, 1}),
        ("remove_running", "REMOVED", {0, 1}),
    ],
)
def test_a_server_may_be_killed_at_any_step(
    tmp_path: Path, scenario: str, end: str, starts: set[int]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.schedulers.dying", scenario, tmp_path],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
        timeout=100,
    )
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) > 20
    assert not [r for r in reports if r["status"] != end or r["starts"] not in starts]


#: A launcher that is killed before the step whose number is in the file `last`; the one after it is
#: not. The file `survived` says that there is no such step.
DYING_LAUNCHER = """
import os, runpy, signal, sys

folder, launcher = sys.argv[1], os.getpid()
last = os.path.join(DIRECTORY, "last")
steps = 0

def hook(event, args):
    global steps
    if event.startswith(("os.", "fcntl.")) or (event == "open" and str(args[0]).startswith(folder)):
        if os.getpid() == launcher:
            steps += 1
            if steps == step:
                os.kill(launcher, signal.SIGKILL)

if os.path.exists(last):
    with open(last) as file:
        step = int(file.read())
    os.unlink(last)
    sys.addaudithook(hook)
try:
    runpy.run_path(LAUNCHER, run_name="__main__")
finally:
    if steps:
        open(os.path.join(DIRECTORY, "survived"), "w").close()
"""


def test_a_launcher_may_be_killed_at_any_step(
    site: LocalSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = site.directory / "launcher.py"
    launcher.write_text(
        DYING_LAUNCHER.replace("DIRECTORY", repr(str(site.directory))).replace(
            "LAUNCHER", repr(local_launcher.__file__)
        )
    )
    monkeypatch.setattr(local_launcher, "__file__", str(launcher))

    async def ends() -> list[tuple[SchedulerStatus, int]]:
        seen: list[tuple[SchedulerStatus, int]] = []
        async with site.server() as server:
            while not await asyncio.to_thread((site.directory / "survived").exists):
                await asyncio.to_thread((site.directory / "last").write_text, str(len(seen) + 1))
                request = site.make_request("echo started >> ledger; exec 9> alive; flock 9")
                await server.scheduler.submit(request)
                end = await server.until(request, *ENDS)
                await until_true(partial(is_gone, request))
                seen.append((end.status, await count_starts(request)))
        return seen

    seen = asyncio.run(ends())
    assert len(seen) > 20
    # Before it has claimed the job another one runs it; then nobody does; then it has run.
    allowed = {
        (SchedulerStatus.COMPLETED, 1),
        (SchedulerStatus.BROKEN, 0),
        (SchedulerStatus.BROKEN, 1),
    }
    assert set(seen) <= allowed
    assert seen[0] == seen[-1] == (SchedulerStatus.COMPLETED, 1)
    assert any(status is SchedulerStatus.BROKEN for status, _ in seen)
