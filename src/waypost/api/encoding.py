"""The home of how our nouns are spelled in the API: names, presence and bodies, field by field.

A field that has nothing to say is left out, and never null (W234); those that
are always there have no default below.  A body is text where it is UTF-8 and
base64 where it is not (W95); in the log it is base64 always.  What is redacted
is hidden here, for all that is shown of a message goes through here.
"""

from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct, field

from waypost.domain.flow import Flow
from waypost.domain.header_fields import shown
from waypost.domain.message import Callback, Logged, Message
from waypost.domain.redaction import Redaction, of_callback, shown_body, shown_header
from waypost.domain.url_groups import UrlGroup
from waypost.services.publishing import Receipt
from waypost.services.schedules import Seen
from waypost.store.protocol import DeadLetter, FlowKeyState, LogEntry, Queue

Header = dict[str, list[str]]

RUN_STATES: Final = {
    Logged.DELIVERED: "SUCCESS",
    Logged.FAILED: "FAIL",
    Logged.CANCELED: "FAIL",
}
"""How a message of a run stands, by the log's last word on it; else it is in progress."""


class MessageJson(Struct, kw_only=True, omit_defaults=True, rename="camel"):
    """Contract section 6.1."""

    message_id: str
    url: str
    method: str
    created_at: int
    not_before: int
    max_retries: int
    header: Header
    body: str | None = None
    body_base64: bytes | None = None
    topic_name: str | None = None
    endpoint_name: str | None = None
    api: str | None = None
    queue_name: str | None = None
    caller_ip: str | None = field(default=None, name="callerIP")
    callback: str | None = None
    callback_header: Header | None = None
    failure_callback: str | None = None
    failure_callback_header: Header | None = None
    retry_delay_expression: str | None = None
    schedule_id: str | None = None
    flow_control_key: str | None = None
    parallelism: int | None = None
    rate: int | None = None
    period: int | None = None
    label: str | None = None
    labels: list[str] | None = None


class DeadLetterJson(MessageJson, kw_only=True, omit_defaults=True, rename="camel"):
    """Contract section 10.1, and `error`: why the message ended here."""

    dlq_id: str
    response_status: int
    response_header: Header | None = None
    response_body: str | None = None
    response_body_base64: bytes | None = None
    error: str


class MetadataJson(Struct, kw_only=True, omit_defaults=True, rename="camel"):
    """What every entry of the log repeats of its message (contract section 11.3, W167)."""

    message_id: str
    url: str
    method: str
    header: Header
    body: bytes | None = None
    topic_name: str | None = None
    endpoint_name: str | None = None
    api: str | None = None
    queue_name: str | None = None
    timeout: int
    callback: str | None = None
    callback_headers: Header | None = None
    failure_callback: str | None = None
    failure_callback_headers: Header | None = None
    max_retries: int
    retry_delay_expr: str | None = None
    retry_delay_expression: str | None = None
    schedule_id: str | None = None
    flow_control_key: str | None = None
    parallelism: int | None = None
    rate: int | None = None
    period: int | None = None
    label: str | None = None
    labels: list[str] | None = None


class LogEntryJson(MetadataJson, kw_only=True, omit_defaults=True, rename="camel"):
    """Contract section 11.3."""

    time: int
    state: Logged
    error: str | None = None
    next_delivery_time: int | None = None
    response_status: int | None = None
    response_header: Header | None = None
    response_headers: Header | None = None
    response_body: bytes | None = None


class LogGroupJson(MetadataJson, kw_only=True, omit_defaults=True, rename="camel"):
    """The entries of one message (contract section 11.1)."""

    events: list[LogEntryJson]


class QueueJson(Struct, kw_only=True, rename="camel"):
    """Contract section 7: all six are always there."""

    name: str
    parallelism: int
    created_at: int
    updated_at: int
    lag: int
    paused: bool


class FlowKeyJson(Struct, kw_only=True, rename="camel"):
    """Contract section 12: all eleven are always there (W204); 0 where there is no limit."""

    flow_control_key: str
    wait_list_size: int
    parallelism_max: int
    parallelism_count: int
    rate_max: int
    rate_count: int
    rate_period: int
    rate_period_start: int
    is_paused: bool
    is_pinned_parallelism: bool
    is_pinned_rate: bool


class GlobalParallelismJson(Struct, kw_only=True, rename="camel"):
    """Contract section 12."""

    parallelism_max: int
    parallelism_count: int


class EndpointJson(Struct, kw_only=True, omit_defaults=True):
    url: str
    name: str | None = None


class UrlGroupJson(Struct, kw_only=True, omit_defaults=True, rename="camel"):
    """Contract section 9, and two of ours: the id (D8), and the default header fields."""

    name: str
    topic_id: str
    created_at: int
    updated_at: int
    endpoints: list[EndpointJson]
    headers: Header | None = None


