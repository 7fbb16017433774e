"""Submissions: from the bytes of ``POST /job`` to what a job is made of, or all that is wrong."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from types import MappingProxyType
from typing import Annotated, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)

from ocps_jobmanager.errors import InvalidRequestError, Problem, did_you_mean, shown
from ocps_jobmanager.job_specs import JobType

_MAX_PROBLEMS = 100
_MAX_LISTED_TYPES = 50
_MAX_DIGITS = 18
#: Of ``NAME=VALUE`` in UTF-8. Linux passes no longer string to a program (MAX_ARG_STRLEN, with its
#: closing NUL); HTCondor would hold the job.
_MAX_VARIABLE_BYTES = 131_071

#: What no variable and no path may hold, because not everything on the way to a job can carry it:
#: the kernel ends strings at NUL, submit descriptions lines at the others, and itemdata fields.
_REFUSED = re.compile("[\0\n\r\x1f\ud800-\udfff]")
_REFUSED_NAMES = MappingProxyType(
    {"\0": "NUL", "\n": "a newline", "\r": "a carriage return", "\x1f": "a unit separator (\\x1f)"}
)
#: The same for those who read the interface's description; JSON Schema knows no surrogates.
_PASSABLE_PATTERN = r"^[^\u0000\n\r\u001f]*$"
#: In JSON text that is UTF-8, only an escape can make a surrogate.
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


# What can't be passed on --------------------------------------------------------------------------


def why_refused(text: str) -> str | None:
    """Why `text` can't be passed on to a job, in words that follow its name; None if it can."""
    if (match := _REFUSED.search(text)) is None:
        return None
    return f"must not contain {_REFUSED_NAMES.get(match[0], 'a lone surrogate')}"


def why_variable_refused(name: str, value: str) -> str | None:
    """Why a variable can't be passed on to a job with this value; None if it can."""
    if (why := why_refused(value)) is not None:
        return why
    if len(f"{name}={value}".encode(errors="replace")) > _MAX_VARIABLE_BYTES:
        return f"is too long: name, = and value must not exceed {_MAX_VARIABLE_BYTES} bytes"
    return None


# JSON ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Refused:
    """Stands in parsed JSON for something that is refused, so that it can be told where that is."""

    why: str


class _Hooks:
    """What the parser calls; `refused` is then whether a `_Refused` stands anywhere."""

    def __init__(self) -> None:
        self.refused = False

    def parse_int(self, text: str) -> int | _Refused:
        # Counted before it is converted: that takes quadratic time.
        if len(text.lstrip("-")) > _MAX_DIGITS:
            return self._refuse(f"must not have more than {_MAX_DIGITS} digits")
        return int(text)

    def parse_float(self, text: str) -> float | _Refused:
        number = float(text)
        return number if math.isfinite(number) else self._refuse("is too large for a float")

    def parse_constant(self, name: str) -> _Refused:
        return self._refuse(f"must be a number, not {name}")

    def parse_object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            for name, count in Counter(name for name, _ in pairs).items():
                if count > 1:
                    found[name] = self._refuse("is given more than once")
        return found

    def _refuse(self, why: str) -> _Refused:
        self.refused = True
        return _Refused(why)


def parse_json(raw: bytes) -> object:
    """Parse the JSON of a request.

    Parameters
    ----------
    raw : bytes
        UTF-8.

    Returns
    -------
    object
        Of dicts, lists, strings, integers of at most 18 digits, finite floats, booleans and None.

    Raises
    ------
    InvalidRequestError
        It is not JSON, or JSON in which something is refused: duplicate keys, what is no number
        of JSON, integers that many programs would round, lone surrogates.
    """
    hooks = _Hooks()
    try:
        text = raw.decode()
        parsed = json.loads(
            text,
            object_pairs_hook=hooks.parse_object,
            parse_int=hooks.parse_int,
            parse_float=hooks.parse_float,
            parse_constant=hooks.parse_constant,
        )
    except UnicodeDecodeError:
        _refuse_body("is not UTF-8")
    except json.JSONDecodeError as error:
        _refuse_body(
            f"is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
            if raw.strip()
            else "is empty: must be a JSON object"
        )
    except RecursionError:
        _refuse_body("is nested too deeply")
    if hooks.refused or _SURROGATE_ESCAPE.search(text):
        _raise_if_any(_refused_in(parsed))
    return parsed


