"""The home of lanes and holds: whose turn it is, and what they wait for.

A lane's row says when its turn comes and whether something else holds it up; it
is worked out anew from what waits whenever something in the lane has changed.
"""

from collections.abc import Iterable

import apsw
from msgspec import Struct

from waypost.domain.lanes import queue_of
from waypost.store.sqlite.database import query


class QueuePlace(Struct, frozen=True):
    """How a queue stands: whether it is paused, and its free places."""

    paused: bool
    free: int


def queue_place(db: apsw.Connection, tenant: str, queue: str) -> QueuePlace:
    """How a queue stands.  What is in use is the count of holds: it cannot drift."""
    [parallelism, paused] = query(
        db, "SELECT parallelism, paused FROM queue WHERE tenant = ? AND name = ?", (tenant, queue)
    ).fetchone() or (1, 0)
    [held] = query(
        db,
        "SELECT count(*) FROM hold WHERE tenant = ? AND resource = ?",
        (tenant, f"queue:{queue}"),
    ).fetchone()
    return QueuePlace(bool(paused), max(0, parallelism - held))


def head_due_ms(db: apsw.Connection, tenant: str, lane: str, *, holding: int) -> int | None:
    """When the first of those that wait with (or without) a place of the queue falls due."""
    found = query(
        db,
        "SELECT due_ms FROM delivery"
        " WHERE tenant = ? AND lane = ? AND holding = ? AND token IS NULL"
        " ORDER BY due_ms, number LIMIT 1",
        (tenant, lane, holding),
    ).fetchone()
    return None if found is None else int(found[0])


def refresh(db: apsw.Connection, tenant: str, lane: str, *, served_ms: int = 0) -> int | None:
    """Work out when a lane's turn comes; when it does, or None.

    `served_ms` is when it has just been served: it goes behind those that have
    waited since before then.
    """
    waiting_ms = head_due_ms(db, tenant, lane, holding=0)
    retrying_ms = None
    turn_ms = waiting_ms
    queue = queue_of(lane)
    if queue is not None:
        retrying_ms = head_due_ms(db, tenant, lane, holding=1)
        place = queue_place(db, tenant, queue)
        if place.paused:
            turn_ms = None
        elif not place.free or waiting_ms is None:
            turn_ms = retrying_ms
        elif retrying_ms is not None:
            turn_ms = min(waiting_ms, retrying_ms)
    if waiting_ms is None and retrying_ms is None:
        db.execute("DELETE FROM lane WHERE tenant = ? AND lane = ?", (tenant, lane))
        return None
    if turn_ms is not None:
        turn_ms = max(turn_ms, served_ms)
    db.execute(
        "INSERT INTO lane VALUES (?, ?, ?, NULL)"
        " ON CONFLICT (tenant, lane) DO UPDATE SET turn_ms = excluded.turn_ms, blocked_on = NULL",
        (tenant, lane, turn_ms),
    )
    return turn_ms


def block(db: apsw.Connection, tenant: str, lane: str, *, on: str) -> None:
    """Take a lane out of the turns until `reopen` of that resource."""
    db.execute("UPDATE lane SET blocked_on = ? WHERE tenant = ? AND lane = ?", (on, tenant, lane))


def reopen(db: apsw.Connection, resources: Iterable[str]) -> None:
    """Let the lanes that wait for these resources have their turn again."""
    for resource in resources:
        db.execute("UPDATE lane SET blocked_on = NULL WHERE blocked_on = ?", (resource,))


def wait(db: apsw.Connection, lanes: dict[tuple[str, str], int]) -> None:
    """Note that something waits in host lanes, due at the time given for each."""
    db.executemany(
        "INSERT INTO lane VALUES (?, ?, ?, NULL) ON CONFLICT (tenant, lane)"
        " DO UPDATE SET turn_ms = min(turn_ms, excluded.turn_ms)",
        ((tenant, lane, due_ms) for (tenant, lane), due_ms in lanes.items()),
    )


def ready_tenants(db: apsw.Connection, *, after: str, now_ms: int, count_max: int) -> list[str]:
    """Tenants with a lane whose turn has come, in order from `after` on, and round again."""
    ready: list[str] = []
    tenant, round_again = after, False
    for _ in range(count_max):
        found = query(
            db,
            "SELECT tenant FROM lane INDEXED BY lane_turn"
            " WHERE tenant > ? AND blocked_on IS NULL AND turn_ms IS NOT NULL"
            " ORDER BY tenant LIMIT 1",
            (tenant,),
        ).fetchone()
        if round_again and (found is None or found[0] > after):
            break
        if found is None:
            tenant, round_again = "", True
        else:
            tenant = found[0]
            if ready_lanes(db, tenant, now_ms=now_ms, count_max=1):
                ready.append(tenant)
    return ready


def ready_lanes(db: apsw.Connection, tenant: str, *, now_ms: int, count_max: int) -> list[str]:
    """A tenant's lanes whose turn has come, longest waiting first."""
    return [
        lane
        for (lane,) in query(
            db,
            "SELECT lane FROM lane INDEXED BY lane_turn"
            " WHERE tenant = ? AND blocked_on IS NULL AND turn_ms <= ?"
            " ORDER BY turn_ms LIMIT ?",
            (tenant, now_ms, count_max),
        )
    ]


def next_turn_ms(db: apsw.Connection) -> int | None:
    """When the next lane's turn comes; a time that has passed where one is ready."""
    found = query(
        db,
        "SELECT turn_ms FROM lane INDEXED BY lane_due"
        " WHERE blocked_on IS NULL AND turn_ms IS NOT NULL ORDER BY turn_ms LIMIT 1",
    ).fetchone()
    return None if found is None else int(found[0])


def is_ready(db: apsw.Connection, *, now_ms: int) -> bool:
    """Whether any lane's turn has come."""
    turn_ms = next_turn_ms(db)
    return turn_ms is not None and turn_ms <= now_ms
