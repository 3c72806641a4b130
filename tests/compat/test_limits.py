"""Rates and signing keys: what needs a server of its own, with both SDKs, unmodified."""

import time

import pytest
from qstash import QStash
from qstash.errors import (
    DailyMessageLimitExceededError,
    QStashError,
    RateLimitExceededError,
)

from tests.compat import node
from tests.support.program import DEV_TOKEN, running, waypost

LIMITS = ("--requests-per-second-max", "2", "--messages-per-day-max", "3")


@pytest.fixture
def client_of():
    """Makes clients of a server for a token."""
    made = []

    def client(server, token):
        made.append(QStash(token, retry=False, base_url=server.url))
        return made[-1]

    yield client
    for one in made:
        one.http._client.close()


@pytest.fixture
def limited(tmp_path):
    with running("dev", "--memory", "--port", "0", *LIMITS, cwd=tmp_path) as server:
        server.until("running at .*\n")
        yield server


def test_the_python_sdk_tells_of_both_limits_by_their_errors(limited, client_of):
    """W222, W223."""
    client = client_of(limited, DEV_TOKEN)

    def list_queues():
        for _ in range(50):
            client.queue.list()

    def publish():
        for _ in range(4):
            client.message.publish(url="http://127.0.0.1:9/", retries=0)

    with pytest.raises(RateLimitExceededError) as burst:
        list_queues()
    with pytest.raises(DailyMessageLimitExceededError) as daily:
        publish()

    assert (burst.value.limit, burst.value.remaining) == ("2", "0")
    assert abs(int(burst.value.reset) - time.time()) < 60
    assert (daily.value.limit, daily.value.remaining) == ("3", "0")
    assert int(daily.value.reset) % 86_400 == 0


@pytest.mark.usefixtures("_npm_sdk")
def test_the_javascript_sdk_tells_of_both_limits_by_their_errors(limited):
    """W222, W223."""
    environ = {"QSTASH_URL": limited.url, "QSTASH_TOKEN": DEV_TOKEN}

    said, _ = node.run("limits.mjs", None, environ=environ)

    assert (said["burst"]["name"], said["burst"]["limit"]) == ("QstashRatelimitError", "2")
    assert (said["daily"]["name"], said["daily"]["limit"]) == ("QstashDailyRatelimitError", "3")
    for told in said.values():
        assert (told["status"], told["remaining"]) == (429, "0")


def test_signing_keys_are_rotated_but_those_of_development_users(tmp_path, client_of):
    """W215, W216, W217, D30."""
    database = f"sqlite:///{tmp_path / 'keys.db'}"
    waypost("tenant", "create", "acme", "--database", database, cwd=tmp_path)
    made = waypost("token", "create", "acme", "--database", database, cwd=tmp_path)
    token = made.stdout.strip()
    with running("dev", "--port", "0", "--database", database, cwd=tmp_path) as server:
        server.until("running at .*\n")
        keys = client_of(server, token).signing_key
        before, rotated, after = keys.get(), keys.rotate(), keys.get()
        with pytest.raises(QStashError, match=r"status: 400.*never change"):
            client_of(server, DEV_TOKEN).signing_key.rotate()

    assert rotated.current == before.next
    assert rotated.next not in (before.current, before.next)
    assert after == rotated
