"""The dead letter queue, over HTTP (contract section 10)."""

import pytest

from tests.support.application import T0, Application
from waypost.domain.dev_users import DEV_USERS

ONCE = {"Upstash-Retries": "0"}


async def test_an_empty_queue_is_an_empty_list(server: Application) -> None:
    """W146, W234."""
    assert (await server.ask("GET", "/v2/dlq")).json == {"messages": []}


async def test_a_dead_letter_is_its_message_and_the_last_answer(server: Application) -> None:
    """W145-W148 of the contract: found by list and by id."""
    server.receiver.answers(404, b"404 Not Found", header={"X-Why": "gone"})
    message_id = await server.accepted(header={**ONCE, "Upstash-Label": "l"})

    listed = await server.dead_letter(message_id)

    message = await server.message(message_id)
    assert {name: listed[name] for name in message} == message
    assert listed["responseStatus"] == 404
    assert listed["responseBody"] == "404 Not Found"
    header = {name.lower(): value for name, value in listed["responseHeader"].items()}
    assert header["x-why"] == ["gone"]
    assert "responseBodyBase64" not in listed
    reply = await server.ask("GET", f"/v2/dlq/{listed['dlqId']}")
    assert (reply.status, reply.json) == (200, listed)


async def test_an_answer_that_is_no_text_is_in_base64(server: Application) -> None:
    """W95, W148."""
    server.receiver.answers(500, b"\xff\xfe")
    listed = await server.dead_letter(await server.accepted(header=ONCE))

    assert listed["responseBodyBase64"] == "//4="
    assert "responseBody" not in listed


async def test_without_an_answer_the_status_is_0_and_the_error_says_why(
    server: Application,
) -> None:
    """W147: the status is always there."""
    listed = await server.dead_letter(
        await server.accepted("http://127.0.0.1:1/closed", header=ONCE)
    )

    assert listed["responseStatus"] == 0
    assert listed["error"]
    assert not {"responseBody", "responseBodyBase64", "responseHeader"} & set(listed)


async def test_dead_letters_are_paged_oldest_first(server: Application) -> None:
    """W146, W152 of the contract: no cursor at the end."""
    server.receiver.answers(500)
    ids = []
    for _ in range(5):
        ids.append(await server.accepted(header=ONCE))
        await server.logged(ids[-1], "FAILED")
        server.clock.advance(1)

    first = (await server.ask("GET", "/v2/dlq?count=3")).json
    rest = (await server.ask("GET", f"/v2/dlq?count=3&cursor={first['cursor']}")).json

    assert [one["messageId"] for one in first["messages"] + rest["messages"]] == ids
    assert "cursor" not in rest


@pytest.mark.parametrize("dead_letter_id", ["unknown", f"{T0}-0", "1725323658779-0", "%00"])
async def test_an_unknown_dead_letter_is_not_found(
    server: Application, dead_letter_id: str
) -> None:
    """W153 of the contract."""
    reply = await server.ask("GET", f"/v2/dlq/{dead_letter_id}")

    assert reply.status == 404
    assert "not found" in reply.json["error"]


async def test_dead_letters_of_others_are_not_shown(server: Application) -> None:
    """T14."""
    server.receiver.answers(500)
    listed = await server.dead_letter(await server.accepted(header=ONCE))
    token = DEV_USERS[1].token

    assert (await server.ask("GET", "/v2/dlq", token=token)).json == {"messages": []}
    reply = await server.ask("GET", f"/v2/dlq/{listed['dlqId']}", token=token)
    assert reply.status == 404


@pytest.mark.parametrize(
    "query",
    ["labeel=x", "count=0", "count=101", "count=x", "cursor=nonsense", "host=x", "path=x"],
)
async def test_a_filter_that_is_wrong_is_refused(server: Application, query: str) -> None:
    """W151 of the contract."""
    reply = await server.ask("GET", f"/v2/dlq?{query}")

    assert reply.status == 400
    assert reply.json["error"]


@pytest.mark.parametrize("name", ["messageId", "url", "label", "dlqIds", "fromDate", "trimBody"])
async def test_a_filter_that_comes_later_is_refused_by_name(server: Application, name: str) -> None:
    """D5."""
    reply = await server.ask("GET", f"/v2/dlq?{name}=1")

    assert (reply.status, reply.json) == (
        400,
        {"error": f"the query parameter {name} is not supported yet"},
    )
