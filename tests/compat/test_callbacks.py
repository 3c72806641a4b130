"""Callbacks and `api/llm`, asked for by both SDKs and verified by the receivers of both."""

import base64
import json

import pytest
from qstash.chat import custom
from qstash.errors import QStashError

from tests.compat.conftest import LLM_KEY
from tests.support.receiver import Reply

COMPLETION = b'{"choices": [{"message": {"role": "assistant", "content": "Hello."}}]}'
BODY = {"model": "gpt-test", "messages": [{"role": "user", "content": "Hello?"}]}


def said(received):
    return json.loads(received.body)


def text(encoded):
    return base64.b64decode(encoded).decode()


def told_of(receiver, path, message_id, count=1):
    """What a path was told about a message, once it was told so often."""
    number = count
    while True:
        received = receiver.wait(path, number)
        found = [one for one in received if said(one)["sourceMessageId"] == message_id]
        if len(found) >= count:
            return found
        number = len(received) + 1


# The Python SDK.


def test_the_python_sdk_asks_for_callbacks(client, kind, server, receiver):
    """W195, W196, W198-W200."""
    path = f"/{kind}/callbacks"
    work = receiver.answers(f"{path}/work", Reply(500, b"first"), Reply(200, b"then"))

    sent = client.message.publish_json(
        url=work,
        body={"hello": "world"},
        headers={"X-Own": "source"},
        retry_delay="0",
        callback=f"{receiver.url}{path}/each?a=b",
        callback_headers={"Retries": "1", "Method": "PUT", "Forward-X-Own": "mine"},
    )

    told = receiver.wait(f"{path}/each", 2)
    assert [one.fault for one in told] == [None, None]
    assert {one.method for one in told} == {"PUT"}
    assert {one.header["x-own"] for one in told} == {"mine"}
    assert {one.target for one in told} == {f"{path}/each?a=b"}
    answers = sorted(map(said, told), key=lambda one: one["retried"])
    assert [(one["status"], text(one["body"])) for one in answers] == [
        (500, "first"),
        (200, "then"),
    ]
    assert {one["sourceMessageId"] for one in answers} == {sent.message_id}
    assert [json.loads(text(one["sourceBody"])) for one in answers] == [{"hello": "world"}] * 2
    message = client.message.get(sent.message_id)
    assert message.callback == f"{receiver.url}{path}/each?a=b"
    assert message.callback_headers == {"X-Own": ["mine"]}
    assert message.failure_callback is None
    callback = client.message.get(told[0].header["upstash-message-id"])
    assert (callback.max_retries, callback.method) == (1, "PUT")


def test_the_python_sdk_finds_the_dead_letter_that_a_failure_callback_names(client, kind, receiver):
    """W197, W201: of a queued message."""
    path = f"/{kind}/failure"
    work = receiver.answers(f"{path}/work", Reply(404, b"nothing here"))

    sent = client.message.enqueue(
        queue=f"failing-{kind}",
        url=work,
        body="hello",
        retries=0,
        failure_callback=f"{receiver.url}{path}/failed",
        failure_callback_headers={"Upstash-Failure-Callback-Forward-X-Own": "mine"},
    )

    [told] = receiver.wait(f"{path}/failed")
    assert told.fault is None
    assert told.header["x-own"] == "mine"
    dead = client.dlq.get(said(told)["dlqId"])
    assert dead.message_id == sent.message_id
    assert dead.response_status == said(told)["status"] == 404
    assert dead.response_body == text(said(told)["body"]) == "nothing here"
    assert dead.failure_callback == f"{receiver.url}{path}/failed"
    assert dead.failure_callback_headers == {"X-Own": ["mine"]}
    assert client.message.get(told.header["upstash-message-id"]).max_retries == 0


def test_the_python_sdk_asks_a_provider_of_its_own(client, kind, receiver):
    """W32: to us a URL like any other."""
    path = f"/{kind}/own"
    receiver.answers(f"{path}/v1/chat/completions", Reply(200, COMPLETION))

    client.message.publish_json(
        api={"name": "llm", "provider": custom(receiver.url + path, "sk-own")},
        body=BODY,
        callback=f"{receiver.url}{path}/told",
    )

    [told] = receiver.wait(f"{path}/told")
    [asked] = receiver.got(f"{path}/v1/chat/completions")
    assert asked.header["authorization"] == "Bearer sk-own"
    assert asked.fault is None
    assert said(told)["url"] == f"{receiver.url}{path}/v1/chat/completions"
    assert text(said(told)["body"]).encode() == COMPLETION


