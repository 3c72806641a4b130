"""Batches, over HTTP (contract section 3)."""

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec import structs

from tests.support.application import MINUTE, SETTINGS, T0, Application, Reply, serving
from waypost.domain.dev_users import DEV_USERS


async def send(server: Application, items: Sequence[Any], **more: Any) -> Reply:
    return await server.ask("POST", "/v2/batch", body=json.dumps(items).encode(), **more)


async def accepted(server: Application, *items: Any) -> list[Any]:
    reply = await send(server, items)
    assert reply.status == 200, reply
    return list(reply.json)


async def group_of(server: Application, name: str, *urls: str) -> None:
    endpoints = [{"url": url, "name": f"n{at}"} for at, url in enumerate(urls)]
    body = json.dumps({"endpoints": endpoints}).encode()
    reply = await server.ask("POST", f"/v2/topics/{name}/endpoints", body=body)
    assert reply.status == 200, reply


async def nothing_was_accepted(server: Application) -> bool:
    return not await server.log() and (await server.ask("GET", "/v2/queues")).json == []


async def test_answers_come_in_the_order_of_the_items(server: Application) -> None:
    """W81."""
    urls = [f"{server.receiver.url}/{at}" for at in range(20)]

    answers = await accepted(server, *[{"destination": url} for url in urls])

    assert [list(answer) for answer in answers] == [["messageId"]] * 20
    messages = [await server.message(answer["messageId"]) for answer in answers]
    assert [message["url"] for message in messages] == urls


async def test_a_single_item_is_answered_in_an_array(server: Application) -> None:
    """W82."""
    [answer] = await accepted(server, {"destination": server.receiver.url})

    assert (await server.message(answer["messageId"]))["url"] == server.receiver.url


async def test_an_empty_batch_is_an_empty_answer(server: Application) -> None:
    assert await accepted(server) == []


async def test_a_group_is_answered_with_an_array_of_its_own(server: Application) -> None:
    """W83, W90-W92: one message to each endpoint, with its URL, in their order."""
    urls = [f"{server.receiver.url}/a", f"{server.receiver.url}/b"]
    await group_of(server, "both", *urls)
    one = {"destination": server.receiver.url}

    answers = await accepted(server, one, {"destination": "both", "body": "x"}, one)

    assert [type(answer) for answer in answers] == [dict, list, dict]
    assert [sent["url"] for sent in answers[1]] == urls
    messages = [await server.message(sent["messageId"]) for sent in answers[1]]
    assert [message["topicName"] for message in messages] == ["both", "both"]
    assert [message["endpointName"] for message in messages] == ["n0", "n1"]
    assert [message["body"] for message in messages] == ["x", "x"]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"queue": None, "body": None, "headers": None},
        {"queue": "", "body": "", "headers": {}},
        {"queue": "", "body": None, "callback": "https://example.com", "unknown": [1]},
    ],
)
async def test_what_is_null_or_empty_is_absent(server: Application, more: dict[str, Any]) -> None:
    """W84: and keys that are unknown are ignored (A44)."""
    [answer] = await accepted(server, {"destination": server.receiver.url, **more})

    message = await server.message(answer["messageId"])
    assert not {"queueName", "body", "callback"} & message.keys()
    assert message["header"] == {}


@pytest.mark.parametrize("spelled", [str.lower, str.upper, str.title])
async def test_names_of_header_fields_are_in_any_case(server: Application, spelled: Any) -> None:
    """W85, W87: each item has its own."""
    fields = {"Content-Type": "text/x", "Upstash-Forward-My-Header": "a", "Upstash-Retries": "2"}

    first, second = await accepted(
        server,
        {
            "destination": server.receiver.url,
            "headers": {spelled(name): value for name, value in fields.items()},
        },
        {"destination": server.receiver.url, "headers": {spelled("Upstash-Delay"): "1m"}},
    )

    message = await server.message(first["messageId"])
    assert message["header"] == {"Content-Type": ["text/x"], "My-Header": ["a"]}
    assert message["maxRetries"] == 2
    message = await server.message(second["messageId"])
    assert message["header"] == {}
    assert (message["maxRetries"], message["notBefore"]) == (3, T0 + MINUTE)


async def test_values_of_header_fields_may_be_lists(server: Application) -> None:
    """W86."""
    headers = {
        "Upstash-Forward-Tag": ["a", "b"],
        "upstash-retries": ["1"],
        "Upstash-Label": ["one", "two,three"],
    }

    [answer] = await accepted(server, {"destination": server.receiver.url, "headers": headers})

    message = await server.message(answer["messageId"])
    assert message["header"] == {"Tag": ["a", "b"]}
    assert message["maxRetries"] == 1
    assert message["labels"] == ["one", "two", "three"]


