"""Claims about retries: whether, and when."""

import math
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.domain.attempt import Delivered, GiveUp, Outcome, TryAgain
from waypost.domain.retry import Backoff, judge

T0 = 1_721_068_851_000  # Mon, 15 Jul 2024 18:40:51 GMT
DAY_MS = 86_400_000


def _judge(outcome, **changed):
    facts = {
        "retried": 0,
        "retries_max": 3,
        "retry_delay": None,
        "backoff": Backoff(),
        "not_before_ms": T0,
        "now_ms": T0,
    }
    return judge(outcome, **(facts | changed))


def _failed(*header, status=500):
    return Outcome(status=status, header=list(header))


def _wait_ms(outcome, **changed):
    verdict = _judge(outcome, **changed)
    assert isinstance(verdict, TryAgain), verdict
    return verdict.at_ms - T0


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_a_2xx_is_delivered(status):  # W186
    assert _judge(Outcome(status=status)) == Delivered()


@pytest.mark.parametrize("status", [0, 101, 199, 300, 301, 308, 400, 404, 429, 489, 500, 503, 999])
def test_anything_else_is_tried_again(status):  # W186
    assert _judge(Outcome(status=status)) == TryAgain(T0 + 7389)


def test_a_2xx_that_was_cut_off_is_tried_again():  # D14
    assert _judge(Outcome(status=200, error="connection reset")) == TryAgain(T0 + 7389)


@pytest.mark.parametrize(
    ("n", "ms"),
    [(1, 7_389), (2, 54_598), (3, 403_429), (4, 2_980_958), (5, 22_026_466), (6, DAY_MS)],
)
def test_the_default_waits_are_the_documented_ones(n, ms):  # W187
    assert _wait_ms(_failed(), retried=n - 1, retries_max=n) == ms
    assert Backoff().wait_ms(10**6) == DAY_MS


@pytest.mark.parametrize(("n", "s"), [(1, 12), (2, 148), (3, 1808), (4, 22026), (5, 86400)])
def test_the_hosted_services_waits_are_one_setting_away(n, s):  # A1
    assert Backoff(exponent=2.5).wait_ms(n) // 1000 == s


@given(st.integers(0, 200), st.floats(0, 100))
def test_no_wait_is_longer_than_a_day(n, exponent):
    assert 0 <= Backoff(exponent=exponent).wait_ms(n) <= DAY_MS


@pytest.mark.parametrize("retries_max", [0, 1, 5])
def test_the_last_retry_is_the_last(retries_max):  # W38
    assert isinstance(_judge(_failed(), retried=retries_max, retries_max=retries_max), GiveUp)
    if retries_max:
        verdict = _judge(_failed(), retried=retries_max - 1, retries_max=retries_max)
        assert isinstance(verdict, TryAgain)


def test_a_refused_address_is_given_up_at_once_and_the_policy_is_named():  # D10
    verdict = _judge(Outcome(refused=True, error="10.0.0.1 is a private address"))
    assert verdict == GiveUp("not sent: 10.0.0.1 is a private address")


@pytest.mark.parametrize(
    ("age_ms", "wait_ms"),
    [(0, 7_389), (14_000, 7_389), (60_000, 30_000), (DAY_MS, 3_600_000), (-1_000, 7_389)],
)
def test_a_proxy_that_fails_for_long_is_asked_more_and_more_seldom(age_ms, wait_ms):
    outcome = Outcome(error="the proxy answered 502 to CONNECT", proxy_fault=True)
    verdict = _judge(outcome, not_before_ms=T0 - age_ms)
    assert verdict == TryAgain(T0 + wait_ms, counts=False)


@pytest.mark.parametrize("retried", [0, 1, 3])
def test_a_fault_of_the_proxy_uses_up_no_retry_and_is_never_given_up(retried):  # D10
    outcome = Outcome(error="the proxy answered 502 to CONNECT", proxy_fault=True)
    verdict = _judge(outcome, retried=retried, retry_delay="5")
    assert verdict == TryAgain(T0 + 7389, counts=False)


