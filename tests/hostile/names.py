"""Job types and variables that are named like something else, on either scheduler."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.server import ServerProcess

#: Of Python's objects and mappings, and of what the server itself is made of.
TYPES = (
    "keys",
    "items",
    "get",
    "mro",
    "type",
    "class",
    "None",
    "self",
    "env",
    "log_dir",
    "a.b-c_d",
)
#: Of ClassAds, of submit descriptions, of the fields of the server's own submissions, of Python.
VARIABLES = (
    *("ClusterId", "ProcId", "Environment", "Env", "Requirements", "Rank", "Owner", "Cmd", "Iwd"),
    *("JobStatus", "Arguments", "Args", "In", "Out", "Err", "UserLog", "OcpsJobId", "MY", "TARGET"),
    *("executable", "environment", "queue", "Item", "Step", "Row", "Node", "request_cpus", "log"),
    *("ocps_job_id", "ocps_environment", "ocps_end", "getenv", "notification", "Universe"),
    *("DOLLAR", "Cluster", "Process", "true", "undefined", "error", "isnt", "IFS", "JobPrio"),
    *("__class__", "__init__", "__dict__", "self", "None", "True", "format", "_", "__"),
)
#: One of them each.
VALUES = (
    "1",
    "TARGET.x",
    "undefined",
    "false || true",
    "$(ClusterId)",
    "$$(Requirements)",
    "$ENV(HOME)",
    "MY.Owner",
    '"; Requirements = false',
    "{0.__class__}",
    "%(asctime)s",
    "+JobPrio = 20",
    "",
)
SCRIPT = (
    "#!/usr/bin/env python3\n"
    "import os, pathlib\n"
    "dump = b'\\0'.join(b'='.join(item) for item in os.environb.items())\n"
    "pathlib.Path('dump').write_bytes(dump)\n"
)


def declare(server: ServerProcess) -> None:
    """Have a server's job types named as above; before it is started."""
    jobs = server.home / "jobs"
    variables = ", ".join(f'"{name}"' for name in VARIABLES)
    types = "".join(
        f'  "{name}": {{script: jobs/dump_here.py, env: [{variables}], data: []}}\n'
        for name in TYPES
    )
    plain = "  plain: {script: jobs/dump_here.py, env: [], data: []}\n"
    (jobs / "job_specs.yaml").write_text(f"type:\n{types}{plain}")
    (jobs / "dump_here.py").write_text(SCRIPT)
    (jobs / "dump_here.py").chmod(0o755)


def environment(number: int) -> dict[str, str]:
    """A value for each of the variables."""
    return {name: VALUES[(number + place) % len(VALUES)] for place, name in enumerate(VARIABLES)}


def check_reached(job: Mapping[str, Any], given: Mapping[str, str]) -> None:
    """The job has ended well, and its variables had the values that were given."""
    assert (job["state"], job["exit_code"]) == ("completed", 0), job
    dump = (Path(job["output_dir"]) / "dump").read_bytes()
    found = dict(item.split(b"=", 1) for item in dump.split(b"\0"))
    # The shell of `env` and the interpreter leave all of them alone.
    assert {name: found[name.encode()].decode() for name in given} == given
    assert found[b"JOB_ID"].decode() == job["job_id"]
