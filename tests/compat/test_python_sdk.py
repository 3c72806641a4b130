"""The PyPI SDK `qstash`, unmodified, both its clients, against a running Waypost.

Rows of the wire contract that a test shows are in its docstring, as W14.
"""

import asyncio
import base64
import hashlib
import json
import threading
import time

import jwt
import pytest
import qstash
from qstash import AsyncQStash
from qstash.errors import QStashError, SignatureError
from qstash.log import LogState

from tests.compat.history import history
from tests.support.program import DEV_TOKEN, eventually
from tests.support.receiver import Reply
from waypost.domain.dev_users import DEV_USERS

USER = DEV_USERS[0]


def test_a_published_message_arrives_whole_and_signed(client, kind, server, receiver):
    """W1, W12, W14-W16, W18, W20, W25, W177-W179, W180, W182, W185."""
    path = f"/{kind}/publish"

    sent = client.message.publish(
        url=f"{receiver.url}{path}?foo=bar&q=a%20b",
        body="snow ☃",
        content_type="text/plain; charset=utf-8",
        headers={"X-Custom": "one"},
    )

    [received] = receiver.wait(path)
    assert sent.message_id.startswith("msg_")
    assert sent.deduplicated is False
    assert received.fault is None
    assert received.method == "POST"
    assert received.target == f"{path}?foo=bar&q=a%20b"
    assert received.body == "snow ☃".encode()
    assert received.header["content-type"] == "text/plain; charset=utf-8"
    assert received.header["x-custom"] == "one"
    assert received.header["user-agent"] == "Upstash-QStash"
    assert received.header["upstash-message-id"] == sent.message_id
    assert received.header["upstash-retried"] == "0"
    assert received.header["upstash-caller-ip"] == "127.0.0.1"
    assert "upstash-region" in received.header
    assert "authorization" not in received.header
    assert not [name for name in received.header if name.startswith("upstash-forward")]
    claims = jwt.decode(
        received.header["upstash-signature"], USER.current, algorithms=["HS256"], issuer="Upstash"
    )
    assert claims["sub"] == f"{receiver.url}{path}?foo=bar&q=a%20b"
    assert claims["exp"] == claims["iat"] + 300
    assert claims["jti"].startswith("jwt_")
    assert history(server, sent.message_id) == ["CREATED", "ACTIVE", "DELIVERED"]


def test_json_is_published_as_json(client, kind, receiver):
    """W18."""
    path = f"/{kind}/json"

    client.message.publish_json(url=receiver.url + path, body={"hello": ["world", 1, None]})

    [received] = receiver.wait(path)
    assert received.fault is None
    assert received.header["content-type"] == "application/json"
    assert json.loads(received.body) == {"hello": ["world", 1, None]}


def test_bytes_arrive_as_they_were_sent(client, kind, receiver):
    """W16, W95.  The SDK's Receiver takes text only, so the hash is compared here."""
    path, body = f"/{kind}/bytes", bytes(range(256)) + b" \r\n"

    sent = client.message.publish(url=receiver.url + path, body=body)

    [received] = receiver.wait(path)
    claims = jwt.decode(
        received.header["upstash-signature"], USER.current, algorithms=["HS256"], issuer="Upstash"
    )
    message = client.message.get(sent.message_id)
    assert received.body == body
    assert base64.urlsafe_b64decode(claims["body"]) == hashlib.sha256(body).digest()
    assert message.body is None
    assert base64.b64decode(message.body_base64) == body


def test_a_message_may_be_empty_and_bare(client, kind, receiver):
    """W17, W19, W181: no content type is made up."""
    path = f"/{kind}/empty"

    sent = client.message.publish(url=receiver.url + path)

    [received] = receiver.wait(path)
    message = client.message.get(sent.message_id)
    assert received.fault is None
    assert received.body == b""
    assert "content-type" not in received.header
    assert message.headers == {}


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_the_method_is_the_publishers(client, kind, receiver, method):
    """W34-W36: also GET with a body."""
    path = f"/{kind}/method/{method}"

    client.message.publish(url=receiver.url + path, method=method, body="body")

    [received] = receiver.wait(path)
    assert (received.method, received.body, received.fault) == (method, b"body", None)


