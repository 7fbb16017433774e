"""The suite that every scheduler passes: HTCondor, this machine, and the fake of the tests.

A scheduler is tried by deriving from `SchedulerContract` (the rules) or `ExecutionContract` (the
rules, and what a job finds where it runs), with a fixture that gives a `Site`::

    class TestLocal(ExecutionContract):
        @pytest.fixture
        def site(self, tmp_path):
            site = LocalSite(tmp_path)
            yield site
            site.close()

Nothing here knows which scheduler it is. Jobs need ``/bin/bash`` and coreutils only.
"""

import asyncio
import fcntl
import re
import stat
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ocps_jobmanager.models import Limits, Resources
from ocps_jobmanager.schedulers.base import (
    LaunchRequest,
    Scheduler,
    SchedulerJob,
    SchedulerStatus,
)
from ocps_jobmanager.times import utc_now

T = TypeVar("T")

REASON = 'Asked for by a test; with "quotes" and $$(Arch).'
CODE = 4242
ENDS = frozenset(
    {
        SchedulerStatus.COMPLETED,
        SchedulerStatus.REMOVED,
        SchedulerStatus.LOST,
        SchedulerStatus.BROKEN,
    }
)
PATH = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
#: A job that holds a lock with all its processes, tells that it runs, and waits to be let go.
GATED = """
echo started >> ledger
exec 9> alive
flock 9
until [ -e go ]; do sleep 0.05; done
"""


class Site(ABC):
    """Where jobs run: what is there before, between and after the servers.

    Parameters
    ----------
    directory : pathlib.Path
        Exists; seen under this path by the jobs too.
    """

    deadline_s = 60.0
    """How long a test waits for any one thing. Long: it is only ever used up by a failure."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @abstractmethod
    def scheduler(self) -> Scheduler:
        """A new scheduler object on this site, as a server makes one at each start.

        Called on the event loop. What an earlier one queued is still there.
        """

    @abstractmethod
    async def crowd(self, server: "Server") -> Resources:
        """See to it that a job which asks for the returned resources stays in the queue."""

    def sets_itself(self, name: str) -> bool:
        """Whether the scheduler adds the variable `name` to a job's environment."""
        return False

    @asynccontextmanager
    async def server(self) -> "AsyncIterator[Server]":
        """One life of a server on this site."""
        server = Server(self, self.scheduler())
        await server.scheduler.start(server.take)
        try:
            yield server
        finally:
            await server.scheduler.close()

    def make_request(
        self,
        script: str,
        *,
        environment: Mapping[str, str] = PATH,
        resources: Resources | None = None,
        limits: Limits | None = None,
    ) -> LaunchRequest:
        """A job that runs `script` (bash), with the files and directories that a job gets."""
        job_id = uuid.uuid4().hex
        executable = self.directory / "code" / f"{job_id}.sh"
        output = self.directory / "output" / job_id
        logs = self.directory / "logs with a blank"
        for directory in (executable.parent, output, logs):
            directory.mkdir(parents=True, exist_ok=True)
        executable.write_text("#!/bin/bash\n" + script)
        executable.chmod(0o555)
        request = LaunchRequest(
            job_id=job_id,
            executable=executable,
            environment=environment,
            initial_dir=output,
            out=logs / f"{job_id}.out",
            err=logs / f"{job_id}.err",
            log=logs / f"{job_id}.log",
            resources=resources or Resources(),
            limits=limits or Limits(),
        )
        for path in (request.out, request.err, request.log):
            path.touch()
            path.chmod(0o640)
        return request