def test_the_python_sdk_asks_the_llm(client, kind, receiver):
    """W32, W195: it has a word for providers only, but writes any name into the path."""
    receiver.answers("/v1/chat/completions", Reply(200, COMPLETION))

    sent = client.message.publish_json(
        url_group="api/llm", body=BODY, callback=f"{receiver.url}/{kind}/llm/told"
    )

    [told] = receiver.wait(f"/{kind}/llm/told")
    assert told.fault is None
    assert said(told)["sourceMessageId"] == sent.message_id
    assert text(said(told)["body"]).encode() == COMPLETION
    assert client.message.get(sent.message_id).url == "api/llm"
    with pytest.raises(QStashError, match="Upstash-Callback: api/llm needs one"):
        client.message.publish_json(url_group="api/llm", body=BODY)


# The npm SDK.


def test_the_npm_sdk_asks_for_callbacks(javascript, receiver):
    """W195, W197, W199, W200."""
    receiver.answers("/js/callbacks/work", Reply(202, b"taken"))
    refusing = receiver.answers("/js/callbacks/refusing", Reply(500, b"no"))

    asked = javascript("callbacks.mjs", {"receiver": receiver.url, "refusing": refusing})

    [told] = receiver.wait("/js/callbacks/each")
    [failed] = receiver.wait("/js/callbacks/failed")
    assert (told.fault, failed.fault) == (None, None)
    assert (told.method, told.header["x-own"]) == ("PUT", "mine")
    assert said(told)["sourceMessageId"] == asked["sent"]["delivered"]["messageId"]
    assert (said(told)["status"], text(said(told)["body"])) == (202, "taken")
    assert said(failed)["sourceMessageId"] == asked["sent"]["failed"]["messageId"]
    assert said(failed)["dlqId"]
    messages = asked["messages"]
    assert messages["delivered"]["callback"] == f"{receiver.url}/js/callbacks/each"
    assert messages["failed"]["failureCallback"] == f"{receiver.url}/js/callbacks/failed"
    assert "callback" not in messages["failed"]


def test_the_npm_sdks_receiver_verifies_a_callback(client, kind, receiver, js_receiver):
    """W199."""
    url, heard = js_receiver
    client.message.publish(
        url=f"{receiver.url}/{kind}/verified", callback=f"{url}/callback?a=b", body="x"
    )

    line = heard.next()

    assert (line["path"], line["verified"]) == ("/callback?a=b", True)
    assert line["ofAnotherUrl"] is not True
    assert json.loads(line["body"])["url"] == f"{receiver.url}/{kind}/verified"


def test_the_npm_sdk_asks_the_llm(javascript, receiver):
    """W32, W195: by name, with the provider of Upstash, from a queue, and one of its own."""
    receiver.answers("/v1/chat/completions", Reply(200, COMPLETION))
    receiver.answers("/own/v1/chat/completions", Reply(200, COMPLETION))

    asked = javascript("llm.mjs", {"receiver": receiver.url})

    sent = {name: one["messageId"] for name, one in asked["sent"].items()}
    for name, message_id in sent.items():
        [told] = told_of(receiver, "/js/llm/told", message_id)
        assert told.fault is None
        assert text(said(told)["body"]).encode() == COMPLETION
        message = asked["messages"][name]
        assert message["method"] == "POST"
        assert message.get("api") == (None if name == "custom" else "llm")
    asked_of_us = {
        one.header["upstash-message-id"]: one for one in receiver.got("/v1/chat/completions")
    }
    for name in ("byName", "upstash", "queued"):
        asked_once = asked_of_us[sent[name]]
        assert asked_once.header["authorization"] == f"Bearer {LLM_KEY}"
        assert "upstash-signature" not in asked_once.header
    [own] = receiver.got("/own/v1/chat/completions")
    assert own.header["authorization"] == "Bearer sk-own"
