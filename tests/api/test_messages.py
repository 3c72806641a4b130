"""Reading and cancelling messages, over HTTP (contract section 6)."""

import asyncio

import pytest

from tests.support.application import HOUR, MINUTE, T0, Application, serving
from waypost.domain.dev_users import DEV_USERS


async def test_a_message_can_be_read_at_once_and_after_its_end(server: Application) -> None:
    """W93: the SDKs' tests ask right after publishing, and W231: after delivery for a while."""
    message_id = await server.accepted()
    assert (await server.message(message_id))["messageId"] == message_id
    await server.logged(message_id, "DELIVERED")

    assert (await server.message(message_id))["messageId"] == message_id


async def test_a_message_has_the_fields_that_are_always_there_and_no_others(
    server: Application,
) -> None:
    """W94, W234: nothing is null."""
    message_id = await server.accepted(header={"Upstash-Retries": "0"}, body=None)

    assert await server.message(message_id) == {
        "messageId": message_id,
        "url": server.receiver.url,
        "method": "POST",
        "createdAt": T0,
        "notBefore": T0,
        "maxRetries": 0,
        "header": {},
        "callerIP": "127.0.0.1",
    }


async def test_a_message_shows_what_was_asked_for(server: Application) -> None:
    """W94."""
    message_id = await server.accepted(
        header={
            "Upstash-Method": "PUT",
            "Upstash-Delay": "1m",
            "Upstash-Retries": "5",
            "Upstash-Retry-Delay": "1000",
            "Upstash-Label": "a,b",
            "Upstash-Queue-Name": "q",
            "Upstash-Forward-X": "1",
            "Content-Type": "text/plain",
        }
    )

    assert await server.message(message_id) == {
        "messageId": message_id,
        "url": server.receiver.url,
        "method": "PUT",
        "createdAt": T0,
        "notBefore": T0 + MINUTE,
        "maxRetries": 5,
        "header": {"X": ["1"], "Content-Type": ["text/plain"]},
        "body": "hello",
        "callerIP": "127.0.0.1",
        "queueName": "q",
        "retryDelayExpression": "1000",
        "label": "a",
        "labels": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"plain", {"body": "plain"}),
        ("Grüße 🙂".encode(), {"body": "Grüße 🙂"}),
        (b'{"a": "\\u0000\\n"}', {"body": '{"a": "\\u0000\\n"}'}),
        (b"\x00\x01", {"body": "\x00\x01"}),
        (b"\xff\xfe", {"bodyBase64": "//4="}),
        (b"cut \xc3", {"bodyBase64": "Y3V0IMM="}),
        (b"\xed\xa0\x80", {"bodyBase64": "7aCA"}),
        (b"", {}),
    ],
)
async def test_a_body_is_text_where_it_is_utf_8_and_base64_where_it_is_not(
    server: Application, body: bytes, shown: dict[str, str]
) -> None:
    """W95."""
    message = await server.message(await server.accepted(body=body))

    assert {name: message[name] for name in message if name.startswith("body")} == shown


async def test_values_that_are_utf_8_are_shown_as_the_text_they_spell(
    server: Application,
) -> None:
    message_id = await server.accepted(header={"Upstash-Forward-Name": "Grüße"})

    assert (await server.message(message_id))["header"] == {"Name": ["Grüße"]}


@pytest.mark.parametrize(
    "message_id", ["msg_unknown", "msg_1111111111111111111111", "x", "%00", "a%2Fb", "msg_%F0%9F"]
)
async def test_an_unknown_message_is_not_found(server: Application, message_id: str) -> None:
    """W97, W100."""
    for method in ("GET", "DELETE"):
        reply = await server.ask(method, f"/v2/messages/{message_id}")
        assert reply.status in (404, 400 if message_id.endswith("%9F") else 404)
        assert "error" in reply.json


async def test_not_found_says_it_in_the_words_of_the_hosted_service(server: Application) -> None:
    """W97."""
    reply = await server.ask("GET", "/v2/messages/msg_unknown")

    assert (reply.status, reply.json) == (404, {"error": "message msg_unknown not found"})


async def test_messages_of_others_are_not_found(server: Application) -> None:
    """W97, W100, T14."""
    message_id = await server.accepted(header={"Upstash-Delay": "1h"})

    for method in ("GET", "DELETE"):
        reply = await server.ask(method, f"/v2/messages/{message_id}", token=DEV_USERS[1].token)
        assert (reply.status, reply.json) == (404, {"error": f"message {message_id} not found"})
    assert await server.states(message_id) == ["CREATED"]