def _refuse_body(why: str) -> NoReturn:
    raise InvalidRequestError([Problem("body", why)]) from None


def _refused_in(parsed: object) -> Iterator[Problem]:
    """All that is refused in parsed JSON, in the order of the text. Looks no further than asked."""
    levels: list[Iterator[tuple[str, object]]] = [iter([("", parsed)])]
    while levels:
        if (entry := next(levels[-1], None)) is None:
            levels.pop()
            continue
        place, value = entry
        match value:
            case _Refused(why):
                yield Problem(place or "body", why)
            case str():
                if re.search("[\ud800-\udfff]", value):
                    yield Problem(place or "body", "must not contain a lone surrogate")
            case list():
                levels.append(_items(place, value))
            case dict():
                for name in value:
                    if re.search("[\ud800-\udfff]", name):
                        yield Problem(_below(place, name), "must not contain a lone surrogate")
                levels.append(_entries(place, value))


def _items(place: str, value: list[object]) -> Iterator[tuple[str, object]]:
    return ((f"{place}[{i}]", item) for i, item in enumerate(value))


def _entries(place: str, value: dict[str, object]) -> Iterator[tuple[str, object]]:
    return ((_below(place, name), item) for name, item in value.items())


def _below(place: str, name: str) -> str:
    # Bounded: deep in a hostile body the path would grow with every level.
    path = f"{place}.{shown(name)}" if place else shown(name)
    return path if len(path) <= 200 else f"…{path[-199:]}"


def _raise_if_any(problems: Iterable[Problem]) -> None:
    """Raise the problems if there are any. After a hundred nothing more is looked at."""
    found = list(islice(problems, _MAX_PROBLEMS + 1))
    if len(found) > _MAX_PROBLEMS:
        found[-1] = Problem("body", "has more problems than these")
    if found:
        raise InvalidRequestError(found)


# The body of POST /job ----------------------------------------------------------------------------