async def test_header_fields_of_the_request_are_of_no_item(server: Application) -> None:
    """W87."""
    fields = {"Upstash-Retries": "0", "Upstash-Forward-X": "y", "Content-Type": "application/json"}

    reply = await send(server, [{"destination": server.receiver.url}], header=fields)

    message = await server.message(reply.json[0]["messageId"])
    assert (message["maxRetries"], message["header"]) == (3, {})


async def test_a_batch_counts_the_hands_that_it_went_through(server: Application) -> None:
    """D22: a loop through a batch ends too."""
    reply = await send(
        server,
        [{"destination": server.receiver.url}],
        header={"CDN-Loop": "waypost; hops=3"},
    )

    assert reply.status == 200
    assert (await server.receiver.only()).header["CDN-Loop"] == "waypost; hops=4"


async def test_a_body_is_delivered_as_its_utf8_bytes(server: Application) -> None:
    text = "ü\0\U0001f600"

    await accepted(server, {"destination": server.receiver.url, "body": text})

    assert (await server.receiver.only()).body == text.encode()


async def test_an_item_with_a_queue_is_enqueued(server: Application) -> None:
    """W88: and goes in order."""
    bodies = [str(at) for at in range(5)]

    answers = await accepted(
        server,
        *[{"destination": server.receiver.url, "queue": "q", "body": body} for body in bodies],
    )

    received = await server.receiver.first(5)
    assert [request.body.decode() for request in received] == bodies
    assert (await server.message(answers[0]["messageId"]))["queueName"] == "q"


async def test_an_item_for_a_group_with_a_queue_is_enqueued(server: Application) -> None:
    """W88: to each of its endpoints."""
    await group_of(server, "both", f"{server.receiver.url}/a", f"{server.receiver.url}/b")

    [answer] = await accepted(server, {"destination": "both", "queue": "q"})

    messages = [await server.message(sent["messageId"]) for sent in answer]
    assert [message["queueName"] for message in messages] == ["q", "q"]


async def test_configuration_in_the_query_of_a_destination_is_taken_out_of_it(
    server: Application,
) -> None:
    """As where that URL follows /v2/publish/ (W27)."""
    url = f"{server.receiver.url}?a=1&upstash-retries=7&qstash_token=x&b=2"

    [answer] = await accepted(server, {"destination": url})

    message = await server.message(answer["messageId"])
    assert (message["url"], message["maxRetries"]) == (f"{server.receiver.url}?a=1&b=2", 7)


async def test_duplicates_within_a_batch_and_between_batches_are_told(server: Application) -> None:
    item = {"destination": server.receiver.url, "headers": {"Upstash-Deduplication-Id": "x"}}

    first, second = await accepted(server, item, item)
    [third] = await accepted(server, item)

    assert "deduplicated" not in first
    assert second == third == {"messageId": first["messageId"], "deduplicated": True}
    assert len(await server.receiver.first(1)) == 1


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({}, "[2]: a non-empty destination must be provided"),
        ({"destination": "example.com"}, "[2]: invalid destination url: endpoint has invalid"),
        ({"destination": "no-such-group"}, "[2]: topic no-such-group not found"),
        ({"destination": "api/llm"}, "[2]: api/llm"),
        ({"destination": "URL", "queue": "a b"}, "[2]: queue: a name has letters"),
        (
            {"destination": "URL", "headers": {"Upstash-Retries": "101"}},
            "[2]: quota maxRetries exceeded",
        ),
        (
            {"destination": "URL", "headers": {"upstash-deduplication-id": "a:b"}},
            "[2]: DeduplicationId cannot contain ':'",
        ),
        (
            {"destination": "URL", "headers": {"upstash-timeout": "x"}},
            "[2]: Upstash-Timeout: ",
        ),
        (
            {"destination": "URL", "headers": {"a b": "c"}},
            "[2]: headers: 'a b': not a valid header name",
        ),
        (
            {"destination": "URL", "headers": {"a": 1}},
            "[2]: headers: a is neither a text nor a list of texts",
        ),
        (
            {"destination": "URL", "headers": {"a": ["b", None]}},
            "[2]: headers: a is neither a text nor a list of texts",
        ),
        (
            {"destination": "URL", "headers": {"upstash-forward-a": "b\nc"}},
            "[2]: Upstash-Forward-A: the header value contains a control character",
        ),
        (
            {"destination": "URL", "headers": {"upstash-cron": "* * * * *"}},
            "[2]: Upstash-Cron: a batch has no schedules",
        ),
        ({"destination": "URL?upstash-cron=@hourly"}, "[2]: Upstash-Cron: a batch has no"),
        ({"destination": 7}, "[2]: Expected `str | null`, got `int` - at `$.destination`"),
        (
            {"destination": "URL", "body": {"a": 1}},
            "[2]: Expected `str | null`, got `object` - at `$.body`",
        ),
        ("URL", "[2]: Expected `object`, got `str`"),
        (None, "[2]: Expected `object`, got `null`"),
        (
            {"destination": "URL", "headers": "x"},
            "[2]: headers: Expected `object | null`, got `str`",
        ),
    ],
)
async def test_a_batch_with_an_item_at_fault_is_refused_whole_and_the_item_named(
    server: Application, item: Any, says: str
) -> None:
    """W89, A15."""
    good = {"destination": server.receiver.url, "queue": "q"}
    if isinstance(item, dict) and isinstance(item.get("destination"), str):
        item = {
            **item,
            "destination": item["destination"].replace("URL", server.receiver.url),
        }

    reply = await send(server, [good, good, item, good])

    assert reply.status == 400, reply
    assert says in reply.json["error"]
    assert await nothing_was_accepted(server)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'"x"', b"[", b"[1,]", b"\xff", b"null", b"[" * 9_999]
)
async def test_what_is_no_array_is_refused(server: Application, body: bytes) -> None:
    reply = await server.ask("POST", "/v2/batch", body=body)

    assert reply.status == 400
    assert reply.json["error"].startswith("the body")


