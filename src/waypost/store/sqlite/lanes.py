"""The home of lanes and holds: whose turn it is, and what they wait for.

A lane's row says when its turn comes and whether something else holds it up; it
is worked out anew from what waits whenever something in the lane has changed.
"""

from collections.abc import Iterable

import apsw
from msgspec import Struct

from waypost.domain.lanes import HOST, QUEUE, key_lane, key_of, queue_lane, queue_of
from waypost.store.sqlite import flow_keys
from waypost.store.sqlite.database import query
from waypost.store.sqlite.writer import Batch


def key_resource(tenant: str, name: str) -> str:
    """What lanes that wait for a key are blocked on, but for its own: the key, whoever's it is."""
    return f"{key_lane(name)} of {tenant}"


class QueuePlace(Struct, frozen=True):
    """How a queue stands: whether it is paused, and its free places."""

    paused: bool
    free: int


def queue_place(db: apsw.Connection, tenant: str, queue: str) -> QueuePlace:
    """How a queue stands.  What is in use is the count of holds: it cannot drift, and
    no more of them are counted than there are places."""
    [parallelism, paused] = query(
        db, "SELECT parallelism, paused FROM queue WHERE tenant = ? AND name = ?", (tenant, queue)
    ).fetchone() or (1, 0)
    [held] = query(
        db,
        "SELECT count(*) FROM (SELECT 1 FROM hold WHERE tenant = ? AND resource = ? LIMIT ?)",
        (tenant, queue_lane(queue), parallelism),
    ).fetchone()
    return QueuePlace(bool(paused), max(0, parallelism - held))


def free(db: apsw.Connection, holds: Iterable[tuple[str, str, int]]) -> None:
    """Give back the places of messages in queues, but for those of messages that are alive
    or have a callback that is and that waits in no queue of its own (D24)."""
    db.executemany(
        "DELETE FROM hold WHERE tenant = ? AND resource = ? AND number = ?"
        " AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.number = hold.number)"
        " AND NOT EXISTS (SELECT 1 FROM message m CROSS JOIN delivery d ON d.number = m.number"
        f"  WHERE m.source = hold.number AND d.lane NOT GLOB '{QUEUE}*')",
        holds,
    )


class Head(Struct, frozen=True):
    """One that waits at the head of a lane: when it falls due, where it goes, and by which key."""

    due_ms: int
    host: str
    key: str | None


def head_of(db: apsw.Connection, tenant: str, lane: str, *, holding: int) -> Head | None:
    """The first of those that wait with (or without) a place of the queue."""
    found = query(
        db,
        "SELECT due_ms, host, key FROM delivery"
        " WHERE tenant = ? AND lane = ? AND holding = ? AND token IS NULL"
        " ORDER BY due_ms, number LIMIT 1",
        (tenant, lane, holding),
    ).fetchone()
    return None if found is None else Head(*found)


def head_due_ms(db: apsw.Connection, tenant: str, lane: str, *, holding: int) -> int | None:
    """When the first of them falls due."""
    head = head_of(db, tenant, lane, holding=holding)
    return None if head is None else head.due_ms


