"""``GET /openapi.json``: the description of the interface, made of the types that it works with."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from ocps_jobmanager.handlers.base import RETRY_AFTER_STATUSES, BaseHandler
from ocps_jobmanager.handlers.operations import JSON, OPERATIONS, REFUSALS, Operation, Parameter

_OPENAPI_VERSION = "3.1.0"
#: Of the interface; not of the program.
_VERSION = "1"
_REF = "#/components/schemas/{model}"
_DESCRIPTION = (
    "Waits for an observatory's data and hands the jobs that process them to HTCondor, once each."
    " HEAD is answered wherever GET is; other methods get 405 with `Allow`, other paths 404."
)
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A token."},
    "basic": {"type": "http", "scheme": "basic", "description": "A name and its token."},
}
_HEADERS_OF_ALL: Mapping[int, Mapping[str, Any]] = {
    401: {
        "WWW-Authenticate": {
            "description": "How to show a token.",
            "schema": {"type": "string"},
        }
    },
    **{
        status: {
            "Retry-After": {
                "description": "After how many seconds to ask again.",
                "schema": {"type": "integer", "minimum": 1},
                "required": True,
            }
        }
        for status in RETRY_AFTER_STATUSES
    },
}


class OpenApiHandler(BaseHandler):
    """``GET /openapi.json``."""

    def initialize(self, document: bytes) -> None:
        """Take what it answers."""
        self._document = document

    async def get(self) -> None:
        """Describe the interface."""
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(self._document)


def openapi_json(base_path: str, *, anonymous: bool) -> bytes:
    """The description of the interface, as OpenAPI 3.1.

    Parameters
    ----------
    base_path : str
        ``API_BASEPATH``, without a trailing slash.
    anonymous : bool
        Whether everything is allowed without a token.
    """
    return json.dumps(openapi(OPERATIONS, base_path, anonymous=anonymous)).encode()


def openapi(
    operations: Sequence[Operation], base_path: str, *, anonymous: bool
) -> dict[str, object]:
    """Describe operations."""
    schemas = _Schemas(operations)
    paths: dict[str, dict[str, object]] = {}
    for operation in operations:
        path = operation.path if operation.at_root else base_path + operation.path
        paths.setdefault(path, {})[operation.method] = _operation(operation, schemas)
    return {
        "openapi": _OPENAPI_VERSION,
        "info": {
            "title": "OCPS Job Manager",
            "version": _VERSION,
            "description": _DESCRIPTION,
        },
        "servers": [{"url": "/"}],
        "security": [{name: []} for name in _SECURITY_SCHEMES] + ([{}] if anonymous else []),
        "paths": paths,
        "components": {"schemas": schemas.shared, "securitySchemes": _SECURITY_SCHEMES},
    }


class _Schemas:
    """The JSON Schemas of all types that the operations have; they share what is in `shared`."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        kinds = {id(kind): (kind, mode) for item in operations for kind, mode in _kinds(item)}
        found, definitions = TypeAdapter.json_schemas(
            [(key, mode, TypeAdapter(kind)) for key, (kind, mode) in kinds.items()],
            ref_template=_REF,
        )
        self._found = {key: schema for (key, _), schema in found.items()}
        self.shared: dict[str, object] = definitions.get("$defs", {})

    def of(self, kind: object) -> Mapping[str, Any]:
        """The schema of a type, or what is one already."""
        return kind if isinstance(kind, Mapping) else self._found[id(kind)]


def _kinds(operation: Operation) -> Iterator[tuple[Any, JsonSchemaMode]]:
    """The types that an operation has, each as it is read or as it is written."""
    for body in operation.body.values():
        yield body, "validation"
    for parameter in operation.parameters:
        if not isinstance(parameter.schema, Mapping):
            yield parameter.schema, "validation"
    for _, answer in operation.answers.values():
        yield answer, "serialization"
    yield operation.refusal, "serialization"


def _operation(operation: Operation, schemas: _Schemas) -> dict[str, object]:
    described: dict[str, object] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": [_parameter(parameter, schemas) for parameter in operation.parameters],
        "responses": {
            **{
                str(status): _response(status, text, schemas.of(kind), operation.links)
                for status, (text, kind) in operation.answers.items()
            },
            **{
                str(status): _response(status, REFUSALS[status], schemas.of(operation.refusal))
                for status in operation.refusals
            },
        },
    }
    if operation.description:
        described["description"] = operation.description
    if operation.body:
        described["requestBody"] = {
            "required": operation.body_required,
            "content": {
                media_type: {"schema": schemas.of(kind)}
                for media_type, kind in operation.body.items()
            },
        }
    if operation.public:
        described["security"] = []
    return described


def _parameter(parameter: Parameter, schemas: _Schemas) -> dict[str, object]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "required": parameter.required,
        "schema": schemas.of(parameter.schema),
    }


def _response(
    status: int, text: str, schema: Mapping[str, Any], links: Mapping[str, str] | None = None
) -> dict[str, object]:
    described: dict[str, object] = {
        "description": text,
        "content": {JSON: {"schema": schema}},
    }
    if headers := _HEADERS_OF_ALL.get(status):
        described["headers"] = headers
    if links:
        described["links"] = {
            operation_id: {
                "operationId": operation_id,
                "parameters": {parameter: "$response.body#/job_id"},
            }
            for operation_id, parameter in links.items()
        }
    return described
