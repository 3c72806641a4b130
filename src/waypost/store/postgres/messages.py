"""The home of a message as it is kept: its facts, and its body.

The messages of a fan-out share a body, kept under the number of the first; a
callback has a report in its place, from which its body is built.  There is no
row for an empty body.
"""

from collections.abc import Collection, Iterable, Sequence

import msgspec

from waypost.domain import callbacks
from waypost.domain.callbacks import Report
from waypost.domain.filters import EVERYTHING, Filter, matches
from waypost.domain.lanes import queue_lane
from waypost.domain.message import Message
from waypost.store.postgres.database import Connection, columns
from waypost.store.postgres.filters import Values, sendable
from waypost.store.protocol import Found

LOOKED_AT_MAX = 5_000
"""Deliveries that a call looks at for those that are meant: then it ends, with a cursor."""

FACTS_AND_BODY = "m.facts, (SELECT b.bytes FROM body b WHERE b.number = coalesce(m.body, m.number))"
"""The columns that `whole` reads, of `message m`."""

decode_message = msgspec.json.Decoder(Message).decode
_decode_report = msgspec.json.Decoder(Report).decode


def message_of(row: str) -> str:
    """Joins `message m` to each row that names it: by its index, whatever the planner thinks of
    how many there are, and in their order."""
    return (
        " CROSS JOIN LATERAL (SELECT * FROM message"
        f" WHERE tenant = {row}.tenant AND id = {row}.message_id OFFSET 0) m"
    )


async def one(db: Connection, tenant: str, message_id: str) -> tuple[Message, bytes] | None:
    """A message and its body; see `Reader.message`."""
    for named in sendable([message_id]):
        found = await db.fetchrow(
            f"SELECT {FACTS_AND_BODY} FROM message m WHERE tenant = $1 AND id = $2", tenant, named
        )
        return None if found is None else await whole(db, *found)
    return None


async def whole(db: Connection, facts: bytes, kept: bytes | None) -> tuple[Message, bytes]:
    """A message and its body, from the columns of `FACTS_AND_BODY`."""
    [found] = await wholes(db, [(facts, kept)])
    return found


async def wholes(
    db: Connection, rows: Sequence[tuple[bytes, bytes | None]]
) -> list[tuple[Message, bytes]]:
    """Messages and their bodies, from the columns of `FACTS_AND_BODY`; whatever callbacks among
    them are about is read with one statement."""
    read = [(decode_message(facts), kept) for facts, kept in rows]
    about = {
        (message.tenant, message.callback_of)
        for message, _ in read
        if message.callback_of is not None
    }
    sources = await _read(db, about)
    return [(message, _body(message, kept, sources)) for message, kept in read]


async def bodies_of(db: Connection, messages: Iterable[Message]) -> dict[str, bytes]:
    """The bodies of messages of one tenant, by their ids, read with one statement."""
    messages = list(messages)
    named = {(message.tenant, message.id) for message in messages}
    named |= {
        (message.tenant, message.callback_of)
        for message in messages
        if message.callback_of is not None
    }
    kept = await _read(db, named)
    return {
        message.id: _body(message, kept[message.tenant, message.id][1], kept)
        for message in messages
    }


_Kept = dict[tuple[str, str], tuple[bytes, bytes | None]]
"""Facts and what is kept of the body, by tenant and id."""


async def _read(db: Connection, named: Collection[tuple[str, str]]) -> _Kept:
    if not named:
        return {}
    rows = await db.fetch(
        f"SELECT s.tenant, s.message_id, {FACTS_AND_BODY}"
        f" FROM unnest($1::text[], $2::text[]) s (tenant, message_id){message_of('s')}",
        *columns(named),
    )
    return {(tenant, message_id): (facts, kept) for tenant, message_id, facts, kept in rows}


def _body(message: Message, kept: bytes | None, others: _Kept) -> bytes:
    """The body of a message; of a callback, with what it is about among the `others`."""
    if message.callback_of is None:
        return kept or b""
    assert kept is not None, message.id
    # The source is kept for as long as its callbacks are, and is no callback itself (D25).
    facts, body = others[message.tenant, message.callback_of]
    return callbacks.body(_decode_report(kept), decode_message(facts), body or b"")


async def source_numbers(
    db: Connection, callbacks: Sequence[Message]
) -> dict[tuple[str, str], int]:
    """The numbers of the messages that callbacks are about, by the callbacks' tenants and ids."""
    if not callbacks:
        return {}
    rows = await db.fetch(
        "SELECT c.tenant, c.message_id, m.source"
        f" FROM unnest($1::text[], $2::text[]) c (tenant, message_id){message_of('c')}",
        *columns((callback.tenant, callback.id) for callback in callbacks),
    )
    return {(tenant, message_id): source for tenant, message_id, source in rows}


