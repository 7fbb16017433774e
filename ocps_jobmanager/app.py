"""Builds the parts, gives each what it needs, starts and stops them in order. Nothing else does."""

import asyncio
import contextlib
import errno
import logging
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import tornado.httpserver
from tornado.httpclient import AsyncHTTPClient

from ocps_jobmanager.code import CodeStore
from ocps_jobmanager.config import (
    MonitorKey,
    SchedulerChoice,
    Settings,
    choose_scheduler,
    environ_for_jobs,
    layout,
    require_local_state_dir,
)
from ocps_jobmanager.environment import server_account
from ocps_jobmanager.errors import StartupError
from ocps_jobmanager.handlers.base import (
    ActiveRequests,
    Application,
    UnknownPathHandler,
    log_request,
)
from ocps_jobmanager.handlers.job import JobHandler, JobListHandler
from ocps_jobmanager.handlers.monitor import MonitorCompleteHandler
from ocps_jobmanager.handlers.service import HealthzHandler, ReadyzHandler
from ocps_jobmanager.handlers.uws import UwsJobHandler
from ocps_jobmanager.health import Health
from ocps_jobmanager.job_specs import JobType, load_job_types
from ocps_jobmanager.launches import LaunchPad
from ocps_jobmanager.layout import Layout
from ocps_jobmanager.locks import try_lock
from ocps_jobmanager.log_dirs import LogDirs
from ocps_jobmanager.manager import JobManager
from ocps_jobmanager.monitors import MonitorSupervisor
from ocps_jobmanager.processes import Spawner
from ocps_jobmanager.schedulers.base import Scheduler
from ocps_jobmanager.schedulers.htcondor import HTCondorScheduler
from ocps_jobmanager.schedulers.local import LocalScheduler
from ocps_jobmanager.store import JobStore
from ocps_jobmanager.times import Clock, utc_now

logger = logging.getLogger("main")

#: How long a shutdown waits for requests that are being answered.
_FINISH_REQUESTS_S = 3.0
#: Two sockets are to have the same free port; it may take a few attempts.
_PORT_ATTEMPTS = 20
#: As many monitors may call at the same moment without one being turned away.
_BACKLOG = 1024


@dataclass(frozen=True, kw_only=True)
class AppParts:
    """What the handlers work with.

    Attributes
    ----------
    probe_key : str
        What the server calls its own callback with.
    """

    manager: JobManager
    layout: Layout
    checks: Mapping[str, Callable[[], Health]]
    probe_key: str
    clock: Clock


def make_app(parts: AppParts, *, base_path: str, max_body: int, redact: bool) -> Application:
    """Make the Tornado application: the routes, each handler with what it needs.

    Parameters
    ----------
    base_path : str
        ``API_BASEPATH``, without a trailing slash.
    max_body : int
        The largest body, in bytes.
    redact : bool
        Keep the monitors' keys out of the log.
    """
    manager = {"manager": parts.manager}
    with_clock = {**manager, "clock": parts.clock}
    with_layout = {**manager, "layout": parts.layout}
    with_probe = {**manager, "probe_key": parts.probe_key}
    base = re.escape(base_path)
    return Application(
        [
            (rf"{base}/job", JobHandler, with_layout),
            (rf"{base}/job/list/([^/]*)", JobListHandler, manager),
            (rf"{base}/job/([^/]*)", UwsJobHandler, with_clock),
            (rf"{base}/monitor/complete", MonitorCompleteHandler, with_probe),
            (r"/healthz", HealthzHandler),
            (r"/readyz", ReadyzHandler, {"checks": parts.checks}),
        ],
        default_handler_class=UnknownPathHandler,
        log_function=log_request,
        base_path=base_path,
        max_body=max_body,
        redact_monitor_key=redact,
        active_requests=ActiveRequests(),
    )


