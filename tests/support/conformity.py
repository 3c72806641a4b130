"""Whether what a server answers is what its OpenAPI document says: statuses, types and schemas."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jsonschema_rs

from waypost.api import app

DOCUMENT = app.described()
ROOT = app._tree(app.ROUTES)


@cache
def _names() -> dict[tuple[str, str], dict[str, Any]]:
    """The description of each operation, by method and pattern."""
    patterns = dict.fromkeys(route.pattern for route in app.ROUTES)
    names = app.openapi._names(patterns)
    return {
        (route.method, route.pattern): DOCUMENT["paths"][names[route.pattern][0]][
            route.method.lower()
        ]
        for route in app.ROUTES
    }


@cache
def _validator(method: str, pattern: str, status: int) -> Any:
    """What an answer is held against; None where the body is not JSON."""
    operation = _names()[method, pattern]
    answers = operation["responses"]
    assert str(status) in answers, f"{method} {pattern} does not say that it may answer {status}"
    answer = answers[str(status)]
    if "$ref" in answer:
        answer = DOCUMENT["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    content = answer["content"].get("application/json")
    if content is None:
        return None
    components = {"components": {"schemas": _strict()}}
    return jsonschema_rs.Draft202012Validator({**components, **content["schema"]})


@cache
def _strict() -> dict[str, Any]:
    """The schemas, without room for fields that they do not name."""
    return {
        name: {**schema, "additionalProperties": False} if "properties" in schema else schema
        for name, schema in DOCUMENT["components"]["schemas"].items()
    }


def check(method: str, target: str, *, status: int, header: Mapping[str, str], body: Any) -> None:
    """Raise AssertionError where an answer is not what the document says."""
    routes, _ = app._find(ROOT, target.partition("?")[0].encode())
    route = routes.get(method)
    if route is None:
        assert status in (400, 403, 404, 405, 431) or method == "OPTIONS", (method, target, status)
        return
    if method == "HEAD" or route.pattern == "/llm/v1/chat/completions":
        return
    validator = _validator(route.method, route.pattern, status)
    if validator is not None:
        assert header["Content-Type"] == "application/json"
        validator.validate(body)
