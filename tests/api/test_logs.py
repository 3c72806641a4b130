"""The log, over HTTP (contract section 11)."""

import json
from base64 import b64decode, b64encode
from typing import Any

import pytest
from msgspec import structs

from tests.support.application import SECOND, SETTINGS, T0, Application, serving
from waypost.domain.dev_users import DEV_USERS
from waypost.store.sqlite import log


async def test_an_empty_log_is_an_empty_list(server: Application) -> None:
    """W164, W173, W234: no null, and no cursor."""
    assert (await server.ask("GET", "/v2/events")).json == {"events": []}
    assert (await server.ask("GET", "/v2/logs")).json == {"events": [], "logs": [], "messages": []}


async def test_the_log_is_newest_first(server: Application) -> None:
    """W164, W165: and says DELIVERED once."""
    first_id = await server.accepted()
    await server.logged(first_id, "DELIVERED")
    server.clock.advance(SECOND)
    second_id = await server.accepted()
    await server.logged(second_id, "DELIVERED")

    assert [(entry["messageId"], entry["state"]) for entry in await server.log()] == [
        (second_id, "DELIVERED"),
        (second_id, "ACTIVE"),
        (second_id, "CREATED"),
        (first_id, "DELIVERED"),
        (first_id, "ACTIVE"),
        (first_id, "CREATED"),
    ]


async def test_a_failure_without_retries_is_four_entries_and_a_page_holds_400(
    server: Application,
) -> None:
    """W166."""
    server.receiver.answers(404)
    ids = [await server.accepted(header={"Upstash-Retries": "0"}) for _ in range(100)]
    for message_id in ids:
        await server.logged(message_id, "FAILED")

    reply = await server.ask("GET", "/v2/events")

    assert len(reply.json["events"]) == 400
    assert "cursor" not in reply.json


async def test_every_entry_repeats_what_its_message_is(server: Application) -> None:
    """W167, W168: label, header, body in base64, retries, and both spellings of the delay."""
    server.receiver.answers(500)
    message_id = await server.accepted(
        header={
            "Upstash-Label": "a,b",
            "Upstash-Forward-X": "1",
            "Upstash-Retries": "1",
            "Upstash-Retry-Delay": "1000",
            "Upstash-Timeout": "30s",
            "Upstash-Method": "PUT",
            "Upstash-Queue-Name": "q",
        },
        body=b"\xffhello",
    )
    await server.logged(message_id, "RETRY")
    server.clock.advance(SECOND)
    await server.logged(message_id, "FAILED")

    entries = await server.log(message_id)

    assert len(entries) == 7
    for entry in entries:
        assert b64decode(entry["body"]) == b"\xffhello"
        assert {name: entry[name] for name in EVERY_ENTRY} == {
            "messageId": message_id,
            "url": server.receiver.url,
            "method": "PUT",
            "header": {"X": ["1"]},
            "queueName": "q",
            "timeout": 30 * SECOND,
            "maxRetries": 1,
            "retryDelayExpr": "1000",
            "retryDelayExpression": "1000",
            "label": "a",
            "labels": ["a", "b"],
        }


EVERY_ENTRY = (
    "messageId",
    "url",
    "method",
    "header",
    "queueName",
    "timeout",
    "maxRetries",
    "retryDelayExpr",
    "retryDelayExpression",
    "label",
    "labels",
)


async def test_an_entry_has_no_field_that_says_nothing(server: Application) -> None:
    """W167, W234."""
    message_id = await server.accepted(body=None)

    created = (await server.log(message_id))[-1]

    assert created == {
        "time": T0,
        "messageId": message_id,
        "state": "CREATED",
        "url": server.receiver.url,
        "method": "POST",
        "header": {},
        "timeout": 900 * SECOND,
        "maxRetries": 3,
    }


