"""The home of what keeps the database small and well.

One node at a time looks through the log for what retention no longer covers, tenant by
tenant, and writes down how far it has come: another goes on from there.  With each entry
that is over its message goes, if nothing needs it any more.  The entries themselves are
dropped with the part of their day, once all of it was looked at; those in the default part
are removed.
"""

from collections.abc import Sequence
from time import monotonic
from typing import Any

import msgspec

from waypost.store.calls import Prune
from waypost.store.counts import Counts, Kept
from waypost.store.postgres import flow_keys, lanes, parts
from waypost.store.postgres.database import Connection
from waypost.store.postgres.messages import remove_messages
from waypost.store.postgres.parts import OTHER_TIMES
from waypost.store.postgres.writer import Batch
from waypost.store.protocol import BYTES_MAX, Pruned, Pulse, Retention

CHUNK = 500
"""Rows that one call looks at and removes, about: a call takes milliseconds."""

TENANT_ROWS = 4
"""What looking at a tenant costs of a chunk, be there something to remove or not."""

SLICES = 32
"""A store that is too large loses at least so much of its time at once."""

GROWTH = 100
"""It loses more once it has grown by so much, a hundredth of what it may be."""

NUMBER_MAX = (1 << 63) - 1


class _Look(msgspec.Struct):
    """How far the log has been looked through, and from how many bytes on it is too large.

    All of it until `looked_ms`; and while a look is on, until `until_ms`, the tenants before
    `tenant`, and of its log what is not later than (`time_ms`, `number`).
    """

    looked_ms: int
    until_ms: int | None
    tenant: str
    time_ms: int
    number: int
    bytes_max: int

    def begin(self, tenant: str) -> None:
        """Turn to a tenant."""
        self.tenant, self.time_ms, self.number = tenant, self.looked_ms, NUMBER_MAX


async def prune(batch: Batch, calls: list[Prune]) -> list[Pruned]:
    """Remove a chunk of what retention no longer covers; see `Upkeep.prune`."""
    return [await _prune(batch.db, call.retention, call.now_ms) for call in calls]


async def _prune(db: Connection, retention: Retention, now_ms: int) -> Pruned:
    found = await db.fetchrow(
        "SELECT looked_ms, until_ms, tenant, time_ms, number, bytes_max FROM upkeep"
        " FOR UPDATE SKIP LOCKED"
    )
    if found is None:  # another node is at it
        return Pruned(rows=0, more=False)
    look = _Look(*found)
    if look.looked_ms > now_ms:  # the clock was set back
        look = _Look(-1, None, "", 0, 0, look.bytes_max)
    days = await parts.days(db)
    if await parts.make_ahead(db, days, now_ms=now_ms):
        return Pruned(rows=0, more=True)  # alone in its transaction: others wait for it
    is_over = _is_first_over(days, look)
    if is_over and await parts.drop(db, days[0]):
        return Pruned(rows=0, more=True)
    removed = await _remove_keys(db, now_ms=now_ms)
    more = removed == CHUNK
    if not more:
        until_ms = now_ms - retention.log_ms
        gone, more = await flow_keys.remove_unused(
            db, until_ms=until_ms, count_max=CHUNK, now_ms=now_ms
        )
        removed += gone
    if not more:
        if look.until_ms is None:
            await _begin(db, look, days, retention, now_ms)
            await _write(db, look)
        gone, more = await _go_on(db, look, dead_until_ms=now_ms - retention.dead_letter_ms)
        removed += gone
        more = more or (not is_over and _is_first_over(days, look))
        await _write(db, look)
    return Pruned(rows=removed, more=more)


async def _write(db: Connection, look: _Look) -> None:
    await db.execute(
        "UPDATE upkeep SET looked_ms = $1, until_ms = $2, tenant = $3, time_ms = $4,"
        " number = $5, bytes_max = $6",
        *msgspec.structs.astuple(look),
    )


def _is_first_over(days: list[int], look: _Look) -> bool:
    """Whether the oldest part can be dropped."""
    return bool(days) and parts.is_over(days[0], until_ms=look.looked_ms)


async def _remove_keys(db: Connection, *, now_ms: int) -> int:
    gone = await db.fetch(
        "DELETE FROM dedup WHERE (tenant, key) IN (SELECT tenant, key FROM dedup"
        "  WHERE until_ms <= $1 ORDER BY until_ms LIMIT $2 FOR UPDATE SKIP LOCKED)"
        " RETURNING 1",
        now_ms,
        CHUNK,
    )
    return len(gone)


async def _begin(
    db: Connection, look: _Look, days: list[int], retention: Retention, now_ms: int
) -> None:
    """Begin to look through what is over by its age, or for the store is too large.

    PostgreSQL gives back to the file system what is dropped; what is removed is only used
    again, and the store stays as large.  So one that is too large loses its oldest time by
    the part that it is too large, whole days where there are any; and more only once it
    has grown.
    """
    look.until_ms = max(now_ms - retention.log_ms, look.looked_ms)
    look.begin("")
    size, size_max = await used_bytes(db), retention.store_bytes_max
    if size_max == 0 or size <= size_max:
        look.bytes_max = 0
    elif size > look.bytes_max:
        look.bytes_max = size + size_max // GROWTH
        oldest_ms = await _oldest_ms(db, look)
        if oldest_ms is not None:
            share = max(1 / SLICES, (size - size_max) / size)
            until_ms = oldest_ms + int(share * (now_ms - oldest_ms)) + 1
            ends = (day_ms + parts.DAY_MS - 1 for day_ms in days)
            until_ms = next((end for end in ends if until_ms <= end < now_ms), until_ms)
            look.until_ms = max(look.until_ms, until_ms)


