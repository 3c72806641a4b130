"""The log by every filter that the SDKs have, and what is redacted of it."""

import base64
import time
from hashlib import sha256

import pytest
from qstash.errors import QStashError
from qstash.log import LogState

from tests.compat.history import history
from tests.support.receiver import Reply

SECRET = "a very secret text"


def hidden(secret):
    return f"REDACTED:{sha256(secret.encode()).hexdigest()}"


# The Python SDK.


def test_the_python_sdk_finds_entries_by_what_their_messages_are(client, kind, receiver):
    """W57, W58, W167, W171-W173."""
    to, name = f"{receiver.url}/{kind}/logs", f"{kind}-logs"
    client.url_group.upsert_endpoints(url_group=name, endpoints=[{"url": f"{to}/group"}])
    begun_ms = int(time.time() * 1000)
    one = client.message.publish(url=f"{to}/one?a=b", label=name, delay="1h")
    other = client.message.publish(url=f"{to}/other", label=f"{name}-other", delay="1h")
    queued = client.message.enqueue(queue=name, url=f"{to}/queued")
    [grouped] = client.message.publish(url_group=name, delay="1h")
    client.url_group.delete(name)

    def found(**wanted):
        page = client.log.list(filter=wanted)
        assert page.cursor is None
        return {log.message_id for log in page.logs}

    assert found(label=name) == {one.message_id}
    assert found(label=f"{name}-other", from_time=begun_ms) == {other.message_id}
    assert found(url=f"{to}/one?a=b") == {one.message_id}
    assert found(url=f"{to}/one?a=b", label=f"{name}-other") == set()
    assert found(queue=name) == {queued.message_id}
    assert found(url_group=name) == {grouped.message_id}
    assert found(message_ids=[one.message_id, other.message_id], label=name) == {one.message_id}
    assert found(label=name, to_time=begun_ms - 60_000) == set()
    assert found(label=name, from_time=int(time.time() * 1000) + 60_000) == set()
    assert found(schedule_id="scd_none") == set()
    [log] = client.log.list(filter={"url_group": name}).logs
    assert log.url_group == name
    assert client.log.list(filter={"label": name}).logs[0].label == name


def test_the_python_sdk_asks_for_what_is_in_progress(client, kind, server, receiver):
    """W170."""
    url = receiver.answers(f"/{kind}/progress", Reply(500), Reply(200))
    sent = client.message.publish(url=url, retry_delay="0", label=f"{kind}-progress")
    history(server, sent.message_id)

    def states(state):
        logs = client.log.list(filter={"label": f"{kind}-progress", "state": state}).logs
        return {log.state for log in logs}

    assert states(LogState.IN_PROGRESS) == {LogState.ACTIVE, LogState.ERROR, LogState.RETRY}
    assert states(LogState.DELIVERED) == {LogState.DELIVERED}
    assert states(LogState.CANCELED) == set()


@pytest.mark.parametrize(
    ("redact", "body", "named", "other"),
    [
        ({"body": True}, True, False, False),
        ({"header": True}, False, True, True),
        ({"header": ["X-Secret"]}, False, True, False),
        ({"body": True, "header": ["X-Secret"]}, True, True, False),
    ],
)
def test_the_python_sdk_redacts(
    client, kind, server, receiver, redact, body, named, other
):  # fmt: skip
    """W68-W72, W74."""
    path = f"/{kind}/redact/{len(repr(redact))}"
    sent = client.message.publish(
        url=receiver.url + path,
        body=SECRET,
        headers={"X-Secret": SECRET, "X-Other": "other"},
        redact=redact,
    )
    history(server, sent.message_id)

    [received] = receiver.wait(path)
    assert (received.fault, received.body) == (None, SECRET.encode())
    assert (received.header["x-secret"], received.header["x-other"]) == (SECRET, "other")
    message = client.message.get(sent.message_id)
    assert message.body == (hidden(SECRET) if body else SECRET)
    assert message.headers["X-Secret"] == [hidden(SECRET) if named else SECRET]
    assert message.headers["X-Other"] == [hidden("other") if other else "other"]
    for log in client.log.list(filter={"message_id": sent.message_id}).logs:
        assert base64.b64decode(log.body_base64).decode() == message.body
        assert log.headers == message.headers


def test_the_python_sdk_hears_of_a_filter_that_there_is_not(client):
    """W170: of a page that is too long, too."""
    for wrong in ({"count": 1_001}, {"cursor": "nonsense"}):
        with pytest.raises(QStashError, match="status: 400"):
            client.log.list(**wrong)


# The npm SDK.


def test_the_javascript_sdk_has_an_older_name_for_the_same(javascript, receiver):
    """`events`, deprecated, is `logs`."""
    said = javascript("events.mjs", {"url": f"{receiver.url}/js/events"})

    [created] = said["events"]["events"]
    assert (created["messageId"], created["state"]) == (said["messageId"], "CREATED")
    assert said["events"] == said["logs"]
    assert said["events"]["logs"] == [created]


def test_the_javascript_sdk_finds_entries_by_what_their_messages_are(javascript, receiver):
    """W57, W58, W64, W68-W74, W167, W170-W173."""
    said = javascript("logs.mjs", {"receiver": receiver.url})

    assert {name: one["names"] for name, one in said["answers"].items()} == {
        "label": ["one"],
        "labels": ["one", "three"],
        "url": ["one"],
        "urls": ["one", "three"],
        "urlGroup": ["grouped"],
        "queue": ["queued"],
        "key": ["keyed"],
        "hostAndPath": ["one", "queued"],
        "both": [],
        "state": ["one"],
        "inProgress": [],
        "until": [],
        "none": [],
    }
    assert {one["cursor"] for one in said["answers"].values()} == {None}
    [entry] = said["entries"]
    assert (entry["label"], entry["labels"]) == ("js-one", ["js-one", "js-two"])
    for entry in said["keyed"]:
        assert (entry["flowControlKey"], entry["rate"], entry["period"]) == ("js-logs", 5, 5403)
    assert said["misspelled"]["status"] == 400

    secret = "js-very-secret"
    plain = {"Authorization": [secret], "Content-Type": ["text/plain"]}
    all_hidden = {name: [hidden(value)] for name, [value] in plain.items()}
    for name, body, header in (
        ("body", hidden(secret), plain),
        ("header", secret, all_hidden),
        ("named", secret, plain | {"Authorization": [hidden(secret)]}),
    ):
        shown = said["redacted"][name]
        assert (shown["message"]["body"], shown["message"]["header"]) == (body, header)
        assert shown["logs"]
        for entry in shown["logs"]:
            assert base64.b64decode(entry["body"]).decode() == body
            assert entry["header"] == header
