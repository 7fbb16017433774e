"""What the store promises: durable, compare-and-set, one file that nobody else may read."""

import asyncio
import dataclasses
import itertools
import sqlite3
import stat
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from ocps_jobmanager.errors import (
    KeyReusedError,
    StartupError,
    TooManyWaitingError,
    UnavailableError,
)
from ocps_jobmanager.models import (
    FINAL_STATES,
    TRANSITIONS,
    IdempotencyKey,
    JobState,
    Removal,
    Transition,
)
from ocps_jobmanager.store import JobStore, schema
from ocps_jobmanager.store.migrations import migrate
from ocps_jobmanager.times import utc_now
from tests.makers import eventually, new_job, run

S = JobState


def with_store(path: Path, test: Callable[[JobStore], Awaitable[Any]]) -> Any:
    async def scenario() -> Any:
        store = JobStore(path)
        await store.open()
        try:
            return await test(store)
        finally:
            await store.close()

    return run(scenario())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite3"


def test_a_job_comes_back_as_it_was_accepted(path: Path) -> None:
    new = new_job(env={"A": "ü \x01 'quoted'", "B": "x" * 100_000}, run_id="41")
    added = with_store(path, lambda store: store.add(new))
    again = with_store(path, lambda store: store.get(new.id))
    assert again == added
    assert again.time_submitted - new.time_submitted < timedelta(milliseconds=1)
    expected = dataclasses.replace(new, time_submitted=again.time_submitted)
    assert {name: getattr(again, name) for name in vars(new)} == vars(expected)


async def _in_state(store: JobStore, state: JobState) -> str:
    """A job that has got into `state` by allowed steps."""
    job_id = (await store.add(new_job())).id
    if state is not S.WAITING:
        await store.record([Transition(job_id=job_id, to=S.SUBMITTING)])
    if state not in {S.WAITING, S.SUBMITTING}:
        await store.record([Transition(job_id=job_id, to=state)])
    return job_id


def test_the_one_door_keeps_to_the_table(path: Path) -> None:
    """Every state by every state: what the table refuses changes nothing, not even the history."""

    async def scenario(store: JobStore) -> None:
        for before, after in itertools.product(JobState, JobState):
            job_id = await _in_state(store, before)
            rows = len(await store.history(job_id))
            change = Transition(job_id=job_id, to=after, reason="news", details={"memory_mb": 7})
            [changed] = await store.record([change])
            job = await store.get(job_id)
            assert job is not None
            history = await store.history(job_id)
            if after in TRANSITIONS[before]:
                assert (job.state, job.reason, job.memory_mb) == (after, "news", 7)
                assert changed == job
                assert [event.state for event in history[rows:]] == [after]
            else:
                noted = before is after and before not in FINAL_STATES
                assert (job.state, job.reason) == (before, None)
                assert job.memory_mb == (7 if noted else None)
                assert len(history) == rows
                assert changed == (job if noted else None)

    with_store(path, scenario)


def test_repeated_news_change_nothing(path: Path) -> None:
    async def scenario(store: JobStore) -> None:
        job_id = await _in_state(store, S.RUNNING)
        change = Transition(job_id=job_id, to=S.RUNNING, details={"remote_host": "h"})
        assert (await store.record([change]))[0] is not None
        assert (await store.record([change]))[0] is None

    with_store(path, scenario)


def test_a_narrowed_transition_does_not_turn_news_back(path: Path) -> None:
    """The scheduler's answer to a submission may be overtaken by the start of the job."""

    async def scenario(store: JobStore) -> None:
        job_id = await _in_state(store, S.RUNNING)
        late = Transition(job_id=job_id, to=S.IDLE, only_from=frozenset({S.SUBMITTING}))
        assert await store.record([late]) == [None]
        assert (await store.get(job_id)).state is S.RUNNING  # type: ignore[union-attr]

    with_store(path, scenario)


def test_of_concurrent_callers_one_makes_the_transition(path: Path) -> None:
    async def scenario(store: JobStore) -> None:
        job_id = (await store.add(new_job())).id
        change = Transition(job_id=job_id, to=S.SUBMITTING)
        results = await asyncio.gather(*(store.record([change]) for _ in range(20)))
        # The others find the job in the state already, with nothing new to note.
        assert sum(result != [None] for result in results) == 1
        assert len(await store.history(job_id)) == 2

    with_store(path, scenario)


def test_no_attempt_begins_after_a_removal_was_requested(path: Path) -> None:
    async def scenario(store: JobStore) -> None:
        job_id = await _in_state(store, S.SUBMITTING)
        begun = await store.begin_attempt(job_id)
        assert begun is not None
        assert begun.attempt == 1
        first = Removal(final_state=S.REMOVED, reason="Removed on request.")
        await store.request_removal(job_id, first)
        assert await store.begin_attempt(job_id) is None
        second = Removal(final_state=S.FAILED, reason="Too long.")
        asked = await store.request_removal(job_id, second)
        assert asked is not None
        assert asked.removal == first, "the first wish stays"

    with_store(path, scenario)


