"""The pool is the one of ``tests/condor``."""

from tests.condor.conftest import pool, pytest_runtest_setup

__all__ = ["pool", "pytest_runtest_setup"]
