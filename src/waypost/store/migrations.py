"""The home of schema versions: numbered SQL files, applied in order, forward only.

Both engines keep theirs in `migrations/NNNN_name.sql`.  A version is the number
of its last file; the files are numbered from 1 without gaps.
"""

import re
from importlib.resources import files

from msgspec import Struct

from waypost.domain.errors import StoreUnavailable

_NAME = re.compile(r"(\d{4})_\w+\.sql")


class Migration(Struct, frozen=True):
    number: int
    name: str
    sql: str


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


def missing(known: list[Migration], version: int) -> list[Migration]:
    """What brings a store of `version` up to date.

    Raises SchemaTooNew when it was written by a newer program.
    """
    if version > len(known):
        raise SchemaTooNew(version, len(known))
    return known[version:]
