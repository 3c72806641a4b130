"""The home of `waypost copy`: a stopped embedded store moves into a PostgreSQL database, whole."""

import asyncio
import sys
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from waypost import assembly
from waypost.cli.database import see
from waypost.domain.errors import Invalid
from waypost.settings import Settings
from waypost.store.copying import Copied, Watch

HASH_CHARS = 16
"""As much of a hash as people compare."""

SQLITE = "sqlite:///"
POSTGRES = ("postgresql://", "postgres://")

INTERRUPTED = 130
"""The exit status of a command that was ended with Ctrl-C."""


def copy(
    source: Annotated[str, Parameter(help="The store, which no server runs on: sqlite:///path.")],
    target: Annotated[str, Parameter(help="An empty database: postgresql://user@host/name.")],
    /,
) -> int:
    """Copy a stopped store into an empty PostgreSQL database, whole, and check that it is there.

    One that was interrupted has left nothing behind, and can be run again.
    """
    if not source.startswith(SQLITE):
        raise Invalid(f"what is copied is a store in a file: {SQLITE}path")
    if not target.startswith(POSTGRES):
        raise Invalid(f"it is copied into a database: {POSTGRES[0]}user@host/name")
    settings = Settings(database=source)
    see(settings)
    path = str(settings.database_path)
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        try:
            copied = asyncio.run(assembly.copy(path, target, watch=_watch(progress)))
        except KeyboardInterrupt:
            sys.stderr.write("waypost: interrupted: nothing was copied\n")
            return INTERRUPTED
    _show(copied)
    sys.stdout.write(
        f"Copied {source} whole.  Keep it as a backup: "
        "a server that runs on it would deliver what waits a second time.\n"
    )
    return 0


def _watch(progress: Progress) -> Watch:
    """Draws a bar for each table."""
    bars: dict[str, TaskID] = {}

    def watch(table: str, done: int, total: int) -> None:
        if table not in bars:
            bars[table] = progress.add_task(table, total=total)
        progress.update(bars[table], completed=done)

    return watch


def _show(copied: list[Copied]) -> None:
    table = Table("TABLE", "ROWS", "SHA-256", "", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for each in copied:
        table.add_row(
            each.table, f"{each.rows}", each.sha256[:HASH_CHARS], "the same on both sides"
        )
    Console().print(table)
