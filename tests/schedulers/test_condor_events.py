"""The event logs are followed to the last byte, by the real child, without a pool."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ocps_jobmanager.processes import Spawner
from ocps_jobmanager.schedulers.condor_ads import Ad
from ocps_jobmanager.schedulers.condor_child import Child, ScheddLock
from ocps_jobmanager.schedulers.condor_events import EventLogs
from ocps_jobmanager.times import utc_now
from tests.makers import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the bindings are for Linux only")

TODAY = datetime(2026, 11, 23, tzinfo=UTC)
LOG = "events-20261123.log"


def event(job_id: str, trigger: str = "EXECUTE") -> str:
    """An event as HTCondor writes it: the one that happened, and the one that carries the ad."""
    return (
        "001 (007.000.000) 2026-11-23 02:01:19 Job executing on host: <127.0.0.1:1?addrs=x>\n...\n"
        "028 (007.000.000) 2026-11-23 02:01:19 Job ad information event triggered.\n"
        "Cluster = 7\n"
        "JobStatus = 2\n"
        f'OcpsJobId = "{job_id}"\n'
        "Proc = 0\n"
        "QDate = 1795399278\n"
        f'TriggerEventTypeName = "ULOG_{trigger}"\n'
        "TriggerEventTypeNumber = 1\n"
        "...\n"
    )


class Follower:
    """A server's following of the logs in `directory`, and what it has taken in."""

    def __init__(self, directory: Path) -> None:
        self.taken: list[str] = []
        self.changed = asyncio.Event()
        self.caught_up = asyncio.Event()
        self.may_take = asyncio.Event()
        self.may_take.set()
        self.files = ThreadPoolExecutor(1)
        self.spawner = Spawner(1)
        self.lock = ScheddLock(directory.parent / "lock", self.files, utc_now)
        self.child = Child(
            "follow",
            spawner=self.spawner,
            python=Path(sys.executable),
            environ={**os.environ, "CONDOR_CONFIG": "/dev/null"},
            lock=self.lock,
        )
        self.logs = EventLogs(
            directory,
            child=self.child,
            take=self.take,
            caught_up=self.caught_up.set,
            files=self.files,
            clock=lambda: TODAY,
        )

    async def take(self, ads: Sequence[Ad]) -> None:
        await self.may_take.wait()
        self.taken += [ad["OcpsJobId"] for ad in ads]
        self.changed.set()

    async def until_taken(self, *job_ids: str) -> None:
        async with asyncio.timeout(30):
            while self.taken != list(job_ids):
                assert len(self.taken) < len(job_ids), self.taken
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def following(directory: Path) -> AsyncIterator[Follower]:
    follower = Follower(directory)
    await follower.logs.open()
    assert await follower.lock.try_acquire()
    task = asyncio.create_task(follower.logs.run())
    try:
        async with asyncio.timeout(30):
            await follower.caught_up.wait()
        yield follower
    finally:
        task.cancel()
        await asyncio.wait([task])
        await follower.logs.save()
        follower.lock.release()
        follower.files.shutdown()
        follower.spawner.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "condor"
    directory.mkdir()
    return directory


