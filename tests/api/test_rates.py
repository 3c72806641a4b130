"""Requests a second and messages a day, over HTTP (contract section 0.5)."""

import json

import pytest
from msgspec import structs

from tests.support.application import HOUR, SECOND, SETTINGS, T0, Application, Reply, serving
from waypost.domain.dev_users import DEV_USERS

BURST = ("Burst-RateLimit-Limit", "Burst-RateLimit-Remaining", "Burst-RateLimit-Reset")
DAILY = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")

NEXT_DAY_S = 1_700_006_400
"""The midnight (UTC) after T0."""


def told(reply: Reply, names: tuple[str, ...]) -> list[str | None]:
    return [reply.header.get(name) for name in names]


async def test_without_a_limit_nothing_is_said_of_rates(server: Application) -> None:
    """W222."""
    for reply in (await server.ask("GET", "/v2/queues"), await server.publish()):
        assert told(reply, BURST + DAILY) == [None] * 6


async def test_more_requests_a_second_than_configured_are_429_until_the_next() -> None:
    """W222: each answer says what is left."""
    async with serving(structs.replace(SETTINGS, requests_per_second_max=2)) as server:
        replies = [await server.ask("GET", "/v2/queues") for _ in range(4)]
        server.clock.advance(SECOND)
        later = await server.ask("GET", "/v2/queues")

    next_s = T0 // 1000 + 1
    assert [reply.status for reply in replies] == [200, 200, 429, 429]
    assert [told(reply, BURST) for reply in replies] == [
        ["2", left, str(next_s)] for left in ("1", "0", "0", "0")
    ]
    assert told(replies[2], DAILY) == [None] * 3
    assert replies[2].json == {"error": "more than 2 requests a second"}
    assert (later.status, told(later, BURST)) == (200, ["2", "1", str(next_s + 1)])


async def test_publishing_is_no_request_in_this_sense() -> None:
    """W223: nor is asking whether the server is well; each tenant has a rate of its own."""
    async with serving(structs.replace(SETTINGS, requests_per_second_max=1)) as server:
        url = server.receiver.url
        assert (await server.ask("GET", "/v2/queues")).status == 200
        assert (await server.ask("GET", "/v2/queues")).status == 429

        batch = json.dumps([{"destination": url}]).encode()
        for reply in (
            await server.publish(),
            await server.ask("POST", f"/v2/enqueue/q/{url}"),
            await server.ask("POST", "/v2/batch", body=batch),
            await server.ask("GET", "/v2/queues", token=DEV_USERS[1].token),
        ):
            assert reply.status == 200, reply
        assert (await server.ask("GET", "/v2/queues", token="wrong")).status == 401


async def test_more_messages_a_day_than_configured_are_429_until_midnight() -> None:
    """W222: a batch is accepted whole or not at all."""
    async with serving(structs.replace(SETTINGS, messages_per_day_max=3)) as server:
        item = {"destination": server.receiver.url}
        await server.accepted()
        refused = await server.ask("POST", "/v2/batch", body=json.dumps([item] * 3).encode())
        assert (
            await server.ask("POST", "/v2/batch", body=json.dumps([item] * 2).encode())
        ).status == 200
        over = await server.publish()
        others = await server.publish(token=DEV_USERS[1].token)
        messages = {entry["messageId"] for entry in await server.log()}
        server.clock.advance(2 * HOUR)
        later = await server.publish()

    for reply in (refused, over):
        assert (reply.status, reply.json) == (429, {"error": "more than 3 messages a day"})
        assert told(reply, DAILY) == ["3", "0", str(NEXT_DAY_S)]
        assert told(reply, BURST) == [None] * 3
    assert others.status == 200
    assert len(messages) == 3
    assert later.status == 200


@pytest.mark.parametrize(
    ("settings", "field", "value", "says"),
    [
        ({"retries_max": 5}, "Upstash-Retries", "6", "quota maxRetries exceeded"),
        ({"delay_ms_max": 60_000}, "Upstash-Delay", "61s", "quota maxDelay exceeded"),
        ({"label_count_max": 2}, "Upstash-Label", "a,b,c", "Upstash-Label: more than 2 labels"),
    ],
)
async def test_what_a_publisher_may_ask_for_is_a_setting(
    settings: dict[str, int], field: str, value: str, says: str
) -> None:
    """W39."""
    async with serving(structs.replace(SETTINGS, **settings)) as server:
        reply = await server.publish(header={field: value})

        assert reply.status == 400
        assert says in reply.json["error"]
        assert await server.log() == []


async def test_endpoints_of_a_group_are_limited_by_a_setting() -> None:
    async with serving(structs.replace(SETTINGS, endpoint_count_max=2)) as server:
        endpoints = [{"url": f"{server.receiver.url}/{at}"} for at in range(3)]
        body = json.dumps({"endpoints": endpoints}).encode()

        reply = await server.ask("POST", "/v2/topics/g/endpoints", body=body)

        assert (reply.status, reply.json) == (
            400,
            {"error": "a URL group has at most 2 endpoints"},
        )
