"""What has not landed is refused, in words that name it, and nothing of it is accepted (D5).

Whoever lands one of these takes its line out, and shows in the tests of its
own that the SDKs can do it.
"""

import json
import re

import pytest
from qstash.errors import QStashError

from waypost.domain.dev_users import DEV_USERS

USER = DEV_USERS[3]
URL = "http://127.0.0.1:9/"

NO_ROUTE = ("404", r"[A-Z]+ /v2/\S+ is not supported yet")

PYTHON = {
    "flow control": (
        lambda client: client.message.publish(url=URL, flow_control={"key": "k", "rate": 1}),
        ("400", "Upstash-Flow-Control-(Key|Value) is not supported yet"),
    ),
    "redact": (
        lambda client: client.message.publish(url=URL, redact={"body": True}),
        ("400", "Upstash-Redact-Fields is not supported yet"),
    ),
    "batch": (lambda client: client.message.batch([{"url": URL}]), NO_ROUTE),
    "batch json": (lambda client: client.message.batch_json([{"url": URL}]), NO_ROUTE),
    "cancel many": (lambda client: client.message.cancel_many(["msg_a"]), NO_ROUTE),
    "cancel all": (lambda client: client.message.cancel_all(), NO_ROUTE),
    "schedule": (
        lambda client: client.schedule.create(destination=URL, cron="* * * * *"),
        NO_ROUTE,
    ),
    "schedule list": (lambda client: client.schedule.list(), NO_ROUTE),
    "queue upsert": (lambda client: client.queue.upsert("q", parallelism=2), NO_ROUTE),
    "queue list": (lambda client: client.queue.list(), NO_ROUTE),
    "queue pause": (lambda client: client.queue.pause("q"), NO_ROUTE),
    "queue delete": (lambda client: client.queue.delete("q"), NO_ROUTE),
    "dlq delete": (lambda client: client.dlq.delete("1-1"), NO_ROUTE),
    "dlq delete many": (lambda client: client.dlq.delete_many(["1-1"]), NO_ROUTE),
    "dlq by label": (
        lambda client: client.dlq.list(filter={"label": "x"}),
        ("400", "label is not supported yet"),
    ),
    "log by label": (
        lambda client: client.log.list(filter={"label": "x"}),
        ("400", "label is not supported yet"),
    ),
    "rotating keys": (lambda client: client.signing_key.rotate(), NO_ROUTE),
    "flow control get": (lambda client: client.flow_control.get("k"), NO_ROUTE),
}

JAVASCRIPT = {
    "flow control": ("400", "Upstash-Flow-Control-(Key|Value) is not supported yet"),
    "redact": ("400", "Upstash-Redact-Fields is not supported yet"),
    "batch": NO_ROUTE,
    "batch json": NO_ROUTE,
    "schedule": NO_ROUTE,
    "schedule list": NO_ROUTE,
    "queue upsert": NO_ROUTE,
    "queue list": NO_ROUTE,
    "queue pause": NO_ROUTE,
    "queue delete": NO_ROUTE,
    "cancel many": NO_ROUTE,
    "cancel all": NO_ROUTE,
    "dlq delete": NO_ROUTE,
    "dlq retry": NO_ROUTE,
    "dlq by label": ("400", "label is not supported yet"),
    "logs by label": ("400", "label is not supported yet"),
    "flow control get": NO_ROUTE,
}


def nothing_was_accepted(server):
    return server.call("GET", "/v2/events", token=USER.token) == (200, b'{"events":[]}')


@pytest.mark.parametrize("name", PYTHON)
def test_the_python_sdk_hears_that_it_is_not_there_yet(clients, server, name):
    """D5, W4, W32."""
    call, (status, text) = PYTHON[name]

    with pytest.raises(QStashError) as refused:
        call(clients(USER.token))

    found = re.fullmatch(r"Request failed with status: (\d+), body: (.*)", str(refused.value))
    assert found is not None, refused.value
    assert re.fullmatch(status, found[1]), refused.value
    error = json.loads(found[2])["error"]
    assert error
    assert re.search(text, error)
    assert nothing_was_accepted(server)


def test_the_javascript_sdk_hears_that_it_is_not_there_yet(javascript, server):
    """D5, W4, W32."""
    given = {"receiver": "http://127.0.0.1:9", "names": list(JAVASCRIPT)}

    said = javascript("attempt.mjs", given, token=USER.token)

    for name, refused in said.items():
        status, text = JAVASCRIPT[name]
        assert refused.get("name") == "QstashError", (name, refused)
        assert re.fullmatch(status, str(refused["status"])), (name, refused)
        error = json.loads(refused["message"])["error"]
        assert error, name
        assert re.search(text, error), (name, error)
    assert nothing_was_accepted(server)
