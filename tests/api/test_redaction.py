"""What is redacted is seen by the destination, and by nobody who asks us (contract section 1.6)."""

import base64
import json
from hashlib import sha256

import pytest

from tests.support.application import MINUTE, SECOND, Application

SECRET = "s3cr3t-éà"
ENCODED = SECRET.encode()


def hidden(secret: bytes) -> str:
    return f"REDACTED:{sha256(secret).hexdigest()}"


HIDDEN = hidden(ENCODED)

PLACES = (
    "/v2/messages/{id}",
    "/v2/events?messageId={id}",
    "/v2/logs?messageId={id}",
    "/v2/logs?groupBy=messageId",
    "/v2/events?trimBody=80",
    "/v2/dlq",
    "/v2/dlq/{dlq}",
)
"""Where a message can be looked at."""


async def looks(server: Application, message_id: str) -> list[str]:
    """All that is shown of a message that has failed, by everything that shows it."""
    dlq_id = (await server.dead_letter(message_id))["dlqId"]
    shown = []
    for place in PLACES:
        reply = await server.ask("GET", place.format(id=message_id, dlq=dlq_id))
        assert reply.status == 200, reply
        shown.append(json.dumps(reply.json, ensure_ascii=False))
    return shown


def forms(secret: str) -> tuple[str, ...]:
    """How a secret may read in JSON; base64 at each of the three places that it may begin."""
    raw = secret.encode()
    return (secret, raw.decode("latin-1"), *(
        base64.b64encode(b"\0" * skip + raw + b"\0" * 3)[4:-8].decode() for skip in range(3)
    ))  # fmt: skip


async def test_what_is_to_be_hidden_may_be_said_in_several_fields(server: Application) -> None:
    """W71, RFC 9110 section 5.3: a list in two fields is one list, and none of it is shown."""
    server.receiver.answers(500)
    message_id = await server.accepted(
        header=[
            ("Upstash-Redact-Fields", "body"),
            ("Upstash-Redact-Fields", "header[X-Secret]"),
            ("Upstash-Forward-X-Secret", SECRET),
            ("Upstash-Retries", "0"),
        ],
        body=ENCODED,
    )

    for shown in await looks(server, message_id):
        assert not any(form in shown for form in forms(SECRET))


@pytest.mark.parametrize(
    ("fields", "body", "named", "other"),
    [
        ("body", True, False, False),
        ("header", False, True, True),
        ("headers", False, True, True),
        ("header[X-Secret]", False, True, False),
        ("headers[x-secret]", False, True, False),
        ("body, header[X-Secret]", True, True, False),
        ("body,headers", True, True, True),
    ],
)
async def test_what_is_redacted_is_seen_by_the_destination_alone(
    server: Application, fields: str, body: bool, named: bool, other: bool
) -> None:
    """W68-W72, W74: in messages, the log and the dead letter queue; retries bring it too."""
    server.receiver.answers(500)
    message_id = await server.accepted(
        header={
            "Upstash-Redact-Fields": fields,
            "Upstash-Forward-X-Secret": SECRET,
            "Upstash-Forward-X-Other": "other",
            "Upstash-Retries": "1",
            "Upstash-Retry-Delay": "1000",
        },
        body=ENCODED,
    )
    await server.logged(message_id, "RETRY")
    server.clock.advance(SECOND)
    looked = await looks(server, message_id)

    for received in await server.receiver.first(2):
        assert received.body == ENCODED
        assert received.header["X-Secret"].encode("utf-8", "surrogateescape") == ENCODED
        assert received.header["X-Other"] == "other"
    message = await server.message(message_id)
    assert message["body"] == (HIDDEN if body else SECRET)
    assert message["header"] == {
        "X-Secret": [HIDDEN if named else SECRET],
        "X-Other": [hidden(b"other") if other else "other"],
    }
    for entry in await server.log(message_id):
        assert base64.b64decode(entry["body"]) == (HIDDEN.encode() if body else ENCODED)
        assert entry["header"] == message["header"]
    letter = await server.dead_letter(message_id)
    assert (letter["body"], letter["header"]) == (message["body"], message["header"])
    if body and named:
        for shown in looked:
            assert not [form for form in forms(SECRET) if form in shown]
    if other:
        assert not [shown for shown in looked if '"other"' in shown]


