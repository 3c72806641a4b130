"""The home of what becomes of a dead letter that is retried: a new message, as the old one was
but for what the retry asks for (D27, contract section 10.6).

A retry is asked for with the header fields of a publish, of which those that are
given take the place of the message's own.  Header fields that are to be
forwarded come beside the old ones and beat those of the same name.  What was
hidden stays hidden.  It goes at
once, where no delay is asked for; deduplication has nothing to say (D2).
"""

from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct, structs

from waypost.domain import options
from waypost.domain.message import Callback, Message
from waypost.domain.options import Limits, Options
from waypost.domain.redaction import both

_FIELDS: Final = {
    b"upstash-method": ("method", "method"),
    b"upstash-timeout": ("timeout_ms", "timeout_ms"),
    b"upstash-retries": ("retries", "retries_max"),
    b"upstash-retry-delay": ("retry_delay", "retry_delay"),
    b"upstash-label": ("labels", "labels"),
    b"upstash-queue-name": ("queue", "queue"),
    b"upstash-redact-fields": ("redaction", "redaction"),
    b"upstash-flow-control-key": ("flow", "flow"),
    b"upstash-callback": ("callback", "callback"),
    b"upstash-failure-callback": ("failure_callback", "failure_callback"),
}
"""What a field is called in the options, and in the message."""

_CALLBACKS: Final = ("callback", "failure_callback")


class Overrides(Struct, frozen=True, kw_only=True):
    """What a retry asks for.  `own_retries` names the callbacks that say how often they are
    tried; others follow their message."""

    asked: Options
    changes: dict[str, Any]
    own_retries: frozenset[str]


def read_overrides(
    fields: Sequence[tuple[bytes, bytes]], *, limits: Limits, now_ms: int
) -> Overrides:
    """Read the header of a retry; names are in lower case.

    Raises Invalid or QuotaExceeded with the whole text to show.
    """
    ours = [(name, value) for name, value in fields if name.startswith(b"upstash-")]
    asked = options.parse(ours, {}, limits=limits, now_ms=now_ms)
    given = {name for name, value in ours if value.strip()}
    return Overrides(
        asked=asked,
        changes={
            of_message: getattr(asked, of_options)
            for name, (of_options, of_message) in _FIELDS.items()
            if name in given
        },
        own_retries=frozenset(
            name
            for name in _CALLBACKS
            if f"upstash-{name}-retries".replace("_", "-").encode() in given
        ),
    )


def anew(
    dead: Message, overrides: Overrides, *, message_id: str, hops: int, now_ms: int
) -> Message:
    """The message that is published for a dead one.

    A callback stays one and has none of its own (D25); a built-in API is always POSTed to.
    """
    changes = dict(overrides.changes)
    if dead.api is not None:
        changes.pop("method", None)
    if "redaction" in changes:
        changes["redaction"] = both(dead.redaction, changes["redaction"])
    for name in _CALLBACKS:
        callback: Callback | None = changes.get(name)
        if callback is not None and dead.callback_of is not None:
            del changes[name]
        elif callback is not None and name not in overrides.own_retries:
            retries_max = changes.get("retries_max", dead.retries_max)
            changes[name] = structs.replace(callback, retries_max=retries_max)
    return structs.replace(
        dead,
        id=message_id,
        created_ms=now_ms,
        not_before_ms=max(now_ms, overrides.asked.not_before_ms),
        header=dead.header | overrides.asked.header,
        hops=hops,
        **changes,
    )