class Server:
    """The Job Manager's side of a scheduler: keeps the news, in order."""

    def __init__(self, site: Site, scheduler: Scheduler) -> None:
        self.site = site
        self.scheduler = scheduler
        self.news: list[SchedulerJob] = []
        self.refuse_news = 0
        """So many of the next deliveries fail, as they do while the database is away."""
        self._deadline_s = site.deadline_s
        self._changed = asyncio.Event()
        self._taking = False

    async def take(self, news: Sequence[SchedulerJob]) -> None:
        """The sink."""
        assert not self._taking, "two deliveries at once"
        self._taking = True
        await asyncio.sleep(0)
        self._taking = False
        if self.refuse_news:
            self.refuse_news -= 1
            raise OSError("the database is away")
        self.news.extend(news)
        self._changed.set()

    def of(self, request: LaunchRequest) -> list[SchedulerJob]:
        """The news of one job."""
        return [job for job in self.news if job.job_id == request.job_id]

    def known(self, request: LaunchRequest) -> SchedulerJob:
        """What the news of one job say together: the latest of each field that is not None."""
        known, *later = self.of(request)
        for job in later:
            told = {field.name: getattr(job, field.name) for field in fields(job)}
            if job.status is SchedulerStatus.UNKNOWN:
                told["status"] = None
            known = replace(known, **{k: v for k, v in told.items() if v is not None})
        return known

    async def until(self, request: LaunchRequest, *statuses: SchedulerStatus) -> SchedulerJob:
        """The first news, past or to come, that the job is in one of `statuses`."""
        try:
            async with asyncio.timeout(self._deadline_s):
                while True:
                    self._changed.clear()
                    for job in self.of(request):
                        if job.status in statuses:
                            return job
                        assert job.status not in ENDS, f"ended otherwise: {job}"
                    await self._changed.wait()
        except TimeoutError:
            pytest.fail(f"never {statuses}; the news: {self.of(request)}")

    async def until_found(self, request: LaunchRequest, *statuses: SchedulerStatus) -> SchedulerJob:
        """What `find` says, once the job is in one of `statuses`."""

        async def found() -> SchedulerJob | None:
            job = await self.scheduler.find(request.job_id, utc_now() - timedelta(minutes=5))
            return job if job is not None and job.status in statuses else None

        return await until_true(found, self._deadline_s)

    async def until_start(self, request: LaunchRequest, number: int) -> SchedulerJob:
        """The first news of this start of the job."""
        async with asyncio.timeout(self._deadline_s):
            while True:
                self._changed.clear()
                for job in self.of(request):
                    if (job.num_starts or 0) >= number:
                        return job
                await self._changed.wait()

    async def run(self, request: LaunchRequest) -> SchedulerJob:
        """Submit a job and wait for its end."""
        await self.scheduler.submit(request)
        return await self.until(request, SchedulerStatus.COMPLETED)


async def until_true(
    look: Callable[[], Coroutine[object, object, T | None]], deadline_s: float = 60.0
) -> T:
    """What `look` returns, as soon as that is not None or False."""
    async with asyncio.timeout(deadline_s):
        while not (seen := await look()):
            await asyncio.sleep(0.02)
    return seen


async def let_go(request: LaunchRequest) -> None:
    """Let a job that waits at ``GATED`` go on."""
    await asyncio.to_thread((request.initial_dir / "go").touch)


async def is_started(request: LaunchRequest) -> bool:
    """Whether the job's script has begun."""
    return await asyncio.to_thread((request.initial_dir / "ledger").exists)


async def count_starts(request: LaunchRequest) -> int:
    """How often the job's script was begun."""

    def count() -> int:
        ledger = request.initial_dir / "ledger"
        return len(ledger.read_text().splitlines()) if ledger.exists() else 0

    return await asyncio.to_thread(count)


def assert_in_order(news: Sequence[SchedulerJob]) -> None:
    """No news of a job's earlier life after the first of a later one; one end only."""
    order = [SchedulerStatus.IDLE, SchedulerStatus.RUNNING, SchedulerStatus.COMPLETED]
    seen = [job.status for job in news if job.status is not SchedulerStatus.UNKNOWN]
    first = [seen.index(status) for status in order if status in seen]
    assert first == sorted(first), seen
    assert len({status for status in seen if status in ENDS}) <= 1, seen


