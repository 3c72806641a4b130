"""The dead letter queue, over HTTP (contract section 10)."""

import asyncio
import json
from typing import Any

import pytest
from msgspec.structs import replace

from tests.support.application import SETTINGS, T0, Application, serving, until
from waypost.domain.dev_users import DEV_USERS
from waypost.store.sqlite import dead_letters

ONCE = {"Upstash-Retries": "0"}


async def test_an_empty_queue_is_an_empty_list(server: Application) -> None:
    """W146, W234."""
    assert (await server.ask("GET", "/v2/dlq")).json == {"messages": []}


async def test_a_dead_letter_is_its_message_and_the_last_answer(server: Application) -> None:
    """W145-W148 of the contract: found by list and by id."""
    server.receiver.answers(404, b"404 Not Found\n", header={"X-Why": "gone"})
    message_id = await server.accepted(header={**ONCE, "Upstash-Label": "l"})

    listed = await server.dead_letter(message_id)

    message = await server.message(message_id)
    assert {name: listed[name] for name in message} == message
    assert listed["responseStatus"] == 404
    assert listed["responseBody"] == "404 Not Found\n"
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
    full = (await server.ask("GET", f"/v2/dlq?count=2&cursor={first['cursor']}")).json
    assert full == rest


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
    """W151, W152 of the contract: a page has a hundred at most."""
    reply = await server.ask("GET", f"/v2/dlq?{query}")

    assert reply.status == 400
    assert reply.json["error"]


async def dead(
    server: Application, destination: str | None = None, *, body: bytes = b"hello", **header: str
) -> dict[str, Any]:
    """A message that failed; `Upstash-*` fields by the names behind the prefix."""
    fields = {f"Upstash-{name.replace('_', '-')}": value for name, value in header.items()}
    return await server.dead_letter(
        await server.accepted(destination, header={**ONCE, **fields}, body=body)
    )


async def listed(server: Application, query: str = "") -> list[str]:
    """The dead letters of a page."""
    reply = await server.ask("GET", f"/v2/dlq?{query}")
    assert reply.status == 200, reply
    return [letter["dlqId"] for letter in reply.json["messages"]]


async def changed(
    server: Application, method: str, path: str, *, body: object = None, status: int = 200
) -> dict[str, Any]:
    reply = await server.ask(method, path, body=None if body is None else json.dumps(body).encode())
    assert reply.status == status, reply
    return dict(reply.json)


FILTERS: dict[str, tuple[dict[str, str], str]] = {
    "label": ({"Label": "one,two"}, "label=none&label=two"),
    "flowControlKey": (
        {"Flow-Control-Key": "k", "Flow-Control-Value": "rate=1"},
        "flowControlKey=none,k",
    ),
    "queueName": ({"Queue-Name": "mail"}, "queueName=mail,none"),
}


@pytest.mark.parametrize("name", FILTERS)
async def test_a_filter_finds_what_it_means(server: Application, name: str) -> None:
    """W149, W150, A26: OR within a field, AND across them."""
    header, query = FILTERS[name]
    server.receiver.answers(500)
    await dead(server, Label="three")
    wanted = await dead(server, **header)

    assert await listed(server, query) == [wanted["dlqId"]]
    assert await listed(server, f"{query}&messageId={wanted['messageId']}") == [wanted["dlqId"]]
    assert await listed(server, f"{query}&messageId=msg_other") == []