async def test_the_answer_is_on_the_error_and_nowhere_else(server: Application) -> None:
    """W174: with both spellings of its header."""
    server.receiver.answers(503, b"not now", header={"X-Why": "busy"})
    message_id = await server.accepted()
    await server.logged(message_id, "RETRY")

    entries = {entry["state"]: entry for entry in await server.log(message_id)}

    error = entries["ERROR"]
    assert error["responseStatus"] == 503
    assert b64decode(error["responseBody"]) == b"not now"
    assert {name.lower(): value for name, value in error["responseHeader"].items()}["x-why"] == [
        "busy"
    ]
    assert error["responseHeaders"] == error["responseHeader"]
    for state in ("CREATED", "ACTIVE", "RETRY"):
        assert not [name for name in entries[state] if name.startswith("response")]

    failed_id = await server.accepted(header={"Upstash-Retries": "0"})
    await server.logged(failed_id, "FAILED")
    answered = [
        entry["state"] for entry in await server.log(failed_id) if "responseStatus" in entry
    ]
    assert answered == ["ERROR"]


async def test_a_retry_says_when_the_next_attempt_is(server: Application) -> None:
    """W174."""
    server.receiver.answers(500)
    message_id = await server.accepted(header={"Upstash-Retry-Delay": "5000"})
    await server.logged(message_id, "RETRY")

    assert (await server.log(message_id))[0]["nextDeliveryTime"] == T0 + 5000


async def test_a_destination_that_cannot_be_reached_is_an_error_that_says_so(
    server: Application,
) -> None:
    """W174."""
    message_id = await server.accepted("http://127.0.0.1:1/closed", header={"Upstash-Retries": "0"})
    await server.logged(message_id, "FAILED")

    [error] = [entry for entry in await server.log(message_id) if entry["state"] == "ERROR"]
    assert error["error"]


async def test_cancelled_is_spelled_with_one_l(server: Application) -> None:
    """W169."""
    message_id = await server.accepted(header={"Upstash-Delay": "1h"})
    await server.ask("DELETE", f"/v2/messages/{message_id}")

    assert (await server.states(message_id))[-1] == "CANCELED"


async def events(server: Application, query: str) -> list[dict[str, Any]]:
    reply = await server.ask("GET", f"/v2/events?{query}")
    assert reply.status == 200, reply
    return list(reply.json["events"])


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("CREATED", {"CREATED"}),
        ("created", {"CREATED"}),
        ("Delivered", {"DELIVERED"}),
        ("CANCELED", {"CANCELED"}),
        ("CANCELLED", {"CANCELED"}),
        ("cancelled", {"CANCELED"}),
        ("IN_PROGRESS", {"ACTIVE", "RETRY", "ERROR"}),
        ("in_progress", {"ACTIVE", "RETRY", "ERROR"}),
    ],
)
async def test_the_log_is_filtered_by_state(
    server: Application, state: str, shown: set[str]
) -> None:
    """W170, W169: in any case, both spellings of CANCELED, and IN_PROGRESS."""
    cancelled_id = await server.accepted(header={"Upstash-Delay": "1h"})
    await server.ask("DELETE", f"/v2/messages/{cancelled_id}")
    await server.logged(await server.accepted(), "DELIVERED")
    server.receiver.answers(500)
    await server.logged(await server.accepted(), "RETRY")

    assert {entry["state"] for entry in await events(server, f"state={state}")} == shown


async def test_the_log_is_filtered_by_message(server: Application) -> None:
    """W171: one id, several in one parameter, several parameters; AND with others."""
    first, second, third = [await server.accepted(header={"Upstash-Delay": "1h"}) for _ in range(3)]

    def ids(found: list[dict[str, Any]]) -> set[str]:
        return {entry["messageId"] for entry in found}

    assert ids(await events(server, f"messageId={first}")) == {first}
    assert ids(await events(server, f"messageIds={first}&messageIds={third}")) == {first, third}
    assert ids(await events(server, f"messageIds={first},{second}")) == {first, second}
    assert ids(await events(server, f"messageId={first}&messageIds={first},{third}")) == {first}
    assert await events(server, f"messageId={first}&messageIds={second}") == []
    assert await events(server, f"messageId={first}&state=DELIVERED") == []
    assert await events(server, "messageId=msg_unknown") == []