def append(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def test_what_is_there_and_what_comes_is_taken_in_once(directory: Path) -> None:
    async def scenario() -> None:
        append(directory / "events-20261122.log", event("a"))
        append(directory / LOG, event("b"))
        async with following(directory) as follower:
            await follower.until_taken("a", "b")
            await asyncio.to_thread(append, directory / LOG, event("c") + event("d"))
            await follower.until_taken("a", "b", "c", "d")
        async with following(directory) as follower:
            assert follower.taken == []
            await asyncio.to_thread(append, directory / LOG, event("e"))
            await follower.until_taken("e")

    asyncio.run(scenario())


def test_the_log_of_a_new_day_is_made_and_followed(directory: Path) -> None:
    async def scenario() -> None:
        async with following(directory) as follower:
            path = await follower.logs.log_of_today()
            assert path == directory / LOG
            assert path.exists()
            await asyncio.to_thread(append, path, event("a"))
            await follower.until_taken("a")

    asyncio.run(scenario())


def test_more_events_than_are_taken_in_at_once_come_in_their_order(directory: Path) -> None:
    async def scenario() -> None:
        ids = [f"j{number}" for number in range(1000)]
        append(directory / LOG, "".join(map(event, ids)))
        async with following(directory) as follower:
            await follower.until_taken(*ids)

    asyncio.run(scenario())


def test_what_was_not_taken_in_comes_again(directory: Path) -> None:
    async def scenario() -> None:
        append(directory / LOG, event("a"))
        async with following(directory) as follower:
            await follower.until_taken("a")
            follower.may_take.clear()
            await asyncio.to_thread(append, directory / LOG, event("b"))
        async with following(directory) as follower:
            await follower.until_taken("b")

    asyncio.run(scenario())


def test_a_child_that_dies_is_replaced_and_nothing_is_lost_or_repeated(directory: Path) -> None:
    async def scenario() -> None:
        append(directory / LOG, event("a"))
        async with following(directory) as follower:
            await follower.until_taken("a")
            await follower.child.kill()
            await asyncio.to_thread(append, directory / LOG, event("b"))
            await follower.until_taken("a", "b")
            assert follower.logs.trouble() is None

    asyncio.run(scenario())


@pytest.mark.parametrize("cut", [10, 120, 200, -1])
def test_an_event_that_is_half_written_comes_when_it_is_whole(directory: Path, cut: int) -> None:
    async def scenario() -> None:
        text = event("b")
        append(directory / LOG, event("a") + text[:cut])
        async with following(directory) as follower:
            await asyncio.to_thread(append, directory / LOG, text[cut:] + event("c"))
            await follower.until_taken("a", "b", "c")

    asyncio.run(scenario())


def test_what_is_no_event_is_passed_over(directory: Path) -> None:
    async def scenario() -> None:
        append(directory / LOG, event("a") + "\0\0\0 not an event\n...\n" + event("b"))
        async with following(directory) as follower:
            await follower.until_taken("a", "b")
            await asyncio.to_thread(append, directory / LOG, event("c"))
            await follower.until_taken("a", "b", "c")

    asyncio.run(scenario())


def test_words_in_another_encoding_do_not_stop_the_following(directory: Path) -> None:
    """As a person's reason for a hold may be; the queue tells what such an event would have."""

    async def scenario() -> None:
        held = (
            "012 (007.000.000) 2026-11-23 02:01:20 Job was held.\n"
            "\tcaf\xe9\n\tCode 1 Subcode 0\n...\n"
        )
        ad = event("x").replace("Proc = 0\n", 'HoldReason = "caf\xe9"\nProc = 0\n')
        text = event("a") + held + ad + event("b")
        (directory / LOG).write_bytes(text.encode("latin-1"))
        for expected in ("b", "c"):
            async with following(directory) as follower:
                await eventually(lambda: follower.taken[-1:] == [expected])  # noqa: B023
                assert [one for one in follower.taken if one != "x"] in (["a", "b"], ["c"])
            append(directory / LOG, event("c"))

    asyncio.run(scenario())


@pytest.mark.parametrize("after", ["b", "bcdef"])
def test_a_log_that_was_replaced_is_read_from_its_start(directory: Path, after: str) -> None:
    async def scenario() -> None:
        append(directory / LOG, event("a") * 3)
        async with following(directory) as follower:
            await follower.until_taken("a", "a", "a")
            (directory / "new").write_text("".join(map(event, after)))
            (directory / "new").rename(directory / LOG)
            await follower.until_taken("a", "a", "a", *after)

    asyncio.run(scenario())


def test_a_place_file_that_can_not_be_read_means_the_start(directory: Path) -> None:
    async def scenario() -> None:
        append(directory / LOG, event("a"))
        for text in ("", "[1]", "{", '{"events-20261123.log": 10000}'):
            (directory / "places.json").write_text(text)
            async with following(directory) as follower:
                await follower.until_taken("a")

    asyncio.run(scenario())


def test_an_old_log_goes_when_it_is_read_and_not_before(directory: Path) -> None:
    async def scenario() -> None:
        old = directory / "events-20261122.log"
        append(old, event("a"))
        async with following(directory) as follower:
            await follower.until_taken("a")
            await follower.logs.log_of_today()
            assert follower.logs.old_logs() == [old.name]
            follower.may_take.clear()
            await asyncio.to_thread(append, old, event("b"))
            await follower.logs.discard_if_read(old.name)
            assert old.exists()
            follower.may_take.set()
            await follower.until_taken("a", "b")
            async with asyncio.timeout(30):
                while follower.logs.old_logs():
                    await follower.logs.discard_if_read(old.name)
                    await asyncio.sleep(0.01)
            assert not old.exists()
        places = json.loads((directory / "places.json").read_text())
        assert places.keys() == {LOG}

    asyncio.run(scenario())