async def test_they_are_found_by_message_url_group_answer_and_publisher(
    server: Application,
) -> None:
    """W149, W150."""
    server.receiver.answers(500)
    endpoint = json.dumps({"endpoints": [{"url": server.receiver.url + "?group"}]}).encode()
    await server.ask("POST", "/v2/topics/news/endpoints", body=endpoint)
    [receipt] = (await server.publish("news", header=ONCE)).json
    of_group = (await server.dead_letter(receipt["messageId"]))["dlqId"]
    server.receiver.answers(404)
    other = await dead(server)
    both = [of_group, other["dlqId"]]

    assert await listed(server, "topicName=news") == [of_group]
    assert await listed(server, f"url={server.receiver.url}?group") == [of_group]
    assert await listed(server, f"messageId={other['messageId']}") == [other["dlqId"]]
    assert await listed(server, f"messageIds={receipt['messageId']},{other['messageId']}") == both
    assert await listed(server, "responseStatus=404") == [other["dlqId"]]
    assert await listed(server, "responseStatus=404&responseStatus=500") == both
    assert await listed(server, "responseStatus=999") == []
    assert await listed(server, "callerIp=127.0.0.1") == both
    assert await listed(server, "callerIP=192.0.2.1") == []
    assert await listed(server, "scheduleId=scd_none") == []
    assert await listed(server, f"dlqIds={other['dlqId']},1-1&label=other") == [other["dlqId"]]
    assert await listed(server, "api=llm") == both


async def test_a_url_may_have_commas_of_its_own(server: Application) -> None:
    """W149: of several too."""
    server.receiver.answers(500)
    first, second = f"{server.receiver.url}/a,b", f"{server.receiver.url}/c"
    letters = [(await dead(server, url))["dlqId"] for url in (first, second)]
    await dead(server)

    assert await listed(server, f"url={first}") == letters[:1]
    assert await listed(server, f"url={first},{second}") == letters


async def test_dates_are_those_of_the_failure(server: Application) -> None:
    """W150: milliseconds, both ends included."""
    server.receiver.answers(500)
    letters = []
    for _ in range(4):
        letters.append((await dead(server))["dlqId"])
        server.clock.advance(1)

    assert await listed(server, f"fromDate={T0 + 1}&toDate={T0 + 2}") == letters[1:3]
    assert await listed(server, "toDate=2000") == []


