"""JobStore: jobs and their history, durable before any call returns.

Nothing of this runs on the event loop: see `database`.
"""

import dataclasses
import hmac
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa

from ocps_jobmanager.errors import KeyReusedError, TooManyWaitingError
from ocps_jobmanager.health import Health
from ocps_jobmanager.models import (
    FINAL_STATES,
    IdempotencyKey,
    Job,
    JobEvent,
    JobState,
    NewJob,
    Removal,
    Transition,
)
from ocps_jobmanager.store import schema
from ocps_jobmanager.store.database import Database
from ocps_jobmanager.store.rows import event_of, job_of, sha256, values_of
from ocps_jobmanager.times import Clock, utc_now

#: SQLite takes a limited number of parameters in one statement.
_IDS_AT_A_TIME = 500
_ENDED = tuple(state.value for state in FINAL_STATES)


class JobStore:
    """The database of jobs.

    Parameters
    ----------
    path : pathlib.Path
        The database's file; made, mode 0600, if it isn't there. On a local file system.
    clock : Clock
        Gives the history its times.
    """

    def __init__(self, path: Path, clock: Clock = utc_now) -> None:
        self._clock = clock
        self._database = Database(path, clock)

    async def open(self) -> None:
        """Make the file if need be and bring its schema up to date.

        Raises
        ------
        StartupError
            It can't be opened: no database, damaged, or of a newer version.
        """
        await self._database.open()

    async def close(self) -> None:
        """Finish what was begun and let the file go."""
        await self._database.close()

    def health(self) -> Health:
        """Whether the last write succeeded."""
        return self._database.health()

    # Writing -----------------------------------------------------------------------------------

    async def add(
        self,
        new: NewJob,
        *,
        key: IdempotencyKey | None = None,
        max_waiting: int | None = None,
    ) -> Job:
        """Store an accepted job and the first row of its history, unless its key is known.

        Parameters
        ----------
        key : IdempotencyKey or None
            If a job was stored with it, that job is given and nothing is stored.
        max_waiting : int or None
            How many jobs may wait at the same time.

        Returns
        -------
        Job
            The new one, or the one that was stored with `key`.

        Raises
        ------
        KeyReusedError
            A job was stored with the key, but for another body; nothing was stored.
        TooManyWaitingError
            As many wait already; nothing was stored.
        UnavailableError
            The database can't take it; nothing was stored.
        """
        return await self._database.write(
            lambda connection: self._add(connection, new, key, max_waiting)
        )

    async def by_idempotency_key(self, key: IdempotencyKey) -> Job | None:
        """The job that was stored with this key, or None.

        Raises
        ------
        KeyReusedError
            There is one, but for another body.
        """
        return await self._database.read(lambda connection: _job_of_key(connection, key))

    async def record(self, transitions: Sequence[Transition]) -> list[Job | None]:
        """Make transitions, all in one transaction: the one door through which a state changes.

        Each is made only from a state that the table allows (compare-and-set), with its row of
        history. Where the job is in the state already and has not ended, only the details are
        noted. Anything else is late or repeated news, and changes nothing.

        Returns
        -------
        list of Job or None
            For each, the job as it is now if something changed, otherwise None.
        """
        return await self._database.write(
            lambda connection: [self._record(connection, change) for change in transitions]
        )

    async def note(self, job_id: str, *, reason: str) -> Job | None:
        """Remark something about a job that has not ended, without a change of state.

        Returns
        -------
        Job or None
            The job, or None if it has ended or says so already.
        """
        changes = {"reason": reason}
        return await self._database.write(lambda connection: _update(connection, job_id, changes))

    async def begin_attempt(self, job_id: str) -> Job | None:
        """Count one more hand-over to the scheduler, before it is made.

        Returns
        -------
        Job or None
            None if the job is not to be handed over any more: it isn't ``submitting``, or
            somebody has asked for its removal.
        """

        def begin(connection: sa.Connection) -> Job | None:
            changed = connection.execute(
                sa.update(schema.job)
                .where(
                    schema.job.c.id == job_id,
                    schema.job.c.state == JobState.SUBMITTING.value,
                    schema.job.c.removal_state.is_(None),
                )
                .values(attempt=schema.job.c.attempt + 1)
            )
            return _select(connection, job_id) if changed.rowcount else None

        return await self._database.write(begin)

    async def request_removal(self, job_id: str, removal: Removal) -> Job | None:
        """Store the wish that a job end; the first wish stays.

        Returns
        -------
        Job or None
            None if there is no such job or it has ended.
        """

        def request(connection: sa.Connection) -> Job | None:
            connection.execute(
                sa.update(schema.job)
                .where(
                    schema.job.c.id == job_id,
                    schema.job.c.state.not_in(_ENDED),
                    schema.job.c.removal_state.is_(None),
                )
                .values(removal_state=removal.final_state.value, removal_reason=removal.reason)
            )
            job = _select(connection, job_id)
            return None if job is None or job.is_final else job

        return await self._database.write(request)

    async def delete_ended(self, job_ids: Sequence[str]) -> None:
        """Delete jobs with their history and their idempotency keys; those that have ended only."""

        def delete(connection: sa.Connection) -> None:
            chosen = sa.select(schema.job.c.id).where(
                schema.job.c.id.in_(job_ids), schema.job.c.state.in_(_ENDED)
            )
            ended = [row.id for row in connection.execute(chosen)]
            for table in (schema.job_event, schema.idempotency_key):
                connection.execute(sa.delete(table).where(table.c.job_id.in_(ended)))
            connection.execute(sa.delete(schema.job).where(schema.job.c.id.in_(ended)))

        await self._database.write(delete)

    async def next_cluster_id(self) -> int:
        """A number that was never given before: 1, 2, 3, …, also across restarts."""

        def count(connection: sa.Connection) -> int:
            value: int = connection.execute(
                sa.text(
                    "INSERT INTO counter (name, value) VALUES ('cluster', 1) "
                    "ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value"
                )
            ).scalar_one()
            return value

        return await self._database.write(count)

    # Reading -----------------------------------------------------------------------------------

    async def get(self, job_id: str) -> Job | None:
        """The job, or None if there is none with this id."""
        return await self._database.read(lambda connection: _select(connection, job_id))

    async def get_many(self, job_ids: Sequence[str]) -> dict[str, Job]:
        """The jobs with these ids, by id; unknown ones are left out."""

        def select(connection: sa.Connection) -> dict[str, Job]:
            jobs = {}
            for start in range(0, len(job_ids), _IDS_AT_A_TIME):
                some = job_ids[start : start + _IDS_AT_A_TIME]
                rows = connection.execute(sa.select(schema.job).where(schema.job.c.id.in_(some)))
                jobs.update({row.id: job_of(row) for row in rows})
            return jobs

        return await self._database.read(select)

    async def by_monitor_key(self, key: str) -> Job | None:
        """The job whose monitor has this key, or None."""

        def look_up(connection: sa.Connection) -> Job | None:
            row = connection.execute(
                sa.select(schema.job).where(schema.job.c.monitor_key_sha256 == sha256(key))
            ).one_or_none()
            job = None if row is None else job_of(row)
            if job is None or not hmac.compare_digest(sha256(job.monitor_key), sha256(key)):
                return None
            return job

        return await self._database.read(look_up)

    async def history(self, job_id: str) -> list[JobEvent]:
        """All transitions of a job, oldest first."""

        def select(connection: sa.Connection) -> list[JobEvent]:
            rows = connection.execute(
                sa.select(schema.job_event)
                .where(schema.job_event.c.job_id == job_id)
                .order_by(schema.job_event.c.number)
            )
            return [event_of(row) for row in rows]

        return await self._database.read(select)

    async def unfinished(self) -> list[Job]:
        """All jobs that have not ended, oldest first."""
        living = [state.value for state in JobState if state not in FINAL_STATES]

        def select(connection: sa.Connection) -> list[Job]:
            rows = connection.execute(
                sa.select(schema.job)
                .where(schema.job.c.state.in_(living))
                .order_by(schema.job.c.seq)
            )
            return [job_of(row) for row in rows]

        return await self._database.read(select)

    async def unfinished_among(self, job_ids: Sequence[str]) -> set[str]:
        """Those of the ids that are of jobs which have not ended."""

        def select(connection: sa.Connection) -> set[str]:
            found: set[str] = set()
            for start in range(0, len(job_ids), _IDS_AT_A_TIME):
                some = job_ids[start : start + _IDS_AT_A_TIME]
                query = sa.select(schema.job.c.id).where(
                    schema.job.c.id.in_(some), schema.job.c.state.not_in(_ENDED)
                )
                found.update(row.id for row in connection.execute(query))
            return found

        return await self._database.read(select)

    async def ended_before(self, time: datetime, *, after: Job | None, limit: int) -> list[Job]:
        """Jobs that had ended by then, in the order of their ends.

        Parameters
        ----------
        after : Job or None
            The last one of the page before.
        limit : int
            At most so many.
        """
        end, seq = schema.job.c.time_completed, schema.job.c.seq
        # An expression, or SQLite takes the index of the states and sorts all ended jobs each time.
        has_ended = (schema.job.c.state + "").in_(_ENDED)
        query = sa.select(schema.job).where(end <= time, has_ended)
        if after is not None:
            last = after.time_completed
            query = query.where(end >= last, sa.or_(end > last, seq > after.seq))
        query = query.order_by(end, seq).limit(limit)
        return await self._database.read(
            lambda connection: [job_of(row) for row in connection.execute(query)]
        )

    async def list_ids(
        self, states: Collection[JobState], *, limit: int, before_seq: int | None
    ) -> list[tuple[int, str]]:
        """A page of job ids, newest first.

        Parameters
        ----------
        states : collection of JobState
            Only jobs in these.
        limit : int
            At most so many.
        before_seq : int or None
            Only jobs accepted before the one of this number: where the last page ended.

        Returns
        -------
        list of (int, str)
            Number and id.
        """
        query = sa.select(schema.job.c.seq, schema.job.c.id)
        if set(states) != set(JobState):
            query = query.where(schema.job.c.state.in_([state.value for state in states]))
        if before_seq is not None:
            query = query.where(schema.job.c.seq < before_seq)
        query = query.order_by(schema.job.c.seq.desc()).limit(limit)
        return await self._database.read(
            lambda connection: [(row.seq, row.id) for row in connection.execute(query)]
        )

    # Under the bonnet --------------------------------------------------------------------------

    def _add(
        self,
        connection: sa.Connection,
        new: NewJob,
        key: IdempotencyKey | None,
        max_waiting: int | None,
    ) -> Job:
        if key is not None and (job := _job_of_key(connection, key)) is not None:
            return job
        if max_waiting is not None and new.state is JobState.WAITING:
            _check_room(connection, max_waiting)
        connection.execute(sa.insert(schema.job).values(**values_of(new)))
        if key is not None:
            connection.execute(
                sa.insert(schema.idempotency_key).values(**dataclasses.asdict(key), job_id=new.id)
            )
        _add_event(connection, new.id, new.time_submitted, new.state, None)
        job = _select(connection, new.id)
        assert job is not None
        return job

    def _record(self, connection: sa.Connection, change: Transition) -> Job | None:
        changed = connection.execute(
            sa.update(schema.job)
            .where(
                schema.job.c.id == change.job_id,
                schema.job.c.state.in_([state.value for state in change.allowed_from]),
            )
            .values(state=change.to.value, reason=change.reason, **change.details)
        )
        if changed.rowcount:
            _add_event(connection, change.job_id, self._clock(), change.to, change.reason)
            return _select(connection, change.job_id)
        return _update(connection, change.job_id, change.details, only_in=change.to)


