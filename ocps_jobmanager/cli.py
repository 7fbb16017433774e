"""``ocps-jobmanager``: parses its arguments and hands over."""

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from ocps_jobmanager import demo
from ocps_jobmanager.app import Server, check_files
from ocps_jobmanager.config import layout, load_settings, settings_table
from ocps_jobmanager.errors import StartupError
from ocps_jobmanager.restarts import Foundlings, RestartError, Successor, request_restart
from ocps_jobmanager.running import Run
from ocps_jobmanager.sockets import VARIABLES, take_inheritance

_WIDE = 10_000

LOG_FORMAT = "%(asctime)s  %(name)8s  %(levelname)5s  %(message)s"

_RESTART_DEADLINE_S = 60


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
    commands.add_parser("restart", help="have the running server start again, unnoticed by clients")
    commands.add_parser("config", help="print every setting with its value, source and meaning")
    demo.add_arguments(commands.add_parser("demo", help="show a server, a client and four jobs"))
    arguments = parser.parse_args(argv)
    try:
        match arguments.command:
            case "demo":
                return demo.run(arguments)
            case "restart":
                return _restart(os.environ)
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
    # In a pipe a row is a line, however long.
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)
    for warning in loaded.warnings:
        print(warning, file=sys.stderr)
    return 0


def _serve(environ: Mapping[str, str]) -> int:
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    loaded = load_settings(environ)
    inheritance = take_inheritance(environ, os.getpid())
    environ = {name: value for name, value in environ.items() if name not in VARIABLES}
    server = Server(loaded.settings, environ, inheritance=inheritance)
    Run(
        server,
        foundlings=Foundlings.of_this_process(),
        successor=Successor(environ),
        warnings=loaded.warnings,
    ).to_the_end()
    return 0


def rehearse() -> int:
    """Check what can be checked of a start without starting: before a server makes place for it.

    Returns
    -------
    int
        The exit code: 0, or 2 with lines on standard error.
    """
    try:
        check_files(load_settings(os.environ).settings)
    except StartupError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _restart(environ: Mapping[str, str]) -> int:
    places = layout(load_settings(environ).settings)
    try:
        pid = request_restart(places.server_lock, timeout_s=_RESTART_DEADLINE_S)
    except RestartError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"The server has restarted and answers requests again (process {pid}).")
    return 0
