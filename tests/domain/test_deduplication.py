"""Claims about what makes two messages the same one (D2)."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.domain.deduplication import KEY_BYTES_MAX, WINDOW_MS, dedup_key, group_dedup_keys

CONTENT = {"url": "https://example.com", "header": {"Content-Type": ["text/plain"]}, "body": b"hi"}
HEADERS = st.dictionaries(
    st.sampled_from(["A", "B", "Ab"]), st.lists(st.text("ab:1", max_size=3), max_size=3), max_size=3
)


def _by_content(**changed):
    return dedup_key(deduplication_id=None, content_based=True, **(CONTENT | changed))


def test_the_window_is_ten_minutes():  # W52
    assert WINDOW_MS == 10 * 60 * 1000


def test_without_being_asked_nothing_is_deduplicated():
    assert dedup_key(deduplication_id=None, content_based=False, **CONTENT) is None


def test_an_id_is_the_whole_key_whatever_else_is_sent():  # W51
    other = {"url": "https://other.example", "header": {}, "body": b"bye"}
    for content_based in (False, True):
        for content in (CONTENT, other):
            key = dedup_key(deduplication_id="a", content_based=content_based, **content)
            assert key == "id:a"


URLS = ["https://a.example", "https://b.example"]


def _of_group(group="g", urls=URLS, deduplication_id=None, content_based=True, **changed):
    content = {name: CONTENT[name] for name in ("header", "body")}
    return group_dedup_keys(
        deduplication_id=deduplication_id,
        content_based=content_based,
        group=group,
        urls=urls,
        **(content | changed),
    )


def test_the_endpoints_of_a_group_are_deduplicated_one_by_one():
    for content_based in (False, True):
        for group in ("g", "h"):
            keys = _of_group(group, deduplication_id="a", content_based=content_based)
            assert keys == [f"id:a:{group}:https://a.example", f"id:a:{group}:https://b.example"]
    assert _of_group(content_based=False) == [None, None]


def test_the_content_of_a_group_is_its_name_and_url_and_the_rest():
    keys = [
        _by_content(url=URLS[0]),
        *_of_group(),
        *_of_group("h"),
        *_of_group(body=b"hi "),
        *_of_group(header={"Content-Type": ["text/html"]}),
    ]
    assert len(set(keys)) == len(keys)
    assert _of_group(urls=URLS[1:]) == _of_group()[1:]


def test_content_is_destination_body_and_headers():  # W54, W56
    keys = [
        _by_content(),
        _by_content(url="https://example.com/"),
        _by_content(body=b"hi "),
        _by_content(header={"Content-Type": ["text/html"]}),
        _by_content(header={"Content-Type": ["text/plain"], "X": ["1"]}),
    ]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch("content:[0-9a-f]{64}", key) for key in keys)


def test_the_order_of_header_names_makes_no_difference():
    one, two = {"A": ["1"], "B": ["2"]}, {"B": ["2"], "A": ["1"]}
    assert _by_content(header=one) == _by_content(header=two)


@pytest.mark.parametrize("character", ["a", "\xe9", "\u4e2d", "\U0001f600"])
def test_a_key_stays_as_it_is_up_to_a_length_and_is_a_hash_beyond_it(character):
    spent = len(b"id:")
    fits = character * ((KEY_BYTES_MAX - spent) // len(character.encode()))

    def of_id(text):
        return dedup_key(deduplication_id=text, content_based=False, **CONTENT)

    assert of_id(fits) == f"id:{fits}"
    too_long = [of_id(fits + more) for more in (character, character * 2, "bbbb")]
    assert all(re.fullmatch("long:[0-9a-f]{64}", key) for key in too_long)
    assert len(set(too_long)) == 3


def test_long_keys_of_a_group_differ_in_url_and_group_and_id():
    urls = [f"{url}/".ljust(8_192, "x") for url in URLS]
    keys = [
        *_of_group(urls=urls),
        *_of_group("h", urls=urls),
        *_of_group(urls=urls, deduplication_id="a"),
        *_of_group("h", urls=urls, deduplication_id="a"),
        *_of_group(urls=urls, deduplication_id="b"),
    ]
    assert len(set(keys)) == len(keys) == 10
    assert all(len(key.encode()) <= KEY_BYTES_MAX for key in keys)


@given(st.tuples(HEADERS, st.binary(max_size=4)), st.tuples(HEADERS, st.binary(max_size=4)))
def test_different_content_never_has_the_same_key(one, two):
    same = _by_content(header=one[0], body=one[1]) == _by_content(header=two[0], body=two[1])
    assert same == (one == two)
