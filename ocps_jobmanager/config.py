"""The settings: every environment variable of the server, read once, in one place."""

import contextlib
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ocps_jobmanager.errors import StartupError, did_you_mean, shown
from ocps_jobmanager.layout import Layout, why_path_refused

_DAY_S = 86400.0
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(s|m|h)?", re.ASCII)
_UNIT_S = {None: 1, "s": 1, "m": 60, "h": 3600}
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]")
_PORT_AT_END = re.compile(r":([0-9]{1,5})$", re.ASCII)
_PATH_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+")

#: Read by the scripts and the tests, not by the server: nothing to warn of.
_NAMES_OF_OTHERS = frozenset({"OCPS_REQUIRE_HTCONDOR"})


class SchedulerChoice(StrEnum):
    """What runs the jobs."""

    AUTO = "auto"
    HTCONDOR = "htcondor"
    LOCAL = "local"


class MonitorKey(StrEnum):
    """What a monitor shows when it calls back."""

    SECRET = "secret"  # noqa: S105 the word, not a secret
    JOB_ID = "job_id"


def parse_duration(text: str) -> float:
    """The seconds in ``5``, ``0.5``, ``90s``, ``15m`` or ``2h``.

    Raises
    ------
    ValueError
        It is none of these.
    """
    if (match := _DURATION.fullmatch(text)) is None:
        raise ValueError("must be a duration: seconds, or with a unit such as 90s, 15m, 2h")
    return float(match[1]) * _UNIT_S[match[2]]


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65535:
        raise ValueError("must be a port: 0 (any free one) to 65535")
    return int(text)


def _base_path(text: str) -> str:
    segments = [segment for segment in text.split("/") if segment]
    if any(not _PATH_SEGMENT.fullmatch(s) or s in {".", ".."} for s in segments):
        raise ValueError(
            "must be a path such as /api/v1: letters, digits and . _ ~ - between slashes"
        )
    return "".join(f"/{segment}" for segment in segments)


def _domain(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise ValueError("must be a host name, an IPv4 address or an IPv6 address in brackets")
    return text


def _address(text: str) -> str:
    try:
        return "localhost" if text == "localhost" else str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise ValueError("must be localhost or an IP address") from None


def _url(text: str) -> str:
    wrong = ValueError(
        "must be a URL such as http://localhost:8080/api/v1/monitor/complete, without user or query"
    )
    try:
        url = urlsplit(text)
        well_formed = url.scheme in {"http", "https"} and url.port != 0
    except ValueError:
        raise wrong from None
    if not well_formed or not url.hostname or "@" in url.netloc or url.query or url.fragment:
        raise wrong
    if not text.isprintable() or re.search(r"\s", text):
        raise wrong
    return text.rstrip("/")


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]


def _hosts(text: str) -> tuple[str, ...]:
    if not all(_HOST.fullmatch(host) for host in _items(text)):
        raise ValueError("must be host names or addresses without ports, separated by commas")
    return tuple(_items(text))


def _origins(text: str) -> tuple[str, ...]:
    for origin in _items(text):
        scheme, separator, authority = origin.partition("://")
        host, port = _PORT_AT_END.sub("", authority), _PORT_AT_END.search(authority)
        if (
            scheme not in {"http", "https"}
            or not separator
            or not _HOST.fullmatch(host)
            or (port and not 0 < int(port[1]) <= 65535)
        ):
            raise ValueError(
                "must be origins such as https://www.example.org:8443, separated by commas"
            )
    return tuple(_items(text))


def _clean(text: str) -> str:
    """Refuse a path that the scheduler's submit language or a JSON answer can't hold."""
    if not text.isprintable():  # control characters, and the surrogates of bytes that aren't UTF-8
        raise ValueError("must be a path of printable UTF-8 characters")
    if (why := why_path_refused(text)) is not None:
        raise ValueError(f"must be a path for all schedulers, and {why}")
    return text


def _home(text: str) -> Path:
    with contextlib.suppress(OSError):  # the current directory is gone
        home = Path(os.path.normpath(Path(_clean(text)).absolute()))
        if _is_directory(home):
            return home
    raise ValueError("must be a directory that exists")


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # not ours to look at, or a name too long
        return False


def _path(text: str, info: ValidationInfo) -> Path:
    # Absolute, but links stay: what they point to may have another name on an execute host.
    home: Path = info.data.get("home", Path("/"))  # missing: refused, and the start stops anyway
    return Path(os.path.normpath(home / _clean(text)))


def _directory(text: str, info: ValidationInfo) -> Path:
    path = _path(text, info)
    # The nearest that stands; a link counts even if it leads nowhere, being in the way.
    standing = next((p for p in (path, *path.parents) if os.path.lexists(p)), None)
    if standing is None or not _is_directory(standing) or len(path.name.encode()) > 255:
        raise ValueError("must be a directory, or a place where one can be made")
    return path


