"""The home of how our nouns are spelled in the API: names, presence and bodies, field by field.

A field that has nothing to say is left out, and never null (W234); those that
are always there have no default below.  A body is text where it is UTF-8 and
base64 where it is not (W95); in the log it is base64 always.
"""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct, field

from waypost.domain.header_fields import shown
from waypost.domain.message import Callback, Logged, Message
from waypost.domain.url_groups import UrlGroup
from waypost.services.publishing import Receipt
from waypost.store.protocol import DeadLetter, LogEntry, Queue

Header = dict[str, list[str]]


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


class ReceiptJson(Struct, kw_only=True, omit_defaults=True, rename="camel"):
    """Contract section 1.5, of one endpoint of a URL group."""

    message_id: str
    url: str
    deduplicated: bool = False


def message_json(message: Message, body: bytes) -> MessageJson:
    return MessageJson(**_message_fields(message, body))


def dead_letter_json(dead_letter: DeadLetter) -> DeadLetterJson:
    text, encoded = _text_or_bytes(dead_letter.response_body)
    return DeadLetterJson(
        **_message_fields(dead_letter.message, dead_letter.body),
        dlq_id=dead_letter.id,
        response_status=dead_letter.response_status,
        response_header=_shown_header(dead_letter.response_header),
        response_body=text,
        response_body_base64=encoded,
        error=dead_letter.why,
    )


def log_entry_json(entry: LogEntry) -> LogEntryJson:
    response_header = _shown_header(entry.response_header)
    return LogEntryJson(
        **_metadata_fields(entry),
        time=entry.time_ms,
        state=entry.state,
        error=entry.error,
        next_delivery_time=entry.next_delivery_ms,
        response_status=entry.response_status,
        response_header=response_header,
        response_headers=response_header,
        response_body=entry.response_body or None,
    )


def log_group_json(entries: Sequence[LogEntry]) -> LogGroupJson:
    """`entries` are all of one message."""
    return LogGroupJson(
        **_metadata_fields(entries[0]), events=[log_entry_json(entry) for entry in entries]
    )


def queue_json(queue: Queue) -> QueueJson:
    return QueueJson(
        name=queue.name,
        parallelism=queue.parallelism,
        created_at=queue.created_ms,
        updated_at=queue.updated_ms,
        lag=queue.lag,
        paused=queue.paused,
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


def receipt_json(receipt: Receipt) -> ReceiptJson:
    return ReceiptJson(
        message_id=receipt.message_id, url=receipt.url, deduplicated=receipt.deduplicated
    )


def _message_fields(message: Message, body: bytes) -> dict[str, Any]:
    text, encoded = _text_or_bytes(body)
    return {
        "message_id": message.id,
        "url": message.url,
        "method": message.method,
        "created_at": message.created_ms,
        "not_before": message.not_before_ms,
        "max_retries": message.retries_max,
        "header": _shown_header(message.header) or {},
        "body": text,
        "body_base64": encoded,
        "topic_name": message.group,
        "endpoint_name": message.endpoint,
        "api": message.api,
        "queue_name": message.queue,
        "caller_ip": message.caller_ip,
        "callback": _url_of(message.callback),
        "callback_header": _header_of(message.callback),
        "failure_callback": _url_of(message.failure_callback),
        "failure_callback_header": _header_of(message.failure_callback),
        "retry_delay_expression": message.retry_delay,
        "label": message.labels[0] if message.labels else None,
        "labels": message.labels or None,
    }


def _metadata_fields(entry: LogEntry) -> dict[str, Any]:
    message = entry.message
    return {
        "message_id": message.id,
        "url": message.url,
        "method": message.method,
        "header": _shown_header(message.header) or {},
        "body": entry.body or None,
        "topic_name": message.group,
        "endpoint_name": message.endpoint,
        "api": message.api,
        "queue_name": message.queue,
        "timeout": message.timeout_ms,
        "callback": _url_of(message.callback),
        "callback_headers": _header_of(message.callback),
        "failure_callback": _url_of(message.failure_callback),
        "failure_callback_headers": _header_of(message.failure_callback),
        "max_retries": message.retries_max,
        "retry_delay_expr": message.retry_delay,
        "retry_delay_expression": message.retry_delay,
        "label": message.labels[0] if message.labels else None,
        "labels": message.labels or None,
    }


def _text_or_bytes(body: bytes) -> tuple[str | None, bytes | None]:
    if not body:
        return None, None
    try:
        return body.decode(), None
    except UnicodeDecodeError:
        return None, body


def _url_of(callback: Callback | None) -> str | None:
    return None if callback is None else callback.url


def _header_of(callback: Callback | None) -> Header | None:
    return None if callback is None else shown(callback.header) or None


def _shown_header(header: Header | None) -> Header | None:
    return None if header is None else shown(header)