async def test_an_item_is_held_to_the_limit_of_a_message() -> None:
    """W224, W225: the body of a batch has a limit of its own."""
    settings = structs.replace(SETTINGS, body_bytes_max=1_000, batch_bytes_max=3_000)
    async with serving(settings) as server:
        url = server.receiver.url
        item = {"destination": url, "body": "x" * 900}
        assert len(await accepted(server, item, item)) == 2
        large = await send(server, [item, {"destination": url, "body": "x" * 1_001}])
        in_bytes = await send(server, [{"destination": url, "body": "€" * 334}])
        larger = await send(server, [item] * 4)

        assert (in_bytes.status, in_bytes.json["error"]) == (
            413,
            "[0]: the body is larger than 1000 bytes",
        )
        assert (large.status, large.json["error"]) == (
            413,
            "[1]: the body is larger than 1000 bytes",
        )
        assert (larger.status, larger.json["error"]) == (
            413,
            "the body is larger than 3000 bytes",
        )


@pytest.mark.filterwarnings("ignore:Sending a large body")
async def test_a_batch_of_40_mb_is_accepted(server: Application) -> None:
    """W224: by default it may have 100 MB."""
    server.receiver.hold()
    item = {"destination": server.receiver.url, "body": "x" * 8_000_000, "queue": "q"}

    answers = await accepted(server, *[item] * 5)

    assert len(answers) == 5


async def test_a_batch_makes_a_bounded_number_of_messages() -> None:
    """Endpoints of groups are counted too."""
    async with serving(structs.replace(SETTINGS, batch_count_max=3)) as server:
        await group_of(server, "both", f"{server.receiver.url}/a", f"{server.receiver.url}/b")
        one, two = {"destination": server.receiver.url}, {"destination": "both"}

        reply = await send(server, [two, two])

        assert (reply.status, reply.json) == (
            400,
            {"error": "[1]: quota maxBatchMessages exceeded, current limit: 3"},
        )
        assert await server.log() == []
        assert len(await accepted(server, one, two)) == 2


async def test_a_batch_of_a_thousand_is_accepted_together(server: Application) -> None:
    server.receiver.hold()

    answers = await accepted(server, *[{"destination": server.receiver.url}] * 1_000)

    assert len({answer["messageId"] for answer in answers}) == 1_000


async def test_groups_of_others_are_not_there(server: Application) -> None:
    await group_of(server, "mine", server.receiver.url)

    reply = await send(server, [{"destination": "mine"}], token=DEV_USERS[1].token)

    assert (reply.status, reply.json["error"]) == (400, "[0]: topic mine not found")


@pytest.mark.filterwarnings("ignore:Sending a large body")
async def test_a_batch_is_read_no_further_than_it_may_count(server: Application) -> None:
    """Twenty megabytes of the smallest items: none of them is built, and what follows the
    one too many is not even looked at for items."""
    server.receiver.hold()
    began = time.process_time()
    many = await server.ask("POST", "/v2/batch", body=b"[" + b"{}," * 7_000_000 + b"{}]")
    took_s = time.process_time() - began
    one_more = await send(server, [{"destination": server.receiver.url}] * 1_001)

    for reply in (many, one_more):
        assert (reply.status, reply.json) == (
            400,
            {"error": "quota maxBatchMessages exceeded, current limit: 1000"},
        )
    assert took_s < 2
    assert await nothing_was_accepted(server)


async def test_the_headers_of_an_item_are_held_to_the_limit_of_a_head() -> None:
    async with serving(structs.replace(SETTINGS, head_bytes_max=1_000)) as server:
        item = {"destination": server.receiver.url, "headers": {"upstash-label": "x" * 1_000}}

        reply = await send(server, [item])

        assert (reply.status, reply.json["error"]) == (413, "[0]: headers: larger than 1000 bytes")
