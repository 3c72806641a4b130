"""The home of the log's way into the database file; what is in the log is already durable.

    log ── beside the batches ──> file ── sync ── the writer stands still: the rest ──> a new log

SQLite syncs the file only with the move that comes to the log's end.  Without a sync before it
that one brings thousands of pages to the disk, and all wait for it; the measurements:
docs/decisions/0015-bulk-calls-go-in-small-steps.md.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import apsw

from waypost.store.sqlite.database import connect, sync

CHECKPOINT_PAGES = 4_000
"""The log is moved into the file each time it grew by so many (16 MB)."""

LOG_PAGES = 8_000
"""A log that is longer begins anew, for which the writer has to stand still."""


class Checkpoints:
    """Moves the log on a connection of its own, and to its end on the writer's."""

    def __init__(
        self, db: apsw.Connection, threads: ThreadPoolExecutor, on_moved: Callable[[], None]
    ) -> None:
        """`on_moved` is called where `go_on` has something to do though nothing was logged."""
        self._db = db
        self._beside = connect(db.filename)
        self._file = os.open(db.filename, os.O_RDONLY)
        self._threads = threads
        self._on_moved = on_moved
        self._loop = asyncio.get_running_loop()
        self._pages = 0
        self._pages_tried = 0
        self._moving: asyncio.Future[None] | None = None

    def logged(self, pages: int) -> None:
        """Note how long the log is."""
        if pages < self._pages:
            self._pages_tried = 0  # the log began anew
        self._pages = pages

    async def go_on(self) -> None:
        """Begin a checkpoint or end it, if it is time to; the writer stands still meanwhile.

        What readers still look at stays in the log, so that it is tried again when that has
        grown further.  Raises apsw.Error and OSError.
        """
        if self._moving is None:
            if self._pages - self._pages_tried >= CHECKPOINT_PAGES:
                self._pages_tried = self._pages
                self._moving = self._loop.run_in_executor(self._threads, self._move_beside)
                self._moving.add_done_callback(self._moved)
        elif self._moving.done():
            moving, self._moving = self._moving, None
            await moving
            if self._pages >= LOG_PAGES:
                await self._loop.run_in_executor(self._threads, self._move_to_the_end)

    def close(self, *, whole: bool) -> None:
        """Let go of the file, once no other connection of this process has it; `whole` moves all
        of the log before.

        To close any descriptor of a file undoes all locks that the process has on it.
        """
        if whole:
            self._beside.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        self._beside.close()
        os.close(self._file)

    def _moved(self, moving: "asyncio.Future[None]") -> None:
        if moving.exception() is not None or self._pages >= LOG_PAGES:
            self._on_moved()

    def _move_beside(self) -> None:
        _move(self._beside)
        sync(self._file)

    def _move_to_the_end(self) -> None:
        _move(self._db)


def _move(db: apsw.Connection) -> None:
    """Move the log into the file as far as readers let us."""
    # To the end, in this thread: while its cursor is open, COMMIT is refused.
    db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
