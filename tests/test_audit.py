"""The audit that every test of a server relies on does find what blocks."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.audited_server import Audit
from tests.server import PROJECT


def _block(how: str) -> None:
    match how:
        case "open":
            Path("/dev/null").read_bytes()
        case "subprocess":
            subprocess.run(["/bin/true"], check=True)
        case "sql":
            engine = sa.create_engine("sqlite://")
            with engine.connect() as connection:
                connection.execute(sa.text("SELECT 1"))
            engine.dispose()
        case "slow":
            time.sleep(1.3)


def audited(report: str, how: str, where: str) -> None:
    """Block the loop, or a thread beside it, under the audit."""

    async def scenario() -> None:
        audit = Audit(report)
        audit.begin()
        await asyncio.sleep(0.2)
        if where == "loop":
            _block(how)
        else:
            await asyncio.to_thread(_block, how)
        await asyncio.sleep(0.2)
        audit.end()

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["open", "subprocess", "sql", "slow"])
@pytest.mark.parametrize("where", ["loop", "thread"])
def test_the_audit_finds_what_blocks_and_only_that(tmp_path: Path, how: str, where: str) -> None:
    report = tmp_path / "report"
    call = f"from tests.test_audit import audited; audited({str(report)!r}, {how!r}, {where!r})"
    subprocess.run([sys.executable, "-c", call], cwd=PROJECT, check=True)
    assert bool(report.read_text()) is (where == "loop")
