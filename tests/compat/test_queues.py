"""Queues, with both SDKs, unmodified, against a running Waypost (contract section 7)."""

import json

import pytest
from qstash.errors import QStashError

from tests.compat.history import history
from tests.support.program import eventually


@pytest.fixture
def name(client, kind):
    """A name that no queue has."""
    name = f"_{kind}-Queue"
    client.queue.delete(name)
    yield name
    client.queue.delete(name)


def test_a_queue_is_made_changed_listed_and_ended(client, name):
    """W109, W110, W112, W113."""
    client.queue.upsert(name, parallelism=1)
    made = client.queue.get(name)
    client.queue.upsert(name, parallelism=2, paused=True)
    changed = client.queue.get(name)

    assert (made.name, made.parallelism, made.paused, made.lag) == (name, 1, False, 0)
    assert (changed.parallelism, changed.paused) == (2, True)
    assert changed.created_at == made.created_at
    assert changed in client.queue.list()
    client.queue.delete(name)
    client.queue.delete(name)
    assert name not in [queue.name for queue in client.queue.list()]
    with pytest.raises(QStashError, match=rf"status: 404.*queue {name} not found"):
        client.queue.get(name)


def test_a_paused_queue_keeps_its_messages_until_it_is_resumed(client, kind, name, receiver):
    """W114, W116."""
    path = f"/{kind}/paused"
    client.queue.upsert(name, paused=True)
    sent = client.message.enqueue(queue=name, url=receiver.url + path, body="x")

    assert client.queue.get(name).lag == 1
    client.queue.resume(name)

    [received] = receiver.wait(path)
    assert received.header["upstash-message-id"] == sent.message_id
    eventually(lambda: client.queue.get(name).lag == 0)
    client.queue.pause(name)
    assert client.queue.get(name).paused


def test_what_waits_in_a_queue_that_ends_is_cancelled(client, kind, name, server, receiver):
    """W113, D28."""
    client.queue.upsert(name, paused=True)
    sent = client.message.enqueue(queue=name, url=f"{receiver.url}/{kind}/never", body="x")

    client.queue.delete(name)

    assert history(server, sent.message_id) == ["CREATED", "CANCEL_REQUESTED", "CANCELED"]


def test_bad_queues_are_refused(client):
    """W111, W115."""
    with pytest.raises(QStashError, match=r"status: 400.*parallelism: 0 is not from 1"):
        client.queue.upsert("q", parallelism=0)
    with pytest.raises(QStashError, match=r"status: 400.*queueName: a name has letters"):
        client.queue.upsert("a b")


def test_the_javascript_sdk_has_queues_too(javascript, server, receiver):
    """W109-W116."""
    said = javascript("queues.mjs", {"receiver": receiver.url, "name": "_js-Queue"})

    assert set(said["made"]) == {"name", "parallelism", "createdAt", "updatedAt", "lag", "paused"}
    assert (said["made"]["parallelism"], said["made"]["paused"]) == (2, False)
    assert (said["paused"]["parallelism"], said["paused"]["paused"]) == (1, True)
    assert said["holding"]["lag"] == 1
    assert said["holding"] in said["listed"]
    assert said["resumed"]["paused"] is False
    [received] = receiver.wait("/js/queues")
    assert received.header["upstash-message-id"] == said["messageId"]
    assert history(server, said["waiting"])[-1] == "CANCELED"
    for name, status, text in (
        ("ended", 404, "queue _js-Queue not found"),
        ("unknown", 404, "queue _js-Queue not found"),
        ("none", 400, "parallelism: 0 is not from 1 to 10000"),
    ):
        assert said[name]["status"] == status
        assert json.loads(said[name]["message"]) == {"error": text}
