"""Claims about what may follow `/publish/`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.domain.destination import (
    URL_BYTES_MAX,
    ToApi,
    ToGroup,
    ToUrl,
    origin_of,
    read_destination,
    unknown_group,
)
from waypost.domain.errors import Invalid, NotFound

BAD_SCHEME = "invalid destination url: endpoint has invalid scheme, add http:// or https://"
PATH_BYTES = st.binary(max_size=60).map(
    lambda raw: bytes(33 + byte % 94 for byte in raw).replace(b"#", b"!")
)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",  # W26: no slash is added
        "https://example.com/",
        "https://example.com//a/../b/./c",
        "https://example.com/%7Efoo%2Fbar%20",
        "HTTPS://Example.COM/A",
        "http://user:p%40ss@example.com:8080/x",
        "http://[2001:DB8::1]:81/x",
        "http://localhost:3000/hook",
        "http://my_service/hook",
        "http://2130706433/",
        "https://example.com/https://other.example/",
        "https://example.com./",
    ],
)
def test_a_url_is_kept_byte_for_byte(url):
    assert read_destination(url.encode(), b"") == (ToUrl(url), {})


@given(PATH_BYTES, PATH_BYTES)
def test_path_and_query_keep_every_byte(path, query):
    query = query.replace(b"upstash-", b"").replace(b"qstash_token", b"")
    raw = b"https://example.com/" + path
    destination, parameters = read_destination(raw, query)
    expected = raw + b"?" + query if query else raw
    assert destination == ToUrl(expected.decode())
    assert parameters == {}


@given(st.lists(st.sampled_from([b"a=1", b"", b"b", b"c=%2B+", b"upstash-x=1", b"qstash_token=t"])))
def test_only_configuration_is_taken_out_of_the_query(parts):
    kept = [part for part in parts if not part.startswith((b"upstash-", b"qstash_token"))]
    destination, _ = read_destination(b"http://example.com", b"&".join(parts))
    left = b"&".join(kept).decode()
    assert destination == ToUrl("http://example.com" + (f"?{left}" if left else ""))


def test_the_query_is_the_destinations_and_the_configuration_is_ours():  # W25, W27-W29
    destination, parameters = read_destination(
        b"https://example.com/a",
        b"foo=bar&upstash-retries=3&qstash_token=secret&z=%20&upstash-delay=100s&upstash-retries=4",
    )
    assert destination == ToUrl("https://example.com/a?foo=bar&z=%20")
    assert parameters == {"upstash-retries": "3", "upstash-delay": "100s"}


def test_other_spellings_of_configuration_stay_with_the_destination():  # D3
    query = b"Upstash-Retries=3&UPSTASH-DELAY=1s&xupstash-a=1&qstash_tokens=1"
    destination, parameters = read_destination(b"https://example.com", query)
    assert destination == ToUrl("https://example.com?" + query.decode())
    assert parameters == {}


def test_parameters_are_decoded_as_forms_are():
    query = b"upstash-retry-delay=1000*(1%2Bretried)+&upstash-label=caf%C3%A9"
    _, parameters = read_destination(b"my-group", query)
    assert parameters == {"upstash-retry-delay": "1000*(1+retried) ", "upstash-label": "café"}


def test_parameters_that_are_lists_are_put_together():
    query = b"upstash-label=a&upstash-label=b%2Cc&upstash-redact-fields=body"
    _, parameters = read_destination(b"my-group", query + b"&upstash-redact-fields=header")
    assert parameters == {"upstash-label": "a, b,c", "upstash-redact-fields": "body, header"}


@pytest.mark.parametrize("query", [b"upstash-label=%ff", b"upstash-\xff=1"])
def test_parameters_that_are_not_utf8_are_refused(query):
    with pytest.raises(Invalid, match=r"upstash-.*\(query parameter\): not UTF-8"):
        read_destination(b"https://example.com", query)


@pytest.mark.parametrize(
    ("rest", "destination"),
    [
        (b"api/llm", ToApi("llm")),
        (b"api/email", ToApi("email")),
        (b"my-group", ToGroup("my-group")),
        (b"_A.b-9", ToGroup("_A.b-9")),
        (b"my%2Dgroup", ToGroup("my-group")),
        (b"https", ToGroup("https")),
        (b"api", ToGroup("api")),
    ],
)
def test_names_are_apis_or_groups(rest, destination):
    assert read_destination(rest, b"left=over") == (destination, {})


def test_a_destination_must_be_there():  # W31
    with pytest.raises(Invalid, match=r"^a non-empty destination must be provided$"):
        read_destination(b"", b"")


@pytest.mark.parametrize(
    "rest",
    [
        b"ftp://example.com",  # W30
        b"https%3A%2F%2Fexample.com",  # W33
        b"example.com/path",
        b"localhost:3000",
        b"//example.com",
        b"api/llm/more",
        b"api/",
        b"my group",
        b"\xff",
        b"javascript:alert(1)",
        b"https:example.com",
    ],
)
def test_what_is_neither_url_nor_name_has_the_wrong_scheme(rest):
    with pytest.raises(Invalid) as caught:
        read_destination(rest, b"")
    assert str(caught.value) == BAD_SCHEME


@pytest.mark.parametrize("rest", [b"https:/example.com", b"http:/example.com/a//b", b"HTTP:/"])
def test_merged_slashes_are_named(rest):  # D4
    with pytest.raises(Invalid, match="merge_slashes off"):
        read_destination(rest, b"")


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        (b"https://example.com/#top", "fragment"),
        (b"https://example.com/a b", "percent-encoded"),
        (b"https://example.com/\x00", "percent-encoded"),
        (b"https://exa\tmple.com/", "percent-encoded"),
        (b"https://example.com/\r\nHost: x", "percent-encoded"),
        (b"https://example.com/caf\xc3\xa9", "percent-encoded"),
        (b"https://", "host is missing"),
        (b"https:///path", "host is missing"),
        (b"https://?a", "host is missing"),
        (b"https://:80/", "host is missing"),
        (b"https://user@/", "host is missing"),
        (b"https://exa%6dple.com/", "host contains"),
        (b"https://a..b/", "host contains"),
        (b"https://.a/", "host contains"),
        (b"https://good\\evil/", "host contains"),
        (b"https://a" + b".b" * 127 + b"/", "longer than 253"),
        (b"https://u@v@example.com/", "user information"),
        (b"https://good\\@evil/", "user information"),
        (b"https://" + b"u" * 1024 + b"@a/", "authority is longer"),
        (b"https://[::1", "IPv6"),
        (b"https://[fe80::1%25eth0]/", "IPv6"),
        (b"https://[fe80::1%eth0]/", "IPv6"),
        (b"https://[v1.a]/", "IPv6"),
        (b"https://[::1]x/", "after the IPv6"),
        (b"https://::1/", "host is missing"),
        (b"https://1::1/", "port"),
        (b"https://a:0/", "port"),
        (b"https://a:65536/", "port"),
        (b"https://a:/", "port"),
        (b"https://a:-1/", "port"),
        (b"https://a:8_0/", "port"),
        (b"https://a/" + b"a" * URL_BYTES_MAX, "longer than 8192"),
    ],
)
def test_a_url_that_cannot_be_delivered_to_is_refused(url, fault):
    with pytest.raises(Invalid, match=f"^invalid destination url: .*{fault}"):
        read_destination(url, b"")


@given(st.binary(max_size=80), st.binary(max_size=40))
def test_no_bytes_are_more_than_refused(rest, query):
    for raw in (rest, b"https://" + rest, b"http://[" + rest):
        try:
            destination, _ = read_destination(raw, query)
        except Invalid:
            continue
        if isinstance(destination, ToUrl):
            assert destination.url.encode("ascii").startswith(raw)


@pytest.mark.parametrize(
    ("url", "key", "host"),
    [
        ("https://Example.com", "https://example.com:443", "example.com"),
        ("HTTP://u:p@example.com:443?x=/", "http://example.com:443", "example.com"),
        ("http://[::1]:80/a", "http://[::1]:80", "::1"),
        ("http://example.com/@other:9", "http://example.com:80", "example.com"),
        ("https://example.com:0443/", "https://example.com:443", "example.com"),
    ],
)
def test_an_origin_has_one_spelling(url, key, host):
    assert origin_of(url).key == key
    assert origin_of(url).host == host


def test_an_unknown_group_is_named_and_a_bare_host_is_told_about_schemes():  # W32
    missing = unknown_group("non_existing_url_group")
    assert isinstance(missing, NotFound)
    assert str(missing) == "topic non_existing_url_group not found"
    assert isinstance(unknown_group("example.com"), Invalid)
    assert str(unknown_group("example.com")) == BAD_SCHEME