def test_a_message_can_be_read_as_it_was_published(client, kind, receiver):
    """W21, W22, W26, W40, W41, W44, W48, W57, W59, W93, W94."""
    url = f"{receiver.url}/{kind}/read"

    sent = client.message.publish_json(
        url=url,
        body={"a": 1},
        headers={"test-header": "test-value"},
        method="PUT",
        delay=60,
        retries=5,
        retry_delay="1000 * (1 + retried)",
        timeout="90s",
        label="mine",
    )

    message = client.message.get(sent.message_id)
    assert message.message_id == sent.message_id
    assert message.url == url
    assert message.method == "PUT"
    assert message.body == '{"a": 1}'
    assert message.headers == {
        "Content-Type": ["application/json"],
        "Test-Header": ["test-value"],
    }
    assert message.not_before == message.created_at + 60_000
    assert message.max_retries == 5
    assert message.retry_delay_expression == "1000 * (1 + retried)"
    assert message.label == "mine"
    assert message.caller_ip == "127.0.0.1"
    assert message.queue is None
    assert message.callback is None
    [created] = client.log.list(filter={"message_id": sent.message_id}).logs
    assert created.timeout == 90_000


def test_not_before_beats_delay(client, kind, receiver):
    """W45, W46."""
    at_s = int(time.time()) + 3_600

    sent = client.message.publish(url=receiver.url, not_before=at_s, delay=5)

    assert client.message.get(sent.message_id).not_before == at_s * 1_000


def test_a_delayed_message_comes_when_its_delay_is_over(client, kind, receiver):
    """W41."""
    path = f"/{kind}/delayed"

    sent = client.message.publish(url=receiver.url + path, delay="1s")

    [received] = receiver.wait(path)
    message = client.message.get(sent.message_id)
    assert message.not_before == message.created_at + 1_000
    assert received.at_ms >= message.not_before


def test_a_second_message_with_the_id_is_the_first(client, kind, server, receiver):
    """W51."""
    path = f"/{kind}/once"
    deduplication_id = f"{kind}-once"

    first = client.message.publish(
        url=receiver.url + path, body="1", deduplication_id=deduplication_id
    )
    second = client.message.publish(
        url=receiver.url + path, body="2", deduplication_id=deduplication_id
    )

    assert (first.deduplicated, second.deduplicated) == (False, True)
    assert second.message_id == first.message_id
    history(server, first.message_id)
    assert [received.body for received in receiver.wait(path)] == [b"1"]
    status, body = server.call(
        "POST",
        f"/v2/publish/{receiver.url}{path}",
        Upstash_Deduplication_Id=deduplication_id,
    )
    assert status == 202
    assert json.loads(body) == {"messageId": first.message_id, "deduplicated": True}


def test_the_same_content_is_the_same_message(client, kind, receiver):
    """W54-W56: the SDK writes the flag as True and False."""

    def publish(body, header, flag):
        return client.message.publish(
            url=f"{receiver.url}/{kind}/content",
            body=body,
            headers={"X-Header": header},
            content_based_deduplication=flag,
        )

    first = publish("a", "1", True)
    same = publish("a", "1", True)
    others = [publish("b", "1", True), publish("a", "2", True), publish("a", "1", False)]

    assert same.deduplicated
    assert same.message_id == first.message_id
    assert len({first.message_id, *(other.message_id for other in others)}) == 4
    assert not any(other.deduplicated for other in others)


