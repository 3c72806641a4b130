"""The home of lanes and holds: whose turn it is, and what they wait for.

A lane's row says when its turn comes and whether a key holds it up; it is worked out
anew from what waits whenever something in the lane has changed.  Who does that has
locked the lane (`Batch.lock`) before.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from msgspec import Struct

from waypost.domain.lanes import HOST, QUEUE, Place, key_lane, key_of, queue_lane, queue_of
from waypost.store.postgres import flow_keys
from waypost.store.postgres.database import Connection, columns
from waypost.store.postgres.writer import Batch

NAME = "tenant || ' ' || lane"
"""A lane by one name: no tenant has a blank in it."""

_HEAD = (
    "SELECT due_ms, host, key FROM delivery d WHERE d.tenant = p.tenant AND d.lane = p.lane"
    " AND {} AND d.token IS NULL ORDER BY due_ms, number LIMIT 1"
)

_OPEN = f"blocked_on IS NULL AND turn_ms IS NOT NULL AND {NAME} NOT IN (SELECT unnest($1::text[]))"
"""Those that are not shut are found by a hash: `<> ALL` would compare each lane with each name."""


def key_resource(tenant: str, name: str) -> str:
    """What lanes that wait for a key are blocked on, but for its own: the key, whoever's it is."""
    return f"{key_lane(name)} of {tenant}"


class LaneState(Struct, frozen=True):
    """How a lane stands: when the first of those falls due that wait without a place of the
    queue (`waiting_ms`) and with one (`retrying_ms`), where these go and by which keys, and the
    queue with its holds.  `turn_ms` is since when it stands in line, or when it will."""

    waiting_ms: int | None
    waiting_host: str | None
    waiting_key: str | None
    retrying_ms: int | None
    retrying_host: str | None
    retrying_key: str | None
    parallelism: int | None
    paused: bool
    held: int
    turn_ms: int | None
    blocked_on: str | None
    in_line: bool

    @property
    def free(self) -> int:
        """The free places of the queue.  What is in use is the count of holds: it cannot
        drift.  A queue that is not there any more has one."""
        return max(0, (1 if self.parallelism is None else self.parallelism) - self.held)

    def next_retry_ms(self, *, now_ms: int) -> int | None:
        """When the first of those in retry falls due, if that is still to come."""
        if self.retrying_ms is None or self.retrying_ms <= now_ms:
            return None
        return self.retrying_ms


async def states(db: Connection, places: Iterable[Place], *, now_ms: int) -> dict[Place, LaneState]:
    """How lanes stand; `in_line` where the turn has come, or would have but for a key."""
    rows = await db.fetch(
        "SELECT p.tenant, p.lane,"
        " w.due_ms, w.host, w.key, r.due_ms, r.host, r.key,"
        " q.parallelism, coalesce(q.paused, false),"
        " CASE WHEN p.queue IS NULL THEN 0 ELSE"
        "  (SELECT count(*) FROM hold h WHERE h.tenant = p.tenant AND h.resource = p.lane) END,"
        " l.turn_ms, l.blocked_on, coalesce(l.turn_ms <= $4 OR l.blocked_on IS NOT NULL, false)"
        " FROM unnest($1::text[], $2::text[], $3::text[]) p (tenant, lane, queue)"
        " LEFT JOIN queue q ON q.tenant = p.tenant AND q.name = p.queue"
        " LEFT JOIN lane l ON l.tenant = p.tenant AND l.lane = p.lane"
        f" LEFT JOIN LATERAL ({_HEAD.format('NOT d.holding')}) w ON true"
        f" LEFT JOIN LATERAL ({_HEAD.format('d.holding')}) r ON true",
        *(tenants_and_lanes := columns(places)),
        [queue_of(lane) for lane in tenants_and_lanes[1]],
        now_ms,
    )
    return {(row[0], row[1]): LaneState(*row[2:]) for row in map(tuple, rows)}


async def free(db: Connection, holds: Iterable[tuple[str, str, int]]) -> None:
    """Give back the places of messages in queues, but for those of messages that are alive
    or have a callback that is and that waits in no queue of its own (D24)."""
    if holds := sorted(holds):
        await db.execute(
            "DELETE FROM hold h USING unnest($1::text[], $2::text[], $3::bigint[])"
            "  n (tenant, resource, number)"
            " WHERE h.tenant = n.tenant AND h.resource = n.resource AND h.number = n.number"
            " AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.number = h.number)"
            " AND NOT EXISTS (SELECT 1 FROM message m JOIN delivery d ON d.number = m.number"
            f"  WHERE m.source = h.number AND NOT starts_with(d.lane, '{QUEUE}'))",
            *zip(*holds, strict=True),
        )


