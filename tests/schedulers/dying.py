"""Servers that are killed at each step that they take on the disk, and what the next ones find.

A program of its own, ``python -m tests.schedulers.dying SCENARIO DIRECTORY``: it forks, which is
safe only where there are no threads. It prints one line of JSON for each step to die at.
"""

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from itertools import count
from pathlib import Path

from ocps_jobmanager.schedulers.base import LaunchRequest, SchedulerStatus
from ocps_jobmanager.times import utc_now
from tests.schedulers.contract import (
    CODE,
    ENDS,
    GATED,
    REASON,
    Server,
    count_starts,
    is_gone,
    is_started,
    until_true,
)
from tests.schedulers.local_site import LocalSite

_BLOCKED_THE_LOOP = 99


async def find(server: Server, request: LaunchRequest) -> SchedulerStatus | None:
    """What the Job Manager asks first about a job that it may have submitted before."""
    found = await server.scheduler.find(request.job_id, utc_now() - timedelta(hours=1))
    return None if found is None else found.status


async def submit(server: Server, request: LaunchRequest) -> SchedulerStatus:
    """Have a job run."""
    if (status := await find(server, request)) is None:
        await server.scheduler.submit(request)
    if status in ENDS:
        return status
    return (await server.until(request, *ENDS)).status


async def forget(server: Server, request: LaunchRequest) -> SchedulerStatus:
    """Have a job run, and forget it. A successor may forget it again, or have it run first."""
    if await count_starts(request) == 0 or await find(server, request) is not None:
        status = await submit(server, request)
        server.scheduler.forget(request.job_id)
    else:
        status = SchedulerStatus.COMPLETED
    folders = server.site.directory / "state" / "local"
    await until_true(lambda: asyncio.to_thread(lambda: not list(folders.iterdir())))
    return status


async def remove(server: Server, request: LaunchRequest) -> SchedulerStatus:
    """Submit a job, and remove it at once."""
    if (status := await find(server, request)) is None:
        await server.scheduler.submit(request)
    await server.scheduler.remove(request.job_id, REASON, CODE)
    if status in ENDS:
        return status
    return (await server.until(request, *ENDS)).status


async def remove_running(server: Server, request: LaunchRequest) -> SchedulerStatus:
    """Submit a job, and remove it when it runs."""
    if await find(server, request) is None:
        await server.scheduler.submit(request)
        await until_true(lambda: is_started(request))
    return await remove(server, request)


Scenario = Callable[[Server, LaunchRequest], Awaitable[SchedulerStatus]]
SCENARIOS: dict[str, tuple[Scenario, str]] = {
    "submit": (submit, "echo started >> ledger; exec 9> alive; flock 9"),
    "forget": (forget, "echo started >> ledger; exec 9> alive; flock 9"),
    "remove": (remove, GATED),
    "remove_running": (remove_running, GATED),
}


def watch_steps(directory: Path, die_at: int | None) -> None:
    """Die before the step `die_at`; end with a status of its own if one is taken on the loop."""
    steps = count(1)
    loops = threading.main_thread()

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event == "subprocess.Popen" or (
            event in ("open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir")
            and isinstance(args[0], str | bytes | os.PathLike)
            and os.fsdecode(args[0]).startswith(str(directory))
        ):
            if threading.current_thread() is loops:
                os._exit(_BLOCKED_THE_LOOP)
            if next(steps) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


async def live(site: LocalSite, request: LaunchRequest, scenario: Scenario) -> dict[str, object]:
    """One server's life, to the end of the job if it is not killed before."""
    async with site.server() as server:
        status = await scenario(server, request)
        await until_true(lambda: is_gone(request))
        return {"status": status.name, "starts": await count_starts(request)}


def die_at(step: int, name: str, directory: Path) -> dict[str, object] | None:
    """Have a server die before `step` and another one take over; None if there is no such step."""
    scenario, script = SCENARIOS[name]
    request = LocalSite(directory).make_request(script)
    report = directory / "report"
    for number, last_step in enumerate((step, None)):
        pid = os.fork()
        if pid == 0:
            site = LocalSite(directory, first_cluster_id=1 + 1000 * number)
            watch_steps(site.state, last_step)
            report.write_text(json.dumps(asyncio.run(live(site, request, scenario))))
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if last_step is not None and code == 0:
            return None
        assert code == (0 if last_step is None else -signal.SIGKILL), f"step {step}: {code}"
    return {"step": step, **json.loads(report.read_text())}


def main() -> None:
    """Die at the first step, then at the second, and so on."""
    name, directory = sys.argv[1], Path(sys.argv[2])
    for step in count(1):
        place = directory / str(step)
        place.mkdir()
        report = die_at(step, name, place)
        if report is None:
            break
        sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