async def cancellable(db: Connection, tenant: str, *, where: Filter, cursor: str | None) -> Found:
    """The ids of messages that are alive; see `Reader.cancellable`."""
    values = Values()
    if where.message_ids:
        sql = (
            f" FROM unnest({values.add(sendable(where.message_ids))}::text[]) j (id)"
            " CROSS JOIN LATERAL (SELECT * FROM message"
            f" WHERE tenant = {values.add(tenant)} AND id = j.id OFFSET 0) m"
            " CROSS JOIN LATERAL (SELECT * FROM delivery WHERE number = m.number OFFSET 0) d"
            " WHERE NOT d.canceling"
        )
        return Found(await _meant(db, sql, values, where), None)
    after, until = (0, await _last_number(db)) if cursor is None else map(int, cursor.split("-"))
    deliveries = f"delivery d WHERE d.number > {values.add(after)} AND d.number <= $2"
    values.add(until)
    if where.flow_keys:  # an index has these by themselves
        deliveries += (
            f" AND d.tenant = {values.add(tenant)} AND d.key {values.among(where.flow_keys)}"
        )
    end = await db.fetchval(
        f"SELECT d.number FROM {deliveries} ORDER BY d.number LIMIT 1 OFFSET ${len(values) + 1}",
        *values,
        LOOKED_AT_MAX - 1,
    )
    if end is not None:
        values[1] = end
    sql = (
        f" FROM (SELECT * FROM {deliveries} AND d.tenant = {values.add(tenant)} AND NOT d.canceling"
    )
    if where.queues:
        sql += f" AND d.lane {values.among(map(queue_lane, where.queues))}"
    sql += f" OFFSET 0) d{message_of('d')} WHERE true"
    ids = await _meant(db, sql, values, where)
    return Found(ids, None if end is None else f"{end}-{until}")


async def _meant(db: Connection, sql: str, values: Values, where: Filter) -> list[str]:
    """The ids of those messages of a selection that `where` means, in their order."""
    likely = values.prefilter(where, facts="m.facts")
    return [
        message_id
        for message_id, facts in await db.fetch(
            f"SELECT m.id, m.facts{sql}{likely} ORDER BY d.number", *values
        )
        if where == EVERYTHING
        or matches(where, message := decode_message(facts), at_ms=message.created_ms)
    ]


async def _last_number(db: Connection) -> int:
    number: int = await db.fetchval("SELECT coalesce(max(number), 0) FROM delivery")
    return number


async def remove_messages(db: Connection, tenant: str, ids: Sequence[str]) -> int:
    """Remove those of the messages that have neither a delivery nor a dead letter, nor a log
    but for what upkeep has looked at and drops.  How many went.

    A message may be needed for two things that go at one moment, on two nodes: so its row
    is locked before it is asked what still needs it, and so is a body that others share.
    """
    bodies: list[int] = []
    count, left = 0, list(ids)
    while left:
        await db.execute(
            "SELECT 1 FROM message WHERE tenant = $1 AND id = ANY($2::text[])"
            " ORDER BY id FOR UPDATE",
            tenant,
            left,
        )
        gone = await db.fetch(
            "DELETE FROM message m WHERE tenant = $1 AND id = ANY($2::text[])"
            f" AND NOT ({_NEEDED}) RETURNING id, coalesce(body, number),"
            " CASE WHEN source IS NOT NULL THEN facts END",
            tenant,
            left,
        )
        bodies += [row[1] for row in gone]
        count += len(gone)
        # Their sources were perhaps kept for them alone.
        left = list({str(decode_message(row[2]).callback_of) for row in gone if row[2]})
    if bodies:
        await db.execute(
            "SELECT 1 FROM body WHERE number = ANY($1::bigint[]) ORDER BY number FOR UPDATE", bodies
        )
        await db.execute(
            "DELETE FROM body b WHERE number = ANY($1::bigint[])"
            " AND NOT EXISTS (SELECT 1 FROM message m WHERE m.body = b.number OFFSET 0)",
            bodies,
        )
    return count


_NEEDED = (
    "EXISTS (SELECT 1 FROM delivery d WHERE d.number = m.number OFFSET 0)"
    " OR EXISTS (SELECT 1 FROM dead_letter l"
    "  WHERE l.tenant = m.tenant AND l.message_id = m.id OFFSET 0)"
    " OR EXISTS (SELECT 1 FROM message c WHERE c.source = m.number OFFSET 0)"
    " OR EXISTS (SELECT 1 FROM event e WHERE e.tenant = m.tenant AND e.message_id = m.id"
    "  AND e.time_ms > (SELECT coalesce(until_ms, looked_ms) FROM upkeep) OFFSET 0)"
)
