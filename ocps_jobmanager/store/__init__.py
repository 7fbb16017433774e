"""The only room that speaks SQL: jobs and their history in one SQLite file."""

from ocps_jobmanager.store.store import JobStore

__all__ = ["JobStore"]