class ScheduleJson(Struct, kw_only=True, omit_defaults=True, rename="camel"):
    """Contract section 8.2; `delay`, `timeout` and `period` are in seconds."""

    schedule_id: str
    cron: str
    destination: str
    method: str
    created_at: int
    retries: int
    is_paused: bool
    header: Header
    timeout: int
    body: str | None = None
    body_base64: bytes | None = None
    delay: int | None = None
    queue_name: str | None = None
    caller_ip: str | None = field(default=None, name="callerIP")
    caller_ip_too: str | None = field(default=None, name="callerIp")
    callback: str | None = None
    callback_header: Header | None = None
    failure_callback: str | None = None
    failure_callback_header: Header | None = None
    retry_delay_expression: str | None = None
    flow_control_key: str | None = None
    parallelism: int | None = None
    rate: int | None = None
    period: int | None = None
    label: str | None = None
    labels: list[str] | None = None
    last_schedule_time: int | None = None
    next_schedule_time: int | None = None
    last_schedule_states: dict[str, str] | None = None
    error: str | None = None


class MessageReceiptJson(Struct, kw_only=True, omit_defaults=True, rename="camel"):
    """Contract section 1.5, of one message."""

    message_id: str
    deduplicated: bool = False


class ReceiptJson(Struct, kw_only=True, omit_defaults=True, rename="camel"):
    """Contract section 1.5, of one endpoint of a URL group."""

    message_id: str
    url: str
    deduplicated: bool = False


def message_json(message: Message, body: bytes) -> MessageJson:
    return MessageJson(**_message_fields(message, body))


def dead_letter_json(dead_letter: DeadLetter, trim_bytes: int | None = None) -> DeadLetterJson:
    """`trim_bytes` is how much is shown of bodies; None: all of them."""
    text, encoded = _text_or_bytes(dead_letter.response_body, trim_bytes)
    return DeadLetterJson(
        **_message_fields(dead_letter.message, dead_letter.body, trim_bytes),
        dlq_id=dead_letter.id,
        response_status=dead_letter.response_status,
        response_header=_shown_header(dead_letter.response_header),
        response_body=text,
        response_body_base64=encoded,
        error=dead_letter.why,
    )


def log_entry_json(entry: LogEntry, trim_bytes: int | None = None) -> LogEntryJson:
    """`trim_bytes` is how much is shown of bodies; None: all of them."""
    response_header = _shown_header(entry.response_header)
    return LogEntryJson(
        **_metadata_fields(entry, trim_bytes),
        time=entry.time_ms,
        state=entry.state,
        error=entry.error,
        next_delivery_time=entry.next_delivery_ms,
        response_status=entry.response_status,
        response_header=response_header,
        response_headers=response_header,
        response_body=_trimmed(entry.response_body, trim_bytes),
    )


def log_group_json(
    entry: LogEntry, events: list[LogEntryJson], trim_bytes: int | None = None
) -> LogGroupJson:
    """`events` are all of one message, of which `entry` is one."""
    return LogGroupJson(**_metadata_fields(entry, trim_bytes), events=events)


def queue_json(queue: Queue) -> QueueJson:
    return QueueJson(
        name=queue.name,
        parallelism=queue.parallelism,
        created_at=queue.created_ms,
        updated_at=queue.updated_ms,
        lag=queue.lag,
        paused=queue.paused,
    )


def flow_key_json(state: FlowKeyState, *, now_ms: int) -> FlowKeyJson:
    key = state.key
    return FlowKeyJson(
        flow_control_key=key.name,
        wait_list_size=state.waiting,
        parallelism_max=key.parallelism or 0,
        parallelism_count=state.in_use,
        rate_max=key.rate or 0,
        rate_count=key.count(now_ms),
        rate_period=key.period_ms // 1000,
        rate_period_start=key.window_ms // 1000,
        is_paused=key.paused,
        is_pinned_parallelism=key.parallelism_pinned,
        is_pinned_rate=key.rate_pinned,
    )


def url_group_json(group: UrlGroup) -> UrlGroupJson:
    return UrlGroupJson(
        name=group.name,
        topic_id=group.id,
        created_at=group.created_ms,
        updated_at=group.updated_ms,
        endpoints=[EndpointJson(url=one.url, name=one.name) for one in group.endpoints],
        headers=_shown_header(group.header) or None,
    )


