"""The home of dead letters: messages that ended without success."""

from collections.abc import Iterable
from typing import Any

import apsw

from waypost.domain.errors import Invalid
from waypost.domain.ids import dead_letter_id
from waypost.store.protocol import DeadLetter, DeadLetterPage
from waypost.store.sqlite.database import query
from waypost.store.sqlite.log import decode_detail, read_cursor
from waypost.store.sqlite.messages import FACTS_AND_BODY, whole

_SELECT = (
    f"SELECT l.failed_ms, l.number, l.detail, {FACTS_AND_BODY} FROM dead_letter l"
    " CROSS JOIN message m ON m.tenant = l.tenant AND m.id = l.message_id"
    " WHERE l.tenant = ?"
)


def page(db: apsw.Connection, tenant: str, *, cursor: str | None, count_max: int) -> DeadLetterPage:
    """A page of dead letters, oldest first; see `Reader.dead_letters`."""
    after = read_cursor(cursor) if cursor is not None else (0, 0)
    found = _letters(
        db,
        query(
            db,
            f"{_SELECT} AND (l.failed_ms, l.number) > (?, ?)"
            " ORDER BY l.failed_ms, l.number LIMIT ?",
            (tenant, *after, count_max + 1),
        ),
    )
    if len(found) <= count_max:
        return DeadLetterPage(found, None)
    return DeadLetterPage(found[:count_max], found[count_max - 1].id)


def one(db: apsw.Connection, tenant: str, letter_id: str) -> DeadLetter | None:
    """The dead letter of that id; an id is a place, as a cursor is."""
    try:
        failed_ms, number = read_cursor(letter_id)
    except Invalid:
        return None
    rows = query(db, f"{_SELECT} AND l.failed_ms = ? AND l.number = ?", (tenant, failed_ms, number))
    found = _letters(db, rows)
    return found[0] if found else None


def _letters(db: apsw.Connection, rows: Iterable[tuple[Any, ...]]) -> list[DeadLetter]:
    letters = []
    for failed_ms, number, raw, facts, kept in rows:
        detail = decode_detail(raw)
        message, body = whole(db, facts, kept)
        letters.append(
            DeadLetter(
                id=dead_letter_id(failed_ms, number),
                failed_ms=failed_ms,
                message=message,
                body=body,
                why=detail.why or "",
                response_status=detail.status or 0,
                response_header=detail.header,
                response_body=detail.body or b"",
            )
        )
    return letters
