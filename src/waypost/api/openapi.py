"""The home of the OpenAPI document: what can be asked, with what, and what is answered.

`OPERATIONS` says of each route what the route table does not.  What exists
elsewhere is taken from there: schemas from the structs that bodies are read and
written with, query parameters from what a route knows, statuses from the
problems.  The rest cannot drift either: tests hold this table against the route
table, and the answers of a running server against the document.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from waypost import __version__
from waypost.api.encoding import (
    DeadLetterJson,
    FlowKeyJson,
    GlobalParallelismJson,
    LogEntryJson,
    LogGroupJson,
    MessageJson,
    MessageReceiptJson,
    QueueJson,
    ReceiptJson,
    ScheduleJson,
    UrlGroupJson,
)
from waypost.api.routes import dead_letters, logs, messages
from waypost.api.routes.batch import BatchItem
from waypost.api.routes.queues import QueueToPut
from waypost.api.routes.url_groups import DefaultHeaders, EndpointsToAdd, EndpointsToRemove

# What handlers put together themselves.


class ErrorJson(Struct):
    """Every answer of 400 and above."""

    error: str


class NothingJson(Struct):
    """An object without a field."""


class CancelledJson(Struct):
    cancelled: int


class DeletedJson(Struct, omit_defaults=True):
    """`cursor` is there where more is left."""

    deleted: int
    cursor: str | None = None


class RetriedJson(Struct, omit_defaults=True):
    """`cursor` is there where more is left."""

    responses: list[MessageReceiptJson]
    cursor: str | None = None


class DeadLetterPageJson(Struct, omit_defaults=True):
    """`cursor` is there where more is left."""

    messages: list[DeadLetterJson]
    cursor: str | None = None


class LogPageJson(Struct, omit_defaults=True):
    """`cursor` is there where more is left; with `groupBy` there are `messages` alone."""

    events: list[LogEntryJson] = []
    logs: list[LogEntryJson] = []
    messages: list[LogGroupJson] = []
    cursor: str | None = None


class ScheduleCreatedJson(Struct, rename="camel"):
    schedule_id: str


class KeysJson(Struct):
    current: str
    next: str


class HealthJson(Struct):
    status: str


class UnreadyJson(Struct):
    error: str
    reasons: list[str]


Type = Any
"""A struct, or what is made of structs: the schema is msgspec's."""

_ACCEPTED: Final = (MessageReceiptJson, list[ReceiptJson])


class Operation(Struct, frozen=True, kw_only=True):
    """What a route is for.  `header` and `query` are names; `errors` come beside those that
    every route of its kind can answer.

    `truths` are query parameters that are true or false.  `accepts` is what the
    body is read as: a type is JSON, `bytes` any bytes at all.  An answer is a
    type, or one of several.
    """

    summary: str
    note: str = ""
    header: Collection[str] = ()
    query: Collection[str] = ()
    truths: Collection[str] = ()
    accepts: Type = None
    body_may_lack: bool = False
    answers: Mapping[int, Type | tuple[Type, ...]] = field(
        default_factory=lambda: {200: NothingJson}
    )
    content: str = "application/json"
    errors: Collection[int] = ()


Said = Mapping[str, tuple[Mapping[str, Any], str]]
"""Parameters by name: the schema, and what it asks for."""

_TEXT: Final = {"type": "string"}
_WHOLE: Final = {"type": "integer", "minimum": 0}
_TRUTH: Final = {"type": "boolean"}
_TEXTS: Final = {"type": "array", "items": _TEXT}

_COMMON: Final[Said] = {
    "Method": ({"enum": ["GET", "POST", "PUT", "PATCH", "DELETE"]}, "How it is asked; POST."),
    "Timeout": (_TEXT, "How long the destination may take, such as `30s`."),
    "Retries": (_WHOLE, "How often a failed delivery is tried again."),
    "Retry-Delay": (_TEXT, "The milliseconds before a retry, an expression of `retried`."),
    "Delay": (_TEXT, "How long to wait before the first attempt, such as `1h`."),
    "Not-Before": (_WHOLE, "When to make the first attempt, in unix seconds; it beats the delay."),
    "Label": (_TEXT, "Labels to be found by, separated by commas."),
    "Queue-Name": (_TEXT, "The queue to wait in."),
    "Redact-Fields": (_TEXT, "What is hidden where it is shown: `body`, `header[name]`."),
    "Flow-Control-Key": (_TEXT, "Whose limits count; with the next one."),
    "Flow-Control-Value": (_TEXT, "The limits, such as `parallelism=3, rate=10, period=1m`."),
}  # fmt: skip
"""What a message and its callbacks have in common."""

