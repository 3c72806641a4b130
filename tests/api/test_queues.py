"""Queues, over HTTP (contract section 7)."""

import asyncio
import json
from typing import Any

import pytest
from msgspec import structs

from tests.support.application import SECOND, SETTINGS, T0, Application, Reply, serving
from waypost.domain.dev_users import DEV_USERS


async def enqueue(server: Application, queue: str) -> str:
    reply = await server.ask("POST", f"/v2/enqueue/{queue}/{server.receiver.url}", body=b"hello")
    assert reply.status == 200, reply
    return str(reply.json["messageId"])


async def test_a_queue_has_all_six_fields(server: Application) -> None:
    """W109, W75: as the first enqueue made it."""
    await server.logged(await enqueue(server, "q"), "DELIVERED")

    reply = await server.ask("GET", "/v2/queues/q")

    assert (reply.status, reply.json) == (
        200,
        {
            "name": "q",
            "parallelism": 1,
            "createdAt": T0,
            "updatedAt": T0,
            "lag": 0,
            "paused": False,
        },
    )


async def test_enqueueing_again_leaves_the_queue_as_it_is(server: Application) -> None:
    """W75, W109."""
    await enqueue(server, "q")
    server.clock.advance(SECOND)
    await server.logged(await enqueue(server, "q"), "DELIVERED")

    assert (await server.ask("GET", "/v2/queues/q")).json["createdAt"] == T0


async def test_lag_counts_what_is_not_done(server: Application) -> None:
    """W109; W116 of the contract."""
    server.receiver.hold()
    for _ in range(3):
        await enqueue(server, "q")
    await server.receiver.first(1)

    assert (await server.ask("GET", "/v2/queues/q")).json["lag"] == 3


async def test_lag_counts_what_waits_for_its_retry_once(server: Application) -> None:
    """W116: it keeps its place, and the others wait behind it."""
    server.receiver.answers(500)
    first = await enqueue(server, "q")
    await enqueue(server, "q")
    await server.logged(first, "RETRY")

    assert (await server.ask("GET", "/v2/queues/q")).json["lag"] == 2


@pytest.mark.parametrize("name", ["unknown", "%00", "a%2Fb", "x" * 300])
async def test_an_unknown_queue_is_not_found(server: Application, name: str) -> None:
    """W109."""
    reply = await server.ask("GET", f"/v2/queues/{name}")

    assert reply.status == 404
    assert "not found" in reply.json["error"]


async def test_queues_of_others_are_not_found(server: Application) -> None:
    """T14: a queue of the same name is another one."""
    await enqueue(server, "q")

    reply = await server.ask("GET", "/v2/queues/q", token=DEV_USERS[1].token)

    assert reply.status == 404


async def put(server: Application, body: object, *, path: str = "/v2/queues") -> Reply:
    return await server.ask("POST", path, body=json.dumps(body).encode())


async def shown(server: Application, name: str = "q") -> dict[str, Any]:
    reply = await server.ask("GET", f"/v2/queues/{name}")
    assert reply.status == 200, reply
    return dict(reply.json)


async def test_a_queue_is_made_changed_and_shown(server: Application) -> None:
    """W109, W110: all six fields, and `queueName` is read back as `name`."""
    assert (await put(server, {"queueName": "q", "parallelism": 2})).status == 200
    made = await shown(server)
    server.clock.advance(SECOND)
    reply = await put(server, {"queueName": "q", "parallelism": 3, "paused": True})

    assert (reply.status, reply.json) == (200, {})
    assert made == {
        "name": "q",
        "parallelism": 2,
        "createdAt": T0,
        "updatedAt": T0,
        "lag": 0,
        "paused": False,
    }
    changed = {"parallelism": 3, "paused": True, "updatedAt": T0 + SECOND}
    assert await shown(server) == made | changed


async def test_a_change_without_paused_leaves_it_and_one_with_it_sets_it(
    server: Application,
) -> None:
    """W110."""
    paused = []
    for said in ({"paused": True}, {}, {"paused": None}, {"paused": False}):
        await put(server, {"queueName": "q", "parallelism": 1, **said})
        paused.append((await shown(server))["paused"])

    assert paused == [True, True, True, False]


