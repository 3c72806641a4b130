"""The home of `waypost backup`: a whole copy of the store, taken while a server runs."""

import asyncio
import sys
from typing import Annotated

from cyclopts import Parameter

from waypost import assembly
from waypost.cli.database import see
from waypost.cli.flags import Given, with_settings


@with_settings(("database",))
def backup(
    given: Given,
    file: Annotated[str, Parameter(help="Where to write it; the file must not exist.")],
    /,
) -> int:
    """Write a whole, consistent copy of a SQLite database, also while a server runs.

    PostgreSQL has tools of its own: pg_dump, pg_basebackup.
    """
    settings = given.settings()
    see(settings)
    asyncio.run(assembly.backup(settings, file))
    sys.stdout.write(f"Wrote {file}.\n")
    return 0
