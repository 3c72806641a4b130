"""Claims about URL groups: what their endpoints become, and what their defaults mean."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.domain.errors import Invalid, QuotaExceeded
from waypost.domain.ids import url_group_id
from waypost.domain.url_groups import (
    ENDPOINTS_MAX,
    Endpoint,
    UrlGroup,
    checked_endpoint,
    checked_group_name,
    checked_header,
    fields_of,
    with_defaults,
    with_endpoints,
    with_header,
    without_endpoints,
)

T0 = 1_721_068_851_000
A, B, C = (f"https://{letter}.example/" for letter in "abc")
EMPTY = UrlGroup(id="tpc_1", name="g", created_ms=T0, updated_ms=T0)

ENDPOINTS = st.builds(
    Endpoint, st.sampled_from([A, B, C]), st.none() | st.sampled_from(["one", "two", "three"])
)


def of(*endpoints):
    return with_endpoints(EMPTY, [Endpoint(*one) for one in endpoints], now_ms=T0)


def pairs(group):
    return [(one.url, one.name) for one in group.endpoints]


def test_endpoints_accumulate_in_order():  # W137
    group = with_endpoints(of((B, "b"), (A, None)), [Endpoint(C, "c")], now_ms=T0 + 1)

    assert pairs(group) == [(B, "b"), (A, None), (C, "c")]
    assert (group.created_ms, group.updated_ms) == (T0, T0 + 1)


def test_a_name_that_is_there_leads_to_the_new_url_in_its_place():
    group = with_endpoints(of((A, "one"), (B, "two")), [Endpoint(C, "one")], now_ms=T0)

    assert pairs(group) == [(C, "one"), (B, "two")]


def test_a_url_that_is_there_is_called_by_the_new_name_in_its_place():
    group = with_endpoints(of((A, "one"), (B, "two")), [Endpoint(A, "first")], now_ms=T0)

    assert pairs(group) == [(A, "first"), (B, "two")]


def test_an_endpoint_that_is_added_again_without_a_name_keeps_its_own():
    group = of((A, "one"), (B, None))

    assert with_endpoints(group, [Endpoint(A), Endpoint(B)], now_ms=T0 + 1) is group


def test_a_name_takes_over_the_url_of_another_endpoint():
    group = with_endpoints(of((A, "one"), (B, "two"), (C, None)), [Endpoint(C, "one")], now_ms=T0)

    assert pairs(group) == [(C, "one"), (B, "two")]


@given(st.lists(st.lists(ENDPOINTS, max_size=5), max_size=5))
def test_no_url_and_no_name_is_there_twice(rounds):
    group = EMPTY
    for added in rounds:
        group = with_endpoints(group, added, now_ms=T0)
        urls = [one.url for one in group.endpoints]
        names = [one.name for one in group.endpoints if one.name is not None]
        assert len(set(urls)) == len(urls)
        assert len(set(names)) == len(names)
        assert all(one.url in urls for one in added[-1:])


def test_a_group_has_so_many_endpoints_and_no_more():
    many = [Endpoint(f"https://a.example/{number}") for number in range(ENDPOINTS_MAX)]
    full = with_endpoints(EMPTY, many, now_ms=T0)

    assert with_endpoints(full, [many[0]], now_ms=T0) == full
    with pytest.raises(QuotaExceeded, match="at most 100 endpoints"):
        with_endpoints(full, [Endpoint(B)], now_ms=T0)


def test_endpoints_are_removed_by_url_or_by_name():  # W139
    group = of((A, "one"), (B, "two"), (C, None))

    assert pairs(without_endpoints(group, [(A, None)], now_ms=T0)) == [(B, "two"), (C, None)]
    assert pairs(without_endpoints(group, [(None, "two")], now_ms=T0)) == [(A, "one"), (C, None)]
    assert pairs(without_endpoints(group, [(C, None), (None, "one")], now_ms=T0)) == [(B, "two")]


def test_where_both_are_told_the_url_decides():
    group = of((A, "one"), (B, "two"))

    assert pairs(without_endpoints(group, [(A, "two")], now_ms=T0)) == [(B, "two")]


def test_an_endpoint_that_is_not_there_is_passed_over():
    group = of((A, "one"))

    assert without_endpoints(group, [(B, None), (None, "two")], now_ms=T0 + 1) is group


def test_with_the_last_endpoint_the_group_goes():  # W140
    assert without_endpoints(of((A, None), (B, "b")), [(None, "b"), (A, None)], now_ms=T0) is None


@pytest.mark.parametrize("name", ["a", "-", "_x.Y-1", "x" * 255])
def test_a_name_is_made_of_letters_digits_and_three_signs(name):
    assert checked_group_name(name) == name


@pytest.mark.parametrize("name", ["", "a b", "a/b", "tpc_a", ".", "..", "é", "x" * 256, "a\n"])
def test_other_names_are_refused(name):  # D7, D8
    with pytest.raises(Invalid):
        checked_group_name(name)


def test_the_name_of_an_endpoint_may_have_blanks():  # W138
    assert checked_endpoint(A, "First endpoint") == Endpoint(A, "First endpoint")
    assert checked_endpoint(A, "") == checked_endpoint(A, None) == Endpoint(A)


@pytest.mark.parametrize("name", ["a\nb", "\x00", "\x7f", "\x85", "\ud800", "x" * 256])
def test_a_name_without_print_is_refused(name):  # D7
    with pytest.raises(Invalid, match="the name"):
        checked_endpoint(A, name)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "add http:// or https://"),
        ("a.example", "add http:// or https://"),
        ("my-group", "add http:// or https://"),
        ("https://", "the host is missing"),
        ("https://a.example/é", "percent-encoded"),
        ("https://a.example/\ud800", "percent-encoded"),
        ("https://a.example/#a", "fragment"),
    ],
)
def test_an_endpoint_leads_where_a_message_could_be_published_to(url, text):
    with pytest.raises(Invalid, match=text):
        checked_endpoint(url, None)


def test_defaults_are_spelled_the_canonical_way():
    assert checked_header(
        {
            "upstash-retries": ["3"],
            "UPSTASH-FORWARD-X": ["a", " b "],
            "Content-Type": ["text/plain"],
            "Upstash-Delay": [],
        }
    ) == {
        "Upstash-Retries": ["3"],
        "Upstash-Forward-X": ["a", "b"],
        "Content-Type": ["text/plain"],
    }


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ({"X-Api-Key": ["1"]}, "X-Api-Key: .*Upstash-Forward-X-Api-Key"),
        ({"Authorization": ["Bearer x"]}, "Authorization: "),
        ({"a b": ["1"]}, "a b: not a valid header name"),
        ({"\ud800": ["1"]}, "not a valid header name"),
        ({"Upstash-Label": ["a\nb"]}, "Upstash-Label: .*control character"),
        ({"Upstash-Forward-A": ["x" * 9_000]}, "Upstash-Forward-A: .*longer than"),
        ({"Upstash-Forward-A": ["x"] * 101}, "more than 100"),
    ],
)
def test_a_default_that_could_not_be_heeded_is_refused_by_name(header, text):
    with pytest.raises(Invalid, match=text):
        checked_header(header)


def test_what_a_publish_does_not_say_the_defaults_say():  # W143
    fields = [(b"upstash-retries", b"1"), (b"upstash-label", b" "), (b"x-own", b"x")]
    header = {
        "Upstash-Retries": ["5"],
        "Upstash-Label": ["of the group"],
        "Upstash-Delay": ["1m"],
        "Upstash-Forward-X": ["a", "b"],
        "Content-Type": ["text/plain"],
    }

    assert with_defaults(fields, {"upstash-delay": "2m", "upstash-timeout": ""}, header) == [
        *fields,
        (b"upstash-label", b"of the group"),
        (b"upstash-forward-x", b"a"),
        (b"upstash-forward-x", b"b"),
        (b"content-type", b"text/plain"),
    ]


def test_an_empty_forwarded_field_says_something():
    fields = [(b"upstash-forward-x", b"")]

    assert with_defaults(fields, {}, {"Upstash-Forward-X": ["a"]}) == fields


@pytest.mark.parametrize(
    ("own", "default"),
    [
        (b"upstash-delay", "Upstash-Not-Before"),
        (b"upstash-callback-delay", "Upstash-Callback-Not-Before"),
        (b"content-type", "Upstash-Forward-Content-Type"),
    ],
)
def test_a_default_does_not_beat_what_a_publish_says_in_other_words(own, default):
    fields = [(own, b"1")]

    assert with_defaults(fields, {}, {default: ["2"]}) == fields


def test_defaults_take_the_place_of_those_there_were():
    group = with_header(of((A, None)), {"Upstash-Retries": ["3"]}, now_ms=T0 + 1)

    assert group.updated_ms == T0 + 1
    assert with_header(group, {}, now_ms=T0 + 2).header == {}
    assert with_header(group, {"Upstash-Retries": ["3"]}, now_ms=T0 + 2) is group


def test_a_default_is_kept_byte_by_byte():
    header = checked_header({"Upstash-Forward-X": ["snow ☃"]})

    assert fields_of(header) == [(b"upstash-forward-x", "snow ☃".encode())]


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**80 - 1))
def test_the_id_of_a_group_is_safe_in_a_path_and_no_name(now_ms, entropy):  # D8
    assert re.fullmatch("tpc_[1-9A-HJ-NP-Za-km-z]{22}", url_group_id(now_ms, entropy))
