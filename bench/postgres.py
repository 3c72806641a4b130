"""The home of the PostgreSQL under test: a server of its own, on the disk of the bench.

It syncs what it commits, as in production, and is found as the tests find theirs: the one
that `make setup` brings, else the one that is installed.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg

from bench.machine import cpu_s_of_all
from tests.support.postgres import SHIPPED, SYSTEM, Server, binaries, running

SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "autovacuum_naptime": "10s",
    "log_min_messages": "error",
}


def installed() -> str | None:
    """Which PostgreSQL there is, if any."""
    return next((which for which in (SHIPPED, SYSTEM) if binaries(which) is not None), None)


class Postgres:
    """A running PostgreSQL."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._numbers = count(1)

    def cpu_us(self) -> float:
        """User and system time that it has used, in microseconds, but for what has ended."""
        return cpu_s_of_all(self._server.pid) * 1e6

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """The URL of an empty database, which is removed at the end."""
        name = f"bench_{next(self._numbers)}"
        maintenance = self._server.url("postgres")
        async with connected(maintenance) as db:
            await db.execute(f"CREATE DATABASE {name}")
        yield self._server.url(name)
        async with connected(maintenance) as db:
            await db.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await self.rest()

    async def rest(self) -> None:
        """Leave nothing to write that was committed before."""
        async with connected(self._server.url("postgres")) as db:
            await db.execute("CHECKPOINT")


@asynccontextmanager
async def connected(url: str) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """A connection of one's own."""
    db = await asyncpg.connect(url)
    try:
        yield db
    finally:
        await db.close()


@contextmanager
def postgres(directory: Path) -> Iterator[Postgres]:
    """A server on a directory that whoever it runs as may pass through."""
    which = installed()
    assert which is not None
    directory.chmod(0o711)
    with running(which, SETTINGS, within=directory) as server:
        yield Postgres(server)
