"""What a retry of a dead letter changes of its message."""

import pytest
from msgspec import structs

from tests.support.factory import T0, a_message
from waypost.domain.errors import Invalid, QuotaExceeded
from waypost.domain.flow import Flow
from waypost.domain.message import Callback, Message
from waypost.domain.options import Limits
from waypost.domain.overrides import anew, read_overrides
from waypost.domain.redaction import Redaction

LATER = T0 + 60_000

DEAD = a_message(
    method="PUT",
    header={"Content-Type": ["text/plain"], "X-Kept": ["1"], "X-Own": ["old"]},
    retries_max=7,
    retry_delay="1000",
    labels=["a"],
    queue="mail",
    group="news",
    endpoint="first",
    hops=4,
    callback=Callback(url="https://me.test/done", retries_max=7, timeout_ms=1),
    flow=Flow("key", rate=2),
)


def retried(dead: Message = DEAD, **header: str) -> Message:
    fields = [
        (name.replace("_", "-").lower().encode(), value.encode()) for name, value in header.items()
    ]
    overrides = read_overrides(fields, limits=Limits(), now_ms=LATER)
    return anew(dead, overrides, message_id="msg_new", hops=0, now_ms=LATER)


def test_nothing_is_changed_that_is_not_asked_for() -> None:
    new = retried(content_type="application/json", x_own="new", upstash_retries="")

    assert (new.id, new.created_ms, new.not_before_ms, new.hops) == ("msg_new", LATER, LATER, 0)
    unchanged = {"id", "created_ms", "not_before_ms", "hops"}
    for name in set(Message.__struct_fields__) - unchanged:
        assert getattr(new, name) == getattr(DEAD, name), name


def test_what_is_asked_for_takes_the_place_of_the_old() -> None:
    new = retried(
        upstash_method="PATCH",
        upstash_retries="0",
        upstash_timeout="9s",
        upstash_label="b,c",
        upstash_queue_name="post",
        upstash_delay="1m",
        upstash_forward_x_own="new",
        upstash_flow_control_key="other",
        upstash_flow_control_value="rate=1",
    )

    assert (new.method, new.retries_max, new.timeout_ms) == ("PATCH", 0, 9_000)
    assert (new.labels, new.queue) == (["b", "c"], "post")
    assert new.not_before_ms == LATER + 60_000
    assert new.header == {**DEAD.header, "X-Own": ["new"]}
    assert new.flow is not None
    assert new.flow.key == "other"
    assert new.retry_delay == "1000"
    assert new.callback == DEAD.callback


def test_a_new_callback_is_tried_as_often_as_its_message() -> None:
    new = retried(upstash_callback="https://me.test/other").callback
    assert new is not None
    assert (new.url, new.retries_max) == ("https://me.test/other", 7)

    new = retried(
        upstash_failure_callback="https://me.test/other", upstash_retries="2"
    ).failure_callback
    assert new is not None
    assert new.retries_max == 2

    new = retried(upstash_callback="https://me.test/other", upstash_callback_retries="5").callback
    assert new is not None
    assert new.retries_max == 5


def test_what_is_retried_goes_on_hiding_what_it_hid() -> None:
    hidden = Redaction(body=True, fields=["A"])
    callback = structs.replace(DEAD, callback_of="msg_1", redaction=hidden)
    plain = structs.replace(DEAD, redaction=hidden)

    for dead in (callback, plain):
        again = retried(dead, Upstash_Redact_Fields="header[B]")
        assert again.redaction == Redaction(body=True, fields=["A", "B"])
    assert retried(callback).redaction == hidden


def test_a_callback_that_is_retried_has_no_callback() -> None:
    dead = a_message(callback_of="msg_source", awaited_by="mail")

    new = retried(dead, upstash_callback="https://me.test/other", upstash_retries="1")

    assert (new.callback, new.callback_of, new.awaited_by) == (None, "msg_source", "mail")
    assert new.retries_max == 1


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("upstash_retries", "many", Invalid),
        ("upstash_retries", "101", QuotaExceeded),
        ("upstash_delay", "soon", Invalid),
        ("upstash_cron", "* * * * *", Invalid),
    ],
)
def test_what_is_wrong_is_said_by_name(name: str, value: str, fault: type[Exception]) -> None:
    with pytest.raises(fault):
        retried(**{name: value})