async def test_a_cursor_leads_to_something(
    server: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W146: there is none where nothing more is to be found, however long the way to the end."""
    monkeypatch.setattr(dead_letters, "LOOKED_AT_MAX", 2)
    server.receiver.answers(500)
    found = (await dead(server, Label="x"))["messageId"]
    for _ in range(3):
        await dead(server)

    reply = (await server.ask("GET", "/v2/dlq?label=x&count=1")).json

    assert [letter["messageId"] for letter in reply["messages"]] == [found]
    assert "cursor" not in reply


async def test_the_order_may_be_turned_round(server: Application) -> None:
    """W152, A25: the earliest first where nothing is said."""
    server.receiver.answers(500)
    letters = [(await dead(server))["dlqId"] for _ in range(3)]

    assert await listed(server, "order=earliestFirst") == letters
    first = (await server.ask("GET", "/v2/dlq?order=latestFirst&count=2")).json
    assert [one["dlqId"] for one in first["messages"]] == letters[:0:-1]
    rest = (
        await server.ask("GET", f"/v2/dlq?order=latestFirst&count=2&cursor={first['cursor']}")
    ).json
    assert [one["dlqId"] for one in rest["messages"]] == letters[:1]
    assert "cursor" not in rest


async def test_bodies_are_trimmed_between_characters(server: Application) -> None:
    """Contract section 10.1, A34."""
    server.receiver.answers(500, b"\xff\xfe\xfd")
    letter = await dead(server, body="a☃b".encode())

    async def shown(trim: str) -> tuple[object, ...]:
        [one] = (await server.ask("GET", f"/v2/dlq?trimBody={trim}")).json["messages"]
        return one.get("body"), one.get("responseBodyBase64")

    assert await shown("-1") == ("a☃b", letter["responseBodyBase64"])
    assert await shown("3") == ("a", "//79")
    assert await shown("2") == ("a", "//4=")
    assert await shown("0") == (None, None)
    reply = await server.ask("GET", "/v2/dlq?trimBody=some")
    assert (reply.status, "trimBody" in reply.json["error"]) == (400, True)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("order=newest", "order"),
        ("responseStatus=x", "responseStatus"),
        ("fromDate=x", "fromDate"),
        ("label=,", "label"),
        ("source=workflow", "source"),
    ],
)
async def test_a_value_that_is_wrong_is_named(server: Application, query: str, name: str) -> None:
    """W151."""
    reply = await server.ask("GET", f"/v2/dlq?{query}")

    assert reply.status == 400
    assert name in reply.json["error"]


async def test_one_is_deleted_once(server: Application) -> None:
    """W154."""
    server.receiver.answers(500)
    letter = (await dead(server))["dlqId"]

    await changed(server, "DELETE", f"/v2/dlq/{letter}")
    reply = await server.ask("DELETE", f"/v2/dlq/{letter}")

    assert (reply.status, reply.json) == (404, {"error": f"dead letter {letter} not found"})
    assert await listed(server) == []


async def test_many_are_deleted_by_query_and_body(server: Application) -> None:
    """W155, W156, W163, A17: those that are gone are passed over."""
    server.receiver.answers(500)
    letters = [(await dead(server, Label="x"))["dlqId"] for _ in range(6)]

    assert await changed(
        server, "DELETE", f"/v2/dlq?dlqIds={letters[0]},1-1&dlqIds={letters[1]}"
    ) == {"deleted": 2}
    assert await changed(server, "DELETE", "/v2/dlq", body={"dlqIds": letters[:3]}) == {
        "deleted": 1
    }
    assert await changed(server, "DELETE", "/v2/dlq", body={"dlqIds": letters[:3]}) == {
        "deleted": 0
    }
    assert await changed(server, "DELETE", "/v2/dlq?label=none") == {"deleted": 0}
    assert await changed(server, "DELETE", "/v2/dlq?label=x") == {"deleted": 3}


async def test_a_count_of_deletes_is_honoured(server: Application) -> None:
    """W155, W160, W163: a cursor only where more remain."""
    server.receiver.answers(500)
    letters = [
        (await dead(server, Label="x" if number % 2 else "y"))["dlqId"] for number in range(5)
    ]

    first = await changed(server, "DELETE", "/v2/dlq?label=x&count=1")
    assert first == {"deleted": 1, "cursor": letters[1]}
    rest = await changed(server, "DELETE", f"/v2/dlq?label=x&count=1&cursor={first['cursor']}")
    assert rest == {"deleted": 1}
    first = await changed(server, "DELETE", "/v2/dlq?count=2")
    assert first["deleted"] == 2
    assert await changed(server, "DELETE", "/v2/dlq", body={"count": 2}) == {"deleted": 1}


@pytest.mark.parametrize("body", [None, {}])
async def test_without_a_filter_all_are_deleted(server: Application, body: object) -> None:
    """W155, W163: and none of anybody else."""
    server.receiver.answers(500)
    other = DEV_USERS[1].token
    await server.publish(header=ONCE, token=other)
    for _ in range(3):
        await dead(server)

    async def theirs() -> list[str] | None:
        reply = await server.ask("GET", "/v2/dlq", token=other)
        return [letter["dlqId"] for letter in reply.json["messages"]] or None

    [letter] = await until(theirs)
    assert await changed(server, "DELETE", f"/v2/dlq?dlqIds={letter}") == {"deleted": 0}
    assert await changed(server, "DELETE", "/v2/dlq", body=body) == {"deleted": 3}
    assert await theirs() == [letter]
    assert (await server.ask("DELETE", f"/v2/dlq/{letter}")).status == 404
    assert (await server.ask("POST", f"/v2/dlq/retry/{letter}")).status == 404


@pytest.mark.parametrize(
    "query",
    ["labeel=x", "label=", "host=a.test", "count=101", "order=latestFirst", "cursor=x", "dlqIds="],
)
@pytest.mark.parametrize(("method", "path"), [("DELETE", "/v2/dlq"), ("POST", "/v2/dlq/retry")])
async def test_a_filter_that_is_wrong_changes_nothing(
    server: Application, method: str, path: str, query: str
) -> None:
    """W151."""
    server.receiver.answers(500)
    letter = (await dead(server))["dlqId"]

    reply = await server.ask(method, f"{path}?{query}")

    assert reply.status == 400
    assert query.partition("=")[0] in reply.json["error"]
    assert await listed(server) == [letter]


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("responseStatus", None),
        ("responseStatus=", None),
        ("responseStatus=,", None),
        ("responseStatus=%20", None),
        ("fromDate=", None),
        ("api=llm", None),
        ("api=", None),
        ("", {"api": "llm"}),
        ("", {"messageIds": []}),
        ("", {"label": None}),
        ("", {"dlqIds": None}),
        ("", {"toDate": None, "count": 1}),
        ("count=1", {"responseStatus": None}),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("DELETE", "/v2/dlq"), ("POST", "/v2/dlq/retry")])
async def test_a_filter_that_is_empty_does_not_mean_everything(
    server: Application, method: str, path: str, query: str, body: object
) -> None:
    """W151, A17: what it names is said."""
    server.receiver.answers(500)
    letter = (await dead(server))["dlqId"]

    reply = await server.ask(
        method, f"{path}?{query}", body=None if body is None else json.dumps(body).encode()
    )

    assert reply.status == 400
    named = query.partition("=")[0] if body is None else next(iter(body))
    assert named in reply.json["error"]
    assert await listed(server) == [letter]


async def test_an_id_that_is_spelled_otherwise_is_none(server: Application) -> None:
    """W153, W159: the dead letter stays."""
    server.receiver.answers(500)
    letter = (await dead(server))["dlqId"]

    for method, path in (
        ("POST", f"/v2/dlq/retry/0{letter}"),
        ("POST", f"/v2/dlq/retry?dlqIds=0{letter}"),
        ("DELETE", f"/v2/dlq/0{letter}"),
        ("GET", f"/v2/dlq/0{letter}"),
    ):
        assert (await server.ask(method, path)).status == 404
    assert await listed(server) == [letter]


async def test_a_retry_makes_no_queue_too_many() -> None:
    """W161: 412 as an enqueue."""
    async with serving(replace(SETTINGS, queue_count_max=1)) as server:
        server.receiver.answers(500)
        letter = (await dead(server))["dlqId"]
        await server.ask("POST", "/v2/queues", body=b'{"queueName": "there"}')

        for path in (f"/v2/dlq/retry/{letter}", "/v2/dlq/retry"):
            reply = await server.ask("POST", path, header={"Upstash-Queue-Name": "new"})
            assert reply.status == 412
        assert await listed(server) == [letter]
        reply = await server.ask("POST", path, header={"Upstash-Queue-Name": "there"})
        assert reply.status == 201


@pytest.mark.parametrize("body", [{"labeel": "x"}, {"label": []}, {"dlqIds": [], "label": "x"}])
@pytest.mark.parametrize(("method", "path"), [("DELETE", "/v2/dlq"), ("POST", "/v2/dlq/retry")])
async def test_a_filter_that_is_wrong_in_a_body_changes_nothing(
    server: Application, method: str, path: str, body: dict[str, object]
) -> None:
    """W151: it would mean everything."""
    server.receiver.answers(500)
    letter = (await dead(server, Label="x"))["dlqId"]

    reply = await changed(server, method, path, body=body, status=400)

    assert next(iter(body)) in reply["error"]
    assert await listed(server) == [letter]


async def test_one_is_retried_as_a_new_message(server: Application) -> None:
    """W159, W162, D27: the body, the header and the label are the old ones."""
    server.receiver.answers(500)
    letter = await dead(
        server,
        body=b"\x00the body",
        Label="l",
        Forward_X_Own="mine",
        Deduplication_Id="same",
        Method="PUT",
    )
    server.receiver.answers(200)

    said = await changed(server, "POST", f"/v2/dlq/retry/{letter['dlqId']}", status=201)

    assert set(said) == {"messageId"}
    assert said["messageId"] != letter["messageId"]
    assert await server.logged(said["messageId"], "DELIVERED") == ["CREATED", "ACTIVE", "DELIVERED"]
    received = (await server.receiver.first(2))[1]
    assert (received.method, received.body) == ("PUT", b"\x00the body")
    assert received.header["X-Own"] == "mine"
    assert received.header["Upstash-Message-Id"] == said["messageId"]
    assert received.header["Upstash-Retried"] == "0"
    old, new = await server.message(letter["messageId"]), await server.message(said["messageId"])
    moved = {"messageId", "createdAt", "notBefore"}
    assert {name: new[name] for name in new if name not in moved} == {
        name: old[name] for name in old if name not in moved
    }
    assert await listed(server) == []
    path = f"/v2/dlq/retry/{letter['dlqId']}"
    reply = await server.ask("POST", path)
    assert (reply.status, reply.json["error"]) == (
        404,
        f"dead letter {letter['dlqId']} not found",
    )
    assert (await server.ask("DELETE", f"/v2/dlq/{letter['dlqId']}")).status == 404


async def test_the_header_of_a_retry_beats_that_of_the_message(server: Application) -> None:
    """W161."""
    server.receiver.answers(500)
    letter = await dead(
        server, Label="old", Forward_X_Own="old", Forward_X_Kept="kept", Timeout="30s"
    )

    reply = await server.ask(
        "POST",
        f"/v2/dlq/retry/{letter['dlqId']}",
        header={
            "Upstash-Retries": "5",
            "Upstash-Label": "new",
            "Upstash-Forward-X-Own": "new",
            "Upstash-Delay": "1h",
            "Content-Type": "application/json",
        },
    )

    assert reply.status == 201
    message = await server.message(reply.json["messageId"])
    assert (message["maxRetries"], message["label"]) == (5, "new")
    assert message["header"] == {"X-Own": ["new"], "X-Kept": ["kept"]}
    assert message["notBefore"] == message["createdAt"] + 3_600_000
    assert [entry["timeout"] for entry in await server.log(message["messageId"])] == [30_000]


async def test_a_header_that_is_wrong_retries_nothing(server: Application) -> None:
    """W4, W39, W161."""
    server.receiver.answers(500)
    letter = (await dead(server))["dlqId"]

    for path in (f"/v2/dlq/retry/{letter}", "/v2/dlq/retry"):
        for name, value in (("Upstash-Retries", "101"), ("Upstash-Callback", "ftp://a.test")):
            reply = await server.ask("POST", path, header={name: value})
            assert reply.status == 400
    assert await listed(server) == [letter]


async def test_many_are_retried_in_the_order_of_their_failures(server: Application) -> None:
    """W157, W158, W159, W161."""
    server.receiver.answers(500)
    letters = [await dead(server, body=str(number).encode(), Label="x") for number in range(3)]
    other = await dead(server)
    server.receiver.answers(200)

    assert await changed(server, "POST", "/v2/dlq/retry?label=none", status=201) == {
        "responses": []
    }
    said = await changed(server, "POST", "/v2/dlq/retry?label=x", status=201)

    assert set(said) == {"responses"}
    new_ids = [response["messageId"] for response in said["responses"]]
    assert len(set(new_ids)) == 3
    for new_id, letter in zip(new_ids, letters, strict=True):
        await server.logged(new_id, "DELIVERED")
        assert (await server.message(new_id))["body"] == letter["body"]
    assert await listed(server) == [other["dlqId"]]
    for query in ("label=x", "messageId=msg_unknown", "responseStatus=999", "toDate=2000"):
        said = await changed(server, "POST", f"/v2/dlq/retry?{query}", status=201)
        assert said == {"responses": []}


async def test_ids_that_are_gone_are_passed_over_unless_all_are(server: Application) -> None:
    """W157, A30."""
    server.receiver.answers(500)
    letters = [(await dead(server))["dlqId"] for _ in range(2)]
    server.receiver.answers(200)

    query = f"dlqIds={letters[0]}&dlqIds=1-1"
    said = await changed(server, "POST", f"/v2/dlq/retry?{query}", status=201)
    assert len(said["responses"]) == 1
    reply = await server.ask("POST", f"/v2/dlq/retry?{query}")
    assert (reply.status, "error" in reply.json) == (404, True)
    said = await changed(server, "POST", "/v2/dlq/retry", body={"dlqIds": letters}, status=201)
    assert len(said["responses"]) == 1


async def test_a_count_of_retries_is_honoured(server: Application) -> None:
    """W160, W146: with a cursor where more remain."""
    server.receiver.answers(500)
    for _ in range(3):
        await dead(server)
    server.receiver.answers(200)

    first = await changed(server, "POST", "/v2/dlq/retry?count=1", status=201)
    assert len(first["responses"]) == 1
    rest = await changed(
        server, "POST", f"/v2/dlq/retry?count=100&cursor={first['cursor']}", status=201
    )
    assert "cursor" not in rest
    assert len(rest["responses"]) == 2


async def test_a_callback_that_is_retried_says_what_it_said(server: Application) -> None:
    """W159, D27: its body is built anew from the same attempt."""
    server.receiver.answers(500)
    server.receiver.answers_once(200, b"done")
    source = await server.accepted(
        header={
            "Upstash-Callback": server.receiver.url + "?callback",
            "Upstash-Callback-Retries": "0",
        }
    )
    _, callback = await server.receiver.first(2)
    letter = await server.dead_letter(callback.header["Upstash-Message-Id"])
    server.receiver.answers(200)

    said = await changed(server, "POST", f"/v2/dlq/retry/{letter['dlqId']}", status=201)

    await server.logged(said["messageId"], "DELIVERED")
    again = (await server.receiver.first(3))[2]
    assert json.loads(again.body) == json.loads(callback.body)
    assert json.loads(again.body)["sourceMessageId"] == source
    assert again.target == callback.target
    assert again.header["Content-Type"] == "application/json"


async def test_a_retry_for_a_url_group_stays_with_it(server: Application) -> None:
    """W159: with its name, its callback and its flow-control key."""
    server.receiver.answers(500)
    endpoint = json.dumps({"endpoints": [{"url": server.receiver.url, "name": "one"}]}).encode()
    await server.ask("POST", "/v2/topics/news/endpoints", body=endpoint)
    header = {
        **ONCE,
        "Upstash-Flow-Control-Key": "k",
        "Upstash-Flow-Control-Value": "parallelism=2",
        "Upstash-Failure-Callback": server.receiver.url + "?failed",
    }
    [receipt] = (await server.publish("news", header=header)).json
    letter = await server.dead_letter(receipt["messageId"])

    said = await changed(server, "POST", f"/v2/dlq/retry/{letter['dlqId']}", status=201)

    message = await server.message(said["messageId"])
    assert (message["topicName"], message["endpointName"]) == ("news", "one")
    assert (message["flowControlKey"], message["parallelism"]) == ("k", 2)
    assert message["failureCallback"] == server.receiver.url + "?failed"
    await server.logged(said["messageId"], "FAILED")


async def test_two_that_retry_at_the_same_moment_publish_each_once(server: Application) -> None:
    """W159, D27."""
    server.receiver.answers(500)
    for _ in range(5):
        await dead(server)
    server.receiver.answers(200)

    answers = await asyncio.gather(
        *[server.ask("POST", "/v2/dlq/retry?count=100") for _ in range(4)]
    )

    assert {answer.status for answer in answers} == {201}
    new_ids = [one["messageId"] for answer in answers for one in answer.json["responses"]]
    assert len(new_ids) == len(set(new_ids)) == 5
    assert len(await server.receiver.first(10)) == 10
