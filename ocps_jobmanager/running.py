"""The life of a server's process: what it does on each signal.

SIGTERM and SIGINT end it in order, a second one at once. SIGHUP has it read its job types and
tokens again. SIGUSR2 has it make place for a server that begins anew in the same process.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from typing import Protocol

from ocps_jobmanager.errors import StartupError
from ocps_jobmanager.restarts import SIGNALS, Foundlings, Successor
from ocps_jobmanager.sockets import Inheritance

logger = logging.getLogger("main")

_STOP_DEADLINE_S = 10


class Server(Protocol):
    """What is run."""

    async def start(self) -> None:
        """Return when requests are answered."""

    async def stop(self) -> None:
        """Stop in order."""

    async def reload(self) -> None:
        """Read again what may be read again."""

    async def refuse_restart(self, why: str) -> None:
        """Say why there is no restart."""

    def keep_sockets(self) -> None:
        """Have `stop` leave the sockets open."""

    @property
    def bequest(self) -> Inheritance:
        """What a successor inherits."""


class Run:
    """One server's run, from its start to its end or its successor.

    Parameters
    ----------
    foundlings : Foundlings
        To be reaped beside it.
    successor : Successor
        What the process becomes on SIGUSR2.
    warnings : sequence of str
        To be logged when it has started.
    """

    def __init__(
        self,
        server: Server,
        *,
        foundlings: Foundlings,
        successor: Successor,
        warnings: Sequence[str],
    ) -> None:
        self._server = server
        self._foundlings = foundlings
        self._successor = successor
        self._warnings = warnings
        self._reload_wanted = self._restart_wanted = self._stop_wanted = False
        self._orders_wait = asyncio.Event()
        self._over = asyncio.Event()
        self._restarting = False

    def to_the_end(self) -> None:
        """Run it. Does not return if it has a successor.

        Raises
        ------
        StartupError
            It, or its successor, can't start like this.
        """
        asyncio.run(self._until_over())

    async def _until_over(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_or_force)
        loop.add_signal_handler(signal.SIGHUP, self._want_reload)
        loop.add_signal_handler(signal.SIGUSR2, self._want_restart)
        # They were held back since the server before stopped to listen to them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._foundlings.watch(loop)
        await self._server.start()
        for warning in self._warnings:
            logger.warning("%s", warning)
        # A task of its own: a file system that hangs must not keep the server from ending.
        orders = asyncio.create_task(self._obey(), name="orders by signal")
        await self._over.wait()
        orders.cancel()
        # Something that hangs must not keep the next server out, either.
        signal.signal(signal.SIGALRM, lambda *_: self._end_at_once())
        signal.alarm(_STOP_DEADLINE_S)
        if self._restarting:
            logger.info("Restarting; jobs go on, and requests wait.")
            self._server.keep_sockets()
            self._successor.inheritance = lambda: self._server.bequest
        else:
            logger.info("Stopping; jobs that were launched go on.")
        try:
            await self._server.stop()
        except Exception:
            if not self._restarting:
                raise
            logger.exception("The server could not be ended in order.")
        if self._restarting:
            await self._succeed()

    async def _succeed(self) -> None:
        """Become the successor, unless a stop was asked for in the meantime."""
        # Within the loop: when it closes it stops to listen to signals, and the next would kill.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for _ in range(3):  # until what came before has been seen
            await asyncio.sleep(0)
        if not self._stop_wanted:
            self._successor.execute()

    async def _obey(self) -> None:
        """Do what does not end the server; see whether a restart may."""
        while True:
            await self._orders_wait.wait()
            self._orders_wait.clear()
            try:
                if self._reload_wanted:
                    self._reload_wanted = False
                    await self._server.reload()
                if self._restart_wanted:
                    self._restart_wanted = False
                    await self._rehearse()
            except Exception:
                logger.exception("A signal could not be obeyed.")
            if self._restarting:
                self._over.set()

    async def _rehearse(self) -> None:
        """Restart, unless it would fail: then this server is better than none."""
        try:
            await asyncio.to_thread(self._successor.rehearse)
        except StartupError as error:
            await self._server.refuse_restart(str(error))
        else:
            self._restarting = True

    def _want_reload(self) -> None:
        self._reload_wanted = True
        self._orders_wait.set()

    def _want_restart(self) -> None:
        self._restart_wanted = True
        self._orders_wait.set()

    def _stop_or_force(self) -> None:
        if self._stop_wanted:
            # The monitors and the condor children notice that the server is gone and end
            # themselves.
            os._exit(1)
        self._stop_wanted = True
        self._over.set()

    def _end_at_once(self) -> None:
        if self._restarting and not self._stop_wanted:
            logger.error("Something hangs. The server is started again without waiting for it.")
            try:
                self._successor.execute()
            except StartupError as error:
                logger.error("%s", error)
        os._exit(1)
