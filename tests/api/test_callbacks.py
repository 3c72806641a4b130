"""Callbacks, seen by whoever is called back (contract section 5)."""

import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import qstash

from tests.api.test_delivery import FIRST_WAIT_MS, USER, claims_of, delivered
from tests.support.application import (
    HOUR,
    MINUTE,
    SECOND,
    T0,
    Application,
    Received,
    Receiver,
    receiving,
    serving,
    until,
)
from waypost.domain.dev_users import DEV_USERS


@pytest_asyncio.fixture
async def told() -> AsyncIterator[Receiver]:
    """Who is called back; messages themselves go to the receiver of the server."""
    async with receiving() as receiver:
        yield receiver
        receiver.let_go()


def said(received: Received) -> dict[str, Any]:
    """What a callback says."""
    found: dict[str, Any] = json.loads(received.body)
    return found


def text(encoded: str) -> str:
    return base64.b64decode(encoded).decode()


async def made_after(server: Application, message_id: str) -> list[str]:
    """The ids of what was accepted after a message, its callbacks among it."""
    log = reversed(await server.log())
    created = [one["messageId"] for one in log if one["state"] == "CREATED"]
    return created[created.index(message_id) + 1 :]


# What is told, and when.


async def test_a_success_is_told_of(server: Application, told: Receiver) -> None:
    """W195, W198: the whole of it, as documented, and bodies in base64."""
    server.receiver.answers(201, b"\xffdone\r\n", header={"X-Answer": "yes", "Content-Type": "a/b"})
    message_id = await server.accepted(
        header={
            "Content-Type": "text/plain",
            "Upstash-Forward-X-Own": "é",
            "Upstash-Method": "PUT",
            "Upstash-Retries": "5",
            "Upstash-Callback": told.url,
        },
        body=b"\x00hello",
    )

    received = await told.only()
    assert received.method == "POST"
    assert received.header["Content-Type"] == "application/json"
    assert received.header["Upstash-Message-Id"] != message_id
    assert received.header["Upstash-Retried"] == "0"
    answer = said(received)
    assert answer.pop("header").items() >= {"X-Answer": ["yes"], "Content-Type": ["a/b"]}.items()
    assert answer == {
        "status": 201,
        "body": base64.b64encode(b"\xffdone\r\n").decode(),
        "retried": 0,
        "maxRetries": 5,
        "sourceMessageId": message_id,
        "url": server.receiver.url,
        "method": "PUT",
        "sourceHeader": {"Content-Type": ["text/plain"], "X-Own": ["é"]},
        "sourceBody": base64.b64encode(b"\x00hello").decode(),
        "notBefore": T0,
        "createdAt": T0,
        "callerIP": "127.0.0.1",
    }


async def test_the_callback_of_a_delayed_message_says_when_it_was_to_go(
    server: Application, told: Receiver
) -> None:
    """W198: and when it was accepted."""
    await server.accepted(header={"Upstash-Callback": told.url, "Upstash-Delay": "1m"})
    server.clock.advance(MINUTE)

    answer = said(await told.only())

    assert (answer["createdAt"], answer["notBefore"]) == (T0, T0 + MINUTE)


async def test_a_callback_is_a_message_like_any_other(server: Application, told: Receiver) -> None:
    """W195: it can be read, is in the log, and shows what it says."""
    message_id = await server.accepted(header={"Upstash-Callback": told.url})
    received = await told.only()
    callback_id = received.header["Upstash-Message-Id"]
    assert await server.logged(callback_id, "DELIVERED") == ["CREATED", "ACTIVE", "DELIVERED"]
    assert await server.states(message_id) == ["CREATED", "ACTIVE", "DELIVERED"]

    shown = await server.message(callback_id)

    assert (shown["url"], shown["method"], shown["maxRetries"]) == (told.url, "POST", 3)
    assert shown["header"] == {"Content-Type": ["application/json"]}
    assert shown["body"].encode() == received.body
    [entry, *_] = await server.log(callback_id)
    assert base64.b64decode(entry["body"]) == received.body


