"""The home of a store that is copied elsewhere: opened as a server opens it, so that no other
one can, and then left as it is."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import apsw

from waypost.store.copying import Row, Table
from waypost.store.sqlite.database import as_problems, query, transaction
from waypost.store.sqlite.store import SqliteStore
from waypost.store.sqlite.writer import Numbers

_SCHEDULES = (
    "SELECT s.tenant, s.id, s.next_ms, s.facts, coalesce(b.bytes, x'')"
    " FROM schedule s LEFT JOIN schedule_body b ON b.tenant = s.tenant AND b.id = s.id"
    " ORDER BY s.tenant, s.id"
)


@asynccontextmanager
async def open_source(path: str, *, now_ms: int) -> AsyncIterator["SqliteSource"]:
    """The store in a file, which nobody changes until the end of the block.

    As at every start its schema is brought up to date, and what was claimed by a server that
    was killed waits again, in the lanes of suspects where it belongs there.

    Raises Locked where a server has it open, SchemaTooNew and StoreUnavailable.
    """
    store = SqliteStore(path, free_bytes_min=0, now_ms=now_ms)
    try:
        with as_problems(f"read the database {path}"), transaction(store.writer.db):
            yield SqliteSource(store.writer.db)
    finally:
        await store.close()


class SqliteSource:
    """A store that nothing changes while it is read; see `Source`."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        [boot] = query(db, "SELECT count FROM boot").fetchone()
        self.number_max = Numbers(boot + 1).next()  # the first of the next start

    def count(self, table: Table) -> int:
        [count] = query(self._db, f"SELECT count(*) FROM {table.name}").fetchone()
        return int(count)

    def rows(self, table: Table) -> Iterator[Row]:
        columns = ", ".join(table.columns)
        sql = f"SELECT {columns} FROM {table.name} ORDER BY {table.key}"
        rows = query(self._db, _SCHEDULES if table.name == "schedule" else sql)
        flags = [name in table.flags for name in table.columns]
        if not any(flags):
            yield from rows
            return
        for row in rows:
            yield tuple(
                bool(value) if flag else value for value, flag in zip(row, flags, strict=True)
            )
