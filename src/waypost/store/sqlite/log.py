"""The home of the log: one row an event, with the message's facts beside it when read.

An entry's place is (time, number).  Numbers grow with what is committed; times nearly so.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import apsw

from waypost.domain.filters import matches
from waypost.domain.message import Message
from waypost.store.cursors import (
    BEFORE_ALL,
    PLACE_MAX,
    Place,
    cursor_of,
    left_of,
    read_numbers,
    span,
)
from waypost.store.details import log_entry
from waypost.store.filters import asks_for_more_than_dates
from waypost.store.protocol import LogEntry, LogFilter, LogPage, LogView
from waypost.store.sqlite.database import query
from waypost.store.sqlite.filters import AMONG, as_list, prefilter
from waypost.store.sqlite.messages import decode_message, one

LOOKED_AT_MAX = 20_000
"""Entries that a page looks at for those that are wanted: then it ends, with a cursor."""

LATEST_LOOKED_AT = 1_000
"""Among so many of the latest by time is the latest by number."""

_ENTRY = "e.time_ms, e.number, e.state, e.detail"


def page(
    db: apsw.Connection,
    tenant: str,
    *,
    where: LogFilter,
    view: LogView,
    cursor: str | None,
    count_max: int,
    bytes_max: int,
) -> LogPage:
    """A page of the log; see `Reader.log`."""
    walk = _Walk(db, tenant, where, view, cursor)
    reading = _Reading(db, tenant, room=bytes_max, bodies=view.bodies)
    entries: list[LogEntry] = []
    count, last = 0, BEFORE_ALL
    for *row, facts in walk.rows():
        message = decode_message(facts)
        if not matches(where.of, message, at_ms=row[0]):
            continue
        if count == count_max:
            return LogPage(entries, walk.cursor(last))
        rows = walk.rows_of(message.id) if view.by_message else [row]
        read = reading.entries(rows, message, len(facts), first=not entries)
        if read is None:
            return LogPage(entries, walk.cursor(last))
        entries += read
        count, last = count + 1, (row[0], row[1])
    return LogPage(entries, None if walk.ends_at is None else walk.cursor(walk.ends_at))


class _Walk:
    """The places of the entries that are wanted, from where a page begins.

    Where entries are gathered by message, it comes only by the first one of each
    message.  With the latest first that changes as more is logged.  So the cursor keeps
    the number that was the latest as the first page began: what came after it does not
    move a message out of the pages that are still to come.

    `ends_at` is the place at which the page ends whatever it has found, or None.
    """

    def __init__(
        self,
        db: apsw.Connection,
        tenant: str,
        where: LogFilter,
        view: LogView,
        cursor: str | None,
    ) -> None:
        self._db = db
        self._tenant = tenant
        self._where = where
        self._view = view
        self._latest_number = 0
        of = where.of
        low, high = self._low, self._high = span(of)
        if cursor is not None:
            time_ms, number, *latest = read_numbers(cursor, count=3 if view.by_message else 2)
            self._latest_number = latest[0] if latest else 0
            low, high = left_of(
                (low, high), after=(time_ms, number), latest_first=view.latest_first
            )
        elif view.by_message:
            self._latest_number = self._find_latest_number()
        self.ends_at: Place | None = None
        if not of.message_ids and (where.states or view.by_message or asks_for_more_than_dates(of)):
            self.ends_at = self._last_looked_at(low, high)
        if self.ends_at is not None:
            time_ms, number = self.ends_at
            if view.latest_first:
                low = (time_ms, number - 1)
            else:
                high = (time_ms, number + 1)
        self._from = low
        self._until = high

    def rows(self) -> apsw.Cursor:
        """Time, number, state and detail of each entry, and the message's facts; `matches` has
        the last word."""
        of = self._where.of
        ids = sorted(of.message_ids)
        index = " INDEXED BY event_message" if ids else ""
        events, values = self._events("e", self._from, self._until)
        sql = (
            f"SELECT {_ENTRY}, m.facts FROM event e{index}"
            " CROSS JOIN message m ON m.tenant = e.tenant AND m.id = e.message_id"
            f" WHERE {events}"
        )
        if ids:
            sql += f" AND e.message_id {AMONG}"
            values.append(as_list(of.message_ids))
        facts, of_facts = prefilter(of, facts="m.facts")
        sql += facts
        values += of_facts
        if self._view.by_message:
            low, high, before = self._low, self._high, ">" if self._view.latest_first else "<"
            earlier, more = self._events("x", low, high)
            sql += (
                f" AND NOT EXISTS (SELECT 1 FROM event x INDEXED BY event_message WHERE {earlier}"
                " AND x.message_id = e.message_id"
                f" AND (x.time_ms, x.number) {before} (e.time_ms, e.number) AND x.number <= ?)"
            )
            latest = self._latest_number if self._view.latest_first else PLACE_MAX
            values += (*more, latest)
        cursor: apsw.Cursor = query(self._db, f"{sql} ORDER BY {self._order('e')}", values)
        return cursor

    def rows_of(self, message_id: str) -> apsw.Cursor:
        """Time, number, state and detail of all entries of a message that are wanted."""
        events, values = self._events("e", self._low, self._high)
        cursor: apsw.Cursor = query(
            self._db,
            f"SELECT {_ENTRY} FROM event e INDEXED BY event_message"
            f" WHERE {events} AND e.message_id = ? ORDER BY {self._order('e')}",
            (*values, message_id),
        )
        return cursor

    def cursor(self, place: Place) -> str:
        if self._view.by_message:
            return cursor_of(*place, self._latest_number)
        return cursor_of(*place)

    def _events(self, event: str, low: Place, high: Place) -> tuple[str, list[object]]:
        """Conditions on an entry by itself: whose it is, its place and its state."""
        place = f"({event}.time_ms, {event}.number)"
        sql = f"{event}.tenant = ? AND {place} > (?, ?) AND {place} < (?, ?)"
        values: list[object] = [self._tenant, *low, *high]
        if self._where.states:
            sql += f" AND {event}.state {AMONG}"
            values.append(as_list(frozenset(self._where.states)))
        return sql, values

    def _order(self, event: str) -> str:
        way = "DESC" if self._view.latest_first else "ASC"
        return f"{event}.time_ms {way}, {event}.number {way}"

    def _last_looked_at(self, low: Place, high: Place) -> Place | None:
        """The place at which a page ends whatever it has found, or None: the log ends before."""
        found: Place | None = query(
            self._db,
            "SELECT e.time_ms, e.number FROM event e WHERE e.tenant = ?"
            " AND (e.time_ms, e.number) > (?, ?) AND (e.time_ms, e.number) < (?, ?)"
            f" ORDER BY {self._order('e')} LIMIT 1 OFFSET ?",
            (self._tenant, *low, *high, LOOKED_AT_MAX - 1),
        ).fetchone()
        return found

    def _find_latest_number(self) -> int:
        [latest] = query(
            self._db,
            "SELECT max(number) FROM (SELECT number FROM event WHERE tenant = ?"
            " ORDER BY time_ms DESC, number DESC LIMIT ?)",
            (self._tenant, LATEST_LOOKED_AT),
        ).fetchone()
        return latest or 0


class _Reading:
    """Reads entries while there is `room` (bytes) for them."""

    def __init__(self, db: apsw.Connection, tenant: str, *, room: int, bodies: bool) -> None:
        self._db = db
        self._tenant = tenant
        self._room = room
        self._bodies = bodies
        self._read: dict[str, bytes] = {}

    def entries(
        self, rows: Iterable[Sequence[Any]], message: Message, size: int, *, first: bool
    ) -> list[LogEntry] | None:
        """The entries of these rows, all of one message with facts of this size; None where
        there is no room for them.

        The first of a page have room in any case, but those that go beyond it come
        without bodies.
        """
        entries: list[LogEntry] = []
        for row in rows:
            entries.append(self._entry(row, message, size, bodies=self._bodies and self._room >= 0))
            if self._room < 0 and not first:
                return None
        return entries

    def _entry(self, row: Sequence[Any], message: Message, size: int, *, bodies: bool) -> LogEntry:
        time_ms, _, state, raw = row
        body = self._body(message) if bodies else b""
        self._room -= size + len(body) + len(raw or b"")
        return log_entry(time_ms, state, raw, message, body, bodies=bodies)

    def _body(self, message: Message) -> bytes:
        body = self._read.get(message.id)
        if body is None:
            found = one(self._db, self._tenant, message.id)
            assert found is not None, message.id
            body = self._read[message.id] = found[1]
        return body