class SchedulerContract:
    """The rules that the Job Manager relies on."""

    @pytest.fixture
    def site(self) -> Site:
        """Where the jobs of one test run."""
        raise NotImplementedError("the deriving class gives the site")

    def test_a_job_runs_and_its_end_comes_as_news(self, site: Site) -> None:
        async def scenario() -> None:
            before = utc_now()
            async with site.server() as server:
                request = site.make_request(GATED)
                queued = await server.scheduler.submit(request)
                assert queued.job_id == request.job_id
                assert queued.cluster_id >= 1
                assert queued.proc_id >= 0
                await server.until(request, SchedulerStatus.RUNNING)
                await let_go(request)
                done = await server.until(request, SchedulerStatus.COMPLETED)
                assert (done.cluster_id, done.proc_id) == (queued.cluster_id, queued.proc_id)
                assert (done.exit_code, done.exit_signal) == (0, None)
                assert_in_order(server.of(request))
                assert_times(server.known(request), before)
                assert server.known(request).num_starts == 1
                assert server.known(request).remote_host
            assert await count_starts(request) == 1

        asyncio.run(scenario())

    def test_the_exit_code_of_a_failing_job_is_reported(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:
                done = await server.run(site.make_request("exit 213"))
                assert (done.exit_code, done.exit_signal) == (213, None)

        asyncio.run(scenario())

    def test_the_signal_that_killed_a_job_is_reported(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:
                done = await server.run(site.make_request("kill -KILL $$"))
                assert (done.exit_code, done.exit_signal) == (None, 9)

        asyncio.run(scenario())

    def test_a_script_that_fails_is_run_again_as_often_as_is_allowed(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:
                # Each run waits for a file of its own, so that each is seen.
                script = (
                    'echo x >> ledger; n=$(wc -l < ledger); echo "run $n"\n'
                    "until [ -e go$n ]; do sleep 0.05; done; exit $((40 + n))"
                )
                request = site.make_request(script, limits=Limits(max_retries=2))
                await server.scheduler.submit(request)
                starts = []
                for number in (1, 2, 3):
                    seen = await server.until_start(request, number)
                    assert seen.status is not SchedulerStatus.COMPLETED
                    assert seen.num_starts == number
                    await asyncio.to_thread((request.initial_dir / f"go{number}").touch)
                    starts.append(server.known(request).time_started)
                done = await server.until(request, SchedulerStatus.COMPLETED)
                assert (done.exit_code, done.exit_signal, done.num_starts) == (43, None, 3)
                assert starts == sorted(starts)  # type: ignore[type-var]
                assert server.known(request).time_started == done.time_started
            assert await count_starts(request) == 3
            await self.check_output(request, "run 3\n")

        asyncio.run(scenario())

    def test_a_script_that_succeeds_is_not_run_again(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:
                second = 'echo x >> ledger; [ "$(wc -l < ledger)" = 2 ]'
                request = site.make_request(second, limits=Limits(max_retries=5))
                done = await server.run(request)
                assert (done.exit_code, done.num_starts) == (0, 2)
            assert await count_starts(request) == 2

        asyncio.run(scenario())

    def test_a_signal_is_a_failure_after_which_it_is_run_again(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:
                script = "echo x >> ledger; kill -KILL $$"
                request = site.make_request(script, limits=Limits(max_retries=1))
                done = await server.run(request)
                assert (done.exit_code, done.exit_signal, done.num_starts) == (None, 9, 2)
            assert await count_starts(request) == 2

        asyncio.run(scenario())

    def test_a_job_that_is_removed_is_not_run_again(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:
                script = "trap 'exit 7' TERM\n" + GATED
                request = site.make_request(script, limits=Limits(max_retries=9))
                await server.scheduler.submit(request)
                await server.until(request, SchedulerStatus.RUNNING)
                await until_true(lambda: is_started(request))
                await server.scheduler.remove(request.job_id, REASON, CODE)
                removed = await server.until(request, SchedulerStatus.REMOVED)
                assert removed.reason_code == CODE
            await until_true(lambda: is_gone(request))
            assert await count_starts(request) == 1

        asyncio.run(scenario())

    def test_the_next_server_is_told_of_starts_that_it_missed(self, site: Site) -> None:
        async def scenario() -> None:
            script = (
                "echo x >> ledger; n=$(wc -l < ledger)\n"
                "until [ -e go$n ]; do sleep 0.05; done; exit $n"
            )
            request = site.make_request(script, limits=Limits(max_retries=2))
            async with site.server() as server:
                queued = await server.scheduler.submit(request)
                await server.until_start(request, 1)
            await asyncio.to_thread((request.initial_dir / "go1").touch)

            async def runs_again() -> bool:
                return await count_starts(request) == 2

            await until_true(runs_again)
            async with site.server() as server:
                server.scheduler.track(request.job_id, queued.cluster_id, queued.proc_id)
                await server.until_start(request, 2)
                for number in (2, 3):
                    await asyncio.to_thread((request.initial_dir / f"go{number}").touch)
                done = await server.until(request, SchedulerStatus.COMPLETED)
                assert (done.exit_code, done.num_starts) == (3, 3)
            assert await count_starts(request) == 3

        asyncio.run(scenario())

    @staticmethod
    async def check_output(request: LaunchRequest, wanted: str) -> None:
        """What a job has written to its standard output; not every stand-in keeps it."""

    def test_jobs_get_ids_of_their_own_and_their_own_news(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:
                requests = [site.make_request(f"exit {code}") for code in range(3)]
                queued = [await server.scheduler.submit(request) for request in requests]
                assert len({(job.cluster_id, job.proc_id) for job in queued}) == 3
                for code, request in enumerate(requests):
                    done = await server.until(request, SchedulerStatus.COMPLETED)
                    assert done.exit_code == code

        asyncio.run(scenario())

    def test_news_that_could_not_be_stored_come_again(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:
                request = site.make_request(GATED + "exit 5")
                await server.scheduler.submit(request)
                await server.until(request, SchedulerStatus.RUNNING)
                server.refuse_news = 2
                await let_go(request)
                done = await server.until(request, SchedulerStatus.COMPLETED)
                assert done.exit_code == 5
                assert server.refuse_news == 0

        asyncio.run(scenario())

    def test_an_unknown_job_is_not_found(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:
                found = await server.scheduler.find(uuid.uuid4().hex, utc_now())
                assert found is None

        asyncio.run(scenario())

    def test_a_queued_job_is_found(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:
                request = site.make_request(GATED, resources=await site.crowd(server))
                queued = await server.scheduler.submit(request)
                found = await server.until_found(request, SchedulerStatus.IDLE)
                assert (found.cluster_id, found.proc_id) == (queued.cluster_id, queued.proc_id)
                await server.scheduler.remove(request.job_id, REASON, CODE)
                await server.until(request, SchedulerStatus.REMOVED)

        asyncio.run(scenario())

    def test_a_running_job_is_found_by_the_next_server_and_followed(self, site: Site) -> None:
        async def scenario() -> None:
            request = site.make_request(GATED + "exit 6")
            async with site.server() as server:
                queued = await server.scheduler.submit(request)
                await server.until(request, SchedulerStatus.RUNNING)
            async with site.server() as server:
                found = await server.until_found(request, SchedulerStatus.RUNNING)
                assert (found.cluster_id, found.proc_id) == (queued.cluster_id, queued.proc_id)
                await let_go(request)
                done = await server.until(request, SchedulerStatus.COMPLETED)
                assert done.exit_code == 6
            assert await count_starts(request) == 1

        asyncio.run(scenario())

    def test_a_finished_job_is_found_with_its_end(self, site: Site) -> None:
        async def scenario() -> None:
            request = site.make_request("exit 7")
            async with site.server() as server:
                await server.run(request)
                found = await server.until_found(request, SchedulerStatus.COMPLETED)
                assert found.exit_code == 7
            async with site.server() as server:
                found = await server.until_found(request, SchedulerStatus.COMPLETED)
                assert (found.exit_code, found.exit_signal) == (7, None)

        asyncio.run(scenario())

    def test_the_next_server_gets_the_end_of_a_job_that_it_tracks(self, site: Site) -> None:
        async def scenario() -> None:
            request = site.make_request(GATED + "exit 8")
            async with site.server() as server:
                queued = await server.scheduler.submit(request)
                await server.until(request, SchedulerStatus.RUNNING)
            async with site.server() as server:
                server.scheduler.track(request.job_id, queued.cluster_id, queued.proc_id)
                await server.until(request, SchedulerStatus.RUNNING)
                await let_go(request)
                done = await server.until(request, SchedulerStatus.COMPLETED)
                assert done.exit_code == 8
                assert_in_order(server.of(request))
            assert await count_starts(request) == 1

        asyncio.run(scenario())

    def test_the_next_server_is_told_of_an_end_that_it_missed(self, site: Site) -> None:
        async def scenario() -> None:
            request = site.make_request(GATED + "exit 9")
            async with site.server() as server:
                queued = await server.scheduler.submit(request)
                await server.until(request, SchedulerStatus.RUNNING)
            await let_go(request)
            await until_true(lambda: is_gone(request))
            async with site.server() as server:
                server.scheduler.track(request.job_id, queued.cluster_id, queued.proc_id)
                done = await server.until(request, SchedulerStatus.COMPLETED)
                assert done.exit_code == 9
            assert await count_starts(request) == 1

        asyncio.run(scenario())

    def test_a_removed_idle_job_never_runs(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:
                request = site.make_request(GATED, resources=await site.crowd(server))
                await server.scheduler.submit(request)
                await server.scheduler.remove(request.job_id, REASON, CODE)
                removed = await server.until(request, SchedulerStatus.REMOVED)
                assert REASON in (removed.reason or "")
                assert removed.reason_code == CODE
                assert (removed.exit_code, removed.exit_signal) == (None, None)
            assert await count_starts(request) == 0

        asyncio.run(scenario())

    def test_a_removed_running_job_is_asked_to_end_and_is_gone(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:
                request = site.make_request("trap 'echo asked > asked; exit 0' TERM\n" + GATED)
                await server.scheduler.submit(request)
                await server.until(request, SchedulerStatus.RUNNING)
                await until_true(lambda: is_started(request))
                await server.scheduler.remove(request.job_id, REASON, CODE)
                removed = await server.until(request, SchedulerStatus.REMOVED)
                assert REASON in (removed.reason or "")
                assert removed.reason_code == CODE
                await until_true(lambda: is_gone(request))
                assert await asyncio.to_thread((request.initial_dir / "asked").exists)

        asyncio.run(scenario())

    def test_removing_again_or_after_the_end_changes_nothing(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:
                done, removed = site.make_request("exit 3"), site.make_request(GATED)
                await server.scheduler.submit(removed)
                for _ in range(3):
                    await server.scheduler.remove(removed.job_id, REASON, CODE)
                await server.until(removed, SchedulerStatus.REMOVED)
                await server.scheduler.remove(removed.job_id, "Another reason.", CODE + 1)
                await server.run(done)
                await server.scheduler.remove(done.job_id, REASON, CODE)
                await server.scheduler.remove(uuid.uuid4().hex, REASON, CODE)
                found = await server.until_found(removed, SchedulerStatus.REMOVED)
                assert found.reason_code == CODE
                found = await server.until_found(done, SchedulerStatus.COMPLETED)
                assert found.exit_code == 3
                assert_in_order(server.of(done))
                assert_in_order(server.of(removed))

        asyncio.run(scenario())

    def test_a_forgotten_job_is_no_error(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:
                request = site.make_request("exit 0")
                await server.run(request)
                server.scheduler.forget(request.job_id)
                server.scheduler.forget(request.job_id)
                server.scheduler.forget(uuid.uuid4().hex)
                assert (await server.run(site.make_request("exit 4"))).exit_code == 4

        asyncio.run(scenario())

    def test_the_health_of_a_scheduler_that_works_is_good(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:

                async def is_ok() -> bool:
                    return server.scheduler.health().ok

                await until_true(is_ok, site.deadline_s)
                health = server.scheduler.health()
                assert health.since <= utc_now()
                assert str(site.directory) not in health.detail

        asyncio.run(scenario())


async def is_gone(request: LaunchRequest) -> bool:
    """Whether no process of a job that began with ``GATED`` is left: none holds its lock."""

    def look() -> bool:
        with (request.initial_dir / "alive").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    return await asyncio.to_thread(look)


def assert_times(job: SchedulerJob, before: datetime) -> None:
    """A finished job's times are aware, in order, and of this test; HTCondor counts in seconds."""
    second = timedelta(seconds=1)
    times = [job.time_queued, job.time_started, job.time_completed]
    known = [time for time in times if time is not None]
    assert len(known) == 3, times
    assert all(time.utcoffset() == timedelta(0) for time in known)
    for earlier, later in zip([before, *known], [*known, utc_now()], strict=True):
        assert earlier <= later + second, (before, *times)


#: What may be in a value: all but NUL, newline, carriage return, US and lone surrogates.
VALUES = st.text(
    st.characters(exclude_characters="\0\n\r\x1f", exclude_categories=["Cs"]), max_size=60
)
NASTY = (
    "",
    " ",
    " leading and trailing ",
    "it's",
    '"double"',
    "'\"'\"",
    "a;b",
    "a=b",
    "a,b|c&d",
    "# no comment",
    ")",
    "$",
    "$$",
    "$$$",
    "$(HOME)",
    "$(ClusterId)",
    "$$(Arch)",
    "$$(NoSuchThing)",
    "$$([1+1])",
    "$ENV(PATH)",
    "$RANDOM_CHOICE(a,b)",
    "$(DOLLAR)",
    "$$(DOLLARDOLLAR)",
    "`id`",
    "$(id)",
    "${PATH}",
    "\\",
    "\\\\",
    "ends in \\",
    "\\n",
    "%s %d %%",
    "\t",
    "".join(chr(code) for code in range(1, 32) if chr(code) not in "\n\r\x1f"),
    "\x7f",
    "\u00e9\u4e16\U0001f52d\ufeff",
    "queue 7",
    "x" * 100_000,
)


class ExecutionContract(SchedulerContract):
    """Beside the rules: what a job finds where it runs, and what it leaves."""

    @staticmethod
    async def check_output(request: LaunchRequest, wanted: str) -> None:
        assert await asyncio.to_thread(request.out.read_text) == wanted

    @staticmethod
    def environment_of(site: Site, wanted: Mapping[str, str]) -> dict[str, str]:
        """The environment that a job with the environment `wanted` really gets."""

        async def scenario() -> bytes:
            async with site.server() as server:
                request = site.make_request("/bin/cat /proc/$$/environ > seen", environment=wanted)
                assert (await server.run(request)).exit_code == 0
                return await asyncio.to_thread((request.initial_dir / "seen").read_bytes)

        pairs = asyncio.run(scenario()).decode().split("\0")[:-1]
        assert len({pair.partition("=")[0] for pair in pairs}) == len(pairs), "a name twice"
        return dict(pair.split("=", 1) for pair in pairs)

    def check_environment(self, site: Site, values: Sequence[str]) -> None:
        """A job gets these values byte for byte, and nothing else."""
        wanted = {f"V{number}": value for number, value in enumerate(values)}
        seen = self.environment_of(site, wanted)
        more = {name for name in seen if name not in wanted and not site.sets_itself(name)}
        assert not more
        assert {name: seen.get(name) for name in wanted} == wanted

    def test_nasty_values_reach_the_job_byte_for_byte_and_nothing_else_does(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("A_SECRET_OF_THE_SERVER", "not for jobs")
        self.check_environment(site, NASTY)

    def test_a_job_may_have_no_environment_at_all(self, site: Site) -> None:
        self.check_environment(site, [])

    def test_any_values_reach_the_job_byte_for_byte(self, site: Site) -> None:
        @settings(
            max_examples=3, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(st.lists(VALUES, min_size=50, max_size=200))
        def check(values: list[str]) -> None:
            self.check_environment(site, values)

        check()

    def test_a_job_starts_in_its_directory_and_writes_to_its_files(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:
                request = site.make_request("pwd -P; echo oops >&2; echo made > here; cat")
                assert (await server.run(request)).exit_code == 0

            def look() -> None:
                assert Path(request.out.read_text().strip()) == request.initial_dir.resolve()
                assert request.err.read_text() == "oops\n"
                assert (request.initial_dir / "here").read_text() == "made\n"
                for path in (request.out, request.err, request.log):
                    assert stat.S_IMODE(path.stat().st_mode) == 0o640

            await asyncio.to_thread(look)

        asyncio.run(scenario())

    def test_the_user_log_tells_the_life_of_the_job(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:
                request = site.make_request("exit 3")
                await server.scheduler.submit(request)
                done = await server.until(request, SchedulerStatus.COMPLETED)
                events = await until_true(lambda: log_events(request, "005"))
                numbers = [number for number, _ in events]
                assert [number for number in numbers if number in ("000", "001", "005")] == [
                    "000",
                    "001",
                    "005",
                ]
                assert {cluster for _, cluster in events} == {done.cluster_id}

        asyncio.run(scenario())

    def test_the_user_log_tells_of_a_removal(self, site: Site) -> None:
        async def scenario() -> None:
            async with site.server() as server:
                request = site.make_request(GATED, resources=await site.crowd(server))
                await server.scheduler.submit(request)
                await server.scheduler.remove(request.job_id, REASON, CODE)
                await server.until(request, SchedulerStatus.REMOVED)
                await until_true(lambda: log_events(request, "009"))

        asyncio.run(scenario())


async def log_events(request: LaunchRequest, until: str) -> list[tuple[str, int]]:
    """Number and cluster of the events in a job's user log, once one numbered `until` is there."""
    text = await asyncio.to_thread(request.log.read_text)
    events = re.findall(r"^(\d{3}) \((\d+)\.\d+\.\d+\) \d", text, re.MULTILINE)
    if until not in [number for number, _ in events]:
        return []
    return [(number, int(cluster)) for number, cluster in events]
