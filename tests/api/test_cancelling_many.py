"""Bulk cancel, over HTTP (contract section 6.3)."""

import json
from collections.abc import Mapping

import pytest

from tests.support.application import MINUTE, SETTINGS, Application, person, serving, until
from waypost.domain.dev_users import DEV_USERS
from waypost.settings import Settings

LATER = {"Upstash-Delay": "1h"}


async def delayed(server: Application, destination: str = "http://a.test/x", **header: str) -> str:
    """A message that waits; `Upstash-*` fields by the names behind the prefix."""
    fields = {f"Upstash-{name.replace('_', '-')}": value for name, value in header.items()}
    return await server.accepted(destination, header={**LATER, **fields})


async def cancelled(
    server: Application, query: str = "", *, body: object = None, path: str = "/v2/messages"
) -> object:
    """What the answer says, all of it."""
    reply = await server.ask(
        "DELETE", f"{path}{query}", body=None if body is None else json.dumps(body).encode()
    )
    assert reply.status == 200, reply
    assert all(type(value) is int for value in reply.json.values())
    return reply.json


async def alive(server: Application, *message_ids: str) -> list[bool]:
    return [(await server.states(one))[-1] != "CANCELED" for one in message_ids]


async def test_messages_are_cancelled_by_their_ids(server: Application) -> None:
    """W101, W107: repeated, or separated by commas."""
    ids = [await delayed(server) for _ in range(6)]

    query = f"?messageIds={ids[0]}&messageIds={','.join(ids[1:4])}&messageIds=msg_unknown"
    assert await cancelled(server, query) == {"cancelled": 4}
    assert await cancelled(server, query) == {"cancelled": 0}

    assert await alive(server, *ids) == [False] * 4 + [True] * 2
    assert (await server.states(ids[0]))[-2:] == ["CANCEL_REQUESTED", "CANCELED"]


async def test_ids_may_be_in_a_json_body(server: Application) -> None:
    """W102, A17: also beside others in the query, whatever the Content-Type."""
    ids = [await delayed(server) for _ in range(4)]

    assert await cancelled(server, body={"messageIds": ids[:2]}) == {"cancelled": 2}
    assert await cancelled(
        server, f"?messageIds={ids[2]}", body={"messageIds": [ids[0], ids[3]], "label": None}
    ) == {"cancelled": 2}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/messages", None),
        ("/v2/messages/", None),
        ("/v2/messages", b""),
        ("/v2/messages", b"null"),
        ("/v2/messages", b"{}"),
        ("/v2/messages", b'{"messageIds": []}'),
        ("/V2/Messages/", b"null"),
    ],
)
async def test_without_a_filter_everything_is_cancelled(
    server: Application, path: str, body: bytes | None
) -> None:
    """W103, D36, A41: and nothing of anybody else's."""
    theirs = (await server.publish("http://a.test/x", header=LATER, token=DEV_USERS[1].token)).json[
        "messageId"
    ]
    ids = [await delayed(server) for _ in range(3)]

    reply = await server.ask("DELETE", path, body=body)

    assert (reply.status, reply.json) == (200, {"cancelled": 3})
    assert await alive(server, *ids) == [False] * 3
    reply = await server.ask(
        "DELETE", f"/v2/messages?messageIds={theirs}", token=DEV_USERS[0].token
    )
    assert reply.json == {"cancelled": 0}
    reply = await server.ask("DELETE", f"/v2/messages/{theirs}", token=DEV_USERS[1].token)
    assert reply.json == {"cancelled": 1}


async def test_a_thousand_are_cancelled_in_one_call(server: Application) -> None:
    """W103, D36: in chunks."""
    await server.accepted("http://a.test/x", header=LATER)
    endpoints = [{"url": f"http://a.test/{number}"} for number in range(100)]
    reply = await server.ask(
        "POST", "/v2/topics/many/endpoints", body=json.dumps({"endpoints": endpoints}).encode()
    )
    assert reply.status == 200, reply
    for _ in range(10):
        assert (await server.publish("many", header=LATER)).status == 200

    assert await cancelled(server, "?count=2") == {"cancelled": 2}
    assert await cancelled(server) == {"cancelled": 999}


async def test_a_count_is_honoured(server: Application) -> None:
    """W104: those that were accepted first are cancelled first."""
    ids = [await delayed(server, Label="x") for _ in range(3)]

    assert await cancelled(server, "?label=x&count=2") == {"cancelled": 2}
    assert await alive(server, *ids) == [False, False, True]
    assert await cancelled(server, body={"label": "x", "count": 500}) == {"cancelled": 1}


