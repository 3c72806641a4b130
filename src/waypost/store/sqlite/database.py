"""The home of the file: how it is opened, locked, brought up to date, and spoken to."""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import apsw

from waypost.domain.errors import StoreFull, StoreUnavailable
from waypost.store.migrations import Lag, migrations, missing

APPLICATION_ID = 0x57617970
"""It spells Wayp.  Every database of ours has it, from its first table on, so that we and other
programs can tell what it is."""

BUSY_MS = 2_000
"""How long the command line and the server wait for each other's short transactions."""

CACHE_KIB = 65_536
"""Pages that the writer keeps: with SQLite's 2 MB it read half a page back a message, and a
message took 10 % more CPU."""

STATEMENTS_CACHED = 256
"""Prepared statements a connection keeps: those with lists come in all powers of two."""

VARIABLES_MAX = 4_096
"""Values of one statement's list; SQLite takes 32,766 in all."""

VALUES_ROWS_MAX = 64
"""Rows of one INSERT.  One statement a power of two keeps few of them prepared."""

MIGRATIONS = migrations("waypost.store.sqlite")

PASSING = (
    apsw.BusyError,
    apsw.InterruptError,
    apsw.IOError,
    apsw.LockedError,
    apsw.NoMemError,
    apsw.ProtocolError,
)
"""Faults that may be gone when it is tried again."""

MEANS: dict[type[apsw.Error], str] = {
    apsw.BusyError: "another process has it locked",
    apsw.CantOpenError: "it needs a directory that it may write in",
    apsw.CorruptError: "the file is damaged, and a backup is the way back",
    apsw.ReadOnlyError: "whoever runs this may not write the file, or not in its directory",
}
"""What is behind a fault, where SQLite's words do not say it."""

sync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)
"""Bring an open file's bytes to the disk.  Not every system has the cheaper call."""


class Locked(StoreUnavailable):
    """Another server has this database open (D32)."""


class Unusable(StoreUnavailable):
    """The file is not a database of ours, is damaged, or may not be written: no waiting helps."""


@contextmanager
def as_problems(doing: str) -> Iterator[None]:
    """Turns what SQLite raises into problems: StoreFull, StoreUnavailable for what may pass, or
    Unusable."""
    try:
        yield
    except apsw.FullError as fault:
        raise StoreFull(f"cannot {doing}: the disk is full") from fault
    except apsw.Error as fault:
        problem = StoreUnavailable if isinstance(fault, PASSING) else Unusable
        means = MEANS.get(type(fault))
        raise problem(f"cannot {doing}: {fault}{f'; {means}' if means else ''}") from fault


def connect(path: str, *, read_only: bool = False) -> apsw.Connection:
    """A connection with our pragmas.

    Raises StoreFull, StoreUnavailable, and Unusable for another program's database; then the
    file is as it was.
    """
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    with as_problems(f"open the database {path}"):
        db = apsw.Connection(
            path,
            flags=apsw.SQLITE_OPEN_READONLY if read_only else flags,
            statementcachesize=STATEMENTS_CACHED,
        )
        try:
            db.set_busy_timeout(BUSY_MS)
            # Plans go by no values: else each statement with a range is planned anew each time.
            db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
            if not read_only:
                # A database that is only looked at and refused must stay as it was.
                db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            _see_whose_it_is(db, path)
            if not read_only:
                _set_pragmas(db)
        except BaseException:
            db.close()
            raise
    return db


def _see_whose_it_is(db: apsw.Connection, path: str) -> None:
    if db.pragma("application_id") == APPLICATION_ID:
        return
    if query(db, "SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is not None:
        raise Unusable(
            f"{path} is another program's database: it has tables that are not Waypost's"
        )


def _set_pragmas(db: apsw.Connection) -> None:
    if not db.pragma("page_count"):  # only a new database takes it, before all else
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute("PRAGMA journal_size_limit = 67108864")
    db.execute("PRAGMA foreign_keys = ON")


def make(db: apsw.Connection) -> None:
    """Make the schema where there is none.

    Raises Invalid where it is behind, and SchemaTooNew; then nothing was changed.
    """
    _lag(db).refuse_behind()
    migrate(db)


def _lag(db: apsw.Connection) -> Lag:
    with as_problems("read the version of the schema"):
        version = schema_version(db)
    return Lag(version, missing(MIGRATIONS, version))


def migrate(db: apsw.Connection) -> None:
    """Bring the schema up to date, one transaction a migration.

    Raises SchemaTooNew, and then nothing was changed.
    """
    for migration in _lag(db).missing:
        with as_problems(f"apply {migration.name}"), transaction(db):
            if schema_version(db) < migration.number:  # another process may have been quicker
                db.execute(migration.sql)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {migration.number}")
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)


