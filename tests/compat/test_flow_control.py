"""Flow control as both SDKs have it (contract section 12)."""

import json
import time

import pytest
from qstash.errors import QStashError

from tests.compat.history import history


@pytest.fixture
def key(kind):
    """As the SDKs' own tests make them."""
    return f"{kind}-Flow.key_{time.time_ns()}"


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({"rate": 3}, (None, 3, 1)),
        ({"parallelism": 3}, (3, None, 1)),
        ({"rate": 3, "period": 2}, (None, 3, 2)),
        ({"parallelism": 4, "rate": 3, "period": "1h30m3s"}, (4, 3, 5403)),
        ({"rate": 3, "period": "1d"}, (None, 3, 86_400)),
    ],
)
def test_a_message_is_shown_with_its_limits(client, key, receiver, asked, shown):
    """W63, W65-W67."""
    sent = client.message.publish(
        url=receiver.url + "/flow", delay="1h", flow_control={"key": key, **asked}
    )

    flow = client.message.get(sent.message_id).flow_control

    assert (flow.key, flow.parallelism, flow.rate, flow.period) == (key, *shown)


def test_a_key_is_there_at_once_and_holds_while_it_is_paused(client, key, server, receiver):
    """W203, W204, W207, W214."""
    flow = {"key": key, "parallelism": 2, "rate": 50, "period": "1m"}
    url = f"{receiver.url}/flow/{key}"
    client.message.publish(url=url, flow_control=flow)

    info = client.flow_control.get(key)
    assert (info.key, info.parallelism_max, info.rate_max, info.rate_period) == (key, 2, 50, 60)
    assert (info.is_paused, info.is_pinned_parallelism, info.is_pinned_rate) == (False,) * 3
    assert (info.rate_count, info.wait_list_size) == (1, 0)
    assert abs(info.rate_period_start - time.time()) < 60

    client.flow_control.pause(key)
    sent = client.message.publish(url=url, flow_control=flow)
    paused = client.flow_control.get(key)
    assert (paused.is_paused, paused.wait_list_size) == (True, 1)
    client.flow_control.resume(key)
    assert client.flow_control.get(key).is_paused is False
    receiver.wait(f"/flow/{key}", 2)
    assert history(server, sent.message_id) == ["CREATED", "ACTIVE", "DELIVERED"]


def test_limits_are_pinned_unpinned_and_reset(client, key, receiver):
    """W208-W210."""
    flow = {"key": key, "parallelism": 1, "rate": 1, "period": 1}
    url = f"{receiver.url}/flow/{key}"
    client.message.publish(url=url, flow_control=flow)
    client.flow_control.pin(key, {"parallelism": 3, "rate": 20, "period": 120})
    client.message.publish(url=url, flow_control=flow)

    pinned = client.flow_control.get(key)
    assert (pinned.parallelism_max, pinned.rate_max, pinned.rate_period) == (3, 20, 120)
    assert (pinned.is_pinned_parallelism, pinned.is_pinned_rate) == (True, True)

    client.flow_control.unpin(key, {"parallelism": True})
    half = client.flow_control.get(key)
    assert (half.is_pinned_parallelism, half.is_pinned_rate) == (False, True)
    assert (half.parallelism_max, half.rate_max) == (3, 20)

    receiver.wait(f"/flow/{key}", 2)
    client.flow_control.reset_rate(key)
    assert client.flow_control.get(key).rate_count == 0


def test_the_parallelism_of_all(client):
    """W211."""
    info = client.flow_control.get_global_parallelism()

    assert info.parallelism_max > 0
    assert info.parallelism_count >= 0


def test_what_is_wrong_is_said(client, key, receiver):
    """W64, W206, W4."""
    with pytest.raises(QStashError, match=rf"status: 404.*flow control key {key} not found"):
        client.flow_control.get(key)
    with pytest.raises(QStashError, match=rf"status: 400.*flow control key {key} not found"):
        client.flow_control.pause(key)
    with pytest.raises(QStashError, match=r"status: 400.*Value: rate must be a whole number"):
        client.message.publish(url=receiver.url, flow_control={"key": key, "rate": 0})


def test_the_javascript_sdk_has_flow_control_too(javascript, receiver):
    """W63, W65, W203, W204, W206-W211, W214, W227."""
    key = f"js-Flow.key_{time.time_ns()}"

    said = javascript("flow_control.mjs", {"receiver": receiver.url, "key": key})

    message = said["message"]
    assert (message["parallelism"], message["rate"], message["period"]) == (3, 5, 86_400)
    assert message["flowControlKey"] == key
    first = said["first"]
    assert {name: type(value) for name, value in first.items()} == {
        "flowControlKey": str,
        "waitListSize": int,
        "parallelismMax": int,
        "parallelismCount": int,
        "rateMax": int,
        "rateCount": int,
        "ratePeriod": int,
        "ratePeriodStart": int,
        "isPaused": bool,
        "isPinnedParallelism": bool,
        "isPinnedRate": bool,
    }
    assert (first["parallelismMax"], first["rateMax"], first["ratePeriod"]) == (3, 5, 86_400)
    assert [said[name]["isPaused"] for name in ("paused", "waiting", "resumed")] == [
        True,
        True,
        False,
    ]
    assert said["waiting"]["waitListSize"] == 1
    pins = ("isPinnedParallelism", "isPinnedRate")
    assert [tuple(said[name][pin] for pin in pins) for name in ("pinned", "half", "unpinned")] == [
        (True, True),
        (False, True),
        (False, False),
    ]
    assert (said["pinned"]["parallelismMax"], said["pinned"]["ratePeriod"]) == (3, 120)
    assert said["reset"]["rateCount"] == 0
    assert set(said["all"]) == {"parallelismMax", "parallelismCount"}
    assert said["unknown"]["status"] == 404
    assert said["wrong"]["status"] == 400
    error = json.loads(said["wrong"]["message"])["error"]
    assert error.startswith("Upstash-Flow-Control-Value: rate must be a whole number")
    receiver.wait("/js/flow", 3)
