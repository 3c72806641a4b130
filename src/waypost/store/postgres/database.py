"""The home of the database: how it is reached, brought up to date, and spoken to."""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from itertools import count
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from waypost.domain.errors import Invalid, StoreFull, StoreUnavailable
from waypost.store.migrations import Lag, Migration, migrations, missing

MIGRATIONS = migrations("waypost.store.postgres")

OLDEST = (15,)
"""The oldest version of PostgreSQL that the engine is tried with."""

CONNECT_S_MAX = 10.0
"""How long a connection may take to be made."""

SILENCE_S_MAX = 10.0

STATEMENT_S_MAX = 30.0
"""How long people wait for a statement."""

MIGRATE_S = 86_400.0
"""How long a migration may take, and others wait for it."""

BY_INDEX = " ".join(
    f"SET {setting} = off;"
    for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit")
)
"""Every statement has an index for each step.  Plans are kept from when a table was nearly empty,
where to read all of it is cheapest, until PostgreSQL counts its rows again, within minutes; with a
million messages each claim would take seconds until then.  (What PostgreSQL does all the same has a
forbidding cost, for which it would compile the statement.)"""

APPLICATION = "waypost"
"""What the sessions of nodes are called."""

Connection = asyncpg.Connection | PoolConnectionProxy

COLUMNS: dict[str, tuple[str, ...]] = {
    "message": ("text", "text", "bigint", "bytea", "bigint", "bigint"),
    "body": ("bigint", "bytea"),
    "delivery": (
        *("bigint", "text", "text", "text", "text", "bigint", "bigint", "bigint"),
        *("boolean", "integer", "integer", "boolean", "text"),
    ),
    "hold": ("text", "text", "bigint"),
    "event": ("text", "bigint", "bigint", "text", "text", "bytea"),
    "dead_letter": ("text", "bigint", "bigint", "text", "bytea"),
}
"""The types of the columns of the tables that are written many rows at a time."""

LOST = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what is left of a connection that broke just now
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # an administrator, a shutdown, a start, a timeout
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalServerError,
)
"""Faults that are nobody's: the database is away, or is not what it should be."""


def problem_of(fault: BaseException, doing: str) -> StoreFull | StoreUnavailable | None:
    """What callers are told of a fault that is nobody's; None where it is somebody's."""
    if isinstance(fault, asyncpg.DiskFullError):
        return StoreFull(f"cannot {doing}: the disk is full")
    if isinstance(fault, LOST):
        return StoreUnavailable(f"cannot {doing}: {type(fault).__name__}: {fault}")
    return None


@contextmanager
def as_problems(doing: str) -> Iterator[None]:
    """Turns what asyncpg raises into problems: StoreFull, or StoreUnavailable."""
    try:
        yield
    except Exception as fault:
        problem = problem_of(fault, doing)
        if problem is None:
            raise
        raise problem from fault


@contextmanager
def _reaching() -> Iterator[None]:
    """Tells a database that is away (StoreUnavailable) from one that there is no way to by
    this URL: a wrong name or password (Invalid)."""
    try:
        with as_problems("reach the database"):
            try:
                yield
            except asyncpg.ClientConfigurationError as fault:
                raise Invalid(f"database: {fault}") from None
    except (ValueError, asyncpg.PostgresError) as fault:
        raise Invalid(f"database: {fault}") from None


async def connect(
    url: str,
    *,
    connections_max: int,
    statements_cached: int,
    statement_s_max: float,
    silence_s_max: float = SILENCE_S_MAX,
) -> "asyncpg.Pool[Any]":
    """Connections to a database, of which one is open.

    A transaction of which nothing was heard for `silence_s_max` is ended by the database, for
    others may wait for its locks (but see `nodes.end_the_silent`).  Raises StoreUnavailable,
    and Invalid for a URL that leads to no database.
    """

    async def init(db: Connection) -> None:
        silence_ms_max = round(silence_s_max * 1000)
        await db.execute(f"{BY_INDEX} SET idle_in_transaction_session_timeout = {silence_ms_max}")

    with _reaching():
        pool = await asyncpg.create_pool(
            url,
            min_size=0,  # or it would try again and again while the database is away
            max_size=connections_max,
            timeout=CONNECT_S_MAX,
            statement_cache_size=statements_cached,
            command_timeout=statement_s_max,
            server_settings={"application_name": APPLICATION},
            init=init,
            reset=_keep,
        )
        await pool.release(await pool.acquire())
        return pool


async def _keep(_db: Connection) -> None:
    """Nobody changes a session: to reset it would cost each transaction a round trip."""


@asynccontextmanager
async def lent(pool: "asyncpg.Pool[Any]") -> AsyncIterator[Connection]:
    """A connection of the pool.  What was done with it holds, also where it breaks when it is
    given back.

    Raises StoreUnavailable where there is none to be had, for whatever reason: a database
    that let us in once will again, when it has been moved or restored.
    """
    with as_problems("reach the database"):
        try:
            db = await pool.acquire()
        except asyncpg.PostgresError as fault:
            raise StoreUnavailable(f"cannot reach the database: {fault}") from fault
    try:
        yield db
    finally:
        with suppress(*LOST):
            await pool.release(db)