async def test_every_attempt_is_told_of(server: Application, told: Receiver) -> None:
    """W196: those that failed, and the one that did not."""
    server.receiver.answers_once(500, b"one")
    server.receiver.answers_once(404, b"two")
    message_id = await server.accepted(
        header={"Upstash-Callback": told.url, "Upstash-Retry-Delay": "1000"}
    )
    for number in (1, 2):
        await server.logged(message_id, "RETRY", times=number)
        await told.first(number)
        server.clock.advance(SECOND)
    await server.logged(message_id, "DELIVERED")

    answers = [said(one) for one in await told.first(3)]

    assert [(one["status"], text(one["body"]), one["retried"]) for one in answers] == [
        (500, "one", 0),
        (404, "two", 1),
        (200, "", 2),
    ]
    assert {one["sourceMessageId"] for one in answers} == {message_id}
    assert len({one.header["Upstash-Message-Id"] for one in await told.first(3)}) == 3


async def test_a_failure_is_told_once_with_its_dead_letter(
    server: Application, told: Receiver
) -> None:
    """W197: when the retries are used up, and not before."""
    server.receiver.answers(503, b"busy")
    message_id = await server.accepted(
        header={
            "Upstash-Failure-Callback": told.url,
            "Upstash-Retries": "1",
            "Upstash-Retry-Delay": "1000",
        }
    )
    await server.logged(message_id, "RETRY")
    await delivered_elsewhere(server, told)
    server.clock.advance(SECOND)
    dead = await server.dead_letter(message_id)

    received = (await told.first(2))[1]

    answer = said(received)
    assert answer["dlqId"] == dead["dlqId"]
    assert (answer["status"], answer["retried"], answer["maxRetries"]) == (503, 1, 1)
    assert text(answer["body"]) == "busy"
    assert answer["sourceMessageId"] == message_id


async def delivered_elsewhere(server: Application, told: Receiver) -> None:
    """Let the server look at what is due, by having it deliver to who is called back."""
    await server.logged(await server.accepted(told.url), "DELIVERED")


async def test_both_callbacks_are_made_of_the_last_attempt(
    server: Application, told: Receiver
) -> None:
    """W194, W196, W197: an answer of 489 ends it at once."""
    server.receiver.answers(489, b"never", header={"Upstash-NonRetryable-Error": "true"})
    message_id = await server.accepted(
        header={
            "Upstash-Callback": told.url + "/each",
            "Upstash-Failure-Callback": told.url + "/failed",
        }
    )
    dead = await server.dead_letter(message_id)
    assert await server.states(message_id) == ["CREATED", "ACTIVE", "ERROR", "FAILED"]

    answers = {one.target: said(one) for one in await told.first(2)}

    assert set(answers) == {"/hook/each", "/hook/failed"}
    assert {one["status"] for one in answers.values()} == {489}
    assert answers["/hook/failed"]["dlqId"] == dead["dlqId"]
    assert "dlqId" not in answers["/hook/each"]


async def test_a_network_fault_is_told_as_status_0(server: Application, told: Receiver) -> None:
    """W196: D14; its text is the body."""
    async with receiving() as gone:
        url = gone.url
    message_id = await server.accepted(url, header={"Upstash-Callback": told.url})

    answer = said(await told.only())

    assert (answer["status"], answer["header"]) == (0, {})
    assert "cannot connect" in text(answer["body"])
    [error] = [one for one in await server.log(message_id) if one["state"] == "ERROR"]
    assert error["error"] == text(answer["body"])


async def test_a_message_that_is_delivered_has_no_failure_to_tell(
    server: Application, told: Receiver
) -> None:
    """W197."""
    message_id = await server.accepted(header={"Upstash-Failure-Callback": told.url})

    await server.logged(message_id, "DELIVERED")

    assert await made_after(server, message_id) == []


# How it is told.


async def test_a_callback_is_signed_for_its_own_url(server: Application, told: Receiver) -> None:
    """W199."""
    url = f"{told.url}?of=1"
    await server.accepted(header={"Upstash-Callback": url})

    received = await told.only()

    claims = claims_of(received)
    assert claims["sub"] == url
    assert received.target == "/hook?of=1"