async def a_varied_log(server: Application) -> dict[str, str]:
    """Messages that each differ in some way, a second apart; their ids by what they are."""
    base = server.receiver.url.removesuffix("/hook")
    endpoints = {"endpoints": [{"url": f"{base}/grouped", "name": "first"}]}
    await server.ask("POST", "/v2/topics/g/endpoints", body=json.dumps(endpoints).encode())
    ids = {}
    for name, destination, header in (
        ("plain", f"{base}/plain?a=b,c", {}),
        ("labels", f"{base}/x", {"Upstash-Label": "one,two"}),
        ("label", f"{base}/x", {"Upstash-Label": "three"}),
        ("queue", f"{base}/x", {"Upstash-Queue-Name": "q"}),
        ("key", f"{base}/x", {"Upstash-Flow-Control-Key": "k",
                              "Upstash-Flow-Control-Value": "parallelism=2, period=1m"}),
        ("path", f"{base}/a%20b", {}),
        ("host", base.replace("127.0.0.1", "localhost"), {}),
        ("caller", f"{base}/x", {"X-Forwarded-For": "192.0.2.7"}),
        ("group", "g", {"Upstash-Label": "one"}),
    ):  # fmt: skip
        reply = await server.publish(destination, header=header | {"Upstash-Delay": "1h"})
        assert reply.status == 200, reply
        one = reply.json[0] if isinstance(reply.json, list) else reply.json
        ids[name] = str(one["messageId"])
        server.clock.advance(SECOND)
    return ids


FILTERS = {
    "label=one": {"labels", "group"},
    "label=two": {"labels"},
    "label=one&label=three": {"labels", "label", "group"},
    "label=one,three": {"labels", "label", "group"},
    "label=ON": set(),
    "label=one&topicName=g": {"group"},
    "label=two&topicName=g": set(),
    "topicName=g,h": {"group"},
    "queueName=q": {"queue"},
    "queueName=p&queueName=q": {"queue"},
    "flowControlKey=k,l": {"key"},
    "callerIp=192.0.2.7": {"caller"},
    "callerIP=192.0.2.7": {"caller"},
    "scheduleId=scd_none": set(),
    "host=localhost": {"host"},
    "host=LOCALHOST,example.com": {"host"},
    "host=local": set(),
    "path=/a%2520b": {"path"},
    "path=/a b": {"path"},
    "path=/a": set(),
    "path=/plain": {"plain"},
    "path=/plain&path=/a%20b": {"plain", "path"},
    "path=/": {"host"},
    "path=/grouped&label=one": {"group"},
    "url={base}/plain?a=b,c": {"plain"},
    "url={base}/plain": set(),
    "url={base}/plain?a=b,c&url={base}/grouped": {"plain", "group"},
    "fromDate={2}&toDate={4}": {"label", "queue", "key"},
    "fromDate={8}": {"group"},
    "toDate={0}": {"plain"},
    "fromDate={8}&label=three": set(),
    "fromDate={4}&toDate={3}": set(),
    "state=CREATED&label=two": {"labels"},
    "state=DELIVERED&label=two": set(),
}


