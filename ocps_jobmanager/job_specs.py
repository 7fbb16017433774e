"""Job types: what ``job_specs.yaml`` declares, checked whole before anything runs."""

import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import NamedTuple

import yaml

from ocps_jobmanager.config import parse_duration
from ocps_jobmanager.errors import StartupError, did_you_mean, shown
from ocps_jobmanager.models import Limits, Resources

_MAX_FILE_BYTES = 256 * 1024
_MAX_SCRIPT_BYTES = 16 * 1024 * 1024
_MAX_LISTED = 100

_TYPE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([KMGT])(?:i?B)?", re.IGNORECASE)
#: Powers of 1024, as HTCondor counts; also ``GB``.
_UNIT_KB = {"K": 1, "M": 1024, "G": 1024**2, "T": 1024**3}

#: Set by the Job Manager for every job.
_OURS = frozenset({"JOB_ID", "JOB_OUTPUT_DIR", "JOB_SOURCE_DIR", "SRC_GIT_URL", "GIT_COMMIT_REF"})
#: A setting that is meant for jobs, and may be handed on to them.
_FOR_GETENV = frozenset({"OCPS_STACK_SETUP"})
#: Set by HTCondor, whatever a job asks for (measured with 23.9).
_HTCONDORS = frozenset(
    {
        *("TMPDIR", "TEMP", "TMP", "BATCH_SYSTEM", "CUDA_VISIBLE_DEVICES"),
        *("APPTAINER_CACHEDIR", "SINGULARITY_CACHEDIR"),
    }
)

_RESOURCES = ("request_cpus", "request_memory", "request_disk")
_LIMITS = ("max_run_time", "hold_limit", "max_retries")
_LONGEST_S = 365 * 86400
_MOST_RETRIES = 100

_STR = "tag:yaml.org,2002:str"
_INT = "tag:yaml.org,2002:int"


@dataclass(frozen=True, kw_only=True)
class JobType:
    """A declared job type.

    Attributes
    ----------
    script : str
        As the file has it, relative to the parent of the folder that holds the file.
    script_path : pathlib.Path
        Where that is.
    env : tuple of str
        The variables that a submission gives.
    getenv : tuple of str
        The variables that are read from the server's environment at the launch.
    data : tuple of str or None
        What a job waits for. None: its ``<job_id>.dat``; empty: nothing, it is launched at once.
    """

    name: str
    description: str | None
    script: str
    script_path: Path
    env: tuple[str, ...]
    getenv: tuple[str, ...]
    data: tuple[str, ...] | None
    resources: Resources
    limits: Limits = field(default_factory=Limits)


class JobSpecsError(StartupError):
    """The job types can't be used as they are.

    ``str(error)`` has one line for each thing that is wrong, beginning with file and line.
    """


class ScriptError(Exception):
    """A script can't be run; ``str(error)`` follows its name: ``is not executable``."""


def read_script(path: Path) -> bytes:
    """Read a job's script, once, and see whether it can be run. Blocks.

    Raises
    ------
    ScriptError
        It is not there, not a regular file, not executable, too large, or names no interpreter.
    """
    try:
        # O_NONBLOCK, or opening a named pipe waits for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:  # noqa: PTH123 a descriptor
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ScriptError("is not a regular file")
            text = file.read(_MAX_SCRIPT_BYTES + 1)
    except FileNotFoundError:
        raise ScriptError("does not exist") from None
    except OSError as error:
        raise ScriptError(f"can't be read ({error.strerror})") from None
    if not status.st_mode & 0o111:
        raise ScriptError("is not executable (chmod +x)")
    if len(text) > _MAX_SCRIPT_BYTES:
        raise ScriptError(f"is larger than {_MAX_SCRIPT_BYTES} bytes")
    first_line = text[:256].split(b"\n", 1)[0]
    if not re.match(rb"#![ \t]*[^ \t\r\0]", first_line):
        raise ScriptError("does not start with #! and an interpreter")
    if first_line.endswith(b"\r"):
        raise ScriptError("has Windows line ends, so that its interpreter won't be found")
    return text


