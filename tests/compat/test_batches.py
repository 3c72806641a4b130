"""Batches, with both SDKs, unmodified, against a running Waypost (contract section 3)."""

import json

import pytest
from qstash.errors import QStashError


@pytest.fixture
def group(client, receiver):
    """A URL group of two endpoints."""
    name = "batch-group"
    urls = [f"{receiver.url}/batch/one", f"{receiver.url}/batch/other"]
    client.url_group.upsert_endpoints(name, [{"url": url} for url in urls])
    yield name
    client.url_group.delete(name)


def test_the_python_sdk_sends_a_batch(client, kind, group, receiver):
    """W81, W83-W85, W87, W88, W90, W91."""
    path = f"/{kind}/batch"
    url = receiver.url + path

    sent = client.message.batch_json(
        [
            {"url": url, "body": {"number": 0}, "headers": {"X-Own": "first"}, "retries": 0},
            {"url_group": group, "body": {"number": 1}, "delay": "1h"},
            {"url": url, "queue": f"{kind}-batch", "body": {"number": 2}},
            {"url": url, "deduplication_id": f"{kind}-once-in-a-batch"},
            {"url": url, "deduplication_id": f"{kind}-once-in-a-batch"},
        ]
    )

    single, several, queued, first, again = sent
    assert [one.url.rpartition("/")[2] for one in several] == ["one", "other"]
    assert client.message.get(single.message_id).max_retries == 0
    assert client.message.get(queued.message_id).queue == f"{kind}-batch"
    assert client.message.get(several[0].message_id).url_group == group
    assert (again.message_id, again.deduplicated) == (first.message_id, True)
    received = {one.header["upstash-message-id"]: one for one in receiver.wait(path, 3)}
    assert received[single.message_id].header["x-own"] == "first"
    assert received[single.message_id].header["content-type"] == "application/json"
    assert json.loads(received[queued.message_id].body) == {"number": 2}
    assert received[first.message_id].body in (b"", b"null")
    for one in several:
        client.message.cancel(one.message_id)


def test_a_batch_of_one_is_a_list_and_a_bad_one_is_refused_whole(client, receiver, server):
    """W82, W89."""
    url = f"{receiver.url}/batch/alone"

    [sent] = client.message.batch([{"url": url, "delay": "1h"}])

    assert client.message.get(sent.message_id).url == url
    client.message.cancel(sent.message_id)
    with pytest.raises(QStashError, match=r"status: 400.*\[1\]: quota maxRetries exceeded"):
        client.message.batch([{"url": url}, {"url": url, "retries": 101}])
    assert receiver.got("/batch/alone") == []


def test_the_javascript_sdk_sends_batches(javascript, receiver):
    """W81-W85, W87-W91."""
    group = "js-batch-group"
    given = {"receiver": receiver.url, "queue": "js-batch", "group": group}

    said = javascript("batch.mjs", given)

    single, several, queued, first, again = said["sent"]
    assert [one["url"].rpartition("/")[2] for one in several] == ["one", "other"]
    assert again == {"messageId": first["messageId"], "deduplicated": True}
    messages = {one["messageId"]: one for one in said["messages"]}
    assert messages[single["messageId"]]["labels"] == ["a", "b"]
    assert messages[single["messageId"]]["maxRetries"] == 0
    assert messages[several[1]["messageId"]]["urlGroup"] == group
    assert messages[queued["messageId"]]["queueName"] == "js-batch"
    received = {one.header["upstash-message-id"]: one for one in receiver.wait("/js/batch", 3)}
    assert received[single["messageId"]].header["x-own"] == "first"
    assert received[first["messageId"]].method == "PUT"
    assert json.loads(received[queued["messageId"]].body) == {"number": 2}
    assert said["refused"]["status"] == 400
    assert json.loads(said["refused"]["message"]) == {"error": "[1]: quota maxRetries exceeded"}
