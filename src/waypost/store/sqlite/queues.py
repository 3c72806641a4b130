"""The home of queues as rows: how they are seen and counted, and what their owners set.

Publishing makes them too; see `adding`.  How they end is in `emptying`.
"""

from typing import Any

import apsw

from waypost.domain.errors import LimitReached
from waypost.domain.lanes import queue_lane
from waypost.store import quotas
from waypost.store.calls import Pause, Put
from waypost.store.protocol import Queue
from waypost.store.sqlite import lanes
from waypost.store.sqlite.database import query
from waypost.store.sqlite.writer import Batch

_QUEUE = (
    "SELECT q.name, q.parallelism, q.paused, q.created_ms, q.updated_ms,"
    # Those that hold a place are in flight or in retry; the others wait for one.
    " (SELECT count(*) FROM hold h WHERE h.tenant = q.tenant AND h.resource = ?2 || q.name)"
    " + (SELECT count(*) FROM delivery d WHERE d.tenant = q.tenant AND d.lane = ?2 || q.name"
    "    AND d.holding = 0 AND d.token IS NULL)"
    " FROM queue q WHERE q.tenant = ?1"
)


def one(db: apsw.Connection, tenant: str, name: str) -> Queue | None:
    """The queue of that name, with its lag."""
    found = query(db, f"{_QUEUE} AND q.name = ?3", (tenant, queue_lane(""), name)).fetchone()
    return None if found is None else _queue(*found)


def all_of(db: apsw.Connection, tenant: str) -> list[Queue]:
    """All queues of a tenant, by name."""
    return [
        _queue(*row) for row in query(db, f"{_QUEUE} ORDER BY q.name", (tenant, queue_lane("")))
    ]


def _queue(
    name: str, parallelism: int, paused: int, created_ms: int, updated_ms: int, lag: int
) -> Queue:
    return Queue(
        name=name,
        parallelism=parallelism,
        paused=bool(paused),
        created_ms=created_ms,
        updated_ms=updated_ms,
        lag=lag,
    )


def is_there(db: apsw.Connection, tenant: str, name: str) -> bool:
    """Whether there is such a queue."""
    row = query(db, "SELECT 1 FROM queue WHERE tenant = ? AND name = ?", (tenant, name))
    return row.fetchone() is not None


def count(db: apsw.Connection, tenant: str) -> int:
    """How many queues a tenant has."""
    [found] = query(db, "SELECT count(*) FROM queue WHERE tenant = ?", (tenant,)).fetchone()
    return int(found)


def put(batch: Batch, calls: list[Put]) -> list[LimitReached | None]:
    """Make or change queues; see `Queues.put_queue`."""
    return [_put(batch, call) for call in calls]


def _put(batch: Batch, call: Put) -> LimitReached | None:
    db, tenant, name = batch.db, call.tenant, call.name
    if not is_there(db, tenant, name) and count(db, tenant) >= call.count_max:
        return quotas.exceeded("maxQueues", call.count_max)
    db.execute(
        "INSERT INTO queue VALUES (?1, ?2, ?3, coalesce(?4, 0), ?5, ?5, ?5)"
        " ON CONFLICT (tenant, name) DO UPDATE SET parallelism = excluded.parallelism,"
        "  paused = coalesce(?4, paused), updated_ms = excluded.updated_ms",
        (tenant, name, call.parallelism, call.paused, call.now_ms),
    )
    _reconsider(batch, tenant, name, now_ms=call.now_ms)
    return None


def pause(batch: Batch, calls: list[Pause]) -> list[bool]:
    """Pause queues or let them go on; see `Queues.pause_queue`."""
    return [_pause(batch, call) for call in calls]


def _pause(batch: Batch, call: Pause) -> bool:
    db, tenant, name = batch.db, call.tenant, call.name
    db.execute(
        "UPDATE queue SET paused = ?, updated_ms = ? WHERE tenant = ? AND name = ?",
        (call.paused, call.now_ms, tenant, name),
    )
    if not db.changes():
        return False
    _reconsider(batch, tenant, name, now_ms=call.now_ms)
    return True


def _reconsider(batch: Batch, tenant: str, name: str, *, now_ms: int) -> None:
    """Work out when the queue's turn comes, now that it is another one."""
    batch.someone_waits(lanes.refresh(batch.db, tenant, queue_lane(name), now_ms=now_ms))


def end(db: apsw.Connection, tenant: str, name: str, *, mark: int, now_ms: int) -> None:
    """End a queue of which nothing waits that came before `mark`; what came later is from
    then on in a new one."""
    lane = queue_lane(name)
    later: Any = query(
        db,
        "SELECT EXISTS (SELECT 1 FROM delivery"
        "  WHERE tenant = ?1 AND lane = ?2 AND token IS NULL)"
        " OR EXISTS (SELECT 1 FROM hold h CROSS JOIN delivery d ON d.number = h.number"
        "  WHERE h.tenant = ?1 AND h.resource = ?2 AND h.number > ?3)",
        (tenant, lane, mark),
    ).fetchone()
    if later[0]:
        db.execute(
            "UPDATE queue SET parallelism = 1, paused = 0, created_ms = ?1, updated_ms = ?1"
            " WHERE tenant = ?2 AND name = ?3",
            (now_ms, tenant, name),
        )
    else:
        db.execute("DELETE FROM queue WHERE tenant = ? AND name = ?", (tenant, name))
