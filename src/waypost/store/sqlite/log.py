"""The home of the log: one row an event, with the message's facts beside it when read."""

import apsw
import msgspec

from waypost.domain.attempt import Outcome
from waypost.domain.errors import Invalid
from waypost.domain.header_fields import gathered
from waypost.domain.message import Logged
from waypost.store.protocol import LogEntry, LogFilter, LogPage
from waypost.store.sqlite.database import query
from waypost.store.sqlite.messages import FACTS_AND_BODY, whole

LOOKED_AT_MAX = 20_000
"""Entries that a page looks at for those of a state: then it ends, with a cursor."""


class Detail(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an event or a dead letter has beside its state."""

    next_delivery_ms: int | None = None
    error: str | None = None
    why: str | None = None
    status: int | None = None
    header: dict[str, list[str]] | None = None
    body: bytes | None = None


decode_detail = msgspec.json.Decoder(Detail).decode


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


def page(
    db: apsw.Connection,
    tenant: str,
    *,
    where: LogFilter,
    cursor: str | None,
    count_max: int,
    bytes_max: int,
) -> LogPage:
    """A page of the log; see `Reader.log`."""
    before = read_cursor(cursor) if cursor is not None else (1 << 62, 0)
    index, after = "", None
    if where.message_ids:
        index = " INDEXED BY event_message"
    elif where.states:
        after = _last_looked_at(db, tenant, before=before)
    sql = f"SELECT e.time_ms, e.number, e.state, e.detail, {FACTS_AND_BODY} FROM event e{index}"
    sql += " CROSS JOIN message m ON m.tenant = e.tenant AND m.id = e.message_id"
    sql += " WHERE e.tenant = ? AND (e.time_ms, e.number) < (?, ?)"
    values: list[object] = [tenant, *before]
    if after is not None:
        sql += " AND (e.time_ms, e.number) >= (?, ?)"
        values += after
    for column, wanted in (("message_id", where.message_ids), ("state", where.states)):
        if wanted:
            sql += f" AND e.{column} IN ({','.join('?' * len(wanted))})"
            values += wanted
    sql += " ORDER BY e.time_ms DESC, e.number DESC LIMIT ?"
    entries: list[LogEntry] = []
    room = bytes_max
    for time_ms, number, state, raw, facts, kept in query(db, sql, (*values, count_max + 1)):
        detail = Detail() if raw is None else decode_detail(raw)
        message, body = whole(db, facts, kept)
        room -= len(facts) + len(body) + len(raw or b"")
        if entries and (len(entries) == count_max or room < 0):
            return LogPage(entries, entries[-1].cursor)
        entries.append(
            LogEntry(
                cursor=_cursor(time_ms, number),
                time_ms=time_ms,
                state=Logged(state),
                message=message,
                body=body,
                next_delivery_ms=detail.next_delivery_ms,
                error=detail.error,
                response_status=detail.status,
                response_header=detail.header,
                response_body=detail.body,
            )
        )
    return LogPage(entries, None if after is None else _cursor(*after))


def _last_looked_at(
    db: apsw.Connection, tenant: str, *, before: tuple[int, int]
) -> tuple[int, int] | None:
    """The place at which a page ends whatever it has found, or None: the log ends before."""
    found: tuple[int, int] | None = query(
        db,
        "SELECT time_ms, number FROM event WHERE tenant = ? AND (time_ms, number) < (?, ?)"
        " ORDER BY time_ms DESC, number DESC LIMIT 1 OFFSET ?",
        (tenant, *before, LOOKED_AT_MAX - 1),
    ).fetchone()
    return found


def _cursor(time_ms: int, number: int) -> str:
    return f"{time_ms}-{number}"


def read_cursor(cursor: str) -> tuple[int, int]:
    """The place that a cursor names.  Raises Invalid."""
    time_ms, dash, number = cursor.partition("-")
    if not (dash and _is_number(time_ms) and _is_number(number)):
        raise Invalid("cursor: not one that this server gave")
    return int(time_ms), int(number)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19