def load_job_types(path: Path) -> Mapping[str, JobType]:
    """Read and check a file of job types. Blocks.

    Parameters
    ----------
    path : pathlib.Path
        YAML. Scripts in it are relative to the parent of the folder that it lies in.

    Returns
    -------
    mapping of str to JobType
        By name, in the order of the file.

    Raises
    ------
    JobSpecsError
        With all that is wrong.
    """
    checker = _Checker(path)
    types = checker.job_types(_compose(path))
    if checker.problems:
        raise JobSpecsError(_listed(path, checker.problems))
    return MappingProxyType({job_type.name: job_type for job_type in types})


def changes_between(old: Mapping[str, JobType], new: Mapping[str, JobType]) -> str:
    """Say in a sentence what other job types differ in: which are added, removed, changed."""
    groups = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "changed": [name for name in new if name in old and new[name] != old[name]],
    }
    said = "; ".join(f"{what}: {', '.join(names)}" for what, names in groups.items() if names)
    return f"The job types were read again; {said or 'none has changed'}."


def _listed(path: Path, problems: list[tuple[int, str]]) -> str:
    lines = [f"{path}:{line}: {text}" for line, text in sorted(problems)]
    more = len(lines) - _MAX_LISTED
    return "\n".join([*lines[:_MAX_LISTED], *([f"{path}: and {more} more"] if more > 0 else [])])


