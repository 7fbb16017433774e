"""What the client is told: by ``config.yaml``, and by the server's own settings."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from ocps_jobmanager.config import Settings
from ocps_jobmanager.errors import StartupError, did_you_mean


class UsageError(Exception):
    """The configuration can't be used: one sentence for a person."""


def url_from(environ: Mapping[str, str]) -> str:
    """The URL of the Job Manager that has these settings.

    Raises
    ------
    UsageError
        A setting can't be used, or doesn't tell the port.
    """
    names = ("API_PROTOCOL", "API_DOMAIN", "API_PORT", "API_BASEPATH")
    try:
        settings = Settings.load({name: environ[name] for name in names if name in environ})
    except StartupError as error:
        raise UsageError(str(error).replace("\n", " ")) from None
    if settings.api_port == 0:
        raise UsageError("API_PORT is 0, which doesn't tell the server's port: give --url.")
    return settings.url(settings.api_port)


_Text = Annotated[str, StringConstraints(strict=True, min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Section):
    """The images: where they are, and of which filter."""

    repo: _Text
    template: _Text
    db: _Text
    calib: _Text
    filter: _Text


class JobConfig(_Section):
    """Where a job's files go."""

    output_dir: _Text = "./output"
    log_dir: _Text = "./logs"


class ClientConfig(_Section):
    """What ``config.yaml`` says."""

    data: DataConfig
    job: JobConfig = JobConfig()

    @classmethod
    def read(cls, path: Path) -> "ClientConfig":
        """Read a file. Relative paths of the data are relative to it.

        Raises
        ------
        UsageError
            With all that is wrong, in one line.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(
                f"There is no {path}: copy config.example.yaml to it and write your paths into it, "
                "or name another file with --config."
            ) from None
        except OSError as error:
            raise UsageError(f"{path} can't be read: {error.strerror}.") from None
        except (yaml.YAMLError, UnicodeError) as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark else ""
            raise UsageError(f"{path}{line} is not YAML.") from None
        try:
            config = cls.model_validate(content)
        except ValidationError as error:
            raise UsageError(f"{path}: {'; '.join(map(_in_words, error.errors()))}.") from None
        here = path.absolute().parent
        places = {
            name: os.path.join(here, os.path.expanduser(value))  # noqa: PTH111, PTH118 a last "/" stays
            for name, value in config.data.model_dump(exclude={"filter"}).items()
        }
        return config.model_copy(update={"data": config.data.model_copy(update=places)})


def _in_words(problem: Any) -> str:  # noqa: ANN401 pydantic's ErrorDetails
    where = ".".join(map(str, problem["loc"])) or "the whole"
    match problem["type"]:
        case "missing":
            return f"{where} is missing"
        case "extra_forbidden":
            known = (*DataConfig.model_fields, *JobConfig.model_fields, *ClientConfig.model_fields)
            return f"{where} is not known{did_you_mean(str(problem['loc'][-1]), known)}"
        case "string_type" | "string_too_short":
            return f"{where} must be text"
    return f"{where} must be a section with names and values"
