"""The home of lists that people read: columns without lines, wide enough in a pipe."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

WIDTH_PIPED = 200
"""Columns where nobody looks: wide enough that no line is broken."""


def show(heads: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(*heads, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else WIDTH_PIPED, highlight=False).print(table)


def minute(at_ms: int) -> str:
    """A moment (UTC), to the minute."""
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M}"
