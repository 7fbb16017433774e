"""Who may call: tokens, hosts and origins, as API.md's fifth section has them."""

import asyncio
import base64
import logging
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests.auth
from tornado.httpclient import AsyncHTTPClient, HTTPRequest

from ocps_jobmanager.handlers.auth import Access
from ocps_jobmanager.handlers.base import Application, BaseHandler
from ocps_jobmanager.tokens import Tokens
from tests.handlers.conftest import PROBE_KEY, Fetch
from tests.handlers.test_job import BODY

pytestmark = pytest.mark.gen_test(timeout=30)

TOKEN = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"
PAGE = "https://pages.example.org"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PREPARE", "PROPFIND")


def bearer(token: str = TOKEN, scheme: str = "Bearer") -> dict[str, str]:
    return {"Authorization": f"{scheme} {token}"}


def basic(name: str | bytes, token: str = TOKEN) -> dict[str, str]:
    pair = (name if isinstance(name, bytes) else name.encode()) + b":" + token.encode()
    return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}


@pytest.fixture
def access(tmp_path: Path, request: pytest.FixtureRequest) -> Access:
    """With tokens, unless the test's class says ``anonymous``."""
    path = tmp_path / "tokens"
    path.touch(0o600)
    path.write_text(f"csc:{TOKEN}\nJosé:{OTHER}\n", encoding="utf-8")
    return Access.build(
        tokens=None if getattr(request.cls, "anonymous", False) else Tokens(path),
        urls=["http://jobs.example.org:8080/api/v1", "http://[fd00::1]/monitor"],
        allowed_hosts=["Alias.example.org", "10.1.2.3"],
        cors_origins=[PAGE, "http://other.example.org:80"],
    )


def routes_of(app: Application) -> list[tuple[str, type[BaseHandler]]]:
    """A path for each route, and its handler."""
    found = []
    for rule in app.wildcard_router.rules:
        pattern = rule.matcher.regex.pattern.removesuffix("$")
        path = pattern.replace("([^/]*)", "all").replace("\\", "")
        assert not set(path) & set("()[]*+?|^"), f"a path for {pattern} has to be made up here"
        found.append((path, rule.target))
    assert len(found) >= 6
    return found