async def test_what_is_redacted_is_redacted_in_the_headers_of_callbacks(
    server: Application,
) -> None:
    """W71: of both, by everything that shows their message."""
    server.receiver.answers(500)
    header = {"Upstash-Redact-Fields": "header[X-Secret]", "Upstash-Retries": "0"}
    for name in ("Upstash-Callback", "Upstash-Failure-Callback"):
        header |= {name: f"{server.receiver.url}/told", f"{name}-Forward-X-Secret": SECRET}
    message_id = await server.accepted(header=header)

    for shown in await looks(server, message_id):
        assert not [form for form in forms(SECRET) if form in shown]
        assert shown.count(HIDDEN) >= 2


async def test_a_body_that_is_no_text_is_redacted(server: Application) -> None:
    """W68, W95: the mark is text."""
    message_id = await server.accepted(header={"Upstash-Redact-Fields": "body"}, body=b"\xff\x00")

    message = await server.message(message_id)
    assert message["body"] == hidden(b"\xff\x00")
    assert "bodyBase64" not in message


async def test_there_is_nothing_to_redact_of_an_empty_message(server: Application) -> None:
    """W68, W234."""
    message_id = await server.accepted(header={"Upstash-Redact-Fields": "body,header"}, body=None)

    message = await server.message(message_id)
    assert "body" not in message
    assert message["header"] == {}


async def test_a_callback_brings_the_originals_and_does_not_show_them(server: Application) -> None:
    """W72, W68, W198: its body holds those of its source."""
    server.receiver.answers_once(500)
    await server.accepted(
        header={
            "Upstash-Redact-Fields": "body,header[X-Secret]",
            "Upstash-Forward-X-Secret": SECRET,
            "Upstash-Retries": "0",
            "Upstash-Failure-Callback": f"{server.receiver.url}/told",
            "Upstash-Failure-Callback-Forward-X-Secret": SECRET,
            "Upstash-Failure-Callback-Forward-X-Open": "open",
        },
        body=ENCODED,
    )
    _, told = await server.receiver.first(2)

    said = json.loads(told.body)
    assert base64.b64decode(said["sourceBody"]) == ENCODED
    assert said["sourceHeader"]["X-Secret"] == [SECRET]
    assert told.header["X-Secret"].encode("utf-8", "surrogateescape") == ENCODED
    callback_id = told.header["Upstash-Message-Id"]
    await server.logged(callback_id, "DELIVERED")
    callback = await server.message(callback_id)
    assert callback["body"] == hidden(told.body)
    assert callback["header"]["X-Secret"] == [HIDDEN]
    assert callback["header"]["X-Open"] == ["open"]
    source = await server.message(said["sourceMessageId"])
    assert source["failureCallbackHeader"] == {"X-Secret": [HIDDEN], "X-Open": ["open"]}
    for path in ("/v2/logs", "/v2/dlq"):
        shown = json.dumps((await server.ask("GET", path)).json, ensure_ascii=False)
        assert not [form for form in forms(SECRET) if form in shown]


async def test_a_callback_may_be_redacted_by_itself(server: Application) -> None:
    """W68, W70."""
    source_id = await server.accepted(
        header={
            "Upstash-Callback": f"{server.receiver.url}/told",
            "Upstash-Callback-Redact-Fields": "body,header[X-Secret]",
            "Upstash-Callback-Forward-X-Secret": SECRET,
        },
        body=b"plain",
    )
    _, told = await server.receiver.first(2)

    callback = await server.message(told.header["Upstash-Message-Id"])
    assert callback["body"] == hidden(told.body)
    assert callback["header"]["X-Secret"] == [HIDDEN]
    source = await server.message(source_id)
    assert source["body"] == "plain"
    assert source["callbackHeader"] == {"X-Secret": [HIDDEN]}


async def test_a_callback_hides_what_it_and_its_source_name(server: Application) -> None:
    """W69, W70: the fields of both."""
    await server.accepted(
        header={
            "Upstash-Redact-Fields": "header[X-Secret]",
            "Upstash-Callback": f"{server.receiver.url}/told",
            "Upstash-Callback-Redact-Fields": "headers[X-Other]",
            "Upstash-Callback-Forward-X-Secret": SECRET,
            "Upstash-Callback-Forward-X-Other": SECRET,
            "Upstash-Callback-Forward-X-Open": "open",
        }
    )
    _, told = await server.receiver.first(2)

    header = (await server.message(told.header["Upstash-Message-Id"]))["header"]
    assert (header["X-Secret"], header["X-Other"]) == ([HIDDEN], [HIDDEN])
    assert header["X-Open"] == ["open"]


