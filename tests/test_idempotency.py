"""The same submission sent again is the same job, whatever happens in between."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocps_jobmanager.errors import (
    InvalidRequestError,
    KeyReusedError,
    TooManyWaitingError,
)
from ocps_jobmanager.idempotency import Turns, idempotency_key
from ocps_jobmanager.manager import Terms
from ocps_jobmanager.models import JobState
from tests.makers import eventually, run
from tests.world import World

BODY: dict[str, Any] = {
    "type": "ap",
    "env": {"AP_VISIT_ID": 413635, "AP_CCD_NUM": 10.5},
    "log_dir": "./logs/night",
}


def digest(body: object) -> str:
    return idempotency_key(None, "k", body).body_sha256


def scalars() -> "st.SearchStrategy[object]":
    return st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


def is_same(one: object, other: object) -> bool:
    """The same JSON value, where ``1``, ``1.0`` and ``true`` are three."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    return repr(one) == repr(other)


json_values = st.recursive(
    scalars(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner)
)


@given(json_values, json_values)
def test_a_digest_is_of_the_json_value(one: object, other: object) -> None:
    assert (digest(one) == digest(other)) is is_same(one, other)


def test_the_order_of_keys_does_not_matter_and_the_type_of_a_number_does() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert len({digest({"a": value}) for value in (1, 1.0, "1", True, [1], None)}) == 6


def test_a_body_too_deep_to_be_compared_is_refused() -> None:
    body: object = 1
    for _ in range(200_000):
        body = [body]
    with pytest.raises(InvalidRequestError, match="nested too deeply"):
        digest(body)
    while isinstance(body, list):  # or its destruction would recurse
        body = body.pop()


def test_turns_are_one_at_a_time_and_leave_nothing_behind() -> None:
    async def scenario() -> None:
        turns = Turns()
        at_it: list[str] = []

        async def work(thing: str) -> None:
            async with turns.of(thing):
                assert thing not in at_it
                at_it.append(thing)
                await asyncio.sleep(0)
                at_it.remove(thing)
                if thing == "c":
                    raise RuntimeError

        tasks = [asyncio.create_task(work(thing)) for thing in "abcaabbcc"]
        tasks[3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert turns.__dict__ == Turns().__dict__

    run(scenario())


def contents(directory: Path) -> dict[str, float]:
    """Every file and directory, with the time of its last change."""
    return {str(path): path.lstat().st_mtime_ns for path in directory.rglob("*")}


def test_a_repetition_is_the_first_job_and_creates_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            first = await world.manager.submit(BODY, key="k")
            await eventually(lambda: world.monitors.watched)
            before = contents(world.layout.work_dir)
            again = await world.manager.submit(dict(reversed(BODY.items())), key="k")
            assert again.id == first.id
            assert contents(world.layout.work_dir) == before
            assert [job.id for job in await world.store.unfinished()] == [first.id]

    run(scenario())


def test_a_repetition_needs_nothing_that_the_first_one_needed(tmp_path: Path) -> None:
    """Its type, script, log directory may be gone, its place in the queue taken, its job over."""

    async def scenario() -> None:
        async with World(tmp_path, terms=Terms(max_waiting=1)) as world:
            first = await world.manager.submit(BODY, key="k")
            await world.launched(first)
            await world.manager.submit(BODY)
            with pytest.raises(TooManyWaitingError):
                await world.manager.submit(BODY)
            await world.stop()
            world.script.unlink()
            (world.layout.logs / "night").rename(world.layout.logs / "gone")
            world.specs.write_text("type: {other: {script: jobs/other.sh, env: []}}")
            other = world.script.with_name("other.sh")
            other.write_text("#!/bin/bash\n")
            other.chmod(0o755)
            await world.start_again()
            assert (await world.manager.submit(BODY, key="k")).id == first.id
            assert not (world.layout.logs / "night").exists()
            with pytest.raises(InvalidRequestError, match="known job type"):
                await world.manager.submit(BODY, key="another")

    run(scenario())


def test_of_many_at_once_one_job_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for it: they neither check nor make nor take anything."""

    async def scenario() -> None:
        async with World(tmp_path) as world:
            checked = []
            check = world.manager._check

            async def counted(body: object) -> Any:
                checked.append(body)
                return await check(body)

            monkeypatch.setattr(world.manager, "_check", counted)
            jobs = await asyncio.gather(*(world.manager.submit(BODY, key="k") for _ in range(50)))
            assert len({job.id for job in jobs}) == 1
            assert len(await world.store.unfinished()) == 1
            assert checked == [BODY]

    run(scenario())


def test_another_body_with_the_same_key_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            first = await world.manager.submit(BODY, key="k")
            for other in (BODY | {"run_id": "1"}, {}, [], "x", None):
                with pytest.raises(KeyReusedError):
                    await world.manager.submit(other, key="k")
            assert [job.id for job in await world.store.unfinished()] == [first.id]
            outcomes = await asyncio.gather(
                *(world.manager.submit(BODY | {"run_id": str(n)}, key="new") for n in range(10)),
                return_exceptions=True,
            )
            refused = [outcome for outcome in outcomes if isinstance(outcome, KeyReusedError)]
            assert len(refused) == 9

    run(scenario())


def test_a_refused_submission_does_not_use_its_key_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            with pytest.raises(InvalidRequestError):
                await world.manager.submit(BODY | {"type": "unknown"}, key="k")
            assert (await world.manager.submit(BODY, key="k")).state is JobState.WAITING

    run(scenario())


def test_each_caller_has_keys_of_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            jobs = [
                await world.manager.submit(BODY, owner=owner, key="k")
                for owner in (None, "alice", "bob", "alice", None)
            ]
            assert [job.owner for job in jobs] == [None, "alice", "bob", "alice", None]
            assert len({job.id for job in jobs}) == 3

    run(scenario())


def test_a_repetition_after_a_crash_finds_what_was_committed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path) as world:
            first = await world.manager.submit(BODY, key="k")
            await world.restart()
            assert (await world.manager.submit(BODY, key="k")).id == first.id

    run(scenario())


def test_only_those_that_wait_count_against_the_limit(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with World(tmp_path, terms=Terms(max_waiting=2)) as world:
            jobs = [await world.submit() for _ in range(2)]
            with pytest.raises(TooManyWaitingError, match=r"may \(2\)"):
                await world.submit()
            assert len(await world.store.unfinished()) == 2
            await world.submit("now")
            await world.launched(jobs[0])
            await world.submit()
            await world.manager.remove(jobs[1].id)
            outcomes = await asyncio.gather(
                *(world.submit() for _ in range(10)), return_exceptions=True
            )
            assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 1

    run(scenario())