_OF_MESSAGES: Final[Said] = {
    "Content-Type": (_TEXT, "What the body is; it goes on to the destination."),
    **{f"Upstash-{name}": said for name, said in _COMMON.items()},
    "Upstash-Deduplication-Id": (_TEXT, "Of those with the same one, one is accepted."),
    "Upstash-Content-Based-Deduplication": (_TRUTH, "The same, by destination, header and body."),
    "Upstash-Header-Forward": (_TRUTH, "Whether all header fields of this request go on."),
    "Upstash-Callback": (_TEXT, "A URL that is told of each attempt."),
    "Upstash-Failure-Callback": (_TEXT, "A URL that is told when the message has failed for good."),
    **{
        f"Upstash-{which}-{name}": (schema, f"Of the {means}: {what[0].lower()}{what[1:]}")
        for which, means in (("Callback", "callback"), ("Failure-Callback", "failure callback"))
        for name, (schema, what) in _COMMON.items()
    },
}  # fmt: skip
_OF_SCHEDULES: Final[Said] = {
    "Upstash-Cron": (_TEXT, "When to publish: five fields, with `CRON_TZ=` before them."),
    "Upstash-Schedule-Id": (_TEXT, "The schedule to make or to overwrite."),
}

HEADERS: Final[Said] = {
    **_OF_MESSAGES,
    **_OF_SCHEDULES,
    "Accept": (_TEXT, "`text/event-stream` where the answer is to be streamed."),
}
"""Each header field that a route reads."""

_BESIDE: Final = """Further fields: `Upstash-Forward-<H>` goes on as `<H>`, and \
`Upstash-Callback-Forward-<H>` and `Upstash-Failure-Callback-Forward-<H>` go on with \
the callbacks. Each field may also come as a query parameter in lower case."""

_A_URL: Final = """The path goes on with the destination as it is, not encoded: an http(s) \
URL with its own path and query, the name of a URL group, or `api/llm`."""

QUERY: Final[Said] = {
    "messageIds": (_TEXTS, "Messages of these ids."),
    "messageId": (_TEXTS, "The same."),
    "topicName": (_TEXTS, "To these URL groups."),
    "queueName": (_TEXTS, "In these queues."),
    "url": (_TEXTS, "To these URLs."),
    "host": (_TEXTS, "To these hosts."),
    "path": (_TEXTS, "To URLs with exactly these paths."),
    "label": (_TEXTS, "With one of these labels."),
    "flowControlKey": (_TEXTS, "With one of these flow-control keys."),
    "scheduleId": (_TEXTS, "Of these schedules."),
    "callerIp": (_TEXTS, "Published from these addresses."),
    "callerIP": (_TEXTS, "The same."),
    "dlqIds": (_TEXTS, "Dead letters of these ids; beside them no other filter counts."),
    "responseStatus": (
        {"type": "array", "items": _WHOLE},
        "Whose last answer had one of these statuses.",
    ),
    "fromDate": (_WHOLE, "Not before this, in unix milliseconds."),
    "toDate": (_WHOLE, "Not after this, in unix milliseconds."),
    "state": (
        {"type": "array", "items": {"enum": sorted(logs.STATES)}},
        "Entries of these states.",
    ),
    "cursor": (_TEXT, "Where the last answer ended."),
    "count": ({"type": "integer", "minimum": 1}, "How many at most."),
    "order": ({"enum": ["earliestFirst", "latestFirst"]}, "Which come first."),
    "trimBody": (
        {"type": "integer", "minimum": -1},
        "How many bytes of a body are shown; -1 for all.",
    ),
    "groupBy": ({"enum": ["messageId"]}, "Whether entries are gathered by message."),
    "api": (_TEXT, "Means nothing here."),
    "search": (_TEXT, "What the key has in it."),
    "parallelism": ({"type": "integer", "minimum": 1}, "How many at once."),
    "rate": ({"type": "integer", "minimum": 1}, "How many in a period."),
    "period": ({"type": "integer", "minimum": 1}, "The period, in seconds."),
}
"""Each query parameter that a route reads."""