def _add_event(
    connection: sa.Connection, job_id: str, time: datetime, state: JobState, reason: str | None
) -> None:
    connection.execute(
        sa.insert(schema.job_event).values(
            job_id=job_id, time=time, state=state.value, reason=reason
        )
    )


def _job_of_key(connection: sa.Connection, key: IdempotencyKey) -> Job | None:
    table = schema.idempotency_key
    row = connection.execute(
        sa.select(table).where(table.c.owner == key.owner, table.c.key == key.key)
    ).one_or_none()
    if row is None:
        return None
    if row.body_sha256 != key.body_sha256:
        raise KeyReusedError("This Idempotency-Key was used for another submission.")
    return _select(connection, row.job_id)


def _check_room(connection: sa.Connection, max_waiting: int) -> None:
    waiting = connection.execute(
        sa.select(sa.func.count()).where(schema.job.c.state == JobState.WAITING.value)
    ).scalar_one()
    if waiting >= max_waiting:
        raise TooManyWaitingError(
            f"As many jobs as may ({max_waiting}) wait for their data already; try again later."
        )


def _select(connection: sa.Connection, job_id: str) -> Job | None:
    row = connection.execute(sa.select(schema.job).where(schema.job.c.id == job_id)).one_or_none()
    return None if row is None else job_of(row)


def _update(
    connection: sa.Connection,
    job_id: str,
    details: Mapping[str, object],
    only_in: JobState | None = None,
) -> Job | None:
    """Set what differs of a job that has not ended; None if nothing does."""
    job = _select(connection, job_id)
    if job is None or job.is_final or (only_in is not None and job.state is not only_in):
        return None
    news = {name: value for name, value in details.items() if getattr(job, name) != value}
    if not news:
        return None
    connection.execute(sa.update(schema.job).where(schema.job.c.id == job_id).values(**news))
    return dataclasses.replace(job, **news)  # type: ignore[arg-type]