async def _oldest_ms(db: Connection, look: _Look) -> int | None:
    """When the log begins that has not been looked through, asked of each tenant."""
    oldest_ms: int | None = await db.fetchval(
        "WITH RECURSIVE t (tenant) AS ("
        " (SELECT tenant FROM message ORDER BY tenant LIMIT 1)"
        " UNION ALL SELECT (SELECT tenant FROM message m WHERE m.tenant > t.tenant"
        "  ORDER BY tenant LIMIT 1) FROM t WHERE t.tenant IS NOT NULL)"
        " SELECT min((SELECT min(time_ms) FROM event e"
        "  WHERE e.tenant = t.tenant AND e.time_ms > $1)) FROM t",
        look.looked_ms,
    )
    return oldest_ms


async def _go_on(db: Connection, look: _Look, *, dead_until_ms: int) -> tuple[int, bool]:
    """Go on looking: how many rows went, and whether there is more to look at.

    An entry in the part of a day counts as gone when it has been looked at.
    """
    removed, left = 0, CHUNK
    while left > 0:
        gone = await _remove_dead(db, look.tenant, until_ms=dead_until_ms, count_max=left)
        gone += await _remove_entries(db, look, count_max=left - gone)
        gone += await _pass_entries(db, look, count_max=left - gone)
        removed += gone
        if gone < left:
            tenant = await _next_tenant(db, after=look.tenant)
            if tenant is None:
                assert look.until_ms is not None
                look.looked_ms, look.until_ms = look.until_ms, None
                return removed, False
            look.begin(tenant)
        left -= gone + TENANT_ROWS
    return removed, True


async def _remove_dead(db: Connection, tenant: str, *, until_ms: int, count_max: int) -> int:
    """Remove a tenant's oldest dead letters; those that somebody retries are passed over."""
    rows = await db.fetch(
        "DELETE FROM dead_letter WHERE ctid = ANY(ARRAY(SELECT ctid FROM dead_letter"
        "  WHERE tenant = $1 AND failed_ms <= $2 ORDER BY failed_ms, number LIMIT $3"
        "  FOR UPDATE SKIP LOCKED)) RETURNING message_id",
        *(tenant, until_ms, count_max),
    )
    await _remove_messages(db, tenant, rows)
    return len(rows)


async def _remove_entries(db: Connection, look: _Look, *, count_max: int) -> int:
    """Remove a tenant's oldest entries from the part that is never dropped."""
    rows = await db.fetch(
        f"DELETE FROM {OTHER_TIMES} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {OTHER_TIMES}"
        "  WHERE tenant = $1 AND time_ms <= $2 ORDER BY time_ms, number LIMIT $3))"
        " RETURNING message_id",
        *(look.tenant, look.until_ms, count_max),
    )
    await _remove_messages(db, look.tenant, rows)
    return len(rows)


async def _pass_entries(db: Connection, look: _Look, *, count_max: int) -> int:
    """Look at a tenant's next entries, which go with their part."""
    rows = await db.fetch(
        "SELECT message_id, time_ms, number FROM event WHERE tenant = $1"
        " AND time_ms >= $2 AND (time_ms, number) > ($2, $3) AND time_ms <= $4"
        " ORDER BY time_ms, number LIMIT $5",
        *(look.tenant, look.time_ms, look.number, look.until_ms, count_max),
    )
    if rows:
        _, look.time_ms, look.number = rows[-1]
    await _remove_messages(db, look.tenant, rows)
    return len(rows)


async def _remove_messages(db: Connection, tenant: str, rows: Sequence[Any]) -> None:
    """Remove those of the messages that these rows name that nothing needs any more."""
    if rows:
        await remove_messages(db, tenant, sorted({row[0] for row in rows}))


async def _next_tenant(db: Connection, *, after: str) -> str | None:
    """The next tenant with messages: one step of the index."""
    tenant: str | None = await db.fetchval(
        "SELECT tenant FROM message WHERE tenant > $1 ORDER BY tenant LIMIT 1", after
    )
    return tenant


async def used_bytes(db: Connection) -> int:
    size: int = await db.fetchval("SELECT pg_database_size(current_database())")
    return size


async def _counts(db: Connection, kept: Kept, *, now_ms: int) -> Counts:
    """Count what is there; where that takes long, not each time."""
    counts = kept.get()
    if counts is None:
        began_s = monotonic()
        await db.execute("SET LOCAL enable_seqscan = on")
        [row] = await db.fetch(
            "SELECT count(*) FILTER (WHERE token IS NULL) AS waiting,"
            " count(*) FILTER (WHERE token IS NULL AND due_ms <= $1) AS due,"
            " count(token) AS claimed,"
            " (SELECT count(*) FROM dead_letter) AS dead_letters FROM delivery",
            now_ms,
        )
        counts = Counts(**row)
        kept.keep(counts, began_s=began_s)
    return counts


async def pulse(db: Connection, kept: Kept, *, shut: Sequence[str], now_ms: int) -> Pulse:
    """How the store is; see `Reader.pulse`.

    What is free on the database's disk it does not tell: there is always room, until a
    write fails for want of it.
    """
    counts = await _counts(db, kept, now_ms=now_ms)
    turn_ms = await lanes.next_turn_ms(db, shut)
    read_only = await db.fetchval(
        "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean"
    )
    return Pulse(
        waiting=counts.waiting,
        due=counts.due,
        claimed=counts.claimed,
        dead_letters=counts.dead_letters,
        oldest_due_ms=turn_ms if turn_ms is not None and turn_ms <= now_ms else None,
        store_bytes=await used_bytes(db),
        free_bytes=BYTES_MAX,
        refusing="the database can only be read" if read_only else None,
    )