def refresh(
    db: apsw.Connection, tenant: str, lane: str, *, now_ms: int, served: bool = False
) -> int | None:
    """Work out when a lane's turn comes; when it is to be looked at, or None.

    A lane that becomes ready joins the line now, as one does that was `served`;
    one that stands in line already keeps its place.  One that waits for a host or a key goes
    on waiting, and keeps its turn, while that is what its next message needs.
    """
    waiting = head_of(db, tenant, lane, holding=0)
    retrying = None
    first = waiting
    queue = queue_of(lane)
    if queue is not None:
        retrying = head_of(db, tenant, lane, holding=1)
        place = queue_place(db, tenant, queue)
        if place.paused:
            first = None
        elif retrying is not None and (
            waiting is None or not place.free or retrying.due_ms <= max(waiting.due_ms, now_ms)
        ):
            first = retrying
        elif not place.free:
            first = None
    if waiting is None and retrying is None:
        db.execute("DELETE FROM lane WHERE tenant = ? AND lane = ?", (tenant, lane))
        return None
    turn_ms = None if first is None else max(first.due_ms, now_ms)
    key = key_of(lane)
    if key is not None and turn_ms is not None:
        opens_ms = flow_keys.opens_ms(db, tenant, key, now_ms=now_ms)
        turn_ms = None if opens_ms is None else max(turn_ms, opens_ms)
    host = for_key = None  # what the lane may wait for
    if first is not None and turn_ms == now_ms:
        host = f"{HOST}{first.host}"
        for_key = None if first.key is None else key_resource(tenant, first.key)
    retry_ms = retrying.due_ms if retrying is not None and retrying.due_ms > now_ms else None
    stands_in_line = "(blocked_on IS NULL OR blocked_on IN (?4, ?7)) AND turn_ms < ?3 AND ?5"
    [blocked_on] = query(
        db,
        "INSERT INTO lane VALUES (?1, ?2, ?3, NULL, ?6) ON CONFLICT (tenant, lane) DO UPDATE SET"
        f" turn_ms = CASE WHEN {stands_in_line} THEN turn_ms ELSE ?3 END,"
        " blocked_on = CASE WHEN blocked_on IN (?4, ?7) THEN blocked_on END, retry_ms = ?6"
        " RETURNING blocked_on",
        (tenant, lane, turn_ms, host, turn_ms == now_ms and not served, retry_ms, for_key),
    ).fetchone()
    return turn_ms if blocked_on is None else retry_ms


def block(db: apsw.Connection, tenant: str, lane: str, *, on: str) -> None:
    """Take a lane that was refreshed just now out of the turns until `reopen` of that
    resource, or until one that holds a place of the queue falls due."""
    db.execute("UPDATE lane SET blocked_on = ? WHERE tenant = ? AND lane = ?", (on, tenant, lane))


def reopen_for_retries(db: apsw.Connection, *, count_max: int, now_ms: int) -> None:
    """Let some lanes come back to the line, at the places that they have kept, that are
    blocked and in which a message that holds a place has fallen due."""
    db.execute(
        "UPDATE lane SET blocked_on = NULL, turn_ms = coalesce(turn_ms, ?) WHERE (tenant, lane) IN"
        " (SELECT tenant, lane FROM lane INDEXED BY lane_retry"
        "  WHERE blocked_on IS NOT NULL AND retry_ms <= ? ORDER BY retry_ms LIMIT ?)",
        (now_ms, now_ms, count_max),
    )


def come_forward(db: apsw.Connection, tenant: str, lane: str, *, turn_ms: int, now_ms: int) -> None:
    """Let a lane that stands in line go before those whose turn came after `turn_ms`."""
    db.execute(
        "UPDATE lane SET turn_ms = ?3 WHERE tenant = ?1 AND lane = ?2"
        " AND blocked_on IS NULL AND turn_ms > ?3 AND turn_ms <= ?4",
        (tenant, lane, turn_ms, now_ms),
    )


def stand_back(db: apsw.Connection, tenant: str, lane: str, *, turn_ms: int) -> None:
    """Let a lane that stands in line go behind those whose turn came before `turn_ms`."""
    db.execute(
        "UPDATE lane SET turn_ms = ? WHERE tenant = ? AND lane = ? AND turn_ms < ?",
        (turn_ms, tenant, lane, turn_ms),
    )


def is_in_line(db: apsw.Connection, tenant: str, lane: str, *, now_ms: int) -> bool:
    """Whether a lane's turn has come, or it would have but for something else."""
    found = query(
        db,
        "SELECT 1 FROM lane WHERE tenant = ? AND lane = ?"
        " AND (turn_ms <= ? OR blocked_on IS NOT NULL)",
        (tenant, lane, now_ms),
    )
    return found.fetchone() is not None


def is_blocked_on(db: apsw.Connection, resource: str) -> bool:
    """Whether a lane waits for a resource."""
    found = query(db, "SELECT 1 FROM lane WHERE blocked_on = ? LIMIT 1", (resource,))
    return found.fetchone() is not None


