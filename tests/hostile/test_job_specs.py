"""Files of job types that have the right form and anything in it.

Bytes and texts of no form are in ``tests/test_job_specs.py``.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ocps_jobmanager.job_specs import JobSpecsError, load_job_types
from tests.hostile.names import TYPES, VARIABLES

#: Everything that YAML can have, and what means something to one of those who read it.
WORDS = st.one_of(
    st.sampled_from(
        [
            *("", "~", "null", "yes", "0x1f", "1e3", "08", "1_0", "-1", ".inf", "2020-01-01"),
            *("jobs/a.sh", "jobs", "../a.sh", "/bin/sh", "jobs/../jobs/a.sh", "jobs/a.sh\0", "."),
            *("2GB", "0.5 GiB", "1e9T", "999999999T", "0K", "90s", "15m", "2h", "1d", "0s", "-1s"),
            *("TARGET.x", "A=B", "A B", "A\n", "_CONDOR_X", "OCPS_API_TOKENS", "JOB_ID", "TMPDIR"),
            *("$(HOME)", "!!python/name:os.system", "<<", "*a", "&a", "{{7*7}}", "a" * 70),
        ]
    ),
    st.sampled_from(VARIABLES),
    st.sampled_from(TYPES),
    st.text(max_size=8),
)
SCALARS = st.one_of(
    WORDS,
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.binary(max_size=4),
    st.dates(),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=4)),
    max_leaves=8,
)
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "description": st.text(st.characters(categories=["L", "N", "P", "Zs"])),
    "script": st.just("jobs/a.sh"),
    "env": st.lists(st.sampled_from(VARIABLES), max_size=4),
    "getenv": st.lists(st.sampled_from(["SITE", "OCPS_STACK_SETUP"]), max_size=2, unique=True),
    "data": st.just([]),
    "request_cpus": st.integers(1, 64),
    "request_memory": st.sampled_from(["512MB", "1.5GiB"]),
    "request_disk": st.sampled_from(["10 GB", "1T"]),
    "max_run_time": st.sampled_from(["90s", "2h", 5]),
    "hold_limit": st.sampled_from(["90s", "2h", 5]),
    "max_retries": st.integers(0, 3),
}


@st.composite
def job_types(draw: st.DrawFn) -> dict[object, object]:
    """A type, good but for at most one of its keys."""
    made: dict[object, object] = {"script": "jobs/a.sh"}
    for key in draw(st.lists(st.sampled_from(sorted(GOOD)), max_size=5)):
        made[key] = draw(GOOD[key])
    if draw(st.booleans()):
        made[draw(st.one_of(st.sampled_from(sorted(GOOD)), WORDS))] = draw(ANYTHING)
    return made


NAMES = st.one_of(st.sampled_from(TYPES), st.sampled_from(TYPES), st.sampled_from(TYPES), WORDS)
FILES = st.fixed_dictionaries(
    {
        "type": st.one_of(
            st.dictionaries(NAMES, job_types(), max_size=3),
            st.dictionaries(WORDS, st.one_of(job_types(), ANYTHING), max_size=4),
        )
    }
)


@pytest.fixture
def specs(tmp_path: Path) -> Path:
    (tmp_path / "jobs").mkdir()
    script = tmp_path / "jobs" / "a.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    return tmp_path / "jobs" / "job_specs.yaml"


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(FILES, st.booleans())
def test_what_is_taken_is_what_may_be_and_all_else_is_told_by_line(
    specs: Path, file: dict[str, Any], flow: bool
) -> None:
    text = yaml.safe_dump(file, default_flow_style=flow, allow_unicode=True, sort_keys=False)
    specs.write_text(text)
    try:
        types = load_job_types(specs)
    except JobSpecsError as refused:
        for line in str(refused).split("\n"):
            assert re.fullmatch(re.escape(str(specs)) + r":(\d+: .+| and \d+ more)", line), line
            assert line.isprintable()
            assert len(line) < 1000
        return
    assert list(types) == list(file["type"])
    for name, job_type in types.items():
        declared = file["type"][name]
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", name)
        assert set(declared) <= set(GOOD)
        assert job_type.script_path.resolve() == specs.parent / "a.sh"
        assert list(job_type.env) == declared.get("env", [])
        assert list(job_type.getenv) == declared.get("getenv", [])
        variables = job_type.env + job_type.getenv
        assert len(set(variables)) == len(variables)
        for variable in variables:
            assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable)
            if variable != "OCPS_STACK_SETUP":
                assert not variable.startswith("OCPS_")
                assert not variable.upper().startswith(("_CONDOR_", "_CHIRP_"))
        assert job_type.data == (() if "data" in declared else None)
        sizes = (
            job_type.resources.cpus,
            job_type.resources.memory_mb,
            job_type.resources.disk_kb,
            job_type.limits.max_run_time_s,
            job_type.limits.hold_limit_s,
        )
        assert all(size is None or 0 < size < 2**60 for size in sizes)
        assert 0 <= job_type.limits.max_retries <= 100


def test_good_ones_are_taken(specs: Path) -> None:
    """Otherwise nothing would be looked at above."""
    declared = {
        "script": "jobs/a.sh",
        "env": list(VARIABLES),
        "data": [],
        "request_memory": "1.5GiB",
        "max_run_time": "2h",
        "max_retries": 1,
    }
    specs.write_text(yaml.safe_dump({"type": dict.fromkeys(TYPES, declared)}, sort_keys=False))
    assert tuple(load_job_types(specs)) == TYPES


@pytest.mark.parametrize("name", ["TARGET.x", "MY.A", "+A", "A B", "a-b", "1A", "Ä", "A=", "$A"])
def test_what_is_no_name_of_a_variable_is_refused(specs: Path, name: str) -> None:
    specs.write_text(yaml.safe_dump({"type": {"a": {"script": "jobs/a.sh", "env": [name]}}}))
    with pytest.raises(JobSpecsError, match="must be letters, digits and _"):
        load_job_types(specs)