async def refresh(
    batch: Batch, places: Iterable[Place], *, now_ms: int, served: Collection[Place] = ()
) -> dict[Place, LaneState]:
    """Work out when the turns of lanes come; how they stand.

    A lane that becomes ready joins the line now, as one does that was `served`;
    one that stands in line already keeps its place.  One that waits for a key, or that this
    node has no place for, goes on waiting while that is what its next message needs.
    """
    places = set(places)
    if not places:
        return {}
    now_are = await states(batch.db, places, now_ms=now_ms)
    keys = {(tenant, key) for tenant, lane in places if (key := key_of(lane)) is not None}
    opens = {
        name: key.opens_ms(in_use, now_ms=now_ms)
        for name, (key, in_use) in (await flow_keys.states(batch.db, keys)).items()
    }
    empty: list[Place] = []
    turns: list[tuple[str, str, int | None, str | None, int | None]] = []
    for (tenant, lane), state in sorted(now_are.items(), key=_place_of):
        place = (tenant, lane)
        if state.waiting_ms is None and state.retrying_ms is None:
            batch.shut.reconsider([place])
            empty.append(place)
            continue
        due_ms, host, needs = _first(lane, state, now_ms=now_ms)
        turn_ms = None if due_ms is None else max(due_ms, now_ms)
        key = key_of(lane)
        if key is not None and turn_ms is not None:
            opens_ms = opens.get((tenant, key), now_ms)
            turn_ms = None if opens_ms is None else max(turn_ms, opens_ms)
        on = f"{HOST}{host}" if turn_ms == now_ms else None
        retry_ms = state.next_retry_ms(now_ms=now_ms)
        left_out = batch.shut.goes_on_waiting(place, on=on, retry_ms=retry_ms)
        if (
            needs is not None
            and state.blocked_on == key_resource(tenant, needs)
            and turn_ms == now_ms
            and place not in served
        ):
            turns.append((*place, turn_ms, state.blocked_on, retry_ms))
            batch.someone_waits(retry_ms)
        else:
            turns.append((*place, turn_ms, None, None))
            batch.someone_waits(retry_ms if left_out else turn_ms)
    if turns:
        await batch.db.execute(
            "INSERT INTO lane AS l SELECT tenant, lane, turn_ms, blocked_on, retry_ms"
            " FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::bigint[])"
            "  n (tenant, lane, turn_ms, blocked_on, retry_ms)"
            " ON CONFLICT (tenant, lane) DO UPDATE SET turn_ms ="
            "  CASE WHEN l.blocked_on IS NOT DISTINCT FROM excluded.blocked_on"
            "   AND l.turn_ms < excluded.turn_ms AND excluded.turn_ms = $6"
            "   AND l.tenant || ' ' || l.lane <> ALL($7::text[])"
            "   THEN l.turn_ms ELSE excluded.turn_ms END,"
            " blocked_on = excluded.blocked_on, retry_ms = excluded.retry_ms",
            *zip(*turns, strict=True),
            now_ms,
            [f"{tenant} {lane}" for tenant, lane in served],
        )
    if empty:
        await batch.db.execute(
            "DELETE FROM lane l USING unnest($1::text[], $2::text[]) n (tenant, lane)"
            " WHERE l.tenant = n.tenant AND l.lane = n.lane",
            *columns(empty),
        )
    return now_are


def _first(
    lane: str, state: LaneState, *, now_ms: int
) -> tuple[int | None, str | None, str | None]:
    """When the next of a lane falls due that may go, as far as its queue is concerned, where
    it goes, and by which key."""
    waiting = state.waiting_ms, state.waiting_host, state.waiting_key
    retrying = state.retrying_ms, state.retrying_host, state.retrying_key
    if queue_of(lane) is None:
        return waiting
    if state.paused:
        return None, None, None
    if not state.free or state.waiting_ms is None:
        return retrying
    if state.retrying_ms is None or state.retrying_ms > max(state.waiting_ms, now_ms):
        return waiting
    return retrying


def _place_of(item: tuple[Place, Any]) -> Place:
    return item[0]


