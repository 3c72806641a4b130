"""The home of callbacks: what they say, and what messages they are.

A callback is a message of its own, with its own id, retries and dead letter; it
has no callback itself (D25).  Its body is not kept: it is built from a report
and the message that it reports on, when it is sent or shown.
"""

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from waypost.domain.attempt import Outcome
from waypost.domain.header_fields import gathered, shown
from waypost.domain.message import Callback, Message
from waypost.domain.redaction import of_callback

CONTENT_TYPE = {"Content-Type": ["application/json"]}
"""Of a callback, unless it was told to be another."""


class Report(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an attempt ended, as a callback will tell.

    A network fault has status 0, and its text as the body.  `retried` is that of the
    attempt.  `failure` says that it is for the failure callback, and `dlq_id` is then
    where the message ended: the store knows it.
    """

    status: int
    header: dict[str, list[str]] = {}
    body: bytes = b""
    retried: int = 0
    failure: bool = False
    dlq_id: str | None = None


def report(outcome: Outcome, *, retried: int, failure: bool = False) -> Report:
    """What to tell of an attempt: the answer, or the fault where there was no whole one (D14)."""
    if outcome.error is not None:
        return Report(status=0, body=outcome.error.encode(), retried=retried, failure=failure)
    return Report(
        status=outcome.status,
        header=gathered(outcome.header),
        body=outcome.body,
        retried=retried,
        failure=failure,
    )


def message(callback: Callback, source: Message, *, message_id: str, now_ms: int) -> Message:
    """The message that a callback is, once an attempt of `source` has ended at `now_ms`.

    Where it names no queue of its own, that of the source waits for it (D24).  It has
    come round as often as the source has (D22).
    """
    told = Message(
        tenant=source.tenant,
        id=message_id,
        created_ms=now_ms,
        not_before_ms=max(now_ms + callback.delay_ms, callback.not_before_ms),
        url=callback.url,
        method=callback.method,
        header=CONTENT_TYPE | callback.header,
        retries_max=callback.retries_max,
        retry_delay=callback.retry_delay,
        timeout_ms=callback.timeout_ms,
        queue=callback.queue,
        labels=callback.labels,
        hops=source.hops,
        callback_of=source.id,
        awaited_by=source.queue if callback.queue is None else None,
    )
    redaction = of_callback(callback.redaction, source.redaction)
    if redaction is None and callback.flow is None:
        return told
    return replace(told, redaction=redaction, flow=callback.flow)


class _Body(Struct, kw_only=True, omit_defaults=True, rename="camel"):
    """Contract section 5; W198.  Bodies are base64; moments are numbers, in milliseconds."""

    status: int
    header: dict[str, list[str]]
    body: bytes
    retried: int
    max_retries: int
    dlq_id: str | None = None
    source_message_id: str
    topic_name: str | None = None
    schedule_id: str | None = None
    endpoint_name: str | None = None
    url: str
    method: str
    source_header: dict[str, list[str]]
    source_body: bytes
    not_before: int
    created_at: int
    caller_ip: str | None = msgspec.field(default=None, name="callerIP")


def body(report: Report, source: Message, source_body: bytes) -> bytes:
    """The JSON that is sent; `source` is the message that the report is about."""
    return msgspec.json.encode(
        _Body(
            status=report.status,
            header=shown(report.header),
            body=report.body,
            retried=report.retried,
            max_retries=source.retries_max,
            dlq_id=report.dlq_id,
            source_message_id=source.id,
            topic_name=source.group,
            schedule_id=source.schedule,
            endpoint_name=source.endpoint,
            url=source.url,
            method=source.method,
            source_header=shown(source.header),
            source_body=source_body,
            not_before=source.not_before_ms,
            created_at=source.created_ms,
            caller_ip=source.caller_ip,
        )
    )