def _directories(value: str | tuple[str, ...], info: ValidationInfo) -> tuple[Path, ...]:
    texts = value.split(":") if isinstance(value, str) else value
    if not all(texts):
        raise ValueError("must be directories with one colon between two")
    return tuple(_directory(text, info) for text in texts)


def _one_of(*allowed: str) -> BeforeValidator:
    def check(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be {', '.join(allowed[:-1])} or {allowed[-1]}")
        return text

    return BeforeValidator(check)


def _poll_interval(text: str) -> float:
    seconds = parse_duration(text)
    if not 0.01 <= seconds <= _DAY_S:
        raise ValueError("must be a duration of 0.01 s to 24h")
    return seconds


def _switch(text: str) -> bool:
    if text not in {"0", "1"}:
        raise ValueError("must be 0 or 1")
    return text == "1"


def _body_size(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or not 1024 <= int(text) <= 2**30:
        raise ValueError("must be a number of bytes from 1024 to 1073741824")
    return int(text)


def _max_waiting(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) < 1:
        raise ValueError("must be a number of jobs from 1 to 999999")
    return int(text)


def _keep_days(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,5}(?:\.[0-9]{1,9})?", text, re.ASCII):
        raise ValueError("must be a number of days from 0 (for ever) to 99999, such as 90 or 0.5")
    return float(text)


class Settings(BaseSettings):
    """What the environment says, checked. Made by `load` only.

    Attributes
    ----------
    api_basepath : str
        With a leading and without a trailing slash; empty for the root.
    listen : str
        ``localhost`` (both loopback addresses where there are two) or an address, without brackets.
    monitor_url : str or None
        None: to be made of protocol, domain, bound port and base path (`url`).
    work_dir, state_dir, job_specs, stack_setup : pathlib.Path
        Absolute; links are kept. So are those of `api_tokens` and of TLS, where set.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", case_sensitive=True, validate_default=False
    )

    # First, because the paths below are relative to it.
    home: Annotated[Path, BeforeValidator(_home)] = Field(
        validation_alias="OCPS_HOME",
        description="the directory that relative paths start from",
    )
    api_port: Annotated[int, BeforeValidator(_port)] = Field(
        8080,
        validation_alias="API_PORT",
        description="the port to listen on; 0 takes a free one",
    )
    api_basepath: Annotated[str, BeforeValidator(_base_path)] = Field(
        "/api/v1",
        validation_alias="API_BASEPATH",
        description="the path that the interface is under",
    )
    api_domain: Annotated[str, BeforeValidator(_domain)] = Field(
        "localhost",
        validation_alias="API_DOMAIN",
        description="the host in the URL that clients see",
    )
    api_protocol: Annotated[str, _one_of("http", "https")] = Field(
        "http",
        validation_alias="API_PROTOCOL",
        description="http or https, in the URL that clients see",
    )
    listen: Annotated[str, BeforeValidator(_address)] = Field(
        "localhost",
        validation_alias="OCPS_LISTEN",
        description="the address to listen on; localhost is every loopback address",
    )
    monitor_url: Annotated[str | None, BeforeValidator(_url)] = Field(
        None,
        validation_alias="OCPS_MONITOR_URL",
        description="the URL that monitors call; made of the four API_ settings if not set",
    )
    work_dir: Annotated[Path, BeforeValidator(_directory)] = Field(
        validation_alias="OCPS_WORK_DIR",
        description="data files, logs, outputs and code; shared with the execute hosts",
    )
    state_dir: Annotated[Path, BeforeValidator(_directory)] = Field(
        validation_alias="OCPS_STATE_DIR",
        description="database, locks and local scheduler; on a disk of this machine",
    )
    job_specs: Annotated[Path, BeforeValidator(_path)] = Field(
        validation_alias="OCPS_JOB_SPECS",
        description="the file that declares the job types",
    )
    scheduler: Annotated[SchedulerChoice, _one_of(*SchedulerChoice)] = Field(
        SchedulerChoice.AUTO,
        validation_alias="OCPS_SCHEDULER",
        description="htcondor, local, or auto: HTCondor if this machine has it set up",
    )
    poll_interval_s: Annotated[float, BeforeValidator(_poll_interval)] = Field(
        5.0,
        validation_alias="OCPS_POLL_INTERVAL",
        description="the time between two looks of a monitor: seconds, or 90s, 15m, 2h",
    )
    log_roots: Annotated[tuple[Path, ...], BeforeValidator(_directories)] = Field(
        validation_alias="OCPS_LOG_ROOTS",
        description="the directories that jobs' log directories lie under, separated by colons",
    )
    monitor_key: Annotated[MonitorKey, _one_of(*MonitorKey)] = Field(
        MonitorKey.SECRET,
        validation_alias="OCPS_MONITOR_KEY",
        description="what a monitor calls back with: a secret, or job_id as in the first version",
    )
    max_body: Annotated[int, BeforeValidator(_body_size)] = Field(
        1024 * 1024,
        validation_alias="OCPS_MAX_BODY",
        description="the largest request body in bytes",
    )
    api_tokens: Annotated[Path | None, BeforeValidator(_path)] = Field(
        None,
        validation_alias="OCPS_API_TOKENS",
        description="the file of those who may call: lines name:token, mode 0600",
    )
    allow_anonymous: Annotated[bool, BeforeValidator(_switch)] = Field(
        False,
        validation_alias="OCPS_ALLOW_ANONYMOUS",
        description="1: without tokens, listen on other addresses than loopback, too",
    )
    allowed_hosts: Annotated[tuple[str, ...], BeforeValidator(_hosts)] = Field(
        (),
        validation_alias="OCPS_ALLOWED_HOSTS",
        description="further names that the server is called by, separated by commas",
    )
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_origins)] = Field(
        (),
        validation_alias="OCPS_CORS_ORIGINS",
        description="origins whose web pages may call, separated by commas",
    )
    tls_cert: Annotated[Path | None, BeforeValidator(_path)] = Field(
        None,
        validation_alias="OCPS_TLS_CERT",
        description="the server's certificate in PEM; with OCPS_TLS_KEY switches TLS on",
    )
    tls_key: Annotated[Path | None, BeforeValidator(_path)] = Field(
        None,
        validation_alias="OCPS_TLS_KEY",
        description="the certificate's key in PEM, mode 0600",
    )
    tls_ca: Annotated[Path | None, BeforeValidator(_path)] = Field(
        None,
        validation_alias="OCPS_TLS_CA",
        description="the authorities in PEM that monitors check the server with",
    )
    max_waiting: Annotated[int, BeforeValidator(_max_waiting)] = Field(
        2000,
        validation_alias="OCPS_MAX_WAITING",
        description="how many jobs may wait for their data at the same time",
    )
    keep_days: Annotated[float, BeforeValidator(_keep_days)] = Field(
        0.0,
        validation_alias="OCPS_KEEP_DAYS",
        description="days after which an ended job is removed with its files; 0: never",
    )
    stack_setup: Annotated[Path | None, BeforeValidator(_path)] = Field(
        None,
        validation_alias="OCPS_STACK_SETUP",
        description="a script that run_client.sh and jobs/ap_job.sh source",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what `load` hands in and nothing from the process: no environment, no files."""
        return (init_settings,)

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings from an environment.

        Raises
        ------
        StartupError
            With one line for each setting whose value can't be used.
        """
        given = _given(environ)
        problems = _off_loopback(given) + _half_of_tls(given)
        try:
            settings = cls(**{**_default_paths(given), **given})
        except ValidationError as error:
            wrong = {str(e["loc"][0]): str(e["ctx"]["error"]) for e in error.errors()}
            # What is made from an unusable value is not wrong once more.
            blamed = wrong.keys() & given.keys() or wrong.keys()
            unusable = [_complaint(name, given, wrong[name]) for name in wrong if name in blamed]
            raise StartupError("\n".join(unusable + problems)) from None
        problems += _conflicts(settings, given)
        if problems:
            raise StartupError("\n".join(problems))
        return settings

    @property
    def keep(self) -> timedelta | None:
        """How long ended jobs are kept; None: for ever."""
        return timedelta(days=self.keep_days) or None

    def url(self, port: int) -> str:
        """The URL that clients see when the server listens on `port`."""
        return f"{self.api_protocol}://{self.api_domain}:{port}{self.api_basepath}"


def _variables() -> dict[str, tuple[str, str]]:
    """For each environment variable: the attribute of `Settings`, and the line of help."""
    return {
        str(field.validation_alias): (name, field.description or "")
        for name, field in Settings.model_fields.items()
    }


def _given(environ: Mapping[str, str]) -> dict[str, str]:
    # Set but empty is not set, as scripts write it; an empty base path means the root.
    return {
        name: environ[name]
        for name in _variables()
        if environ.get(name) or (name == "API_BASEPATH" and name in environ)
    }


def _default_paths(given: Mapping[str, str]) -> dict[str, Any]:
    work_dir = given.get("OCPS_WORK_DIR", "work")
    return {
        "OCPS_HOME": ".",
        "OCPS_WORK_DIR": work_dir,
        "OCPS_STATE_DIR": f"{work_dir}/state",
        "OCPS_JOB_SPECS": "jobs/job_specs.yaml",
        "OCPS_LOG_ROOTS": (f"{work_dir}/logs",),  # in one piece: a colon in it separates nothing
    }


def _complaint(name: str, given: Mapping[str, str], allowed: str) -> str:
    value = re.sub("//[^/]*@", "//…@", given.get(name, ""))  # no password of a URL in a log
    is_what = f'is "{shown(value, 200)}"' if name in given else "is not set, and its default fails"
    return f"{name} {is_what}: {allowed}."


def is_loopback(listen: str) -> bool:
    """Whether nobody but the users of this host can connect to an address (`Settings.listen`)."""
    return listen == "localhost" or ipaddress.ip_address(listen).is_loopback


def _off_loopback(given: Mapping[str, str]) -> list[str]:
    """What may not be with an address that others can reach."""
    try:
        listen = _address(given.get("OCPS_LISTEN", "localhost"))
    except ValueError:
        return []  # said already
    if is_loopback(listen):
        return []
    problems = []
    if "OCPS_API_TOKENS" not in given and given.get("OCPS_ALLOW_ANONYMOUS") != "1":
        allowed = (
            "must be localhost or a loopback address such as 127.0.0.1 or ::1 unless "
            "OCPS_API_TOKENS says who may call, or OCPS_ALLOW_ANONYMOUS=1 that everybody may"
        )
        problems.append(_complaint("OCPS_LISTEN", given, allowed))
    if given.get("OCPS_MONITOR_KEY") == MonitorKey.JOB_ID:
        allowed = "must be secret unless OCPS_LISTEN is a loopback address, because ids are public"
        problems.append(_complaint("OCPS_MONITOR_KEY", given, allowed))
    return problems


def _half_of_tls(given: Mapping[str, str]) -> list[str]:
    halves = ("OCPS_TLS_CERT", "OCPS_TLS_KEY")
    match [name for name in halves if name in given]:
        case [name]:
            other = halves[name == halves[0]]
            return [_complaint(name, given, f"must be set together with {other}, or not at all")]
    return []


def _conflicts(settings: Settings, given: Mapping[str, str]) -> list[str]:
    """What is wrong with directories that are good each by itself."""
    problems = []
    places = layout(settings)
    if settings.work_dir.is_relative_to(settings.state_dir):
        allowed = "must not be the work directory or hold it, because nobody else may read it"
        problems.append(_complaint("OCPS_STATE_DIR", given, allowed))
    elif any(
        root.is_relative_to(own)
        for root in settings.log_roots
        for own in (places.outputs, places.code, places.state_dir)
    ):
        allowed = "must not lie in the state directory or the work directory's output or code"
        problems.append(_complaint("OCPS_LOG_ROOTS", given, allowed))
    return problems


@dataclass(frozen=True, kw_only=True)
class LoadedSettings:
    """The settings and what is to be remarked on them.

    Attributes
    ----------
    warnings : tuple of str
        One sentence each: names that look like settings and are none.
    """

    settings: Settings
    warnings: tuple[str, ...]


def load_settings(environ: Mapping[str, str]) -> LoadedSettings:
    """Read the settings, and look for misspelt ones.

    Raises
    ------
    StartupError
        As `Settings.load`.
    """
    known = _variables().keys()
    strangers = sorted(
        name for name in environ.keys() - known - _NAMES_OF_OTHERS if name.startswith("OCPS_")
    )
    return LoadedSettings(
        settings=Settings.load(environ),
        warnings=tuple(
            f"{shown(name)} is not a setting of this version and does nothing"
            f"{did_you_mean(name, known) or '.'}"
            for name in strangers
        ),
    )


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """A setting as ``ocps-jobmanager config`` prints it."""

    name: str
    value: str
    source: Literal["environment", "default"]
    help: str


def settings_table(settings: Settings, environ: Mapping[str, str]) -> list[SettingRow]:
    """Every setting with its value, where that comes from, and a line of help."""
    given = _given(environ)
    return [
        SettingRow(
            name=variable,
            value=_as_text(getattr(settings, attribute)),
            source="environment" if variable in given else "default",
            help=help_line,
        )
        for variable, (attribute, help_line) in _variables().items()
    ]


def _as_text(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return str(int(value))
        case tuple():
            joint = ":" if all(isinstance(item, Path) for item in value) else ","
            return joint.join(str(item) for item in value) or "-"
        case float():
            return f"{value:g}"
    return str(value)


def layout(settings: Settings) -> Layout:
    """Where everything lies with these settings."""
    return Layout(work_dir=settings.work_dir, state_dir=settings.state_dir)


def environ_for_jobs(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment that a job type's ``getenv`` reads: paths of settings in it are absolute."""
    given = dict(environ)
    given.pop("OCPS_STACK_SETUP", None)
    if settings.stack_setup is not None:
        given["OCPS_STACK_SETUP"] = str(settings.stack_setup)
    return given
