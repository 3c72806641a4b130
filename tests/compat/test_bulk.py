"""Cancelling many, and the dead letter queue, as both SDKs speak of them.

Rows of the wire contract that a test shows are in its docstring, as W14.
"""

import json

import pytest
from qstash.errors import QStashError
from qstash.log import LogState

from tests.support.program import eventually
from tests.support.receiver import Reply
from waypost.domain.dev_users import DEV_USERS

USER = DEV_USERS[1]


def dead(client, url, *, count=1, **options):
    """Messages that failed, as the SDK tells of them."""
    sent = {client.message.publish(url=url, retries=0, **options).message_id for _ in range(count)}

    def there():
        found = {one.message_id: one for one in client.dlq.list().messages}
        return [found[one] for one in sent] if sent <= set(found) else None

    eventually(lambda: there() is not None)
    return there()


def test_many_messages_are_cancelled(clients, kind, receiver):
    """W102, W103, W108: delayed, and waiting for a retry."""
    client = clients(USER.token)
    client.message.cancel_all()
    url = receiver.answers(f"/{kind}/cancelled-many", Reply(404))
    failing = [client.message.publish(url=url).message_id for _ in range(2)]
    for one in failing:
        where = {"message_id": one, "state": LogState.RETRY}
        eventually(lambda where=where: client.log.list(filter=where).logs)
    delayed = [client.message.publish(url=url, delay="1h").message_id for _ in range(3)]

    assert client.message.cancel_many(failing) == 2
    assert client.message.cancel_many([*failing, delayed[0], "msg_unknown"]) == 1
    assert client.message.cancel_all() == 2
    assert client.message.cancel_all() == 0
    assert len(receiver.got(f"/{kind}/cancelled-many")) == 2


def test_dead_letters_are_found_and_deleted(clients, kind, receiver):
    """W149-W151, W153-W156."""
    client = clients(USER.token)
    url = receiver.answers(f"/{kind}/dead-many", Reply(404, b"404 Not Found"))
    label = f"{kind}-dead"
    letters = dead(client, url, count=3, label=label, retry_delay="15000")
    first = letters[0]

    assert client.dlq.get(first.dlq_id) == first
    assert first.response_body == "404 Not Found"
    assert (first.label, first.retry_delay_expression) == (label, "15000")
    for wanted in (
        {"message_id": first.message_id},
        {"url": url, "label": label, "message_id": first.message_id},
        {"response_status": 404, "caller_ip": "127.0.0.1", "message_id": first.message_id},
        {"from_time": first.created_at, "message_id": first.message_id},
    ):
        assert client.dlq.list(filter=wanted, count=1).messages == [first]
    for other in (
        {"label": label, "url_group": "none"},
        {"label": label, "queue": "none"},
        {"label": label, "schedule_id": "none"},
        {"label": label, "to_time": 2000},
    ):
        found = client.dlq.list(filter=other)
        assert (found.messages, found.cursor) == ([], None)

    client.dlq.delete(first.dlq_id)
    with pytest.raises(QStashError, match="status: 404"):
        client.dlq.delete(first.dlq_id)
    with pytest.raises(QStashError, match="status: 404"):
        client.dlq.get(first.dlq_id)
    assert client.dlq.delete_many([one.dlq_id for one in letters]) == 2
    assert client.dlq.delete_many([one.dlq_id for one in letters]) == 0
    assert client.dlq.list(filter={"label": label}).messages == []


def test_messages_are_cancelled_by_every_filter(javascript):
    """W101, W103-W107."""
    said = javascript("cancel_many.mjs", token=USER.token)

    assert said == {
        "ids": {"cancelled": 2},
        "none": {"cancelled": 0},
        "label, one of them": {"cancelled": 1},
        "labels": {"cancelled": 3},
        "flow control key": {"cancelled": 1},
        "flow control keys": {"cancelled": 2},
        "path": {"cancelled": 1},
        "paths": {"cancelled": 2},
        "host": {"cancelled": 1},
        "queue and url": {"cancelled": 1},
        "dates": {"cancelled": 1},
        "deleteMany": 2,
        "all": {"cancelled": 1},
        "all again": 0,
        "misspelled": said["misspelled"],
    }
    assert said["misspelled"]["status"] == 400
    assert "labeel" in said["misspelled"]["message"]


def test_dead_letters_are_deleted_and_retried(javascript, receiver):
    """W149, W151, W154-W160."""
    failing = receiver.answers("/js/dlq", *[Reply(404)] * 9, Reply(200))

    said = javascript("dead_letters.mjs", {"url": failing}, token=USER.token)

    assert said["listed"] == {"label": 3, "both labels": 4, "ids": 2, "key": 1, "none": 0}
    assert said["cursors"] == [None, None]
    assert said["key"] == {
        "flowControlKey": "js-dlq", "parallelism": 2, "rate": 7, "period": 60,
        "retryDelayExpression": "15000", "label": "js-one", "labels": ["js-one", "js-x"],
    }  # fmt: skip
    assert json.loads(said["misspelled"]["message"]) == {
        "error": "there is no query parameter labeel"
    }
    assert said["deleted"] == {"deleted": 1}
    for refused in ("deleted again", "deleted after a retry"):
        assert said[refused]["status"] == 404
    assert said["deleted many"] == [{"deleted": 0}, {"deleted": 1}]
    assert said["one of them"]["deleted"] == 1
    assert said["retried by id"] == 1
    assert said["nothing retried"] == [{"responses": []}] * 6
    assert said["retried by filter"] == 1
    assert said["retried, one of them"] == 1
    assert said["retried all"] == 1
    assert said["left"] == 0
