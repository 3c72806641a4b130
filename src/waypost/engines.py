"""The home of engines: what a database URL leads to, and all that is asked of it by that.

| asked                          | SQLite: one file, one server    | PostgreSQL: many nodes     |
| ------------------------------ | ------------------------------- | -------------------------- |
| a store to serve with          | under the file's lock           | under a lease of its own   |
| the clock that goes with it    | the system's                    | the database's             |
| people, for the command line   | through short transactions, also while servers run           |
| its schema, brought up to date | under the file's lock           | by one of all who ask      |
| who shares it                  | nobody                          | the nodes                  |
| a copy while a server runs     | into another file               | by PostgreSQL's own tools  |
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from msgspec import Struct

from waypost.clock import Clock, DatabaseClock, SystemClock
from waypost.domain.errors import Invalid
from waypost.settings import Settings
from waypost.store.migrations import Lag, SchemaTooNew
from waypost.store.postgres import database as postgres
from waypost.store.postgres import nodes
from waypost.store.postgres.people import PeopleDatabase
from waypost.store.postgres.store import open_postgres
from waypost.store.protocol import Node, People, Store
from waypost.store.sqlite import database as sqlite
from waypost.store.sqlite import upkeep
from waypost.store.sqlite.people import PeopleFile
from waypost.store.sqlite.store import MEMORY, SqliteStore

LASTING = (SchemaTooNew, sqlite.Unusable)
"""Ways of a database to be unavailable that do not mend themselves."""


class Opened(Struct, frozen=True):
    """A store to serve with, and the clock that everything around it goes by."""

    store: Store
    clock: Clock


class Engine(Protocol):
    """A database by its URL.  Raises StoreUnavailable where it is away, StoreFull, one of `LASTING`
    where no waiting helps, and Invalid for what it cannot do."""

    def store(self, clock: Clock | None) -> AbstractAsyncContextManager[Opened]:
        """The store, brought up to date.  A `clock` that is given takes the place of its own."""
        ...

    def people(self) -> AbstractAsyncContextManager[People]:
        """Tenants and tokens.  The schema is made where there is none; where it is behind
        people are refused, with Invalid."""
        ...

    async def lag(self) -> Lag:
        """How far its schema is behind.  Nothing is changed."""
        ...

    async def migrate(self) -> None:
        """Bring its schema up to date."""
        ...

    async def erase(self) -> None:
        """Remove the database, which nobody has open; there need not be one."""
        ...

    async def nodes(self) -> list[Node]: ...

    async def backup(self, path: str) -> None:
        """Write a whole, consistent copy to `path`, where there is nothing."""
        ...


def engine_of(settings: Settings) -> Engine:
    return Postgres(settings) if settings.database_is_postgres else Sqlite(settings)


class Sqlite:
    """A file, or memory."""

    def __init__(self, settings: Settings) -> None:
        path = settings.database_path
        self._path = MEMORY if path is None else str(path)
        self._free_bytes_min = settings.free_bytes_min

    @asynccontextmanager
    async def store(self, clock: Clock | None) -> AsyncIterator[Opened]:
        clock = clock or SystemClock()
        store = SqliteStore(self._path, free_bytes_min=self._free_bytes_min, now_ms=clock.now_ms())
        try:
            yield Opened(store, clock)
        finally:
            await store.close()

    @asynccontextmanager
    async def people(self) -> AsyncIterator[People]:
        people = PeopleFile(self._path)
        try:
            yield people
        finally:
            people.close()

    async def lag(self) -> Lag:
        return sqlite.lag(self._path)

    async def migrate(self) -> None:
        lock = sqlite.FileLock(self._path)
        try:
            db = sqlite.connect(self._path)
            try:
                sqlite.migrate(db)
            finally:
                db.close()
        finally:
            lock.close()

    async def erase(self) -> None:
        if self._path != MEMORY:
            sqlite.erase(self._path)

    async def nodes(self) -> list[Node]:
        raise Invalid("a SQLite database has no nodes: one server has it to itself")

    async def backup(self, path: str) -> None:
        upkeep.backup(self._path, path)


class Postgres:
    """A database that many nodes share."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = settings.database

    @asynccontextmanager
    async def store(self, clock: Clock | None) -> AsyncIterator[Opened]:
        settings = self._settings
        database_clock = DatabaseClock()
        with postgres.permitted():
            store = await open_postgres(
                self._url,
                now_ms=None if clock is None else clock.now_ms(),
                on_time=database_clock.on_time,
                name=settings.node_name,
                lease_ms=settings.lease_ms,
                connections_max=settings.database_connections_max,
                statements_cached=settings.database_statements_cached,
                statement_s_max=settings.database_statement_ms_max / 1000,
            )
        try:
            yield Opened(store, clock or database_clock)
        finally:
            await store.close()

    @asynccontextmanager
    async def people(self) -> AsyncIterator[People]:
        yield PeopleDatabase(self._url)

    async def lag(self) -> Lag:
        async with postgres.connection(self._url) as db:
            return await postgres.lag(db)

    async def migrate(self) -> None:
        async with postgres.connection(self._url) as db:
            await postgres.migrate(db)

    async def erase(self) -> None:
        raise Invalid("--fresh removes files only: drop and make the database with psql")

    async def nodes(self) -> list[Node]:
        async with postgres.connection(self._url) as db:
            if not (await postgres.lag(db)).version:
                raise Invalid("the database is empty: `waypost migrate` makes its schema")
            return await nodes.seen(db)

    async def backup(self, path: str) -> None:
        raise Invalid(
            f"{path} was not written: PostgreSQL has its own tools, pg_dump and pg_basebackup; "
            "see docs/operations.md"
        )