def test_only_status_and_header_together_forbid_a_retry():  # W194, A36
    header = ("upstash-nonretryable-error", "True")
    assert isinstance(_judge(_failed(header, status=489)), GiveUp)
    assert isinstance(_judge(_failed(header, status=500)), TryAgain)
    assert isinstance(_judge(_failed(status=489)), TryAgain)
    assert isinstance(_judge(_failed((header[0], "false"), status=489)), TryAgain)


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        ("120", 120_000),  # W188
        ("1.5", 1_500),
        (" 7 ", 7_000),
        ("0", 0),  # W191
        ("0s", 0),
        ("6m5s", 365_000),  # W190
        ("250ms", 250),
        ("Mon, 15 Jul 2024 18:41:51 GMT", 60_000),  # W189
        ("Mon, 15 Jul 2024 18:41:51 UTC", 60_000),
        ("Mon, 15 Jul 2024 18:40:50 GMT", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("86400", DAY_MS),
        ("24h", DAY_MS),
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "retry-after",
        "x-ratelimit-reset",  # W193
        "x-ratelimit-reset-requests",
        "x-ratelimit-reset-tokens",
    ],
)
def test_the_destination_may_ask_for_a_wait(name, value, ms):
    assert _wait_ms(_failed((name, value))) == ms
    assert _wait_ms(_failed((name, value)), retry_delay="5") == ms


@pytest.mark.parametrize(
    "value",
    [
        "86401",  # W192
        "24h1s",
        "1721069151",
        "Tue, 16 Jul 2024 18:40:52 GMT",
        "-1",
        "-5s",
        "",
        "soon",
        "1e3",
        "inf",
        "nan",
        "9" * 70,
        "10" * 9,
        "Mon, 32 Jul 2024 18:41:51 GMT",
        "Mon, 15 Foo 2024 18:41:51 GMT",
        "Mon, 15 Jul 0000 18:41:51 GMT",
        "Mon, 15 Jul 2024 25:41:51 GMT",
        "Monday, 15-Jul-24 18:41:51 GMT",
        "2024-07-15T18:41:51Z",
    ],
)
def test_a_wait_that_is_too_long_or_makes_no_sense_is_ignored(value):
    assert _wait_ms(_failed(("retry-after", value))) == 7389
    assert _wait_ms(_failed(("retry-after", value)), retry_delay="5") == 5
    # The next field of the family is asked instead.
    assert _wait_ms(_failed(("x-ratelimit-reset", "9"), ("retry-after", value))) == 9000


def test_of_several_fields_the_first_of_the_family_counts():
    outcome = _failed(
        ("x-ratelimit-reset-tokens", "4"),
        ("x-ratelimit-reset-requests", "3"),
        ("x-ratelimit-reset", "2"),
        ("retry-after", "1"),
        ("retry-after", "9"),
    )
    assert _wait_ms(outcome) == 1000


def test_the_publishers_expression_counts_the_retries_already_made():  # W61
    waits = [_wait_ms(_failed(), retried=n, retry_delay="1000 * retried") for n in range(3)]
    assert waits == [0, 1000, 2000]


@given(st.integers(T0 // 1000, T0 // 1000 + 86_400))
def test_dates_are_read_as_the_standard_library_writes_them(at_s):
    date = format_datetime(datetime.fromtimestamp(at_s, UTC), usegmt=True)
    assert _wait_ms(_failed(("retry-after", date))) == at_s * 1000 - T0


@given(st.text(max_size=70), st.sampled_from(["retry-after", "x-ratelimit-reset"]))
def test_no_answer_makes_a_wait_that_is_not_one(value, name):
    wait_ms = _wait_ms(_failed((name, value)))
    assert 0 <= wait_ms <= DAY_MS
    assert not math.isnan(wait_ms)