def _compose(path: Path) -> yaml.Node | None:
    """The file as a tree of nodes, which know their lines. None if there is nothing in it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:  # noqa: PTH123 a descriptor
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise JobSpecsError(
            f"{path}: the job types can't be read ({error.strerror}); "
            "OCPS_JOB_SPECS names another file."
        ) from None
    if len(raw) > _MAX_FILE_BYTES:
        raise JobSpecsError(f"{path}: is larger than {_MAX_FILE_BYTES} bytes")
    try:
        # Nothing is constructed: no tag can call anything, and an alias stays one shared node.
        return yaml.compose(raw.decode(), yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise JobSpecsError(f"{path}:{line}: is not UTF-8") from None
    except yaml.reader.ReaderError as error:
        line = raw.decode().count("\n", 0, error.position) + 1
        raise JobSpecsError(f"{path}:{line}: has a character that YAML does not allow") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = shown(error.problem or error.context or "is not YAML", 200)
        raise JobSpecsError(f"{path}:{line}: {problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError):
        # PyYAML lets chr() fail on an escape such as "\UFFFFFFFF".
        raise JobSpecsError(f"{path}:1: is not YAML") from None
    except RecursionError:
        raise JobSpecsError(f"{path}:1: is nested too deeply") from None


class _Entry(NamedTuple):
    """A key and its value in a mapping of the file."""

    key: yaml.Node
    value: yaml.Node


class _Checker:
    """Turns nodes into job types, and notes all that is wrong with them.

    The methods take the words for where they are, and return what can be made of a node even if
    something in it is wrong, so that one run finds everything. They go down only as far as the keys
    that they know, so that neither depth nor aliases matter.
    """

    def __init__(self, path: Path) -> None:
        self._base = path.absolute().parent.parent
        self.problems: list[tuple[int, str]] = []

    def job_types(self, root: yaml.Node | None) -> list[JobType]:
        """All job types of the file; good only if `problems` is empty then."""
        if root is None:
            self.problems.append((1, "is empty: must be a mapping with the key type"))
            return []
        top = self._mapping(root, "the file", allowed=("type",))
        if "type" not in top:
            if isinstance(root, yaml.MappingNode):
                self._note(root, "the key type is missing")
            return []
        types = top["type"].value
        if isinstance(types, yaml.MappingNode) and not types.value:
            self._note(types, "type declares no job type")
        return [self._job_type(name, entry) for name, entry in self._mapping(types, "type").items()]

    def _job_type(self, name: str, entry: _Entry) -> JobType:
        where = f'job type "{shown(name)}"'
        if not _TYPE_NAME.fullmatch(name):
            allowed = "a letter, then at most 63 letters, digits and _ . -"
            self._note(entry.key, f"{where}: the name must be {allowed}")
        parts = self._mapping(
            entry.value,
            where,
            allowed=("description", "script", "env", "getenv", "data", *_RESOURCES, *_LIMITS),
        )
        values = {key: part.value for key, part in parts.items()}
        env = self._variables(values.get("env"), f"{where}: env")
        getenv = self._variables(values.get("getenv"), f"{where}: getenv", allowed=_FOR_GETENV)
        for variable in env.keys() & getenv.keys():
            self._note(getenv[variable], f"{where}: getenv: {shown(variable)} is in env as well")
        script, script_path = self._script(values.get("script"), f"{where}: script")
        if "script" not in parts and isinstance(entry.value, yaml.MappingNode):
            self._note(entry.key, f"{where}: script is missing")
        description = values.get("description")
        return JobType(
            name=name,
            description=self._string(description, f"{where}: description")
            if description is not None
            else None,
            script=script,
            script_path=script_path,
            env=tuple(env),
            getenv=tuple(getenv),
            data=self._data(values.get("data"), f"{where}: data"),
            resources=Resources(
                cpus=self._cpus(values.get("request_cpus"), f"{where}: request_cpus"),
                memory_mb=self._size(
                    values.get("request_memory"), f"{where}: request_memory", 1024
                ),
                disk_kb=self._size(values.get("request_disk"), f"{where}: request_disk", 1),
            ),
            limits=self._limits(values, where),
        )

    def _variables(
        self, node: yaml.Node | None, where: str, allowed: frozenset[str] = frozenset()
    ) -> dict[str, yaml.Node]:
        """The names in a list of variables; `allowed` may be there although they are reserved."""
        found: dict[str, yaml.Node] = {}
        for item in self._items(node, where):
            if (name := self._string(item, f"{where}: a variable's name")) is None:
                continue
            if not _VARIABLE_NAME.fullmatch(name):
                letters = "letters, digits and _ that does not start with a digit"
                self._note(item, f'{where}: the name "{shown(name)}" must be {letters}')
            elif name in found:
                self._note(item, f"{where}: {shown(name)} is given twice")
            elif name not in allowed and (owner := _reserved_by(name)) is not None:
                self._note(item, f"{where}: {shown(name)} is reserved: {owner}")
            found.setdefault(name, item)
        return found

    def _script(self, node: yaml.Node | None, where: str) -> tuple[str, Path]:
        if node is None or (text := self._string(node, where)) is None:
            return "", self._base
        path = self._base / text
        place = PurePosixPath(text)
        if not text or place.is_absolute() or ".." in place.parts or not text.isprintable():
            self._note(node, f"{where} must be a path within {self._base}, relative to that")
            return text, path
        try:
            read_script(path)
        except ScriptError as error:
            self._note(node, f"{where}: {shown(str(path), 300)} {error}")
        return text, path

    def _data(self, node: yaml.Node | None, where: str) -> tuple[str, ...] | None:
        if node is None:
            return None
        if not isinstance(node, yaml.SequenceNode) or node.value:
            self._note(
                node,
                f"{where} must be [] (launch at once); without it a job waits for <job_id>.dat",
            )
        return ()

    def _limits(self, values: Mapping[str, yaml.Node], where: str) -> Limits:
        run_time = self._duration(values.get("max_run_time"), f"{where}: max_run_time")
        hold = self._duration(values.get("hold_limit"), f"{where}: hold_limit")
        return Limits(
            max_run_time_s=run_time,
            hold_limit_s=Limits.hold_limit_s if hold is None else hold,
            max_retries=self._retries(values.get("max_retries"), f"{where}: max_retries"),
        )

    def _duration(self, node: yaml.Node | None, where: str) -> int | None:
        """Whole seconds, rounded up."""
        if node is None:
            return None
        try:
            seconds = parse_duration(node.value if isinstance(node, yaml.ScalarNode) else "")
        except ValueError:
            seconds = 0.0
        if 1.0 <= seconds <= _LONGEST_S:
            return math.ceil(seconds)
        self._note(
            node, f"{where} must be a duration such as 90s, 15m or 2h, from 1s to a year (8760h)"
        )
        return None

    def _retries(self, node: yaml.Node | None, where: str) -> int:
        if node is None:
            return 0
        if node.tag == _INT and re.fullmatch("0|[1-9][0-9]{0,2}", str(node.value)):
            retries = int(node.value)
            if retries <= _MOST_RETRIES:
                return retries
        self._note(node, f"{where} must be a whole number from 0 to {_MOST_RETRIES}")
        return 0

    def _cpus(self, node: yaml.Node | None, where: str) -> int | None:
        if node is None:
            return None
        if node.tag == _INT and re.fullmatch("[1-9][0-9]{0,3}", str(node.value)):
            return int(node.value)
        self._note(node, f"{where} must be a whole number from 1 to 9999")
        return None

    def _size(self, node: yaml.Node | None, where: str, unit_kb: int) -> int | None:
        """A size in units of `unit_kb` KiB, rounded up."""
        if node is None:
            return None
        match = _SIZE.fullmatch(node.value) if isinstance(node, yaml.ScalarNode) else None
        if match is not None and (number := Decimal(match[1])) > 0:
            size = number * _UNIT_KB[match[2].upper()] / unit_kb
            return int(size.to_integral_value(ROUND_CEILING))
        self._note(node, f"{where} must be a size with its unit, such as 512MB or 2GB")
        return None

    def _mapping(
        self, node: yaml.Node, where: str, allowed: tuple[str, ...] | None = None
    ) -> dict[str, _Entry]:
        """The entries of a mapping whose keys are strings, each once, and known if that matters."""
        found: dict[str, _Entry] = {}
        if not isinstance(node, yaml.MappingNode):
            self._note(node, f"{where} must be a mapping")
            return found
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                self._note(key, f"{where}: merge keys (<<) are not supported")
            elif (name := self._string(key, f"{where}: a key")) is None:
                pass  # noted
            elif name in found:
                self._note(key, f'{where}: the key "{shown(name)}" is given twice')
            elif allowed is not None and name not in allowed:
                # Looking for the nearest takes its time, and no more than so many are shown.
                near = did_you_mean(name, allowed) if len(self.problems) < _MAX_LISTED else ""
                hint = near or f"; known: {', '.join(allowed)}"
                self._note(key, f'{where}: unknown key "{shown(name)}"{hint}')
            else:
                found[name] = _Entry(key, value)
        return found

    def _items(self, node: yaml.Node | None, where: str) -> list[yaml.Node]:
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self._note(node, f"{where} must be a list")
            return []
        return list(node.value)

    def _string(self, node: yaml.Node, where: str) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._note(node, f"{where} must be a string")
        elif node.tag != _STR:
            text = shown(node.value, 40)
            self._note(
                node, f"{where} must be a string; put {text} in quotes if it is meant as one"
            )
        elif re.search("[\0\ud800-\udfff]", node.value):
            self._note(node, f"{where} has a character that can't be used")
        else:
            return str(node.value)
        return None

    def _note(self, node: yaml.Node, text: str) -> None:
        self.problems.append((node.start_mark.line + 1, text))


def _reserved_by(name: str) -> str | None:
    """Who gives the variable its value, if a job type may not declare it."""
    if name in _OURS:
        return "the Job Manager sets it for every job"
    if name.startswith("OCPS_"):
        return "OCPS_ is for the Job Manager's own settings"
    if name in _HTCONDORS or name.upper().startswith(("_CONDOR_", "_CHIRP_")):
        return "HTCondor sets it itself"
    return None