async def block(db: Connection, blocked: Sequence[tuple[str, str, str, int | None]]) -> None:
    """Take lanes out of the turns until `reopen` of what each is blocked on, or until one that
    holds a place of the queue falls due: tenant, lane, resource and when that is."""
    if blocked:
        await db.execute(
            "UPDATE lane l SET blocked_on = n.resource, retry_ms = n.retry_ms"
            " FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])"
            "  n (tenant, lane, resource, retry_ms)"
            " WHERE l.tenant = n.tenant AND l.lane = n.lane",
            *zip(*blocked, strict=True),
        )


async def due_retries(db: Connection, *, count_max: int, now_ms: int) -> list[Place]:
    """Some lanes that are blocked, and in which a message that holds a place has fallen due."""
    rows = await db.fetch(
        "SELECT tenant, lane FROM lane WHERE blocked_on IS NOT NULL AND retry_ms <= $1"
        " ORDER BY retry_ms LIMIT $2",
        now_ms,
        count_max,
    )
    return [(row[0], row[1]) for row in rows]


async def come_forward(
    db: Connection, turns: Sequence[tuple[str, str, int]], *, now_ms: int
) -> None:
    """Let lanes that stand in line go before those whose turn came after the one of each."""
    if turns:
        await db.execute(
            "UPDATE lane l SET turn_ms = n.turn_ms"
            " FROM unnest($1::text[], $2::text[], $3::bigint[]) n (tenant, lane, turn_ms)"
            " WHERE l.tenant = n.tenant AND l.lane = n.lane"
            " AND l.turn_ms > n.turn_ms AND l.turn_ms <= $4",
            *zip(*turns, strict=True),
            now_ms,
        )


async def stand_back(db: Connection, places: Sequence[Place], *, turn_ms: int) -> None:
    """Let lanes that stand in line go behind those whose turn came before `turn_ms`."""
    if places:
        await db.execute(
            "UPDATE lane l SET turn_ms = $3 FROM unnest($1::text[], $2::text[]) n (tenant, lane)"
            " WHERE l.tenant = n.tenant AND l.lane = n.lane AND l.turn_ms < $3",
            *columns(places),
            turn_ms,
        )


async def blocked_on(db: Connection, resources: Sequence[str]) -> set[str]:
    """Those of the resources that a lane waits for."""
    rows = await db.fetch(
        "SELECT r FROM unnest($1::text[]) r"
        " WHERE EXISTS (SELECT 1 FROM lane l WHERE l.blocked_on = r)",
        resources,
    )
    return {row[0] for row in rows}


async def first_blocked(
    db: Connection, rooms: dict[str, int]
) -> dict[str, list[tuple[str, str, int]]]:
    """Of the lanes that wait for each resource, as many as it has room for: those first that
    have waited longest, each with its turn."""
    found: dict[str, list[tuple[str, str, int]]] = {}
    if rooms:
        rows = await db.fetch(
            "SELECT r.name, b.tenant, b.lane, b.turn_ms"
            " FROM unnest($1::text[], $2::bigint[]) r (name, room)"
            " CROSS JOIN LATERAL (SELECT tenant, lane, turn_ms,"
            "   row_number() OVER (ORDER BY turn_ms, tenant, lane) AS nth FROM lane"
            "  WHERE blocked_on = r.name ORDER BY turn_ms, tenant, lane LIMIT $3) b"
            " WHERE b.nth <= r.room ORDER BY r.name, b.nth",
            list(rooms),
            list(rooms.values()),
            max(rooms.values()),
        )
        for name, *turn in rows:
            found.setdefault(name, []).append(tuple(turn))
    return found


async def reopen(db: Connection, turns: Sequence[tuple[str, str, int]]) -> None:
    """Let lanes that are blocked come back to the line, at the places that they have kept,
    which are not after the time of each."""
    if turns:
        await db.execute(
            "UPDATE lane l SET"
            "  blocked_on = NULL, retry_ms = NULL, turn_ms = least(l.turn_ms, n.turn_ms)"
            " FROM unnest($1::text[], $2::text[], $3::bigint[]) n (tenant, lane, turn_ms)"
            " WHERE l.tenant = n.tenant AND l.lane = n.lane AND l.blocked_on IS NOT NULL",
            *zip(*turns, strict=True),
        )


