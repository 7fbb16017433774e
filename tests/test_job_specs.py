"""Job types: what may be declared, and that a bad file is refused whole, with file and line."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ocps_jobmanager.errors import StartupError
from ocps_jobmanager.job_specs import JobSpecsError, ScriptError, load_job_types, read_script
from ocps_jobmanager.models import Limits, Resources


@pytest.fixture
def specs(tmp_path: Path) -> Path:
    """The file of job types in a tree like the project's, with one script that can be run."""
    (tmp_path / "jobs").mkdir()
    script = tmp_path / "jobs" / "a.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    return tmp_path / "jobs" / "job_specs.yaml"


def load(specs: Path, text: str | bytes):
    specs.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_job_types(specs)


def problems(specs: Path, text: str | bytes) -> list[str]:
    """The lines of the refusal, each without the file's name."""
    with pytest.raises(JobSpecsError) as refused:
        load(specs, text)
    lines = str(refused.value).split("\n")
    assert all(line.startswith(f"{specs}:") for line in lines)
    return [line.removeprefix(f"{specs}:") for line in lines]


def of_type(body: str) -> str:
    """A file with one good type and, from line 3 on, what else it has."""
    return f"type:\n  a: {{script: jobs/a.sh, {body}}}\n"


def test_the_simple_form(specs):
    types = load(
        specs,
        """
        type:
          # Alert Production pipeline
          ap:
            script: "jobs/a.sh"            # the simple form
            env: ["AP_VISIT_ID", "AP_CCD_NUM"]
        """,
    )
    (ap,) = types.values()
    assert types["ap"] is ap
    assert ap.name == "ap"
    assert ap.description is None
    assert ap.script == "jobs/a.sh"
    assert ap.script_path == specs.parent / "a.sh"
    assert ap.env == ("AP_VISIT_ID", "AP_CCD_NUM")
    assert ap.getenv == ()
    assert ap.data is None
    assert ap.resources == Resources()


def test_all_keys(specs):
    types = load(
        specs,
        """
type:
  b-1.x:
    description: "What it is: größer"
    script: jobs/a.sh
    env: []
    getenv: [OCPS_STACK_SETUP, _x1]
    data: []
    request_cpus: 4
    request_memory: 2GB
    request_disk: 1.5 mb
    max_run_time: 2h
    hold_limit: 90.5s
    max_retries: 100
  a:
    script: jobs/a.sh
""",
    )
    assert list(types) == ["b-1.x", "a"]
    b = types["b-1.x"]
    assert b.description == "What it is: größer"
    assert b.getenv == ("OCPS_STACK_SETUP", "_x1")
    assert b.data == ()
    assert b.resources == Resources(cpus=4, memory_mb=2048, disk_kb=1536)
    assert b.limits == Limits(max_run_time_s=7200, hold_limit_s=91, max_retries=100)
    assert types["a"].limits == Limits(max_run_time_s=None, hold_limit_s=3600, max_retries=0)
    assert types["a"].env == ()
    with pytest.raises(TypeError):
        types["c"] = b  # type: ignore[index]


def test_the_file_may_be_named_by_a_relative_path(specs, monkeypatch):
    specs.write_text(of_type(""))
    monkeypatch.chdir(specs.parent)
    assert load_job_types(Path(specs.name))["a"].script_path == specs.parent / "a.sh"


def test_the_projects_own_file_is_good():
    types = load_job_types(Path(__file__).parents[1] / "jobs" / "job_specs.yaml")
    assert types["ap"].env[0] == "AP_JOB_OUTPUT_DIR"
    assert types["ap"].getenv == ("OCPS_STACK_SETUP",)


def test_all_errors_are_told_at_once_each_with_file_and_line(specs):
    assert problems(
        specs,
        """type:
  good: {script: jobs/a.sh}
  "1st":
    script: jobs/a.sh
    envs: [A]
  ap:
    script: jobs/none.sh
    env: [A, JOB_ID, "b c",
      A]
    request_memory: 2048
    request_memory: 1GB
    data: ["x.dat"]
  empty:
""",
    ) == [
        '3: job type "1st": the name must be a letter, then at most 63 letters, digits and _ . -',
        '5: job type "1st": unknown key "envs"; did you mean "env"?',
        f'7: job type "ap": script: {specs.parent}/none.sh does not exist',
        '8: job type "ap": env: JOB_ID is reserved: the Job Manager sets it for every job',
        '8: job type "ap": env: the name "b c" must be letters, digits and _ that does not start'
        " with a digit",
        '9: job type "ap": env: A is given twice',
        '10: job type "ap": request_memory must be a size with its unit, such as 512MB or 2GB',
        '11: job type "ap": the key "request_memory" is given twice',
        '12: job type "ap": data must be [] (launch at once); without it a job waits for'
        " <job_id>.dat",
        '13: job type "empty" must be a mapping',
    ]


