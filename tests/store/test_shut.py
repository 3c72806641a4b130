"""The lanes that a node has no places for: who is looked at again, and what is remembered."""

import pytest

from tests.support.factory import T0
from waypost.store.postgres import shut as home
from waypost.store.postgres.shut import Shut

QUEUE, HOST_LANE = ("acme", "queue:busy"), ("other", "host:https://x:443")
HOST = "host:https://x:443"


def names(shut: Shut) -> set[str]:
    return set(shut.names())


def entries(shut: Shut) -> int:
    """All that is remembered of who waits for what."""
    return sum(map(len, shut._waiting.values()))


def test_a_lane_that_is_shut_over_and_over_is_remembered_once() -> None:
    shut = Shut()

    for n in range(1_000):
        shut.shut(QUEUE, on=HOST, turn_ms=T0 + n, retry_ms=None)
        shut.reconsider([QUEUE])
    for n in range(1_000):
        shut.shut(QUEUE, on=HOST, turn_ms=T0 + n, retry_ms=None)

    assert entries(shut) == 1
    shut.reconsider([QUEUE])
    assert (entries(shut), shut.names(), shut._waiting) == (0, [], {})


def test_whoever_has_waited_longest_is_looked_at_first() -> None:
    shut = Shut()
    shut.shut(QUEUE, on=HOST, turn_ms=T0 + 1, retry_ms=None)
    shut.shut(HOST_LANE, on=HOST, turn_ms=T0, retry_ms=None)

    assert shut.open(HOST, count_max=1)
    assert shut.names() == ["acme queue:busy"]
    assert not shut.open(HOST, count_max=1)
    assert shut.names() == []
    assert not shut.open(HOST, count_max=1)


def test_of_those_who_have_waited_as_long_whoever_was_refused_first_is_looked_at_first() -> None:
    shut = Shut()
    shut.shut(QUEUE, on=HOST, turn_ms=T0, retry_ms=None)
    shut.shut(HOST_LANE, on=HOST, turn_ms=T0, retry_ms=None)

    assert shut.open(HOST, count_max=1)
    shut.shut(QUEUE, on=HOST, turn_ms=T0, retry_ms=None)

    assert shut.open(HOST, count_max=1)
    assert shut.names() == ["acme queue:busy"]


def test_a_lane_goes_on_waiting_until_its_next_message_needs_something_else() -> None:
    shut = Shut()
    shut.shut(QUEUE, on=HOST, turn_ms=T0, retry_ms=None)

    assert shut.goes_on_waiting(QUEUE, on=HOST, retry_ms=T0 + 5)
    assert shut.next_retry_ms() == T0 + 5
    assert not shut.goes_on_waiting(QUEUE, on="host:https://y:443", retry_ms=None)
    assert not shut.goes_on_waiting(QUEUE, on=HOST, retry_ms=None)
    assert names(shut) == set()


def test_a_lane_is_looked_at_when_a_retry_in_it_falls_due() -> None:
    shut = Shut()
    shut.shut(QUEUE, on=HOST, turn_ms=T0, retry_ms=T0 + 5)
    shut.shut(HOST_LANE, on=HOST, turn_ms=T0, retry_ms=None)

    shut.open_for_retries(now_ms=T0 + 4)
    assert len(names(shut)) == 2
    shut.open_for_retries(now_ms=T0 + 5)
    assert names(shut) == {"other host:https://x:443"}


def test_no_more_lanes_are_remembered_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "SHUT_MAX", 2)
    shut = Shut()

    for n in range(4):
        shut.shut(("acme", f"queue:q{n}"), on=f"host:{n % 2}", turn_ms=T0, retry_ms=None)

    assert shut.full
    assert (len(shut.names()), entries(shut)) == (2, 2)
    shut.reconsider([("acme", "queue:q0")])
    assert not shut.full
