"""Whatever a job is made of comes out of a submit description as it went in."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ocps_jobmanager.errors import LaunchRefusedError
from ocps_jobmanager.models import Limits, Resources
from ocps_jobmanager.schedulers.base import LaunchRequest
from ocps_jobmanager.schedulers.submit import description, escape, item, quote_environment

REQUEST = LaunchRequest(
    job_id="0" * 32,
    executable=Path("/code/ab cd"),
    environment={"A": "1"},
    initial_dir=Path("/work/output/$(HOME)"),
    out=Path("/logs/x.out"),
    err=Path("/logs/x.err"),
    log=Path("/logs/x.log"),
    resources=Resources(),
)
CARRIABLE = st.characters(exclude_characters="\0\n\r\x1f", exclude_categories=["Cs"])
#: Values of the pieces that mean something on the way, beside any others.
PIECES = st.one_of(
    st.text(CARRIABLE, max_size=8),
    st.sampled_from(
        [
            "$",
            "$$",
            "(",
            ")",
            "$(",
            "$$(",
            "DOLLAR",
            "(DOLLAR)",
            "(DOLLARDOLLAR)",
            "(dollar)",
            "$ENV(PATH)",
            "$(HOME)",
            "$$(Arch)",
            "$$([1+1])",
            "'",
            "''",
            '"',
            '""',
            "\\",
        ]
    ),
    st.sampled_from(" \t"),
)
VALUES = st.lists(PIECES, max_size=8).map("".join)
NAMES = st.text(CARRIABLE, min_size=1, max_size=8).filter(lambda name: "=" not in name)


def expand_at_submission(text: str) -> str:
    """What a submit description makes of a value: macros, then $(DOLLAR) until there is none."""
    left = re.sub(r"\$\$\(DOLLARDOLLAR\)|\$\(DOLLAR\)", "", text)
    assert "$" not in left, f"a macro, or a dollar that may begin one: {text!r}"
    while (found := re.search(r"\$\(DOLLAR\)", text, re.IGNORECASE)) is not None:
        text = text[: found.start()] + "$" + text[found.end() :]
    return text


def expand_at_match(text: str) -> str:
    """What a match makes of it: $$(NAME), once, from left to right."""

    def value_of(found: re.Match[str]) -> str:
        assert found[1] == "(DOLLARDOLLAR)", f"asks the machine for {found[0]!r}"
        return "$$"

    return re.sub(r"\$\$(\(DOLLARDOLLAR\)|[(\[])", value_of, text)


def parse_environment(text: str) -> list[str]:
    """The variables in V2 quoting, as the manual describes it ("environment")."""
    assert text[0] == text[-1] == '"'
    inner = text[1:-1]
    assert '"' not in inner.replace('""', ""), "a double quote that is not doubled"
    pairs, current, quoted = [], None, False
    left = list(inner.replace('""', '"'))
    while left:
        char = left.pop(0)
        if char == "'" and quoted and left[:1] == ["'"]:
            current += left.pop(0)
        elif char == "'":
            quoted, current = not quoted, current or ""
        elif char in " \t\v\f" and not quoted:
            if current is not None:
                pairs.append(current)
            current = None
        else:
            current = (current or "") + char
    assert not quoted
    return pairs if current is None else [*pairs, current]


def carried(environment: dict[str, str]) -> dict[str, str]:
    submitted = expand_at_submission(escape(quote_environment(environment)))
    pairs = [expand_at_match(pair) for pair in parse_environment(submitted)]
    return dict(pair.split("=", 1) for pair in pairs)


@given(st.dictionaries(NAMES, VALUES, max_size=5))
@example({"V": "$(DOLLAR)"})
@example({"V": "$$(DOLLARDOLLAR)$(dollar)"})
@example({"V": "$$$(NoSuchThing)'$('"})
def test_an_environment_is_carried_byte_for_byte(environment: dict[str, str]) -> None:
    assert carried(environment) == environment


@given(VALUES.filter(lambda text: "$$" not in text and "$(dollar)" not in text.lower()))
def test_a_path_is_carried_byte_for_byte(text: str) -> None:
    path = Path(f"/x{text}/y.out")
    assert expand_at_submission(item(replace(REQUEST, out=path))["ocps_out"]) == str(path)


@given(VALUES, VALUES)
def test_no_value_makes_a_line_or_a_field_of_its_own(value: str, more: str) -> None:
    fields = item(replace(REQUEST, environment={"A": value, "B": more}))
    for field in fields.values():
        assert not re.search("[\0\n\r\x1f]", field)
        assert field == field.strip()
        assert not field.endswith("\\")
        assert not field.startswith(("#", ")"))
    assert next(iter(fields)) == "ocps_job_id"
    assert list(fields.values())[-1] == "z"


@pytest.mark.parametrize(
    "environment",
    [
        {"A": "a\0b"},
        {"A": "a\nMY.Injected = 1"},
        {"A": "a\rb"},
        {"A": "a\x1fb"},
        {"A": "\ud800"},
        {"": "a"},
        {"A=B": "a"},
        {"A\n": "a"},
        {"A": "x" * (131_071 - len("A=") + 1)},
    ],
)
def test_what_can_not_be_carried_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(LaunchRefusedError):
        item(replace(REQUEST, environment=environment))


def test_the_longest_variable_that_the_kernel_takes_is_not_refused() -> None:
    item(replace(REQUEST, environment={"A": "x" * (131_071 - len("A="))}))


@pytest.mark.parametrize(
    "path",
    ["/a\n/b", "/a/b ", "/a/b\\", "relative", "/a$$(Arch)", "/a$(DOLLAR)b", "/a\0", "/a\udcff"],
)
def test_a_path_that_can_not_be_carried_is_refused(path: str) -> None:
    with pytest.raises(LaunchRefusedError):
        item(replace(REQUEST, log=Path(path)))


def test_a_job_id_that_is_no_safe_token_is_refused() -> None:
    with pytest.raises(LaunchRefusedError):
        item(replace(REQUEST, job_id='x" || True'))


def test_a_job_gets_nothing_of_the_environment_of_the_server() -> None:
    assert description(Resources(), Path("/x"))["getenv"] == "False"


def test_what_a_job_asks_for_is_in_its_description_and_nothing_else_is() -> None:
    asked = description(Resources(cpus=2, memory_mb=3, disk_kb=4), Path("/x"))
    assert [asked[f"request_{what}"] for what in ("cpus", "memory", "disk")] == ["2", "3", "4"]
    assert not [name for name in description(Resources(), Path("/x")) if "request" in name]


def test_limits_are_fields_so_that_jobs_of_different_types_share_a_description() -> None:
    limits = Limits(max_run_time_s=60, hold_limit_s=900, max_retries=3)
    limited, free = item(replace(REQUEST, limits=limits)), item(REQUEST)
    names = ("ocps_max_run_time", "ocps_hold_limit", "ocps_max_retries")
    assert [limited[name] for name in names] == ["60", "900", "3"]
    assert [free[name] for name in names] == ["undefined", "3600", "0"]
    text = str(description(Resources(), Path("/x")))
    assert all(f"$({name})" in text for name in names)
