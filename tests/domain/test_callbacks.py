"""Claims about callbacks: what they say, to the letter, and what messages they are."""

import json

import pytest
from msgspec.structs import replace

from tests.support.factory import HOUR, T0, a_message
from waypost.domain.attempt import Outcome
from waypost.domain.callbacks import Report, body, message, report
from waypost.domain.message import Callback

ANSWER = Outcome(
    status=503,
    header=[("content-type", "text/plain"), ("x-two", "1"), ("x-two", "2"), ("x-1y", "\xc3\xa9")],
    body=b"\x00busy",
)
HOOK = Callback(url="https://example.com/told", retries_max=2, timeout_ms=9_000)


def _said(of_report, **facts):
    """The fields of a body, in their order."""
    return json.loads(body(of_report, a_message(**facts), b"hello"))


def test_the_body_of_a_callback_is_the_documented_json():
    """Contract section 5, W198: every field, its order, its type."""
    source = replace(
        a_message(
            url="https://example.com/a?b=c",
            method="PUT",
            header={"Content-Type": ["text/plain"], "X-Two": ["1", "2"]},
            retries_max=3,
            caller_ip="192.0.2.7",
            group="my-group",
            endpoint="First endpoint",
            delay_ms=HOUR,
        ),
        id="msg_1",
    )
    told = replace(report(ANSWER, retried=2, failure=True), dlq_id="1725323658779-0")

    assert body(told, source, b"\xffhello").decode() == (
        '{"status":503,'
        '"header":{"Content-Type":["text/plain"],"X-Two":["1","2"],"X-1y":["é"]},'
        '"body":"AGJ1c3k=","retried":2,"maxRetries":3,"dlqId":"1725323658779-0",'
        '"sourceMessageId":"msg_1","topicName":"my-group","endpointName":"First endpoint",'
        '"url":"https://example.com/a?b=c","method":"PUT",'
        '"sourceHeader":{"Content-Type":["text/plain"],"X-Two":["1","2"]},'
        '"sourceBody":"/2hlbGxv",'
        '"notBefore":1800003600000,"createdAt":1800000000000,"callerIP":"192.0.2.7"}'
    )


def test_what_there_is_nothing_to_say_about_is_left_out():
    said = _said(Report(status=200))

    assert set(said) == {
        "status", "header", "body", "retried", "maxRetries", "sourceMessageId", "url", "method",
        "sourceHeader", "sourceBody", "notBefore", "createdAt",
    }  # fmt: skip
    assert (said["header"], said["body"], said["retried"]) == ({}, "", 0)
    assert said["sourceHeader"] == {}
    assert (said["notBefore"], said["createdAt"]) == (T0, T0)


def test_only_a_failure_callback_names_the_dead_letter():
    assert "dlqId" not in _said(report(ANSWER, retried=0))
    assert _said(Report(status=500, failure=True, dlq_id="1-1"))["dlqId"] == "1-1"


def test_a_network_fault_has_status_0_and_its_text_as_the_body():
    """D14."""
    told = report(Outcome(error="cannot connect: refused", host_down=True), retried=1)

    assert told == Report(status=0, body=b"cannot connect: refused", retried=1)


def test_an_answer_that_was_broken_off_is_no_success():
    """D14."""
    told = report(Outcome(status=200, body=b"half", error="the answer ended early"), retried=0)

    assert told == Report(status=0, body=b"the answer ended early")


@pytest.mark.parametrize(
    ("value", "shown"), [("plain", "plain"), ("\xc3\xa9", "é"), ("\xe9", "é"), ("\xff", "ÿ")]
)
def test_header_values_are_shown_as_text(value, shown):
    """W22: as reading the message shows them."""
    said = _said(
        report(Outcome(status=200, header=[("x", value)]), retried=0), header={"Y": [value]}
    )

    assert said["header"] == {"X": [shown]}
    assert said["sourceHeader"] == {"Y": [shown]}


def test_a_callback_is_a_message_of_its_own():
    """W200, D22, D25."""
    source = a_message(
        url="https://example.com/work",
        method="PUT",
        header={"X-Own": ["source"]},
        retry_delay="1000",
        labels=["source"],
        caller_ip="192.0.2.7",
        hops=3,
        callback=HOOK,
        failure_callback=HOOK,
    )
    hook = replace(
        HOOK, method="PATCH", header={"X": ["y"]}, retry_delay="5", delay_ms=HOUR, labels=["told"]
    )

    made = message(hook, source, message_id="msg_2", now_ms=T0 + 5)

    assert made == replace(
        a_message(),
        id="msg_2",
        created_ms=T0 + 5,
        not_before_ms=T0 + 5 + HOUR,
        url="https://example.com/told",
        method="PATCH",
        header={"Content-Type": ["application/json"], "X": ["y"]},
        retries_max=2,
        retry_delay="5",
        timeout_ms=9_000,
        labels=["told"],
        hops=3,
        callback_of=source.id,
    )


def test_the_content_type_of_a_callback_may_be_another():
    hook = replace(HOOK, header={"Content-Type": ["text/plain"]})

    made = message(hook, a_message(), message_id="msg_2", now_ms=T0)

    assert made.header == {"Content-Type": ["text/plain"]}


@pytest.mark.parametrize(("not_before_ms", "at_ms"), [(T0 + HOUR, T0 + HOUR), (T0 - HOUR, T0)])
def test_a_callback_may_have_its_moment(not_before_ms, at_ms):
    hook = replace(HOOK, not_before_ms=not_before_ms)

    assert message(hook, a_message(), message_id="m", now_ms=T0).not_before_ms == at_ms


@pytest.mark.parametrize(
    ("queue", "own_queue", "awaited_by"),
    [
        (None, None, None),
        ("mail", None, "mail"),
        ("mail", "told", None),
        ("mail", "mail", None),
        (None, "told", None),
    ],
)
def test_a_queue_waits_for_callbacks_that_name_none_themselves(queue, own_queue, awaited_by):
    """D24."""
    hook = replace(HOOK, queue=own_queue)

    made = message(hook, a_message(queue=queue), message_id="m", now_ms=T0)

    assert (made.queue, made.awaited_by) == (own_queue, awaited_by)
