"""The npm SDK `@upstash/qstash`, unmodified, on node, against a running Waypost.

The programs are in `js/`; what they say is judged here.  Rows of the wire
contract that a test shows are in its docstring, as W14.
"""

import base64
import json

from tests.compat.history import history
from tests.support.program import eventually
from tests.support.receiver import Reply
from waypost.domain.dev_users import DEV_USERS


def test_every_way_to_publish_arrives_and_verifies(javascript, server, receiver):
    """W12, W14-W18, W20, W22, W23, W25, W34-W36, W40, W57-W59, W93, W95."""
    said = javascript("publish.mjs", {"receiver": receiver.url})
    sent, messages = said["sent"], said["messages"]

    for name, message in messages.items():
        assert sent[name]["messageId"].startswith("msg_")
        assert message["messageId"] == sent[name]["messageId"]
        assert history(server, message["messageId"]) == ["CREATED", "ACTIVE", "DELIVERED"]

    [text] = receiver.wait("/js/text")
    assert text.fault is None
    assert text.target == "/js/text?foo=bar&q=a%20b"
    assert text.body == "snow ☃".encode()
    assert text.header["content-type"] == "text/plain"
    assert text.header["x-custom"] == "one"
    assert text.header["upstash-message-id"] == sent["text"]["messageId"]
    assert not [name for name in text.header if "telemetry" in name or "forward" in name]
    assert messages["text"]["url"] == f"{receiver.url}/js/text?foo=bar&q=a%20b"
    assert messages["text"]["header"] == {"Content-Type": ["text/plain"], "X-Custom": ["one"]}
    assert messages["text"]["body"] == "snow ☃"

    [received] = receiver.wait("/js/json")
    assert received.fault is None
    assert received.method == "PUT"
    assert json.loads(received.body) == {"hello": "world"}
    assert received.header["content-type"] == "application/json"
    assert received.header["my-header"] == "mine"
    message = messages["json"]
    assert message["maxRetries"] == 5
    assert message["retryDelayExpression"] == "1000 * (1 + retried)"
    assert message["label"] == "first"
    assert message["labels"] == ["first", "second"]
    assert message["notBefore"] >= message["createdAt"]

    [received] = receiver.wait("/js/bytes")
    assert received.body == b"\x00\xff\xfe\n"
    assert base64.b64decode(messages["bytes"]["bodyBase64"]) == b"\x00\xff\xfe\n"

    [received] = receiver.wait("/js/empty")
    assert (received.body, received.fault) == (b"", None)
    assert "content-type" not in received.header

    [received] = receiver.wait("/js/forwarded")
    assert received.header["x-global"] == "everywhere"
    assert received.header["x-both"] == "own"

    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        [received] = receiver.wait(f"/js/{method}")
        assert (received.method, received.body, received.fault) == (method, b"x", None)


def test_messages_for_later_and_duplicates(javascript, receiver):
    """W41, W44-W46, W51, W54."""
    said = javascript("later.mjs", {"receiver": receiver.url})

    messages = said["messages"]
    wait_ms = {name: one["notBefore"] - one["createdAt"] for name, one in messages.items()}
    assert wait_ms["seconds"] == 60_000
    assert wait_ms["days"] == 10 * 86_400_000
    assert messages["notBefore"]["notBefore"] == round(said["notBefore"]) * 1_000

    first, second = said["duplicates"]["byId"]
    assert second == {**first, "deduplicated": True}
    first, same, other = said["duplicates"]["byContent"]
    assert same == {**first, "deduplicated": True}
    assert other["messageId"] != first["messageId"]
    assert "deduplicated" not in other
    assert receiver.got("/js/later") == []


def test_a_queue_delivers_in_order(javascript, receiver):
    """W75, W76, W78, W109, W227: with a name as the SDK's own tests make them."""
    said = javascript("queue.mjs", {"receiver": receiver.url, "queue": "_js-Queue.1"})

    received = receiver.wait("/js/queue", 6)
    assert [one.body for one in received] == [
        *(b'{"number":%d}' % number for number in range(5)),
        b"last",
    ]
    assert [one.header["upstash-message-id"] for one in received] == [
        one["messageId"] for one in said["sent"]
    ]
    assert received[-1].header["x-last"] == "yes"
    assert not any(one.fault for one in received)
    assert said["message"]["queueName"] == "_js-Queue.1"
    queue = said["queue"]
    assert set(queue) == {"name", "parallelism", "createdAt", "updatedAt", "lag", "paused"}
    assert (queue["name"], queue["parallelism"], queue["paused"]) == ("_js-Queue.1", 1, False)


def test_a_message_is_cancelled_in_both_ways(javascript, server, receiver):
    """W97, W98, W100, W169."""
    said = javascript("cancel.mjs", {"receiver": receiver.url})

    assert said["cancelled"] == {"cancelled": 1}
    assert said["again"] == {"cancelled": 0}
    for message_id in said["messageIds"]:
        assert history(server, message_id)[-1] == "CANCELED"
    for refused in (said["unknown"], said["unknownGet"]):
        assert refused == {
            "name": "QstashError",
            "status": 404,
            "message": '{"error":"message msg_unknown not found"}',
        }
    assert receiver.got("/js/cancelled") == []


