"""Builds the parts, gives each what it needs, starts and stops them in order. Nothing else does."""

import asyncio
import contextlib
import dataclasses
import errno
import logging
import os
import re
import secrets
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import tornado.web
from tornado.httpclient import AsyncHTTPClient

from ocps_jobmanager.cleaner import Cleaner
from ocps_jobmanager.code import CodeStore
from ocps_jobmanager.config import (
    MonitorKey,
    SchedulerChoice,
    Settings,
    environ_for_jobs,
    layout,
)
from ocps_jobmanager.descriptors import require_descriptors
from ocps_jobmanager.environment import server_account
from ocps_jobmanager.errors import StartupError, UnavailableError
from ocps_jobmanager.handlers.auth import Access
from ocps_jobmanager.handlers.base import (
    ActiveRequests,
    Application,
    UnknownPathHandler,
    UnquotedRequests,
    log_request,
)
from ocps_jobmanager.handlers.http_server import HttpServer
from ocps_jobmanager.handlers.job import JobHandler, JobListHandler
from ocps_jobmanager.handlers.monitor import MonitorCompleteHandler
from ocps_jobmanager.handlers.openapi import OpenApiHandler, openapi_json
from ocps_jobmanager.handlers.service import HealthzHandler, ReadyzHandler
from ocps_jobmanager.handlers.uws import UwsJobHandler
from ocps_jobmanager.health import Health
from ocps_jobmanager.job_specs import JobType, changes_between, load_job_types
from ocps_jobmanager.launches import LaunchPad
from ocps_jobmanager.layout import Layout
from ocps_jobmanager.locks import try_lock
from ocps_jobmanager.log_dirs import LogDirs
from ocps_jobmanager.machine import choose_scheduler, require_local_state_dir
from ocps_jobmanager.manager import JobManager, Terms
from ocps_jobmanager.monitors import MonitorSupervisor
from ocps_jobmanager.processes import Spawner
from ocps_jobmanager.restarts import Note
from ocps_jobmanager.schedulers.base import Scheduler
from ocps_jobmanager.schedulers.htcondor import HTCondorScheduler
from ocps_jobmanager.schedulers.local import LocalScheduler
from ocps_jobmanager.sockets import (
    Inheritance,
    bind,
    close_all,
    duplicates,
    on_loopback,
    require_loopback,
)
from ocps_jobmanager.store import JobStore
from ocps_jobmanager.times import Clock, utc_now
from ocps_jobmanager.tls import check_authorities, server_context
from ocps_jobmanager.tokens import Tokens

logger = logging.getLogger("main")

#: How long a shutdown waits for requests that are being answered.
_FINISH_REQUESTS_S = 3.0


@dataclass(frozen=True, kw_only=True)
class AppParts:
    """What the handlers work with.

    Attributes
    ----------
    probe_key : str
        What the server calls its own callback with.
    keep : timedelta or None
        How long ended jobs are kept; None: for ever.
    """

    manager: JobManager
    layout: Layout
    checks: Mapping[str, Callable[[], Health]]
    probe_key: str
    clock: Clock
    keep: timedelta | None = None


