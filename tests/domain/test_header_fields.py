"""Claims about header hygiene."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.domain.errors import Invalid
from waypost.domain.header_fields import (
    COUNT_MAX,
    KEPT_CHARS_MAX,
    NAME_BYTES_MAX,
    TOTAL_BYTES_MAX,
    VALUE_BYTES_MAX,
    canonical_name,
    check_total,
    checked_value,
    end_to_end,
    forwardable,
    gathered,
)

TCHAR = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("given_name", "canonical"),
    [
        (b"test-header", "Test-Header"),  # W22
        (b"TEST-HEADER", "Test-Header"),
        (b"x-github-event", "X-Github-Event"),
        (b"x-2fa-code", "X-2fa-Code"),
        (b"a--b-", "A--B-"),
        (b"x_under-score", "X_under-Score"),
    ],
)
def test_names_are_spelled_the_way_go_spells_them(given_name, canonical):
    assert canonical_name(given_name) == canonical


@given(st.binary(max_size=12))
def test_a_name_is_a_token_or_refused(name):
    if name and all(byte in TCHAR for byte in name):
        assert canonical_name(name).lower().encode() == name.lower()
    else:
        with pytest.raises(Invalid):
            canonical_name(name)


def test_a_name_has_a_longest_length():
    canonical_name(b"a" * NAME_BYTES_MAX)
    with pytest.raises(Invalid):
        canonical_name(b"a" * (NAME_BYTES_MAX + 1))


@given(st.binary(max_size=40))
def test_a_value_keeps_its_bytes_or_is_refused(value):
    if any((byte < 32 and byte != 9) or byte == 127 for byte in value):
        with pytest.raises(Invalid):
            checked_value(value)
    else:
        assert checked_value(value).encode("latin-1") == value.strip(b" \t")


def test_a_value_has_a_longest_length():
    checked_value(b"a" * VALUE_BYTES_MAX)
    with pytest.raises(Invalid):
        checked_value(b"a" * (VALUE_BYTES_MAX + 1))


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "Content-Length",
        "Expect",
        "Connection",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Proxy-Authorization",
        "Proxy-Connection",
        "Proxy-Authenticate",
        "Upstash-Signature",
        "Upstash-Message-Id",
        "Upstash-Retried",
    ],
)
def test_some_fields_never_travel_in_any_case(name):  # D6
    for spelling in (name, name.lower(), name.upper()):
        assert not forwardable(canonical_name(spelling.encode()))


@pytest.mark.parametrize(
    "name", ["Authorization", "Content-Type", "User-Agent", "X-Proxy-Id", "Cookie"]
)
def test_other_fields_travel(name):
    assert forwardable(name)


def test_what_connection_names_stays_behind():
    header = {"Connection": ["x-a, CLOSE", "X-b"], "X-A": ["1"], "X-B": ["2"], "X-C": ["3"]}
    assert end_to_end(header) == {"X-C": ["3"]}


@pytest.mark.parametrize("length", [1, KEPT_CHARS_MAX, KEPT_CHARS_MAX + 1, 64_000])
def test_fields_of_one_name_are_gathered_in_their_order_however_long_it_is(length):
    name = "-".join("x" * length)[:length]

    header = gathered([(name, "1"), ("y", "2"), (name.upper(), "3")])

    assert header == {name.upper(): ["1", "3"], "Y": ["2"]}


def test_names_that_others_choose_take_no_memory_however_long_they_are():
    """A destination chooses those of its answers, a publisher what `Connection` says."""
    names = [f"x{n}-".ljust(60_000, "a") for n in range(50)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for name in names:
            gathered([(name, "1")])
            end_to_end({"Connection": [name]})
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert after - before < 100_000


def test_a_header_has_a_largest_count_and_size():
    check_total({"A": ["v"] * COUNT_MAX})
    with pytest.raises(Invalid, match="more than 100"):
        check_total({"A": ["v"] * COUNT_MAX, "B": ["v"]})
    check_total({"A": ["v" * 8191] * 4})
    with pytest.raises(Invalid, match=f"{TOTAL_BYTES_MAX} bytes"):
        check_total({"A": ["v" * 8192] * 4})
