"""Finds the processes that belong to a directory: what a program may have left behind."""

import os
from pathlib import Path


def processes_of(directory: Path) -> list[str]:
    """Processes that name the directory in their arguments, environment, or as where they are."""
    wanted = os.fsencode(directory)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            about = command + (entry / "environ").read_bytes()
            about += os.fsencode((entry / "cwd").readlink())
        except OSError:
            continue  # ended, or another user's
        if wanted in about:
            found.append(
                f"{entry.name}: {command.replace(bytes(1), b' ').decode(errors='replace')}"
            )
    return found
