"""Queues, over HTTP (contract section 7)."""

import pytest

from tests.support.application import SECOND, T0, Application
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
