"""The interface's description: it and the server say the same."""

import dataclasses
import json
import re
from typing import Any, get_args, get_origin

import jsonschema_rs
import pytest

from ocps_jobmanager import answers
from ocps_jobmanager.handlers.base import Application, BaseHandler
from ocps_jobmanager.handlers.openapi import openapi_json
from ocps_jobmanager.handlers.operations import OPERATIONS, REFUSALS
from ocps_jobmanager.submission import SubmitBody
from tests.handlers.conftest import Fetch
from tests.world import World

BASE = "/api/v1"
DOCUMENT: dict[str, Any] = json.loads(openapi_json(BASE, anonymous=True))


def operations() -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (path, method.upper()): operation
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
    }


def validator(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """Of a schema of the document in which nothing that is not described is allowed."""
    whole = {**closed(schema), "components": closed(DOCUMENT["components"])}
    return jsonschema_rs.Draft202012Validator(whole)


def closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict) and made.get("type") == "object":
        made["additionalProperties"] = False
    return made


def methods_of(handler: type[BaseHandler]) -> set[str]:
    own = {
        name
        for name in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if getattr(handler, name.lower()) is not getattr(BaseHandler, name.lower())
    }
    assert own, handler
    return own


@pytest.mark.gen_test(timeout=30)
async def test_every_route_is_described_and_every_description_is_a_route(app: Application) -> None:
    routes = {
        (rule.matcher.regex.pattern.removesuffix("$"), method)
        for rule in app.wildcard_router.rules
        for method in methods_of(rule.target)
    }
    described = {(re.sub(r"{\w+}", "([^/]*)", path), method) for path, method in operations()}
    assert described == routes


@pytest.mark.gen_test(timeout=30)
async def test_the_description_is_served(fetch: Fetch) -> None:
    code, answer, _ = await fetch("GET", f"{BASE}/openapi.json")
    assert (code, answer) == (200, DOCUMENT)
    assert answer["openapi"].startswith("3.1")


def test_every_path_parameter_is_described() -> None:
    for (path, _), operation in operations().items():
        named = [item["name"] for item in operation["parameters"] if item["in"] == "path"]
        assert re.findall(r"{(\w+)}", path) == named
        assert all(item["required"] for item in operation["parameters"] if item["in"] == "path")


def test_every_schema_is_one_and_every_reference_leads_somewhere() -> None:
    found = re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(DOCUMENT))
    assert set(found) == set(DOCUMENT["components"]["schemas"])
    for operation in operations().values():
        for response in operation["responses"].values():
            validator(response["content"]["application/json"]["schema"])


def test_operations_have_names_of_their_own_and_links_lead_to_them() -> None:
    by_id = {operation["operationId"]: operation for operation in operations().values()}
    assert len(by_id) == len(OPERATIONS)
    for operation in by_id.values():
        for link in operation["responses"]["200"].get("links", {}).values():
            wanted = [item["name"] for item in by_id[link["operationId"]]["parameters"]]
            assert set(link["parameters"]) <= set(wanted)


def test_a_token_is_needed_for_all_but_the_two_named() -> None:
    document = json.loads(openapi_json(BASE, anonymous=False))
    assert document["security"] == [{"bearer": []}, {"basic": []}]
    assert {"bearer", "basic"} == set(document["components"]["securitySchemes"])
    public = {
        path
        for path, item in document["paths"].items()
        for operation in item.values()
        if operation.get("security") == []
    }
    assert public == {"/healthz", f"{BASE}/monitor/complete"}
    for (path, _), operation in operations().items():
        assert ("401" in operation["responses"]) == (path not in public)
    assert {} in DOCUMENT["security"]


def test_every_refusal_that_is_explained_occurs() -> None:
    occurring = {status for operation in OPERATIONS for status in operation.refusals}
    assert occurring == set(REFUSALS)


def test_what_a_submission_may_have_stands_in_the_model_that_validates_it() -> None:
    described = DOCUMENT["components"]["schemas"]["SubmitBody"]
    assert list(described["properties"]) == list(SubmitBody.model_fields)
    assert described["additionalProperties"] is False
    assert described["required"] == ["type", "env", "log_dir"]
    [key] = operations()[f"{BASE}/job", "POST"]["parameters"]
    assert (key["name"], key["in"], key["required"]) == ("Idempotency-Key", "header", False)


def test_a_base_path_may_be_empty() -> None:
    paths = json.loads(openapi_json("", anonymous=True))["paths"]
    assert {"/job", "/openapi.json", "/healthz"} <= set(paths)


@pytest.mark.gen_test(timeout=60)
async def test_answers_are_as_described_with_nothing_more(fetch: Fetch, world: World) -> None:
    body = {
        "type": "ap",
        "env": {"AP_VISIT_ID": 1, "AP_CCD_NUM": 2.5},
        "log_dir": "logs",
        "run_id": "a",
    }
    assert validator(DOCUMENT["components"]["schemas"]["SubmitBody"]).is_valid(body)
    seen = set()

    async def ask(method: str, path: str, template: str, *args: Any, **options: Any) -> Any:
        code, answer, _ = await fetch(method, path, *args, **options)
        response = operations()[template, method]["responses"][str(code)]
        validator(response["content"]["application/json"]["schema"]).validate(answer)
        seen.add((template, method, code))
        return answer

    job_id = (await ask("POST", f"{BASE}/job", f"{BASE}/job", body))["job_id"]
    await ask("POST", f"{BASE}/job", f"{BASE}/job", {**body, "type": "no"})
    await ask("POST", f"{BASE}/job", f"{BASE}/job", raw=b"{}", headers={"Content-Type": "a/b"})
    await ask("GET", f"{BASE}/job", f"{BASE}/job")
    key = (await world.manager.get(job_id)).monitor_key
    for query in (f"?id={key}", "?id=x", ""):
        for method in ("GET", "POST"):
            path = f"{BASE}/monitor/complete"
            await ask(method, path + query, path)
    for asked in (job_id, "x"):
        await ask("GET", f"{BASE}/job?id={asked}", f"{BASE}/job")
        await ask("GET", f"{BASE}/job/{asked}", f"{BASE}/job/{{job_id}}")
        await ask("DELETE", f"{BASE}/job/{asked}", f"{BASE}/job/{{job_id}}")
    await ask("GET", f"{BASE}/monitor/complete?id={key}", f"{BASE}/monitor/complete")
    for query in ("all", "all?limit=x", "x", "all?limit=1"):
        await ask("GET", f"{BASE}/job/list/{query}", f"{BASE}/job/list/{{category}}")
    for path in ("/healthz", "/readyz", f"{BASE}/openapi.json"):
        await ask("GET", path, path)
    assert {code for _, _, code in seen} == {200, 400, 404, 409, 415}


def test_every_answer_is_made_of_described_types() -> None:
    """A type of `answers` that is in no operation is one that nobody answers, or a gap."""
    declared = {
        name
        for name, kind in vars(answers).items()
        if hasattr(kind, "__required_keys__") and get_origin(kind) is None and not get_args(kind)
    }
    bases = {"Refusal", "Done"}
    for_clients = {"JobList"}
    assert declared - bases - for_clients <= set(DOCUMENT["components"]["schemas"])
    assert dataclasses.is_dataclass(answers.Snapshot)
