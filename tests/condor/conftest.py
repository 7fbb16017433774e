"""One pool for all tests of this folder."""

import contextlib
import os

import pytest

from tests.condor.pool import Pool, PoolUnavailableError, running_pool

_POOL = pytest.StashKey[Pool]()
_WHY_NONE = pytest.StashKey[str]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start the pool before the first test that needs it.

    Here and not in the fixture, so that all tests which are skipped for want of one are one line of
    the summary.
    """
    if "pool" not in getattr(item, "fixturenames", ()):
        return
    stash = item.config.stash
    if _POOL not in stash and _WHY_NONE not in stash:
        stack = contextlib.ExitStack()
        item.config.add_cleanup(stack.close)
        try:
            stash[_POOL] = stack.enter_context(running_pool())
        except PoolUnavailableError as error:
            stash[_WHY_NONE] = str(error)
    if _WHY_NONE in stash:
        if os.environ.get("OCPS_REQUIRE_HTCONDOR") == "1":
            pytest.fail(f"OCPS_REQUIRE_HTCONDOR is set, but {stash[_WHY_NONE]}", pytrace=False)
        pytest.skip(f"NOT TESTED AGAINST HTCONDOR: {stash[_WHY_NONE]}")


@pytest.fixture(scope="session")
def pool(pytestconfig: pytest.Config) -> Pool:
    """A running pool. Where none can be had the test is skipped, or fails if it is required."""
    return pytestconfig.stash[_POOL]
