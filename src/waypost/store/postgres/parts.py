"""The home of the parts of the log: one for each day, made ahead and dropped whole.

What no part is there for is in the default one, whose rows are removed one by one.  A day
of which that has a few rows takes them over; one of which it has many gets no part until
they are gone.

Making a part locks the default one, and dropping a part locks all of the log.  Neither
waits long for that, for whoever comes later waits behind it: it is tried again the next
time.  Who was about to write to the default one as a part was made for the day is refused
by PostgreSQL, and the writer runs it again.
"""

import re
from datetime import UTC, datetime

import asyncpg

from waypost.store.postgres.database import Connection

DAY_MS = 86_400_000

DAYS_AHEAD = 2

TIMES = range(1_500_000_000_000, 4_100_000_000_000)
"""Of other times, before 2017 or after 2099, there are no parts: it is a clock gone wrong."""

PARTS_MAX = 400
"""Each part has its cost where the log is looked at as a whole.  More days go without."""

MOVED_MAX = 20_000
"""Rows that a part takes over while others wait, some tenths of a second: as many as a busy
node may log in a new database before upkeep first comes by."""

SCANNED_BYTES_MAX = 256 * 1024 * 1024
"""PostgreSQL reads all of the default part as it makes another, and all wait.  It is nearly
empty but where clocks were wrong for long: then there are no new parts."""

LOCK_MS = 100
DDL_MS = 2_000
"""How long the others are made to wait, at most: for a lock, and in all."""

OTHER_TIMES = "event_of_other_times"

_NAME = re.compile(r"event_(\d{4}_\d{2}_\d{2})")


async def days(db: Connection) -> list[int]:
    """When the days begin that have a part, in order."""
    rows = await db.fetch(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = 'event'::regclass"
    )
    matches = (_NAME.fullmatch(row[0]) for row in rows)
    return sorted(_day_of(match[1]) for match in matches if match)


async def make_ahead(db: Connection, parts: list[int], *, now_ms: int) -> bool:
    """Make the next part that is missing, now or soon; whether one was made."""
    today_ms = now_ms - now_ms % DAY_MS
    soon = range(today_ms, today_ms + (DAYS_AHEAD + 1) * DAY_MS, DAY_MS)
    lacking = [day_ms for day_ms in soon if day_ms not in parts and day_ms in TIMES]
    if not lacking or len(parts) >= PARTS_MAX:
        return False
    size = await db.fetchval("SELECT pg_relation_size($1::text::regclass)", OTHER_TIMES)
    if size > SCANNED_BYTES_MAX:
        return False
    for day_ms in lacking:
        rows = await db.fetchval(
            f"SELECT count(*) FROM (SELECT 1 FROM {OTHER_TIMES}"
            "  WHERE time_ms >= $1 AND time_ms < $2 LIMIT $3) r",
            *(day_ms, day_ms + DAY_MS, MOVED_MAX + 1),
        )
        if rows <= MOVED_MAX and await _make(db, day_ms):
            return True
    return False


async def _make(db: Connection, day_ms: int) -> bool:
    """Make a part, if it can be done at once; whether it is there."""
    return await _run(db, making(day_ms))


def making(day_ms: int) -> str:
    """The SQL that makes a part: attached, for a table that is created as a part locks out
    everybody."""
    name, end_ms = _name(day_ms), day_ms + DAY_MS
    return (
        f"CREATE TABLE {name} (LIKE event INCLUDING ALL);"
        f" LOCK TABLE {OTHER_TIMES} IN ACCESS EXCLUSIVE MODE;"
        f" WITH moved AS (DELETE FROM {OTHER_TIMES}"
        f"   WHERE time_ms >= {day_ms} AND time_ms < {end_ms} RETURNING *)"
        f"  INSERT INTO {name} TABLE moved;"
        f" ALTER TABLE event ATTACH PARTITION {name} FOR VALUES FROM ({day_ms}) TO ({end_ms})"
    )


def is_over(day_ms: int, *, until_ms: int) -> bool:
    """Whether nothing of a day is later than `until_ms`."""
    return day_ms + DAY_MS <= until_ms + 1


async def drop(db: Connection, day_ms: int) -> bool:
    """Drop a part; whether it is gone."""
    return await _run(db, f"DROP TABLE {_name(day_ms)}")


async def _run(db: Connection, ddl: str) -> bool:
    """Run it, if it can be done at once."""
    try:
        async with db.transaction():
            await db.execute(
                f"SET LOCAL lock_timeout = {LOCK_MS}; SET LOCAL statement_timeout = {DDL_MS}"
            )
            await db.execute(ddl)
    except (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError):
        return False
    return True


def _name(day_ms: int) -> str:
    return f"event_{datetime.fromtimestamp(day_ms / 1000, UTC):%Y_%m_%d}"


def _day_of(text: str) -> int:
    return int(datetime.strptime(text, "%Y_%m_%d").replace(tzinfo=UTC).timestamp()) * 1000