async def test_a_waiting_message_is_cancelled_at_once(server: Application) -> None:
    """W98, W176: it is never delivered."""
    message_id = await server.accepted(header={"Upstash-Delay": "1h"})

    reply = await server.ask("DELETE", f"/v2/messages/{message_id}")

    assert (reply.status, reply.json) == (200, {"cancelled": 1})
    states = await server.states(message_id)
    assert states == ["CREATED", "CANCEL_REQUESTED", "CANCELED"]
    server.clock.advance(HOUR)
    await server.logged(await server.accepted(body=b"later"), "DELIVERED")
    assert [received.body for received in server.receiver.received] == [b"later"]


async def test_a_body_with_a_delete_is_ignored(server: Application) -> None:
    """W98; W233 of the contract: some clients send null."""
    message_id = await server.accepted(header={"Upstash-Delay": "1h"})

    reply = await server.ask("DELETE", f"/v2/messages/{message_id}", body=b"null")

    assert reply.json == {"cancelled": 1}


async def test_a_message_in_flight_can_be_cancelled_and_a_success_is_delivered(
    server: Application,
) -> None:
    """W99, W176: the request goes on (D16)."""
    server.receiver.hold()
    message_id = await server.accepted()
    await server.receiver.only()

    reply = await server.ask("DELETE", f"/v2/messages/{message_id}")

    assert (reply.status, reply.json) == (200, {"cancelled": 1})
    assert await server.states(message_id) == ["CREATED", "ACTIVE", "CANCEL_REQUESTED"]
    server.receiver.let_go()
    assert (await server.logged(message_id, "DELIVERED"))[-1] == "DELIVERED"


async def test_a_message_in_flight_that_fails_after_a_cancel_is_not_retried(
    server: Application,
) -> None:
    """W99, W176."""
    server.receiver.answers(500)
    server.receiver.hold()
    message_id = await server.accepted()
    await server.receiver.only()
    await server.ask("DELETE", f"/v2/messages/{message_id}")
    server.receiver.let_go()

    states = await server.logged(message_id, "CANCELED")

    assert states.index("CANCEL_REQUESTED") < states.index("CANCELED")
    assert "RETRY" not in states
    assert (await server.ask("GET", "/v2/dlq")).json == {"messages": []}


async def test_a_message_waiting_for_its_retry_can_be_cancelled(server: Application) -> None:
    """W98, W108 of the contract."""
    server.receiver.answers(500)
    message_id = await server.accepted()
    await server.logged(message_id, "RETRY")

    assert (await server.ask("DELETE", f"/v2/messages/{message_id}")).json == {"cancelled": 1}
    assert (await server.states(message_id))[-1] == "CANCELED"


async def test_cancelling_what_has_ended_cancels_nothing(server: Application) -> None:
    """W98: known, but 0 (D16)."""
    message_id = await server.accepted()
    await server.logged(message_id, "DELIVERED")

    reply = await server.ask("DELETE", f"/v2/messages/{message_id}")

    assert (reply.status, reply.json) == (200, {"cancelled": 0})


async def test_of_cancels_at_the_same_moment_one_counts(server: Application) -> None:
    """W98."""
    message_id = await server.accepted(header={"Upstash-Delay": "1h"})

    replies = await asyncio.gather(
        *(server.ask("DELETE", f"/v2/messages/{message_id}") for _ in range(10))
    )

    assert sum(reply.json["cancelled"] for reply in replies) == 1
    assert (await server.states(message_id)).count("CANCELED") == 1


async def test_a_cancelled_message_frees_its_queue(server: Application) -> None:
    """W98, W78."""
    path = f"/v2/enqueue/q/{server.receiver.url}"
    server.receiver.answers(500)
    first = await server.ask("POST", path, body=b"first")
    await server.logged(first.json["messageId"], "RETRY")
    server.receiver.answers(200)
    second = await server.ask("POST", path, body=b"second")
    await server.ask("DELETE", f"/v2/messages/{first.json['messageId']}")

    await server.logged(second.json["messageId"], "DELIVERED")


async def test_every_development_user_has_messages_of_its_own() -> None:
    """W217, W220: the same deduplication id means nothing to another user."""
    async with serving() as server:
        found = set()
        for user in DEV_USERS:
            reply = await server.publish(
                header={"Upstash-Deduplication-Id": "same"}, token=user.token
            )
            assert reply.status == 200
            found.add(reply.json["messageId"])
        assert len(found) == len(DEV_USERS)
