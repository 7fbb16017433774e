"""Where tokens and keys are when HTCondor runs the jobs: not there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.condor.pool import Pool
from tests.secrets_suite import USER_INFO, SecretsSuite, tokens_file
from tests.server import ServerProcess


@pytest.fixture
def server(pool: Pool, tmp_path: Path) -> Iterator[ServerProcess]:
    environ = {
        "OCPS_SCHEDULER": "htcondor",
        "CONDOR_CONFIG": str(pool.config),
        "OCPS_API_TOKENS": str(tokens_file(tmp_path)),
    }
    with ServerProcess(tmp_path, environ, user_info=USER_INFO) as server:
        yield server


@pytest.fixture
def places(pool: Pool, tmp_path: Path) -> list[Path]:
    return [tmp_path, pool.directory]


class TestSecretsWithPool(SecretsSuite):
    """The suite; the pool's logs and its queue are searched, too."""
