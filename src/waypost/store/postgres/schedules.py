"""The home of schedules as they are kept: one row each, with the body in it."""

from collections.abc import Iterable, Sequence

from waypost.domain.errors import LimitReached, Unauthenticated
from waypost.domain.lanes import Place
from waypost.domain.message import Logged
from waypost.domain.schedules import Schedule
from waypost.store import quotas
from waypost.store.calls import Add, Firing, PutOff, ScheduleChange
from waypost.store.postgres.adding import Adding
from waypost.store.postgres.database import Connection, columns, is_text
from waypost.store.postgres.writer import Batch, one_by_one
from waypost.store.protocol import DueSchedules, ScheduleSeen
from waypost.store.schedules import encode, read


async def one(db: Connection, tenant: str, schedule_id: str) -> ScheduleSeen | None:
    """The schedule of that id; see `Reader.schedule`."""
    if not is_text(schedule_id):
        return None
    found = await db.fetchrow(
        "SELECT facts, body FROM schedule WHERE tenant = $1 AND id = $2", tenant, schedule_id
    )
    schedule = None if found is None else read(found[0], tenant, schedule_id)
    if found is None or schedule is None:
        return None
    last_words = await _last_words(db, tenant, schedule.run)
    return _seen(schedule, found[1], last_words)


async def all_of(db: Connection, tenant: str, *, bytes_max: int) -> list[ScheduleSeen]:
    """All schedules of a tenant, by id; see `Reader.schedules`."""
    rows = await db.fetch(
        "SELECT id, facts, octet_length(body) FROM schedule WHERE tenant = $1 ORDER BY id", tenant
    )
    found: list[Schedule] = []
    with_body: list[Place] = []
    for schedule_id, facts, size in rows:
        schedule = read(facts, tenant, schedule_id)
        if schedule is None:
            continue
        found.append(schedule)
        if size <= bytes_max:
            bytes_max -= size
            with_body.append((tenant, schedule_id))
    bodies = await _bodies(db, with_body)
    last_words = await _last_words(db, tenant, [of for schedule in found for of in schedule.run])
    return [_seen(of, bodies.get((tenant, of.id), b""), last_words) for of in found]


def _seen(schedule: Schedule, body: bytes, last_words: dict[str, Logged]) -> ScheduleSeen:
    run = {of: last_words[of] for of in schedule.run if of in last_words}
    return ScheduleSeen(schedule=schedule, body=body, run=run)


async def _last_words(db: Connection, tenant: str, ids: Sequence[str]) -> dict[str, Logged]:
    """The last word of the log on each of the messages that are still kept."""
    if not ids:
        return {}
    rows = await db.fetch(
        "SELECT m.id, (SELECT state FROM event e"
        "  WHERE e.tenant = m.tenant AND e.message_id = m.id"
        "  ORDER BY time_ms DESC, number DESC LIMIT 1)"
        " FROM message m WHERE tenant = $1 AND id = ANY($2::text[])",
        tenant,
        ids,
    )
    return {row[0]: Logged(row[1]) for row in rows if row[1] is not None}


async def _bodies(db: Connection, places: Iterable[Place]) -> dict[Place, bytes]:
    rows = await db.fetch(
        "SELECT s.tenant, s.id, s.body FROM unnest($1::text[], $2::text[]) n (tenant, id)"
        " JOIN schedule s ON s.tenant = n.tenant AND s.id = n.id",
        *columns(places),
    )
    return {(row[0], row[1]): row[2] for row in rows}


async def due(db: Connection, *, now_ms: int, count_max: int, bytes_max: int) -> DueSchedules:
    """The schedules that are due, the longest due first; see `Reader.due_schedules`."""
    found: list[Schedule] = []
    unreadable: list[Place] = []
    rows = await db.fetch(
        "SELECT tenant, id, facts, octet_length(body) FROM schedule"
        " WHERE next_ms <= $1 ORDER BY next_ms LIMIT $2",
        now_ms,
        count_max,
    )
    for tenant, schedule_id, facts, size in rows:
        schedule = read(facts, tenant, schedule_id)
        if schedule is None:
            unreadable.append((tenant, schedule_id))
            continue
        bytes_max -= size
        if found and bytes_max < 0:
            break
        found.append(schedule)
    next_ms = await db.fetchval(
        "SELECT next_ms FROM schedule WHERE next_ms IS NOT NULL ORDER BY next_ms LIMIT 1 OFFSET $1",
        len(found) + len(unreadable),
    )
    bodies = await _bodies(db, ((of.tenant, of.id) for of in found))
    return DueSchedules(
        due=[(of, bodies[of.tenant, of.id]) for of in found],
        unreadable=unreadable,
        next_ms=next_ms,
    )


