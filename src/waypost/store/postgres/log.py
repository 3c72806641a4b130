"""The home of the log: one row an event, with the message's facts beside it when read.

An entry's place is (time, number).  Numbers grow with what happens to one message, but
among those of different transactions a smaller one may be committed later.
"""

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import asyncpg

from waypost.domain.filters import matches
from waypost.domain.message import Message
from waypost.store.cursors import (
    BEFORE_ALL,
    Place,
    cursor_of,
    left_of,
    read_numbers,
    span,
)
from waypost.store.details import log_entry
from waypost.store.filters import asks_for_more_than_dates
from waypost.store.postgres.database import Connection
from waypost.store.postgres.filters import Values
from waypost.store.postgres.messages import decode_message, message_of
from waypost.store.postgres.reading import Kept, in_parts
from waypost.store.protocol import LogEntry, LogFilter, LogPage, LogView

LOOKED_AT_MAX = 20_000
"""Entries that a page looks at for those that are wanted: then it ends, with a cursor."""

LATEST_LOOKED_AT = 1_000
"""Among so many of the latest by time is the latest by number."""

CHUNK = 100
"""Rows that are read with one statement, without what may be large of them."""

_XID_END = 1 << 32
"""A row knows its transaction by an id that starts over."""

_ENTRY = "e.time_ms, e.number, e.state, coalesce(octet_length(e.detail), 0)"

Row = Sequence[Any]
"""Time, number, state and size of the detail."""


class _Found(list[Row]):
    """The wanted entries of a message that come one after the other."""

    def __init__(self, message: Message, size: int, first: Row) -> None:
        """`size` is that of the message's facts, and `first` the entry that the walk came by."""
        super().__init__([first])
        self.message = message
        self.size = size
        self.place = (first[0], first[1])


async def page(
    db: Connection,
    tenant: str,
    *,
    where: LogFilter,
    view: LogView,
    cursor: str | None,
    count_max: int,
    bytes_max: int,
) -> LogPage:
    """A page of the log; see `Reader.log`."""
    walk = _Walk(db, tenant, where, view)
    await walk.begin(cursor)
    entries: list[LogEntry] = []
    room, count, last = bytes_max, 0, BEFORE_ALL
    while found := await walk.next(count_max + 1 - count):
        fitting = found[: count_max - count]
        wanted = [Kept((row[0], row[1]), each.message, row[3]) for each in fitting for row in each]
        async with aclosing(in_parts(db, tenant, "event", wanted, bodies=view.bodies)) as read:
            for each in fitting:
                of_message: list[LogEntry] = []
                for time_ms, _, state, _ in each:
                    _, raw, body = await anext(read)
                    bodies = view.bodies and room >= 0
                    if not bodies:
                        body = b""
                    room -= each.size + len(body) + len(raw or b"")
                    if room < 0 and entries:
                        return LogPage(entries, walk.cursor(last))
                    of_message.append(
                        log_entry(time_ms, state, raw, each.message, body, bodies=bodies)
                    )
                entries += of_message
                count, last = count + 1, each.place
        if len(found) > len(fitting):
            return LogPage(entries, walk.cursor(last))
    return LogPage(entries, None if walk.ends_at is None else walk.cursor(walk.ends_at))