def test_a_queue_delivers_in_order_and_one_at_a_time(client, kind, server, receiver):
    """W75, W76, W78, W109, W116."""
    path, queue = f"/{kind}/queue", f"{kind}_queue-1.x"
    go = threading.Event()
    url = receiver.answers(path, Reply(when=go))

    sent = [
        client.message.enqueue_json(queue=queue, url=url, body=number, label="queued")
        for number in range(4)
    ]
    sent.append(client.message.enqueue(queue=queue, url=url, body="last", content_type="text/x"))

    receiver.wait(path)
    found = client.queue.get(queue)
    assert client.message.get(sent[0].message_id).queue == queue
    assert (found.name, found.parallelism, found.paused) == (queue, 1, False)
    assert found.created_at <= found.updated_at
    assert found.lag == 5
    assert len(receiver.got(path)) == 1

    go.set()
    received = receiver.wait(path, 5)
    assert [one.body for one in received] == [b"0", b"1", b"2", b"3", b"last"]
    assert [one.header["upstash-message-id"] for one in received] == [
        one.message_id for one in sent
    ]
    assert not any(one.fault for one in received)
    history(server, sent[-1].message_id)
    assert client.queue.get(queue).lag == 0


def test_a_cancelled_message_is_not_sent(client, kind, server, receiver):
    """W98, W100, W169."""
    path = f"/{kind}/cancelled"
    sent = client.message.publish(url=receiver.url + path, delay="1h")

    client.message.cancel(sent.message_id)
    client.message.cancel(sent.message_id)

    logs = client.log.list(filter={"message_id": sent.message_id}).logs
    assert logs[0].state == LogState.CANCELED
    assert receiver.got(path) == []
    with pytest.raises(QStashError, match=r"status: 404.*message msg_unknown not found"):
        client.message.cancel("msg_unknown")


def test_a_message_in_flight_can_be_cancelled(client, kind, server, receiver):
    """W99, W176: its failure is not tried again and is no dead letter (D16)."""
    path = f"/{kind}/in-flight"
    go = threading.Event()
    url = receiver.answers(path, Reply(500, when=go))
    sent = client.message.publish(url=url, retries=3, retry_delay="1")
    receiver.wait(path)

    client.message.cancel(sent.message_id)
    go.set()

    states = history(server, sent.message_id)
    assert states[:3] == ["CREATED", "ACTIVE", "CANCEL_REQUESTED"]
    assert states[-1] == "CANCELED"
    assert len(receiver.got(path)) == 1
    assert sent.message_id not in {one.message_id for one in client.dlq.list().messages}


def test_a_404_without_retries_is_a_dead_letter_with_exactly_four_events(
    client, kind, server, receiver
):
    """W38, W145, W147, W148, W153, W164, W166, W167, W174."""
    url = receiver.answers(
        f"/{kind}/404", Reply(404, b"404 Not Found", {"X-Why": "not here", "X-Id": kind})
    )
    sent = client.message.publish(url=url, body="lost", retries=0, label="doomed")

    assert history(server, sent.message_id) == ["CREATED", "ACTIVE", "ERROR", "FAILED"]

    logs = client.log.list(filter={"message_id": sent.message_id}).logs
    assert [log.state.value for log in logs] == ["FAILED", "ERROR", "ACTIVE", "CREATED"]
    assert [log.time for log in logs] == sorted((log.time for log in logs), reverse=True)
    for log in logs:
        assert (log.url, log.label, log.max_retries, log.method) == (url, "doomed", 0, "POST")
        assert base64.b64decode(log.body_base64) == b"lost"
        assert log.headers == {}
    error = logs[1]
    assert error.response_status == 404
    assert base64.b64decode(error.response_body) == b"404 Not Found"
    assert error.response_headers["X-Why"] == ["not here"]

    [listed] = [
        one for one in client.dlq.list(count=100).messages if one.message_id == sent.message_id
    ]
    assert listed == client.dlq.get(listed.dlq_id)
    assert listed.url == url
    assert listed.body == "lost"
    assert listed.response_status == 404
    assert listed.response_body == "404 Not Found"
    assert listed.response_headers["X-Why"] == ["not here"]
    assert listed.max_retries == 0
    assert listed.label == "doomed"


