"""The operations of the interface, as its description lists them: what goes in, what comes out.

What a body may be and what an answer is stand in the types that validate and render them; here is
only which operation has which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ocps_jobmanager.answers import (
    CallbackAnswer,
    CallbackRefusal,
    Done,
    JobAnswer,
    JobId,
    JobListAnswer,
    JobListRefusal,
    JobRefusal,
    Readiness,
    Refusal,
    SubmitAnswer,
    SubmitRefusal,
    UwsJob,
    UwsRefusal,
)
from ocps_jobmanager.handlers.job import DEFAULT_LIMIT, LARGEST_LIMIT
from ocps_jobmanager.handlers.monitor import CallbackBody
from ocps_jobmanager.manager import CATEGORIES
from ocps_jobmanager.submission import SubmitBody

JSON = "application/json"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """Something that an operation is given beside its body.

    Attributes
    ----------
    place : str
        ``path``, ``query`` or ``header``.
    schema : mapping or type
        A JSON Schema, or a type that has one.
    """

    name: str
    place: str
    description: str
    schema: Any
    required: bool = False


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What can be done with a path.

    Attributes
    ----------
    path : str
        With its parameters in braces; under the base path unless `at_root`.
    body : mapping of str to type
        For each media type that it takes, what a body is.
    body_required : bool
    answers : mapping of int to tuple of str and type
        For each status of success: when, and what comes.
    refusals : sequence of int
        The other statuses that it can have.
    refusal : type
        What comes with these, unless `answers` has it.
    links : mapping of str to str
        What can be done next with the job that the answer names: an operation, and its parameter.
    public : bool
        Nobody has to show a token.
    """

    path: str
    method: str
    id: str
    summary: str
    answers: Mapping[int, tuple[str, Any]]
    refusals: Sequence[int]
    refusal: Any
    description: str = ""
    parameters: Sequence[Parameter] = ()
    body: Mapping[str, Any] = field(default_factory=dict)
    body_required: bool = True
    links: Mapping[str, str] = field(default_factory=dict)
    at_root: bool = False
    public: bool = False


#: What each status means, wherever it occurs.
REFUSALS: Mapping[int, str] = MappingProxyType(
    {
        400: "What was sent can't be accepted; all that is wrong is listed.",
        401: "No token, or a wrong one.",
        403: "Not allowed by policy, or an Origin that is not ours.",
        404: "There is no such thing.",
        409: "Not possible in the state that the job is in.",
        413: "The body is too large (OCPS_MAX_BODY).",
        415: "The body is not said to be JSON.",
        421: "The Host is not ours.",
        422: "The idempotency key was used before, with another body.",
        429: "As many jobs wait as may (OCPS_MAX_WAITING); nothing was accepted.",
        503: "It can't be done now, and nothing was: the same request may succeed later.",
    }
)

_JOB_ID = Parameter(
    name="job_id",
    place="path",
    description="The job's id. Blanks around it are ignored.",
    schema=JobId,
    required=True,
)
_IDEMPOTENCY_KEY = Parameter(
    name="Idempotency-Key",
    place="header",
    description="The client's own name for this submission: the same caller's same key with the"
    " same body gets the first answer, and creates nothing.",
    schema={"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$"},
)
_CALLBACK_KEY = Parameter(
    name="id",
    place="query",
    description="The secret key of the job, which its monitor alone knows.",
    schema={"type": "string", "minLength": 1},
    required=True,
)
_CALLBACK_ANSWERS = {
    200: ("Recorded, and the job is in the queue.", CallbackAnswer),
    202: ("Recorded; the job will be launched when the scheduler is back.", CallbackAnswer),
}

