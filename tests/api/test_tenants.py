"""Tenants do not see each other's anything, and change nothing of it (T14).

Every route is asked by one tenant for what is another's.  It has to answer as it
does where there is no such thing at all, to the letter: else it tells that there is.
Whoever adds a route adds to `ASKED` how it would be asked for what is another's.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec import structs

from tests.support.application import SETTINGS, Application, Reply, person, serving
from waypost.api.app import ROUTES, Needs

OTHERS = {
    "queue": "their-queue",
    "group": "their-group",
    "schedule": "their-schedule",
    "key": "their-key",
    "label": "their-label",
    "url": "http://127.0.0.1:9/theirs",
    "path": "/theirs",
    "id": "",
    "failed": "",
    "dlq": "",
    "topic": "",
}
"""What is another's; ids are known once it is there."""

NOBODYS = {
    "queue": "no-queue",
    "group": "no-group",
    "schedule": "no-schedule",
    "key": "no-key",
    "label": "no-label",
    "url": "http://127.0.0.1:9/no",
    "path": "/no",
    "id": "msg_no",
    "failed": "msg_none",
    "dlq": "1-1",
    "topic": "tpc_no",
}

FILTERS = (
    "?messageId={id}",
    "?messageIds={id},{failed}",
    "?queueName={queue}",
    "?topicName={group}",
    "?scheduleId={schedule}",
    "?flowControlKey={key}",
    "?label={label}",
    "?url={url}",
    "",
)
ENDPOINTS = '{{"endpoints": [{{"url": "{url}"}}]}}'

ASKED: dict[str, tuple[str, ...]] = {
    "POST /v2/publish/{destination...}": ("/{group}", "/{topic}"),
    "POST /v2/enqueue/{queue}/{destination...}": ("/{queue}/{group}",),
    "POST /v2/batch": (' [{{"destination": "{group}"}}]', ' [{{"destination": "{topic}"}}]'),
    "GET /v2/messages/{id}": ("/{id}", "/{failed}"),
    "DELETE /v2/messages/{id}": ("/{id}", "/{failed}"),
    "DELETE /v2/messages": (
        *FILTERS, "?host=127.0.0.1", "?path={path}", ' {{"messageIds": ["{id}"]}}',
    ),
    "GET /v2/events": (*FILTERS, "?groupBy=messageId", "?host=127.0.0.1", "?path={path}"),
    "GET /v2/logs": (*FILTERS, "?groupBy=messageId"),
    "GET /v2/dlq": (*FILTERS, "?dlqIds={dlq}"),
    "GET /v2/dlq/{id}": ("/{dlq}",),
    "DELETE /v2/dlq": (*FILTERS, "?dlqIds={dlq}", ' {{"dlqIds": ["{dlq}"]}}'),
    "DELETE /v2/dlq/{id}": ("/{dlq}",),
    "POST /v2/dlq/retry": (*FILTERS, "?dlqIds={dlq}"),
    "POST /v2/dlq/retry/{id}": ("/{dlq}",),
    "GET /v2/queues": ("",),
    "POST /v2/queues": (' {{"queueName": "{queue}", "parallelism": 7, "paused": true}}',),
    "GET /v2/queues/{name}": ("/{queue}",),
    "DELETE /v2/queues/{name}": ("/{queue}",),
    "POST /v2/queues/{name}/pause": ("/{queue}/pause",),
    "POST /v2/queues/{name}/resume": ("/{queue}/resume",),
    "GET /v2/topics": ("",),
    "GET /v2/topics/{name}": ("/{group}", "/{topic}"),
    "PATCH /v2/topics/{name}": (
        '/{group} {{"headers": {{"Upstash-Retries": "0"}}}}',
        '/{topic} {{"headers": {{"Upstash-Retries": "0"}}}}',
    ),
    "DELETE /v2/topics/{name}": ("/{group}", "/{topic}"),
    "POST /v2/topics/{name}/endpoints": (f"/{{topic}}/endpoints {ENDPOINTS}",),
    "DELETE /v2/topics/{name}/endpoints": (
        f"/{{group}}/endpoints {ENDPOINTS}",
        f"/{{topic}}/endpoints {ENDPOINTS}",
    ),
    "POST /v2/schedules/{destination...}": (
        "/{group}?upstash-cron=*+*+*+*+*&upstash-schedule-id={schedule}",
        "/http://127.0.0.1:9/mine?upstash-cron=*+*+*+*+*&upstash-schedule-id={schedule}",
    ),
    "GET /v2/schedules": ("",),
    "GET /v2/schedules/{id}": ("/{schedule}",),
    "DELETE /v2/schedules/{id}": ("/{schedule}",),
    "PATCH /v2/schedules/{id}/pause": ("/{schedule}/pause",),
    "POST /v2/schedules/{id}/pause": ("/{schedule}/pause",),
    "PATCH /v2/schedules/{id}/resume": ("/{schedule}/resume",),
    "POST /v2/schedules/{id}/resume": ("/{schedule}/resume",),
    "GET /v2/flowControl": ("", "?search={key}"),
    "GET /v2/flowControl/{key}": ("/{key}",),
    "POST /v2/flowControl/{key}/pause": ("/{key}/pause",),
    "POST /v2/flowControl/{key}/resume": ("/{key}/resume",),
    "POST /v2/flowControl/{key}/pin": ("/{key}/pin?parallelism=9&rate=9&period=9",),
    "POST /v2/flowControl/{key}/unpin": ("/{key}/unpin?parallelism=true&rate=true",),
    "POST /v2/flowControl/{key}/resetRate": ("/{key}/resetRate",),
    "POST /v2/flowControl/{key}/reset": ("/{key}/reset",),
    "GET /v2/globalParallelism": ("",),
    "GET /v2/keys": ("",),
    "POST /v2/keys/rotate": (),
    "POST /v2/rotate": (),
    "POST /llm/v1/chat/completions": (),
}  # fmt: skip
"""What follows the fixed part of a route, and a body after a blank.

Rotating has a test of its own, and the pass-through keeps nothing that could be another's.
"""