def test_an_ended_job_takes_no_wish_and_no_remark(path: Path) -> None:
    async def scenario(store: JobStore) -> None:
        job_id = await _in_state(store, S.COMPLETED)
        wish = Removal(final_state=S.REMOVED, reason="Removed on request.")
        assert await store.request_removal(job_id, wish) is None
        assert await store.note(job_id, reason="x") is None
        job = await store.get(job_id)
        assert job is not None
        assert (job.removal, job.reason) == (None, None)

    with_store(path, scenario)


def test_keys_lead_to_their_job_only(path: Path) -> None:
    async def scenario(store: JobStore) -> None:
        one, two = await store.add(new_job()), await store.add(new_job())
        assert await store.by_monitor_key(one.monitor_key) == one
        assert await store.by_monitor_key(two.monitor_key) == two
        for wrong in ("", one.id, one.monitor_key[:-1], one.monitor_key.upper(), "\udc80"):
            assert await store.by_monitor_key(wrong) is None

    with_store(path, scenario)


def test_pages_newest_first_without_gap_or_repetition(path: Path) -> None:
    async def scenario(store: JobStore) -> None:
        ids = [(await store.add(new_job())).id for _ in range(7)]
        await store.record([Transition(job_id=ids[3], to=S.REMOVED)])
        pages, before = [], None
        while page := await store.list_ids(list(S), limit=3, before_seq=before):
            pages.append([job_id for _, job_id in page])
            before = page[-1][0]
        assert [len(page) for page in pages] == [3, 3, 1]
        assert list(itertools.chain(*pages)) == ids[::-1]
        waiting = await store.list_ids([S.WAITING], limit=10, before_seq=None)
        assert [job_id for _, job_id in waiting] == [i for i in ids[::-1] if i != ids[3]]

    with_store(path, scenario)


def test_unfinished_is_what_a_start_takes_up(path: Path) -> None:
    async def scenario(store: JobStore) -> None:
        ids = {state: await _in_state(store, state) for state in S}
        unfinished = {job.id for job in await store.unfinished()}
        assert unfinished == {ids[state] for state in S if state not in FINAL_STATES}

    with_store(path, scenario)


async def _ended_at(store: JobStore, time: datetime, state: JobState = S.COMPLETED) -> str:
    job_id = await _in_state(store, S.RUNNING)
    await store.record([Transition(job_id=job_id, to=state, details={"time_completed": time})])
    return job_id


def test_pages_of_what_ended_long_ago_in_the_order_of_the_ends(path: Path) -> None:
    async def scenario(store: JobStore) -> None:
        then = utc_now() - timedelta(days=30)
        for state in S:
            if state not in FINAL_STATES:
                await _in_state(store, state)
        await _ended_at(store, then + timedelta(milliseconds=2))
        # Three ends in the same millisecond, and an earlier one of the job that came last.
        ids = [await _ended_at(store, then) for _ in range(2)]
        ids.append(await _ended_at(store, then, S.REMOVED))
        ids.insert(0, await _ended_at(store, then - timedelta(days=1), S.FAILED))
        pages, last = [], None
        while page := await store.ended_before(then, after=last, limit=2):
            pages.append([job.id for job in page])
            last = page[-1]
        assert pages == [ids[:2], ids[2:]]

    with_store(path, scenario)


def test_looking_for_what_ended_long_ago_does_not_sort_everything(path: Path) -> None:
    async def scenario(store: JobStore) -> None:
        statements = []

        def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
            statements.append((statement, values))

        sa.event.listen(store._database._engine, "before_cursor_execute", note)
        last = await store.get(await _ended_at(store, utc_now()))
        await store.ended_before(utc_now(), after=last, limit=2)
        statement, values = statements[-1]
        plan = await store._database.read(
            lambda connection: connection.exec_driver_sql(
                f"EXPLAIN QUERY PLAN {statement}", values
            ).all()
        )
        assert [row.detail for row in plan] == [
            "SEARCH job USING INDEX job_by_end (time_completed>? AND time_completed<?)"
        ]

    with_store(path, scenario)


def test_a_deleted_job_leaves_nothing_and_its_number_is_not_given_again(path: Path) -> None:
    async def scenario(store: JobStore) -> None:
        key = IdempotencyKey(owner="", key="k", body_sha256="0" * 64)
        old = await store.add(new_job(), key=key)
        await store.record([Transition(job_id=old.id, to=S.REMOVED)])
        waiting = await store.add(new_job())
        await store.delete_ended([old.id, waiting.id, "nobody"])
        assert await store.get(old.id) is None
        assert await store.history(old.id) == []
        assert await store.by_idempotency_key(key) is None
        assert await store.by_monitor_key(old.monitor_key) is None
        assert await store.get(waiting.id) == waiting
        assert len(await store.history(waiting.id)) == 1
        await store.record([Transition(job_id=waiting.id, to=S.REMOVED)])
        events = await store.history(waiting.id)
        await store.delete_ended([waiting.id])
        later = await store.add(new_job())
        assert later.seq > waiting.seq
        assert (await store.history(later.id))[0].number > events[-1].number

    with_store(path, scenario)