async def test_the_sdks_receiver_verifies_a_callback(told: Receiver) -> None:
    """W199: at a moment of now, for the SDK looks at the clock."""
    async with serving(now_ms=time.time_ns() // 1_000_000) as server:
        await server.accepted(header={"Upstash-Callback": told.url})
        received = await told.only()

        qstash.Receiver(USER.current, USER.next).verify(
            signature=received.header["Upstash-Signature"],
            body=received.body.decode(),
            url=told.url,
        )


@pytest.mark.parametrize("prefix", ["Upstash-Callback", "Upstash-Failure-Callback"])
async def test_a_callback_is_configured(server: Application, told: Receiver, prefix: str) -> None:
    """W96, W200: and what it is configured with is shown."""
    server.receiver.answers(500)
    message_id = await server.accepted(
        header={
            "Upstash-Retries": "0",
            prefix: told.url,
            f"{prefix}-Method": "PUT",
            f"{prefix}-Timeout": "7s",
            f"{prefix}-Retries": "9",
            f"{prefix}-Retry-Delay": "5000",
            f"{prefix}-Label": "told, twice",
            f"{prefix}-Forward-X-Own": "mine",
            f"{prefix}-Forward-Content-Type": "application/vnd.told+json",
            f"{prefix}-Forward-Upstash-Signature": "forged",
        }
    )

    received = await told.only()

    assert received.method == "PUT"
    assert received.header["X-Own"] == "mine"
    assert received.header.getall("Content-Type") == ["application/vnd.told+json"]
    assert received.header.getall("Upstash-Signature") != ["forged"]
    callback_id = received.header["Upstash-Message-Id"]
    shown = await server.message(callback_id)
    assert (shown["maxRetries"], shown["retryDelayExpression"]) == (9, "5000")
    assert shown["labels"] == ["told", "twice"]
    assert (await server.log(callback_id))[0]["timeout"] == 7_000

    name = "callback" if prefix == "Upstash-Callback" else "failureCallback"
    own = {"X-Own": ["mine"], "Content-Type": ["application/vnd.told+json"]}
    source = await server.message(message_id)
    assert (source[name], source[f"{name}Header"]) == (told.url, own)
    [entry, *_] = await server.log(message_id)
    assert (entry[name], entry[f"{name}Headers"]) == (told.url, own)
    dead = await server.dead_letter(message_id)
    assert (dead[name], dead[f"{name}Header"]) == (told.url, own)


async def test_a_message_without_callbacks_shows_none(server: Application) -> None:
    """W94: absent, and not null."""
    shown = await server.message(await server.accepted())

    assert not [name for name in shown if "allback" in name or name in {"api", "topicName"}]


async def test_a_callback_has_the_retries_of_its_message(
    server: Application, told: Receiver
) -> None:
    """W201."""
    await server.accepted(header={"Upstash-Callback": told.url, "Upstash-Retries": "7"})

    received = await told.only()

    assert (await server.message(received.header["Upstash-Message-Id"]))["maxRetries"] == 7


async def test_each_of_two_callbacks_has_its_own_options(
    server: Application, told: Receiver
) -> None:
    """W200, W201: and what one of them says is nothing to the other."""
    server.receiver.answers(500)
    await server.accepted(
        header={
            "Upstash-Retries": "0",
            "Upstash-Callback": f"{told.url}/each",
            "Upstash-Callback-Retries": "9",
            "Upstash-Callback-Timeout": "7s",
            "Upstash-Callback-Forward-X": "each",
            "Upstash-Failure-Callback": f"{told.url}/last",
            "Upstash-Failure-Callback-Method": "PUT",
        }
    )

    each, last = sorted(await told.first(2), key=lambda request: request.target)

    assert (each.method, each.header.get("X")) == ("POST", "each")
    assert (last.method, last.header.get("X")) == ("PUT", None)
    for request, retries, timeout_ms in ((each, 9, 7_000), (last, 0, 900_000)):
        [entry, *_] = await server.log(request.header["Upstash-Message-Id"])
        assert (entry["maxRetries"], entry["timeout"]) == (retries, timeout_ms)


async def test_a_callback_that_fails_is_retried_and_ends_as_a_dead_letter(
    server: Application, told: Receiver
) -> None:
    """W202: by itself; the message has long been delivered, and nobody is told of it (D25)."""
    told.answers(500, b"not now")
    message_id = await server.accepted(
        header={
            "Upstash-Callback": told.url,
            "Upstash-Failure-Callback": told.url + "/never",
            "Upstash-Callback-Retries": "1",
        }
    )
    callback_id = (await told.only()).header["Upstash-Message-Id"]
    await server.logged(callback_id, "RETRY")
    server.clock.advance(FIRST_WAIT_MS)
    dead = await server.dead_letter(callback_id)

    first, second = told.received
    assert first.body == second.body
    assert [one.header["Upstash-Retried"] for one in (first, second)] == ["0", "1"]
    assert dead["url"] == told.url
    assert dead["body"].encode() == first.body
    assert dead["responseBody"] == "not now"
    assert "callback" not in dead
    assert await server.states(message_id) == ["CREATED", "ACTIVE", "DELIVERED"]


async def test_a_callback_can_be_put_off(server: Application, told: Receiver) -> None:
    """W200: from the end of the attempt."""
    message_id = await server.accepted(
        header={"Upstash-Callback": told.url, "Upstash-Callback-Delay": "1h"}
    )
    await server.logged(message_id, "DELIVERED")
    [callback_id] = await made_after(server, message_id)
    assert (await server.message(callback_id))["notBefore"] == T0 + HOUR
    await delivered(server)
    assert told.received == []

    server.clock.advance(HOUR)

    assert (await told.only()).header["Upstash-Message-Id"] == callback_id


async def test_query_parameters_configure_callbacks(server: Application, told: Receiver) -> None:
    """W28, W200: D3."""
    query = f"upstash-callback={told.url}&upstash-callback-method=PATCH&keep=1"
    await server.accepted(f"{server.receiver.url}?{query}")

    received = await told.only()

    assert received.method == "PATCH"
    assert said(received)["url"] == f"{server.receiver.url}?keep=1"


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("Upstash-Callback", "example.com", "endpoint has invalid scheme"),
        ("Upstash-Failure-Callback", "ftp://example.com/", "endpoint has invalid scheme"),
        ("Upstash-Callback", "http://192.168.0.1/", "egress policy"),
        ("Upstash-Failure-Callback", "http://10.0.0.1/", "egress policy"),
        ("Upstash-Callback-Retries", "three", "not a whole number"),
        ("Upstash-Callback-Method", "TRACE", "none of GET"),
        ("Upstash-Callback-Callback", "https://example.com/", "a callback has none"),
    ],
)
async def test_a_mistake_is_named_by_its_header(
    server: Application, name: str, value: str, fault: str
) -> None:
    """W5: and nothing was accepted."""
    header = {name: value}
    if name not in {"Upstash-Callback", "Upstash-Failure-Callback"}:
        header["Upstash-Callback"] = "https://example.com/"

    reply = await server.publish(header=header)

    assert reply.status == 400
    assert reply.json["error"].startswith(f"{name}: {fault}"), reply.json
    assert await server.log() == []