async def test_the_log_is_filtered_by_what_its_messages_are() -> None:
    """W171, W172, W57, W58: OR within a field, AND across them; dates include both ends."""
    settings = structs.replace(SETTINGS, trusted_proxies=("127.0.0.0/8",))
    async with serving(settings) as server:
        ids = await a_varied_log(server)
        names = {message_id: name for name, message_id in ids.items()}
        base = server.receiver.url.removesuffix("/hook")
        moments = [T0 + n * SECOND for n in range(len(ids))]
        for query, wanted in FILTERS.items():
            given = query.format(*moments, base=base).replace("?", "%3F").replace(" ", "+")
            for grouped in (False, True):
                given += "&groupBy=messageId" if grouped else ""
                reply = await server.ask("GET", f"/v2/events?{given}")
                assert reply.status == 200, (query, reply)
                found = reply.json["messages" if grouped else "events"]
                assert {names[one["messageId"]] for one in found} == wanted, query
                assert "cursor" not in reply.json, query


async def test_entries_name_the_group_the_key_and_the_callbacks(server: Application) -> None:
    """W167, W58, W63, W64: every entry, as far as its message has them."""
    endpoints = {"endpoints": [{"url": server.receiver.url, "name": "first"}]}
    await server.ask("POST", "/v2/topics/g/endpoints", body=json.dumps(endpoints).encode())
    reply = await server.publish(
        "g",
        header={
            "Upstash-Callback": f"{server.receiver.url}/told",
            "Upstash-Callback-Forward-A": "1",
            "Upstash-Failure-Callback": f"{server.receiver.url}/failed",
            "Upstash-Failure-Callback-Forward-B": "2",
            "Upstash-Flow-Control-Key": "k",
            "Upstash-Flow-Control-Value": "parallelism=2, rate=5, period=1m",
            "Upstash-Label": "a,b",
        },
    )
    [message_id] = [one["messageId"] for one in reply.json]
    await server.logged(message_id, "DELIVERED")

    for entry in await server.log(message_id):
        assert {
            "topicName": "g",
            "endpointName": "first",
            "callback": f"{server.receiver.url}/told",
            "callbackHeaders": {"A": ["1"]},
            "failureCallback": f"{server.receiver.url}/failed",
            "failureCallbackHeaders": {"B": ["2"]},
            "flowControlKey": "k",
            "parallelism": 2,
            "rate": 5,
            "period": 60,
            "label": "a",
            "labels": ["a", "b"],
        }.items() <= entry.items()


@pytest.mark.parametrize("path", ["/v2/events", "/v2/logs"])
async def test_the_log_can_be_read_from_its_beginning(server: Application, path: str) -> None:
    """W164, W173: page by page, to what was logged last."""
    ids = [await server.accepted(header={"Upstash-Delay": "1h"}) for _ in range(5)]
    found, cursor = [], ""
    while True:
        reply = await server.ask("GET", f"{path}?order=earliestFirst&count=2&cursor={cursor}")
        found += [entry["messageId"] for entry in reply.json["events"]]
        if "cursor" not in reply.json:
            break
        cursor = reply.json["cursor"]
        if len(ids) < 8:
            server.clock.advance(1)
            ids.append(await server.accepted(header={"Upstash-Delay": "1h"}))

    assert found == ids
    latest = await server.ask("GET", f"{path}?order=latestFirst")
    assert [entry["messageId"] for entry in latest.json["events"]] == ids[::-1]


@pytest.mark.parametrize(
    ("trim", "body", "answer"),
    [
        ("", b"hello", b"busy"),
        ("trimBody=-1", b"hello", b"busy"),
        ("trimBody=100", b"hello", b"busy"),
        ("trimBody=2", b"he", b"bu"),
        ("trimBody=0", None, None),
    ],
)
async def test_bodies_are_trimmed_where_that_is_asked(
    server: Application, trim: str, body: bytes | None, answer: bytes | None
) -> None:
    """W175, A34: that of the message and that of the answer, in every way to look at them."""
    server.receiver.answers(500, b"busy")
    message_id = await server.accepted(header={"Upstash-Retries": "0"})
    await server.logged(message_id, "FAILED")

    for path in ("/v2/events?", "/v2/logs?", "/v2/logs?groupBy=messageId&"):
        reply = (await server.ask("GET", path + trim)).json
        found = reply.get("events") or reply["messages"][0]["events"]
        assert len(found) == 4
        for entry in (*found, *reply.get("messages", ())):
            assert entry.get("body") == (None if body is None else b64encode(body).decode())
        error = next(entry for entry in found if entry["state"] == "ERROR")
        assert error.get("responseBody") == (None if answer is None else b64encode(answer).decode())
        assert error["responseStatus"] == 500