def test_unfinished_among_some(path: Path) -> None:
    async def scenario(store: JobStore) -> None:
        ids = {state: await _in_state(store, state) for state in S}
        unfinished = await store.unfinished_among([*ids.values(), "nobody"] * 200)
        assert unfinished == {ids[state] for state in S if state not in FINAL_STATES}

    with_store(path, scenario)


def test_a_key_is_stored_with_its_job_or_not_at_all(path: Path) -> None:
    async def scenario(store: JobStore) -> None:
        key = IdempotencyKey(owner="alice", key="k", body_sha256="0" * 64)
        other_body = dataclasses.replace(key, body_sha256="1" * 64)
        assert await store.by_idempotency_key(key) is None
        await store.add(new_job(), max_waiting=2)
        first = await store.add(new_job(), key=key, max_waiting=2)
        refused = new_job()
        with pytest.raises(TooManyWaitingError):
            await store.add(refused, key=dataclasses.replace(key, key="l"), max_waiting=2)
        assert await store.get(refused.id) is None
        assert await store.by_idempotency_key(dataclasses.replace(key, key="l")) is None
        assert await store.add(new_job(), key=key, max_waiting=2) == first
        for look in (store.by_idempotency_key(other_body), store.add(new_job(), key=other_body)):
            with pytest.raises(KeyReusedError):
                await look
        assert await store.by_idempotency_key(dataclasses.replace(key, owner="bob")) is None
        assert len(await store.unfinished()) == 2

    with_store(path, scenario)


def test_many_at_once_leaves_unknown_ones_out(path: Path) -> None:
    async def scenario(store: JobStore) -> None:
        ids = [(await store.add(new_job())).id for _ in range(3)]
        assert set(await store.get_many([*ids, "nobody"] * 300)) == set(ids)

    with_store(path, scenario)


def test_cluster_numbers_go_on_across_restarts(path: Path) -> None:
    assert [with_store(path, lambda store: store.next_cluster_id()) for _ in range(3)] == [1, 2, 3]


def test_nobody_else_may_read_the_database(path: Path) -> None:
    async def scenario(store: JobStore) -> None:
        await store.add(new_job())
        files = list(path.parent.iterdir())
        assert {file.name for file in files} >= {"jobs.sqlite3", "jobs.sqlite3-wal"}
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}

    with_store(path, scenario)


def test_commits_are_on_the_disk_before_they_are_answered(path: Path) -> None:
    async def scenario(store: JobStore) -> None:
        with store._database._engine.connect() as connection:
            pragmas = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous")
            ]
        assert pragmas == ["wal", 2]

    with_store(path, scenario)


def test_the_migrations_make_what_the_schema_says(path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        migrate(connection)
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, schema.metadata) == []
    engine.dispose()


def test_a_newer_database_is_refused_with_a_sentence(path: Path) -> None:
    with_store(path, lambda store: store.add(new_job()))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StartupError, match="newer version") as caught:
        with_store(path, lambda store: store.unfinished())
    assert "\n" not in str(caught.value)


def test_a_damaged_database_is_refused_with_a_sentence(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    with pytest.raises(StartupError, match="OCPS_STATE_DIR") as caught:
        with_store(path, lambda store: store.unfinished())
    assert "\n" not in str(caught.value)


def test_a_database_that_takes_writes_again_is_well_though_nobody_writes(path: Path) -> None:
    """Who looks before submitting would otherwise never submit again."""

    async def scenario(store: JobStore) -> None:
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with store._database._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout=10")
            connection.rollback()
        with pytest.raises(UnavailableError):
            await store.add(new_job())
        assert not store.health().ok
        blocker.execute("ROLLBACK")
        blocker.close()
        await eventually(lambda: store.health().ok)

    with_store(path, scenario)


def test_a_write_that_fails_is_said_and_stores_nothing(path: Path) -> None:
    async def scenario(store: JobStore) -> None:
        kept = await store.add(new_job())
        assert store.health().ok
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with store._database._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout=10")
            connection.rollback()
        refused = new_job()
        with pytest.raises(UnavailableError):
            await store.add(refused)
        assert not store.health().ok
        blocker.execute("ROLLBACK")
        blocker.close()
        assert await store.get(refused.id) is None
        await store.record([Transition(job_id=kept.id, to=S.SUBMITTING)])
        assert store.health().ok
        assert store.health().since <= utc_now()

    with_store(path, scenario)
