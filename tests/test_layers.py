"""The layers point one way, importing does nothing, and functions fit on a screen."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ocps_jobmanager"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts)


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def imports_any(path: Path, *prefixes: str) -> set[str]:
    return {name for name in imports_of(path) if name.startswith(prefixes)}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_layers_point_one_way(path: Path) -> None:
    name = name_of(path)
    if not name.startswith("store/"):
        assert not imports_any(path, "sqlalchemy", "alembic"), "only the store speaks SQL"
    if name != "schedulers/condor_worker.py":
        assert not imports_any(path, "htcondor", "classad"), "only the child speaks to HTCondor"
    if name.startswith("handlers/"):
        lower = ("store", "schedulers", "monitors", "code", "processes")
        assert not imports_any(path, *(f"ocps_jobmanager.{part}" for part in lower))
    elif name not in {"app.py", "cli.py", "__main__.py"}:
        assert not imports_any(path, "ocps_jobmanager.handlers", "ocps_jobmanager.app")
    if name.startswith(("store/", "schedulers/")):
        assert not imports_any(path, "ocps_jobmanager.manager", "tornado")
    if name not in {"app.py"} and not name.startswith("handlers/"):
        assert not imports_any(path, "tornado"), "only handlers know HTTP"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_fit_on_a_screen_and_modules_in_a_sitting(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = node.end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 60, f"{node.name} has {lines} lines"


def test_importing_does_nothing() -> None:
    """No thread, no output, no bindings, whatever the machine has of HTCondor."""
    modules = [
        "ocps_jobmanager." + name_of(path).removesuffix(".py").replace("/", ".")
        for path in MODULES
        if path.name not in {"__main__.py", "__init__.py", "monitor.py", "condor_worker.py"}
    ]
    program = (
        "import sys, threading\n"
        f"for name in {modules!r}: __import__(name)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert not {'htcondor2', 'classad2', 'htcondor'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=PACKAGE.parent,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
