"""Claims about the `Upstash-*` headers, and how each mistake is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.domain.errors import Invalid, Problem, QuotaExceeded
from waypost.domain.flow import Flow
from waypost.domain.message import Callback
from waypost.domain.options import AsksForSchedule, Limits, checked_name, parse
from waypost.domain.redaction import Redaction

T0 = 1_721_068_851_000
DAY_MS = 86_400_000
PAYG = Limits(retries_max=5, delay_ms_max=7 * DAY_MS, timeout_ms_max=900_000)


def _fields(header):
    pairs = header.items() if isinstance(header, dict) else header
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs]


def _parse(header=(), query=None, limits=None):
    return parse(_fields(header), query or {}, limits=limits or Limits(), now_ms=T0)


def _refused(header=(), query=None, limits=None):
    with pytest.raises(Problem) as caught:
        _parse(header, query, limits)
    return caught.value


def test_nothing_asked_for_is_a_plain_post():  # W19, W36, W37
    options = _parse({"Host": "x", "User-Agent": "curl", "Authorization": "Bearer t"})
    assert options.method == "POST"
    assert options.header == {}
    assert options.timeout_ms == 900_000
    assert options.retries == 3
    assert options.retry_delay is None
    assert options.not_before_ms == T0
    assert options.deduplication_id is None
    assert options.content_based_deduplication is False
    assert options.labels == []
    assert options.queue is None
    assert options.callback is None
    assert options.failure_callback is None


@pytest.mark.parametrize(
    ("name", "value", "field", "read"),
    [
        ("Upstash-Method", "GET", "method", "GET"),  # W34
        ("Upstash-Method", "post", "method", "POST"),
        ("Upstash-Method", "PUT", "method", "PUT"),
        ("Upstash-Method", "PATCH", "method", "PATCH"),
        ("Upstash-Method", "DELETE", "method", "DELETE"),
        ("Upstash-Retries", "0", "retries", 0),  # W38
        ("Upstash-Retries", "5", "retries", 5),  # W40
        ("Upstash-Retries", " 100 ", "retries", 100),
        ("Upstash-Delay", "5s", "not_before_ms", T0 + 5_000),  # W41
        ("Upstash-Delay", "10d", "not_before_ms", T0 + 10 * DAY_MS),
        ("Upstash-Delay", "1d10h30m", "not_before_ms", T0 + 124_200_000),  # W42
        ("Upstash-Delay", "0s", "not_before_ms", T0),  # W43
        ("Upstash-Not-Before", "1721069851", "not_before_ms", T0 + 1_000_000),  # W45
        ("Upstash-Not-Before", "1", "not_before_ms", T0),  # W44
        ("Upstash-Timeout", "90s", "timeout_ms", 90_000),  # W48
        ("Upstash-Timeout", "90", "timeout_ms", 90_000),  # A45
        ("Upstash-Timeout", "1h30m", "timeout_ms", 5_400_000),  # W50
        ("Upstash-Timeout", "0s", "timeout_ms", 900_000),
        ("Upstash-Retry-Delay", "7000 * retried", "retry_delay", "7000 * retried"),  # W59
        ("Upstash-Deduplication-Id", "a b/ü", "deduplication_id", "a b/ü"),
        ("Upstash-Content-Based-Deduplication", "true", "content_based_deduplication", True),
        ("Upstash-Content-Based-Deduplication", "True", "content_based_deduplication", True),  # W55
        ("Upstash-Content-Based-Deduplication", "False", "content_based_deduplication", False),
        ("Upstash-Label", "one", "labels", ["one"]),  # W57
        ("Upstash-Label", "one, two,,three ", "labels", ["one", "two", "three"]),  # W58
        ("Upstash-Queue-Name", "-My_queue.9", "queue", "-My_queue.9"),
    ],
)
def test_each_header_is_read_and_so_is_its_query_parameter(name, value, field, read):  # W28, W29
    assert getattr(_parse({name: value}), field) == read
    assert getattr(_parse(query={name.lower(): value}), field) == read
    other = "9" if field in {"retries", "not_before_ms", "timeout_ms"} else value
    other += "s" if name == "Upstash-Delay" else ""
    assert getattr(_parse({name: value}, query={name.lower(): other}), field) == read


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Upstash-Method", "HEAD"),
        ("Upstash-Method", "GET\r\nX: y"),
        ("Upstash-Retries", "-1"),
        ("Upstash-Retries", "1.0"),
        ("Upstash-Retries", "three"),
        ("Upstash-Retries", "²"),
        ("Upstash-Retries", "9" * 5000),
        ("Upstash-Delay", "5"),  # W47
        ("Upstash-Delay", "soon"),
        ("Upstash-Not-Before", "1721068851.5"),
        ("Upstash-Not-Before", "-5"),
        ("Upstash-Not-Before", "1721068851000"),  # milliseconds
        ("Upstash-Timeout", "5x"),
        ("Upstash-Retry-Delay", "2 **"),  # W62
        ("Upstash-Retry-Delay", "1/retried"),
        ("Upstash-Deduplication-Id", "a\tb"),
        ("Upstash-Deduplication-Id", "a\x85b"),
        ("Upstash-Deduplication-Id", "a" * 1025),
        ("Upstash-Content-Based-Deduplication", "yes"),
        ("Upstash-Header-Forward", "1"),
        ("Upstash-Label", "a\x00b"),
        ("Upstash-Label", "a" * 257),
        ("Upstash-Label", "a," * 101),
        ("Upstash-Queue-Name", "a/b"),
        ("Upstash-Queue-Name", ".."),
        ("Upstash-Queue-Name", "a" * 256),
        ("Upstash-Forward-X", "a\r\nb"),
        ("Upstash-Forward-X", "a\x00b"),
        ("Upstash-Forward-X", "a" * 8193),
        ("Upstash-Forward-A b", "x"),
        ("Upstash-Forward-", "x"),
    ],
)
def test_a_mistake_is_named_by_the_field_it_is_in(name, value):
    problem = _refused({name: value})
    assert isinstance(problem, Invalid)
    assert str(problem).startswith(f"{name}: ")

    problem = _refused(query={name.lower(): value})
    assert isinstance(problem, Invalid)
    assert str(problem).startswith(f"{name.lower()} (query parameter): ")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("Upstash-Retries", "6", "quota maxRetries exceeded"),  # W39
        ("Upstash-Delay", "604801s", "quota maxDelay exceeded, current limit: 604800"),
        ("Upstash-Not-Before", "1721673652", "quota maxDelay exceeded, current limit: 604800"),
        ("Upstash-Timeout", "901s", "quota maxTimeout exceeded, current limit: 900"),
    ],
)
def test_the_limits_of_a_plan_are_told_in_the_hosted_services_words(name, value, text):
    problem = _refused({name: value}, limits=PAYG)
    assert isinstance(problem, QuotaExceeded)
    assert str(problem) == text


def test_the_limits_themselves_are_allowed():
    options = _parse(
        {"Upstash-Retries": "5", "Upstash-Delay": "7d", "Upstash-Timeout": "15m"}, limits=PAYG
    )
    assert (options.retries, options.not_before_ms) == (5, T0 + 7 * DAY_MS)


def test_a_colon_in_a_deduplication_id_is_refused_in_the_hosted_services_words():  # W53
    problem = _refused({"Upstash-Deduplication-Id": "a:b"})
    assert str(problem) == "DeduplicationId cannot contain ':'"


def test_not_before_beats_delay():  # W46
    for not_before_s in (T0 // 1000 + 5, T0 // 1000 - 5):
        options = _parse({"Upstash-Delay": "1h", "Upstash-Not-Before": str(not_before_s)})
        assert options.not_before_ms == max(T0, not_before_s * 1000)


def test_a_header_beats_a_query_parameter_unless_it_is_empty():  # D3, W13
    query = {"upstash-retries": "7"}
    assert _parse({"Upstash-Retries": "1"}, query).retries == 1
    assert _parse({"Upstash-Retries": ""}, query).retries == 7
    assert _parse({"Upstash-Retries": "  "}, query).retries == 7
    assert _parse({"Upstash-Retries": "1"}, {"upstash-retries": "no"}).retries == 1


def test_lists_in_several_fields_are_one_and_of_others_the_first_counts():
    """RFC 9110 section 5.3: what is to be hidden must not get lost (W71)."""
    options = _parse(
        [
            ("Upstash-Label", "a, b"),
            ("Upstash-Label", ""),
            ("Upstash-Label", "c"),
            ("Upstash-Redact-Fields", "body"),
            ("Upstash-Redact-Fields", "header[Authorization]"),
            ("Upstash-Flow-Control-Key", "k"),
            ("Upstash-Flow-Control-Value", "rate=3"),
            ("Upstash-Flow-Control-Value", "parallelism=2"),
            ("Upstash-Callback", "https://me.test"),
            ("Upstash-Callback-Label", "d"),
            ("Upstash-Callback-Label", "e"),
            ("Upstash-Retries", "1"),
            ("Upstash-Retries", "2"),
        ],
        {"upstash-label": "not beside a header"},
    )

    assert options.labels == ["a", "b", "c"]
    assert options.redaction == Redaction(body=True, fields=["Authorization"])
    assert options.flow == Flow("k", rate=3, parallelism=2)
    assert options.callback is not None
    assert options.callback.labels == ["d", "e"]
    assert options.retries == 1


def test_empty_fields_count_as_absent():  # W13
    names = [
        "Upstash-Method",
        "Upstash-Timeout",
        "Upstash-Retries",
        "Upstash-Retry-Delay",
        "Upstash-Delay",
        "Upstash-Not-Before",
        "Upstash-Deduplication-Id",
        "Upstash-Content-Based-Deduplication",
        "Upstash-Label",
        "Upstash-Queue-Name",
        "Upstash-Header-Forward",
        "Content-Type",
        "Upstash-Callback",
        "Upstash-Callback-Retries",
        "Upstash-Callback-Flow-Control-Key",
        "Upstash-Callback-Deduplication-Id",
        "Upstash-Cron",
        "Upstash-Failure-Callback",
        "Upstash-Flow-Control-Key",
        "Upstash-Redact-Fields",
    ]
    assert _parse(dict.fromkeys(names, "")) == _parse()
    assert _parse(query={name.lower(): "" for name in names}) == _parse()


@pytest.mark.parametrize("name", ["Upstash-Cron", "Upstash-Schedule-Id"])
def test_who_asks_for_a_schedule_asks_for_no_message(name):  # W136
    for fault, shown in (
        (_refused({name: "x"}), name),
        (_refused(query={name.lower(): "x"}), f"{name.lower()} (query parameter)"),
    ):
        assert isinstance(fault, AsksForSchedule)
        assert str(fault) == f"{shown}: this cannot be a schedule; create it by itself"


@pytest.mark.parametrize("of", ["", "Callback-", "Failure-Callback-"])
def test_a_flow_control_key_and_its_value_come_together(of):  # W63
    key, value = f"Upstash-{of}Flow-Control-Key", f"Upstash-{of}Flow-Control-Value"
    url = {f"Upstash-{of}"[:-1]: "https://a.example"} if of else {}

    asked = _parse(url | {key: "a:b/c", value: "rate=2,period=3"})

    flows = [asked.flow, asked.callback and asked.callback.flow]
    flows.append(asked.failure_callback and asked.failure_callback.flow)
    assert [flow for flow in flows if flow] == [Flow("a:b/c", rate=2, period_ms=3_000)]
    assert str(_refused(url | {key: "k"})) == f"{key} needs {value} beside it"
    assert str(_refused(url | {value: "rate=1"})) == f"{value} needs {key} beside it"
    assert str(_refused(url | {key: "k\x01", value: "rate=1"})).startswith(f"{key}: contains")
    in_query = _refused(url, query={key.lower(): "k"})
    assert str(in_query) == f"{key.lower()} (query parameter) needs {value} beside it"
    assert _parse(url | {key: "k"}, query={value.lower(): "rate=1"}) == _parse(
        url | {key: "k", value: "rate=1"}
    )


@pytest.mark.parametrize("value", ["period=1s", "rate", "=1", "rate=1 parallelism=2", "x=1"])
def test_a_flow_control_value_that_says_no_limit_is_answered_in_the_words_of_qstash(value):  # W64
    name = "Upstash-Flow-Control-Value"

    said = str(_refused({"Upstash-Flow-Control-Key": "k", name: value}))

    assert said == (
        f"{name} should be either rate=X or parallelism=Y, or both as comma-separated values"
    )


def test_the_longest_period_is_a_limit():  # W65
    fields = {"Upstash-Flow-Control-Key": "k", "Upstash-Flow-Control-Value": "rate=1,period=11"}

    said = str(_refused(fields, limits=Limits(flow_period_ms_max=10_000)))

    assert said == "Upstash-Flow-Control-Value: period must be from 1 to 10 seconds"


def test_unknown_upstash_fields_are_ignored_and_never_passed_on():  # W12
    unknown = {
        "Upstash-Telemetry-Sdk": "a, b",
        "Upstash-Workflow-RunId": "x",
        "Upstash-Feature-Set": "y",
        "Upstash-Cronjob": "z",
        "Upstash-Forwarded": "z",
        "Upstash-Callbacks": "z",
        "Upstash-Callback-Workflow-RunId": "z",
        "Upstash-Failure-Callback-Feature-Set": "z",
        "Upstash-Callback-Callbacks": "z",
    }
    assert _parse(unknown) == _parse()
    assert _parse(unknown | {"Upstash-Header-Forward": "true"}) == _parse()


def test_forwarded_headers_lose_their_prefix():  # W20-W22
    options = _parse(
        {
            "Content-Type": "application/json",
            "Upstash-Forward-My-Header": "my-value",
            "upstash-forward-AUTHORIZATION": "Bearer theirs",
            "Authorization": "Bearer ours",
            "X-Other": "stays",
        }
    )
    assert options.header == {
        "Content-Type": ["application/json"],
        "My-Header": ["my-value"],
        "Authorization": ["Bearer theirs"],
    }


def test_duplicates_arrive_as_they_were_sent():  # W23
    options = _parse(
        [("Upstash-Forward-A", "1, 2"), ("Upstash-Forward-a", "3"), ("Upstash-Forward-B", "")]
    )
    assert options.header == {"A": ["1, 2", "3"], "B": [""]}


def test_a_forwarded_content_type_beats_the_requests():  # PY sends both
    options = _parse({"Content-Type": "text/plain", "Upstash-Forward-content-type": "a/b"})
    assert options.header == {"Content-Type": ["a/b"]}


def test_a_forwarded_header_beats_the_query_parameter_of_its_name():
    options = _parse(
        {"Upstash-Forward-A": "1"}, {"upstash-forward-a": "2", "upstash-forward-b": "3"}
    )
    assert options.header == {"A": ["1"], "B": ["3"]}


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "Content-Length",
        "Connection",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Expect",
        "Proxy-Authorization",
        "Upstash-Signature",
        "Upstash-Message-Id",
        "Upstash-Retried",
    ],
)
def test_what_may_never_travel_is_dropped(name):  # D6
    for prefix in ("Upstash-Forward-", "upstash-forward-", "UPSTASH-FORWARD-"):
        assert _parse({prefix + name: "x"}).header == {}
    assert _parse({name: "x", "Upstash-Header-Forward": "true"}).header == {}


def test_what_connection_names_is_dropped():
    options = _parse({"Upstash-Forward-Connection": "close, X-A", "Upstash-Forward-X-A": "1"})
    assert options.header == {}


def test_header_forward_passes_everything_on_but_our_own():  # W24
    options = _parse(
        [
            ("Host", "queue.example"),
            ("Authorization", "Bearer ours"),
            ("Accept-Encoding", "gzip"),
            ("Content-Length", "2"),
            ("Connection", "keep-alive, X-Hop"),
            ("X-Hop", "1"),
            ("Content-Type", "application/json"),
            ("User-Agent", "GitHub-Hookshot/1"),
            ("X-Hub-Signature-256", "sha256=abc"),
            ("X-Twice", "1"),
            ("X-Twice", "2"),
            ("X-Over", "incoming"),
            ("Upstash-Forward-X-Over", "asked"),
            ("Upstash-Retries", "1"),
            ("Upstash-Header-Forward", "True"),
        ]
    )
    assert options.header == {
        "Content-Type": ["application/json"],
        "User-Agent": ["GitHub-Hookshot/1"],
        "X-Hub-Signature-256": ["sha256=abc"],
        "X-Twice": ["1", "2"],
        "X-Over": ["asked"],
    }
    query = {"upstash-header-forward": "true"}
    assert _parse({"X-A": "1"}, query).header == {"X-A": ["1"]}


def test_too_many_or_too_large_headers_are_refused():  # T8
    assert len(_parse({f"Upstash-Forward-X{n}": "v" for n in range(100)}).header) == 100
    assert "more than 100" in str(_refused({f"Upstash-Forward-X{n}": "v" for n in range(101)}))
    assert "32768 bytes" in str(_refused({f"Upstash-Forward-X{n}": "v" * 8000 for n in range(5)}))


def test_text_is_utf8_or_else_latin1():
    for value in ("é".encode(), "é".encode("latin-1")):
        options = parse([(b"upstash-label", value)], {}, limits=Limits(), now_ms=T0)
        assert options.labels == ["é"]


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "...", "_", "-x", "a" * 255])
def test_a_name_may_have_letters_digits_and_three_marks(name):
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "a/b", "a,b", "ä", "a\n", "a" * 256])
def test_anything_else_is_not_a_name(name):
    with pytest.raises(Invalid):
        checked_name(name)


@given(
    st.lists(
        st.tuples(st.sampled_from([b"upstash-", b"upstash-forward-", b""]), st.binary(max_size=6))
        .map(b"".join)
        .flatmap(lambda name: st.tuples(st.just(name), st.binary(max_size=12))),
        max_size=6,
    ),
    st.booleans(),
)
def test_whatever_arrives_only_clean_fields_are_passed_on(fields, forward_all):
    if forward_all:
        fields = [*fields, (b"upstash-header-forward", b"true")]
    try:
        options = parse(fields, {}, limits=Limits(), now_ms=T0)
    except Invalid:
        return
    for name, values in options.header.items():
        assert name.isascii()
        for value in values:
            assert not any((c < " " and c != "\t") or c == "\x7f" for c in value)
            assert any(value.encode("latin-1") == sent.strip(b" \t") for _, sent in fields)


CALLBACKS = [("Upstash-Callback", "callback"), ("Upstash-Failure-Callback", "failure_callback")]
both = pytest.mark.parametrize(("prefix", "field"), CALLBACKS)


@both
def test_a_callback_is_a_plain_post_with_the_retries_of_the_message(prefix, field):  # W201
    options = _parse({prefix: "https://example.com/hook?a=b", "Upstash-Retries": "7"})
    other = {"callback", "failure_callback"} - {field}
    assert getattr(options, field) == Callback(
        url="https://example.com/hook?a=b", retries_max=7, timeout_ms=900_000
    )
    assert getattr(options, other.pop()) is None
    assert getattr(_parse({prefix: "http://example.com"}), field).retries_max == 3


@both
@pytest.mark.parametrize(
    ("suffix", "value", "expected"),
    [
        ("Method", "put", {"method": "PUT"}),
        ("Timeout", "90s", {"timeout_ms": 90_000}),
        ("Retries", "0", {"retries_max": 0}),
        ("Retry-Delay", "7000 * retried", {"retry_delay": "7000 * retried"}),
        ("Delay", "1d10h", {"delay_ms": 122_400_000}),
        ("Delay", "0s", {}),
        ("Not-Before", "1721069851", {"not_before_ms": T0 + 1_000_000}),
        ("Not-Before", "1", {"not_before_ms": 1_000}),
        ("Label", "a, b", {"labels": ["a", "b"]}),
        ("Queue-Name", "told", {"queue": "told"}),
        ("Forward-x-own", "mine", {"header": {"X-Own": ["mine"]}}),
        ("Forward-X-Own", "", {"header": {"X-Own": [""]}}),
        ("Forward-Content-Type", "text/plain", {"header": {"Content-Type": ["text/plain"]}}),
        ("Forward-Upstash-Signature", "forged", {}),
        ("Forward-Host", "evil.example", {}),
    ],
)
def test_a_callback_is_configured_as_a_message_is(prefix, field, suffix, value, expected):  # W200
    url = "https://example.com/"
    plain = {"url": url, "retries_max": 3, "timeout_ms": 900_000}
    name = f"{prefix}-{suffix}"
    wanted = Callback(**(plain | expected))
    assert getattr(_parse({prefix: url, name: value}), field) == wanted
    assert getattr(_parse({name: value, prefix: url}), field) == wanted
    assert getattr(_parse({prefix: url}, {name.lower(): value}), field) == wanted
    assert getattr(_parse(query={prefix.lower(): url, name.lower(): value}), field) == wanted


@both
@pytest.mark.parametrize(
    ("suffix", "value"),
    [
        ("", "example.com"),
        ("", "ftp://example.com/"),
        ("", "https://example.com/#fragment"),
        ("", "https://exämple.com/"),
        ("", "my-group"),
        ("-Method", "HEAD"),
        ("-Timeout", "5x"),
        ("-Retries", "three"),
        ("-Retry-Delay", "2 **"),
        ("-Delay", "5"),
        ("-Not-Before", "soon"),
        ("-Label", "a" * 257),
        ("-Queue-Name", "a/b"),
        ("-Forward-X", "a\r\nb"),
        ("-Forward-A b", "x"),
    ],
)
def test_a_mistake_in_a_callback_is_named_by_its_field(prefix, field, suffix, value):  # D3
    url = {prefix: "https://example.com/"}
    name = prefix + suffix

    problem = _refused(url | {name: value})
    assert isinstance(problem, Invalid)
    assert str(problem).startswith(f"{name}: ")
    assert "destination" not in str(problem)

    query = {key.lower(): text for key, text in (url | {name: value}).items()}
    problem = _refused(query=query)
    assert str(problem).startswith(f"{name.lower()} (query parameter): ")


@both
@pytest.mark.parametrize(
    ("suffix", "value", "text"),
    [
        ("Retries", "6", "quota maxRetries exceeded"),
        ("Delay", "604801s", "quota maxDelay exceeded, current limit: 604800"),
        ("Not-Before", "1721673652", "quota maxDelay exceeded, current limit: 604800"),
        ("Timeout", "901s", "quota maxTimeout exceeded, current limit: 900"),
    ],
)
def test_the_limits_of_a_plan_hold_for_callbacks(prefix, field, suffix, value, text):
    header = {prefix: "https://example.com/", f"{prefix}-{suffix}": value}
    problem = _refused(header, limits=PAYG)
    assert isinstance(problem, QuotaExceeded)
    assert str(problem) == f"{prefix}: {text}"


@both
@pytest.mark.parametrize(
    "suffix",
    [
        "Callback",
        "Callback-Retries",
        "Failure-Callback",
        "Failure-Callback-Forward-X",
        "Deduplication-Id",
        "Content-Based-Deduplication",
        "Header-Forward",
        "Cron",
        "Schedule-Id",
    ],
)
def test_what_a_callback_cannot_have_is_refused_by_name(prefix, field, suffix):  # D25
    header = {prefix: "https://example.com/", f"{prefix}-{suffix}": "x"}
    assert str(_refused(header)) == f"{prefix}-{suffix}: a callback has none"


@both
def test_the_fields_of_a_callback_that_was_not_asked_for_are_ignored(prefix, field):  # W12
    header = {f"{prefix}-Retries": "three", f"{prefix}-Forward-X": "a\r\nb", prefix: ""}
    assert _parse(header) == _parse()
    [other] = {"Upstash-Callback", "Upstash-Failure-Callback"} - {prefix}
    alone = _parse({other: "https://example.com/"})
    assert _parse(header | {other: "https://example.com/"}) == alone


def test_the_two_callbacks_have_nothing_in_common():
    options = _parse(
        {
            "Upstash-Callback": "https://one.example/",
            "Upstash-Callback-Retries": "1",
            "Upstash-Callback-Forward-X": "one",
            "Upstash-Failure-Callback": "https://two.example/",
            "Upstash-Failure-Callback-Retries": "2",
            "Upstash-Failure-Callback-Forward-X": "two",
            "Upstash-Forward-X": "message",
            "Upstash-Callback-Forward-Y": "header",
        },
        {"upstash-callback-forward-y": "query", "upstash-callback-forward-z": "query"},
    )
    assert options.callback == Callback(
        url="https://one.example/",
        retries_max=1,
        timeout_ms=900_000,
        header={"X": ["one"], "Y": ["header"], "Z": ["query"]},
    )
    assert options.failure_callback == Callback(
        url="https://two.example/", retries_max=2, timeout_ms=900_000, header={"X": ["two"]}
    )
    assert options.header == {"X": ["message"]}
    assert options.retries == 3


def test_not_before_beats_the_delay_of_a_callback():
    header = {
        "Upstash-Callback": "https://example.com/",
        "Upstash-Callback-Delay": "1h",
        "Upstash-Callback-Not-Before": "1721069851",
    }
    callback = _parse(header).callback
    assert callback is not None
    assert (callback.delay_ms, callback.not_before_ms) == (0, T0 + 1_000_000)