def make_app(
    parts: AppParts, *, access: Access, base_path: str, max_body: int, redact: bool
) -> Application:
    """Make the Tornado application: the routes, each handler with what it needs.

    Parameters
    ----------
    access : Access
        Who may call.
    base_path : str
        ``API_BASEPATH``, without a trailing slash.
    max_body : int
        The largest body, in bytes.
    redact : bool
        Keep the monitors' keys out of the log.
    """
    manager = {"manager": parts.manager}
    for_uws = {**manager, "clock": parts.clock, "keep": parts.keep}
    with_layout = {**manager, "layout": parts.layout}
    with_probe = {**manager, "probe_key": parts.probe_key}
    base = re.escape(base_path)
    return Application(
        [
            (rf"{base}/job", JobHandler, with_layout),
            (rf"{base}/job/list/([^/]*)", JobListHandler, manager),
            (rf"{base}/job/([^/]*)", UwsJobHandler, for_uws),
            (rf"{base}/monitor/complete", MonitorCompleteHandler, with_probe),
            (
                rf"{base}/openapi.json",
                OpenApiHandler,
                {"document": openapi_json(base_path, anonymous=access.tokens is None)},
            ),
            (r"/healthz", HealthzHandler),
            (r"/readyz", ReadyzHandler, {"checks": parts.checks}),
        ],
        default_handler_class=UnknownPathHandler,
        log_function=log_request,
        access=access,
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
    inheritance : Inheritance
        The sockets that were open for it when its process began.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        *,
        inheritance: Inheritance | None = None,
        clock: Clock = utc_now,
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._clock = clock
        self._layout = layout(settings)
        self._stack = contextlib.AsyncExitStack()
        self._inheritance = inheritance or Inheritance()
        self._listening: tuple[socket.socket, ...] = ()
        self._kept: tuple[socket.socket, ...] = ()
        self._http: HttpServer | None = None
        self._note = Note.of_this_process()
        self._lock: int | None = None
        self._manager: JobManager | None = None
        self._job_types: Mapping[str, JobType] = {}
        self._tls: ssl.SSLContext | None = None
        self.port = 0
        """The port that it listens on, once started."""
        self.tokens: Tokens | None = None
        """Those of who may call, once started; None: everybody may."""

    async def start(self) -> None:
        """Start every part; return when requests are answered.

        Raises
        ------
        StartupError
            It can't start like this. Nothing is left running.
        """
        try:
            await self._start()
            await self._write_note(dataclasses.replace(self._note, ready=True))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop accepting, finish what is being answered, end what the server started.

        Jobs go on: the scheduler's, and those of the local one.
        """
        await self._stack.aclose()

    def keep_sockets(self) -> None:
        """Have `stop`, which is to be called next, leave the sockets open for a successor."""
        self._kept = duplicates(self._listening)

    @property
    def bequest(self) -> Inheritance:
        """What a successor inherits, so far; see `keep_sockets`."""
        connections = () if self._http is None else tuple(self._http.kept)
        return Inheritance(listening=self._kept, connections=connections)

    async def reload(self) -> None:
        """Read the job types and the tokens again; what can't be used stays as it was.

        Jobs that were accepted before keep what they were accepted with.
        """
        assert self._manager is not None, "started"
        try:
            job_types = await asyncio.to_thread(load_job_types, self._settings.job_specs)
        except StartupError as error:
            for line in str(error).splitlines():
                logger.error("%s", line)
            logger.error("The job types can't be used like this; those from before stay in force.")
        else:
            logger.info("%s", changes_between(self._job_types, job_types))
            self._job_types = job_types
            self._manager.replace_job_types(job_types)
        if self.tokens is not None:
            well, said = await asyncio.to_thread(self.tokens.reload)
            logger.log(logging.INFO if well else logging.ERROR, "%s", said)

    async def refuse_restart(self, why: str) -> None:
        """Say in the log, and to who asked, why this server goes on.

        Parameters
        ----------
        why : str
            One line or several.
        """
        for line in ("No restart, because the next server would not start:", *why.splitlines()):
            logger.error("%s", line)
        await self._write_note(self._note.with_refusal(why))

    async def _write_note(self, note: Note) -> None:
        self._note = note
        if self._lock is not None:
            await asyncio.to_thread(self._note.write, self._lock)

    def _listen(self) -> None:
        settings = self._settings
        self._stack.callback(self._inheritance.close)
        self._listening = self._inheritance.listening
        if not self._listening:
            self._listening = tuple(bind(settings.listen, settings.api_port))
            self._stack.callback(close_all, self._listening)
        elif settings.monitor_key is MonitorKey.JOB_ID or not (
            settings.api_tokens or settings.allow_anonymous
        ):
            require_loopback(self._listening)
        self.port = self._listening[0].getsockname()[1]

    async def _start(self) -> None:
        settings = self._settings
        require_descriptors(settings.max_waiting)
        choice, why = choose_scheduler(settings, self._environ)
        self.tokens, self._tls = await asyncio.to_thread(_read_secrets, settings)
        await self._take_state_dir()
        self._job_types = await asyncio.to_thread(load_job_types, settings.job_specs)
        self._listen()
        store = JobStore(self._layout.database, self._clock)
        self._stack.push_async_callback(store.close)
        await store.open()
        at = f"{settings.api_domain}:{self.port}{settings.api_basepath}"
        logger.info("Running at %s", at)
        logger.info("Jobs are run by %s: %s.", choice.value, why)
        _warn_of_callers(settings, others_can_connect=not on_loopback(self._listening))
        cores = len(os.sched_getaffinity(0))
        spawner = Spawner(2 * cores)
        self._stack.callback(spawner.close)
        scheduler = self._make_scheduler(choice, store, spawner, cores)
        monitor_url = settings.monitor_url or f"{settings.url(self.port)}/monitor/complete"
        monitors = self._make_monitors(spawner, monitor_url)
        manager = await self._make_manager(store, scheduler, monitors)
        self._manager = manager
        self._stack.push_async_callback(_close_parts, manager, monitors, scheduler)
        await scheduler.start(manager.take_news)
        try:
            await manager.start()
        except UnavailableError as error:
            raise StartupError(
                f"The database in OCPS_STATE_DIR can't be used: {error} Put a sound copy in its "
                "place, or use another OCPS_STATE_DIR."
            ) from error
        if (keep := settings.keep) is not None:
            cleaner = self._make_cleaner(store, keep)
            self._stack.push_async_callback(cleaner.close)
            cleaner.start()

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
            keep=settings.keep,
        )
        self._serve(parts, monitor_url)
        probe = asyncio.create_task(
            _probe_callback(monitor_url, parts.probe_key, settings.tls_ca, monitors),
            name="probe of the callback",
        )
        self._stack.callback(probe.cancel)

    async def _take_state_dir(self) -> None:
        """Make the directories, and make sure that this is the only server on them."""
        await asyncio.to_thread(_prepare_directories, self._settings, self._layout)
        lock = await asyncio.to_thread(_lock_state, self._layout)
        self._stack.callback(os.close, lock)
        self._lock = lock
        await self._write_note(self._note)

    def _serve(self, parts: AppParts, monitor_url: str) -> None:
        app = make_app(
            parts,
            access=Access.build(
                tokens=self.tokens,
                urls=(self._settings.url(self.port), monitor_url),
                allowed_hosts=self._settings.allowed_hosts,
                cors_origins=self._settings.cors_origins,
                tls=self._tls is not None,
            ),
            base_path=self._settings.api_basepath,
            max_body=self._settings.max_body,
            redact=self._settings.monitor_key is not MonitorKey.JOB_ID,
        )
        # Bodies are limited by the handlers, which answer; Tornado would only hang up.
        unquoted, tornado_logger = UnquotedRequests(), logging.getLogger("tornado.general")
        tornado_logger.addFilter(unquoted)
        self._stack.callback(tornado_logger.removeFilter, unquoted)
        http = HttpServer(app, ssl_options=self._tls, max_body_size=2**62)
        self._stack.push_async_callback(self._stop_http, http, app)
        http.add_sockets(self._listening)
        for connection in self._inheritance.connections:
            http.adopt(connection)
        self._http = http

    async def _stop_http(self, http: HttpServer, app: Application) -> None:
        """Accept nothing new, and give what is being answered its time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FINISH_REQUESTS_S + 1.0):
                await http.leave(keep=bool(self._kept), within_s=_FINISH_REQUESTS_S)
                # A client that has hung up leaves its request behind.
                await app.settings["active_requests"].none_left()

    async def _make_manager(
        self,
        store: JobStore,
        scheduler: Scheduler,
        monitors: MonitorSupervisor,
    ) -> JobManager:
        pad = LaunchPad(
            layout=self._layout,
            log_dirs=self._make_log_dirs(),
            server_environ=environ_for_jobs(self._settings, self._environ),
            account=await asyncio.to_thread(server_account),
        )
        return JobManager(
            store=store,
            scheduler=scheduler,
            monitors=monitors,
            code=CodeStore(self._layout.code),
            pad=pad,
            job_types=self._job_types,
            terms=Terms(
                key_is_job_id=self._settings.monitor_key is MonitorKey.JOB_ID,
                max_waiting=self._settings.max_waiting,
            ),
            clock=self._clock,
        )

    def _make_log_dirs(self) -> LogDirs:
        return LogDirs(
            work_dir=self._layout.work_dir,
            log_roots=self._settings.log_roots,
            forbidden=(self._layout.outputs, self._layout.code, self._layout.state_dir),
        )

    def _make_cleaner(self, store: JobStore, keep: timedelta) -> Cleaner:
        return Cleaner(
            store=store,
            layout=self._layout,
            log_dirs=self._make_log_dirs(),
            keep=keep,
            clock=self._clock,
        )

    def _make_monitors(self, spawner: Spawner, url: str) -> MonitorSupervisor:
        return MonitorSupervisor(
            spawner=spawner,
            python=Path(sys.executable),
            work_dir=self._layout.work_dir,
            api_url=url,
            poll_interval_s=self._settings.poll_interval_s,
            ca_file=self._settings.tls_ca,
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
            unfinished_among=store.unfinished_among,
        )


