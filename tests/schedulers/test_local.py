"""The local scheduler: the rules of all, and what only a machine of its own can break."""

import asyncio
import fcntl
import json
import logging
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from ocps_jobmanager.errors import LaunchRefusedError, SchedulerUnavailableError, StartupError
from ocps_jobmanager.models import Resources
from ocps_jobmanager.schedulers import local, local_folders
from ocps_jobmanager.schedulers.base import LaunchRequest, SchedulerStatus
from ocps_jobmanager.schedulers.local_launcher import JOB, STARTED, STATUS, claim
from ocps_jobmanager.times import utc_now
from tests.schedulers.contract import (
    CODE,
    GATED,
    REASON,
    ExecutionContract,
    count_starts,
    is_gone,
    is_started,
    let_go,
    until_true,
)
from tests.schedulers.local_site import CORES, LocalSite

STOPPED = "It was running when the machine stopped; not run again."


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LocalSite]:
    site = LocalSite(tmp_path)
    yield site
    site.close()


class TestLocal(ExecutionContract):
    @pytest.fixture
    def site(self, site: LocalSite) -> LocalSite:
        return site

    @pytest.fixture(autouse=True)
    def _nothing_is_amiss(
        self, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
    ) -> Iterator[None]:
        yield
        if request.function.__name__ != "test_news_that_could_not_be_stored_come_again":
            records = caplog.get_records("call")
            assert not [record for record in records if record.levelno >= logging.WARNING]


# The queue


