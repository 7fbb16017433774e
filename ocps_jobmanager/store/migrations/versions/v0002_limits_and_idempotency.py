"""Limits of a job, idempotency keys, and an index for what is to be removed some day."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_DEFAULT_LIMITS = '{"max_run_time_s": null, "hold_limit_s": 3600, "max_retries": 0}'


def upgrade() -> None:
    """Add to the job table, and make the one of the keys."""
    op.add_column(
        "job", sa.Column("limits", sa.JSON, nullable=False, server_default=_DEFAULT_LIMITS)
    )
    op.create_index("job_by_end", "job", ["time_completed"])
    op.create_table(
        "idempotency_key",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("body_sha256", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text, sa.ForeignKey("job.id"), nullable=False),
    )
    op.create_index("ix_idempotency_key_job_id", "idempotency_key", ["job_id"])