async def change(batch: Batch, calls: list[ScheduleChange]) -> list[Schedule | Exception | None]:
    """Change schedules; see `Schedules.change_schedule`.

    A caller may have been let in before the tenant was revoked, and be here only now.
    """
    revoked = await _revoked(batch.db, {call.tenant for call in calls})

    async def change_of_live(batch: Batch, call: ScheduleChange) -> Schedule | Exception | None:
        if call.tenant in revoked:
            return Unauthenticated(f"the tenant {call.tenant} was revoked")
        return await _change(batch, call)

    return await one_by_one(batch, calls, lambda call: (call.tenant, call.id), change_of_live)


async def _revoked(db: Connection, tenants: Iterable[str]) -> set[str]:
    """Those of the tenants who were revoked.  Nobody revokes one until this transaction ends.

    Whoever revokes has the tenant before the schedules, so this comes before theirs too.
    """
    rows = await db.fetch(
        "SELECT id, revoked FROM tenant WHERE id = ANY($1::text[]) ORDER BY id FOR SHARE",
        list(tenants),
    )
    return {row[0] for row in rows if row[1]}


async def _change(batch: Batch, call: ScheduleChange) -> Schedule | Exception | None:
    db, place = batch.db, (call.tenant, call.id)
    facts = None
    if is_text(call.id):
        facts = await db.fetchval(
            "SELECT facts FROM schedule WHERE tenant = $1 AND id = $2 FOR UPDATE", *place
        )
    before = None if facts is None else read(facts, *place)
    try:
        after = call.change(before)
    except Exception as fault:  # noqa: BLE001 -- the caller's, and raised to them
        return fault
    if after is None:
        if facts is not None:
            await db.execute("DELETE FROM schedule WHERE tenant = $1 AND id = $2", *place)
        return None
    assert (after.tenant, after.id) == place
    if facts is None:
        if call.count_max <= await _count(db, call.tenant, call.count_max):
            return quotas.exceeded("maxSchedules", call.count_max)
        await db.execute(
            "INSERT INTO schedule VALUES ($1, $2, $3, $4, $5)",
            *(*place, after.next_ms, encode(after), call.body or b""),
        )
        return after
    if after != before:
        await db.execute(_MOVE_ON, *place, after.next_ms, encode(after))
    if call.body is not None:
        await db.execute(
            "UPDATE schedule SET body = $3 WHERE tenant = $1 AND id = $2", *place, call.body
        )
    return after


_MOVE_ON = "UPDATE schedule SET next_ms = $3, facts = $4 WHERE tenant = $1 AND id = $2"


async def _count(db: Connection, tenant: str, count_max: int) -> int:
    count: int = await db.fetchval(
        "SELECT count(*) FROM (SELECT 1 FROM schedule WHERE tenant = $1 LIMIT $2) s",
        tenant,
        count_max,
    )
    return count


async def put_off(batch: Batch, calls: list[PutOff]) -> list[None]:
    """Put schedules off; see `Schedules.put_off_schedule`."""
    return await one_by_one(batch, calls, lambda call: (call.tenant, call.id), _put_off)


async def _put_off(batch: Batch, call: PutOff) -> None:
    await batch.db.execute(
        "UPDATE schedule SET next_ms = $3 WHERE tenant = $1 AND id = $2 AND next_ms <= $4",
        *(call.tenant, call.id, call.until_ms, call.now_ms),
    )


async def fire(batch: Batch, calls: list[Firing]) -> list[bool | LimitReached]:
    """Fire schedules; see `Schedules.fire`.

    Their rows are locked, before all else that firing locks: so a fire time runs on one
    node, once.
    """
    due = await _as_before(batch.db, calls)
    if not due:
        return [False] * len(calls)
    adding = Adding(batch, calls[0].births, now_ms=max(call.now_ms for call in calls))
    adds = [Add(call.drafts, call.births, call.queue_count_max, call.now_ms) for call in due]
    accepted = await adding.accept(adds)
    await adding.write()
    fired: dict[int, bool | LimitReached] = {}
    for call, of_call in zip(due, accepted, strict=True):
        if isinstance(of_call, LimitReached):
            fired[id(call)] = of_call
            continue
        after = call.after
        await batch.db.execute(_MOVE_ON, after.tenant, after.id, after.next_ms, encode(after))
        fired[id(call)] = True
    return [fired.get(id(call), False) for call in calls]


async def _as_before(db: Connection, calls: Sequence[Firing]) -> list[Firing]:
    """Those of the calls whose schedules are as they say, the first for each of them."""
    rows = await db.fetch(
        "SELECT s.tenant, s.id, s.facts FROM unnest($1::text[], $2::text[]) n (tenant, id)"
        # The facts say what is compared: a schedule that was put off is due later than they tell.
        " JOIN schedule s ON s.tenant = n.tenant AND s.id = n.id AND s.next_ms IS NOT NULL"
        " ORDER BY s.tenant, s.id FOR UPDATE OF s",
        *columns({(call.before.tenant, call.before.id) for call in calls}),
    )
    now_are = {(row[0], row[1]): read(row[2], row[0], row[1]) for row in rows}
    due = []
    for call in calls:
        place = (call.before.tenant, call.before.id)
        if now_are.get(place) == call.before:
            due.append(call)
            del now_are[place]
    return due