def _passable(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    if (why := why_refused(text)) is not None:
        raise ValueError(why)
    return text


def _label(text: object) -> str:
    if not isinstance(text, str):
        raise ValueError("must be a string")
    if not 1 <= len(text) <= 63 or not text.isprintable():
        raise ValueError("must be 1 to 63 printable characters")
    return text


def _env_value(value: object) -> str:
    """The string for a value of ``env``; whether a job can get it is checked with its name."""
    match value:
        case str():
            return value
        case bool():
            pass
        case int():
            if abs(value) >= 10**_MAX_DIGITS:
                raise ValueError(f"must not have more than {_MAX_DIGITS} digits")
            return str(value)
        case float():
            if not math.isfinite(value):
                raise ValueError("must be finite")
            return repr(value)
    raise ValueError("must be a string, an integer or a float")


class SubmitBody(BaseModel):
    """The body of ``POST /job``, as far as it can be told without knowing the job types."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: str = Field(description="A job type in job_specs.yaml.")
    env: dict[
        str,
        Annotated[
            str,
            PlainValidator(_env_value),
            WithJsonSchema(
                {"anyOf": [{"type": "string", "pattern": _PASSABLE_PATTERN}, {"type": "number"}]}
            ),
        ],
    ] = Field(description="Exactly the variables that the job type declares.")
    log_dir: Annotated[
        str,
        AfterValidator(_passable),
        WithJsonSchema({"type": "string", "minLength": 1, "pattern": _PASSABLE_PATTERN}),
    ] = Field(description="Where <job_id>.out, .err and .log go, relative to the work directory.")
    run_id: Annotated[
        str | None,
        BeforeValidator(_label),  # refuses None: None is only what is not there
        WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 63}),
    ] = Field(default=None, description="The client's own label: 1 to 63 printable characters.")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A valid submission.

    Attributes
    ----------
    env : mapping of str to str
        The variables as the job gets them, in the order in which its type declares them.
    log_dir : str
        As submitted; whether it may be used is for `LogDirs` to say.
    """

    type: JobType
    env: Mapping[str, str]
    log_dir: str
    run_id: str | None


def check_submission(body: object, types: Mapping[str, JobType]) -> Submission:
    """Check the parsed body of ``POST /job`` against the job types.

    Parameters
    ----------
    body : object
        As `parse_json` returns it.

    Raises
    ------
    InvalidRequestError
        With all that is wrong.
    """
    if not isinstance(body, dict):
        _refuse_body("must be a JSON object")
    name, env = body.get("type"), body.get("env")
    job_type = types.get(name) if isinstance(name, str) else None
    looked_at = {field: body[field] for field in SubmitBody.model_fields if field in body}
    if isinstance(env, dict):
        # What is not declared is refused below for that; of a hostile body's, a part will do.
        wanted = job_type.env if job_type is not None else islice(env, _MAX_PROBLEMS)
        looked_at["env"] = {variable: env[variable] for variable in wanted if variable in env}
    parsed, wrong = _parsed(looked_at)
    _raise_if_any(
        chain(
            _unknown_type(name, types),
            wrong,
            _variables_off(env, job_type),
            _values_off(looked_at.get("env")),
            _unknown_fields(body),
        )
    )
    assert parsed is not None
    assert job_type is not None
    return Submission(
        type=job_type,
        env=MappingProxyType(parsed.env),
        log_dir=parsed.log_dir,
        run_id=parsed.run_id,
    )


_WORDS = MappingProxyType(
    {
        "missing": "is required",
        "string_type": "must be a string",
        "string_unicode": "must not contain a lone surrogate",
        "dict_type": "must be an object",
    }
)


def _parsed(body: Mapping[str, object]) -> tuple[SubmitBody | None, list[Problem]]:
    try:
        return SubmitBody.model_validate(body), []
    except ValidationError as error:
        return None, [
            Problem(
                ".".join(shown(str(part)) for part in e["loc"]),
                _WORDS.get(e["type"]) or str(e.get("ctx", {}).get("error", e["msg"])),
            )
            for e in error.errors(include_url=False, include_input=False)
        ]


def _unknown_type(name: object, types: Mapping[str, JobType]) -> Iterator[Problem]:
    if isinstance(name, str) and name not in types:
        known = ", ".join(islice(types, _MAX_LISTED_TYPES))
        more = ", …" if len(types) > _MAX_LISTED_TYPES else ""
        yield Problem(
            "type", f'must be a known job type, not "{shown(name)}"; known: {known}{more}'
        )


def _variables_off(env: object, job_type: JobType | None) -> Iterator[Problem]:
    """The variables that are missing or not declared."""
    if job_type is None or not isinstance(env, dict):
        return
    for name in job_type.env:
        if name not in env:
            yield Problem(f"env.{name}", "is required")
    for name in env:
        if name not in job_type.env:
            hint = did_you_mean(name, job_type.env)
            yield Problem(
                f"env.{shown(name)}", f"is not declared by the job type {job_type.name}{hint}"
            )


def _values_off(env: object) -> Iterator[Problem]:
    """The variables whose values can't be passed on."""
    for name, value in env.items() if isinstance(env, dict) else ():
        if isinstance(value, str) and (why := why_variable_refused(name, value)) is not None:
            yield Problem(f"env.{shown(name)}", why)


def _unknown_fields(body: Mapping[str, object]) -> Iterator[Problem]:
    for name in body:
        if name not in SubmitBody.model_fields:
            hint = did_you_mean(name, SubmitBody.model_fields)
            yield Problem(shown(name), f"is not a field of a submission{hint}")
