"""The home of schema versions: numbered SQL files, applied in order, forward only.

Both engines keep theirs in `migrations/NNNN_name.sql`.  A version is the number
of its last file; the files are numbered from 1 without gaps.

Where several nodes share a store, those of one release and of the next work side by
side on one schema.  So it changes in two steps:

| step     | what it does                                        | which release may     |
| -------- | --------------------------------------------------- | --------------------- |
| expand   | adds tables, indexes, columns that have a default:  | the first to use them |
|          | programs that do not know of them work on           |                       |
| contract | removes what the release before does not use        | the one after that    |

A file that only adds says so, in a line `-- works with: N`: programs that know the
versions up to N, or more, still work on what it makes.  The store keeps that, for such a
program has not got the file.  Without the line older programs refuse the store.
"""

import re
from collections.abc import Sequence
from importlib.resources import files

from msgspec import Struct

from waypost.domain.errors import Invalid, StoreUnavailable

_NAME = re.compile(r"(\d{4})_\w+\.sql")
_WORKS_WITH = re.compile(r"^-- works with: (\d+)$", re.MULTILINE)


class Migration(Struct, frozen=True):
    number: int
    name: str
    sql: str

    @property
    def works_with(self) -> int:
        """The oldest version that a program may know and work on what this makes."""
        said = _WORKS_WITH.search(self.sql)
        return self.number if said is None else int(said[1])


class Lag(Struct, frozen=True):
    """The version of a store's schema, and the migrations that it is behind."""

    version: int
    missing: Sequence[Migration]

    def refuse_behind(self) -> None:
        """Raises Invalid where there is a schema, and it is behind."""
        if self.version and self.missing:
            raise Invalid(
                f"the database's schema is version {self.version} and this program's "
                f"{self.missing[-1].number}: run `waypost migrate`, or start a server, which "
                "brings it up to date"
            )


class SchemaTooNew(StoreUnavailable):
    """The store was written by a newer program; nothing was changed."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__(
            f"the store's schema is version {found} and this program knows up to {known}: "
            "use the newer program"
        )


def migrations(package: str) -> list[Migration]:
    """All migrations of an engine, in order; `package` is the engine's package."""
    found = []
    for file in files(package).joinpath("migrations").iterdir():
        match = _NAME.fullmatch(file.name)
        if match:
            found.append(Migration(int(match[1]), file.name, file.read_text("utf-8")))
    found.sort(key=lambda migration: migration.number)
    assert [m.number for m in found] == list(range(1, len(found) + 1)), found
    return found


def missing(
    known: Sequence[Migration], version: int, *, works_with: int | None = None
) -> Sequence[Migration]:
    """What brings a store of `version` up to date.

    `works_with` is the oldest version that its programs may know, where the store says it.
    Raises SchemaTooNew when a newer program made it what this one does not work on.
    """
    if version > len(known) and (works_with is None or works_with > len(known)):
        raise SchemaTooNew(version, len(known))
    return known[version:]