def test_nobody_listening_is_a_dead_letter_with_a_reason(client, server):
    """W147, W186: a failure without an answer has status 0 (D14)."""
    sent = client.message.publish(url="http://127.0.0.1:9/", retries=0)

    assert history(server, sent.message_id) == ["CREATED", "ACTIVE", "ERROR", "FAILED"]

    error = client.log.list(filter={"message_id": sent.message_id, "state": LogState.ERROR}).logs[0]
    [dead] = [one for one in client.dlq.list().messages if one.message_id == sent.message_id]
    assert dead.response_status == 0
    assert "refused" in error.error


def test_a_retry_is_the_same_message_signed_anew(client, kind, server, receiver):
    """W168, W178, W183, W186."""
    path = f"/{kind}/again"
    url = receiver.answers(path, Reply(500), Reply(302), Reply())

    sent = client.message.publish(url=url, body="x", retries=3, retry_delay="5 * (1 + retried)")

    assert history(server, sent.message_id) == [
        "CREATED",
        *["ACTIVE", "ERROR", "RETRY"] * 2,
        *["ACTIVE", "DELIVERED"],
    ]
    received = receiver.wait(path, 3)
    assert [one.header["upstash-retried"] for one in received] == ["0", "1", "2"]
    assert {one.header["upstash-message-id"] for one in received} == {sent.message_id}
    assert not any(one.fault for one in received)
    tokens = {
        jwt.decode(one.header["upstash-signature"], options={"verify_signature": False})["jti"]
        for one in received
    }
    assert len(tokens) == 3
    newest = client.log.list(filter={"message_id": sent.message_id}).logs[0]
    assert newest.retry_delay_expression == "5 * (1 + retried)"


def test_a_destination_says_when_to_come_again(client, kind, server, receiver):
    """W188: without it the first retry would be 7 s later (W187)."""
    path = f"/{kind}/retry-after"
    url = receiver.answers(path, Reply(503, header={"Retry-After": "0"}), Reply())

    sent = client.message.publish(url=url)

    assert history(server, sent.message_id)[-1] == "DELIVERED"
    [retry] = client.log.list(filter={"message_id": sent.message_id, "state": LogState.RETRY}).logs
    assert retry.next_delivery_time - retry.time < 1_000


def test_the_first_wait_is_the_promised_one(client, kind, server, receiver):
    """W187, W108."""
    url = receiver.answers(f"/{kind}/backoff", Reply(500))
    sent = client.message.publish(url=url)
    eventually(lambda: server.states(sent.message_id)[0] == "RETRY")

    [retry] = client.log.list(filter={"message_id": sent.message_id, "state": LogState.RETRY}).logs
    assert 7_300 <= retry.next_delivery_time - retry.time <= 7_500
    client.message.cancel(sent.message_id)
    assert server.states(sent.message_id)[0] == "CANCELED"


def test_489_with_its_header_is_not_tried_again(client, kind, server, receiver):
    """W194."""
    path = f"/{kind}/489"
    url = receiver.answers(path, Reply(489, b"no", {"Upstash-NonRetryable-Error": "true"}))

    sent = client.message.publish(url=url, retries=3, retry_delay="1")

    assert history(server, sent.message_id) == ["CREATED", "ACTIVE", "ERROR", "FAILED"]
    [dead] = [one for one in client.dlq.list().messages if one.message_id == sent.message_id]
    assert dead.response_status == 489
    assert len(receiver.got(path)) == 1


@pytest.mark.parametrize(
    "half",
    [Reply(489), Reply(500, header={"Upstash-NonRetryable-Error": "true"})],
    ids=["status", "header"],
)
def test_489_and_its_header_are_both_asked_for(client, kind, server, receiver, half):
    """W194, A36: either alone is a failure like any other."""
    path = f"/{kind}/half-489/{half.status}"
    url = receiver.answers(path, half, Reply())

    sent = client.message.publish(url=url, retry_delay="1")

    assert history(server, sent.message_id)[-1] == "DELIVERED"
    assert len(receiver.got(path)) == 2


