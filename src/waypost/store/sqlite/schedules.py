"""The home of schedules as they are kept: one row each, their facts one document, their body
beside it."""

import apsw

from waypost.domain.errors import LimitReached, StoreFull, Unauthenticated
from waypost.domain.message import Logged
from waypost.domain.schedules import Schedule
from waypost.store import quotas
from waypost.store.calls import Add, Firing, PutOff, ScheduleChange
from waypost.store.protocol import DueSchedules, ScheduleSeen
from waypost.store.schedules import encode, read
from waypost.store.sqlite.adding import Adding
from waypost.store.sqlite.database import query
from waypost.store.sqlite.writer import Batch

FACTS_AND_BODY = (
    "s.facts, (SELECT bytes FROM schedule_body b WHERE b.tenant = s.tenant AND b.id = s.id)"
)


def one(db: apsw.Connection, tenant: str, schedule_id: str) -> ScheduleSeen | None:
    """The schedule of that id; see `Reader.schedule`."""
    found = query(
        db,
        f"SELECT {FACTS_AND_BODY} FROM schedule s WHERE tenant = ? AND id = ?",
        (tenant, schedule_id),
    ).fetchone()
    schedule = None if found is None else read(found[0], tenant, schedule_id)
    if schedule is None:
        return None
    return ScheduleSeen(schedule=schedule, body=found[1] or b"", run=_run(db, schedule))


def all_of(db: apsw.Connection, tenant: str, *, bytes_max: int) -> list[ScheduleSeen]:
    """All schedules of a tenant, by id; see `Reader.schedules`."""
    seen = []
    rows = query(
        db,
        "SELECT s.id, s.facts, (SELECT length(bytes) FROM schedule_body b"
        " WHERE b.tenant = s.tenant AND b.id = s.id)"
        " FROM schedule s WHERE tenant = ? ORDER BY id",
        (tenant,),
    )
    for schedule_id, facts, size in rows:
        schedule, body = read(facts, tenant, schedule_id), b""
        if schedule is None:
            continue
        if size is not None and size <= bytes_max:
            bytes_max -= size
            [body] = query(
                db,
                "SELECT bytes FROM schedule_body WHERE tenant = ? AND id = ?",
                (tenant, schedule.id),
            ).fetchone()
        seen.append(ScheduleSeen(schedule=schedule, body=body, run=_run(db, schedule)))
    return seen


def due(db: apsw.Connection, *, now_ms: int, count_max: int, bytes_max: int) -> DueSchedules:
    """The schedules that are due, the longest due first; see `Reader.due_schedules`."""
    found: list[tuple[Schedule, bytes]] = []
    unreadable: list[tuple[str, str]] = []
    rows = query(
        db,
        f"SELECT s.tenant, s.id, {FACTS_AND_BODY}"
        " FROM schedule s WHERE next_ms <= ? ORDER BY next_ms LIMIT ?",
        (now_ms, count_max),
    )
    for tenant, schedule_id, facts, body in rows:
        schedule = read(facts, tenant, schedule_id)
        if schedule is None:
            unreadable.append((tenant, schedule_id))
            continue
        bytes_max -= len(body or b"")
        if found and bytes_max < 0:
            break
        found.append((schedule, body or b""))
    following = query(
        db,
        "SELECT next_ms FROM schedule WHERE next_ms IS NOT NULL ORDER BY next_ms LIMIT 1 OFFSET ?",
        (len(found) + len(unreadable),),
    ).fetchone()
    return DueSchedules(
        due=found,
        unreadable=unreadable,
        next_ms=None if following is None else following[0],
    )


def change(
    batch: Batch, calls: list[ScheduleChange], *, refusing: str | None
) -> list[Schedule | Exception | None]:
    """Change schedules; see `Schedules.change_schedule`.  `refusing`: why none may grow.

    A caller may have been let in before the tenant was revoked, and be here only now.
    """
    return [_change(batch.db, call, refusing) for call in calls]


