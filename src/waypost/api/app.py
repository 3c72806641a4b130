"""The home of the route table, and of the way of a request through it.

Routes are matched on the raw path: it is never decoded as a whole, never
cleaned and never redirected, for it may hold a URL (contract section 0.1).
Fixed segments match in any letter case (W6), and what ends in one may be
followed by a slash (W9).  `{name}` is one segment, percent-decoded once;
`{name...}` is all that is left, untouched.

No framework lies between a request and its handler.
"""

from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto
from functools import cache
from ipaddress import ip_network
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import astuple

from waypost.api import openapi, problems
from waypost.api.answer import Answer, encode, json_answer
from waypost.api.auth import authenticate, check_dev, console_fields
from waypost.api.exchange import Api, Gone, Limits, Request
from waypost.api.routes import (
    batch,
    chat,
    dead_letters,
    description,
    flow_keys,
    health,
    keys,
    logs,
    messages,
    publish,
    queues,
    schedules,
    url_groups,
)
from waypost.clock import Clock
from waypost.domain.errors import Forbidden, MethodNotAllowed, NotFound, Problem
from waypost.services.access import Access, Failures
from waypost.services.chat import Chat
from waypost.services.dead_letters import DeadLetters
from waypost.services.flow_keys import FlowKeys
from waypost.services.health import Health
from waypost.services.messages import Messages
from waypost.services.publishing import Publishing
from waypost.services.queues import Queues
from waypost.services.rates import Rates
from waypost.services.schedules import Schedules
from waypost.services.url_groups import UrlGroups
from waypost.store.protocol import Deliveries, Reader

Handler = Callable[[Api, Request], Awaitable[Answer]]
Application = Callable[[Request], Awaitable[Answer | None]]
"""Answers a request; None where nobody is left to answer."""


class Needs(Enum):
    """What a caller needs to be let in (D29)."""

    NOTHING = auto()
    READ = auto()
    WRITE = auto()
    SECRET = auto()


class Route(Struct, frozen=True):
    """One thing that can be asked.  Its pattern is its name in metrics."""

    method: str
    pattern: str
    handler: Handler
    needs: Needs
    counted: bool = True
    """Whether it counts as a request where requests a second are limited (W223)."""


