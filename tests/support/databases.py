"""The home of empty databases: each test has one that nobody else has, brought up to date.

A database that has been used is emptied rather than made anew.  Measured, in milliseconds:

| how                                 |     |
| ----------------------------------- | --- |
| CREATE DATABASE, STRATEGY WAL_LOG   | 64  |
| CREATE DATABASE, STRATEGY FILE_COPY | 20  |
| TRUNCATE                            | 19  |
| DELETE                              | 0.4 |
| DELETE, by a connection of its own  | 8   |
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg

from tests.support.postgres import Server
from waypost.store.postgres.database import migrate

DELETED_BYTES_MAX = 64 * 1024
"""A larger table is truncated, so that no test walks past the dead rows of those before it."""

_LAST_USERS = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
_TABLES = """
SELECT relname, pg_relation_size(oid) FROM pg_class
 WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
"""


class Databases:
    """The databases of a server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._idle: list[str] = []
        self._made = 0
        self._tables: set[str] = set()
        self._emptying = ""

    @contextmanager
    def lending(self, *, once: bool = False) -> Iterator[Callable[[], Awaitable[str]]]:
        """Lends empty ones, by their URLs, until the end of the block; `once` for those whose
        schema is changed."""
        lent: list[str] = []

        async def lend() -> str:
            lent.append(await (self._make() if once and self._made else self._take()))
            return self.server.url(lent[-1])

        yield lend
        if not once:
            self._idle += lent

    async def _take(self) -> str:
        if not self._made:
            await self._make_the_first()
        if not self._idle:
            return await self._make()
        name = self._idle.pop()
        await self._empty(name)
        return name

    async def _empty(self, name: str) -> None:
        async with connected(self.server.url(name)) as db:
            await db.execute(_LAST_USERS)
            for table, size in await db.fetch(_TABLES):
                if table not in self._tables:
                    await db.execute(f"DROP TABLE {table}")
                elif size > DELETED_BYTES_MAX:
                    await db.execute(f"TRUNCATE {table} CASCADE")
            await db.execute(self._emptying)

    async def _make(self) -> str:
        self._made += 1
        name = f"test_{self._made}"
        await self._execute(f"CREATE DATABASE {name} TEMPLATE pristine STRATEGY FILE_COPY")
        return name

    async def _make_the_first(self) -> None:
        """Make what the others are copies of, and learn what an empty one has in it."""
        await self._execute("CREATE DATABASE pristine")
        async with connected(self.server.url("pristine")) as db:
            await migrate(db)
            self._tables = {table for table, _ in await db.fetch(_TABLES)}
            steps = ["SET session_replication_role = replica"]  # no key keeps a row from going
            for table in self._tables:
                steps.append(f"DELETE FROM {table}")
                if await db.fetchval(f"SELECT count(*) FROM {table}"):
                    await db.execute(f"CREATE TABLE at_first_{table} AS TABLE {table}")
                    steps.append(f"INSERT INTO {table} TABLE at_first_{table}")
            steps.append("SELECT setval(seqrelid, 1, false) FROM pg_sequence")
            self._tables = {table for table, _ in await db.fetch(_TABLES)}
            self._emptying = ";".join(steps)

    async def _execute(self, sql: str) -> None:
        async with connected(self.server.url("postgres")) as db:
            await db.execute(sql)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection past every pool."""
    db = await asyncpg.connect(url)
    try:
        yield db
    finally:
        await db.close()