OPERATIONS: Final[Mapping[tuple[str, str], Operation]] = {
    ("POST", "/v2/publish/{destination...}"): Operation(
        summary="accepts a message for a URL or a URL group",
        note=f"With `Upstash-Cron` it makes a schedule. {_A_URL} {_BESIDE}",
        header=HEADERS.keys() - {"Accept"},
        accepts=bytes,
        answers={200: (*_ACCEPTED, ScheduleCreatedJson), 202: _ACCEPTED},
        errors=(404, 412),
    ),
    ("POST", "/v2/enqueue/{queue}/{destination...}"): Operation(
        summary="accepts a message into a queue",
        note=f"{_A_URL} {_BESIDE}",
        header=HEADERS.keys() - {"Accept"},
        accepts=bytes,
        answers={200: (*_ACCEPTED, ScheduleCreatedJson), 202: _ACCEPTED},
        errors=(404, 412),
    ),
    ("POST", "/v2/batch"): Operation(
        summary="accepts many messages, all or none",
        note="The header fields of a publish are in each item's `headers`.",
        accepts=list[BatchItem],
        answers={200: list[MessageReceiptJson | list[ReceiptJson]]},
        errors=(404, 412),
    ),
    ("GET", "/v2/messages/{id}"): Operation(
        summary="shows a message, for as long as it is kept",
        answers={200: MessageJson},
        errors=(404,),
    ),
    ("DELETE", "/v2/messages/{id}"): Operation(
        summary="cancels a message", answers={200: CancelledJson}, errors=(404,)
    ),
    ("DELETE", "/v2/messages"): Operation(
        summary="cancels the messages that ids or filters name, and without any all of them",
        note="A JSON body may name the same as the query.",
        query=messages.KNOWN,
        accepts=dict[str, str | int | list[str | int] | None] | None,
        body_may_lack=True,
        answers={200: CancelledJson},
    ),
    ("GET", "/v2/events"): Operation(
        summary="pages through the log, newest first, under its older name",
        query=logs.KNOWN,
        answers={200: LogPageJson},
    ),
    ("GET", "/v2/logs"): Operation(
        summary="pages through the log, newest first",
        query=logs.KNOWN,
        answers={200: LogPageJson},
    ),
    ("GET", "/v2/dlq"): Operation(
        summary="pages through the dead letter queue",
        query=dead_letters.LISTED,
        answers={200: DeadLetterPageJson},
    ),
    ("GET", "/v2/dlq/{id}"): Operation(
        summary="shows a dead letter", answers={200: DeadLetterJson}, errors=(404,)
    ),
    ("DELETE", "/v2/dlq/{id}"): Operation(
        summary="deletes a dead letter", answers={200: DeletedJson}, errors=(404,)
    ),
    ("DELETE", "/v2/dlq"): Operation(
        summary="deletes the dead letters that ids or filters name, and without any all of them",
        note="A JSON body may name the same as the query.",
        query=dead_letters.CHANGED,
        accepts=dict[str, str | int | list[str | int] | None] | None,
        body_may_lack=True,
        answers={200: DeletedJson},
        errors=(404,),
    ),
    ("POST", "/v2/dlq/retry/{id}"): Operation(
        summary="publishes a dead letter again, as a new message",
        note=f"Header fields take the place of the message's. {_BESIDE}",
        header=_OF_MESSAGES.keys() - {"Content-Type"},
        answers={201: MessageReceiptJson},
        errors=(404, 412),
    ),
    ("POST", "/v2/dlq/retry"): Operation(
        summary="publishes the dead letters again that ids or filters name",
        note="A JSON body may name the same as the query. Header fields take the place of the "
        f"messages'. {_BESIDE}",
        header=_OF_MESSAGES.keys() - {"Content-Type"},
        query=dead_letters.CHANGED,
        accepts=dict[str, str | int | list[str | int] | None] | None,
        body_may_lack=True,
        answers={201: RetriedJson},
        errors=(404, 412),
    ),
    ("GET", "/v2/queues"): Operation(summary="lists the queues", answers={200: list[QueueJson]}),
    ("POST", "/v2/queues"): Operation(
        summary="makes a queue, or changes its parallelism and whether it is paused",
        accepts=QueueToPut,
        errors=(412,),
    ),
    ("GET", "/v2/queues/{name}"): Operation(
        summary="shows a queue and how many messages it holds",
        answers={200: QueueJson},
        errors=(404,),
    ),
    ("DELETE", "/v2/queues/{name}"): Operation(
        summary="ends a queue and cancels what waits in it", answers={200: CancelledJson}
    ),
    ("POST", "/v2/queues/{name}/pause"): Operation(summary="pauses a queue", errors=(404, 412)),
    ("POST", "/v2/queues/{name}/resume"): Operation(
        summary="lets a queue go on", errors=(404, 412)
    ),
    ("GET", "/v2/topics"): Operation(
        summary="lists the URL groups", answers={200: list[UrlGroupJson]}
    ),
    ("GET", "/v2/topics/{name}"): Operation(
        summary="shows a URL group, by its name or its id",
        answers={200: UrlGroupJson},
        errors=(404,),
    ),
    ("PATCH", "/v2/topics/{name}"): Operation(
        summary="gives a URL group default headers",
        accepts=DefaultHeaders,
        answers={200: UrlGroupJson},
        errors=(404,),
    ),
    ("DELETE", "/v2/topics/{name}"): Operation(summary="ends a URL group"),
    ("POST", "/v2/topics/{name}/endpoints"): Operation(
        summary="adds endpoints to a URL group, or makes one",
        accepts=EndpointsToAdd,
        answers={200: UrlGroupJson},
        errors=(404, 412),
    ),
    ("DELETE", "/v2/topics/{name}/endpoints"): Operation(
        summary="removes endpoints from a URL group",
        note="A group without endpoints ends.",
        accepts=EndpointsToRemove,
        answers={200: (UrlGroupJson, NothingJson)},
        errors=(404,),
    ),
    ("GET", "/v2/schedules"): Operation(
        summary="lists the schedules", answers={200: list[ScheduleJson]}
    ),
    ("POST", "/v2/schedules/{destination...}"): Operation(
        summary="makes a schedule, or puts it in another's place",
        note=f"`Upstash-Cron` is required. {_A_URL} {_BESIDE}",
        header=HEADERS.keys() - {"Accept"},
        accepts=bytes,
        answers={200: ScheduleCreatedJson},
        errors=(404, 412),
    ),
    ("GET", "/v2/schedules/{id}"): Operation(
        summary="shows a schedule", answers={200: ScheduleJson}, errors=(404,)
    ),
    ("DELETE", "/v2/schedules/{id}"): Operation(summary="ends a schedule"),
    ("PATCH", "/v2/schedules/{id}/pause"): Operation(
        summary="ignores the firings of a schedule", errors=(404,)
    ),
    ("POST", "/v2/schedules/{id}/pause"): Operation(summary="the same", errors=(404,)),
    ("PATCH", "/v2/schedules/{id}/resume"): Operation(
        summary="fires a schedule again", errors=(404,)
    ),
    ("POST", "/v2/schedules/{id}/resume"): Operation(summary="the same", errors=(404,)),
    ("GET", "/v2/flowControl"): Operation(
        summary="lists the flow-control keys, all or those that a search finds",
        query=("search",),
        answers={200: list[FlowKeyJson]},
    ),
    ("GET", "/v2/flowControl/{key}"): Operation(
        summary="shows a flow-control key, and how many messages wait for it",
        answers={200: FlowKeyJson},
        errors=(404,),
    ),
    ("POST", "/v2/flowControl/{key}/pause"): Operation(
        summary="pauses a flow-control key", errors=(404,)
    ),
    ("POST", "/v2/flowControl/{key}/resume"): Operation(
        summary="lets a flow-control key go on", errors=(404,)
    ),
    ("POST", "/v2/flowControl/{key}/pin"): Operation(
        summary="gives a key limits that messages do not change",
        query=("parallelism", "rate", "period"),
        errors=(404,),
    ),
    ("POST", "/v2/flowControl/{key}/unpin"): Operation(
        summary="lets messages change the limits of a key again",
        truths=("parallelism", "rate"),
        errors=(404,),
    ),
    ("POST", "/v2/flowControl/{key}/resetRate"): Operation(
        summary="begins a new window of a key's rate", errors=(404,)
    ),
    ("POST", "/v2/flowControl/{key}/reset"): Operation(
        summary="begins a new window of a key's rate", errors=(404,)
    ),
    ("GET", "/v2/globalParallelism"): Operation(
        summary="shows how many attempts are under way, and may be",
        answers={200: GlobalParallelismJson},
    ),
    ("GET", "/v2/keys"): Operation(
        summary="shows the signing keys", answers={200: KeysJson}, errors=(404,)
    ),
    ("POST", "/v2/keys/rotate"): Operation(
        summary="signs with the next key, and makes a new next one",
        answers={200: KeysJson},
        errors=(404,),
    ),
    ("POST", "/v2/rotate"): Operation(
        summary="does so too, under the name that the Go SDK knows",
        answers={200: KeysJson},
        errors=(404,),
    ),
    ("POST", "/llm/v1/chat/completions"): Operation(
        summary="asks the model at `llm_base_url`, and passes on its answer",
        note="Body and answer are OpenAI's; with `stream` the answer is `text/event-stream`. "
        "The model's own refusals are passed back as they are.",
        header=("Content-Type", "Accept"),
        accepts=dict[str, Any],
        answers={200: Any},
        errors=(404, 502),
    ),
    ("GET", "/healthz"): Operation(
        summary="answers while the process does", answers={200: HealthJson}
    ),
    ("GET", "/readyz"): Operation(
        summary="says whether it should be sent requests, and why not",
        answers={200: HealthJson, 503: UnreadyJson},
    ),
    ("GET", "/metrics"): Operation(
        summary="shows the metrics", answers={200: str}, content="text/plain"
    ),
    ("GET", "/openapi.json"): Operation(
        summary="describes all of this as OpenAPI", answers={200: dict[str, Any]}
    ),
}
"""What each route is for, by method and pattern."""

