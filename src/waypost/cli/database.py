"""The home of the database, as the command line sees it: that it is named, and where it is a
file, that it is there and its owner's alone.  What is in it is the store's."""

import os
from pathlib import Path

from waypost.settings import MEMORY, Settings, SettingsError


def see(settings: Settings, *, made: bool = False) -> None:
    """See that a database is named that can be opened; a file that is missing is `made`.

    A PostgreSQL database is made by whoever runs that.  Raises SettingsError, and
    FileNotFoundError.
    """
    if not settings.database:
        raise SettingsError(
            "no database is named: give --database sqlite:///path or postgresql://host/name, or "
            "set WAYPOST_DATABASE"
        )
    if settings.database == MEMORY:
        raise SettingsError(
            "a database in memory ends with its process; only `waypost dev` has one"
        )
    path = settings.database_path
    if path is None:
        return
    if made:
        make_private(path)
    else:
        path.stat()


def make_private(path: Path) -> None:
    """See that there is a file, and that a new one is its owner's alone.  SQLite gives the
    files that it puts beside it the same mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
