"""Claims about durations: every unit, every bound."""

from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.domain.durations import (
    DURATION_MS_MAX,
    parse_duration,
    parse_duration_or_seconds,
    parse_go_duration,
)
from waypost.domain.errors import Invalid

UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
GO_UNIT_MS = {
    "ns": Fraction(1, 1_000_000),
    "us": Fraction(1, 1000),
    "µs": Fraction(1, 1000),
    "ms": Fraction(1),
    "s": Fraction(1000),
    "m": Fraction(60_000),
    "h": Fraction(3_600_000),
}


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("5s", 5_000),  # W41
        ("60s", 60_000),
        ("10d", 864_000_000),
        ("1d10h30m", 124_200_000),  # W42
        ("0s", 0),  # W43
        ("1d1h30m", 91_800_000),  # W50
        ("3m", 180_000),
        ("30m1d", 88_200_000),
    ],
)
def test_documented_durations_are_read(text, ms):
    assert parse_duration(text) == ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "s",
        "5 s",
        "-5s",
        "+5s",
        "5S",
        "1.5s",
        "5ms",
        "5w",
        "1d 2h",
        "5s\n",
        "٥s",
        "9" * 63 + "d",
        "1s" * 33,
    ],
)
def test_anything_else_is_not_a_duration(text):  # W47
    with pytest.raises(Invalid):
        parse_duration(text)


@given(st.lists(st.tuples(st.integers(0, 99_999), st.sampled_from("smhd")), min_size=1, max_size=8))
def test_parts_add_up(parts):
    text = "".join(f"{count}{unit}" for count, unit in parts)
    assert parse_duration(text) == sum(count * UNIT_MS[unit] for count, unit in parts)


@given(st.integers(0, 10**15))
def test_no_duration_passes_the_bound(count):
    try:
        assert parse_duration(f"{count}d") <= DURATION_MS_MAX
    except Invalid:
        assert count * UNIT_MS["d"] > DURATION_MS_MAX


@pytest.mark.parametrize(("text", "ms"), [("90", 90_000), ("0", 0), ("2h", 7_200_000)])
def test_a_bare_number_is_seconds_where_that_is_asked_for(text, ms):
    assert parse_duration_or_seconds(text) == ms


@pytest.mark.parametrize("text", ["", "1m30", "1.5", "-1", "²", "abc"])
def test_half_a_duration_is_not_seconds(text):
    with pytest.raises(Invalid):
        parse_duration_or_seconds(text)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("6m5s", 365_000),  # W190
        ("0", 0),
        ("+0", 0),
        ("0s", 0),
        ("1.5s", 1500),
        (".5s", 500),
        ("5.s", 5000),
        ("1h0.25m", 3_615_000),
        ("1ns", 1),
        ("1500us", 2),
        ("1500µs", 2),
        ("1500μs", 2),
        ("1500µs".encode().decode("latin-1"), 2),
        ("120ms", 120),
    ],
)
def test_go_durations_are_read_and_rounded_up(text, ms):
    assert parse_go_duration(text) == ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "-1s",
        "1",
        "s",
        ".s",
        "1d",
        "1s ",
        " 1s",
        "1s2",
        "1e3s",
        "--1s",
        "1" * 70 + "s",
        "9" * 60 + "h",
    ],
)
def test_anything_else_is_not_a_go_duration(text):
    with pytest.raises(Invalid):
        parse_go_duration(text)


@given(
    st.lists(
        st.tuples(st.integers(0, 9999), st.integers(0, 999), st.sampled_from(sorted(GO_UNIT_MS))),
        min_size=1,
        max_size=5,
    )
)
def test_go_parts_add_up(parts):
    text = "".join(f"{whole}.{thousandths:03}{unit}" for whole, thousandths, unit in parts)
    exact = sum((whole + Fraction(t, 1000)) * GO_UNIT_MS[unit] for whole, t, unit in parts)
    # Each part is cut to whole nanoseconds, as Go does.
    assert exact <= parse_go_duration(text) + Fraction(len(parts), 1_000_000)
    assert parse_go_duration(text) < exact + 1


@given(st.text(alphabet="0123456789.smhdnuµ+- ", max_size=70))
def test_no_text_is_more_than_refused(text):
    for parse in (parse_duration, parse_duration_or_seconds, parse_go_duration):
        with suppress(Invalid):
            assert 0 <= parse(text) <= DURATION_MS_MAX
