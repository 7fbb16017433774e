"""HTCondor passes the suite that all schedulers pass."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.condor.pool import Pool
from tests.condor.site import CondorSite
from tests.schedulers.contract import ExecutionContract


class TestHTCondor(ExecutionContract):
    @pytest.fixture
    def site(self, tmp_path: Path, pool: Pool) -> Iterator[CondorSite]:
        site = CondorSite(tmp_path, pool)
        yield site
        site.close()