def test_a_start_is_refused_by_it(specs):
    with pytest.raises(StartupError):
        load(specs, "")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "1: is empty: must be a mapping with the key type"),
        ("# nothing\n", "1: is empty: must be a mapping with the key type"),
        ("- a\n", "1: the file must be a mapping"),
        ("{}\n", "1: the key type is missing"),
        ("\ntypes: {}\n", '2: the file: unknown key "types"; did you mean "type"?'),
        ("type: {}\n", "1: type declares no job type"),
        ("type:\n", "1: type must be a mapping"),
        ("type: [a]\n", "1: type must be a mapping"),
        ("type:\n  a: jobs/a.sh\n", '2: job type "a" must be a mapping'),
        ("type:\n  a: {}\n", '2: job type "a": script is missing'),
        ("type:\n  on: {}\n", "2: type: a key must be a string; put on in quotes"),
        ("type:\n  5: {}\n", "2: type: a key must be a string; put 5 in quotes"),
        ("type:\n  ? [a]\n  : {}\n", "2: type: a key must be a string"),
        ("type:\n  -a: {script: jobs/a.sh}\n", '2: job type "-a": the name must be a letter'),
        ("type: {a: {script: jobs/a.sh}}\ntype: {}\n", '2: the file: the key "type" is given'),
        ("type: {a: {script: jobs/a.sh}, 'a': {}}\n", '1: type: the key "a" is given twice'),
        ("type:\n  a: {script: jobs/a.sh\n", "3: expected ',' or '}'"),
        ("type:\n\ta: 1\n", "2: found character '\\t' that cannot start any token"),
        ("type: *b\n", "1: found undefined alias 'b'"),
        ("--- {}\n--- {}\n", "2: but found another document"),
        ("a: \x07\n", "1: has a character that YAML does not allow"),
        (b"type:\n  \xe4: {}\n", "2: is not UTF-8"),
        ('"\\UFFFFFFFF": 1\n', "1: is not YAML"),
        ("[" * 50_000, "1: is nested too deeply"),
        ("x" * 300_000, " is larger than 262144 bytes"),
        ("command: {}\ntype: {a: {script: jobs/a.sh}}\n", '1: the file: unknown key "command"'),
        ("b: &b {script: jobs/a.sh}\ntype: {a: {<<: *b}}", '2: job type "a": merge keys (<<)'),
    ],
)
def test_what_is_no_file_of_job_types_is_refused(specs, text, line):
    assert any(told.startswith(line) for told in problems(specs, text)), problems(specs, text)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("description: 5", "description must be a string; put 5 in quotes if it is meant as one"),
        ("description: [x]", "description must be a string"),
        ('description: "\\uD800"', "description has a character that can't be used"),
        ("env: A", "env must be a list"),
        ("env:", "env must be a list"),
        ("env: {A: 1}", "env must be a list"),
        ("env: [{name: A}]", "env: a variable's name must be a string"),
        ("env: [NO]", "env: a variable's name must be a string; put NO in quotes if it is meant"),
        ("env: [1A]", 'env: the name "1A" must be letters, digits and _'),
        ('env: ["A\\n"]', 'env: the name "A\\n" must be letters, digits and _'),
        ("env: [Ä]", 'env: the name "Ä" must be letters, digits and _'),
        ('env: [""]', 'env: the name "" must be letters, digits and _'),
        ("getenv: ['A*']", 'getenv: the name "A*" must be letters, digits and _'),
        ("getenv: [A, A]", "getenv: A is given twice"),
        ("env: [A, B], getenv: [B]", "getenv: B is in env as well"),
        ("data: ['{job_id}.dat']", "data must be []"),
        ("data:", "data must be []"),
        ("data: no", "data must be []"),
        ("request_cpus: 0", "request_cpus must be a whole number from 1 to 9999"),
        ("request_cpus: '2'", "request_cpus must be a whole number from 1 to 9999"),
        ("request_cpus: 1.5", "request_cpus must be a whole number from 1 to 9999"),
        ("request_cpus: 1_0", "request_cpus must be a whole number from 1 to 9999"),
        ("request_cpus: 99999", "request_cpus must be a whole number from 1 to 9999"),
        ("request_memory: 2048", "request_memory must be a size with its unit"),
        ("request_memory: '2048'", "request_memory must be a size with its unit"),
        ("request_memory: 0GB", "request_memory must be a size with its unit"),
        ("request_memory: -1GB", "request_memory must be a size with its unit"),
        ("request_memory: 2XB", "request_memory must be a size with its unit"),
        ("request_memory: [2GB]", "request_memory must be a size with its unit"),
        ("request_disk: 10", "request_disk must be a size with its unit"),
        ("requestmemory: 2GB", 'unknown key "requestmemory"; did you mean "request_memory"?'),
        (
            "zzz: 1",
            'unknown key "zzz"; known: description, script, env, getenv, data, request_cpus',
        ),
        ("? [a] : 1", "a key must be a string"),
    ],
)
def test_what_is_no_job_type_is_refused(specs, body, told):
    (line,) = problems(specs, of_type(body))
    assert line.startswith('2: job type "a": ')
    assert told in line