ROUTES: Final = (
    Route("POST", "/v2/publish/{destination...}", publish.publish, Needs.WRITE, counted=False),
    Route(
        "POST", "/v2/enqueue/{queue}/{destination...}", publish.enqueue, Needs.WRITE, counted=False
    ),
    Route("POST", "/v2/batch", batch.batch, Needs.WRITE, counted=False),
    Route("GET", "/v2/messages/{id}", messages.get, Needs.READ),
    Route("DELETE", "/v2/messages/{id}", messages.cancel, Needs.WRITE),
    Route("DELETE", "/v2/messages", messages.cancel_many, Needs.WRITE),
    Route("GET", "/v2/events", logs.events, Needs.READ),
    Route("GET", "/v2/logs", logs.logs, Needs.READ),
    Route("GET", "/v2/dlq", dead_letters.page, Needs.READ),
    Route("DELETE", "/v2/dlq", dead_letters.delete_many, Needs.WRITE),
    Route("GET", "/v2/dlq/{id}", dead_letters.get, Needs.READ),
    Route("DELETE", "/v2/dlq/{id}", dead_letters.delete, Needs.WRITE),
    Route("POST", "/v2/dlq/retry", dead_letters.retry_many, Needs.WRITE),
    Route("POST", "/v2/dlq/retry/{id}", dead_letters.retry, Needs.WRITE),
    Route("GET", "/v2/queues", queues.page, Needs.READ),
    Route("POST", "/v2/queues", queues.put, Needs.WRITE),
    Route("GET", "/v2/queues/{name}", queues.get, Needs.READ),
    Route("DELETE", "/v2/queues/{name}", queues.delete, Needs.WRITE),
    Route("POST", "/v2/queues/{name}/pause", queues.pause, Needs.WRITE),
    Route("POST", "/v2/queues/{name}/resume", queues.resume, Needs.WRITE),
    Route("GET", "/v2/topics", url_groups.page, Needs.READ),
    Route("GET", "/v2/topics/{name}", url_groups.get, Needs.READ),
    Route("PATCH", "/v2/topics/{name}", url_groups.set_header, Needs.WRITE),
    Route("DELETE", "/v2/topics/{name}", url_groups.delete, Needs.WRITE),
    Route("POST", "/v2/topics/{name}/endpoints", url_groups.add_endpoints, Needs.WRITE),
    Route("DELETE", "/v2/topics/{name}/endpoints", url_groups.remove_endpoints, Needs.WRITE),
    Route("GET", "/v2/schedules", schedules.page, Needs.READ),
    Route("POST", "/v2/schedules/{destination...}", schedules.create, Needs.WRITE),
    Route("GET", "/v2/schedules/{id}", schedules.get, Needs.READ),
    Route("DELETE", "/v2/schedules/{id}", schedules.delete, Needs.WRITE),
    Route("PATCH", "/v2/schedules/{id}/pause", schedules.pause, Needs.WRITE),
    Route("POST", "/v2/schedules/{id}/pause", schedules.pause, Needs.WRITE),
    Route("PATCH", "/v2/schedules/{id}/resume", schedules.resume, Needs.WRITE),
    Route("POST", "/v2/schedules/{id}/resume", schedules.resume, Needs.WRITE),
    Route("GET", "/v2/flowControl", flow_keys.page, Needs.READ),
    Route("GET", "/v2/flowControl/{key}", flow_keys.get, Needs.READ),
    Route("POST", "/v2/flowControl/{key}/pause", flow_keys.pause, Needs.WRITE),
    Route("POST", "/v2/flowControl/{key}/resume", flow_keys.resume, Needs.WRITE),
    Route("POST", "/v2/flowControl/{key}/pin", flow_keys.pin, Needs.WRITE),
    Route("POST", "/v2/flowControl/{key}/unpin", flow_keys.unpin, Needs.WRITE),
    Route("POST", "/v2/flowControl/{key}/resetRate", flow_keys.reset, Needs.WRITE),
    Route("POST", "/v2/flowControl/{key}/reset", flow_keys.reset, Needs.WRITE),
    Route("GET", "/v2/globalParallelism", flow_keys.global_parallelism, Needs.READ),
    Route("GET", "/v2/keys", keys.get, Needs.SECRET),
    Route("POST", "/v2/keys/rotate", keys.rotate, Needs.SECRET),
    Route("POST", "/v2/rotate", keys.rotate, Needs.SECRET),
    Route("POST", "/llm/v1/chat/completions", chat.complete, Needs.WRITE),
    Route("GET", "/healthz", health.alive, Needs.NOTHING),
    Route("GET", "/readyz", health.ready, Needs.NOTHING),
    Route("GET", "/metrics", health.metrics, Needs.NOTHING),
    Route("GET", "/openapi.json", description.get, Needs.NOTHING),
)
"""Every route there is."""

LOOKING: Final = tuple(route for route in ROUTES if route.method == "GET")
"""What the log port of a development server has (D37)."""


def described(routes: Sequence[Route] = ROUTES) -> dict[str, Any]:
    """The OpenAPI document of these routes."""
    return openapi.document(
        (route.method, route.pattern, route.needs is not Needs.NOTHING) for route in routes
    )


class _Node:
    """A place in the tree of segments; `rest` says that it takes all that is left."""

    __slots__ = ("fixed", "rest", "routes", "variable")

    def __init__(self) -> None:
        self.fixed: dict[bytes, _Node] = {}
        self.variable: _Node | None = None
        self.rest: _Node | None = None
        self.routes: dict[str, Route] = {}


def _tree(routes: Sequence[Route]) -> _Node:
    root = _Node()
    for route in routes:
        node = root
        for segment in route.pattern[1:].split("/"):
            if segment.endswith("...}"):
                node.rest = node = node.rest or _Node()
            elif segment.startswith("{"):
                node.variable = node = node.variable or _Node()
            else:
                node = node.fixed.setdefault(segment.lower().encode(), _Node())
        node.routes[route.method] = route
        if route.method == "GET":
            node.routes["HEAD"] = route
    return root