async def test_a_queue_without_a_parallelism_has_one(server: Application) -> None:
    """W109."""
    await put(server, {"queueName": "q"})

    assert (await shown(server))["parallelism"] == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"queueName": "q", "parallelism": 0}, "parallelism: 0 is not from 1 to 10000"),
        ({"queueName": "q", "parallelism": -1}, "parallelism: -1 is not"),
        ({"queueName": "q", "parallelism": 10_001}, "parallelism: 10001 is not"),
        ({"queueName": "q", "parallelism": 10**30}, "is not from 1 to 10000"),
        ({"queueName": "q", "parallelism": 1.5}, "`$.parallelism`"),
        ({"queueName": "q", "parallelism": "2"}, "`$.parallelism`"),
        ({"queueName": "q", "paused": "no"}, "`$.paused`"),
        ({"queueName": "a b"}, "queueName: a name has letters, digits"),
        ({"queueName": ""}, "queueName: a name has letters, digits"),
        ({"queueName": ".."}, "queueName: a name has letters, digits"),
        ({"queueName": "é"}, "queueName: a name has letters, digits"),
        ({"queueName": "x" * 256}, "queueName: the name is longer than 255 characters"),
        ({"parallelism": 1}, "queueName"),
        ([], "Expected `object`"),
    ],
)
async def test_bad_queues_are_refused_and_nothing_is_made(
    server: Application, body: object, says: str
) -> None:
    """W111, W115."""
    reply = await put(server, body)

    assert reply.status == 400
    assert says in reply.json["error"]
    assert (await server.ask("GET", "/v2/queues")).json == []


@pytest.mark.parametrize("name", ["_q", "-q", "a.b-c_D9", "x" * 255])
async def test_names_may_begin_as_generated_ones_do(server: Application, name: str) -> None:
    """W115."""
    assert (await put(server, {"queueName": name})).status == 200

    assert (await shown(server, name))["name"] == name


async def test_queues_are_listed_in_a_bare_array(server: Application) -> None:
    """W112, W9: the path may end in a slash."""
    assert (await server.ask("GET", "/v2/queues")).json == []
    for name in ("b", "a"):
        assert (await put(server, {"queueName": name}, path="/v2/queues/")).status == 200

    listed = (await server.ask("GET", "/v2/queues/")).json

    assert [queue["name"] for queue in listed] == ["a", "b"]
    assert listed == [await shown(server, "a"), await shown(server, "b")]
    others = await server.ask("GET", "/v2/queues", token=DEV_USERS[1].token)
    assert others.json == []


async def test_so_many_go_at_once_as_the_parallelism_says(server: Application) -> None:
    """W80: in order, and no more than that is ever under way."""
    await put(server, {"queueName": "q", "parallelism": 3})
    server.receiver.hold()
    for at in range(9):
        reply = await server.ask(
            "POST", f"/v2/enqueue/q/{server.receiver.url}", body=str(at).encode()
        )
        assert reply.status == 200
    last = str(reply.json["messageId"])

    assert {request.body for request in await server.receiver.first(3)} == {b"0", b"1", b"2"}
    assert (await shown(server))["lag"] == 9
    states = [entry["state"] for entry in await server.log()]
    assert states.count("ACTIVE") == 3
    server.receiver.let_go()
    await server.logged(last, "DELIVERED")

    assert len(server.receiver.received) == 9


async def test_so_many_go_at_once_of_what_has_waited_for_its_queue(server: Application) -> None:
    """W80: whether they are sent as they come or when they have waited."""
    await put(server, {"queueName": "q", "parallelism": 2, "paused": True})
    server.receiver.hold()
    sent = [await enqueue(server, "q") for _ in range(5)]
    assert (await server.ask("POST", "/v2/queues/q/resume")).status == 200
    await server.receiver.first(2)
    await server.logged(await server.accepted(server.receiver.url + "/else"), "ACTIVE")

    assert [len(await server.states(one)) for one in sent] == [2, 2, 1, 1, 1]
    server.receiver.let_go()
    await server.logged(sent[-1], "DELIVERED")


