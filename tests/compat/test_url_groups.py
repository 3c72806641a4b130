"""URL groups, with both SDKs, unmodified, against a running Waypost (contract section 9)."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from qstash.errors import QStashError

from tests.compat.history import history
from tests.support.program import DEADLINE_S, DEV_TOKEN, clean_environ

PAGE = Path(__file__).parents[2] / "docs" / "url-groups.md"


@pytest.fixture
def group(client, kind):
    """A name that no group has; deleted first, as the SDK's own tests do (W141)."""
    name = f"_{kind}-Group"
    client.url_group.delete(name)
    yield name
    client.url_group.delete(name)


def test_a_group_grows_and_shrinks_and_ends(client, group):
    """W137-W142, W144."""
    began_ms = time.time_ns() // 1_000_000 - 1
    client.url_group.upsert_endpoints(
        url_group=group,
        endpoints=[{"url": "https://a.example"}, {"url": "https://b.example", "name": "b of two"}],
    )
    client.url_group.upsert_endpoints(group, [{"url": "https://c.example", "name": "b of two"}])

    found = client.url_group.get(group)
    assert found.name == group
    assert [(one.url, one.name) for one in found.endpoints] == [
        ("https://a.example", None),
        ("https://c.example", "b of two"),
    ]
    assert began_ms < found.created_at <= found.updated_at
    assert found in client.url_group.list()

    client.url_group.remove_endpoints(group, [{"name": "b of two"}])
    assert [one.url for one in client.url_group.get(group).endpoints] == ["https://a.example"]
    client.url_group.remove_endpoints(group, [{"url": "https://a.example"}])

    with pytest.raises(QStashError, match=rf"status: 404.*topic {group} not found"):
        client.url_group.get(group)
    with pytest.raises(QStashError, match=rf"status: 404.*topic {group} not found"):
        client.url_group.remove_endpoints(group, [{"name": "b of two"}])


def test_a_message_arrives_at_each_endpoint(client, kind, group, server, receiver):
    """W90, W91, W184: signed for each."""
    paths = [f"/{kind}/group/{number}" for number in range(2)]
    urls = [receiver.url + path for path in paths]
    client.url_group.upsert_endpoints(group, [{"url": url} for url in urls])

    sent = client.message.publish_json(url_group=group, body={"to": "both"})

    assert [one.url for one in sent] == urls
    assert len({one.message_id for one in sent}) == 2
    for one, path in zip(sent, paths, strict=True):
        [received] = receiver.wait(path)
        assert received.fault is None
        assert json.loads(received.body) == {"to": "both"}
        assert received.header["upstash-message-id"] == one.message_id
        assert received.header["upstash-topic-name"] == group
        assert client.message.get(one.message_id).url_group == group
        assert history(server, one.message_id) == ["CREATED", "ACTIVE", "DELIVERED"]


def test_a_message_is_enqueued_to_each_endpoint(client, kind, group, receiver):
    """W77."""
    path = f"/{kind}/group/queue"
    urls = [f"{receiver.url}{path}?{number}" for number in range(3)]
    client.url_group.upsert_endpoints(group, [{"url": url} for url in urls])

    sent = client.message.enqueue(queue=f"{kind}-group", url_group=group, body="in turn")

    assert [one.url for one in sent] == urls
    received = receiver.wait(path, 3)
    assert [one.header["upstash-message-id"] for one in received] == [
        one.message_id for one in sent
    ]


def test_duplicates_are_told_one_by_one(client, group):
    """W51; D1, D2."""
    client.url_group.upsert_endpoints(group, [{"url": "https://a.example"}])
    once = {"url_group": group, "delay": 60, "deduplication_id": f"once-{group}"}

    [first] = client.message.publish(**once)
    client.url_group.upsert_endpoints(group, [{"url": "https://b.example"}])
    again = client.message.publish(**once)

    assert [one.deduplicated for one in again] == [True, False]
    assert again[0].message_id == first.message_id


def test_what_is_wrong_with_a_group_is_said(client, group):
    """W4, W32."""
    with pytest.raises(QStashError, match=rf"status: 404.*topic {group} not found"):
        client.message.publish(url_group=group)
    with pytest.raises(QStashError, match=r"status: 400.*topic: a name has letters"):
        client.url_group.upsert_endpoints("a b", [{"url": "https://a.example"}])
    with pytest.raises(QStashError, match=r"status: 400.*endpoints\[0\].*add http://"):
        client.url_group.upsert_endpoints(group, [{"url": "a.example"}])


def test_the_javascript_sdk_has_groups_too(javascript, receiver):
    """W77, W90, W91, W137-W142, W144, W184, W227: with a name as the SDK's own tests make them."""
    name = "-js_Group"
    url = f"{receiver.url}/js/groups"

    said = javascript("groups.mjs", {"receiver": receiver.url, "name": name})

    endpoints = [
        {"name": "First endpoint", "url": f"{url}/one"},
        {"name": "second", "url": f"{url}/other"},
    ]
    assert said["group"]["name"] == name
    assert said["group"]["endpoints"] == endpoints
    assert said["group"]["createdAt"] <= said["group"]["updatedAt"]
    assert said["group"] in said["listed"]
    assert said["shrunk"]["endpoints"] == endpoints[:1]
    assert said["ended"]["status"] == said["unknown"]["status"] == 404
    assert json.loads(said["unknown"]["message"]) == {"error": f"topic {name} not found"}

    for sent in (said["published"], said["enqueued"]):
        assert [one["url"] for one in sent] == [one["url"] for one in endpoints]
        for one in sent:
            assert said["messages"][one["messageId"]]["urlGroup"] == name
    first, again = said["duplicates"]
    assert again == [{**one, "deduplicated": True} for one in first]
    for number, place in enumerate(("one", "other")):
        received = receiver.wait(f"/js/groups/{place}", 2)
        assert not any(one.fault for one in received)
        assert {one.header["upstash-topic-name"] for one in received} == {name}
        assert {one.header["upstash-message-id"] for one in received} == {
            said[kind][number]["messageId"] for kind in ("published", "enqueued")
        }


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_the_examples_of_the_page_do_what_they_say(server, receiver):
    """W90, W137-W143: each example in its turn, as it is printed."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    url = f"{receiver.url}/page"

    said = []
    for block in blocks:
        done = subprocess.run(
            ["/bin/sh", "-ec", block.replace("http://127.0.0.1:9000", url)],
            env=clean_environ(QSTASH_URL=server.url, QSTASH_TOKEN=DEV_TOKEN),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)

    made, published, patched, ended = said
    assert made.count('"topicId":"tpc_') == 2
    assert [one["url"] for one in json.loads(published)] == [f"{url}/mail", f"{url}/audit"]
    assert '"Upstash-Retries":["5"]' in patched
    assert '"name":"orders"' not in ended.rpartition("{}")[2]  # others' groups may be there
    for path in ("/page/mail", "/page/audit"):
        [received] = receiver.wait(path)
        assert received.body == b'{"paid": true}'
        assert received.header["upstash-topic-name"] == "orders"
