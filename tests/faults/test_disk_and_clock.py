"""The disk gets full, and the clock is moved: nothing is lost, nothing runs twice."""

import os
import random
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from tests.condor.pool import Pool
from tests.faults.plans import quiet_plan
from tests.faults.report import Report
from tests.faults.run import Run
from tests.faults.sites import LocalSite, PoolSite, Site
from tests.faults.small_disk import SmallDisk, small_disk
from tests.faults.target import FaultyServer
from tests.server import wait_until

SEED = int(os.environ.get("OCPS_FAULTS_SEED") or random.SystemRandom().randrange(10**6))
#: SQLite lets its write-ahead log grow to 4 MiB.
_DISK = 24 << 20


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def carry_out(
    server: FaultyServer, site: Site, *faults: tuple[str, Callable[[Run], None]]
) -> Report:
    _say(f"OCPS_FAULTS_SEED={SEED}")
    report = Run(server, site, quiet_plan(SEED), _say, faults).carry_out()
    _say(report.text())
    assert report.is_well, report.text()
    return report


# The disk -----------------------------------------------------------------------------------------


@pytest.fixture(params=["state", "logs", "output"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What lies on the disk that gets full."""
    place = tmp_path / "work" / str(request.param)
    place.mkdir(parents=True)
    return place


@pytest.fixture
def disk(place: Path) -> Iterator[SmallDisk]:
    try:
        with small_disk(place, _DISK) as disk:
            yield disk
    except LookupError as error:
        pytest.skip(f"NOT TESTED WITH A FULL DISK: {error}")


def _on_disk(disk: SmallDisk, directory: Path, site: Site) -> FaultyServer:
    environ = {"OCPS_SCHEDULER": site.scheduler, **site.environ}
    server = FaultyServer(directory, environ, switches=["--hasty"], wrapper=disk.enter)
    server.work = disk.seen(server.work)
    return server


def _fill(disk: SmallDisk, run: Run) -> None:
    """While it is full jobs come, have their data and are removed; the server stays."""
    disk.fill()
    for _ in range(3):
        run.some_jobs(4)
    assert run.server.lives()
    listed = run.server.ask("GET", "job/list/all")
    assert listed is not None
    assert listed.ok
    disk.free()
    wait_until(lambda: run.server.ready()[0] == 200, "the server is ready again")


def _fill_and_kill(disk: SmallDisk, run: Run) -> None:
    """And it is killed."""
    disk.fill()
    run.some_jobs(4)
    run.kill()
    disk.free()
    run.start()


def test_a_full_disk(disk: SmallDisk, place: Path, tmp_path: Path) -> None:
    report = carry_out(
        _on_disk(disk, tmp_path, LocalSite()),
        LocalSite(),
        ("the disk is full", partial(_fill, disk)),
        ("killed with a full disk", partial(_fill_and_kill, disk)),
    )
    assert bool(report.answers.get(503)) == (place.name == "state")


def test_a_full_disk_under_the_database_with_a_pool(tmp_path: Path, pool: Pool) -> None:
    state = tmp_path / "work" / "state"
    events = state / "condor"  # the schedd writes them, and sees no disk of ours
    events.mkdir(parents=True)
    site = PoolSite(pool)
    try:
        with small_disk(state, _DISK, through=[events]) as disk:
            report = carry_out(
                _on_disk(disk, tmp_path, site),
                site,
                ("the disk is full", partial(_fill, disk)),
                ("killed with a full disk", partial(_fill_and_kill, disk)),
            )
    except LookupError as error:
        pytest.skip(f"NOT TESTED WITH A FULL DISK: {error}")
    assert report.answers[503]


# The clock ----------------------------------------------------------------------------------------


class Clock:
    """The clock of a server, and of that process alone (libfaketime)."""

    def __init__(self, directory: Path) -> None:
        if not (found := sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))):
            pytest.skip(
                "NOT TESTED WITH A MOVED CLOCK: faketime is missing (apt-get install faketime)"
            )
        self._file = directory / "clock"
        self.environ = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }
        self.move("+0")

    def move(self, offset: str) -> None:
        """Put it off the true time by so much."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset}\n")
        new.rename(self._file)


def _move(clock: Clock, offset: str, kill: bool, run: Run) -> None:
    run.some_jobs(3)
    clock.move(offset)
    run.some_jobs(3)
    if kill:
        run.kill()
        run.start()


def _moved_clock(directory: Path, site: Site) -> None:
    clock = Clock(directory)
    environ = {"OCPS_SCHEDULER": site.scheduler, **site.environ, **clock.environ}
    server = FaultyServer(directory, environ, switches=["--hasty"])
    carry_out(
        server,
        site,
        *(
            (f"the clock is off by {offset}", partial(_move, clock, offset, kill))
            for offset, kill in (
                ("-3h", True),
                ("+20h", False),
                ("+0", True),
            )
        ),
    )
    # Were it not moved, all of this would say nothing.
    [(apart_ms,)] = server.rows("SELECT max(time_submitted) - min(time_submitted) FROM job")
    assert apart_ms > timedelta(hours=23) / timedelta(milliseconds=1)


def test_a_moved_clock(tmp_path: Path) -> None:
    _moved_clock(tmp_path, LocalSite())


def test_a_moved_clock_with_a_pool(tmp_path: Path, pool: Pool) -> None:
    _moved_clock(tmp_path, PoolSite(pool))