def first_turn_ms(db: apsw.Connection, resource: str) -> int | None:
    """Since when the lane stands in line that has waited longest for a resource."""
    [turn_ms] = query(
        db, "SELECT min(turn_ms) FROM lane WHERE blocked_on = ?", (resource,)
    ).fetchone()
    return None if turn_ms is None else int(turn_ms)


def reopen(
    db: apsw.Connection, resource: str, *, count_max: int, turn_ms_max: int | None = None
) -> int:
    """Let some lanes that wait for a resource come back to the line, those first that have
    waited longest, at the places that they have kept, which are not after `turn_ms_max`; how
    many came."""
    db.execute(
        "UPDATE lane SET blocked_on = NULL, turn_ms = min(turn_ms, coalesce(?, turn_ms))"
        " WHERE (tenant, lane) IN"
        " (SELECT tenant, lane FROM lane WHERE blocked_on = ? ORDER BY turn_ms LIMIT ?)",
        (turn_ms_max, resource, count_max),
    )
    return db.changes()


def wait(db: apsw.Connection, lanes: dict[tuple[str, str], int]) -> None:
    """Note that something waits in lanes without places of their own: a turn for each,
    which is not before now."""
    db.executemany(
        "INSERT INTO lane VALUES (?, ?, ?, NULL, NULL) ON CONFLICT (tenant, lane)"
        " DO UPDATE SET turn_ms = min(turn_ms, excluded.turn_ms)",
        ((tenant, lane, turn_ms) for (tenant, lane), turn_ms in lanes.items()),
    )


def longest_waiting(db: apsw.Connection, *, now_ms: int, count_max: int) -> list[tuple[str, str]]:
    """The lanes whose turn has come, whoever's they are, longest waiting first."""
    return [
        (tenant, lane)
        for tenant, lane in query(
            db,
            "SELECT tenant, lane FROM lane INDEXED BY lane_due"
            " WHERE blocked_on IS NULL AND turn_ms <= ? ORDER BY turn_ms LIMIT ?",
            (now_ms, count_max),
        )
    ]


def next_tenants(db: apsw.Connection, *, after: str, count_max: int) -> list[tuple[str, int]]:
    """Tenants with open lanes and when the first of these has its turn, in order from
    `after` on, and round again."""
    met: list[tuple[str, int]] = []
    tenant, round_again = after, False
    while len(met) < count_max:
        found = query(
            db,
            "SELECT tenant, turn_ms FROM lane INDEXED BY lane_turn"
            " WHERE tenant > ? AND blocked_on IS NULL AND turn_ms IS NOT NULL"
            " ORDER BY tenant, turn_ms LIMIT 1",
            (tenant,),
        ).fetchone()
        if round_again and (found is None or found[0] > after):
            break
        if found is None:
            tenant, round_again = "", True
        else:
            tenant = found[0]
            met.append((tenant, found[1]))
    return met


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
    turns = query(
        db,
        "SELECT (SELECT turn_ms FROM lane INDEXED BY lane_due"
        "  WHERE blocked_on IS NULL AND turn_ms IS NOT NULL ORDER BY turn_ms LIMIT 1),"
        " (SELECT retry_ms FROM lane INDEXED BY lane_retry"
        "  WHERE blocked_on IS NOT NULL AND retry_ms IS NOT NULL ORDER BY retry_ms LIMIT 1)",
    ).fetchone()
    return min((turn_ms for turn_ms in turns if turn_ms is not None), default=None)


def is_ready(db: apsw.Connection, *, now_ms: int) -> bool:
    """Whether any lane's turn has come."""
    turn_ms = next_turn_ms(db)
    return turn_ms is not None and turn_ms <= now_ms


def join(
    batch: Batch, waiting: dict[tuple[str, str], int], limited: set[tuple[str, str]], *, now_ms: int
) -> None:
    """Let the lanes in which something waits have their turns: those of `waiting` when it
    is due, and the `limited` ones, queues and keys, as they stand."""
    turns = {place: max(due_ms, now_ms) for place, due_ms in waiting.items()}
    wait(batch.db, turns)
    for turn_ms in turns.values():
        batch.someone_waits(turn_ms)
    for tenant, lane in limited:
        batch.someone_waits(refresh(batch.db, tenant, lane, now_ms=now_ms))