class _Walk:
    """The places of the entries that are wanted, from where a page begins.

    Where entries are gathered by message, it comes only by the first one of each
    message.  With the latest first that changes as more is logged.  So the cursor keeps
    what was there as the first page began, and what came after it does not move a message
    out of the pages that are still to come: the number that was the latest, and the
    transactions that were under way, for theirs may be smaller.

    `ends_at` is the place at which the page ends whatever it has found, or None.
    """

    def __init__(self, db: Connection, tenant: str, where: LogFilter, view: LogView) -> None:
        self._db = db
        self._tenant = tenant
        self._where = where
        self._view = view
        self._as_of: list[int] = []
        self.ends_at: Place | None = None
        self._low, self._high = self._left = span(where.of)
        self._over = False

    async def begin(self, cursor: str | None) -> None:
        by_message, latest_first = self._view.by_message, self._view.latest_first
        if cursor is not None:
            time_ms, number, *self._as_of = read_numbers(
                cursor, count=3 if by_message else 2, more=by_message
            )
            self._as_of[1:] = [transaction % _XID_END for transaction in self._as_of[1:]]
            self._left = left_of(self._left, after=(time_ms, number), latest_first=latest_first)
        elif by_message:
            self._as_of = await self._now()
        of = self._where.of
        if not of.message_ids and (
            self._where.states or by_message or asks_for_more_than_dates(of)
        ):
            self.ends_at = await self._last_looked_at()
        if self.ends_at is not None:
            low, high = self._left
            time_ms, number = self.ends_at
            if latest_first:
                self._left = (time_ms, number - 1), high
            else:
                self._left = low, (time_ms, number + 1)

    async def next(self, count: int) -> list[_Found]:
        """Some that are wanted, about `count` at most; none where the walk has come to its end."""
        found: list[_Found] = []
        limit = min(count, CHUNK)
        while not found and not self._over:
            rows = await self._rows(limit)
            self._over = len(rows) < limit
            for *row, facts in rows:
                message = decode_message(facts)
                if matches(self._where.of, message, at_ms=row[0]):
                    found.append(_Found(message, len(facts), row))
            if rows:
                at = (rows[-1][0], rows[-1][1])
                self._left = left_of(self._left, after=at, latest_first=self._view.latest_first)
            limit = CHUNK
        if self._view.by_message and found:
            await self._gather(found)
        return found

    async def _rows(self, count: int) -> list[asyncpg.Record]:
        """Time, number, state and size of the detail of entries, and the message's facts;
        `matches` has the last word."""
        of = self._where.of
        values = Values()
        events = "event"
        if of.message_ids:
            events = self._of_messages(values.among(of.message_ids), values)
        sql = f"SELECT {_ENTRY}, m.facts FROM {events} e{message_of('e')}"
        sql += f" WHERE {self._events('e', values, *self._left)}"
        sql += values.prefilter(of, facts="m.facts")
        if self._view.by_message:
            before = ">" if self._view.latest_first else "<"
            as_of = self._as_of_beginning(values)
            others = self._of_messages("= e.message_id", values)
            wanted = self._events("x", values, self._low, self._high)
            sql += as_of.format(event="e")
            sql += (
                f" AND NOT EXISTS (SELECT 1 FROM {others} x WHERE {wanted}"
                f" AND (x.time_ms, x.number) {before} (e.time_ms, e.number)"
                f"{as_of.format(event='x')} OFFSET 0)"
            )
        sql += f" ORDER BY {self._order('e')} LIMIT {values.add(count)}"
        return await self._db.fetch(sql, *values)

    async def _gather(self, found: list[_Found]) -> None:
        """Put all entries of these messages that are wanted in the place of the first one."""
        values = Values()
        ids = values.add([each.message.id for each in found])
        events = self._of_messages("= j.id", values)
        wanted = self._events("e", values, self._low, self._high)
        rows = await self._db.fetch(
            f"SELECT j.n, {_ENTRY} FROM unnest({ids}::text[]) WITH ORDINALITY j (id, n)"
            f" CROSS JOIN LATERAL {events} e WHERE {wanted}"
            f" ORDER BY j.n, {self._order('e')}",
            *values,
        )
        for each in found:
            each.clear()
        for n, *row in rows:
            found[n - 1].append(row)

    def cursor(self, place: Place) -> str:
        return cursor_of(*place, *self._as_of)

    def _of_messages(self, named: str, values: Values) -> str:
        """All entries of the messages whose ids are as said.  By themselves, for an index has
        them so: with the place beside it the planner might go by that."""
        tenant = values.add(self._tenant)
        return (
            f"(SELECT *, xmin FROM event WHERE tenant = {tenant} AND message_id {named} OFFSET 0)"
        )

    def _events(self, event: str, values: Values, low: Place, high: Place) -> str:
        """Conditions on an entry by itself: whose it is, its place and its state."""
        sql = self._between(event, values, low, high)
        if self._where.states:
            sql += f" AND {event}.state {values.among(self._where.states)}"
        return sql

    def _between(self, event: str, values: Values, low: Place, high: Place) -> str:
        """Conditions on whose an entry is and on its place; the times by themselves say which
        parts of the table to look at."""
        place = f"({event}.time_ms, {event}.number)"
        (low_ms, low_number), (high_ms, high_number) = low, high
        after, until = values.add(low_ms), values.add(high_ms)
        return (
            f"{event}.tenant = {values.add(self._tenant)}"
            f" AND {event}.time_ms >= {after} AND {event}.time_ms <= {until}"
            f" AND {place} > ({after}, {values.add(low_number)})"
            f" AND {place} < ({until}, {values.add(high_number)})"
        )

    def _order(self, event: str) -> str:
        way = "DESC" if self._view.latest_first else "ASC"
        return f"{event}.time_ms {way}, {event}.number {way}"

    async def _last_looked_at(self) -> Place | None:
        """The place at which a page ends whatever it has found, or None: the log ends before."""
        values = Values()
        events = self._between("e", values, *self._left)
        found = await self._db.fetchrow(
            f"SELECT e.time_ms, e.number FROM event e WHERE {events}"
            f" ORDER BY {self._order('e')} LIMIT 1 OFFSET {values.add(LOOKED_AT_MAX - 1)}",
            *values,
        )
        return None if found is None else (found[0], found[1])

    async def _now(self) -> list[int]:
        """The latest number, and the transactions that are under way."""
        latest = await self._db.fetchval(
            "SELECT coalesce(max(number), 0) FROM (SELECT number FROM event WHERE tenant = $1"
            " ORDER BY time_ms DESC, number DESC LIMIT $2) e",
            self._tenant,
            LATEST_LOOKED_AT,
        )
        under_way = await self._db.fetch(
            "SELECT x::text::bigint FROM pg_snapshot_xip(pg_current_snapshot()) x"
        )
        return [latest, *(transaction % _XID_END for [transaction] in under_way)]

    def _as_of_beginning(self, values: Values) -> str:
        """The condition that an entry was there as the first page began.  What is yet to come
        comes before that where the latest are first; else nothing has to be kept from moving."""
        if not self._view.latest_first:
            return ""
        latest, *under_way = self._as_of
        number, transactions = values.add(latest), values.add(under_way)
        return f" AND {{event}}.number <= {number} AND {{event}}.xmin <> ALL({transactions}::xid[])"