class Server:
    """A whole Job Manager: built from its settings, started, stopped.

    Parameters
    ----------
    environ : mapping of str to str
        The environment that the settings come from, for HTCondor and for job types' ``getenv``.
    """

    def __init__(
        self, settings: Settings, environ: Mapping[str, str], *, clock: Clock = utc_now
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._clock = clock
        self._layout = layout(settings)
        self._stack = contextlib.AsyncExitStack()
        self.port = 0
        """The port that it listens on, once started."""

    async def start(self) -> None:
        """Start every part; return when requests are answered.

        Raises
        ------
        StartupError
            It can't start like this. Nothing is left running.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop accepting, finish what is being answered, end what the server started.

        Jobs go on: the scheduler's, and those of the local one.
        """
        await self._stack.aclose()

    async def _start(self) -> None:
        settings = self._settings
        choice, why = choose_scheduler(settings, self._environ)
        await self._take_state_dir()
        job_types = await asyncio.to_thread(load_job_types, settings.job_specs)
        sockets = _bind(settings.listen, settings.api_port)
        self._stack.callback(_close_all, sockets)
        self.port = sockets[0].getsockname()[1]
        at = f"{settings.api_domain}:{self.port}{settings.api_basepath}"
        logger.info("Running at %s", at)
        logger.info("Jobs are run by %s: %s.", choice.value, why)

        store = JobStore(self._layout.database, self._clock)
        self._stack.push_async_callback(store.close)
        await store.open()
        cores = len(os.sched_getaffinity(0))
        spawner = Spawner(2 * cores)
        self._stack.callback(spawner.close)
        scheduler = self._make_scheduler(choice, store, spawner, cores)
        monitor_url = settings.monitor_url or f"{settings.url(self.port)}/monitor/complete"
        monitors = self._make_monitors(spawner, monitor_url)
        manager = await self._make_manager(store, scheduler, monitors, job_types)
        self._stack.push_async_callback(_close_parts, manager, monitors, scheduler)
        await scheduler.start(manager.take_news)
        await manager.start()

        parts = AppParts(
            manager=manager,
            layout=self._layout,
            checks={
                "database": store.health,
                "scheduler": scheduler.health,
                "monitors": monitors.health,
            },
            probe_key=secrets.token_hex(16),
            clock=self._clock,
        )
        self._serve(parts, sockets)
        probe = asyncio.create_task(
            _probe_callback(monitor_url, parts.probe_key, monitors), name="probe of the callback"
        )
        self._stack.callback(probe.cancel)

    async def _take_state_dir(self) -> None:
        """Make the directories, and make sure that this is the only server on them."""
        await asyncio.to_thread(_prepare_directories, self._settings, self._layout)
        lock = await asyncio.to_thread(_lock_state, self._layout)
        self._stack.callback(os.close, lock)

    def _serve(self, parts: AppParts, sockets: list[socket.socket]) -> None:
        app = make_app(
            parts,
            base_path=self._settings.api_basepath,
            max_body=self._settings.max_body,
            redact=self._settings.monitor_key is not MonitorKey.JOB_ID,
        )
        # Bodies are limited by the handlers, which answer; Tornado would only hang up.
        http = tornado.httpserver.HTTPServer(app, max_body_size=2**62)
        self._stack.push_async_callback(_stop_http, http, app)
        http.add_sockets(sockets)

    async def _make_manager(
        self,
        store: JobStore,
        scheduler: Scheduler,
        monitors: MonitorSupervisor,
        job_types: Mapping[str, JobType],
    ) -> JobManager:
        pad = LaunchPad(
            layout=self._layout,
            log_dirs=LogDirs(
                work_dir=self._layout.work_dir,
                log_roots=self._settings.log_roots,
                forbidden=(self._layout.outputs, self._layout.code, self._layout.state_dir),
            ),
            server_environ=environ_for_jobs(self._settings, self._environ),
            account=await asyncio.to_thread(server_account),
        )
        return JobManager(
            store=store,
            scheduler=scheduler,
            monitors=monitors,
            code=CodeStore(self._layout.code),
            pad=pad,
            job_types=job_types,
            key_is_job_id=self._settings.monitor_key is MonitorKey.JOB_ID,
            clock=self._clock,
        )

    def _make_monitors(self, spawner: Spawner, url: str) -> MonitorSupervisor:
        return MonitorSupervisor(
            spawner=spawner,
            python=Path(sys.executable),
            work_dir=self._layout.work_dir,
            api_url=url,
            poll_interval_s=self._settings.poll_interval_s,
            clock=self._clock,
        )

    def _make_scheduler(
        self, choice: SchedulerChoice, store: JobStore, spawner: Spawner, cores: int
    ) -> Scheduler:
        python = Path(sys.executable)
        if choice is SchedulerChoice.HTCONDOR:
            return HTCondorScheduler(
                events_dir=self._layout.condor_events,
                lock_path=self._layout.condor_lock,
                spawner=spawner,
                python=python,
                environ=self._environ,
                clock=self._clock,
            )
        return LocalScheduler(
            state=self._layout.local_jobs,
            spawner=spawner,
            python=python,
            next_cluster_id=store.next_cluster_id,
            clock=self._clock,
            cores=cores,
        )


async def _close_parts(
    manager: JobManager, monitors: MonitorSupervisor, scheduler: Scheduler
) -> None:
    """First who asks, then, side by side, who does: each takes some seconds at the most."""
    await manager.close()
    await asyncio.gather(monitors.close(), scheduler.close())


async def _stop_http(http: tornado.httpserver.HTTPServer, app: Application) -> None:
    """Accept nothing new, and give what is being answered its time."""
    http.stop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FINISH_REQUESTS_S):
            await app.settings["active_requests"].none_left()
    await http.close_all_connections()


