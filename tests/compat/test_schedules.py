"""Schedules, with both SDKs, unmodified, against a running Waypost (contract section 8)."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from qstash.errors import QStashError

from tests.support.program import DEADLINE_S, DEV_TOKEN, clean_environ

PAGE = Path(__file__).parents[2] / "docs" / "schedules.md"


@pytest.fixture
def schedule_id(client, kind):
    yield f"_{kind}-nightly"
    client.schedule.delete(f"_{kind}-nightly")


def test_a_schedule_is_made_changed_and_ended(client, schedule_id, receiver):
    """W118, W123-W130, W134."""
    began_ms = time.time_ns() // 1_000_000 - 1
    client.queue.upsert("schedules", parallelism=3)
    made = client.schedule.create_json(
        schedule_id=schedule_id,
        destination=f"{receiver.url}/schedules",
        cron="*/10 * * * *",
        body={"hello": "world"},
        headers={"Test-Header": "test-value"},
        delay=10,
        timeout=90,
        retries=2,
        retry_delay="7000 * retried",
        callback=f"{receiver.url}/called",
        failure_callback=f"{receiver.url}/failed",
        queue="schedules",
        label="one",
        flow_control={"key": "schedules", "parallelism": 2},
    )
    assert made == schedule_id

    schedule = client.schedule.get(schedule_id)
    assert schedule in client.schedule.list()
    assert schedule.schedule_id == schedule_id
    assert schedule.destination == f"{receiver.url}/schedules"
    assert schedule.cron == "*/10 * * * *"
    assert schedule.body == '{"hello": "world"}'
    assert schedule.method == "POST"
    assert schedule.headers == {
        "Content-Type": ["application/json"],
        "Test-Header": ["test-value"],
    }
    assert (schedule.delay, schedule.timeout, schedule.retries) == (10, 90, 2)
    assert schedule.retry_delay_expression == "7000 * retried"
    assert schedule.callback == f"{receiver.url}/called"
    assert schedule.failure_callback == f"{receiver.url}/failed"
    assert (schedule.queue, schedule.label) == ("schedules", "one")
    flow = schedule.flow_control
    assert (flow.key, flow.parallelism, flow.rate, flow.period) == ("schedules", 2, None, 1)
    assert schedule.caller_ip == "127.0.0.1"
    assert schedule.created_at > began_ms
    assert schedule.next_schedule_time > began_ms
    assert schedule.last_schedule_time is None

    client.schedule.pause(schedule_id)
    assert client.schedule.get(schedule_id).paused is True
    client.schedule.resume(schedule_id)
    assert client.schedule.get(schedule_id).paused is False

    client.schedule.delete(schedule_id)
    client.schedule.delete(schedule_id)
    with pytest.raises(QStashError, match=rf"status: 404.*schedule {schedule_id} not found"):
        client.schedule.get(schedule_id)
    assert client.queue.get("schedules").parallelism == 3


def test_a_schedule_of_an_id_is_overwritten_whole(client, schedule_id):
    """W122."""
    url = "https://example.com"
    client.schedule.create(
        destination=url, cron="@daily", body="hello", delay="1h", schedule_id=schedule_id
    )
    first = client.schedule.get(schedule_id)
    client.schedule.create(destination=url + "/", cron="@hourly", schedule_id=schedule_id)

    schedule = client.schedule.get(schedule_id)
    assert (schedule.destination, schedule.cron) == (url + "/", "@hourly")
    assert (schedule.body, schedule.delay) == (None, None)
    assert schedule.created_at == first.created_at


def test_a_wrong_cron_is_refused(client):
    """W121."""
    with pytest.raises(QStashError, match=r"status: 400.*Upstash-Cron: there are 4 fields"):
        client.schedule.create(destination="https://example.com", cron="* * * *")


def test_the_javascript_sdk_makes_a_schedule_and_ends_it(javascript, receiver):
    """W118, W119, W121-W125, W127-W130, W134: W226 too, by two deletes at once."""
    given = {"receiver": receiver.url, "scheduleId": "-js_nightly"}

    said = javascript("schedules.mjs", given)

    assert said["made"] == said["again"] == {"scheduleId": "-js_nightly"}
    expected = {
        "scheduleId": "-js_nightly",
        "cron": "*/10 * * * *",
        "destination": f"{receiver.url}/js/schedules",
        "header": {
            "Bypass-Tunnel-Reminder": ["client-test"],
            "Content-Type": ["application/json"],
            "Test-Header": ["test-value"],
        },
        "body": '{"hello":"world"}',
        "isPaused": False,
        "delay": 10,
        "timeout": 90,
        "retries": 2,
        "retryDelayExpression": "7000 * retried",
        "callback": f"{receiver.url}/js/called",
        "failureCallback": f"{receiver.url}/js/failed",
        "queueName": "js-schedules",
        "label": "one",
        "labels": ["one", "two"],
        "flowControlKey": "js-schedules",
        "parallelism": 1,
        "rate": 10,
        "period": 86_400,
    }
    assert {name: said["whole"].get(name) for name in expected} == expected
    assert (said["paused"], said["resumed"]) == (True, False)
    assert said["listed"] == [said["overwritten"]]
    assert "body" not in said["overwritten"]
    assert said["overwritten"]["header"] == {"Content-Type": ["application/json"]}
    assert said["overwritten"]["createdAt"] == said["whole"]["createdAt"]
    assert said["unnamed"]["scheduleId"].startswith("scd_")
    assert said["ended"]["status"] == 404
    assert said["refused"]["status"] == 400


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_the_examples_of_the_page_do_what_they_say(server):
    """W118, W125, W127, W136: each example in its turn, as it is printed."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)

    said = []
    for block in blocks:
        done = subprocess.run(
            ["/bin/sh", "-ec", block],
            env=clean_environ(QSTASH_URL=server.url, QSTASH_TOKEN=DEV_TOKEN),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)

    made, seen, ended = said
    assert json.loads(made) == {"scheduleId": "nightly-report"}
    assert json.loads(seen)["cron"] == "CRON_TZ=Europe/Berlin 0 4 * * *"
    assert ended == "{}{}{}"