async def wait(db: Connection, turns: Sequence[tuple[str, str, int]]) -> None:
    """Note that something waits in lanes without places of their own: a turn for each,
    which is not before now."""
    if turns:
        await db.execute(
            "INSERT INTO lane AS l SELECT tenant, lane, turn_ms, NULL, NULL"
            " FROM unnest($1::text[], $2::text[], $3::bigint[]) n (tenant, lane, turn_ms)"
            " ON CONFLICT (tenant, lane)"
            " DO UPDATE SET turn_ms = least(l.turn_ms, excluded.turn_ms)",
            *zip(*sorted(turns), strict=True),
        )


async def longest_waiting(
    db: Connection, shut: Sequence[str], *, now_ms: int, count_max: int
) -> list[Place]:
    """The lanes whose turn has come, whoever's they are, longest waiting first."""
    return [
        (row[0], row[1])
        for row in await db.fetch(
            f"SELECT tenant, lane FROM lane WHERE {_OPEN} AND turn_ms <= $2"
            " ORDER BY turn_ms, tenant, lane LIMIT $3",
            shut,
            now_ms,
            count_max,
        )
    ]


async def ready_tenants(
    db: Connection, shut: Sequence[str], *, after: str, now_ms: int, count_max: int
) -> list[str]:
    """Tenants with lanes whose turn has come, in order from `after` on, and round again."""
    met: list[str] = []
    for bound, until in ((after, None), ("", after)):
        rows = await db.fetch(
            # One step of an index for each tenant, however many lanes it has.
            "WITH RECURSIVE t (tenant) AS ("
            f" (SELECT tenant FROM lane WHERE {_OPEN} AND tenant > $2"
            "   ORDER BY tenant LIMIT 1)"
            " UNION ALL SELECT (SELECT tenant FROM lane WHERE"
            f"  {_OPEN} AND lane.tenant > t.tenant ORDER BY tenant LIMIT 1)"
            "  FROM t WHERE t.tenant IS NOT NULL)"
            " SELECT tenant FROM t WHERE tenant IS NOT NULL"
            " AND ($3::text IS NULL OR tenant <= $3)"
            " AND EXISTS (SELECT 1 FROM lane WHERE lane.tenant = t.tenant"
            f"  AND {_OPEN} AND turn_ms <= $4) LIMIT $5",
            shut,
            bound,
            until,
            now_ms,
            count_max - len(met),
        )
        met += [row[0] for row in rows]
    return met


async def ready_lanes(
    db: Connection, shut: Sequence[str], tenants: Sequence[str], *, now_ms: int, count_max: int
) -> dict[str, list[str]]:
    """Up to `count_max` lanes of each of the tenants whose turn has come, longest waiting
    first."""
    rows = await db.fetch(
        "SELECT t.tenant, r.lane FROM unnest($2::text[]) WITH ORDINALITY t (tenant, nth)"
        " CROSS JOIN LATERAL (SELECT lane, turn_ms FROM lane WHERE lane.tenant = t.tenant"
        f"  AND {_OPEN.replace('tenant ||', 'lane.tenant ||')} AND turn_ms <= $3"
        "  ORDER BY turn_ms, lane LIMIT $4) r ORDER BY t.nth, r.turn_ms, r.lane",
        shut,
        tenants,
        now_ms,
        count_max,
    )
    found: dict[str, list[str]] = {tenant: [] for tenant in tenants}
    for tenant, lane in rows:
        found[tenant].append(lane)
    return found


async def next_turn_ms(db: Connection, shut: Sequence[str]) -> int | None:
    """When the next lane's turn comes; a time that has passed where one is ready."""
    turn_ms: int | None = await db.fetchval(
        f"SELECT least((SELECT turn_ms FROM lane WHERE {_OPEN} ORDER BY turn_ms LIMIT 1),"
        " (SELECT retry_ms FROM lane WHERE blocked_on IS NOT NULL AND retry_ms IS NOT NULL"
        "  ORDER BY retry_ms LIMIT 1))",
        shut,
    )
    return turn_ms


async def join(
    batch: Batch, waiting: dict[Place, int], limited: Iterable[Place], *, now_ms: int
) -> None:
    """Let the lanes in which something waits have their turns: those of `waiting` when it
    is due, and the `limited` ones, queues and keys, as they stand."""
    turns = [(*place, max(due_ms, now_ms)) for place, due_ms in waiting.items()]
    for *_, turn_ms in turns:
        batch.someone_waits(turn_ms)
    await wait(batch.db, turns)
    await refresh(batch, limited, now_ms=now_ms)


def queues(names: Iterable[tuple[str, str]]) -> list[Place]:
    """The lanes of queues."""
    return [(tenant, queue_lane(queue)) for tenant, queue in names]
