"""Copies of the project, to run its scripts in; and a Python that sets up environments at once."""

import os
import shutil
import site
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]

_NOT_COPIED = shutil.ignore_patterns(
    *(".git", ".venv", ".cache", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info"),
    *("work", "build", "config.yaml"),
)

#: Stands in for a Python where only the *making* of environments is to be quick: ``-m venv`` leaves
#: out pip, ``-m pip install`` writes down its arguments and finds everything in the environment of
#: the tests. Everything else is the real Python's.
_QUICK_PYTHON = """#!{bash}
set -euo pipefail
own_dir=${{0%/*}}
case "$*" in
"-m venv "*)
    {python} -m venv --without-pip "$3"
    mv -- "$3/bin/python" "$3/bin/real-python"
    cp -- "$0" "$3/bin/python"
    ;;
"-I -m pip --version") ;;
"-I -m pip install "*)
    printf '%s\\n' "${{*: -1}}" >>{log}
    if [[ -e {fifo} ]]; then
        read -r status <{fifo}
        [[ $status == 0 ]] || exit "$status"
    fi
    packages=("$own_dir"/../lib/python*/site-packages)
    printf '%s\\n' "$PWD" {site} >"${{packages[0]}}/quick.pth"
    ;;
*)
    if [[ -L $own_dir/real-python ]]; then
        exec "$own_dir/real-python" "$@"
    fi
    exec {python} "$@"
    ;;
esac
"""


def copy_project(to: Path) -> Path:
    """Copy what a checkout has."""
    shutil.copytree(PROJECT, to, ignore=_NOT_COPIED)
    return to


def bare_environment(**more: str) -> dict[str, str]:
    """The environment of the tests without settings and without what belongs to their Python."""
    own = ("OCPS_", "API_", "PYTHON", "VIRTUAL_ENV", "CONDOR_CONFIG", "_CONDOR_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    if "PYTHON" in os.environ:  # which Python to set up with: for the scripts
        kept["PYTHON"] = os.environ["PYTHON"]
    return kept | more


class Tree:
    """A copy of the project whose scripts are run by people from anywhere."""

    def __init__(self, path: Path, environment: Mapping[str, str]) -> None:
        self.path = path
        self.environment = dict(environment)

    def run(
        self, script: str | Path, *arguments: str, cwd: Path | str = "/", **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a script to its end."""
        return subprocess.run(
            ["bash", self.path / script, *arguments],
            cwd=cwd,
            env=self.environment | more,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def start(
        self, script: str | Path, *arguments: str, cwd: Path | str = "/", **more: str
    ) -> "subprocess.Popen[str]":
        """Start a script in a session of its own, its output in one pipe."""
        return subprocess.Popen(
            ["bash", self.path / script, *arguments],
            cwd=cwd,
            env=self.environment | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


class QuickTree(Tree):
    """A copy of the project where a set-up takes no time and `installed` tells of each."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "installed"
        self.fifo = folder / "pip waits for its exit status here"
        python = folder / "quick-python"
        python.write_text(
            _QUICK_PYTHON.format(
                bash=shutil.which("bash"),
                python=_quoted(sys.executable),
                log=_quoted(self._log),
                fifo=_quoted(self.fifo),
                site=" ".join(map(_quoted, site.getsitepackages())),
            )
        )
        python.chmod(0o755)
        super().__init__(copy_project(folder / "the project"), bare_environment(PYTHON=str(python)))

    @property
    def installed(self) -> list[str]:
        """What pip was told to install, each time."""
        return self._log.read_text().splitlines() if self._log.exists() else []


def _quoted(path: object) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"