class TestTokens:
    async def test_every_route_but_two_needs_a_token_whatever_the_method(
        self, app: Application, http_client: AsyncHTTPClient, base_url: str
    ) -> None:
        open_to_all = set()
        unknown = [("/", BaseHandler), ("/x", BaseHandler), ("/api/v1/job/x/y", BaseHandler)]
        for path, _ in routes_of(app) + unknown:
            for method in METHODS:
                request = HTTPRequest(
                    base_url + path,
                    method=method,
                    allow_nonstandard_methods=True,
                    headers={"Content-Type": "application/json"},
                    body=b"{}" if method in {"POST", "PUT"} else None,
                )
                response = await http_client.fetch(request, raise_error=False)
                if response.code == 401:
                    challenges = response.headers.get_list("WWW-Authenticate")
                    assert [c.split()[0] for c in challenges] == ["Bearer", "Basic"]
                    assert all('realm="' in challenge for challenge in challenges)
                else:
                    open_to_all.add(path)
        assert open_to_all == {"/healthz", "/api/v1/monitor/complete"}

    async def test_the_two_answer_without_one(self, fetch: Fetch) -> None:
        assert (await fetch("GET", "/healthz"))[0] == 200
        assert (await fetch("GET", f"/api/v1/monitor/complete?id={PROBE_KEY}"))[0] == 200
        assert (await fetch("GET", f"/api/v1/monitor/complete?id={'0' * 32}"))[0] == 404

    @pytest.mark.parametrize(
        ("headers", "owner"),
        [
            (bearer(), "csc"),
            (bearer(scheme="bearer"), "csc"),
            (bearer(f" {TOKEN} "), "csc"),
            (basic("csc"), "csc"),
            (basic("José", OTHER), "José"),
            (basic("José".encode("latin-1"), OTHER), "José"),  # what `requests` sends
        ],
    )
    async def test_the_owner_of_a_job_is_the_name_of_the_token(
        self, fetch: Fetch, headers: dict[str, str], owner: str
    ) -> None:
        code, answer, _ = await fetch("POST", "/api/v1/job", BODY, headers=headers)
        assert code == 200
        job_id = answer["job_id"]
        _, answer, _ = await fetch("GET", f"/api/v1/job?id={job_id}", headers=bearer(OTHER))
        assert answer["job"]["owner"] == owner
        _, answer, _ = await fetch("GET", f"/api/v1/job/{job_id}", headers=bearer(OTHER))
        assert answer["ownerId"] == owner

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Authorization": ""},
            {"Authorization": TOKEN},
            {"Authorization": "Bearer"},
            bearer(TOKEN[:-1]),
            bearer(f"{TOKEN}, Bearer {TOKEN}"),
            bearer(f"csc:{TOKEN}"),
            bearer(scheme="Digest"),
            basic("csc", OTHER),
            basic("", TOKEN),
            basic(TOKEN, ""),
            {"Authorization": f"Basic csc:{TOKEN}"},
            {"Authorization": f"Basic {base64.b64encode(TOKEN.encode()).decode()}"},
            {"Authorization": "Basic \xe9"},
            {"Authorization": "Basic ===="},
            {"X-Authorization": f"Bearer {TOKEN}"},
            {"Cookie": f"token={TOKEN}"},
        ],
    )
    async def test_what_is_no_valid_token_is_401(
        self, fetch: Fetch, headers: dict[str, str]
    ) -> None:
        code, answer, _ = await fetch("POST", "/api/v1/job", BODY, headers=headers)
        assert code == 401
        assert answer == {"status": "error", "msg": answer["msg"], "job_id": None} | {
            "cluster_id": None
        }
        assert "token" in answer["msg"]

    async def test_a_token_in_the_query_is_none(self, fetch: Fetch) -> None:
        assert (await fetch("GET", f"/readyz?token={TOKEN}&access_token={TOKEN}"))[0] == 401

    async def test_a_uws_client_is_refused_in_its_own_words(self, fetch: Fetch) -> None:
        for path in (f"/api/v1/job/{'0' * 32}", "/api/v1/job/x/y"):
            code, answer, _ = await fetch("GET", path)
            assert (code, set(answer)) == (401, {"message"})

    async def test_nothing_is_done_without_one(self, fetch: Fetch) -> None:
        _, answer, _ = await fetch("POST", "/api/v1/job", BODY, headers=bearer())
        await fetch("DELETE", f"/api/v1/job/{answer['job_id']}")
        await fetch("POST", "/api/v1/job", BODY)
        _, listed, _ = await fetch("GET", "/api/v1/job/list/pending", headers=bearer())
        assert listed["job_ids"] == [answer["job_id"]]

    async def test_a_body_that_comes_without_one_is_taken_in_and_forgotten(
        self, fetch: Fetch
    ) -> None:
        code, _, _ = await fetch("POST", "/api/v1/job", raw=b"x" * 3_000_000)
        assert code == 401

    async def test_a_thousand_wrong_tokens_log_their_access_lines_only(
        self, fetch: Fetch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        for number in range(1000):
            wrong = f"{number:032d}"
            code, _, _ = await fetch("GET", "/readyz", headers=bearer(wrong))
            assert code == 401
        assert len(caplog.records) == 1000
        assert {record.name for record in caplog.records} == {"tornado.access"}
        assert f"{999:032d}" not in caplog.text


class TestHosts:
    anonymous = True

    @pytest.mark.parametrize(
        "host",
        [
            "localhost",
            "LOCALHOST:8080",
            "localhost.:99",
            "127.0.0.1",
            "127.8.8.8:1",
            "[::1]",
            "[0:0::1]:8080",
            "jobs.example.org",
            "Jobs.Example.org.:443",
            "[fd00:0::1]:7",
            "alias.example.org:1",
            "10.1.2.3:8080",
        ],
    )
    async def test_our_names_with_and_without_a_port(self, fetch: Fetch, host: str) -> None:
        code, _, _ = await fetch("GET", "/api/v1/job/list/all", headers={"Host": host})
        assert code == 200

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "localhost.evil.example",
            "evil.example:8080",
            "10.1.2.4",
            "0.0.0.0:8080",
            "[::2]",
            "localhost:80:80",
            "jobs.example.org..",
            "xlocalhost",
        ],
    )
    async def test_any_other_is_421(self, fetch: Fetch, host: str) -> None:
        """A page of evil.example, whose name leads here, must not pass for one of ours."""
        for path in ("/healthz", "/api/v1/job?id=x", f"/api/v1/monitor/complete?id={PROBE_KEY}"):
            code, answer, _ = await fetch("GET", path, headers={"Host": host})
            assert code == 421
            assert "OCPS_ALLOWED_HOSTS" in answer["msg"]
        code, answer, _ = await fetch("DELETE", f"/api/v1/job/{'0' * 32}", headers={"Host": host})
        assert (code, set(answer)) == (421, {"message"})

    async def test_http_1_0_may_leave_it_out(self, http_server: object, base_url: str) -> None:
        """A browser never does."""
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(base_url).port)
        writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b" 200 " in await reader.readline()
        await reader.read()
        writer.close()
        await writer.wait_closed()


