"""The home of copying a store whole, from one engine into another, and of knowing that it is.

Both sides are read as canonical rows, in the order of their keys, and hashed: the source
while it is read, the target by what is there when all of a table was written.  A store that
is copied has nothing under way, so this is all of it:

| not copied                    | why                                                         |
| ----------------------------- | ----------------------------------------------------------- |
| claims, and permits of keys   | no attempt is under way                                     |
| what lanes are blocked on     | the first claim finds that out anew                         |
| how numbers are given         | the target gives larger ones than the source ever did       |
| nodes, and what upkeep noted  | they are the target's own                                   |
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from waypost.domain.errors import StoreUnavailable

CHUNK_ROWS = 2_000
CHUNK_BYTES = 4 * 1024 * 1024
"""What is written at once, and so about what is in memory; a larger row goes alone."""

Row = tuple[Any, ...]


class Differs(StoreUnavailable):
    """What was written is not what was read; nothing of it was kept."""


class Table(Struct, frozen=True, kw_only=True):
    """A table as both engines have it.

    The first `keys` of its columns are its key.  `flags` are 0 and 1 where there are no
    booleans.
    """

    name: str
    keys: int
    columns: tuple[str, ...]
    blobs: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The columns of the key, as SQL."""
        return ", ".join(self.columns[: self.keys])


def _table(
    name: str, key: str, others: str = "", *, blobs: tuple[str, ...] = (), flags: str = ""
) -> Table:
    keys = tuple(key.split())
    return Table(
        name=name,
        keys=len(keys),
        columns=(*keys, *others.split()),
        blobs=blobs,
        flags=tuple(flags.split()),
    )


TABLES = (
    _table("tenant", "id", "created_ms current_key next_key revoked", flags="revoked"),
    _table(
        *("token", "id", "tenant sha256 read_only created_ms"),
        blobs=("sha256",),
        flags="read_only",
    ),
    _table("body", "number", "bytes", blobs=("bytes",)),
    _table("message", "tenant id", "number facts body source", blobs=("facts",)),
    _table(
        "delivery",
        "number",
        "tenant message_id lane host due_ms holding retried interrupted canceling key",
        flags="holding canceling",
    ),
    _table("hold", "tenant resource number"),
    _table("lane", "tenant lane", "turn_ms"),
    _table(
        *("queue", "tenant name", "parallelism paused created_ms updated_ms accepted_ms"),
        flags="paused",
    ),
    _table("flow_key", "tenant name", "facts used_ms", blobs=("facts",)),
    _table("dedup", "tenant key", "message_id until_ms"),
    _table("event", "tenant time_ms number", "message_id state detail", blobs=("detail",)),
    _table("dead_letter", "tenant failed_ms number", "message_id detail", blobs=("detail",)),
    _table("schedule", "tenant id", "next_ms facts body", blobs=("facts", "body")),
    _table("url_group", "tenant name", "id facts", blobs=("facts",)),
)
"""What is copied, in this order: tenants before their tokens."""


class Source(Protocol):
    """A store that nothing changes while it is read."""

    number_max: int
    """No number that it has ever given is larger."""

    def count(self, table: Table) -> int:
        """How many rows a table has."""
        ...

    def rows(self, table: Table) -> Iterator[Row]:
        """The rows of a table in the order of their keys, not all of them in memory at once;
        flags are booleans."""
        ...


class Target(Protocol):
    """A store that is empty before, and of which nobody sees anything until it is whole."""

    async def write(self, table: Table, rows: Sequence[Row]) -> None: ...

    def hashed_rows(self, table: Table) -> AsyncIterator[Row]:
        """The rows of a table as `Source.rows` has them, but for the SHA-256 of each blob in
        its place."""
        ...


class Copied(Struct, frozen=True):
    """A table that is the same on both sides."""

    table: str
    rows: int
    sha256: str


class Tally:
    """How many rows there are, and the hash of all of them in their order."""

    def __init__(self) -> None:
        self.rows = 0
        self._hash = sha256()

    def add(self, row: Iterable[Any]) -> None:
        """Count a row in which blobs are hashed."""
        self.rows += 1
        self._hash.update(msgspec.json.encode(tuple(row)) + b"\n")

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def __str__(self) -> str:
        return f"{self.rows} rows of hash {self.sha256[:16]}"


def hashed(row: Row) -> Row:
    """A row with the SHA-256 of each blob in its place."""
    return tuple(
        sha256(value).digest() if isinstance(value, bytes) else value  # the blobs of `Table`
        for value in row
    )


Watch = Callable[[str, int, int], None]
"""Told of a table how far it is, and of how much: each row is written, and then read back."""


async def copy(source: Source, target: Target, *, watch: Watch) -> list[Copied]:
    """Copy all tables, each in chunks, and read back what was written.

    Raises Differs where that is something else: then the target must not be kept.
    """
    return [await _copy(table, source, target, watch) for table in TABLES]


async def _copy(table: Table, source: Source, target: Target, watch: Watch) -> Copied:
    steps = 2 * source.count(table)
    watch(table.name, 0, steps)
    read, there = Tally(), Tally()
    for chunk in chunks(source.rows(table)):
        for row in chunk:
            read.add(hashed(row))
        await target.write(table, chunk)
        watch(table.name, read.rows, steps)
    async for row in target.hashed_rows(table):
        there.add(row)
        if there.rows % CHUNK_ROWS == 0:
            watch(table.name, read.rows + there.rows, steps)
    if (read.rows, read.sha256) != (there.rows, there.sha256):
        raise Differs(
            f"the table {table.name} was not copied as it is: {read} were read and {there} are"
            " there; nothing was kept"
        )
    watch(table.name, steps, steps)
    return Copied(table.name, read.rows, read.sha256)


def chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in parts, each of at most `CHUNK_ROWS` and about `CHUNK_BYTES`."""
    chunk: list[Row] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += sum(len(value) for value in row if isinstance(value, bytes | str))
        if len(chunk) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