def _find(node: _Node, path: bytes) -> tuple[dict[str, Route], list[bytes]]:
    """The routes of a path by method, and what stands in their braces."""
    segments: list[bytes] = []
    at = 1
    while True:
        end = path.find(b"/", at)
        segment = path[at:] if end < 0 else path[at:end]
        below = node.fixed.get(segment.lower())
        if below is not None:
            node = below
            slash_may_end = True
        elif node.variable is not None and segment:
            node = node.variable
            segments.append(segment)
            slash_may_end = False
        else:
            return {}, segments
        if node.rest is not None:
            if node.variable is not None:
                return _find_beside(node, node.rest, path, segments, end)
            segments.append(b"" if end < 0 else path[end + 1 :])
            return node.rest.routes, segments
        if end < 0:
            return node.routes, segments
        at = end + 1
        if at == len(path):
            return node.routes if slash_may_end else {}, segments


def _find_beside(
    node: _Node, rest: _Node, path: bytes, segments: list[bytes], end: int
) -> tuple[dict[str, Route], list[bytes]]:
    """As `_find`, of a place where all that is left may be one text, or may be segments: these
    go before (`/v2/schedules/{id}/pause`, and `/v2/schedules/{destination...}`)."""
    left = b"" if end < 0 else path[end + 1 :]
    routes, below = _find(node, path[end:]) if left else (node.routes, [b""])
    if below == [left]:
        return rest.routes | routes, [*segments, left]
    return (routes, [*segments, *below]) if routes else (rest.routes, [*segments, left])


def _without_route(routes: dict[str, Route], method: str) -> Answer:
    if not routes:
        return problems.answer(NotFound("there is no such path"))
    methods = ", ".join(sorted({*routes, "OPTIONS"}))
    allow = (b"allow", methods.encode())
    if method == "OPTIONS":
        return json_answer({}, header=[allow])
    return problems.answer(
        MethodNotAllowed(f"this path does not take {method}, but {methods}"), header=[allow]
    )


def create_app(
    *,
    publishing: Publishing,
    messages: Messages,
    dead_letters: DeadLetters,
    groups: UrlGroups,
    queues: Queues,
    keys_of_flow: FlowKeys,
    schedules: Schedules,
    chatting: Chat,
    deliveries: Deliveries,
    reader: Reader,
    access: Access,
    rates: Rates,
    health: Health,
    metrics: Callable[[], Awaitable[bytes]],
    answered: Callable[[str, int], None],
    clock: Clock,
    limits: Limits,
    trusted_proxies: Sequence[str] = (),
    dev: bool = False,
    routes: Sequence[Route] = ROUTES,
) -> Application:
    """The HTTP API, for a server to call with each request.

    `metrics` is the text that is scraped; `answered` is told the route and the
    status of every answer.  `trusted_proxies` are networks (D12).  `dev` keeps
    web pages out (D30).
    """
    api = Api(
        publishing=publishing,
        messages=messages,
        dead_letters=dead_letters,
        url_groups=groups,
        queues=queues,
        flow_keys=keys_of_flow,
        schedules=schedules,
        chat=chatting,
        deliveries=deliveries,
        reader=reader,
        access=access,
        rates=rates,
        health=health,
        metrics=metrics,
        description=cache(lambda: encode(described(routes))),
        answered=answered,
        clock=clock,
        limits=limits,
        trusted_proxies=[ip_network(network) for network in trusted_proxies],
        dev=dev,
        failures=Failures(),
    )
    root = _tree(routes)

    async def app(request: Request) -> Answer | None:
        name = "none"
        allowance = None
        try:
            if dev:
                check_dev(request)
            found, request.segments = _find(root, request.path)
            route = found.get(request.method)
            if route is None:
                answer = _without_route(found, request.method)
            else:
                name = route.pattern
                if route.needs is not Needs.NOTHING:
                    caller = authenticate(api, request)
                    if caller.read_only and route.needs is not Needs.READ:
                        raise Forbidden("this token may only read")
                    request.tenant = caller.tenant
                    if route.counted:
                        allowance = rates.request(caller.tenant)
                answer = await route.handler(api, request)
        except Gone:
            return None
        except Problem as problem:
            answer = problems.answer(problem)
        except Exception:  # noqa: BLE001 - logged, and the caller is told where
            answer = problems.unexpected(name)
        finally:
            request.release(api)
        if allowance is not None:
            answer.header.extend(problems.rate_fields(problems.BURST, *astuple(allowance)))
        if dev:
            answer.header.extend(console_fields(request))
        answered(name, answer.status)
        return answer

    return app