def _prepare_directories(settings: Settings, places: Layout) -> None:
    require_local_state_dir(settings)
    for directory, mode, setting in (
        (places.work_dir, 0o755, "OCPS_WORK_DIR"),
        (places.state_dir, 0o700, "OCPS_STATE_DIR"),
    ):
        try:
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
            if directory == places.state_dir:
                directory.chmod(mode)
            if not os.access(directory, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise StartupError(
                f'{setting} is "{directory}": it can\'t be used ({error.strerror}); '
                "it must be a directory that this account may write to."
            ) from error


def _lock_state(places: Layout) -> int:
    try:
        lock = try_lock(places.server_lock)
    except OSError as error:
        raise StartupError(
            f'OCPS_STATE_DIR is "{places.state_dir}": it can\'t be used ({error.strerror}).'
        ) from error
    if lock is None:
        raise StartupError(
            f'OCPS_STATE_DIR is "{places.state_dir}": another server is running on it; '
            "stop that one, or give this one a directory of its own."
        )
    return lock


def _bind(listen: str, port: int) -> list[socket.socket]:
    """Bind all addresses to one port; the first is bound when the port is known."""
    addresses = ["127.0.0.1", "::1"] if listen == "localhost" else [listen]
    for attempt in range(_PORT_ATTEMPTS):
        sockets: list[socket.socket] = []
        try:
            for address in addresses:
                wanted = sockets[0].getsockname()[1] if sockets else port
                try:
                    sockets.append(_listen(address, wanted))
                except OSError as error:
                    if not sockets or error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                        raise
        except OSError as error:
            _close_all(sockets)
            if port == 0 and error.errno == errno.EADDRINUSE and attempt < _PORT_ATTEMPTS - 1:
                continue
            raise StartupError(
                f"API_PORT is {port}: it can't be listened on at {listen} ({error.strerror}); "
                "choose another port, or 0 for any free one."
            ) from error
        return sockets
    raise AssertionError("the last attempt returns or raises")


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.create_server((address, port), family=family, backlog=_BACKLOG)
    listening.setblocking(False)
    return listening


def _close_all(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


async def _probe_callback(url: str, key: str, monitors: MonitorSupervisor) -> None:
    """Find out whether what monitors call reaches this very server, and say so to `/readyz`."""
    client = AsyncHTTPClient(force_instance=True)
    pause_s = 1.0
    try:
        while True:
            try:
                await client.fetch(f"{url}?id={key}", request_timeout=10.0, connect_timeout=10.0)
            except (OSError, tornado.web.HTTPError, tornado.httpclient.HTTPError) as error:
                monitors.report_callback_url(
                    ok=False,
                    detail=f"The URL that monitors call (OCPS_MONITOR_URL) fails: {error}.",
                )
            else:
                monitors.report_callback_url(ok=True, detail="Monitors can call the server.")
                return
            await asyncio.sleep(pause_s)
            pause_s = min(60.0, 2 * pause_s)
    finally:
        client.close()