async def test_enqueueing_leaves_a_paused_queue_paused(server: Application) -> None:
    """W114, W131: with the parallelism that it has."""
    await put(server, {"queueName": "q", "parallelism": 2, "paused": True})
    await enqueue(server, "q")

    queue = await shown(server)
    assert (queue["parallelism"], queue["paused"]) == (2, True)


async def test_a_paused_queue_delivers_nothing_until_it_is_resumed(server: Application) -> None:
    """W114, W116."""
    await put(server, {"queueName": "q"})
    assert (await server.ask("POST", "/v2/queues/q/pause")).status == 200
    first = await enqueue(server, "q")
    await server.logged(await server.accepted(), "DELIVERED")

    assert (await shown(server))["lag"] == 1
    assert await server.states(first) == ["CREATED"]
    assert (await server.ask("POST", "/v2/queues/q/resume")).status == 200

    await server.logged(first, "DELIVERED")
    assert (await shown(server))["lag"] == 0


@pytest.mark.parametrize("action", ["pause", "resume"])
async def test_a_queue_that_is_not_there_cannot_be_paused(server: Application, action: str) -> None:
    """W114."""
    reply = await server.ask("POST", f"/v2/queues/nothing/{action}")

    assert (reply.status, reply.json) == (404, {"error": "queue nothing not found"})


async def test_deleting_a_queue_cancels_what_waits_in_it_and_logs_it(server: Application) -> None:
    """W113, D28: what is in flight may still be delivered."""
    server.receiver.hold()
    in_flight, waiting = await enqueue(server, "q"), await enqueue(server, "q")
    await server.receiver.first(1)

    reply = await server.ask("DELETE", "/v2/queues/q")

    assert (reply.status, reply.json) == (200, {"cancelled": 2})
    assert (await server.ask("GET", "/v2/queues/q")).status == 404
    assert await server.states(waiting) == ["CREATED", "CANCEL_REQUESTED", "CANCELED"]
    server.receiver.let_go()
    assert (await server.logged(in_flight, "DELIVERED"))[-2:] == ["CANCEL_REQUESTED", "DELIVERED"]


async def test_a_queue_of_more_than_a_chunk_is_deleted_whole(server: Application) -> None:
    """W113, D28."""
    await put(server, {"queueName": "q", "paused": True})
    items = [{"destination": server.receiver.url, "queue": "q"}] * 550
    for _ in range(2):
        reply = await server.ask("POST", "/v2/batch", body=json.dumps(items).encode())
        assert reply.status == 200

    reply = await server.ask("DELETE", "/v2/queues/q")

    assert (reply.status, reply.json) == (200, {"cancelled": 1_100})
    assert (await server.ask("GET", "/v2/queues")).json == []
    assert server.receiver.received == []


async def test_deleting_a_queue_that_is_not_there_is_fine(server: Application) -> None:
    """W113: twice at once too."""
    await put(server, {"queueName": "q"})

    replies = await asyncio.gather(*[server.ask("DELETE", "/v2/queues/q") for _ in range(3)])

    assert [(reply.status, reply.json) for reply in replies] == [(200, {"cancelled": 0})] * 3


async def test_the_limit_of_queues_is_412_for_new_ones() -> None:
    """W117: put, enqueued to or named in a batch; a queue that is there can be changed."""
    async with serving(structs.replace(SETTINGS, queue_count_max=1)) as server:
        assert (await put(server, {"queueName": "q"})).status == 200
        item = {"destination": server.receiver.url, "queue": "new"}
        refusals = [
            await put(server, {"queueName": "new"}),
            await server.ask("POST", f"/v2/enqueue/new/{server.receiver.url}"),
            await server.publish(header={"Upstash-Queue-Name": "new"}),
            await server.ask("POST", "/v2/batch", body=json.dumps([item]).encode()),
        ]

        for reply in refusals:
            assert reply.status == 412, reply
            assert reply.json == {"error": "quota maxQueues exceeded, current limit: 1"}
        assert await server.log() == []
        assert (await put(server, {"queueName": "q", "parallelism": 4})).status == 200
        assert await enqueue(server, "q")
        assert (await server.ask("DELETE", "/v2/queues/q")).status == 200
        assert await enqueue(server, "new")
