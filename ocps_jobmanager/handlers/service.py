"""``/healthz`` and ``/readyz``, at the root of the server."""

from collections.abc import Callable, Mapping

from ocps_jobmanager.answers import Done, PartHealth, Readiness
from ocps_jobmanager.handlers.base import BaseHandler
from ocps_jobmanager.health import Health
from ocps_jobmanager.times import iso


class HealthzHandler(BaseHandler):
    """``GET /healthz``."""

    needs_token = False

    async def get(self) -> None:
        """Answer: the event loop turns."""
        self.write_json(Done(status="ok", msg=""))


class ReadyzHandler(BaseHandler):
    """``GET /readyz``."""

    def initialize(self, checks: Mapping[str, Callable[[], Health]]) -> None:
        """Take the parts' ways to tell how they are; none of them asks anybody or waits."""
        self._checks = checks

    async def get(self) -> None:
        """Say whether database, scheduler and monitors are in order; if not, which, since when."""
        healths = {name: check() for name, check in self._checks.items()}
        bad = {name: health for name, health in healths.items() if not health.ok}
        msg = " ".join(f"{name}: {health.detail}" for name, health in bad.items())
        answer = Readiness(
            status="error" if bad else "ok",
            msg=msg,
            checks={
                name: PartHealth(ok=health.ok, since=iso(health.since), detail=health.detail)
                for name, health in healths.items()
            },
        )
        self.write_json(answer, 503 if bad else 200)