def test_the_log_and_the_dead_letters_are_read(javascript, server, receiver):
    """W145-W148, W151, W152, W164, W166, W167, W170, W173, W174."""
    user = DEV_USERS[2]
    url = receiver.answers("/js/404", Reply(404, b"404 Not Found"))

    def publish():
        status, body = server.call(
            "POST",
            f"/v2/publish/{url}?foo=bar",
            token=user.token,
            body=b"lost",
            Upstash_Retries="0",
            Upstash_Label="a,b",
            Content_Type="text/plain",
        )
        assert status == 200, body
        return json.loads(body)["messageId"]

    message_ids = [publish() for _ in range(3)]
    for message_id in message_ids:
        receiver.wait("/js/404", 3)
        wait_for_dead(server, user.token, message_id)

    said = javascript(
        "read.mjs",
        {"messageId": message_ids[0], "messageIds": message_ids, "state": "IN_PROGRESS"},
        token=user.token,
    )

    logs = said["logs"]
    assert [log["state"] for log in logs] == ["FAILED", "ERROR", "ACTIVE", "CREATED"]
    assert said["cursor"] is None
    for log in logs:
        assert log["messageId"] == message_ids[0]
        assert base64.b64decode(log["body"]) == b"lost"
        assert log["header"] == {"Content-Type": ["text/plain"]}
        assert (log["label"], log["labels"]) == ("a", ["a", "b"])
        assert log["url"] == f"{url}?foo=bar"
    assert logs[1]["responseStatus"] == 404
    assert base64.b64decode(logs[1]["responseBody"]) == b"404 Not Found"
    assert said["ofState"] == ["ERROR", "ACTIVE"]
    assert sorted(set(said["ofMessageIds"])) == sorted(message_ids)
    assert len(said["ofMessageIds"]) == 12
    assert said["ofNobody"] == {"logs": [], "events": []}
    assert said["misspelled"]["status"] == 400
    assert "mesageId" in said["misspelled"]["message"]

    assert [len(page) for page in said["paged"]] == [3, 3, 3, 3]
    assert len({tuple(entry) for page in said["paged"] for entry in page}) == 12

    dead = [one for one in said["deadLetters"] if one["messageId"] in message_ids]
    assert {one["messageId"] for one in dead} == set(message_ids)
    assert set(said["pages"][:-1]) == {2}
    for one in dead:
        assert one["dlqId"]
        assert one["url"] == f"{url}?foo=bar"
        assert one["responseStatus"] == 404
        assert one["responseBody"] == "404 Not Found"
        assert one["body"] == "lost"
        assert one["labels"] == ["a", "b"]


def wait_for_dead(server, token, message_id):
    def dead():
        _, body = server.call("GET", f"/v2/events?messageId={message_id}", token=token)
        return json.loads(body)["events"][0]["state"] == "FAILED"

    eventually(dead)


def test_the_sdks_receiver_verifies(client, js_receiver):
    """W179-W181: what Python published, node verifies, and not what was changed on the way."""
    url, heard = js_receiver
    client.message.publish(url=f"{url}/signed?a=b", body="snow ☃")

    said = heard.next()

    assert said["body"] == "snow ☃"
    assert said["verified"] is True
    assert said["ofAnotherBody"].startswith("SignatureError: body hash does not match")
    assert said["ofAnotherUrl"].startswith("SignatureError: invalid subject")

    client.message.publish(url=f"{url}/signed")
    said = heard.next()
    assert (said["body"], said["verified"]) == ("", True)


def test_the_sdks_receiver_knows_the_next_key_and_no_other(client, js_receiver):
    """W179: a receiver that is one rotation behind still understands."""
    url, heard = js_receiver

    client.message.publish(url=f"{url}/rotated", body="x")
    assert heard.next()["verified"] is True

    client.message.publish(url=f"{url}/stranger", body="x")
    assert heard.next()["verified"] == "SignatureError: signature verification failed"


def test_a_next_js_page_verifies(client, js_receiver):
    """W179: through `verifySignature`, as most users of the SDK do it."""
    url, heard = js_receiver

    client.message.publish_json(url=f"{url}/page", body={"a": 1})

    assert heard.next() == {"path": "/page", "body": {"a": 1}, "verified": True}


REFUSALS = {
    "no scheme": "endpoint has invalid scheme, add http:// or https://",
    "wrong scheme": "endpoint has invalid scheme, add http:// or https://",
    "delay in words": "Upstash-Delay: ",
    "delay of years": "quota maxDelay exceeded, current limit: 31536000",
    "negative delay": "Upstash-Delay: ",
    "negative retries": "Upstash-Retries: ",
    "101 retries": "quota maxRetries exceeded",
    "broken retry delay": "Upstash-Retry-Delay: ",
    "foreign retry delay": "Upstash-Retry-Delay: ",
    "unknown method": "Upstash-Method: ",
    "colon in the id": "DeduplicationId cannot contain ':'",
    "timeout of hours": "quota maxTimeout exceeded",
    "queue name with a blank": "queue: a name has letters",
}


def test_what_is_wrong_is_said_and_nothing_is_accepted(javascript, server, receiver):
    """W3-W5, W30, W39, W47, W53, W62, W115."""
    user = DEV_USERS[3]
    names = ["wrong token", *REFUSALS]

    said = javascript("attempt.mjs", {"receiver": receiver.url, "names": names}, token=user.token)

    assert said.pop("wrong token") == {
        "name": "QstashError",
        "status": 401,
        "message": '{"error":"unable to authenticate: invalid token"}',
    }
    for name, refused in said.items():
        assert (refused["name"], refused["status"]) == ("QstashError", 400), name
        assert REFUSALS[name] in json.loads(refused["message"])["error"], name
    assert server.call("GET", "/v2/events", token=user.token) == (200, b'{"events":[]}')
    assert receiver.got("/js/refused") == []