OPERATIONS: Sequence[Operation] = (
    Operation(
        path="/job",
        method="post",
        id="submit_job",
        summary="Submit a job of a declared type",
        description="An answer of 200 means that the job survives the power going out.",
        parameters=[_IDEMPOTENCY_KEY],
        body={JSON: SubmitBody},
        answers={200: ("The job is accepted.", SubmitAnswer)},
        refusals=[400, 401, 403, 413, 415, 421, 422, 429, 503],
        refusal=SubmitRefusal,
        links={"get_job_info": "id", "get_job": "job_id", "remove_job": "job_id"},
    ),
    Operation(
        path="/job",
        method="get",
        id="get_job_info",
        summary="Tell all about a job",
        parameters=[
            Parameter(
                name="id",
                place="query",
                description="The job's id. Blanks around it are ignored.",
                schema=JobId,
                required=True,
            )
        ],
        answers={200: ("The job.", JobAnswer)},
        refusals=[400, 401, 404, 413, 421, 503],
        refusal=JobRefusal,
    ),
    Operation(
        path="/job/list/{category}",
        method="get",
        id="list_jobs",
        summary="List jobs, newest first",
        parameters=[
            Parameter(
                name="category",
                place="path",
                description="Which jobs.",
                schema={"type": "string", "enum": list(CATEGORIES)},
                required=True,
            ),
            Parameter(
                name="limit",
                place="query",
                description="At most so many.",
                schema={
                    "type": "integer",
                    "minimum": 1,
                    "maximum": LARGEST_LIMIT,
                    "default": DEFAULT_LIMIT,
                },
            ),
            Parameter(
                name="cursor",
                place="query",
                description="The `next` of the page before.",
                schema={"type": "string", "pattern": "^[1-9][0-9]{0,17}$"},
            ),
        ],
        answers={200: ("A page of job ids.", JobListAnswer)},
        refusals=[400, 401, 404, 413, 421, 503],
        refusal=JobListRefusal,
    ),
    Operation(
        path="/job/{job_id}",
        method="get",
        id="get_job",
        summary="Tell about a job, as UWS clients read it",
        parameters=[_JOB_ID],
        answers={200: ("The job object.", UwsJob)},
        refusals=[401, 404, 413, 421, 503],
        refusal=UwsRefusal,
    ),
    Operation(
        path="/job/{job_id}",
        method="delete",
        id="remove_job",
        summary="Abort a job that has not ended",
        description="Its record stays. Nothing happens to a job that has ended.",
        parameters=[_JOB_ID],
        answers={200: ("The job object.", UwsJob)},
        refusals=[401, 403, 404, 413, 421, 503],
        refusal=UwsRefusal,
    ),
    Operation(
        path="/monitor/complete",
        method="get",
        id="data_arrived",
        summary="The data of a job have arrived (the job's monitor calls it)",
        description="A job is launched once, however often this is called.",
        parameters=[_CALLBACK_KEY],
        answers=_CALLBACK_ANSWERS,
        refusals=[400, 403, 404, 409, 413, 421, 503],
        refusal=CallbackRefusal,
        public=True,
    ),
    Operation(
        path="/monitor/complete",
        method="post",
        id="data_arrived_post",
        summary="The same",
        parameters=[
            Parameter(
                name="id",
                place="query",
                description="The secret key of the job; it may come in the body instead.",
                schema={"type": "string", "minLength": 1},
            )
        ],
        body={JSON: CallbackBody, "application/x-www-form-urlencoded": CallbackBody},
        body_required=False,
        answers=_CALLBACK_ANSWERS,
        refusals=[400, 403, 404, 409, 413, 415, 421, 503],
        refusal=CallbackRefusal,
        public=True,
    ),
    Operation(
        path="/openapi.json",
        method="get",
        id="describe",
        summary="This description",
        answers={200: ("An OpenAPI document.", dict[str, Any])},
        refusals=[401, 413, 421],
        refusal=Refusal,
    ),
    Operation(
        path="/healthz",
        method="get",
        id="healthz",
        summary="Whether the server answers",
        at_root=True,
        public=True,
        answers={200: ("It does.", Done)},
        refusals=[413, 421],
        refusal=Refusal,
    ),
    Operation(
        path="/readyz",
        method="get",
        id="readyz",
        summary="Whether all parts of the server are in order",
        at_root=True,
        answers={
            200: ("They are.", Readiness),
            503: ("Some are not; which, and since when.", Readiness),
        },
        refusals=[401, 413, 421],
        refusal=Refusal,
    ),
)