# Queues, and cancelling.


async def test_a_queue_waits_for_the_callbacks_of_its_message(
    server: Application, told: Receiver
) -> None:
    """W79: D24, also through the retries of the callback."""
    told.answers_once(500)
    header = {"Upstash-Queue-Name": "mail"}
    first = await server.accepted(header={**header, "Upstash-Callback": told.url})
    second = await server.accepted(header=header, body=b"second")
    await server.logged(first, "DELIVERED")
    callback_id = (await told.only()).header["Upstash-Message-Id"]
    await server.logged(callback_id, "RETRY")
    await delivered(server)
    assert await server.states(second) == ["CREATED"]

    server.clock.advance(FIRST_WAIT_MS)
    await server.logged(second, "DELIVERED")

    assert (await server.logged(callback_id, "DELIVERED"))[-1] == "DELIVERED"
    moments = {
        (one["messageId"], one["state"]): number
        for number, one in enumerate(reversed(await server.log()))
    }
    assert moments[callback_id, "DELIVERED"] < moments[second, "ACTIVE"]


async def test_a_queue_waits_for_the_failure_callback_too(
    server: Application, told: Receiver
) -> None:
    """W79, W197: and goes on when that has failed itself."""
    server.receiver.answers_once(500)
    told.hold()
    header = {"Upstash-Queue-Name": "mail"}
    first = await server.accepted(
        header={
            **header,
            "Upstash-Retries": "0",
            "Upstash-Failure-Callback": told.url,
        }
    )
    second = await server.accepted(header=header, body=b"second")
    await server.logged(first, "FAILED")
    await told.only()
    await delivered(server)
    assert await server.states(second) == ["CREATED"]

    told.answers(500)
    told.let_go()

    await server.logged(second, "DELIVERED")
    callback_id = told.received[0].header["Upstash-Message-Id"]
    assert (await server.states(callback_id))[-1] == "FAILED"


