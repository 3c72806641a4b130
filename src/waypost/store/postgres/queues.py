"""The home of queues as rows: how they are seen and counted, and what their owners set.

Publishing makes them too; see `adding`.  How they end is in `emptying`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from waypost.domain.errors import LimitReached
from waypost.domain.lanes import QUEUE, Place, queue_lane
from waypost.store import quotas
from waypost.store.calls import Pause, Put
from waypost.store.postgres import lanes
from waypost.store.postgres.database import Connection, columns, is_text
from waypost.store.postgres.writer import Batch
from waypost.store.protocol import Queue

_QUEUE = (
    "SELECT q.name, q.parallelism, q.paused, q.created_ms, q.updated_ms,"
    # Those that hold a place are in flight or in retry; the others wait for one.
    " (SELECT count(*) FROM hold h"
    f"  WHERE h.tenant = q.tenant AND h.resource = '{QUEUE}' || q.name)"
    " + (SELECT count(*) FROM delivery d"
    f"  WHERE d.tenant = q.tenant AND d.lane = '{QUEUE}' || q.name"
    "   AND NOT d.holding AND d.token IS NULL)"
    " FROM queue q WHERE q.tenant = $1"
)

_NAMES = "unnest($1::text[], $2::text[]) n (tenant, name)"


async def one(db: Connection, tenant: str, name: str) -> Queue | None:
    """The queue of that name, with its lag."""
    if not is_text(name):
        return None
    found = await db.fetchrow(f"{_QUEUE} AND q.name = $2", tenant, name)
    return None if found is None else _queue(*found)


async def all_of(db: Connection, tenant: str) -> list[Queue]:
    """All queues of a tenant, by name."""
    return [_queue(*row) for row in await db.fetch(f"{_QUEUE} ORDER BY q.name", tenant)]


def _queue(
    name: str, parallelism: int, paused: bool, created_ms: int, updated_ms: int, lag: int
) -> Queue:
    return Queue(
        name=name,
        parallelism=parallelism,
        paused=paused,
        created_ms=created_ms,
        updated_ms=updated_ms,
        lag=lag,
    )


async def those_there(db: Connection, names: Iterable[Place]) -> set[Place]:
    """Those of the queues that are there."""
    rows = await db.fetch(
        f"SELECT q.tenant, q.name FROM {_NAMES}"
        " JOIN queue q ON q.tenant = n.tenant AND q.name = n.name",
        *columns(names),
    )
    return {(row[0], row[1]) for row in rows}


async def _counts(db: Connection, tenants: Iterable[str]) -> Counter[str]:
    """How many queues each of the tenants has."""
    rows = await db.fetch(
        "SELECT tenant, count(*) FROM queue WHERE tenant = ANY($1::text[]) GROUP BY tenant",
        list(tenants),
    )
    return Counter({row[0]: row[1] for row in rows})


async def make(db: Connection, names: Iterable[Place], *, now_ms: int) -> set[Place]:
    """Make those of the queues that are not there (W75): which."""
    names = set(names)
    if not names:
        return set()
    rows = await db.fetch(
        f"INSERT INTO queue SELECT tenant, name, 1, false, $3, $3, $3 FROM {_NAMES}"
        " ON CONFLICT DO NOTHING RETURNING tenant, name",
        *columns(names),
        now_ms,
    )
    return {(row[0], row[1]) for row in rows}


async def accept(
    db: Connection, names: Iterable[Place], *, now_ms: int
) -> list[tuple[str, str, int]]:
    """Accept messages in queues: tenant and name of each, and the moment of acceptance, which
    never goes back (D23)."""
    names = set(names)
    if not names:
        return []
    rows = await db.fetch(
        # One that was ended since `make` is made anew.
        f"INSERT INTO queue AS q SELECT tenant, name, 1, false, $3, $3, $3 FROM {_NAMES}"
        " ON CONFLICT (tenant, name)"
        " DO UPDATE SET accepted_ms = greatest(q.accepted_ms, excluded.accepted_ms)"
        " RETURNING tenant, name, accepted_ms",
        *columns(names),
        now_ms,
    )
    return [(row[0], row[1], row[2]) for row in rows]


async def too_many(
    db: Connection, wanted: Sequence[tuple[set[Place], int]]
) -> list[LimitReached | None]:
    """Why each of those is refused who want queues, and have so many at most: where it would
    make one too many."""
    named = {name for names, _ in wanted for name in names}
    there = await those_there(db, named) if named else set()
    if there == named:
        return [None] * len(wanted)
    counted = await _counts(db, {tenant for tenant, _ in named - there})
    refusals: list[LimitReached | None] = []
    for names, count_max in wanted:
        new = Counter(tenant for tenant, _ in names - there)
        if any(counted[tenant] + new[tenant] > count_max for tenant in new):
            refusals.append(quotas.exceeded("maxQueues", count_max))
            continue
        refusals.append(None)
        there |= names
        counted.update(new)
    return refusals


async def put(batch: Batch, calls: list[Put]) -> list[LimitReached | None]:
    """Make or change queues; see `Queues.put_queue`.

    They are made as publishing makes them, which may do so at the same moment.
    """
    refusals = await too_many(
        batch.db, [({(call.tenant, call.name)}, call.count_max) for call in calls]
    )
    taken = [call for call, refusal in zip(calls, refusals, strict=True) if refusal is None]
    now_ms = max(call.now_ms for call in calls)
    names = {(call.tenant, call.name) for call in taken}
    await _lock(batch, taken, made=await make(batch.db, names, now_ms=now_ms))
    for call in taken:
        await _put(batch, call, now_ms=now_ms)
    return refusals


async def _put(batch: Batch, call: Put, *, now_ms: int) -> None:
    tenant, name = call.tenant, call.name
    await batch.db.execute(
        # One that was ended since `make` is made anew.
        "INSERT INTO queue AS q VALUES ($1, $2, $3, coalesce($4, false), $5, $5, $5)"
        " ON CONFLICT (tenant, name) DO UPDATE SET parallelism = excluded.parallelism,"
        " paused = coalesce($4, q.paused), updated_ms = excluded.updated_ms",
        *(tenant, name, call.parallelism, call.paused, now_ms),
    )
    await lanes.refresh(batch, [(tenant, queue_lane(name))], now_ms=now_ms)


async def pause(batch: Batch, calls: list[Pause]) -> list[bool]:
    """Pause queues or let them go on; see `Queues.pause_queue`."""
    await _lock(batch, calls)
    return [await _pause(batch, call) for call in calls]


async def _pause(batch: Batch, call: Pause) -> bool:
    tenant, name = call.tenant, call.name
    if not is_text(name):
        return False
    changed = await batch.db.fetchval(
        "UPDATE queue SET paused = $3, updated_ms = $4 WHERE tenant = $1 AND name = $2"
        " RETURNING true",
        *(tenant, name, call.paused, call.now_ms),
    )
    if changed is None:
        return False
    await lanes.refresh(batch, [(tenant, queue_lane(name))], now_ms=call.now_ms)
    return True


async def _lock(batch: Batch, calls: Sequence[Put | Pause], *, made: Iterable[Place] = ()) -> None:
    places = {(call.tenant, queue_lane(call.name)) for call in calls if is_text(call.name)}
    await batch.lock(places, made=made)


async def end(db: Connection, tenant: str, name: str, *, mark: int, now_ms: int) -> None:
    """End a queue of which nothing waits that came before `mark`; what came later is from
    then on in a new one."""
    later = await db.fetchval(
        "SELECT EXISTS (SELECT 1 FROM delivery"
        "  WHERE tenant = $1 AND lane = $2 AND token IS NULL)"
        " OR EXISTS (SELECT 1 FROM hold h JOIN delivery d ON d.number = h.number"
        "  WHERE h.tenant = $1 AND h.resource = $2 AND h.number > $3)",
        *(tenant, queue_lane(name), mark),
    )
    if later:
        await db.execute(
            "UPDATE queue SET parallelism = 1, paused = false, created_ms = $3, updated_ms = $3"
            " WHERE tenant = $1 AND name = $2",
            *(tenant, name, now_ms),
        )
    else:
        await db.execute("DELETE FROM queue WHERE tenant = $1 AND name = $2", tenant, name)
