"""Submissions: what is accepted, what a job gets of it, and that all that is wrong is told."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ocps_jobmanager.errors import InvalidRequestError, Problem
from ocps_jobmanager.job_specs import JobType
from ocps_jobmanager.models import Resources
from ocps_jobmanager.submission import (
    SubmitBody,
    check_submission,
    parse_json,
    why_refused,
    why_variable_refused,
)


def job_type(name: str, *env: str) -> JobType:
    return JobType(
        name=name,
        description=None,
        script="jobs/a.sh",
        script_path=Path("/x/jobs/a.sh"),
        env=env,
        getenv=(),
        data=None,
        resources=Resources(),
    )


TYPES = {"ap": job_type("ap", "AP_VISIT_ID", "AP_CCD_NUM"), "none": job_type("none")}
GOOD = {"type": "ap", "env": {"AP_CCD_NUM": 5, "AP_VISIT_ID": "411371"}, "log_dir": "logs"}


def problems_of_json(raw: bytes) -> list[Problem]:
    with pytest.raises(InvalidRequestError) as refused:
        parse_json(raw)
    return list(refused.value.problems)


def problems(body: object) -> dict[str, str]:
    """Field → what is wrong with it."""
    with pytest.raises(InvalidRequestError) as refused:
        check_submission(body, TYPES)
    found = {problem.field: problem.msg for problem in refused.value.problems}
    assert len(found) == len(refused.value.problems)
    return found


def with_value(value: object) -> dict[str, object]:
    return {**GOOD, "env": {"AP_VISIT_ID": "1", "AP_CCD_NUM": value}}


class TestJson:
    """`parse_json` takes JSON and nothing that different programs read differently."""

    @pytest.mark.parametrize(
        "value",
        [
            {"a": [1, 1.5, "ü\u0001", True, None, {"b": {}}]},
            [],
            "text",
            -(10**18 - 1),
            {"a": 1, "A": 2, "": 3},
            "\U0001f600",
        ],
    )
    def test_json_is_parsed(self, value):
        assert parse_json(json.dumps(value).encode()) == value
        assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value

    def test_integers_and_floats_stay_what_they_are(self):
        parsed = parse_json(b"[1, 1.0, 1e2, -0]")
        assert [repr(number) for number in parsed] == ["1", "1.0", "100.0", "0"]

    @pytest.mark.parametrize(
        ("raw", "why"),
        [
            (b"", "is empty: must be a JSON object"),
            (b" \n", "is empty: must be a JSON object"),
            (b"type=ap", "is not JSON: Expecting value (line 1, column 1)"),
            (b'{"a": 1,\n}', "is not JSON: Expecting property name enclosed in double quotes"),
            (b"{} {}", "is not JSON: Extra data (line 1, column 4)"),
            (b'"a\nb"', "is not JSON: Invalid control character at"),
            (b"\xef\xbb\xbf{}", "is not JSON: "),
            (b'{"a": "\xe4"}', "is not UTF-8"),
            ('{"a": 1}'.encode("utf-16"), "is not UTF-8"),
            (b"[" * 100_000 + b"]" * 100_000, "is nested too deeply"),
            (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "is nested too deeply"),
        ],
    )
    def test_what_is_not_json_is_refused(self, raw, why):
        (problem,) = problems_of_json(raw)
        assert problem.field == "body"
        assert problem.msg.startswith(why)

    def test_all_that_is_refused_is_told_with_its_place(self):
        raw = b"""{"type": "\\ud800", "env": {"A": NaN, "B": [1, -Infinity], "C": 1, "C": 2,
            "\\udfff": 1, "D": 1e999, "E": 1234567890123456789}, "log_dir": Infinity}"""
        assert problems_of_json(raw) == [
            Problem("type", "must not contain a lone surrogate"),
            Problem("env.\\udfff", "must not contain a lone surrogate"),
            Problem("env.A", "must be a number, not NaN"),
            Problem("env.B[1]", "must be a number, not -Infinity"),
            Problem("env.C", "is given more than once"),
            Problem("env.D", "is too large for a float"),
            Problem("env.E", "must not have more than 18 digits"),
            Problem("log_dir", "must be a number, not Infinity"),
        ]

    @pytest.mark.parametrize("raw", [b"NaN", b"1234567890123456789", b'"\\uDC00"', b"-1e400"])
    def test_a_body_that_is_nothing_but_refused_is_told(self, raw):
        (problem,) = problems_of_json(raw)
        assert problem.field == "body"

    def test_a_pair_of_surrogates_is_a_character(self):
        assert parse_json(b'"\\ud83d\\ude00 \\\\ud83d"') == "\U0001f600 \\ud83d"

    def test_an_integer_of_a_million_digits_is_never_converted(self):
        (problem,) = problems_of_json(b'{"a": -' + b"9" * 1_000_000 + b"}")
        assert problem == Problem("a", "must not have more than 18 digits")

    def test_a_hostile_body_gets_a_short_answer(self):
        found = problems_of_json(b"[" + b",".join([b"NaN"] * 200_000) + b"]")
        assert len(found) == 101
        assert found[-1] == Problem("body", "has more problems than these")
        deep = b'{"%s":' % (b"k" * 100) * 300 + b"NaN" + b"}" * 300
        assert all(len(problem.field) <= 200 for problem in problems_of_json(deep))

    @settings(deadline=None)
    @given(st.one_of(st.binary(), st.text('{}[]",:0e.-+ntrfu\\ \n', max_size=50).map(str.encode)))
    @example(b'{"a": 1e5}')
    @example(b'"\\u"')
    def test_whatever_comes_is_parsed_or_refused(self, raw):
        try:
            parsed = parse_json(raw)
        except InvalidRequestError as refused:
            str(refused).encode()
        else:
            assert json.loads(raw) == parsed
            json.dumps(parsed, allow_nan=False, ensure_ascii=False).encode()


def test_a_submission_is_what_the_job_gets():
    submission = check_submission({**GOOD, "run_id": "night 1"}, TYPES)
    assert submission.type is TYPES["ap"]
    assert submission.log_dir == "logs"
    assert submission.run_id == "night 1"
    assert list(submission.env.items()) == [("AP_VISIT_ID", "411371"), ("AP_CCD_NUM", "5")]
    with pytest.raises(TypeError):
        submission.env["X"] = ""  # type: ignore[index]


def test_a_run_id_and_variables_are_not_needed_where_none_are_declared():
    submission = check_submission({"type": "none", "env": {}, "log_dir": "l"}, TYPES)
    assert submission.run_id is None
    assert submission.env == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", ""),
        (" a 'b' \"c\" $(HOME) $$(Arch) ; \\ \t \x01 \x7f é", None),
        (0, "0"),
        (-5, "-5"),
        (10**18 - 1, "9" * 18),
        (0.1, "0.1"),
        (1.0, "1.0"),
        (-0.0, "-0.0"),
        (1e22, "1e+22"),
        (5e-324, "5e-324"),
    ],
)
def test_numbers_become_their_shortest_text_and_strings_stay_as_they_are(value, text):
    submission = check_submission(with_value(value), TYPES)
    assert submission.env["AP_CCD_NUM"] == (value if text is None else text)


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r\x1f")))
def test_any_other_text_is_passed_on_character_by_character(text):
    assert check_submission(with_value(text), TYPES).env["AP_CCD_NUM"] == text


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "must be a string, an integer or a float"),
        (True, "must be a string, an integer or a float"),
        (False, "must be a string, an integer or a float"),
        ([], "must be a string, an integer or a float"),
        ({}, "must be a string, an integer or a float"),
        (float("nan"), "must be finite"),
        (float("-inf"), "must be finite"),
        (10**18, "must not have more than 18 digits"),
        (-(10**18), "must not have more than 18 digits"),
        ("a\0b", "must not contain NUL"),
        ("a\n", "must not contain a newline"),
        ("\rb", "must not contain a carriage return"),
        ("a\x1fb", "must not contain a unit separator (\\x1f)"),
        ("a\ud800b", "must not contain a lone surrogate"),
        ("x" * 131_061, "is too long: name, = and value must not exceed 131071 bytes"),
        ("é" * 65_531, "is too long: name, = and value must not exceed 131071 bytes"),
    ],
)
def test_a_value_that_no_job_can_get_is_refused(value, why):
    assert problems(with_value(value)) == {"env.AP_CCD_NUM": why}


def test_an_integer_beyond_all_conversion_is_refused():
    assert "env.AP_CCD_NUM" in problems(with_value(10**5000))


@pytest.mark.parametrize("value", ["x" * 131_060, "é" * 65_530])
def test_the_longest_value_that_a_program_can_get_is_accepted(value):
    assert check_submission(with_value(value), TYPES).env["AP_CCD_NUM"] == value
    assert len(f"AP_CCD_NUM={value}".encode()) == 131_071


@pytest.mark.parametrize("body", [[], "text", None, 5, True, [GOOD]])
def test_a_submission_is_an_object(body):
    assert problems(body) == {"body": "must be a JSON object"}


def test_every_field_but_the_run_id_is_required():
    assert problems({}) == dict.fromkeys(["type", "env", "log_dir"], "is required")


@pytest.mark.parametrize("wrong", [None, 5, True, [], {}])
def test_fields_have_their_types(wrong):
    assert problems({**GOOD, "type": wrong}) == {"type": "must be a string"}
    assert problems({**GOOD, "log_dir": wrong}) == {"log_dir": "must be a string"}
    assert problems({**GOOD, "run_id": wrong}) == {"run_id": "must be a string"}
    if wrong != {}:
        assert problems({**GOOD, "env": wrong}) == {"env": "must be an object"}


def test_an_unknown_job_type_is_told_with_the_known_ones():
    told = problems({**GOOD, "type": "app"})
    assert told == {"type": 'must be a known job type, not "app"; known: ap, none'}


def test_missing_and_undeclared_variables_are_told_by_name():
    told = problems({**GOOD, "env": {"AP_CCD_NUMM": 1, "AP_VISIT_ID": 1, "PATH": "/x"}})
    assert told == {
        "env.AP_CCD_NUM": "is required",
        "env.AP_CCD_NUMM": ('is not declared by the job type ap; did you mean "AP_CCD_NUM"?'),
        "env.PATH": "is not declared by the job type ap",
    }


def test_unknown_fields_are_refused():
    told = problems({**GOOD, "logdir": "x", "job_id": "y"})
    assert told == {
        "logdir": 'is not a field of a submission; did you mean "log_dir"?',
        "job_id": "is not a field of a submission",
    }


@pytest.mark.parametrize("run_id", ["a", "x" * 63, "ü 1 ~"])
def test_a_run_id_is_1_to_63_printable_characters(run_id):
    assert check_submission({**GOOD, "run_id": run_id}, TYPES).run_id == run_id


@pytest.mark.parametrize("run_id", ["", "x" * 64, "a\nb", "\x7f", "a\ud800"])
def test_another_run_id_is_refused(run_id):
    told = problems({**GOOD, "run_id": run_id})
    assert told == {"run_id": "must be 1 to 63 printable characters"}


@pytest.mark.parametrize(
    ("log_dir", "why"),
    [
        ("", "must not be empty"),
        ("a\0b", "must not contain NUL"),
        ("a\nb", "must not contain a newline"),
        ("a\ud800", "must not contain a lone surrogate"),
    ],
)
def test_a_log_directory_that_no_file_system_or_scheduler_can_take_is_refused(log_dir, why):
    assert problems({**GOOD, "log_dir": log_dir}) == {"log_dir": why}


def test_all_that_is_wrong_is_told_at_once():
    told = problems(
        {
            "type": "ap",
            "env": {"AP_CCD_NUM": None, "OTHER": "a\n", "AP_VISIT_ID": "x" * 200_000},
            "run_id": 5,
            "more": 1,
        }
    )
    assert told == {
        "log_dir": "is required",
        "env.AP_CCD_NUM": "must be a string, an integer or a float",
        "env.AP_VISIT_ID": "is too long: name, = and value must not exceed 131071 bytes",
        "env.OTHER": "is not declared by the job type ap",
        "run_id": "must be a string",
        "more": "is not a field of a submission",
    }
    told = problems({"type": "x", "env": {"A": "a\n", "B": [], "C": "ok"}, "log_dir": ""})
    assert told.keys() == {"type", "env.A", "env.B", "log_dir"}


def test_megabytes_are_not_echoed():
    long = "\n\ud800x" * 300_000
    body = {"type": long, "env": {long: long}, "log_dir": long, "run_id": long, long: long}
    with pytest.raises(InvalidRequestError) as refused:
        check_submission(body, TYPES)
    assert len(str(refused.value)) < 2000
    assert str(refused.value).isprintable()


def test_a_hundred_problems_are_enough():
    env = {f"V{n}": None for n in range(50_000)}
    for body in (
        {**GOOD, "env": env},
        {**GOOD, "type": "x", "env": env},
        {**GOOD, **dict.fromkeys(env, 1)},
    ):
        with pytest.raises(InvalidRequestError) as refused:
            check_submission(body, TYPES)
        assert len(refused.value.problems) == 101
        assert refused.value.problems[-1] == Problem("body", "has more problems than these")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
FIELDS = st.sampled_from(["type", "env", "log_dir", "run_id"]) | st.text(max_size=3)
VARIABLES = st.dictionaries(st.sampled_from(["AP_VISIT_ID", "AP_CCD_NUM", "X"]), JSON)


@settings(deadline=None)
@given(st.dictionaries(FIELDS, JSON | VARIABLES | st.sampled_from(["ap", "none", "logs"])))
@example({**GOOD, "\ud800": 1, "env": {"\ud800": 1}})
def test_whatever_is_submitted_is_accepted_or_refused(body):
    try:
        submission = check_submission(body, TYPES)
    except InvalidRequestError as refused:
        str(refused).encode()
    else:
        assert set(submission.env) == set(submission.type.env)
        for name, value in submission.env.items():
            assert why_variable_refused(name, value) is None


def test_what_is_refused_is_the_same_for_values_wherever_they_come_from():
    assert why_refused("a b\té") is None
    assert why_refused("a\n") == why_variable_refused("A", "a\n") == "must not contain a newline"


def test_the_schema_of_the_body_is_that_of_the_documentation():
    schema = SubmitBody.model_json_schema()
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["type", "env", "log_dir"]
    env = schema["properties"]["env"]
    values = [kind["type"] for kind in env["additionalProperties"]["anyOf"]]
    assert (env["type"], values) == ("object", ["string", "number"])
    assert schema["properties"]["run_id"]["type"] == "string"
    assert schema["properties"]["run_id"]["maxLength"] == 63