LISTS = (
    "/v2/events",
    "/v2/logs?groupBy=messageId",
    "/v2/dlq",
    "/v2/queues",
    "/v2/topics",
    "/v2/schedules",
    "/v2/flowControl",
    "/v2/keys",
)
"""Where a tenant sees all that is its own."""


class Neighbours:
    """A server with two tenants, of whom one has something of everything."""

    def __init__(
        self, server: Application, *, theirs: str, mine: str, things: dict[str, str]
    ) -> None:
        self.server = server
        self.theirs = theirs
        self.mine = mine
        self.things = things

    async def all_of_theirs(self) -> list[tuple[int, str]]:
        replies = [
            await self.server.ask("GET", path, token=self.theirs)
            for path in (*LISTS, f"/v2/messages/{self.things['id']}")
        ]
        return [(reply.status, json.dumps(reply.json)) for reply in replies]

    async def ask(self, route: str, asked: str, names: dict[str, str]) -> tuple[int, str]:
        """Ask as the other tenant; the answer, with the names in it left open."""
        method, pattern = route.split(" ")
        fixed = pattern.partition("/{")[0]
        path, _, body = asked.format(**names).partition(" ")
        reply = await self.server.ask(
            method, fixed + path, body=body.encode() if body else None, token=self.mine
        )
        said = json.dumps(reply.json)
        for name in sorted(names, key=lambda name: -len(names[name])):
            said = said.replace(names[name], f"<{name}>")
        return reply.status, said


async def _failed(server: Application) -> Reply:
    """Publish what is bound to fail, labelled; the page of dead letters that it is on."""
    message_id = await server.accepted(
        OTHERS["url"], header={"Upstash-Retries": "0", "Upstash-Label": OTHERS["label"]}
    )
    await server.dead_letter(message_id)
    return await server.ask("GET", "/v2/dlq")


@pytest_asyncio.fixture
async def neighbours(tmp_path: Path) -> AsyncIterator[Neighbours]:
    settings = structs.replace(SETTINGS, database=f"sqlite:///{tmp_path}/waypost.db")
    theirs, mine = await person(settings, "theirs"), await person(settings, "mine")
    async with serving(settings, dev=False, token=theirs) as server:
        things = dict(OTHERS)
        endpoints = ENDPOINTS.format(**things).encode()
        await server.ask("POST", f"/v2/topics/{things['group']}/endpoints", body=endpoints)
        group = await server.ask("GET", f"/v2/topics/{things['group']}")
        things["topic"] = group.json["topicId"]
        schedule = await server.ask(
            "POST",
            f"/v2/schedules/{things['url']}",
            header={"Upstash-Cron": "0 0 1 1 *", "Upstash-Schedule-Id": things["schedule"]},
        )
        assert schedule.status < 300, schedule
        [letter] = (await _failed(server)).json["messages"]
        things |= {"failed": letter["messageId"], "dlq": letter["dlqId"]}
        for place in ({"Upstash-Queue-Name": things["queue"]}, {}):
            things["id"] = await server.accepted(
                things["url"],
                header={
                    "Upstash-Delay": "1h",
                    "Upstash-Label": things["label"],
                    "Upstash-Flow-Control-Key": things["key"],
                    "Upstash-Flow-Control-Value": "parallelism=1",
                    **place,
                },
            )
        yield Neighbours(server, theirs=theirs, mine=mine, things=things)


def test_it_is_known_of_every_route_how_to_ask_it_for_what_is_anothers() -> None:
    guarded = {
        f"{route.method} {route.pattern}" for route in ROUTES if route.needs is not Needs.NOTHING
    }

    assert guarded == set(ASKED)


@pytest.mark.parametrize("route", ASKED)
async def test_what_is_anothers_is_as_if_it_were_not_there(
    neighbours: Neighbours, route: str
) -> None:
    """T14: neither seen nor changed."""
    before = await neighbours.all_of_theirs()

    for asked in ASKED[route]:
        nobodys = await neighbours.ask(route, asked, NOBODYS)
        others = await neighbours.ask(route, asked, neighbours.things)
        assert others == nobodys, asked

    assert await neighbours.all_of_theirs() == before


@pytest.mark.parametrize("path", ["/v2/keys/rotate", "/v2/rotate"])
async def test_rotating_keys_is_each_tenants_own(neighbours: Neighbours, path: str) -> None:
    """T14."""
    before = await neighbours.all_of_theirs()

    assert (await neighbours.server.ask("POST", path, token=neighbours.mine)).status == 200

    assert await neighbours.all_of_theirs() == before


async def test_a_tenant_who_has_nothing_sees_nothing(neighbours: Neighbours) -> None:
    """T14: in any list."""
    for path in LISTS:
        reply = await neighbours.server.ask("GET", path, token=neighbours.mine)
        said = json.dumps(reply.json)
        assert not [thing for thing in neighbours.things.values() if thing in said], path
        assert "their" not in said
    assert "theirs" in json.dumps(await neighbours.all_of_theirs())