@pytest.mark.parametrize("key", ["env", "getenv"])
@pytest.mark.parametrize(
    "name",
    [
        *("JOB_ID", "JOB_OUTPUT_DIR", "JOB_SOURCE_DIR", "SRC_GIT_URL", "GIT_COMMIT_REF"),
        *("OCPS_WORK_DIR", "OCPS_API_TOKENS", "OCPS_X", "TMPDIR", "TEMP", "TMP", "BATCH_SYSTEM"),
        *("CUDA_VISIBLE_DEVICES", "_CONDOR_SLOT", "_condor_x", "_CHIRP_DELAYED_UPDATE_PREFIX"),
    ],
)
def test_reserved_variables_may_not_be_declared(specs, key, name):
    (line,) = problems(specs, of_type(f"{key}: [{name}]"))
    assert f"{key}: {name} is reserved: " in line


def test_the_stack_setup_may_be_handed_on_but_not_submitted(specs):
    assert load(specs, of_type("getenv: [OCPS_STACK_SETUP]"))["a"].getenv == ("OCPS_STACK_SETUP",)
    (line,) = problems(specs, of_type("env: [OCPS_STACK_SETUP]"))
    assert "OCPS_STACK_SETUP is reserved" in line


@pytest.mark.parametrize("name", ["PATH", "HOME", "JOB_IDS", "MYTMP", "tmp", "OCPS"])
def test_other_variables_may_be_declared(specs, name):
    assert load(specs, of_type(f"env: [{name}]"))["a"].env == (name,)


@pytest.mark.parametrize(
    ("size", "memory_mb"),
    [("1K", 1), ("512MB", 512), ("0.5g", 512), ("1GiB", 1024), ("1.0001 MB", 2), ("1T", 1048576)],
)
def test_sizes_count_by_1024_and_are_rounded_up(specs, size, memory_mb):
    job_type = load(specs, of_type(f"request_memory: {size}, request_disk: 2m"))["a"]
    assert job_type.resources == Resources(memory_mb=memory_mb, disk_kb=2048)


@pytest.mark.parametrize("script", ["/bin/sh", "../x.sh", "jobs/../../x.sh", '""', '"a\\nb"'])
def test_a_script_is_named_within_the_folder_above_the_files(specs, script):
    (line,) = problems(specs, f"type:\n  a:\n    script: {script}\n")
    assert (
        line
        == f'3: job type "a": script must be a path within {specs.parents[1]}, relative to that'
    )


class TestScript:
    """A script is one that the kernel will run."""

    def refusal(self, path: Path) -> str:
        with pytest.raises(ScriptError) as refused:
            read_script(path)
        return str(refused.value)

    def script(self, tmp_path: Path, text: bytes, mode: int = 0o755) -> Path:
        path = tmp_path / "script"
        path.write_bytes(text)
        path.chmod(mode)
        return path

    @pytest.mark.parametrize(
        "text", [b"#!/bin/sh\n", b"#! /usr/bin/env python3", b"#!\t/x y\n\0\xff"]
    )
    def test_a_script_is_read_whole(self, tmp_path, text):
        assert read_script(self.script(tmp_path, text)) == text

    def test_a_link_to_a_script_is_followed(self, tmp_path):
        self.script(tmp_path, b"#!/bin/sh\n")
        (tmp_path / "link").symlink_to("script")
        assert read_script(tmp_path / "link") == b"#!/bin/sh\n"

    @pytest.mark.parametrize(
        "text", [b"", b"#", b"echo hello\n", b" #!/bin/sh\n", b"#!\n/bin/sh\n"]
    )
    def test_it_names_its_interpreter(self, tmp_path, text):
        assert self.refusal(self.script(tmp_path, text)) == (
            "does not start with #! and an interpreter"
        )

    def test_it_has_no_windows_line_ends(self, tmp_path):
        assert "Windows line ends" in self.refusal(self.script(tmp_path, b"#!/bin/sh\r\necho\r\n"))

    def test_it_is_executable(self, tmp_path):
        script = self.script(tmp_path, b"#!/bin/sh\n", 0o644)
        assert self.refusal(script) == "is not executable (chmod +x)"

    def test_it_is_of_bounded_size(self, tmp_path):
        script = self.script(tmp_path, b"#!/bin/sh\n")
        os.truncate(script, 16 * 1024 * 1024)
        assert len(read_script(script)) == 16 * 1024 * 1024
        os.truncate(script, 16 * 1024 * 1024 + 1)
        assert self.refusal(script) == "is larger than 16777216 bytes"

    def test_it_is_a_regular_file(self, tmp_path):
        assert self.refusal(tmp_path) in {"is not a regular file", "can't be read (Is a directory)"}
        os.mkfifo(tmp_path / "pipe", 0o755)
        assert self.refusal(tmp_path / "pipe") == "is not a regular file"
        assert self.refusal(tmp_path / "none") == "does not exist"
        assert "can't be read" in self.refusal(tmp_path / ("x" * 300))