def test_jobs_start_in_order_while_there_are_cores(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            big, bigger, small = (
                site.make_request(GATED, resources=Resources(cpus=cpus)) for cpus in (3, 2, 1)
            )
            for request in (big, bigger, small):
                await server.scheduler.submit(request)
            await server.until(big, SchedulerStatus.RUNNING)
            later = site.make_request("exit 0")
            await server.scheduler.submit(later)
            for request in (bigger, small, later):
                # There would be a core for the small one, but it is not its turn.
                found = await server.scheduler.find(request.job_id, utc_now())
                assert found is not None
                assert found.status is SchedulerStatus.IDLE
            await let_go(big)
            await server.until(bigger, SchedulerStatus.RUNNING)
            await server.until(small, SchedulerStatus.RUNNING)
            await server.until(later, SchedulerStatus.COMPLETED)

    asyncio.run(scenario())


def test_a_job_that_asks_for_more_cores_than_there_are_is_refused(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request("exit 0", resources=Resources(cpus=CORES + 1))
            with pytest.raises(LaunchRefusedError, match=r"asks for 5 cores.*has 4"):
                await server.scheduler.submit(request)
            assert await server.scheduler.find(request.job_id, utc_now()) is None

    asyncio.run(scenario())


def test_a_queued_job_that_asks_for_more_than_a_new_server_has_still_runs(site: LocalSite) -> None:
    async def scenario() -> None:
        request = site.make_request("exit 0", resources=Resources(cpus=CORES))
        async with site.server() as server:
            blocker = site.make_request(GATED)
            await server.scheduler.submit(blocker)
            await server.scheduler.submit(request)
            await server.until(blocker, SchedulerStatus.RUNNING)
        site.cores = 1
        async with site.server() as server:
            server.scheduler.track(request.job_id, 2, 0)
            await server.until(request, SchedulerStatus.IDLE)
            await let_go(blocker)
            await server.until(request, SchedulerStatus.COMPLETED)

    asyncio.run(scenario())


def test_a_new_server_keeps_the_order_of_the_queue(site: LocalSite) -> None:
    async def scenario() -> None:
        order = site.directory / "order"
        async with site.server() as server:
            await site.crowd(server)
            requests = [
                site.make_request(f"echo {n} >> '{order}'", resources=Resources(cpus=CORES))
                for n in range(12)
            ]
            queued = [await server.scheduler.submit(request) for request in requests]
        site.stop_machine()
        async with site.server() as server:
            for job in queued:
                server.scheduler.track(job.job_id, job.cluster_id, job.proc_id)
            for request in requests:
                await server.until(request, SchedulerStatus.COMPLETED)
        assert order.read_text().split() == [str(n) for n in range(12)]

    asyncio.run(scenario())


def test_a_new_server_takes_up_all_jobs_whether_it_is_told_of_them_or_not(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            await site.crowd(server)
            queued = site.make_request("echo started >> ledger")
            await server.scheduler.submit(queued)
        async with site.server() as server:
            later = site.make_request("cat ../*/ledger")
            await server.scheduler.submit(later)
            assert not await is_started(queued)
            site.stop_machine()
            await server.until(later, SchedulerStatus.COMPLETED)
        assert await count_starts(queued) == 1

    asyncio.run(scenario())


def test_a_server_that_stops_while_it_starts_a_job_leaves_the_job_running(
    site: LocalSite,
) -> None:
    async def scenario() -> None:
        for turns in range(0, 40, 2):
            request = site.make_request("echo started >> ledger; exit 3")
            async with site.server() as server:
                queued = await server.scheduler.submit(request)
                for _ in range(turns):
                    await asyncio.sleep(0.0002)
            async with site.server() as server:
                server.scheduler.track(request.job_id, queued.cluster_id, queued.proc_id)
                assert (await server.until(request, SchedulerStatus.COMPLETED)).exit_code == 3
            assert await count_starts(request) == 1

    asyncio.run(scenario())


def test_a_submission_that_is_repeated_queues_nothing(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request(GATED)
            queued = await server.scheduler.submit(request)
            with pytest.raises(SchedulerUnavailableError):
                await server.scheduler.submit(request)
            found = await server.scheduler.find(request.job_id, utc_now())
            assert found is not None
            assert found.cluster_id == queued.cluster_id
            await let_go(request)
            await server.until(request, SchedulerStatus.COMPLETED)
        assert await count_starts(request) == 1

    asyncio.run(scenario())


def test_a_submission_that_was_given_up_is_found_if_it_was_made(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            for patience_s in (0, 0.0005, 0.001, 0.002, 0.004):
                request = site.make_request("echo started >> ledger")
                submission = asyncio.create_task(server.scheduler.submit(request))
                await asyncio.wait([submission], timeout=patience_s)
                submission.cancel()
                await asyncio.gather(submission, return_exceptions=True)
                if await server.scheduler.find(request.job_id, utc_now()) is None:
                    await server.scheduler.submit(request)
                await server.until(request, SchedulerStatus.COMPLETED)
                assert await count_starts(request) == 1

    asyncio.run(scenario())


def test_launchers_that_can_not_be_started_are_an_outage_that_ends(
    site: LocalSite, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        site.python = site.directory / "python"
        async with site.server() as server:
            request = site.make_request("echo started >> ledger")
            await server.scheduler.submit(request)

            async def is_unwell() -> bool:
                return not server.scheduler.health().ok

            await until_true(is_unwell)
            assert str(site.directory) not in server.scheduler.health().detail
            assert request.job_id in caplog.text
            found = await server.scheduler.find(request.job_id, utc_now())
            assert found is not None
            assert found.status is SchedulerStatus.IDLE
            # One that starts, but ends without a word.
            site.python.symlink_to("/bin/true")
            await until_true(lambda: asyncio.sleep(0, "without a word" in caplog.text))
            site.python.unlink()
            site.python.symlink_to(sys.executable)
            await server.until(request, SchedulerStatus.COMPLETED)
            assert server.scheduler.health().ok
            assert await count_starts(request) == 1

    asyncio.run(scenario())


def test_a_job_can_be_removed_while_no_launcher_can_be_started(
    site: LocalSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_FIRST_PAUSE_S", 1000.0)

    async def scenario() -> None:
        site.python = Path("/bin/false")
        async with site.server() as server:
            request = site.make_request("echo started >> ledger")
            await server.scheduler.submit(request)
            await until_true(lambda: asyncio.sleep(0, not server.scheduler.health().ok))
            await server.scheduler.remove(request.job_id, REASON, CODE)
            await server.until(request, SchedulerStatus.REMOVED)
        assert await count_starts(request) == 0

    asyncio.run(scenario())


# What a job finds, and what becomes of it


def test_a_job_inherits_nothing_of_the_server(site: LocalSite) -> None:
    async def scenario() -> None:
        old = os.umask(0o077)
        async with site.server() as server:
            request = site.make_request(
                "ls /proc/$$/fd > fds; readlink /proc/$$/fd/0 > stdin; umask > umask;"
                " grep -E '^Sig(Blk|Ign)' /proc/self/status > signals; ps -o sid= $$ > session"
            )
            assert (await server.run(request)).exit_code == 0
        os.umask(old)

        def left(name: str) -> str:
            return (request.initial_dir / name).read_text()

        assert set(left("fds").split()) <= {"0", "1", "2", "255"}  # bash has its script as 255
        assert left("stdin") == "/dev/null\n"
        assert left("umask") == "0022\n"
        assert set(re.findall(r"\t([0-9a-f]+)", left("signals"))) == {"0" * 16}
        assert int(left("session")) != os.getsid(0)

    asyncio.run(scenario())


def test_a_job_that_ignores_sigterm_is_killed_with_all_that_it_started(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request(
                "trap '' TERM\nexec 9> alive; flock 9\n"
                "( while true; do sleep 0.05; done ) &\n"
                "echo started >> ledger; while true; do sleep 0.05; done"
            )
            await server.scheduler.submit(request)
            await until_true(lambda: is_started(request))
            await server.scheduler.remove(request.job_id, REASON, CODE)
            removed = await server.until(request, SchedulerStatus.REMOVED)
            assert removed.reason_code == CODE
            await until_true(lambda: is_gone(request))

    asyncio.run(scenario())


def test_a_stopped_job_is_woken_to_be_removed(site: LocalSite) -> None:
    async def scenario() -> None:
        site.grace_s = 1000
        async with site.server() as server:
            request = site.make_request("echo started >> ledger; kill -STOP $$")
            await server.scheduler.submit(request)
            await until_true(lambda: is_started(request))
            await server.scheduler.remove(request.job_id, REASON, CODE)
            await server.until(request, SchedulerStatus.REMOVED)

    asyncio.run(scenario())


def test_what_a_job_leaves_running_ends_with_it(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request("exec 9> alive; flock 9; sleep 1000 & exit 3")
            assert (await server.run(request)).exit_code == 3
            await until_true(lambda: is_gone(request))

    asyncio.run(scenario())


def broken_requests(site: LocalSite) -> Iterator[tuple[LaunchRequest, str]]:
    """Jobs that can't be executed, and the part of the reason that says why."""
    request = site.make_request("exit 0")
    request.executable.chmod(0o755)
    request.executable.write_text("#!/no/such/interpreter\n")
    yield request, "script can't be executed (No such file"
    request = site.make_request("exit 0")
    request.executable.chmod(0o755)
    request.executable.write_text("exit 0\n")
    yield request, "script can't be executed (Exec format error)"
    request = site.make_request("exit 0")
    request.initial_dir.rmdir()
    yield request, "directory can't be entered (No such file"
    request = site.make_request("exit 0")
    request.out.unlink()
    request.out.symlink_to(site.directory / "elsewhere")
    yield request, "output file can't be opened (Too many levels"
    request = site.make_request("exit 0")
    request.err.unlink()
    request.err.mkdir()
    yield request, "error file can't be opened (Is a directory"


def test_a_job_that_can_not_be_executed_ends_with_a_sentence(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            for request, why in broken_requests(site):
                await server.scheduler.submit(request)
                broken = await server.until(request, SchedulerStatus.BROKEN)
                assert broken.reason is not None
                assert broken.reason.startswith("The job was not run: ")
                assert why in broken.reason
                assert str(site.directory) not in broken.reason
                found = await server.scheduler.find(request.job_id, utc_now())
                assert found == broken
            assert not (site.directory / "elsewhere").exists()
            assert (await server.run(site.make_request("exit 3"))).exit_code == 3
            assert server.scheduler.health().ok

    asyncio.run(scenario())


def test_a_job_runs_though_its_user_log_is_gone(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request("exit 3")
            request.log.unlink()
            os.mkfifo(request.log)
            assert (await server.run(request)).exit_code == 3

    asyncio.run(scenario())


def test_the_peak_of_a_job_s_memory_is_reported(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            done = await server.run(
                site.make_request("/usr/bin/python3 -I -S -c \"b'x' * (200 << 20)\"")
            )
            assert done.memory_mb is not None
            assert 200 <= done.memory_mb < 300

    asyncio.run(scenario())


def test_htcondor_s_own_reader_reads_the_user_logs(site: LocalSite) -> None:
    htcondor2 = pytest.importorskip("htcondor2")

    async def scenario() -> list[LaunchRequest]:
        async with site.server() as server:
            done, killed = site.make_request("exit 3"), site.make_request("kill -KILL $$")
            removed = site.make_request(GATED, resources=Resources(cpus=CORES))
            for request in (done, killed):
                await server.run(request)
            await server.scheduler.submit(removed)
            await server.until(removed, SchedulerStatus.RUNNING)
            await server.scheduler.remove(removed.job_id, REASON, CODE)
            await server.until(removed, SchedulerStatus.REMOVED)
            return [done, killed, removed]

    done, killed, removed = (
        list(htcondor2.JobEventLog(str(request.log)).events(0))
        for request in asyncio.run(scenario())
    )
    event = htcondor2.JobEventType
    for cluster, events in enumerate((done, killed, removed), start=1):
        assert {(e.cluster, e.proc) for e in events} == {(cluster, 0)}
        assert [e.type for e in events[:2]] == [event.SUBMIT, event.EXECUTE]
    assert [e.type for e in done[2:]] == [event.JOB_TERMINATED]
    assert done[2]["TerminatedNormally"] is True
    assert done[2]["ReturnValue"] == 3
    assert killed[2]["TerminatedNormally"] is False
    assert killed[2]["TerminatedBySignal"] == 9
    assert [e.type for e in removed[2:]] == [event.JOB_ABORTED]
    assert removed[2]["Reason"] == REASON


# Restarts and accidents


def launcher_of(site: LocalSite, request: LaunchRequest) -> int:
    return int(json.loads((site.state / request.job_id / STARTED).read_text())["pid"])


def test_a_killed_launcher_takes_its_job_along_and_it_is_not_run_again(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request(
                GATED.replace("until", "( trap '' TERM HUP; sleep 1000 ) &\nuntil")
            )
            await server.scheduler.submit(request)
            await until_true(lambda: is_started(request))
            os.kill(launcher_of(site, request), signal.SIGKILL)
            broken = await server.until(request, SchedulerStatus.BROKEN)
            assert broken.reason == STOPPED
            await until_true(lambda: is_gone(request))
        async with site.server() as server:
            server.scheduler.track(request.job_id, broken.cluster_id, 0)
            assert (await server.until(request, SchedulerStatus.BROKEN)).reason == STOPPED
        assert await count_starts(request) == 1

    asyncio.run(scenario())


def test_a_job_whose_launcher_and_guard_are_killed_at_once_is_ended(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request("echo $$ > pid" + GATED.replace("sleep 0.05", ":"))
            await server.scheduler.submit(request)
            await until_true(lambda: is_started(request))
            guard = os.getpgid(int((request.initial_dir / "pid").read_text()))
            for pid in (guard, launcher_of(site, request)):
                os.kill(pid, signal.SIGKILL)
            await server.until(request, SchedulerStatus.BROKEN)
            await until_true(lambda: is_gone(request))

    asyncio.run(scenario())


def test_a_job_that_ran_when_the_machine_stopped_is_told_so(site: LocalSite) -> None:
    async def scenario() -> None:
        request = site.make_request(GATED)
        async with site.server() as server:
            queued = await server.scheduler.submit(request)
            await until_true(lambda: is_started(request))
        os.kill(launcher_of(site, request), signal.SIGKILL)
        await until_true(lambda: is_gone(request))
        async with site.server() as server:
            found = await server.scheduler.find(request.job_id, utc_now() - timedelta(hours=1))
            assert found is not None
            assert (found.status, found.reason) == (SchedulerStatus.BROKEN, STOPPED)
            server.scheduler.track(request.job_id, queued.cluster_id, 0)
            assert (await server.until(request, SchedulerStatus.BROKEN)).reason == STOPPED
        assert await count_starts(request) == 1

    asyncio.run(scenario())


async def is_unlocked(path: Path) -> bool:
    def look() -> bool:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    return await asyncio.to_thread(look)


def test_a_number_that_became_another_process_s_is_not_taken_for_the_launcher(
    site: LocalSite,
) -> None:
    async def scenario() -> None:
        request = site.make_request(GATED)
        async with site.server() as server:
            await server.scheduler.submit(request)
            await until_true(lambda: is_started(request))
        os.kill(launcher_of(site, request), signal.SIGKILL)
        await until_true(lambda: is_gone(request))
        other = await asyncio.to_thread(subprocess.Popen, ["/bin/sleep", "1000"])
        started = site.state / request.job_id / STARTED
        await until_true(lambda: is_unlocked(started))  # the kernel has let all of it go
        started.write_text(json.dumps({**json.loads(started.read_text()), "pid": other.pid}))
        try:
            assert site.folders.attach(request.job_id) is None
            async with site.server() as server:
                server.scheduler.track(request.job_id, 1, 0)
                assert (await server.until(request, SchedulerStatus.BROKEN)).reason == STOPPED
                await server.scheduler.remove(request.job_id, REASON, CODE)
            assert other.poll() is None
        finally:
            other.kill()
            other.wait()

    asyncio.run(scenario())


def test_a_job_that_ends_while_one_looks_has_ended(
    site: LocalSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        request = site.make_request("exit 3")
        async with site.server() as server:
            await server.run(request)
        status = site.state / request.job_id / STATUS
        ended = status.read_text()
        status.unlink()

        def is_locked(path: Path) -> bool:
            status.write_text(ended)  # as the launcher does before it lets the lock go
            return False

        monkeypatch.setattr(local_folders, "_is_locked", is_locked)
        seen = site.folders.look(request.job_id)
        assert seen is not None
        assert (seen.job.status, seen.job.exit_code) == (SchedulerStatus.COMPLETED, 3)

    asyncio.run(scenario())


def test_an_end_that_can_not_be_written_yet_is_not_lost(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request(GATED + "exit 3")
            await server.scheduler.submit(request)
            await server.until(request, SchedulerStatus.RUNNING)
            # What a full disk does, for a time.
            obstacle = site.state / request.job_id / f"{STATUS}.{launcher_of(site, request)}"
            obstacle.mkdir()
            await until_true(lambda: is_started(request))
            await let_go(request)
            await until_true(lambda: is_gone(request))
            found = await server.scheduler.find(request.job_id, utc_now())
            assert found is not None
            assert found.status is SchedulerStatus.RUNNING
            obstacle.rmdir()
            assert (await server.until(request, SchedulerStatus.COMPLETED)).exit_code == 3

    asyncio.run(scenario())


def test_sigterm_to_everybody_is_not_taken_for_a_removal(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request(GATED + "exit 3")
            await server.scheduler.submit(request)
            await until_true(lambda: is_started(request))
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                os.kill(launcher_of(site, request), number)
            await let_go(request)
            assert (await server.until(request, SchedulerStatus.COMPLETED)).exit_code == 3

    asyncio.run(scenario())


@pytest.mark.parametrize("alive", [True, False])
def test_a_wish_that_the_last_server_only_wrote_down_is_carried_out(
    site: LocalSite, alive: bool
) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            resources = None if alive else await site.crowd(server)
            request = site.make_request(GATED, resources=resources)
            queued = await server.scheduler.submit(request)
            if alive:
                await until_true(lambda: is_started(request))
        wish = {"reason": REASON, "code": CODE, "grace_s": 0.1}
        (site.state / request.job_id / "remove").write_text(json.dumps(wish))
        async with site.server() as server:
            server.scheduler.track(request.job_id, queued.cluster_id, queued.proc_id)
            removed = await server.until(request, SchedulerStatus.REMOVED)
            assert (removed.reason, removed.reason_code) == (REASON, CODE)
            await until_true(lambda: is_gone(request))
        assert await count_starts(request) == int(alive)

    asyncio.run(scenario())


def test_a_removed_job_whose_launcher_is_killed_meanwhile_is_removed(site: LocalSite) -> None:
    async def scenario() -> None:
        site.grace_s = 1000
        async with site.server() as server:
            request = site.make_request("trap 'echo asked > asked' TERM\n" + GATED)
            await server.scheduler.submit(request)
            await until_true(lambda: is_started(request))
            await server.scheduler.remove(request.job_id, REASON, CODE)
            await until_true(lambda: asyncio.to_thread((request.initial_dir / "asked").exists))
            await server.scheduler.remove(request.job_id, "Another reason.", CODE + 1)
            os.kill(launcher_of(site, request), signal.SIGKILL)
            assert (await server.until(request, SchedulerStatus.REMOVED)).reason_code == CODE

    asyncio.run(scenario())


def test_a_job_that_nobody_knows_any_more_is_lost(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request("exit 0")
            server.scheduler.track(request.job_id, 7, 0)
            lost = await server.until(request, SchedulerStatus.LOST)
            assert (lost.cluster_id, lost.proc_id) == (7, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("name", [JOB, STATUS])
def test_a_damaged_record_ends_its_job_and_it_is_not_run_again(site: LocalSite, name: str) -> None:
    async def scenario() -> None:
        request = site.make_request("echo started >> ledger")
        async with site.server() as server:
            await server.run(request)
        (site.state / request.job_id / name).write_text("{")
        async with site.server() as server:
            server.scheduler.track(request.job_id, 1, 0)
            broken = await server.until(request, SchedulerStatus.BROKEN)
            assert "damaged" in (broken.reason or "")
        assert await count_starts(request) == 1

    asyncio.run(scenario())


def test_what_can_not_be_read_can_not_be_told(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request("exit 0")
            (site.state / request.job_id / JOB).mkdir(parents=True)
            with pytest.raises(SchedulerUnavailableError) as raised:
                await server.scheduler.find(request.job_id, utc_now())
            assert str(site.directory) not in str(raised.value)
            with pytest.raises(SchedulerUnavailableError):
                await server.scheduler.remove(request.job_id, REASON, CODE)

    asyncio.run(scenario())


def test_a_directory_that_can_not_be_used_stops_the_start(site: LocalSite) -> None:
    async def scenario() -> None:
        site.state.write_text("not a directory")
        scheduler = site.scheduler()
        with pytest.raises(StartupError, match="OCPS_STATE_DIR"):
            await scheduler.start(lambda news: asyncio.sleep(0))
        await scheduler.close()
        site.state.unlink()

    asyncio.run(scenario())


# The folders


def test_nobody_else_can_read_what_a_job_was_given(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            request = site.make_request("exit 0")
            await server.run(request)
            folder = site.state / request.job_id
            for directory in (site.state, folder):
                assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            assert {file.name for file in folder.iterdir()} == {JOB, STARTED, STATUS}
            for file in folder.iterdir():
                assert stat.S_IMODE(file.stat().st_mode) == 0o600

    asyncio.run(scenario())


def test_the_folder_of_a_forgotten_job_goes_when_it_has_ended(site: LocalSite) -> None:
    async def scenario() -> None:
        async with site.server() as server:
            ended, running = site.make_request("exit 0"), site.make_request(GATED)
            await server.run(ended)
            await server.scheduler.submit(running)
            await server.until(running, SchedulerStatus.RUNNING)
            for request in (ended, running):
                server.scheduler.forget(request.job_id)

            def names() -> list[str]:
                return [folder.name for folder in site.state.iterdir()]

            await until_true(lambda: asyncio.to_thread(lambda: names() == [running.job_id]))
            await let_go(running)
            await until_true(lambda: asyncio.to_thread(lambda: not names()))

    asyncio.run(scenario())


def test_a_start_clears_away_what_a_crash_left_half_made(site: LocalSite) -> None:
    async def scenario() -> None:
        for name in (".new-0-1", ".old-0"):
            (site.state / name).mkdir(parents=True)
            (site.state / name / JOB).write_text("{")
        async with site.server():
            assert list(site.state.iterdir()) == []

    asyncio.run(scenario())


def test_a_launcher_that_slept_through_its_job_s_whole_life_does_not_run_it_again(
    site: LocalSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = site.state / "job"
    folder.mkdir(parents=True)
    link = os.link

    def forgotten_before(source: str, target: str) -> None:
        # The name is free again, in a folder that is on its way out.
        folder.rename(site.state / ".old-job")
        link(site.state / ".old-job" / Path(source).name, site.state / ".old-job" / STARTED)

    monkeypatch.setattr(os, "link", forgotten_before)
    assert claim(str(folder), {}) is None
    assert not folder.exists()


def test_a_job_is_claimed_by_one_only_and_locked_from_the_first_moment(site: LocalSite) -> None:
    folder = site.state / "job"
    folder.mkdir(parents=True)
    lock = claim(str(folder), {"pid": 1})
    assert lock is not None
    assert site.folders.attach("job") is not None
    assert claim(str(folder), {"pid": 2}) is None
    assert json.loads((folder / STARTED).read_text()) == {"pid": 1}
    os.close(lock)
    assert site.folders.attach("job") is None
    assert [file.name for file in folder.iterdir()] == [STARTED]