FILTERS: Mapping[str, tuple[str, dict[str, str], str]] = {
    "label": ("http://a.test/x", {"Label": "one,two"}, "label=none&label=two"),
    "flowControlKey": (
        "http://a.test/x",
        {"Flow-Control-Key": "k", "Flow-Control-Value": "rate=1"},
        "flowControlKey=none,k",
    ),
    "host": ("http://B.test:8080/x", {}, "host=none&host=b.test"),
    "path": ("http://a.test/exactly-this?a=b", {}, "path=/none&path=/exactly-this"),
    "url": ("http://a.test/a,b?c", {}, "url=http://none.test/,http://a.test/a,b%3Fc"),
    "queueName": ("http://a.test/x", {"Queue-Name": "mail"}, "queueName=mail"),
}


@pytest.mark.parametrize("name", FILTERS)
async def test_a_filter_cancels_what_it_means(server: Application, name: str) -> None:
    """W105, W106, W107: OR within a field."""
    destination, header, query = FILTERS[name]
    other = await delayed(server, "http://a.test/other", Label="three")
    longer = await delayed(server, "http://a.test/exactly-this/and-more")
    wanted = await delayed(server, destination, **header)

    assert await cancelled(server, "?" + query) == {"cancelled": 1}
    assert await alive(server, other, longer, wanted) == [True, True, False]


async def test_a_filter_by_url_group(server: Application) -> None:
    """W106."""
    endpoints = json.dumps({"endpoints": [{"url": f"http://a.test/{one}"} for one in "ab"]})
    await server.ask("POST", "/v2/topics/news/endpoints", body=endpoints.encode())
    await server.publish("news", header=LATER)
    await delayed(server)

    assert await cancelled(server, "?topicName=news") == {"cancelled": 2}


async def test_a_filter_by_publisher_and_by_date(server: Application) -> None:
    """W106: milliseconds, both ends included; `callerIP` is the old spelling."""
    ids = []
    for _ in range(4):
        ids.append(await delayed(server))
        server.clock.advance(1)
    created = [(await server.message(one))["createdAt"] for one in ids]

    assert await cancelled(server, "?callerIp=192.0.2.1") == {"cancelled": 0}
    query = f"?fromDate={created[1]}&toDate={created[2]}&callerIp=127.0.0.1"
    assert await cancelled(server, query) == {"cancelled": 2}
    assert await alive(server, *ids) == [True, False, False, True]
    assert await cancelled(server, "?callerIP=127.0.0.1") == {"cancelled": 2}


async def test_a_filter_by_schedule(server: Application) -> None:
    """W106: what it made is cancelled, and it goes on."""
    await delayed(server)
    reply = await server.ask(
        "POST", "/v2/schedules/http://a.test/x", header={**LATER, "Upstash-Cron": "* * * * *"}
    )
    schedule_id = reply.json["scheduleId"]
    server.clock.advance(MINUTE)

    async def made() -> bool | None:
        return len(await server.log()) == 2 or None

    await until(made)

    assert await cancelled(server, f"?scheduleId={schedule_id}") == {"cancelled": 1}
    assert (await server.ask("GET", f"/v2/schedules/{schedule_id}")).status == 200


async def test_a_schedule_that_made_nothing_has_nothing_to_cancel(server: Application) -> None:
    """W106."""
    await delayed(server)

    assert await cancelled(server, "?scheduleId=scd_none") == {"cancelled": 0}


async def test_fields_are_put_together_by_and(server: Application) -> None:
    """Contract section 0.4."""
    both = await delayed(server, "http://b.test/", Label="x")
    one = await delayed(server, "http://b.test/")

    assert await cancelled(server, "?label=x&host=a.test") == {"cancelled": 0}
    assert await cancelled(server, "?host=b.test", body={"label": "x"}) == {"cancelled": 1}
    assert await alive(server, both, one) == [False, True]


