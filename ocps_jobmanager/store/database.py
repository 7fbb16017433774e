"""One SQLite file: its transactions, off the event loop, and whether it takes them.

WAL mode with ``synchronous=FULL``: a commit is on the disk, not in a cache, when it returns. One
thread writes, so that every change sees the one before it; others read beside it.
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError

from ocps_jobmanager.errors import StartupError, UnavailableError
from ocps_jobmanager.health import Health
from ocps_jobmanager.store.migrations import migrate
from ocps_jobmanager.times import Clock, utc_now

logger = logging.getLogger("main")

T = TypeVar("T")

#: After a write that failed, so often it is tried whether one succeeds again.
_TRIAL_INTERVAL_S = 1.0


class Database:
    """The file, and the threads that work on it.

    Parameters
    ----------
    path : pathlib.Path
        Made, mode 0600, if it isn't there. On a local file system.
    """

    def __init__(self, path: Path, clock: Clock = utc_now) -> None:
        self._path = path
        self._clock = clock
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="store-read")
        self._engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(path)), pool_size=3, max_overflow=0
        )
        sa.event.listen(self._engine, "connect", _prepare_connection)
        self._health = Health(ok=True, since=clock(), detail="The database takes writes.")
        self._trials: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Make the file if need be and bring its schema up to date.

        Raises
        ------
        StartupError
            It can't be opened: no database, damaged, or of a newer version.
        """
        await asyncio.get_running_loop().run_in_executor(self._writer, self._open)

    async def close(self) -> None:
        """Finish what was begun and let the file go."""
        if self._trials is not None:
            self._trials.cancel()
            await asyncio.wait([self._trials])
        await asyncio.to_thread(self._writer.shutdown)
        await asyncio.to_thread(self._readers.shutdown)
        self._engine.dispose()

    def health(self) -> Health:
        """Whether the last write succeeded."""
        return self._health

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Do `work` in a transaction; when this returns, it is committed.

        Raises
        ------
        UnavailableError
            Nothing was changed.
        """

        def transaction() -> T:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                result = work(connection)
                connection.commit()
                return result

        loop = asyncio.get_running_loop()
        # Shielded: a client that hangs up must not leave it open whether its job was stored.
        try:
            result = await asyncio.shield(loop.run_in_executor(self._writer, transaction))
        except DatabaseError as error:
            self._set_health(ok=False, detail=f"The database can't take a write: {error.orig}.")
            self._start_trials()
            raise UnavailableError(
                "The database can't take a write now; nothing was accepted."
            ) from error
        self._set_health(ok=True, detail="The database takes writes.")
        return result

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Do `work`, which changes nothing.

        Raises
        ------
        UnavailableError
        """

        def query() -> T:
            with self._engine.connect() as connection:
                return work(connection)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, query)
        except DatabaseError as error:
            raise UnavailableError("The database can't be read now.") from error

    def _open(self) -> None:
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._path.chmod(0o600)
            with self._engine.connect() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                migrate(connection)
                connection.commit()
        except OSError as error:
            raise StartupError(
                f"The database in OCPS_STATE_DIR can't be opened: {error.strerror}."
            ) from error
        except DatabaseError as error:
            raise StartupError(
                f"The database in OCPS_STATE_DIR can't be used: {error.orig}. "
                "Put a sound copy in its place, or use another OCPS_STATE_DIR."
            ) from error

    def _start_trials(self) -> None:
        if self._trials is None or self._trials.done():
            self._trials = asyncio.create_task(self._try_writes(), name="trials of the database")

    async def _try_writes(self) -> None:
        """Write until that succeeds: with nobody else writing it would be unwell for ever."""
        while not self._health.ok:
            await asyncio.sleep(_TRIAL_INTERVAL_S)
            try:
                with contextlib.suppress(UnavailableError):
                    await self.write(_write_something)
            except Exception:
                logger.exception("The trial of the database failed; it is repeated.")

    def _set_health(self, *, ok: bool, detail: str) -> None:
        if (ok, detail) != (self._health.ok, self._health.detail):
            self._health = Health(ok=ok, since=self._clock(), detail=detail)


def _write_something(connection: sa.Connection) -> None:
    connection.exec_driver_sql(
        "INSERT INTO counter (name, value) VALUES ('trial', 1) "
        "ON CONFLICT (name) DO UPDATE SET value = value + 1"
    )


def _prepare_connection(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the store says itself where a transaction begins
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "busy_timeout=5000",
    ):
        connection.execute(f"PRAGMA {pragma}").close()