ERRORS: Final = {
    400: "The request is wrong; the text names the field and the fault.",
    401: "No token, or one that nobody has.",
    403: "The token may not do this, or a development server was asked by a web page.",
    404: "Nothing of that name is the caller's.",
    405: "The path exists, but not with this method; `Allow` names those that it takes.",
    408: "The body did not arrive in time.",
    409: "What was to be changed has changed already.",
    412: "There are as many of these as the plan allows.",
    413: "The body is over its limit.",
    429: "Too much was asked for in a period; `RateLimit-Reset` and kin say when it ends.",
    431: "The head of the request is over its limit.",
    500: "A fault of ours; the text names the entry of the log.",
    502: "The model did not answer, or did not let us in.",
    503: "The store is away, or too much is under way; `Retry-After` says when to come back.",
    507: "There is no room to accept more; what is kept stays kept.",
}  # fmt: skip

_OF_ALL: Final = frozenset({400, 403, 431, 500, 503})
_OF_GUARDED: Final = frozenset({401, 429})
_OF_BODIES: Final = frozenset({408, 413})
_OF_CHANGES: Final = frozenset({507})

_REF: Final = "#/components/schemas/{name}"


def document(routes: Iterable[tuple[str, str, bool]]) -> dict[str, Any]:
    """The OpenAPI document of these routes: method, pattern, and whether a token is wanted."""
    told = [
        (method, pattern, guarded, OPERATIONS[method, pattern])
        for method, pattern, guarded in routes
    ]
    types = [each for *_, operation in told for each in _types(operation)]
    schemas, components = msgspec.json.schema_components([*types, ErrorJson], ref_template=_REF)
    schema_of = dict(zip(map(repr, types), schemas, strict=False))
    names = _names(pattern for _, pattern, *_ in told)
    paths: dict[str, dict[str, Any]] = {}
    for method, pattern, guarded, operation in told:
        path, at = names[pattern]
        paths.setdefault(path, {})[method.lower()] = _described(
            method, pattern, operation, guarded=guarded, at=at, schema_of=schema_of
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Waypost",
            "version": __version__,
            "description": "A self-hosted, durable HTTP message queue and scheduler that speaks "
            "the QStash v2 API. Fixed parts of a path are matched in any letter case.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": {name: _without_words(components[name]) for name in sorted(components)},
            "parameters": {
                f"{where}.{name}": _parameter(where, name, *said)
                for where, those in (("header", HEADERS), ("query", QUERY))
                for name, said in those.items()
            },
            "responses": {
                f"Error{status}": {
                    "description": said,
                    "content": {"application/json": {"schema": schemas[-1]}},
                }
                for status, said in ERRORS.items()
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "qstash_token": {"type": "apiKey", "in": "query", "name": "qstash_token"},
            },
        },
    }


