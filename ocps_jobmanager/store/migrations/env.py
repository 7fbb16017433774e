"""What Alembic runs to apply the migrations; ``migrate`` hands it the connection."""

from alembic import context

from ocps_jobmanager.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
