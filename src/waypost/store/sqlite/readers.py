"""The home of looking: connections that read what is committed, beside the writer."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import apsw

from waypost.domain.errors import StoreUnavailable
from waypost.store.sqlite.database import as_problems, connect, transaction

READERS = 2
"""Threads that read for the API."""

LONG_S = 0.001
RESTS = 3
"""Who looks for longer than that rests so many times as long: one who reads page after page takes
a quarter of a processor, and nobody else is late."""

T = TypeVar("T")


class Readers:
    """Read-only connections, one a thread; they see what is committed and wait for nobody.

    A database in memory has one connection: it is read in the event loop, where
    no transaction is ever open.
    """

    def __init__(self, path: str, shared: apsw.Connection | None) -> None:
        self._path = path
        self._shared = shared
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="waypost-read")
        self._own = threading.local()
        self._opened: list[apsw.Connection] = []
        self._closed = False

    async def look(self, look: Callable[[apsw.Connection], T]) -> T:
        """Run `look` on a snapshot.  Raises StoreUnavailable when the store is away."""
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self._shared is not None:
            return look(self._shared)
        loop = asyncio.get_running_loop()
        seen, took_s = await loop.run_in_executor(self._threads, self._look, look)
        if took_s > LONG_S:
            await asyncio.sleep(RESTS * took_s)
        return seen

    def close(self) -> None:
        self._closed = True
        self._threads.shutdown()
        for db in self._opened:
            db.close()

    def _look(self, look: Callable[[apsw.Connection], T]) -> tuple[T, float]:
        """What was seen, and how long it took (s), without the wait for this thread."""
        began_s = time.monotonic()
        db: apsw.Connection | None = getattr(self._own, "db", None)
        if db is None:
            db = self._own.db = connect(self._path, read_only=True)
            self._opened.append(db)
        with as_problems("read the database"), transaction(db, kind="DEFERRED"):
            seen = look(db)
        return seen, time.monotonic() - began_s
