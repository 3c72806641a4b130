"""Servers with a bug planted on purpose, to show that the harness would find it.

    python planted.py BUG dev --port 0 …

| bug            | what is wrong                                                       |
| -------------- | ------------------------------------------------------------------- |
| ack_first      | calls are answered before COMMIT, as one that is flushed lazily      |
| settle_first   | an attempt is settled as delivered, and only then sent              |
| sync_normal    | PRAGMA synchronous = NORMAL: a commit is not on disk when it returns |
| small_file     | not a bug: the database cannot grow over PAGES_MAX pages            |

The bugs are patched into the real program here; nothing in `src` knows of them.
"""

import asyncio
import sys
from typing import Any

import apsw

from waypost.cli.main import main
from waypost.domain.attempt import Outcome
from waypost.loops.dispatcher import Dispatcher
from waypost.store.sqlite import store
from waypost.store.sqlite.writer import Writer

FLUSH_S = 0.02
"""How long a commit is put off by `ack_first`."""

PAGES_MAX = 200


def ack_first() -> None:
    async def transact(self: Writer, calls: list[Any]) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        for call, result in self._apply(calls):
            call.answer(result)
        for follow in self.batch.on_commit:
            follow()
        await asyncio.sleep(FLUSH_S)
        await self._commit()
        if self.batch.next_turn_ms is not None:
            self.on_waiting(self.batch.next_turn_ms)
        self._forget()

    Writer._transact = transact  # type: ignore[method-assign]


def settle_first() -> None:
    async def attempt(self: Dispatcher, attempt: Any) -> None:
        await self._delivery.settle(attempt.claim, Outcome(status=200))
        await self._delivery.attempt(attempt.claim)

    Dispatcher._attempt = attempt  # type: ignore[method-assign]


def sync_normal() -> None:
    _after_connect("PRAGMA synchronous = NORMAL")


def small_file() -> None:
    _after_connect(f"PRAGMA max_page_count = {PAGES_MAX}")


def _after_connect(pragma: str) -> None:
    connect = store.connect

    def patched(path: str, *, read_only: bool = False) -> apsw.Connection:
        db = connect(path, read_only=read_only)
        if not read_only:
            db.execute(pragma)
        return db

    store.connect = patched


BUGS = {bug.__name__: bug for bug in (ack_first, settle_first, sync_normal, small_file)}

if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    main()