async def test_what_waits_for_a_retry_is_counted(server: Application) -> None:
    """W108, D38; and W99: what is in flight is, and its attempt goes on."""
    server.receiver.answers(404)
    in_retry = await server.accepted()
    await server.logged(in_retry, "RETRY")
    server.receiver.hold()
    in_flight = await server.accepted()
    await server.receiver.first(2)
    ended = await server.accepted("http://127.0.0.1:1/", header={"Upstash-Retries": "0"})
    await server.logged(ended, "FAILED")

    assert await cancelled(server) == {"cancelled": 2}
    assert await cancelled(server) == {"cancelled": 0}

    server.receiver.let_go()
    await server.logged(in_flight, "CANCELED")
    assert (await server.states(in_retry))[-1] == "CANCELED"


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("labeel=x", "labeel"),
        ("api=llm", "api"),
        ("label=", "label"),
        ("label=,", "label"),
        ("messageIds=", "messageIds"),
        ("state=CREATED", "state"),
        ("dlqIds=1-1", "dlqIds"),
        ("responseStatus=1", "responseStatus"),
        ("count=0", "count"),
        ("count=501", "count"),
        ("count=all", "count"),
        ("fromDate=yesterday", "fromDate"),
        ("toDate=-1", "toDate"),
        ("toDate=", "toDate"),
        ("fromDate=1&fromDate=2", "fromDate"),
    ],
)
async def test_a_filter_that_is_wrong_cancels_nothing(
    server: Application, query: str, name: str
) -> None:
    """Contract section 6.3: it would otherwise mean everything."""
    message_id = await delayed(server)

    reply = await server.ask("DELETE", f"/v2/messages?{query}")

    assert reply.status == 400
    assert name in reply.json["error"]
    assert await alive(server, message_id) == [True]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"labeel": "x"}', "labeel"),
        (b'{"label": ""}', "label"),
        (b'{"label": null}', "label"),
        (b'{"messageIds": null, "count": 1}', "messageIds"),
        (b'{"api": "llm"}', "api"),
        (b'{"label": []}', "label"),
        (b'{"label": [""]}', "label"),
        (b'{"label": {"a": 1}}', "label"),
        (b'{"label": true}', "label"),
        (b'{"label": [["x"]]}', "label"),
        (b'{"label": [null]}', "label"),
        (b'{"label": "\xff"}', "label"),
        (b'{"fromDate": 1.5}', "fromDate"),
        (b'["msg_1"]', "object"),
        (b'{"messageIds": ["a"', "JSON"),
        (b"\xff", "JSON"),
        (b'{"fromDate": [1, 2]}', "fromDate"),
        (b'{"count": 0}', "count"),
        (b'{"label": %s}' % json.dumps([str(n) for n in range(10_001)]).encode(), "10000"),
    ],
)
async def test_a_body_that_is_wrong_cancels_nothing(
    server: Application, body: bytes, name: str
) -> None:
    """W4, and contract section 6.3."""
    message_id = await delayed(server)

    reply = await server.ask("DELETE", "/v2/messages", body=body)

    assert reply.status == 400
    assert name in reply.json["error"]
    assert await alive(server, message_id) == [True]


async def test_a_body_that_is_too_large_is_refused_unread(server: Application) -> None:
    """W4: it would be read while all others wait."""
    message_id = await delayed(server)

    for size, status in ((999_950, 400), (1_000_001, 413)):
        reply = await server.ask(
            "DELETE", "/v2/messages", body=b'{"label": [' + b'"",' * (size // 3)
        )
        assert reply.status == status
    assert await alive(server, message_id) == [True]


async def test_a_body_may_speak_of_dates_as_numbers_or_texts(server: Application) -> None:
    """W106."""
    message_id = await delayed(server)
    at_ms = (await server.message(message_id))["createdAt"]

    assert await cancelled(server, body={"fromDate": at_ms + 1}) == {"cancelled": 0}
    assert await cancelled(
        server, body={"fromDate": at_ms, "toDate": str(at_ms), "queueName": None}
    ) == {"cancelled": 1}


async def test_a_token_that_may_only_read_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """D29, A42: neither messages nor dead letters."""
    database = tmp_path_factory.mktemp("people") / "waypost.db"
    settings = Settings(
        database=f"sqlite:///{database}", listen_port=0, egress_allow=SETTINGS.egress_allow
    )
    token = await person(settings, "acme")
    reading = await person(settings, "acme", new=False, read_only=True)
    async with serving(settings, dev=False, token=token) as server:
        server.receiver.answers(500)
        waiting = await delayed(server, server.receiver.url)
        dead = await server.dead_letter(await server.accepted(header={"Upstash-Retries": "0"}))

        for method, path in (
            ("DELETE", "/v2/messages"),
            ("DELETE", f"/v2/messages/{waiting}"),
            ("DELETE", "/v2/dlq"),
            ("DELETE", f"/v2/dlq/{dead['dlqId']}"),
            ("POST", "/v2/dlq/retry"),
            ("POST", f"/v2/dlq/retry/{dead['dlqId']}"),
        ):
            reply = await server.ask(method, path, token=reading)
            assert (reply.status, reply.json) == (403, {"error": "this token may only read"})

        assert (await server.ask("GET", "/v2/dlq", token=reading)).json["messages"] == [dead]
        assert await alive(server, waiting) == [True]
