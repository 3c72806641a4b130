"""Builds what tests need, from a call that names only what matters to the test."""

from itertools import count
from typing import Any

from msgspec.structs import replace

from waypost.domain import options
from waypost.domain.attempt import Outcome
from waypost.domain.callbacks import Report
from waypost.domain.destination import origin_of
from waypost.domain.ids import message_id
from waypost.domain.message import Message
from waypost.domain.places import Places
from waypost.domain.schedules import Schedule
from waypost.store.protocol import Draft

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

T0 = 1_800_000_000_000
"""When every test begins."""

_entropy = count()


def a_message(
    *,
    at_ms: int = T0,
    url: str = "https://example.com/hook",
    tenant: str = "acme",
    delay_ms: int = 0,
    **facts: Any,
) -> Message:
    return Message(
        tenant=tenant,
        id=message_id(at_ms, next(_entropy)),
        created_ms=at_ms,
        not_before_ms=at_ms + delay_ms,
        url=url,
        timeout_ms=900_000,
        **facts,
    )


def a_draft(
    *, body: bytes = b"hello", dedup_key: str | None = None, window_ms: int = 600_000, **facts: Any
) -> Draft:
    message = a_message(**facts)
    return Draft(
        message=message,
        body=body,
        host=origin_of(message.url).key,
        dedup_key=dedup_key,
        dedup_until_ms=message.created_ms + window_ms,
    )


def a_schedule(
    schedule_id: str = "s",
    *,
    cron: str = "* * * * *",
    destination: str = "https://example.com/hook",
    created_ms: int = T0,
    updated_ms: int = T0,
    **facts: Any,
) -> Schedule:
    return Schedule(
        tenant=facts.pop("tenant", "acme"),
        id=schedule_id,
        cron=cron,
        destination=destination,
        asked=options.parse([], {}, limits=options.Limits(), now_ms=0),
        created_ms=created_ms,
        updated_ms=updated_ms,
        **facts,
    )


def a_callback(
    source: Message,
    *,
    report: Report | None = None,
    url: str = "https://me.test/done",
    **facts: Any,
) -> Draft:
    """A callback about a message, which is awaited where that is in a queue."""
    facts.setdefault("awaited_by", source.queue)
    draft = a_draft(url=url, tenant=source.tenant, callback_of=source.id, **facts)
    return replace(draft, body=b"", report=report or Report(status=200, body=b"ok"))


def some_places(
    *, count_max: int = 1_024, host_count_max: int = 64, bytes_max: int = 256_000_000
) -> Places:
    return Places(count_max=count_max, host_count_max=host_count_max, bytes_max=bytes_max)


OK = Outcome(status=200, body=b"ok")
ERROR = Outcome(status=500, header=[("content-type", "text/plain")], body=b"no")
DOWN = Outcome(error="refused", host_down=True)