def schedule_json(seen: Seen) -> ScheduleJson:
    schedule, asked = seen.kept.schedule, seen.kept.schedule.asked
    text, encoded = _text_or_bytes(shown_body(asked.redaction, seen.kept.body))
    return ScheduleJson(
        schedule_id=schedule.id,
        cron=schedule.cron,
        destination=schedule.destination,
        method=asked.method,
        created_at=schedule.created_ms,
        retries=asked.retries,
        is_paused=schedule.paused,
        header=shown(shown_header(asked.redaction, asked.header)),
        timeout=asked.timeout_ms // 1000,
        body=text,
        body_base64=encoded,
        delay=schedule.delay_ms // 1000 or None,
        queue_name=asked.queue,
        caller_ip=schedule.caller_ip,
        caller_ip_too=schedule.caller_ip,
        callback=_url_of(asked.callback),
        callback_header=_header_of(asked.callback, asked.redaction),
        failure_callback=_url_of(asked.failure_callback),
        failure_callback_header=_header_of(asked.failure_callback, asked.redaction),
        retry_delay_expression=asked.retry_delay,
        label=asked.labels[0] if asked.labels else None,
        labels=asked.labels or None,
        last_schedule_time=schedule.fired_ms,
        next_schedule_time=seen.next_ms,
        last_schedule_states={
            message_id: RUN_STATES.get(word, "IN_PROGRESS")
            for message_id, word in seen.kept.run.items()
        }
        or None,
        error=schedule.error,
        **_flow_fields(asked.flow),
    )


def item_json(
    answer: Receipt | Sequence[Receipt],
) -> MessageReceiptJson | list[ReceiptJson]:
    """What became of an item of a batch (contract section 3)."""
    if isinstance(answer, Receipt):
        return MessageReceiptJson(message_id=answer.message_id, deduplicated=answer.deduplicated)
    return [receipt_json(one) for one in answer]


def receipt_json(receipt: Receipt) -> ReceiptJson:
    return ReceiptJson(
        message_id=receipt.message_id, url=receipt.url, deduplicated=receipt.deduplicated
    )


def _message_fields(message: Message, body: bytes, trim_bytes: int | None = None) -> dict[str, Any]:
    text, encoded = _text_or_bytes(shown_body(message.redaction, body), trim_bytes)
    return {
        "message_id": message.id,
        "url": message.url,
        "method": message.method,
        "created_at": message.created_ms,
        "not_before": message.not_before_ms,
        "max_retries": message.retries_max,
        "header": shown(shown_header(message.redaction, message.header)),
        "body": text,
        "body_base64": encoded,
        "topic_name": message.group,
        "endpoint_name": message.endpoint,
        "api": message.api,
        "queue_name": message.queue,
        "caller_ip": message.caller_ip,
        "callback": _url_of(message.callback),
        "callback_header": _header_of(message.callback, message.redaction),
        "failure_callback": _url_of(message.failure_callback),
        "failure_callback_header": _header_of(message.failure_callback, message.redaction),
        "retry_delay_expression": message.retry_delay,
        "schedule_id": message.schedule,
        **_flow_fields(message.flow),
        "label": message.labels[0] if message.labels else None,
        "labels": message.labels or None,
    }


def _metadata_fields(entry: LogEntry, trim_bytes: int | None) -> dict[str, Any]:
    message = entry.message
    return {
        "message_id": message.id,
        "url": message.url,
        "method": message.method,
        "header": shown(shown_header(message.redaction, message.header)),
        "body": _trimmed(shown_body(message.redaction, entry.body), trim_bytes),
        "topic_name": message.group,
        "endpoint_name": message.endpoint,
        "api": message.api,
        "queue_name": message.queue,
        "timeout": message.timeout_ms,
        "callback": _url_of(message.callback),
        "callback_headers": _header_of(message.callback, message.redaction),
        "failure_callback": _url_of(message.failure_callback),
        "failure_callback_headers": _header_of(message.failure_callback, message.redaction),
        "max_retries": message.retries_max,
        "retry_delay_expr": message.retry_delay,
        "retry_delay_expression": message.retry_delay,
        "schedule_id": message.schedule,
        **_flow_fields(message.flow),
        "label": message.labels[0] if message.labels else None,
        "labels": message.labels or None,
    }


def _text_or_bytes(body: bytes, trim_bytes: int | None = None) -> tuple[str | None, bytes | None]:
    """The beginning of a body; a text is cut between two characters."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None, _trimmed(body, trim_bytes)
    if trim_bytes is not None:
        text = body[:trim_bytes].decode(errors="ignore")
    return text or None, None


def _url_of(callback: Callback | None) -> str | None:
    return None if callback is None else callback.url


def _header_of(callback: Callback | None, of_source: Redaction | None) -> Header | None:
    if callback is None:
        return None
    return shown(shown_header(of_callback(callback.redaction, of_source), callback.header)) or None


def _flow_fields(flow: Flow | None) -> dict[str, Any]:
    """The period is in seconds, and there is always one (W64-W67)."""
    if flow is None:
        return {}
    return {
        "flow_control_key": flow.key,
        "parallelism": flow.parallelism,
        "rate": flow.rate,
        "period": flow.period_ms // 1000,
    }


def _trimmed(body: bytes | None, trim_bytes: int | None) -> bytes | None:
    return (body or b"")[:trim_bytes] or None


def _shown_header(header: Header | None) -> Header | None:
    return None if header is None else shown(header)