def _change(
    db: apsw.Connection, call: ScheduleChange, refusing: str | None
) -> Schedule | Exception | None:
    revoked = "SELECT 1 FROM tenant WHERE id = ? AND revoked"
    if query(db, revoked, (call.tenant,)).fetchone() is not None:
        return Unauthenticated(f"the tenant {call.tenant} was revoked")
    place = (call.tenant, call.id)
    found = query(db, "SELECT facts FROM schedule WHERE tenant = ? AND id = ?", place).fetchone()
    before = None if found is None else read(found[0], *place)
    try:
        after = call.change(before)
    except Exception as fault:  # noqa: BLE001 -- the caller's, and raised to them
        return fault
    if after is None:
        db.execute("DELETE FROM schedule WHERE tenant = ? AND id = ?", place)
        db.execute("DELETE FROM schedule_body WHERE tenant = ? AND id = ?", place)
        return None
    if refusing is not None and (found is None or call.body):
        return StoreFull(refusing)
    if found is None and call.count_max <= _count(db, call.tenant, call.count_max):
        return quotas.exceeded("maxSchedules", call.count_max)
    assert (after.tenant, after.id) == place
    if after != before:
        row = (*place, after.next_ms, encode(after))
        db.execute("INSERT OR REPLACE INTO schedule VALUES (?, ?, ?, ?)", row)
    if call.body is not None:
        db.execute("DELETE FROM schedule_body WHERE tenant = ? AND id = ?", place)
        if call.body:
            db.execute("INSERT INTO schedule_body VALUES (?, ?, ?)", (*place, call.body))
    return after


def _count(db: apsw.Connection, tenant: str, count_max: int) -> int:
    [count] = query(
        db,
        "SELECT count(*) FROM (SELECT 1 FROM schedule WHERE tenant = ? LIMIT ?)",
        (tenant, count_max),
    ).fetchone()
    return int(count)


def put_off(batch: Batch, calls: list[PutOff]) -> list[None]:
    """Put schedules off; see `Schedules.put_off_schedule`."""
    for call in calls:
        batch.db.execute(
            "UPDATE schedule SET next_ms = ? WHERE tenant = ? AND id = ? AND next_ms <= ?",
            (call.until_ms, call.tenant, call.id, call.now_ms),
        )
    return [None for _ in calls]


def fire(
    batch: Batch, calls: list[Firing], *, refusing: str | None
) -> list[bool | StoreFull | LimitReached]:
    """Fire schedules; see `Schedules.fire`.  `refusing`: why no message may be added, or None."""
    adding = Adding(batch, calls[0].births, now_ms=max(call.now_ms for call in calls))
    results = [_fire(batch.db, adding, call, refusing) for call in calls]
    adding.write()
    return results


def _fire(
    db: apsw.Connection, adding: Adding, call: Firing, refusing: str | None
) -> bool | StoreFull | LimitReached:
    before, after = call.before, call.after
    if refusing is not None and call.drafts:
        return StoreFull(refusing)
    place = (before.tenant, before.id)
    # The facts say what is compared: a schedule that was put off is due later than they tell.
    found = query(
        db,
        "SELECT facts FROM schedule WHERE tenant = ? AND id = ? AND next_ms IS NOT NULL",
        place,
    ).fetchone()
    if found is None or read(found[0], *place) != before:
        return False
    add = Add(call.drafts, call.births, call.queue_count_max, call.now_ms)
    if isinstance(accepted := adding.accept(add), LimitReached):
        return accepted
    db.execute(
        "UPDATE schedule SET next_ms = ?, facts = ? WHERE tenant = ? AND id = ?",
        (after.next_ms, encode(after), *place),
    )
    return True


def _run(db: apsw.Connection, schedule: Schedule) -> dict[str, Logged]:
    """The last word of the log on each message of the latest run, for as long as it is kept."""
    last_words = {}
    for message_id in schedule.run:
        found = query(
            db,
            "SELECT state FROM event INDEXED BY event_message WHERE tenant = ? AND message_id = ?"
            " ORDER BY time_ms DESC, number DESC LIMIT 1",
            (schedule.tenant, message_id),
        ).fetchone()
        if found is not None:
            last_words[message_id] = Logged(found[0])
    return last_words
