"""The home of a database into which a store is copied, in one transaction from the first look
to the last check.

So nobody ever sees half of it: a server that is started meanwhile waits and gives up, and
whatever interrupts the copy leaves the database as it was.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg

from waypost.domain.errors import Invalid, StoreUnavailable
from waypost.store.copying import TABLES, Row, Table
from waypost.store.postgres import parts
from waypost.store.postgres.database import (
    Connection,
    as_problems,
    check,
    connect,
    lent,
    migrate,
)
from waypost.store.postgres.writer import BLOCK_BITS, NOW_MS

STATEMENT_S_MAX = 3_600.0
"""Each statement writes a chunk, or reads some rows: one that takes so long has no end."""

LOCK_S = 10
"""How long whoever else is at work in the database may take to finish: a copy that was killed
is gone as soon as the database notices."""

PREFETCH_ROWS = 1_000

COPIED = tuple(table.name for table in TABLES)

OWN = ("node", "people_version", "schema_version", "upkeep")
"""The tables that are not copied: a new database has rows in some of them."""

_TIMEOUTS = (
    "SELECT set_config(name, CASE name WHEN 'lock_timeout' THEN $1 ELSE '0' END, true)"
    " FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout',"
    " 'idle_in_transaction_session_timeout', 'transaction_timeout')"
)

_OTHERS = (
    "SELECT n.nspname || '.' || c.relname FROM pg_class c"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition"
    " AND n.nspname <> 'information_schema' AND NOT starts_with(n.nspname, 'pg_')"
    " AND NOT (n.nspname = current_schema() AND c.relname = ANY($1::text[]))"
    " AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass"
    "  AND d.objid = c.oid AND d.deptype = 'e') ORDER BY 1 LIMIT 3"
)
"""Tables that are not Waypost's; those of extensions are nobody's."""


@asynccontextmanager
async def open_target(url: str, *, number_max: int) -> AsyncIterator["PostgresTarget"]:
    """An empty database, which keeps what is written into it when the block ends well.  It gives
    numbers that are larger than `number_max`.

    Raises Invalid where it is not empty, or not to be reached by that URL, StoreFull and
    StoreUnavailable; then nothing was changed.
    """
    pool = await connect(
        url, connections_max=1, statements_cached=0, statement_s_max=STATEMENT_S_MAX
    )
    try:
        with _as_problems():
            async with lent(pool) as db:
                transaction = db.transaction(isolation="read_committed")
                await transaction.start()
                try:
                    await _begin(db)
                    yield PostgresTarget(db, days=set(await parts.days(db)))
                    await _end(db, number_max)
                except BaseException:
                    if not db.is_closed():
                        await transaction.rollback()
                    raise
                await transaction.commit()
    finally:
        pool.terminate()


class PostgresTarget:
    """A database of which nobody sees anything until it is whole; see `Target`."""

    def __init__(self, db: Connection, *, days: set[int]) -> None:
        self._db = db
        self._days = days

    async def write(self, table: Table, rows: Sequence[Row]) -> None:
        if table.name == "event":
            await self._make_parts(rows)
        try:
            await self._db.copy_records_to_table(table.name, records=rows, columns=table.columns)
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as fault:
            raise Invalid(f"the table {table.name} cannot be copied: {fault}") from fault

    async def _make_parts(self, events: Sequence[Row]) -> None:
        """Make the parts of the log that these entries go to, so that they can be dropped whole;
        but for the few that upkeep makes for the days to come."""
        room = parts.PARTS_MAX - parts.DAYS_AHEAD - 1
        met = {time_ms - time_ms % parts.DAY_MS for _, time_ms, *_ in events}
        for day_ms in sorted(met - self._days):
            if day_ms in parts.TIMES and len(self._days) < room:
                await self._db.execute(parts.making(day_ms))
                self._days.add(day_ms)

    async def hashed_rows(self, table: Table) -> AsyncIterator[Row]:
        # What was just written is not known to the planner; servers need that too.
        await self._db.execute(f"ANALYZE {table.name}")
        columns = ", ".join(
            f"sha256({name})" if name in table.blobs else name for name in table.columns
        )
        async for row in self._db.cursor(
            f"SELECT {columns} FROM {table.name} ORDER BY {table.key}", prefetch=PREFETCH_ROWS
        ):
            yield tuple(row)


async def _begin(db: Connection) -> None:
    """See that the database is empty, and keep others out of it.  Raises Invalid."""
    await db.execute(_TIMEOUTS, f"{LOCK_S}s")
    await check(db)
    others = await db.fetch(_OTHERS, [*COPIED, *OWN])
    if others:
        raise Invalid(f"the target is not empty: it has a table {others[0][0]}")
    with _others_kept_out():
        await migrate(db)
        await db.execute(f"LOCK TABLE {', '.join((*COPIED, *OWN))} IN EXCLUSIVE MODE")
    if await db.fetchval(
        f"SELECT EXISTS (SELECT 1 FROM node, {NOW_MS} n (now_ms) WHERE until_ms > n.now_ms)"
    ):
        raise Invalid("the target is in use: a server runs on it")
    for table in COPIED:
        if await db.fetchval(f"SELECT EXISTS (SELECT 1 FROM {table})"):
            raise Invalid(f"the target is not empty: there are rows in its table {table}")
    # A server that ran on it when it was empty may have looked further than the copied log.
    await db.execute("UPDATE upkeep SET looked_ms = -1, until_ms = NULL")


@contextmanager
def _others_kept_out() -> Iterator[None]:
    try:
        yield
    except (
        asyncpg.LockNotAvailableError,
        asyncpg.DeadlockDetectedError,
        asyncpg.UniqueViolationError,  # another copy has made the tables meanwhile
        asyncpg.DuplicateTableError,
    ):
        raise Invalid("the target is in use: a server or another copy is at work in it") from None


async def _end(db: Connection, number_max: int) -> None:
    """Let numbers go on after those of the source, and people be seen."""
    await db.execute("SELECT setval('number_block', $1)", -(-number_max >> BLOCK_BITS))
    await db.execute("UPDATE people_version SET count = count + 1")


@contextmanager
def _as_problems() -> Iterator[Any]:
    try:
        with as_problems("copy into the database"):
            yield
    except asyncpg.PostgresError as fault:
        raise StoreUnavailable(f"cannot copy into the database: {fault}") from fault
