"""The long run: ``bash run_tests.sh faults``; ``--help`` says what can be asked for."""

import argparse
import contextlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from tests.condor.pool import PoolUnavailableError, running_pool
from tests.faults.plans import blind_plan, long_plan
from tests.faults.report import Report
from tests.faults.run import Run
from tests.faults.sites import LocalSite, PoolSite, Site
from tests.faults.target import FaultyServer


def say(line: str) -> None:
    """Print a line, with the time."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _site(scheduler: str) -> Iterator[Site]:
    if scheduler == "local":
        yield LocalSite()
        return
    with running_pool() as pool:
        yield PoolSite(pool)


def _run(scheduler: str, options: argparse.Namespace) -> Report:
    directory = Path(tempfile.mkdtemp(prefix="ocps-faults-"))
    plan = long_plan(
        scheduler, options.seed, options.jobs, options.kills, options.outages, options.monitors
    )
    if options.blind:
        plan = blind_plan(options.seed, times=10)
    switches = ["--hasty"] + (["--blind"] if options.blind else [])
    try:
        with _site(scheduler) as site:
            environ = {"OCPS_SCHEDULER": scheduler, **site.environ}
            server = FaultyServer(directory, environ, switches=switches)
            report = Run(server, site, plan, say).carry_out()
    except BaseException:
        say(f"its files are left in {directory}")
        raise
    if report.is_well or options.blind:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        say(f"its files are left in {directory}")
    return report


def main() -> int:
    """Run it on one scheduler, or on one after the other; 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(prog="bash run_tests.sh faults", description=__doc__)
    parser.add_argument("--scheduler", choices=("local", "htcondor"), action="append")
    parser.add_argument("--jobs", type=int, default=2000, help="at least so many")
    parser.add_argument("--kills", type=int, default=60, help="of the server, at least")
    parser.add_argument("--outages", type=int, default=12, help="of the schedd")
    parser.add_argument("--monitors", type=int, default=110, help="monitors to kill")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--report", type=Path, help="a file for the report, as JSON")
    parser.add_argument(
        "--blind",
        action="store_true",
        help="a short run with the look-up by tag switched off; it must find jobs run twice",
    )
    options = parser.parse_args()
    # Whoever is told to stop cleans up, too.
    signal.signal(signal.SIGTERM, _interrupt)
    reports = {}
    for scheduler in options.scheduler or ["local", "htcondor"]:
        say(f"{scheduler}: seed {options.seed}")
        try:
            reports[scheduler] = report = _run(scheduler, options)
        except PoolUnavailableError as error:
            say(f"NOT RUN AGAINST HTCONDOR: {error}")
            return 2
        except KeyboardInterrupt:
            return 130
        sys.stdout.write(f"{scheduler}, seed {options.seed}:\n{report.text()}\n")
    if options.report:
        told = {name: report.as_json() for name, report in reports.items()}
        text = json.dumps({"seed": options.seed, "blind": options.blind, **told}, indent=2)
        options.report.write_text(f"{text}\n")
    if options.blind:
        return 0 if all(report.verdict.wrong["twice"] for report in reports.values()) else 1
    return 0 if all(report.is_well for report in reports.values()) else 1


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