async def test_every_message_of_a_fan_out_is_redacted(server: Application) -> None:
    """W68: and so is a message in a queue, where the query of a webhook says so."""
    endpoints = {"endpoints": [{"url": f"{server.receiver.url}/{n}"} for n in range(2)]}
    await server.ask("POST", "/v2/topics/g/endpoints", body=json.dumps(endpoints).encode())
    reply = await server.publish("g", header={"Upstash-Redact-Fields": "body"}, body=ENCODED)
    query = f"{server.receiver.url}?upstash-redact-fields=body&upstash-queue-name=q"
    ids = [one["messageId"] for one in reply.json]
    ids.append(await server.accepted(query, body=ENCODED))

    assert {(await server.message(message_id))["body"] for message_id in ids} == {HIDDEN}
    assert {received.body for received in await server.receiver.first(3)} == {ENCODED}


@pytest.mark.parametrize("fields", [",", "url", "body,token", "header[]", "header[a b]", "header["])
async def test_a_redaction_that_cannot_be_read_is_refused(server: Application, fields: str) -> None:
    """W68, W70: by name, and without what was given; else a secret might be shown."""
    reply = await server.publish(header={"Upstash-Redact-Fields": fields})

    assert reply.status == 400
    assert reply.json["error"].startswith("Upstash-Redact-Fields: ")
    assert await server.log() == []


async def test_a_retry_from_the_dead_letter_queue_brings_the_originals(server: Application) -> None:
    """W72, W68, W69, W157: and shows as little as the first one."""
    server.receiver.answers_once(500)
    message_id = await server.accepted(
        header={
            "Upstash-Redact-Fields": "body,header",
            "Upstash-Forward-X-Secret": SECRET,
            "Upstash-Retries": "0",
        },
        body=ENCODED,
    )
    dlq_id = (await server.dead_letter(message_id))["dlqId"]

    reply = await server.ask("POST", f"/v2/dlq/retry/{dlq_id}")

    again_id = reply.json["messageId"]
    _, again = await server.receiver.first(2)
    assert again.header["Upstash-Message-Id"] == again_id
    assert again.body == ENCODED
    assert again.header["X-Secret"].encode("utf-8", "surrogateescape") == ENCODED
    message = await server.message(again_id)
    assert (message["body"], message["header"]) == (HIDDEN, {"X-Secret": [HIDDEN]})


async def test_a_schedule_and_its_runs_are_redacted(server: Application) -> None:
    """W73, W72, W68-W70: to whoever gets or lists it; its destination sees the originals."""
    reply = await server.ask(
        "POST",
        f"/v2/schedules/{server.receiver.url}",
        header={
            "Upstash-Cron": "* * * * *",
            "Upstash-Redact-Fields": "body,header[X-Secret]",
            "Upstash-Forward-X-Secret": SECRET,
            "Upstash-Forward-X-Other": "other",
            "Upstash-Callback": f"{server.receiver.url}/told",
            "Upstash-Callback-Forward-X-Secret": SECRET,
            "Upstash-Failure-Callback": f"{server.receiver.url}/told",
            "Upstash-Failure-Callback-Forward-X-Secret": SECRET,
        },
        body=ENCODED,
    )
    schedule_id = reply.json["scheduleId"]
    [listed] = (await server.ask("GET", "/v2/schedules")).json
    header = {"X-Secret": [HIDDEN], "X-Other": ["other"]}
    for schedule in (listed, (await server.ask("GET", f"/v2/schedules/{schedule_id}")).json):
        assert (schedule["body"], schedule["header"]) == (HIDDEN, header)
        assert schedule["callbackHeader"] == {"X-Secret": [HIDDEN]}
        assert schedule["failureCallbackHeader"] == {"X-Secret": [HIDDEN]}

    server.clock.advance(MINUTE)

    run = (await server.receiver.first(1))[0]
    assert run.body == ENCODED
    assert run.header["X-Secret"].encode("utf-8", "surrogateescape") == ENCODED
    message = await server.message(run.header["Upstash-Message-Id"])
    assert (message["body"], message["header"]) == (HIDDEN, header)