@pytest.mark.parametrize("path", ["/v2/events", "/v2/logs"])
async def test_the_log_can_be_gathered_by_message(server: Application, path: str) -> None:
    """W175: what a message is stands once above its entries, and there is no other key."""
    first_id = await server.accepted(header={"Upstash-Label": "l"})
    await server.logged(first_id, "DELIVERED")
    server.clock.advance(SECOND)
    second_id = await server.accepted(header={"Upstash-Delay": "1h"})

    reply = (await server.ask("GET", f"{path}?groupBy=messageId")).json

    assert list(reply) == ["messages"]
    second, first = reply["messages"]
    assert (second["messageId"], first["messageId"]) == (second_id, first_id)
    assert (first["label"], first["url"], first["maxRetries"]) == ("l", server.receiver.url, 3)
    assert first["events"] == await server.log(first_id)
    assert second["events"] == await server.log(second_id)
    only = (await server.ask("GET", f"{path}?groupBy=messageId&state=CREATED")).json["messages"]
    assert [[entry["state"] for entry in one["events"]] for one in only] == [["CREATED"]] * 2


async def test_a_page_of_messages_has_ten_and_none_comes_twice(server: Application) -> None:
    """W175, W173: while those that are still to come go on, and new ones are logged."""
    ids = []
    for _ in range(25):
        ids.append(await server.accepted(header={"Upstash-Delay": "1h"}))
        server.clock.advance(1)
    pages, cursor = [], ""
    while True:
        reply = await server.ask("GET", f"/v2/logs?groupBy=messageId&cursor={cursor}")
        pages.append([one["messageId"] for one in reply.json["messages"]])
        if "cursor" not in reply.json:
            break
        cursor = reply.json["cursor"]
        await server.ask("DELETE", f"/v2/messages/{ids[0]}")
        await server.ask("DELETE", f"/v2/messages/{ids[24 - len(pages)]}")
        await server.accepted(header={"Upstash-Delay": "1h"})

    assert [len(page) for page in pages] == [10, 10, 5]
    assert [message_id for page in pages for message_id in page] == ids[::-1]
    few = (await server.ask("GET", "/v2/logs?groupBy=messageId&count=3")).json
    assert len(few["messages"]) == 3
    assert "cursor" in few


async def test_cancelling_in_flight_is_logged_twice(server: Application) -> None:
    """W176, W169: CANCEL_REQUESTED, and CANCELED once the attempt has ended."""
    server.receiver.hold()
    server.receiver.answers(500)
    message_id = await server.accepted()
    await server.receiver.only()
    await server.ask("DELETE", f"/v2/messages/{message_id}")
    assert await server.states(message_id) == ["CREATED", "ACTIVE", "CANCEL_REQUESTED"]
    server.receiver.let_go()

    assert (await server.logged(message_id, "CANCELED"))[-1] == "CANCELED"
    assert len(await events(server, "state=cancelled,cancel_requested")) == 2


async def test_the_log_is_paged_completely_while_more_is_logged(server: Application) -> None:
    """W173: nothing twice, nothing left out, and no cursor at the end."""
    ids = [await server.accepted(header={"Upstash-Delay": "1h"}) for _ in range(25)]
    found = []
    cursor = ""
    while True:
        reply = await server.ask("GET", f"/v2/events?count=4&cursor={cursor}")
        assert reply.status == 200
        assert len(reply.json["events"]) <= 4
        found += [entry["messageId"] for entry in reply.json["events"]]
        if "cursor" not in reply.json:
            break
        cursor = reply.json["cursor"]
        await server.accepted(header={"Upstash-Delay": "1h"})

    assert found == ids[::-1]


