"""The tables, as SQLAlchemy Core sees them. ``migrations/`` makes and changes them.

Times are whole milliseconds since 1970, UTC: they sort, and nobody's time zone gets in.
"""

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Dialect


class Milliseconds(sa.types.TypeDecorator[datetime]):
    """An aware time, stored as milliseconds since 1970."""

    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """To the database."""
        return None if value is None else round(value.timestamp() * 1000)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """From the database."""
        return None if value is None else datetime.fromtimestamp(value / 1000, UTC)


metadata = sa.MetaData()

job = sa.Table(
    "job",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text),
    sa.Column("owner", sa.Text),
    # The key itself is kept because a restarted server gives it to a new monitor. It is looked up
    # by its digest, so that the time of a look-up tells nothing of the key.
    sa.Column("monitor_key", sa.Text, nullable=False),
    sa.Column("monitor_key_sha256", sa.Text, nullable=False, unique=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("removal_state", sa.Text),
    sa.Column("removal_reason", sa.Text),
    sa.Column("env", sa.JSON, nullable=False),
    sa.Column("getenv", sa.JSON, nullable=False),
    sa.Column("code", sa.JSON, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Column("resources", sa.JSON, nullable=False),
    sa.Column("limits", sa.JSON, nullable=False),
    sa.Column("log_dir", sa.Text, nullable=False),
    sa.Column("cluster_id", sa.Integer),
    sa.Column("proc_id", sa.Integer),
    sa.Column("time_submitted", Milliseconds, nullable=False),
    sa.Column("time_data_arrived", Milliseconds),
    sa.Column("time_queued", Milliseconds),
    sa.Column("time_started", Milliseconds),
    sa.Column("time_completed", Milliseconds),
    sa.Column("exit_code", sa.Integer),
    sa.Column("exit_signal", sa.Integer),
    sa.Column("hold_reason", sa.Text),
    sa.Column("remote_host", sa.Text),
    sa.Column("num_starts", sa.Integer, nullable=False),
    sa.Column("memory_mb", sa.Integer),
    sa.Index("job_by_state", "state", "seq"),
    sa.Index("job_by_end", "time_completed"),
    sqlite_autoincrement=True,
)

job_event = sa.Table(
    "job_event",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.Text, sa.ForeignKey("job.id"), nullable=False),
    sa.Column("time", Milliseconds, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Index("job_event_by_job", "job_id", "number"),
    sqlite_autoincrement=True,
)

#: Kept as long as the job's record: a repeated submission gets the first one's answer.
idempotency_key = sa.Table(
    "idempotency_key",
    metadata,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("body_sha256", sa.Text, nullable=False),
    sa.Column("job_id", sa.Text, sa.ForeignKey("job.id"), nullable=False, index=True),
)

#: Numbers that only grow: the local scheduler's clusters.
counter = sa.Table(
    "counter",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
)