class TestHostsWithTokens:
    async def test_a_strange_host_is_told_before_who_calls_is_asked(self, fetch: Fetch) -> None:
        assert (await fetch("GET", "/readyz", headers={"Host": "evil.example"}))[0] == 421


class TestOrigins:
    anonymous = True

    @pytest.mark.parametrize(
        "origin",
        [
            PAGE,
            PAGE.upper(),
            f"{PAGE}:443",
            "http://other.example.org",
            "http://jobs.example.org:8080",  # our own
        ],
    )
    async def test_ours_and_allowed_ones_may_change_something(
        self, fetch: Fetch, origin: str
    ) -> None:
        headers = {"Origin": origin, "Host": "jobs.example.org:8080"}
        assert (await fetch("POST", "/api/v1/job", BODY, headers=headers))[0] == 200

    @pytest.mark.parametrize(
        "origin",
        [
            "https://evil.example",
            "null",
            "",
            "http://pages.example.org",
            "https://pages.example.org:444",
            "https://pages.example.org.evil.example",
            "https://jobs.example.org:8080",  # another scheme than ours
            "http://jobs.example.org",  # another port
            "http://localhost:8080",  # ours by another name: not the page that was asked for
            "file://",
        ],
    )
    async def test_a_foreign_one_may_not(self, fetch: Fetch, origin: str) -> None:
        headers = {"Origin": origin, "Host": "jobs.example.org:8080"}
        refused: list[tuple[str, str, Any]] = [
            ("POST", "/api/v1/job", BODY),
            ("DELETE", f"/api/v1/job/{'0' * 32}", None),
            ("PUT", "/api/v1/unknown", None),
            ("GET", f"/api/v1/monitor/complete?id={PROBE_KEY}", None),
            ("POST", f"/api/v1/monitor/complete?id={PROBE_KEY}", None),
        ]
        for method, path, body in refused:
            code, answer, response = await fetch(method, path, body, headers=headers)
            assert code == 403, (method, path)
            assert "OCPS_CORS_ORIGINS" in answer.get("msg", answer.get("message"))
            assert not cors_headers(response.headers)
        code, listed, response = await fetch("GET", "/api/v1/job/list/all", headers=headers)
        assert (code, listed["job_ids"]) == (200, [])
        assert not cors_headers(response.headers)

    async def test_without_one_nothing_is_said_of_it(self, fetch: Fetch) -> None:
        code, _, response = await fetch("POST", "/api/v1/job", BODY)
        assert code == 200
        assert not cors_headers(response.headers)

    async def test_the_page_of_an_allowed_one_may_read_every_answer(self, fetch: Fetch) -> None:
        for path in ("/api/v1/job/list/all", "/api/v1/job?id=x", "/unknown"):
            _, _, response = await fetch("GET", path, headers={"Origin": PAGE})
            assert response.headers["Access-Control-Allow-Origin"] == PAGE
            assert "Retry-After" in response.headers["Access-Control-Expose-Headers"]
            assert response.headers["Vary"] == "Origin"
            assert "Access-Control-Allow-Credentials" not in response.headers