def _warn_of_callers(settings: Settings, *, others_can_connect: bool) -> None:
    """Say who may call, where that is not only those who are meant to."""
    if settings.api_tokens is None:
        who = "everybody who can reach it" if others_can_connect else "every user of this host"
        logger.warning("No OCPS_API_TOKENS: %s can run jobs as this account.", who)
    elif others_can_connect and settings.api_protocol == "http":
        logger.warning("Tokens come unencrypted: set OCPS_TLS_CERT and OCPS_TLS_KEY.")
    if settings.tls_cert is not None and settings.api_protocol == "http":
        logger.warning(
            "OCPS_TLS_CERT is set, but API_PROTOCOL is http: the URLs made of it do not work."
        )


async def _close_parts(
    manager: JobManager, monitors: MonitorSupervisor, scheduler: Scheduler
) -> None:
    """First who asks, then, side by side, who does: each takes some seconds at the most."""
    await manager.close()
    await asyncio.gather(monitors.close(), scheduler.close())


def check_files(settings: Settings) -> None:
    """Read what a start reads, to see whether it can be used. Blocks.

    Raises
    ------
    StartupError
        It can't.
    """
    load_job_types(settings.job_specs)
    _read_secrets(settings)


def _read_secrets(settings: Settings) -> tuple[Tokens | None, ssl.SSLContext | None]:
    """The tokens of those who may call, and what TLS is spoken with."""
    tokens = None if settings.api_tokens is None else Tokens(settings.api_tokens)
    if settings.tls_ca is not None:
        check_authorities(settings.tls_ca)
    if settings.tls_cert is None or settings.tls_key is None:
        return tokens, None
    return tokens, server_context(settings.tls_cert, settings.tls_key)


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


async def _probe_callback(
    url: str, key: str, ca_file: Path | None, monitors: MonitorSupervisor
) -> None:
    """Find out whether what monitors call reaches this very server, and say so to `/readyz`."""
    ca_certs = None if ca_file is None else str(ca_file)
    client = AsyncHTTPClient(force_instance=True, defaults={"ca_certs": ca_certs})
    pause_s = 1.0
    try:
        while True:
            try:
                await client.fetch(f"{url}?id={key}", request_timeout=10.0, connect_timeout=10.0)
            # ValueError: a host name that can't be one.
            except (OSError, ValueError, tornado.httpclient.HTTPError) as error:
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
