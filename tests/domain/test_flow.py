"""What a flow-control key allows, and how its limits are written (D26)."""

import pytest
from msgspec.structs import replace

from waypost.domain.errors import Invalid
from waypost.domain.flow import SET_BACK_MS, UNLIMITED, Flow, FlowKey, NoLimits, flow_of

WEEK_MS = 604_800_000
T0 = 1_800_000_000_000
SECOND = 1_000


def a_key(**facts: object) -> FlowKey:
    return replace(FlowKey(name="k"), **facts)


def after(key: FlowKey, count: int, *, now_ms: int) -> FlowKey:
    for _ in range(count):
        key = key.after_one(own=True, now_ms=now_ms)
    return key


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rate=10", Flow("k", None, 10, 1_000)),
        ("parallelism=5", Flow("k", 5, None, 1_000)),
        ("parallelism=5, rate=10, period=1m", Flow("k", 5, 10, 60_000)),
        ("period=1h30m3s,rate=10,parallelism=5", Flow("k", 5, 10, 5_403_000)),
        (" Rate = 1 ,PERIOD=2", Flow("k", None, 1, 2_000)),
        ("rate=1,period=7d", Flow("k", None, 1, WEEK_MS)),
        ("parallelism=3,period=10s", Flow("k", 3, None, 10_000)),
    ],
)
def test_limits_are_read_in_any_order(text: str, expected: Flow) -> None:
    assert flow_of("k", text, period_ms_max=WEEK_MS) == expected


@pytest.mark.parametrize(
    "text", ["", ",", "period=1s", "rate", "rate=", "rate=1,rate=2", "rate=1,x=2", "rate=1;", "5"]
)
def test_what_names_no_limit_or_cannot_be_read_says_how_to_write_one(text: str) -> None:
    with pytest.raises(NoLimits, match=r"^should be either rate=X or parallelism=Y, or both"):
        flow_of("k", text, period_ms_max=WEEK_MS)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rate=0", "rate must be a whole number from 1"),
        ("parallelism=0", "parallelism must be a whole number"),
        ("rate=1000000001", "rate must be"),
        ("rate=1s", "rate must be"),
        (f"rate={'9' * 60}", "rate must be"),
        ("rate=1,period=0", "period must be from 1 to 604800 seconds"),
        ("rate=1,period=8d", "period must be from 1 to 604800 seconds"),
        ("rate=1,period=1w", "period: not a duration"),
    ],
)
def test_a_limit_out_of_bounds_is_named(text: str, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        flow_of("k", text, period_ms_max=WEEK_MS)


def test_the_parallelism_leaves_what_is_not_in_use() -> None:
    key = a_key(parallelism=3)

    assert [key.room(in_use, now_ms=T0) for in_use in (0, 2, 3, 4)] == [3, 1, 0, 0]
    assert key.opens_ms(2, now_ms=T0) == T0
    assert key.opens_ms(3, now_ms=T0) is None


def test_a_window_begins_with_its_first_attempt_and_ends_a_period_later() -> None:
    key = after(a_key(rate=2, period_ms=10 * SECOND), 1, now_ms=T0 + 3 * SECOND)

    assert key.room(9, now_ms=T0 + 3 * SECOND) == 1
    key = after(key, 1, now_ms=T0 + 12 * SECOND)
    assert key.room(9, now_ms=T0 + 13 * SECOND - 1) == 0
    assert key.opens_ms(9, now_ms=T0 + 12 * SECOND) == T0 + 13 * SECOND
    assert key.room(9, now_ms=T0 + 13 * SECOND) == 2
    key = after(key, 1, now_ms=T0 + 20 * SECOND)
    assert (key.window_ms, key.dispatched) == (T0 + 20 * SECOND, 1)


def test_both_limits_hold() -> None:
    key = after(a_key(parallelism=2, rate=3), 2, now_ms=T0)

    assert [key.room(in_use, now_ms=T0) for in_use in (0, 1, 2)] == [1, 1, 0]
    assert key.opens_ms(2, now_ms=T0 + 2 * SECOND) is None


def test_without_limits_there_is_always_room_and_paused_there_is_none() -> None:
    assert a_key().room(10_000, now_ms=T0) == UNLIMITED
    assert a_key(paused=True).room(0, now_ms=T0) == 0
    assert a_key(paused=True).opens_ms(0, now_ms=T0) is None


def test_an_attempt_that_counts_from_before_its_window_is_of_it() -> None:
    """Those who ask at the same moment may be some milliseconds apart."""
    key = after(a_key(rate=2), 1, now_ms=T0)

    assert key.room(0, now_ms=T0 - 20) == 1
    assert after(key, 1, now_ms=T0 - 20) == replace(key, dispatched=2)


def test_a_clock_that_was_set_back_ends_a_window() -> None:
    key = after(a_key(rate=1), 1, now_ms=T0)

    assert key.room(0, now_ms=T0 - SET_BACK_MS) == 0
    assert key.room(0, now_ms=T0 - SET_BACK_MS - 1) == 1


def test_the_latest_message_sets_the_limits_but_for_those_that_are_pinned() -> None:
    key = a_key().asked(Flow("k", 5, 10, 60_000), now_ms=T0)
    assert (key.parallelism, key.rate, key.period_ms) == (5, 10, 60_000)

    key = key.asked(Flow("k", 6), now_ms=T0)
    assert (key.parallelism, key.rate, key.period_ms) == (6, None, 1_000)

    key = key.pinned(parallelism=3, rate=None, period_ms=None, now_ms=T0)
    key = key.asked(Flow("k", 9, 9), now_ms=T0)
    assert (key.parallelism, key.rate) == (3, 9)

    key = key.pinned(parallelism=None, rate=20, period_ms=120_000, now_ms=T0)
    key = key.unpinned(parallelism=True, rate=False)
    assert key.parallelism == 3
    key = key.asked(Flow("k", 1, 1), now_ms=T0)
    assert (key.parallelism, key.rate, key.period_ms) == (1, 20, 120_000)
    assert (key.parallelism_pinned, key.rate_pinned) == (False, True)


def test_pinning_a_rate_begins_a_window() -> None:
    key = after(a_key(rate=1), 1, now_ms=T0)

    assert key.pinned(parallelism=3, rate=None, period_ms=None, now_ms=T0 + 1).count(T0 + 1) == 1
    pinned = key.pinned(parallelism=None, rate=1, period_ms=None, now_ms=T0 + 1)
    assert (pinned.count(T0 + 1), pinned.window_ms) == (0, T0 + 1)


def test_a_window_that_is_over_counts_nothing_and_a_pause_keeps_the_count() -> None:
    key = replace(after(a_key(rate=5), 3, now_ms=T0), paused=True)

    assert key.count(T0 + 999) == 3
    assert key.count(T0 + 1_000) == 0


def test_a_key_is_idle_once_its_window_is_over_and_nobody_said_otherwise() -> None:
    key = after(a_key(rate=5), 3, now_ms=T0)

    assert not key.is_idle(now_ms=T0)
    assert key.is_idle(now_ms=T0 + SECOND)
    for kept in ("paused", "parallelism_pinned", "rate_pinned"):
        assert not replace(key, **{kept: True}).is_idle(now_ms=T0 + SECOND)