def cors_headers(headers: Any) -> list[str]:
    return [name for name in headers if name.lower().startswith("access-control")]


class TestPreflights:
    """A browser asks without the token whether its page may call."""

    async def ask(
        self, http_client: AsyncHTTPClient, url: str, origin: str, **more: str
    ) -> tuple[int, Any]:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"} | more
        request = HTTPRequest(url, method="OPTIONS", headers=headers)
        response = await http_client.fetch(request, raise_error=False)
        return response.code, response

    async def test_an_allowed_page_is_told_what_it_may_do(
        self, http_client: AsyncHTTPClient, base_url: str
    ) -> None:
        code, response = await self.ask(http_client, f"{base_url}/api/v1/job", PAGE)
        assert (code, response.body) == (204, b"")
        assert response.headers["Access-Control-Allow-Origin"] == PAGE
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
        for header in ("Authorization", "Content-Type", "Idempotency-Key"):
            assert header in response.headers["Access-Control-Allow-Headers"]

    async def test_a_foreign_page_is_told_nothing(
        self, http_client: AsyncHTTPClient, base_url: str
    ) -> None:
        url = f"{base_url}/api/v1/job"
        code, response = await self.ask(http_client, url, "https://evil.example")
        assert code == 401
        assert not cors_headers(response.headers)

    async def test_nor_is_an_allowed_one_elsewhere(
        self, http_client: AsyncHTTPClient, base_url: str
    ) -> None:
        url = f"{base_url}/api/v1/job"
        code, _ = await self.ask(http_client, url, PAGE, Host="evil.example")
        assert code == 421

    async def test_options_that_ask_for_nothing_are_a_request_like_others(
        self, fetch: Fetch
    ) -> None:
        assert (await fetch("OPTIONS", "/api/v1/job", headers={"Origin": PAGE}))[0] == 401
        headers = {"Origin": PAGE} | bearer()
        assert (await fetch("OPTIONS", "/api/v1/job", headers=headers))[0] == 405

    async def test_an_allowed_page_may_read_that_it_needs_a_token(self, fetch: Fetch) -> None:
        _, _, response = await fetch("GET", "/readyz", headers={"Origin": PAGE})
        assert response.headers["Access-Control-Allow-Origin"] == PAGE


def test_beside_tls_a_plain_page_is_foreign() -> None:
    """Whoever is on the line could make one."""
    access = Access.build(tokens=None, urls=["http://localhost"], tls=True)
    assert access.schemes == {"https"}


def test_behind_a_proxy_that_speaks_tls_its_pages_are_ours() -> None:
    urls = ["https://jobs.example.org:443/api/v1", "http://localhost:8080/api/v1"]
    assert Access.build(tokens=None, urls=urls).schemes == {"http", "https"}


def test_requests_makes_of_a_url_with_user_info_what_is_understood_here() -> None:
    auth = requests.utils.get_auth_from_url(f"http://csc:{TOKEN}@localhost/")
    assert requests.auth._basic_auth_str(*auth) == basic("csc")["Authorization"]
