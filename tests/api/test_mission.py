"""The two mission documents, claim by claim, through both of their doors.

What is said of publishing is said of enqueueing too, so each claim is tried at
`/v2/publish/{destination}` and at `/v2/enqueue/{queueName}/{destination}`.
docs/compatibility.md names the claim that each test shows.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from msgspec import structs

from tests.support.application import (
    HOUR,
    MINUTE,
    SECOND,
    SETTINGS,
    T0,
    Application,
    Fields,
    Receiver,
    Reply,
    receiving,
    serving,
)
from tests.support.llm_server import KEY, llm_server

DAY = 24 * HOUR
FAR = {"Upstash-Delay": "1d"}
"""For what is only to be accepted: its destination is never called."""


@pytest_asyncio.fixture
async def told() -> AsyncIterator[Receiver]:
    """Who is called back."""
    async with receiving() as receiver:
        yield receiver


class Door:
    """One of the two ways in."""

    def __init__(self, server: Application, path: str) -> None:
        self.server = server
        self.path = path

    async def ask(
        self, destination: str = "", *, header: Fields = (), body: bytes = b"hello"
    ) -> Reply:
        path = self.path + (destination or self.server.receiver.url)
        return await self.server.ask("POST", path, header=header, body=body)

    async def accepted(
        self, destination: str = "", *, header: Fields = (), body: bytes = b"hello"
    ) -> str:
        """Send in what must be accepted; its id."""
        reply = await self.ask(destination, header=header, body=body)
        assert reply.status == 200, reply
        return str(reply.json["messageId"])

    async def shown(self, *, header: Fields) -> dict[str, Any]:
        """Send in what must be accepted; how it is shown."""
        return await self.server.message(await self.accepted(header=header))


@pytest.fixture(params=["/v2/publish/", "/v2/enqueue/mission/"], ids=["publish", "enqueue"])
def door(request: pytest.FixtureRequest, server: Application) -> Door:
    return Door(server, request.param)


async def group(server: Application, *urls: str) -> str:
    """Make the group `news`; its id."""
    body = json.dumps({"endpoints": [{"url": url} for url in urls]}).encode()
    reply = await server.ask("POST", "/v2/topics/news/endpoints", body=body)
    return str(reply.json["topicId"])


# Where to.


async def test_a_url_is_answered_with_a_single_object(door: Door) -> None:
    """W14, W75: and the message is delivered to it, as a POST and with its body as it is."""
    reply = await door.ask(body=bytes(range(256)))

    assert reply.status == 200
    assert list(reply.json) == ["messageId"]
    received = await door.server.receiver.only()
    assert (received.method, received.body) == ("POST", bytes(range(256)))
    assert received.header["Upstash-Message-Id"] == reply.json["messageId"]


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_url_begins_with_http_or_https(door: Door, scheme: str) -> None:
    """W30."""
    await door.accepted(f"{scheme}://example.com/a", header=FAR)

    for wrong in ("example.com/a", f"x{scheme}://example.com/a", f"{scheme}:example.com/a"):
        refused = await door.ask(wrong, header=FAR)
        assert refused.status == 400
        assert "http" in refused.json["error"]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_group_is_answered_with_an_array_by_name_and_by_id(door: Door, count: int) -> None:
    """W77, W90: an element for each URL of it, in order, also if there is only one."""
    urls = [f"{door.server.receiver.url}/{number}" for number in range(count)]
    topic_id = await group(door.server, *urls)

    for destination in ("news", topic_id):
        reply = await door.ask(destination)
        assert reply.status == 200
        assert [list(one) for one in reply.json] == [["messageId", "url"]] * count
        assert [one["url"] for one in reply.json] == urls
        assert len({one["messageId"] for one in reply.json}) == count

    received = await door.server.receiver.first(2 * count)
    assert sorted(one.target for one in received) == sorted(
        f"/hook/{number}" for number in range(count) for _ in ("by name", "by id")
    )


@pytest.mark.parametrize("path", ["/v2/publish/", "/v2/enqueue/mission/"])
async def test_an_api_is_answered_with_a_single_object_and_needs_a_callback(
    told: Receiver, path: str
) -> None:
    """W32, W230."""
    async with (
        llm_server() as llm,
        serving(structs.replace(SETTINGS, llm_base_url=llm.url, llm_api_key=KEY)) as server,
    ):
        door = Door(server, path)
        header = {"Upstash-Callback": told.url, "Upstash-Deduplication-Id": "asked"}
        question = b'{"model": "m", "messages": []}'

        first = await door.ask("api/llm", header=header, body=question)
        again = await door.ask("api/llm", header=header, body=question)
        without = await door.ask("api/llm", body=question)

        assert (first.status, list(first.json)) == (200, ["messageId"])
        assert (again.status, again.json) == (202, {**first.json, "deduplicated": True})
        assert without.status == 400
        assert "Upstash-Callback" in without.json["error"]
        assert json.loads((await told.only()).body)["status"] == 200
        assert [asked.body for asked in llm.asked] == [question]


async def test_a_queue_that_is_not_there_is_made(server: Application) -> None:
    """W75."""
    assert (await server.ask("GET", "/v2/queues/mission")).status == 404

    message_id = await Door(server, "/v2/enqueue/mission/").accepted(header=FAR)

    assert (await server.message(message_id))["queueName"] == "mission"
    assert (await server.ask("GET", "/v2/queues/mission")).json["name"] == "mission"


# What is sent.


@pytest.mark.parametrize(
    "kind", ["application/json", "application/xml", "application/octet-stream", "text/plain"]
)
async def test_a_content_type_is_passed_on(door: Door, kind: str) -> None:
    """W18."""
    await door.accepted(header={"Content-Type": kind})

    assert (await door.server.receiver.only()).header.getall("Content-Type") == [kind]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_a_method_is_the_one_that_was_asked_for(door: Door, method: str) -> None:
    """W34, W36."""
    await door.accepted(header={"Upstash-Method": method})

    assert (await door.server.receiver.only()).method == method


async def test_a_forwarded_header_loses_its_prefix(door: Door) -> None:
    """W20."""
    await door.accepted(header={"Upstash-Forward-My-Header": "my-value", "Not-Asked": "for"})

    received = await door.server.receiver.only()
    assert received.header["My-Header"] == "my-value"
    assert not {"Upstash-Forward-My-Header", "Not-Asked"} & set(received.header)


# How long, how often, and when.


@pytest.mark.parametrize(
    ("asked", "timeout_ms"), [("1s", SECOND), ("5m", 5 * MINUTE), ("2h", 2 * HOUR)]
)
async def test_a_timeout_shortens_the_default(door: Door, asked: str, timeout_ms: int) -> None:
    """W48: seconds, minutes, hours."""
    message_id = await door.accepted(header={"Upstash-Timeout": asked} | FAR)
    other_id = await door.accepted(header=FAR)

    [entry] = await door.server.log(message_id)
    [other] = await door.server.log(other_id)
    assert (entry["timeout"], other["timeout"]) == (timeout_ms, SETTINGS.timeout_ms_default)


async def test_an_endpoint_that_takes_longer_than_the_timeout_has_failed(door: Door) -> None:
    """W49."""
    door.server.receiver.hold()
    message_id = await door.accepted(header={"Upstash-Timeout": "1s", "Upstash-Retries": "0"})

    assert (await door.server.dead_letter(message_id))["responseStatus"] == 0


@pytest.mark.parametrize(
    ("header", "retries"),
    [
        ({}, 3),
        ({"Upstash-Retries": ""}, 3),
        ({"Upstash-Retries": "0"}, 0),
        ({"Upstash-Retries": "5"}, 5),
    ],
    ids=["not said", "left empty", "none", "five"],
)
async def test_deliveries_are_one_more_than_retries_and_each_wait_is_the_formulas(
    door: Door, header: dict[str, str], retries: int
) -> None:
    """W37, W38, W187: min(86400, e ** (2 * n)) seconds before the n-th retry."""
    server = door.server
    server.receiver.answers(503)
    message_id = await door.accepted(header=header)

    waits_ms = []
    for number in range(1, retries + 1):
        states = await server.logged(message_id, "RETRY", times=number)
        assert states[-1] == "RETRY"
        due_ms = (await server.log(message_id))[0]["nextDeliveryTime"]
        waits_ms.append(due_ms - server.clock.now_ms())
        server.clock.advance(waits_ms[-1])
    await server.dead_letter(message_id)

    assert waits_ms == [7_389, 54_598, 403_429, 2_980_958, 22_026_466][:retries]
    retried = [one.header["Upstash-Retried"] for one in server.receiver.received]
    assert retried == [str(number) for number in range(retries + 1)]


@pytest.mark.parametrize(
    ("delay", "wait_ms"),
    [("10s", 10_000), ("50s", 50_000), ("3m", 3 * MINUTE), ("10h", 10 * HOUR), ("1d", DAY)],
)
async def test_a_delay_is_a_number_and_a_unit(door: Door, delay: str, wait_ms: int) -> None:
    """W41."""
    message_id = await door.accepted(header={"Upstash-Delay": delay})
    assert (await door.server.message(message_id))["notBefore"] == T0 + wait_ms

    door.server.clock.advance(wait_ms)

    await door.server.logged(message_id, "DELIVERED")


@pytest.mark.parametrize("more", [{}, {"Upstash-Delay": "10h"}], ids=["alone", "with a delay"])
async def test_not_before_is_a_moment_in_seconds_and_beats_a_delay(
    door: Door, more: dict[str, str]
) -> None:
    """W45, W46."""
    at_s = T0 // 1000 + 60
    message_id = await door.accepted(header={"Upstash-Not-Before": str(at_s), **more})
    assert (await door.server.message(message_id))["notBefore"] == at_s * 1000

    door.server.clock.advance(MINUTE)

    await door.server.logged(message_id, "DELIVERED")


async def test_milliseconds_for_not_before_are_refused_with_the_unit(door: Door) -> None:
    """W47: a common mistake."""
    reply = await door.ask(header={"Upstash-Not-Before": str(T0 + MINUTE)})

    assert reply.status == 400
    assert reply.json["error"].startswith("Upstash-Not-Before: not in seconds")


# Being told.


@pytest.mark.parametrize("name", ["Upstash-Callback", "Upstash-Failure-Callback"])
@pytest.mark.parametrize("url", ["example.com/told", "ftp://example.com/told", "told"])
async def test_a_callback_url_begins_with_http_or_https(door: Door, name: str, url: str) -> None:
    """W5, W195."""
    reply = await door.ask(header={name: url})

    assert reply.status == 400
    assert reply.json["error"].startswith(f"{name}: ")
    assert "http:// or https://" in reply.json["error"]


async def test_a_callback_follows_each_attempt_and_a_failure_callback_the_last(
    door: Door, told: Receiver
) -> None:
    """W195-W197: both of the last one."""
    server = door.server
    server.receiver.answers(503, b"busy")
    message_id = await door.accepted(
        header={
            "Upstash-Retries": "1",
            "Upstash-Retry-Delay": "1000",
            "Upstash-Callback": f"{told.url}/each",
            "Upstash-Failure-Callback": f"{told.url}/last",
        }
    )
    await server.logged(message_id, "RETRY")
    assert [one.target for one in await told.first(1)] == ["/hook/each"]
    server.clock.advance(SECOND)
    await server.dead_letter(message_id)

    received = await told.first(3)

    assert sorted(one.target for one in received) == ["/hook/each", "/hook/each", "/hook/last"]
    answers = [json.loads(one.body) for one in received]
    assert {(one["status"], one["sourceMessageId"]) for one in answers} == {(503, message_id)}


async def test_a_delivery_that_succeeds_has_a_callback_and_no_failure_callback(
    door: Door, told: Receiver
) -> None:
    """W195, W197."""
    header = {
        "Upstash-Callback": f"{told.url}/each",
        "Upstash-Failure-Callback": f"{told.url}/last",
    }
    await door.accepted(header=header)
    await door.accepted(header=header)

    assert [one.target for one in await told.first(2)] == ["/hook/each"] * 2


@pytest.mark.parametrize("prefix", ["Upstash-Callback", "Upstash-Failure-Callback"])
async def test_a_callback_is_a_message_with_options_and_headers_of_its_own(
    door: Door, told: Receiver, prefix: str
) -> None:
    """W200: its retries, its timeout and its delay; a forwarded header loses its prefix."""
    server = door.server
    server.receiver.answers(500)
    await door.accepted(
        header={
            "Upstash-Retries": "0",
            prefix: told.url,
            f"{prefix}-Retries": "4",
            f"{prefix}-Timeout": "9s",
            f"{prefix}-Delay": "1m",
            f"{prefix}-Forward-My-Header": "my-value",
        }
    )

    async def callback() -> dict[str, Any]:
        [one] = [one for one in await server.log() if one["url"] == told.url]
        return one

    await server.logged((await server.log())[-1]["messageId"], "FAILED")
    made = await callback()
    assert (made["state"], made["maxRetries"], made["timeout"]) == ("CREATED", 4, 9 * SECOND)
    assert told.received == []
    server.clock.advance(MINUTE)

    received = await told.only()
    assert received.header["Upstash-Message-Id"] == made["messageId"]
    assert received.header["My-Header"] == "my-value"
    assert not [name for name in received.header if "Forward" in name]


@pytest.mark.parametrize("prefix", ["Upstash-Callback", "Upstash-Failure-Callback"])
async def test_a_callback_has_the_retries_of_its_message_where_it_says_nothing(
    door: Door, told: Receiver, prefix: str
) -> None:
    """W201."""
    door.server.receiver.answers(500)
    told.answers(500)
    await door.accepted(
        header={prefix: told.url, "Upstash-Retries": "1", "Upstash-Retry-Delay": "1000"}
    )
    await door.server.logged((await door.server.log())[-1]["messageId"], "RETRY")
    door.server.clock.advance(SECOND)

    callback_id = (await told.only()).header["Upstash-Message-Id"]
    assert (await door.server.message(callback_id))["maxRetries"] == 1


# Once.


async def test_of_one_deduplication_id_one_message_is_accepted(door: Door) -> None:
    """W51: the answer has the id of the first, and says that this one was not sent."""
    header = {"Upstash-Deduplication-Id": "once"}

    first = await door.ask(header=header, body=b"first")
    again = await door.ask(header=header, body=b"again")
    other = await door.ask(header={"Upstash-Deduplication-Id": "twice"}, body=b"other")

    assert again.json == {"messageId": first.json["messageId"], "deduplicated": True}
    assert other.json["messageId"] != first.json["messageId"]
    assert [one.body for one in await door.server.receiver.first(2)] == [b"first", b"other"]


async def test_content_is_the_destination_the_body_and_the_headers(door: Door) -> None:
    """W54, W56."""
    url, truth = door.server.receiver.url, {"Upstash-Content-Based-Deduplication": "true"} | FAR
    first = await door.accepted(url, header=truth)

    same = await door.ask(url, header=truth)
    assert same.json == {"messageId": first, "deduplicated": True}
    for differs in (
        await door.ask(f"{url}/elsewhere", header=truth),
        await door.ask(url, header=truth, body=b"something else"),
        await door.ask(url, header={"Upstash-Forward-My-Header": "my-value", **truth}),
        await door.ask(url, header={"Content-Type": "text/plain", **truth}),
        await door.ask(url, header={"Upstash-Deduplication-Id": "its own", **truth}),
        await door.ask(url, header=FAR),
    ):
        assert (differs.status, list(differs.json)) == (200, ["messageId"])


async def test_duplicates_in_a_group_are_marked_one_by_one(door: Door) -> None:
    """W51, W90."""
    await group(door.server, "https://a.example", "https://b.example")
    for header in (
        {"Upstash-Deduplication-Id": "once"} | FAR,
        {"Upstash-Content-Based-Deduplication": "true"} | FAR,
    ):
        first = await door.ask("news", header=header)
        again = await door.ask("news", header=header)

        assert (first.status, again.status) == (200, 202)
        assert again.json == [{**one, "deduplicated": True} for one in first.json]
