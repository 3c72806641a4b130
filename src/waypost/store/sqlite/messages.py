"""The home of a message as it is kept: its facts, and its body.

The messages of a fan-out share a body, kept under the number of the first; a
callback has a report in its place, from which its body is built.  There is no
row for an empty body.
"""

from collections.abc import Iterable
from typing import Any

import apsw
import msgspec

from waypost.domain import callbacks
from waypost.domain.callbacks import Report
from waypost.domain.filters import EVERYTHING, Filter, matches
from waypost.domain.lanes import queue_lane
from waypost.domain.message import Message
from waypost.store.protocol import Found
from waypost.store.sqlite.database import query
from waypost.store.sqlite.filters import AMONG, as_list, prefilter

LOOKED_AT_MAX = 500
"""Deliveries that a call looks at for those that are meant: then it ends, with a cursor.  So many
take 1-2 ms, in which whoever publishes waits at each step for the interpreter."""

FACTS_AND_BODY = "m.facts, (SELECT bytes FROM body WHERE number = coalesce(m.body, m.number))"
"""The columns that `whole` reads, of `message m`."""

decode_message = msgspec.json.Decoder(Message).decode
_decode_report = msgspec.json.Decoder(Report).decode


def one(db: apsw.Connection, tenant: str, message_id: str) -> tuple[Message, bytes] | None:
    """A message and its body; see `Reader.message`."""
    found = query(
        db,
        f"SELECT {FACTS_AND_BODY} FROM message m WHERE tenant = ? AND id = ?",
        (tenant, message_id),
    ).fetchone()
    return None if found is None else whole(db, *found)


def cancellable(db: apsw.Connection, tenant: str, *, where: Filter, cursor: str | None) -> Found:
    """The ids of messages that are alive; see `Reader.cancellable`."""
    if where.message_ids:
        sql = (
            " FROM json_each(?) j CROSS JOIN message m ON m.tenant = ? AND m.id = j.value"
            " CROSS JOIN delivery d ON d.number = m.number WHERE d.canceling = 0"
        )
        return Found(_meant(db, sql, [as_list(where.message_ids), tenant], where), None)
    after, until = (0, _last_number(db)) if cursor is None else map(int, cursor.split("-"))
    numbers = "d.number > ? AND d.number <= ?"
    values: list[Any] = [after, until]
    index = ""
    if where.flow_keys:  # an index has these by themselves
        index = " INDEXED BY delivery_key"
        numbers += f" AND d.tenant = ? AND d.key {AMONG}"
        values += [tenant, as_list(where.flow_keys)]
    end = query(
        db,
        f"SELECT d.number FROM delivery d{index} WHERE {numbers} ORDER BY d.number"
        " LIMIT 1 OFFSET ?",
        (*values, LOOKED_AT_MAX - 1),
    ).fetchone()
    if end is not None:
        values[1] = end[0]
    sql = (
        f" FROM delivery d{index}"
        " CROSS JOIN message m ON m.tenant = d.tenant AND m.id = d.message_id"
        f" WHERE {numbers} AND d.tenant = ? AND d.canceling = 0"
    )
    values.append(tenant)
    if where.queues:
        sql += f" AND d.lane {AMONG}"
        values.append(as_list(frozenset(map(queue_lane, where.queues))))
    ids = _meant(db, sql, values, where)
    return Found(ids, None if end is None else f"{end[0]}-{until}")


def _meant(db: apsw.Connection, sql: str, values: list[Any], where: Filter) -> list[str]:
    """The ids of those messages of a selection that `where` means, in their order."""
    likely, of_facts = prefilter(where, facts="m.facts")
    return [
        message_id
        for message_id, facts in query(
            db, f"SELECT m.id, m.facts{sql}{likely} ORDER BY d.number", (*values, *of_facts)
        )
        if where == EVERYTHING
        or matches(where, message := decode_message(facts), at_ms=message.created_ms)
    ]


def _last_number(db: apsw.Connection) -> int:
    [number] = query(db, "SELECT coalesce(max(number), 0) FROM delivery").fetchone()
    return int(number)


def source_numbers(db: apsw.Connection, callbacks: Iterable[Message]) -> dict[tuple[str, str], int]:
    """The numbers of the messages that callbacks are about, by the callbacks' tenants and ids."""
    sources = {}
    for callback in callbacks:
        named = (callback.tenant, callback.id)
        [sources[named]] = query(
            db, "SELECT source FROM message WHERE tenant = ? AND id = ?", named
        ).fetchone()
    return sources


def whole(db: apsw.Connection, facts: bytes, kept: bytes | None) -> tuple[Message, bytes]:
    """A message and its body, from the columns of `FACTS_AND_BODY`."""
    message = decode_message(facts)
    if message.callback_of is None:
        return message, kept or b""
    assert kept is not None, message.id
    source = one(db, message.tenant, message.callback_of)
    assert source is not None, message.id  # it is kept for as long as its callbacks are
    return message, callbacks.body(_decode_report(kept), *source)
