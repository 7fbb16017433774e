"""The schema of the first release."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the three tables."""
    op.create_table(
        "job",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text),
        sa.Column("owner", sa.Text),
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
        sa.Column("log_dir", sa.Text, nullable=False),
        sa.Column("cluster_id", sa.Integer),
        sa.Column("proc_id", sa.Integer),
        sa.Column("time_submitted", sa.Integer, nullable=False),
        sa.Column("time_data_arrived", sa.Integer),
        sa.Column("time_queued", sa.Integer),
        sa.Column("time_started", sa.Integer),
        sa.Column("time_completed", sa.Integer),
        sa.Column("exit_code", sa.Integer),
        sa.Column("exit_signal", sa.Integer),
        sa.Column("hold_reason", sa.Text),
        sa.Column("remote_host", sa.Text),
        sa.Column("num_starts", sa.Integer, nullable=False),
        sa.Column("memory_mb", sa.Integer),
        sqlite_autoincrement=True,
    )
    op.create_index("job_by_state", "job", ["state", "seq"])
    op.create_table(
        "job_event",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("job_id", sa.Text, sa.ForeignKey("job.id"), nullable=False),
        sa.Column("time", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("job_event_by_job", "job_event", ["job_id", "number"])
    op.create_table(
        "counter",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Integer, nullable=False),
    )
