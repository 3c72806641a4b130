"""The home of details: what an event or a dead letter has beside its state, and how both are
read from it.  Kept as JSON."""

import msgspec

from waypost.domain.attempt import Outcome
from waypost.domain.header_fields import gathered
from waypost.domain.ids import dead_letter_id
from waypost.domain.message import Logged, Message
from waypost.store.protocol import DeadLetter, LogEntry


class Detail(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an event or a dead letter has beside its state."""

    next_delivery_ms: int | None = None
    error: str | None = None
    why: str | None = None
    status: int | None = None
    header: dict[str, list[str]] | None = None
    body: bytes | None = None


_decode = msgspec.json.Decoder(Detail).decode


def answer_of(outcome: Outcome, *, why: str | None = None) -> Detail:
    """What is kept of an answer."""
    header = gathered(outcome.header)
    error = outcome.error
    if outcome.redialled:
        error = f"{error or ''} (sent again on a fresh connection)".strip()
    return Detail(
        error=error, why=why, status=outcome.status, header=header or None, body=outcome.body
    )


def note_of(outcome: Outcome) -> Detail | None:
    """What is worth noting of a success."""
    if outcome.redialled:
        return Detail(error="sent again: the pooled connection had been closed (D15)")
    return None


def log_entry(
    time_ms: int, state: str, raw: bytes | None, message: Message, body: bytes, *, bodies: bool
) -> LogEntry:
    """An entry of the log, of the detail as it is kept; without `bodies` none of the answer."""
    detail = Detail() if raw is None else _decode(raw)
    return LogEntry(
        time_ms=time_ms,
        state=Logged(state),
        message=message,
        body=body,
        next_delivery_ms=detail.next_delivery_ms,
        error=detail.error,
        response_status=detail.status,
        response_header=detail.header,
        response_body=detail.body if bodies else None,
    )


def dead_letter(
    failed_ms: int, number: int, raw: bytes, message: Message, body: bytes, *, bodies: bool
) -> tuple[DeadLetter, int]:
    """A dead letter, of the detail as it is kept, and about how many bytes that has and the
    body; without `bodies` the answer's takes none."""
    detail = _decode(raw)
    answer = detail.body or b""
    size = len(raw) + len(body)
    if not bodies:
        size -= len(answer) * 4 // 3  # base64
        answer = b""
    letter = DeadLetter(
        id=dead_letter_id(failed_ms, number),
        failed_ms=failed_ms,
        message=message,
        body=body,
        why=detail.why or "",
        response_status=detail.status or 0,
        response_header=detail.header,
        response_body=answer,
    )
    return letter, size