def test_a_file_that_cannot_be_read_is_refused_with_the_settings_name(specs):
    specs.mkdir()
    for path in (specs, specs / "none"):
        with pytest.raises(JobSpecsError, match=r"can't be read \(.*OCPS_JOB_SPECS"):
            load_job_types(path)


def test_a_thousand_errors_are_counted_not_listed(specs):
    lines = problems(specs, "type:\n" + "".join(f"  {n}x: {{}}\n" for n in range(1000)))
    assert len(lines) == 101
    assert lines[-1].strip() == "and 1900 more"


def test_aliases_are_no_bomb(specs):
    levels = "".join(f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
    assert problems(specs, f"type:\n  a0: &a0 [x]\n{levels}  r: &r {{script: *r, env: *a29}}\n")


GOOD = of_type("env: [A, B], getenv: [C], data: [], request_memory: 2GB")


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.one_of(
        st.binary(),
        st.text(st.characters(codec="utf-8")).map(str.encode),
        st.text("type: ascript{}[]&*!|>-?#'\"\\,\n\t %@`<0U", max_size=80).map(str.encode),
        st.tuples(
            st.integers(0, len(GOOD)),
            st.integers(0, 9),
            st.text("{}[]&*!:|>-?\n\"'%@\\0é", max_size=5),
        ).map(lambda edit: (GOOD[: edit[0]] + edit[2] + GOOD[edit[0] + edit[1] :]).encode()),
    )
)
@example(b'"\\x')
@example(b"%YAML 9.9\n---\n")
@example(b"!!python/object/apply:os.system [x]")
@example(b"\xef\xbb\xbftype: {}")
@example("type".encode("utf-16"))
def test_whatever_is_in_the_file_the_answer_is_types_or_their_errors(specs, raw):
    try:
        types = load(specs, raw)
    except JobSpecsError as refused:
        for line in str(refused).split("\n"):
            assert line.startswith(f"{specs}:")
            assert line.isprintable()
    else:
        assert types


@pytest.mark.parametrize("key", ["max_run_time", "hold_limit"])
@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1", 1), ("90s", 90), ("15m", 900), ("2h", 7200), ("1.2", 2), ("8760h", 365 * 86400)],
)
def test_a_limit_is_a_duration(specs, key, text, seconds):
    limits = load(specs, of_type(f"{key}: {text}"))["a"].limits
    assert getattr(limits, f"{key}_s") == seconds


@pytest.mark.parametrize("key", ["max_run_time", "hold_limit"])
@pytest.mark.parametrize(
    "text",
    ["0", "0.5s", "-1", "8761h", "2 h", "2d", "1:30", ".inf", "~", "true", "[1h]", "{s: 1}", '""'],
)
def test_no_limit_is_anything_else(specs, key, text):
    assert problems(specs, of_type(f"{key}: {text}")) == [
        f'2: job type "a": {key} must be a duration such as 90s, 15m or 2h,'
        " from 1s to a year (8760h)"
    ]


@pytest.mark.parametrize("retries", [0, 1, 100])
def test_retries_are_a_whole_number(specs, retries):
    assert load(specs, of_type(f"max_retries: {retries}"))["a"].limits.max_retries == retries


@pytest.mark.parametrize("text", ["-1", "101", "1.0", '"1"', "0x1", "1_0", "01", "~", "[1]", "yes"])
def test_retries_are_nothing_else(specs, text):
    assert problems(specs, of_type(f"max_retries: {text}")) == [
        '2: job type "a": max_retries must be a whole number from 0 to 100'
    ]