def _without_words(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema without its struct's docstring, which speaks to readers of the code."""
    return {key: said for key, said in schema.items() if key not in ("title", "description")}


def _types(operation: Operation) -> list[Type]:
    read = [] if operation.accepts in (None, bytes) else [operation.accepts]
    return [*read, *(each for answer in operation.answers.values() for each in _each(answer))]


def _each(answer: Type | tuple[Type, ...]) -> tuple[Type, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


def _one_of(schemas: Sequence[Any]) -> Any:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _names(patterns: Iterable[str]) -> dict[str, tuple[str, dict[str, str]]]:
    """Each pattern's path in the document, and how what stands in its braces is called there.

    Patterns that differ in nothing but these names have one path.
    """
    variables = {pattern: re.findall(r"\{(\w+)[.}]", pattern) for pattern in patterns}
    alike: dict[str, list[str]] = {}
    for pattern in variables:
        alike.setdefault(re.sub(r"\{[^}]*\}", "{}", pattern), []).append(pattern)
    found = {}
    for shape, those in alike.items():
        columns = zip(*(variables[pattern] for pattern in those), strict=True)
        called = [_either(dict.fromkeys(column)) for column in columns]
        for pattern in those:
            at = dict(zip(called, variables[pattern], strict=True))
            found[pattern] = shape.replace("{}", "{{{}}}").format(*called), at
    return found


def _either(names: Iterable[str]) -> str:
    first, *others = names
    return first + "".join(f"Or{name.capitalize()}" for name in others)


def _described(
    method: str,
    pattern: str,
    operation: Operation,
    *,
    guarded: bool,
    at: Mapping[str, str],
    schema_of: Mapping[str, Any],
) -> dict[str, Any]:
    errors = _OF_ALL | set(operation.errors)
    errors |= _OF_GUARDED if guarded else set()
    errors |= _OF_BODIES if operation.accepts is not None else set()
    errors |= _OF_CHANGES if method != "GET" else set()
    described: dict[str, Any] = {
        "operationId": _operation_id(method, pattern),
        "summary": operation.summary,
        "tags": [pattern.split("/")[2 if pattern.startswith("/v2/") else 1]],
        "parameters": [
            *(_in_path(called, name, pattern) for called, name in at.items()),
            *(
                {"$ref": f"#/components/parameters/query.{name}"}
                for name in sorted(operation.query)
            ),
            *(
                _parameter("query", name, _TRUTH, f"Whether its {name} is let go.")
                for name in operation.truths
            ),
            *(
                {"$ref": f"#/components/parameters/header.{name}"}
                for name in HEADERS
                if name in operation.header
            ),
        ],
        "responses": {
            **{
                str(status): {
                    "description": HTTPStatus(status).phrase,
                    "content": {
                        operation.content: {
                            "schema": _one_of([schema_of[repr(each)] for each in _each(answer)])
                        }
                    },
                }
                for status, answer in operation.answers.items()
            },
            **{
                str(status): {"$ref": f"#/components/responses/Error{status}"}
                for status in sorted(errors.difference(operation.answers))
            },
        },
        "security": [{"bearer": []}, {"qstash_token": []}] if guarded else [],
    }
    if operation.note:
        described["description"] = operation.note
    if operation.accepts is bytes:
        described["requestBody"] = {
            "description": "The body of the message: any bytes, of any type.",
            "content": {"*/*": {}},
        }
    elif operation.accepts is not None:
        described["requestBody"] = {
            "required": not operation.body_may_lack,
            "content": {"application/json": {"schema": schema_of[repr(operation.accepts)]}},
        }
    return described


def _operation_id(method: str, pattern: str) -> str:
    words = re.findall(r"\w+", pattern.removeprefix("/v2/"))
    return method.lower() + "".join(word[0].upper() + word[1:] for word in words)


def _in_path(called: str, name: str, pattern: str) -> dict[str, Any]:
    whole = f"{{{name}...}}" in pattern
    described = {
        "name": called,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
    }
    if whole:
        described["description"] = _A_URL
        described["example"] = "https://example.com/hook?a=b"
    return described


def _parameter(where: str, name: str, schema: Mapping[str, Any], said: str) -> dict[str, Any]:
    return {"name": name, "in": where, "schema": schema, "description": said}
