"""``ocps-jobmanager``: parses its arguments and hands over."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from ocps_jobmanager import demo
from ocps_jobmanager.app import Server
from ocps_jobmanager.config import load_settings, settings_table
from ocps_jobmanager.errors import StartupError

logger = logging.getLogger("main")

LOG_FORMAT = "%(asctime)s  %(name)8s  %(levelname)5s  %(message)s"

_STOP_DEADLINE_S = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        The exit code: 0 done, 1 failed, 2 can't be done like this.
    """
    parser = argparse.ArgumentParser(
        prog="ocps-jobmanager",
        description="Waits for an observatory's data and has HTCondor process them.",
        epilog="Settings come from the environment: see `ocps-jobmanager config`.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="run the server (what no command does, too)")
    commands.add_parser("config", help="print every setting with its value, source and meaning")
    demo.add_arguments(commands.add_parser("demo", help="show a server, a client and four jobs"))
    arguments = parser.parse_args(argv)
    try:
        match arguments.command:
            case "demo":
                return demo.run(arguments)
            case "config":
                return _print_config(os.environ)
            case _:
                return _serve(os.environ)
    except StartupError as error:
        print(error, file=sys.stderr)
        return 2


def _print_config(environ: Mapping[str, str]) -> int:
    loaded = load_settings(environ)
    table = Table("setting", "value", "source", "what it is", box=None, pad_edge=False)
    for row in settings_table(loaded.settings, environ):
        table.add_row(row.name, row.value, row.source, row.help)
    console = Console(soft_wrap=not sys.stdout.isatty())
    console.print(table)
    for warning in loaded.warnings:
        print(warning, file=sys.stderr)
    return 0


def _serve(environ: Mapping[str, str]) -> int:
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    loaded = load_settings(environ)
    asyncio.run(_serve_until_told(Server(loaded.settings, environ), loaded.warnings))
    return 0


async def _serve_until_told(server: Server, warnings: Sequence[str]) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_or_force, told)
    await server.start()
    for warning in warnings:
        logger.warning("%s", warning)
    await told.wait()
    logger.info("Stopping; jobs that were launched go on.")
    # Something that hangs, such as a dead file system, must not keep the next server out.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
    signal.alarm(_STOP_DEADLINE_S)
    await server.stop()


def _stop_or_force(told: asyncio.Event) -> None:
    if told.is_set():
        # The monitors and the condor children notice that the server is gone and end themselves.
        os._exit(1)
    told.set()
