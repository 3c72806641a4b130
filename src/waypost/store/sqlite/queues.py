"""The home of queues as they are seen.  Publishing creates them; see `messages.add`."""

import apsw

from waypost.domain.lanes import queue_lane
from waypost.store.protocol import Queue
from waypost.store.sqlite.database import query


def one(db: apsw.Connection, tenant: str, name: str) -> Queue | None:
    """The queue of that name, with its lag."""
    found = query(
        db,
        "SELECT parallelism, paused, created_ms, updated_ms FROM queue"
        " WHERE tenant = ? AND name = ?",
        (tenant, name),
    ).fetchone()
    if found is None:
        return None
    parallelism, paused, created_ms, updated_ms = found
    lane = queue_lane(name)
    # Those that hold a place are in flight or in retry; the others wait for one.
    [lag] = query(
        db,
        "SELECT (SELECT count(*) FROM hold WHERE tenant = ?1 AND resource = ?2)"
        " + (SELECT count(*) FROM delivery"
        "    WHERE tenant = ?1 AND lane = ?2 AND holding = 0 AND token IS NULL)",
        (tenant, lane),
    ).fetchone()
    return Queue(
        name=name,
        parallelism=parallelism,
        paused=bool(paused),
        created_ms=created_ms,
        updated_ms=updated_ms,
        lag=lag,
    )
