"""The log, over HTTP (contract section 11)."""

from base64 import b64decode
from typing import Any

import pytest

from tests.support.application import SECOND, T0, Application
from waypost.domain.dev_users import DEV_USERS


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
    ],
)  # fmt: skip
async def test_a_filter_that_is_wrong_is_refused(server: Application, query: str) -> None:
    """W170, W173: never ignored, or it would answer with everything."""
    for path in ("/v2/events", "/v2/logs"):
        reply = await server.ask("GET", f"{path}?{query}")
        assert reply.status == 400
        assert reply.json["error"]


@pytest.mark.parametrize(
    "name",
    [
        "url", "topicName", "scheduleId", "queueName", "fromDate", "toDate", "label",
        "flowControlKey", "callerIp", "host", "path", "groupBy", "trimBody", "order",
    ],
)  # fmt: skip
async def test_a_filter_that_comes_later_is_refused_by_name(server: Application, name: str) -> None:
    """D5."""
    reply = await server.ask("GET", f"/v2/events?{name}=1")

    assert (reply.status, reply.json) == (
        400,
        {"error": f"the query parameter {name} is not supported yet"},
    )


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
