"""A server that stands through all tests of a module, and what its log may not have."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import ServerProcess

#: What a line of the log has that tells of a bug.
BUGS = re.compile(r"Traceback|A bug|Uncaught|exception", re.IGNORECASE)


def check_log(server: ServerProcess, since: int = 0) -> None:
    """Nothing that clients have sent has brought up a bug."""
    found = BUGS.search(server.log(), since)
    assert found is None, server.log()[max(0, found.start() - 500) : found.start() + 3000]


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("hostile")) as server:
        yield server


@pytest.fixture
def server(shared_server: ServerProcess) -> Iterator[ServerProcess]:
    """The server, which still answers after each test and has no bug in its log."""
    seen = len(shared_server.log())
    yield shared_server
    assert shared_server.process is not None
    assert shared_server.process.poll() is None, "the server has ended"
    assert shared_server.ready()[0] in {200, 503}
    check_log(shared_server, seen)
    shared_server.check_the_loop()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A place that no request may get to."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "secret").write_text("secret")
    return place
