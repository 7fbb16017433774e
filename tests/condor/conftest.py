"""One pool for all tests of this folder."""

import os
from collections.abc import Iterator

import pytest

from tests.condor.pool import Pool, PoolUnavailableError, running_pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """A running pool. Where none can be had the test is skipped, or fails if it is required."""
    try:
        with running_pool() as pool:
            yield pool
    except PoolUnavailableError as error:
        if os.environ.get("OCPS_REQUIRE_HTCONDOR") == "1":
            pytest.fail(f"OCPS_REQUIRE_HTCONDOR is set, but {error}", pytrace=False)
        pytest.skip(f"NOT TESTED AGAINST HTCONDOR: {error}")
