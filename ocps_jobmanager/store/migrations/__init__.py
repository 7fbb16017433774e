"""The history of the schema (Alembic): one numbered file a step, oldest first, none ever edited."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from ocps_jobmanager.errors import StartupError


def migrate(connection: sa.Connection) -> None:
    """Bring the database up to this version's schema, within the caller's transaction.

    Raises
    ------
    StartupError
        The database was written by a newer version.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {revision.revision for revision in ScriptDirectory.from_config(config).walk_revisions()}
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        raise StartupError(
            f"The database in OCPS_STATE_DIR is of a newer version (schema {current}, "
            f"this version knows up to {max(known)}): start that version, or use another "
            "OCPS_STATE_DIR."
        )
    command.upgrade(config, "head")