async def test_a_callback_that_names_a_queue_is_not_waited_for(
    server: Application, told: Receiver
) -> None:
    """W79: D24."""
    told.hold()
    header = {"Upstash-Queue-Name": "mail"}
    await server.accepted(
        header={**header, "Upstash-Callback": told.url, "Upstash-Callback-Queue-Name": "told"}
    )
    second = await server.accepted(header=header, body=b"second")
    callback_id = (await told.only()).header["Upstash-Message-Id"]

    await server.logged(second, "DELIVERED")

    assert await server.states(callback_id) == ["CREATED", "ACTIVE"]
    assert (await server.message(callback_id))["queueName"] == "told"


async def test_a_callback_that_is_put_off_holds_the_place_of_its_message(
    server: Application, told: Receiver
) -> None:
    """W79: D24."""
    header = {"Upstash-Queue-Name": "mail"}
    first = await server.accepted(
        header={**header, "Upstash-Callback": told.url, "Upstash-Callback-Delay": "1h"}
    )
    second = await server.accepted(header=header, body=b"second")
    await server.logged(first, "DELIVERED")
    await delivered(server)
    assert await server.states(second) == ["CREATED"]

    server.clock.advance(HOUR)

    await server.logged(second, "DELIVERED")
    assert len(told.received) == 1


async def test_a_message_cancelled_in_flight_has_its_callback_and_no_failure_callback(
    server: Application, told: Receiver
) -> None:
    """W97, W196: D16."""
    server.receiver.hold()
    server.receiver.answers(500, b"no")
    message_id = await server.accepted(
        header={
            "Upstash-Retries": "0",
            "Upstash-Callback": told.url + "/each",
            "Upstash-Failure-Callback": told.url + "/failed",
        }
    )
    await server.receiver.only()
    reply = await server.ask("DELETE", f"/v2/messages/{message_id}")
    assert reply.json == {"cancelled": 1}
    server.receiver.let_go()
    await server.logged(message_id, "CANCELED")
    received = await told.only()
    await server.logged(received.header["Upstash-Message-Id"], "DELIVERED")

    assert received.target == "/hook/each"
    assert said(received)["status"] == 500
    assert len(await made_after(server, message_id)) == 1
    assert (await server.ask("GET", "/v2/dlq")).json["messages"] == []


async def test_a_waiting_callback_can_be_cancelled_and_lets_its_queue_go(
    server: Application, told: Receiver
) -> None:
    """W79, W97: D24; the place is free when the last that it was kept for has ended."""
    header = {"Upstash-Queue-Name": "mail"}
    first = await server.accepted(
        header={**header, "Upstash-Callback": told.url, "Upstash-Callback-Delay": "1h"}
    )
    second = await server.accepted(header=header, body=b"second")
    await server.logged(first, "DELIVERED")
    [callback_id] = set(await made_after(server, first)) - {second}

    reply = await server.ask("DELETE", f"/v2/messages/{callback_id}")

    assert reply.json == {"cancelled": 1}
    await server.logged(second, "DELIVERED")
    assert told.received == []


async def test_other_tenants_see_nothing_of_a_callback(server: Application, told: Receiver) -> None:
    """W195: it is its publisher's."""
    await server.accepted(header={"Upstash-Callback": told.url})
    callback_id = (await told.only()).header["Upstash-Message-Id"]

    async def seen() -> bool | None:
        return (await server.ask("GET", f"/v2/messages/{callback_id}")).status == 200 or None

    assert await until(seen)
    reply = await server.ask("GET", f"/v2/messages/{callback_id}", token=DEV_USERS[1].token)
    assert reply.status == 404