async def test_what_is_rare_is_found_behind_pages_that_have_nothing(
    server: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W173: a page that has looked far enough has a cursor, whatever it has found."""
    monkeypatch.setattr(log, "LOOKED_AT_MAX", 5)
    rare = await server.accepted(header={"Upstash-Delay": "1h", "Upstash-Label": "rare"})
    for _ in range(12):
        await server.accepted(header={"Upstash-Delay": "1h"})
    pages, cursor = [], ""
    while True:
        reply = await server.ask("GET", f"/v2/events?label=rare&cursor={cursor}")
        pages.append([entry["messageId"] for entry in reply.json["events"]])
        if "cursor" not in reply.json:
            break
        cursor = reply.json["cursor"]

    assert pages == [[], [], [rare]]


async def test_logs_says_the_same_in_three_ways(server: Application) -> None:
    """W175: events, logs, and messages with their events."""
    first_id = await server.accepted()
    await server.logged(first_id, "DELIVERED")
    second_id = await server.accepted(header={"Upstash-Delay": "1h", "Upstash-Label": "l"})

    reply = (await server.ask("GET", "/v2/logs")).json

    assert reply["events"] == reply["logs"] == await server.log()
    assert [(group["messageId"], len(group["events"])) for group in reply["messages"]] == [
        (second_id, 1),
        (first_id, 3),
    ]
    assert reply["messages"][0]["label"] == "l"
    assert reply["messages"][1]["events"] == await server.log(first_id)


async def test_logs_has_the_cursor_of_events(server: Application) -> None:
    """W175, W173."""
    for _ in range(3):
        await server.accepted(header={"Upstash-Delay": "1h"})

    reply = (await server.ask("GET", "/v2/logs?count=2")).json
    rest = (await server.ask("GET", f"/v2/logs?count=2&cursor={reply['cursor']}")).json

    assert len(reply["events"]) == 2
    assert len(rest["events"]) == 1
    assert "cursor" not in rest


@pytest.mark.parametrize(
    "query",
    [
        "count=0", "count=-1", "count=1001", "count=x", "count=1&count=2", "count=%D9%A1",
        "state=NOPE", "state=CREATED,NOPE", "cursor=nonsense", "cursor=%00", "cursor=1&cursor=2",
        "labeel=x", "messageid=x", "messageId=a&messageId=b", "%FF=1", "state=%FF",
        "order=latest", "order=latestFirst&order=latestFirst", "trimBody=-2", "trimBody=x",
        "trimBody=1.5", "groupBy=label", "groupBy=messageid", "groupBy=messageId&count=11",
        "groupBy=messageId&cursor=1-1", "cursor=1-1-1", "fromDate=yesterday", "toDate=-1",
        "fromDate=1&fromDate=2", "toDate=1e3", "label=,", "dlqIds=x", "responseStatus=500",
    ],
)  # fmt: skip
async def test_a_filter_that_is_wrong_is_refused(server: Application, query: str) -> None:
    """W170, W173: never ignored, or it would answer with everything."""
    for path in ("/v2/events", "/v2/logs"):
        reply = await server.ask("GET", f"{path}?{query}")
        assert reply.status == 400
        assert reply.json["error"]


async def test_a_filter_without_a_value_is_none(server: Application) -> None:
    """W13."""
    await server.accepted()

    assert await events(server, "state=&cursor=&count=&messageIds=&api=x")


async def test_the_log_of_others_is_not_shown(server: Application) -> None:
    """T14: not by id either."""
    message_id = await server.accepted()

    for query in ("", f"?messageId={message_id}"):
        reply = await server.ask("GET", f"/v2/events{query}", token=DEV_USERS[1].token)
        assert reply.json == {"events": []}