def test_a_timeout_ends_the_attempt(client, kind, server, receiver):
    """W48, W49."""
    go = threading.Event()
    url = receiver.answers(f"/{kind}/slow", Reply(when=go))

    sent = client.message.publish(url=url, timeout=1, retries=0)

    assert history(server, sent.message_id) == ["CREATED", "ACTIVE", "ERROR", "FAILED"]
    go.set()
    logs = client.log.list(filter={"message_id": sent.message_id}).logs
    active, error = logs[2], logs[1]
    assert error.time - active.time >= 990  # two clocks, each cut to a millisecond
    assert error.response_status == 0


def test_the_log_is_read_by_state_and_by_pages(client, kind, server, receiver):
    """W164, W165, W170, W173."""
    url = receiver.answers(f"/{kind}/pages", Reply(500), Reply())
    sent = client.message.publish(url=url, retry_delay="1").message_id
    other = client.message.publish(url=url).message_id
    history(server, sent)
    history(server, other)

    def states(**where):
        return [log.state.value for log in client.log.list(filter=where).logs]

    assert states(message_id=sent, state=LogState.DELIVERED) == ["DELIVERED"]
    assert states(message_id=sent, state=LogState.IN_PROGRESS) == [
        *["ACTIVE", "RETRY", "ERROR", "ACTIVE"]
    ]
    assert states(message_id="msg_unknown") == []
    assert len(states(message_ids=[sent, other])) == 6 + 3

    paged, cursor = [], None
    while True:
        page = client.log.list(cursor=cursor, count=2, filter={"message_id": sent})
        paged.append([log.state.value for log in page.logs])
        cursor = page.cursor
        if cursor is None:
            break
    assert paged == [["DELIVERED", "ACTIVE"], ["RETRY", "ERROR"], ["ACTIVE", "CREATED"]]


def test_the_dead_letters_are_read_by_pages_and_by_tenant(clients, kind, server, receiver):
    """W146, W152: in the order in which they died, and nobody sees another's."""
    mine = clients(DEV_USERS[1].token)
    url = receiver.answers(f"/{kind}/dead", Reply(404))
    sent = []
    for _ in range(3):
        sent.append(mine.message.publish(url=url, retries=0).message_id)
        eventually(lambda: [one.message_id for one in mine.dlq.list().messages][-1:] == sent[-1:])

    pages = [mine.dlq.list(count=2)]
    while pages[-1].cursor is not None:
        pages.append(mine.dlq.list(count=2, cursor=pages[-1].cursor))

    messages = [one for page in pages for one in page.messages]
    assert [one.message_id for one in messages][-3:] == sent
    assert {len(page.messages) for page in pages[:-1]} == {2}
    assert len(pages[-1].messages) in {1, 2}
    others = clients(DEV_TOKEN)
    with pytest.raises(QStashError, match="status: 404"):
        others.dlq.get(messages[-1].dlq_id)
    with pytest.raises(QStashError, match="status: 404"):
        others.message.get(sent[0])
    assert others.log.list(filter={"message_id": sent[0]}).logs == []


def test_the_keys_are_the_users(clients):
    """W215, W217, W220."""
    for user in DEV_USERS:
        keys = clients(user.token).signing_key.get()

        assert (keys.current, keys.next) == (user.current, user.next)


def test_a_receiver_knows_the_signature_by_the_next_key_also_and_by_no_other(
    client, kind, receiver
):
    """W179, W180."""
    path = f"/{kind}/signature"
    client.message.publish(url=receiver.url + path, body="signed")
    [received] = receiver.wait(path)

    def verify(current, next_, body="signed", url=receiver.url + path):
        qstash.Receiver(current_signing_key=current, next_signing_key=next_).verify(
            signature=received.header["upstash-signature"], body=body, url=url
        )

    verify(USER.current, USER.next)
    verify("sig_rotated_away", USER.current)
    with pytest.raises(SignatureError, match="Signature verification failed"):
        verify("sig_of_nobody", USER.next)
    with pytest.raises(SignatureError, match="Invalid body hash"):
        verify(USER.current, USER.current, body="changed")
    with pytest.raises(SignatureError, match="Invalid subject"):
        verify(USER.current, USER.current, url=receiver.url)