def lag(path: str) -> Lag:
    """How far a database that is there is behind.  Raises SchemaTooNew."""
    db = connect(path, read_only=True)
    try:
        return _lag(db)
    finally:
        db.close()


def schema(db: apsw.Connection) -> str:
    """The whole schema, as `schema.sql` has it."""
    parts = query(
        db, "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY tbl_name, type DESC, name"
    )
    return "".join(f"{sql};\n\n" for (sql,) in parts)


def schema_version(db: apsw.Connection) -> int:
    version: int = db.pragma("user_version")
    return version


class transaction:  # noqa: N801 -- read as a statement: `with transaction(db):`
    """A short transaction of its own.  IMMEDIATE takes the write lock at once."""

    def __init__(self, db: apsw.Connection, *, kind: str = "IMMEDIATE") -> None:
        self._db = db
        self._kind = kind

    def __enter__(self) -> None:
        self._db.execute(f"BEGIN {self._kind}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        at: TracebackType | None,
    ) -> Literal[False]:
        if kind is None:
            self._db.execute("COMMIT")
        elif self._db.in_transaction:  # some faults have undone it already
            self._db.execute("ROLLBACK")
        return False


class FileLock:
    """The server's hold on a database: an flock on a file beside it, gone with the process.

    Beside the file itself: a link to it is another name for the same database.
    """

    def __init__(self, path: str) -> None:
        beside = f"{os.path.realpath(path)}.lock"
        self._fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise Locked(f"another server has {path} open") from None

    def close(self) -> None:
        os.close(self._fd)


def erase(path: str) -> None:
    """Remove a database, under the lock that a server holds while it has it open.

    Raises Locked where one has, and Unusable where it is none of ours; then nothing was removed.
    """
    lock = FileLock(path)
    try:
        file = Path(path).resolve()
        if file.exists():
            connect(path, read_only=True).close()
        for suffix in ("-wal", "-shm", ""):
            file.with_name(file.name + suffix).unlink(missing_ok=True)
    finally:
        lock.close()


def query(db: apsw.Connection, sql: str, values: Sequence[Any] = ()) -> Any:
    """The cursor of a statement that answers rows; what is in them the schema says."""
    return db.execute(sql, values)


def insert(db: apsw.Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows with few statements: up to `VALUES_ROWS_MAX` of them in each.

    Measured for 64 messages: 10 us a message, against 14-16 us with executemany
    and 17 us with json_each.
    """
    at, left = 0, len(rows)
    size = VALUES_ROWS_MAX
    while left:
        while size > left:
            size //= 2
        db.execute(
            _insert_sql(table, len(rows[0]), size),
            [value for row in rows[at : at + size] for value in row],
        )
        at, left = at + size, left - size


def _insert_sql(table: str, columns: int, rows: int) -> str:
    sql = _INSERTS.get((table, rows))
    if sql is None:
        one = f"({','.join('?' * columns)})"
        sql = f"INSERT INTO {table} VALUES {','.join([one] * rows)}"
        _INSERTS[table, rows] = sql
    return sql


_INSERTS: dict[tuple[str, int], str] = {}


def slices(values: list[int]) -> list[list[int]]:
    """The values in parts that one statement can take."""
    return [values[at : at + VARIABLES_MAX] for at in range(0, len(values), VARIABLES_MAX)]


def marks(count: int) -> str:
    """As many `?` as it takes, a power of two, so that few statements are prepared."""
    return ",".join("?" * (1 << (count - 1).bit_length()))


def filled(values: list[int]) -> list[int]:
    """The values for `marks`: the last one is repeated to fill up."""
    return values + values[-1:] * ((1 << (len(values) - 1).bit_length()) - len(values))
