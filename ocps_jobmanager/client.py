"""The Job Manager's Python client, and the client for demonstrations: `python -m` this module.

The latter submits a job for each of some random images of a Butler repository.
"""

import argparse
import ipaddress
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote_to_bytes, urlsplit

import requests
from requests.auth import HTTPBasicAuth
from rich.console import Console

from ocps_jobmanager.answers import (
    JobInfo,
    JobList,
    Snapshot,
    SubmitAnswer,
    UwsJob,
    has_ended,
    has_succeeded,
)
from ocps_jobmanager.butler import Image, RegistryError, images
from ocps_jobmanager.client_config import ClientConfig, UsageError, url_from
from ocps_jobmanager.errors import shown
from ocps_jobmanager.progress import Progress


class ClientError(Exception):
    """The Job Manager can't be used: one sentence for a person."""


class NoAnswerError(ClientError):
    """It can't be reached, or can't serve now. The same may succeed later."""


class RefusedError(ClientError):
    """It says no.

    Attributes
    ----------
    status : int
        The HTTP status, 4xx.
    answer : mapping of str to object
        The JSON that came with it.
    """

    def __init__(self, message: str, status: int, answer: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.status = status
        self.answer = answer


class JobManagerClient:
    """A Job Manager, by its HTTP interface.

    Parameters
    ----------
    url : str
        With the base path: ``http://localhost:8080/api/v1``. Where a token is needed, it is in it
        (``http://name:token@host/api/v1``), or in ``~/.netrc`` as the host's login and password.
    timeout_s : float
        How long an answer may take.
    sleep, clock
        As `time.sleep` and `time.monotonic`.

    Raises
    ------
    ValueError
        The URL is none.

    Notes
    -----
    Every method raises `NoAnswerError` if the Job Manager can't be reached or can't serve, and
    `RefusedError` if it says no; both are `ClientError`, as is what comes of an answer that no Job
    Manager would give.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        host = _host(url)
        credentials, address = _apart(url)
        self.url = address.rstrip("/")  # without them: it is in messages
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._clock = clock
        self._session = requests.Session()
        if credentials is not None:
            self._session.auth = HTTPBasicAuth(*credentials)
        # A proxy, which `requests` takes from the environment, can't know this machine's own ports.
        self._proxies = {"no_proxy": "*"} if _is_loopback(host) else None

    @property
    def base_path(self) -> str:
        """The path in the URL: ``/api/v1``."""
        return urlsplit(self.url).path

    def submit(
        self,
        job_type: str,
        env: Mapping[str, str | int | float],
        log_dir: str,
        run_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> SubmitAnswer:
        """Submit a job of a declared type. When this returns, it is accepted for good.

        Parameters
        ----------
        env : mapping of str to str, int or float
            The variables that the type declares.
        log_dir : str
            Where its logs go; relative to the server's work directory.
        run_id : str, optional
            A label of the caller's own.
        idempotency_key : str, optional
            With it, the same call may be made again after a `NoAnswerError`, however often: the
            job is accepted once.
        """
        body = {"type": job_type, "env": dict(env), "log_dir": log_dir}
        if run_id is not None:
            body["run_id"] = run_id
        headers = {}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key.encode()
        answer = self._ask("POST", "/job", "job_id", json=body, headers=headers)
        return cast(SubmitAnswer, answer)

    def job(self, job_id: str) -> JobInfo:
        """All that is known of a job."""
        answer = self._ask("GET", "/job", "job", params={"id": job_id})
        return cast(JobInfo, answer["job"])

    def uws(self, job_id: str) -> UwsJob:
        """The same as the Universal Worker Service's job object."""
        return cast(UwsJob, self._ask("GET", f"/job/{quote(job_id, safe='')}", "jobId"))

    def remove(self, job_id: str) -> UwsJob:
        """Abort a job; nothing happens to one that has ended."""
        return cast(UwsJob, self._ask("DELETE", f"/job/{quote(job_id, safe='')}", "jobId"))

    def list(
        self, category: str = "all", *, limit: int | None = None, cursor: str | None = None
    ) -> JobList:
        """The ids of jobs, newest first.

        Parameters
        ----------
        category : str
            ``all``, ``pending``, ``running`` or ``completed``.
        limit : int, optional
            At most so many; the server's default is 100.
        cursor : str, optional
            Of the previous page, its `next`.
        """
        given = {"limit": limit, "cursor": cursor}
        params = {name: str(value) for name, value in given.items() if value is not None}
        path = f"/job/list/{quote(category, safe='')}"
        answer = self._ask("GET", path, "job_ids", params=params)
        return JobList(job_ids=answer["job_ids"], next=answer.get("next"))

    def follow(
        self, job_ids: Sequence[str], *, interval_s: float = 1.0, patience_s: float = 60.0
    ) -> Iterator[Snapshot]:
        """Look at jobs again and again, until all have ended.

        Parameters
        ----------
        interval_s : float
            Between two looks.
        patience_s : float
            How long the Job Manager may be away at a time, being started anew for example.

        Yields
        ------
        Snapshot
            The last one has all jobs ended.
        """
        seen: dict[str, JobInfo] = {}
        away_since: float | None = None
        while True:
            trouble = None
            try:
                for job_id in job_ids:
                    if job_id not in seen or not has_ended(seen[job_id]):
                        seen[job_id] = self.job(job_id)
                away_since = None
            except NoAnswerError as error:
                now = self._clock()
                away_since = now if away_since is None else away_since
                if now - away_since >= patience_s:
                    raise
                trouble = f"{error} Waiting for it."
            jobs = tuple(seen[job_id] for job_id in job_ids if job_id in seen)
            snapshot = Snapshot(jobs=jobs, trouble=trouble)
            yield snapshot
            if snapshot.all_ended:
                return
            self._sleep(interval_s)

    def wait(
        self, job_ids: Sequence[str], *, interval_s: float = 1.0, patience_s: float = 60.0
    ) -> tuple[JobInfo, ...]:
        """Wait until jobs have ended, and return them; the parameters are those of `follow`."""
        *_, last = self.follow(job_ids, interval_s=interval_s, patience_s=patience_s)
        return last.jobs

    def close(self) -> None:
        """Let the connections go."""
        self._session.close()

    def _ask(
        self,
        method: str,
        path: str,
        key: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Mapping[str, Any] | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> dict[str, Any]:
        """Send a request; return the answer's JSON object, which has `key`."""
        try:
            response = self._session.request(
                method,
                self.url + path,
                params=params,
                json=json,
                headers=headers,
                timeout=(min(self._timeout_s, 5.0), self._timeout_s),
                proxies=self._proxies,
                allow_redirects=False,  # a redirected POST would become a GET
            )
        except requests.Timeout:
            raise NoAnswerError(
                f"The Job Manager at {self.url} has not answered in time ({self._timeout_s:g} s)."
            ) from None
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise NoAnswerError(
                f"The Job Manager at {self.url} can't be reached ({_cause(error)}): does it run?"
            ) from None
        except (requests.RequestException, UnicodeError) as error:
            raise ClientError(f"{self.url} can't be used: {shown(str(error), 200)}.") from None
        return self._read(response, key)

    def _read(self, response: requests.Response, key: str) -> dict[str, Any]:
        try:
            answer = response.json()
        except requests.JSONDecodeError:
            answer = None
        is_object = isinstance(answer, dict)
        if response.status_code >= 500 or response.status_code == 429:
            said = _message(answer) if is_object else f"HTTP status {response.status_code}"
            raise NoAnswerError(f"The Job Manager at {self.url} can't serve now: {said}")
        if is_object and response.status_code >= 400 and _message(answer):
            raise RefusedError(
                f"The Job Manager says: {_message(answer)}", response.status_code, answer
            )
        if response.status_code >= 300 or not is_object or key not in answer:
            to = (
                f", redirects to {shown(location, 200)}"
                if (location := response.headers.get("Location"))
                else ""
            )
            raise ClientError(
                f"What answers at {self.url} is not a Job Manager "
                f"(HTTP status {response.status_code}{to})."
            )
        return cast(dict[str, Any], answer)


def _message(answer: Mapping[str, Any]) -> str:
    return str(answer.get("msg") or answer.get("message") or "")


def _apart(url: str) -> tuple[tuple[bytes, bytes] | None, str]:
    """Take name and token out of a URL."""
    before, separator, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user_info, at, _ = authority.rpartition("@")
    if not at:
        return None, url
    name, _, token = user_info.partition(":")
    # Bytes: `requests` would encode text as Latin-1.
    bare = before + separator + rest[len(user_info) + 1 :]
    return (unquote_to_bytes(name), unquote_to_bytes(token)), bare


def _host(url: str) -> str:
    _, url = _apart(url)
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.scheme in {"http", "https"} and parts.port != 0 else None
    except ValueError:
        host = None
    if not host:
        raise ValueError(
            f"{shown(re.sub('.*@', '', url, flags=re.S), 200)} is not a Job Manager's URL: "
            "one is such as http://localhost:8080/api/v1."
        )
    return host


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _cause(error: BaseException) -> str:
    """What the operating system said, deep in an exception of `requests`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror[0].lower() + cause.strerror[1:]
        cause = cause.__cause__ or cause.__context__
    return "the connection was lost"


def choose(available: Sequence[Image], count: int, rng: random.Random) -> list[Image]:
    """Pick `count` images at random: different ones as long as there are any."""
    chosen: list[Image] = []
    while len(chosen) < count:
        chosen += rng.sample(available, min(count - len(chosen), len(available)))
    return chosen


def submit_images(
    client: JobManagerClient, config: ClientConfig, job_type: str, chosen: Sequence[Image]
) -> list[str]:
    """Submit a job for each image; print each request's answer.

    Returns
    -------
    list of str
        The jobs' ids.
    """
    job_ids = []
    for image in chosen:
        print(f"Image of filter {config.data.filter}: visit {image.visit}, ccd {image.ccd}")
        env: dict[str, str | int | float] = {
            "AP_JOB_OUTPUT_DIR": config.job.output_dir,
            "AP_VISIT_ID": image.visit,
            "AP_CCD_NUM": image.ccd,
            "AP_REPO": config.data.repo,
            "AP_TEMPLATE": config.data.template,
            "AP_CALIB": config.data.calib,
            "AP_FILTER": config.data.filter,
        }
        try:
            answer = client.submit(job_type, env, config.job.log_dir)
        except RefusedError as error:
            _print_answer(client, error.answer)
            raise
        _print_answer(client, answer)
        job_ids.append(answer["job_id"])
    return job_ids


def _print_answer(client: JobManagerClient, answer: Mapping[str, Any]) -> None:
    # With its blank before the line's end: what the first version printed.
    print(f"POST {client.base_path}/job : \n{json.dumps(answer, indent=2)}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_client.sh",
        description="Submits a job for each of some random images of a Butler repository.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path(os.environ.get("OCPS_HOME") or ".") / "config.yaml",
        metavar="FILE",
        help="the repository and its paths (default: %(default)s; see config.example.yaml)",
    )
    parser.add_argument(
        "--count", type=_count, default=4, metavar="N", help="how many jobs (default: 4)"
    )
    parser.add_argument("--type", default="ap", help="the job type: ap (default), inspect, ...")
    parser.add_argument(
        "--url",
        help="the Job Manager's URL with its base path"
        " (default: made of API_PROTOCOL, API_DOMAIN, API_PORT and API_BASEPATH);"
        " a token is better kept in ~/.netrc, for other users can see arguments",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="pick the same images again")
    parser.add_argument(
        "--wait",
        action="store_true",
        help="show the jobs' progress until all have ended; exit status 0 if all succeeded",
    )
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError("must be a number from 1 to 100000")
    return int(text)


def _run(args: argparse.Namespace) -> int:
    config = ClientConfig.read(args.config)
    available = images(Path(config.data.db), config.data.filter)
    chosen = choose(available, args.count, random.Random(args.seed))  # noqa: S311 no secret
    try:
        client = JobManagerClient(args.url or url_from(os.environ))
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        job_ids = submit_images(client, config, args.type, chosen)
        if not args.wait:
            return 0
        with Progress(Console()) as progress:
            for snapshot in client.follow(job_ids):
                progress.show(snapshot)
    finally:
        client.close()
    failed = [job["job_id"] for job in snapshot.jobs if not has_succeeded(job)]
    if failed:
        print(f"Not successful: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the client.

    Returns
    -------
    int
        0; 1 if the Job Manager can't be used, says no or, with ``--wait``, a job failed; 2 if the
        arguments, the configuration or the registry can't be used.
    """
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except (UsageError, RegistryError) as error:
        print(error, file=sys.stderr)
        return 2
    except ClientError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
