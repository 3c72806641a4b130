"""The home of `waypost migrate`: a database's schema is brought up to date ahead of a start."""

import asyncio
import sys
from typing import Annotated

from cyclopts import Parameter

from waypost import assembly
from waypost.cli.database import see
from waypost.cli.flags import Given, with_settings


@with_settings(("database",))
def migrate(
    given: Given,
    *,
    check: Annotated[
        bool,
        Parameter(help="Say what would be done, and do nothing.", negative="", show_default=False),
    ] = False,
) -> int:
    """Bring the schema of a database up to date, as `serve` does when it starts.

    Of all who do it at once, one does and the others wait.  With --check the exit status
    is 1 if there is something to do.
    """
    settings = given.settings()
    see(settings)
    lag = asyncio.run(assembly.lag(settings))
    if not lag.missing:
        sys.stdout.write(f"The schema is at version {lag.version}: there is nothing to do.\n")
        return 0
    if not check:
        asyncio.run(assembly.migrate(settings))
    for migration in lag.missing:
        sys.stdout.write(f"{'Would apply' if check else 'Applied'} {migration.name}.\n")
    return 1 if check else 0