@contextmanager
def permitted() -> Iterator[None]:
    """Tells that the role lacks a right (Invalid), which its owner can give it.

    Where it may not even look into a schema, PostgreSQL says that there is none.
    """
    try:
        yield
    except (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidSchemaNameError) as fault:
        raise Invalid(
            f"database: {fault}: the URL's role must own Waypost's tables and have USAGE and "
            "CREATE on their schema, as the owner of the database has"
        ) from fault


@asynccontextmanager
async def connection(url: str) -> AsyncIterator[Connection]:
    """A connection for what people do by hand.

    Raises as `connect` does, and Invalid where the role lacks a right.
    """
    with _reaching():
        db = await asyncpg.connect(
            url,
            timeout=CONNECT_S_MAX,
            statement_cache_size=0,
            command_timeout=STATEMENT_S_MAX,
        )
    try:
        with as_problems("use the database"), permitted():
            yield db
    finally:
        with suppress(*LOST):
            await db.close(timeout=CONNECT_S_MAX)


async def check(db: Connection) -> None:
    """Whether the database is one that we know, and keeps what it has acknowledged.  Raises
    Invalid."""
    if db.get_server_version() < OLDEST:
        raise Invalid(f"database: PostgreSQL is older than version {OLDEST[0]}")
    if await db.fetchval("SHOW synchronous_commit") == "off":
        raise Invalid("database: synchronous_commit is off, so that messages could be lost")


async def lag(db: Connection, *, known: Sequence[Migration] = MIGRATIONS) -> Lag:
    """How far the schema is behind the migrations that are `known`.  Raises SchemaTooNew."""
    version, works_with = 0, 0
    if await db.fetchval("SELECT to_regclass('schema_version') IS NOT NULL"):
        [(version, works_with)] = await db.fetch(
            "SELECT coalesce(max(number), 0), coalesce(max(works_with), 0) FROM schema_version"
        )
    return Lag(version, missing(known, version, works_with=works_with))


async def migrate(db: Connection, *, known: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the schema up to date, one node at a time, in one transaction.

    Raises SchemaTooNew, and then nothing was changed.
    """
    if not (await lag(db, known=known)).missing:
        return
    # Of two who make it at the same moment one waits for the other, and then fails.
    with suppress(
        asyncpg.UniqueViolationError, asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError
    ):
        async with db.transaction():
            await db.execute(
                "CREATE TABLE IF NOT EXISTS schema_version"
                " (number integer NOT NULL, works_with integer NOT NULL)"
            )
    async with db.transaction():
        await db.execute("LOCK TABLE schema_version IN ACCESS EXCLUSIVE MODE", timeout=MIGRATE_S)
        for migration in (await lag(db, known=known)).missing:
            await db.execute(migration.sql, timeout=MIGRATE_S)
            await db.execute(
                "INSERT INTO schema_version VALUES ($1, $2)",
                *(migration.number, migration.works_with),
            )


async def make(db: Connection, *, known: Sequence[Migration] = MIGRATIONS) -> None:
    """Make the schema where there is none.

    Raises Invalid where it is behind, and SchemaTooNew; then nothing was changed.
    """
    (await lag(db, known=known)).refuse_behind()
    await migrate(db, known=known)


async def insert(
    db: Connection, *, ended: Sequence[int] = (), **tables: Sequence[tuple[Any, ...]]
) -> None:
    """Insert rows into tables, and remove the deliveries that have `ended`, with one statement,
    however many they are."""
    rows_of = {table: rows for table, rows in tables.items() if rows}
    values: list[Sequence[Any]] = [
        column for rows in rows_of.values() for column in zip(*rows, strict=True)
    ]
    if ended:
        values.insert(0, ended)
    if values:
        await db.execute(_insert_sql(tuple(rows_of), ends=bool(ended)), *values)


@cache
def _insert_sql(tables: tuple[str, ...], *, ends: bool) -> str:
    number = count(1)
    inserts = []
    if ends:
        inserts.append(f"DELETE FROM delivery WHERE number = ANY(${next(number)}::bigint[])")
    for table in tables:
        arrays = ", ".join(f"${next(number)}::{kind}[]" for kind in COLUMNS[table])
        inserts.append(f"INSERT INTO {table} SELECT * FROM unnest({arrays})")
    *others, last = inserts
    named = ", ".join(f"i{n} AS ({sql})" for n, sql in enumerate(others))
    return f"WITH {named} {last}" if named else last


def columns(places: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Pairs, in order, as two arrays of which a statement makes rows again."""
    ordered = sorted(places)
    return [one for one, _ in ordered], [other for _, other in ordered]


def is_text(text: str) -> bool:
    """Whether PostgreSQL can be sent it: there is no text with a NUL, and so no such name."""
    return "\0" not in text


@asynccontextmanager
async def snapshot(pool: asyncpg.Pool, doing: str) -> AsyncIterator[Connection]:
    """A connection that reads what is committed now, and nothing that comes later.

    Raises StoreUnavailable when the database is away.
    """
    with as_problems(doing):
        async with (
            lent(pool) as db,
            db.transaction(isolation="repeatable_read", readonly=True),
        ):
            yield db