async def test_many_are_published_at_once(server, receiver):
    """Nothing is lost, nothing comes twice."""
    client = AsyncQStash(DEV_TOKEN, retry=False, base_url=server.url)
    try:
        sent = await asyncio.gather(
            *(
                client.message.publish(url=f"{receiver.url}/many", body=str(number))
                for number in range(100)
            )
        )
    finally:
        await client.http._client.aclose()

    received = await asyncio.to_thread(receiver.wait, "/many", 100)
    assert len({one.message_id for one in sent}) == 100
    assert sorted(int(one.body) for one in received) == list(range(100))
    assert not any(one.fault for one in received)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"url": ""}, "a non-empty destination must be provided"),
        ({"url": "example.com/a"}, "endpoint has invalid scheme, add http:// or https://"),
        ({"url": "ftp://example.com/"}, "endpoint has invalid scheme, add http:// or https://"),
        ({"url": "http://"}, "invalid destination url"),
        ({"delay": "soon"}, "Upstash-Delay: "),
        ({"delay": -5}, "Upstash-Delay: "),
        ({"delay": "400d"}, "quota maxDelay exceeded, current limit: 31536000"),
        ({"not_before": "tomorrow"}, "Upstash-Not-Before: "),
        ({"retries": -1}, "Upstash-Retries: "),
        ({"retries": 101}, "quota maxRetries exceeded"),
        ({"retry_delay": "pow(2,"}, "Upstash-Retry-Delay: "),
        ({"retry_delay": "__import__('os')"}, "Upstash-Retry-Delay: "),
        ({"method": "TRACE"}, "Upstash-Method: "),
        ({"deduplication_id": "a:b"}, "DeduplicationId cannot contain ':'"),
        ({"content_based_deduplication": "yes"}, "Upstash-Content-Based-Deduplication: "),
        ({"timeout": "3h"}, "quota maxTimeout exceeded, current limit: 7200"),
        ({"timeout": "long"}, "Upstash-Timeout: "),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(map(str, value)),
)
def test_what_is_wrong_is_said_and_nothing_is_accepted(clients, options, why, receiver):
    """W3-W5, W30, W31, W39, W47, W53, W62: the text is what the SDK's user gets to see."""
    nobody = clients(DEV_USERS[3].token)

    with pytest.raises(QStashError) as refused:
        nobody.message.publish(**{"url": f"{receiver.url}/refused", **options})

    status, body = str(refused.value).split(", body: ", 1)
    assert status == "Request failed with status: 400"
    answer = json.loads(body)
    assert list(answer) == ["error"]
    assert why in answer["error"]
    assert nobody.log.list().logs == []
    assert receiver.got("/refused") == []


def test_a_wrong_token_is_said_to_be_wrong(clients, receiver):
    """W3."""
    stranger = clients("wrong")

    for call in (
        lambda: stranger.message.publish(url=receiver.url),
        lambda: stranger.log.list(),
        lambda: stranger.signing_key.get(),
    ):
        with pytest.raises(QStashError) as refused:
            call()
        assert str(refused.value) == (
            "Request failed with status: 401, "
            'body: {"error":"unable to authenticate: invalid token"}'
        )


def test_a_queue_needs_a_proper_name(client, receiver):
    """W115."""
    with pytest.raises(QStashError, match=r"status: 400.*queue: a name has letters"):
        client.message.enqueue(queue="a b", url=receiver.url)


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (lambda client: client.message.get("msg_unknown"), "message msg_unknown not found"),
        (lambda client: client.dlq.get("1795354019392-1"), "1795354019392-1 not found"),
        (lambda client: client.dlq.get("unknown"), "unknown not found"),
        (lambda client: client.queue.get("unknown"), "queue unknown not found"),
    ],
    ids=["message", "dead letter", "dead letter of no form", "queue"],
)
def test_what_is_not_there_is_not_found(client, ask, what):
    """W97, W153."""
    with pytest.raises(QStashError) as refused:
        ask(client)

    assert str(refused.value).startswith("Request failed with status: 404, body: ")
    assert what in str(refused.value)
