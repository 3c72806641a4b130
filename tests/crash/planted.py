"""Servers with a bug planted on purpose, to show that the harness would find it.

    python planted.py BUG dev --port 0 …

| bug            | what is wrong                                                       |
| -------------- | ------------------------------------------------------------------- |
| ack_first      | calls are answered before COMMIT, as one that is flushed lazily      |
| settle_first   | an attempt is settled as delivered, and only then sent              |
| callback_later | the callbacks of an attempt are written after it, not with it       |
| free_early     | a queue does not wait for the callbacks of its message (D24)         |
| sync_normal    | PRAGMA synchronous = NORMAL: a commit is not on disk when it returns |
| deadly         | a request to …/deadly kills the process (D18), once all is in flight |
| small_file     | not a bug: the database cannot grow over PAGES_MAX pages            |

The bugs are patched into the real program here; nothing in `src` knows of them.
"""

import asyncio
import os
import sys
from collections.abc import Iterable
from typing import Any

import apsw

from waypost.cli.main import main
from waypost.domain.attempt import Outcome
from waypost.domain.message import Logged
from waypost.loops.dispatcher import Dispatcher
from waypost.services import delivery
from waypost.store.protocol import Claim
from waypost.store.sqlite import lanes, store
from waypost.store.sqlite.adding import Adding
from waypost.store.sqlite.writer import Batch, Writer
from waypost.wire.protocol import Request
from waypost.wire.sender import HttpSender

FLUSH_S = 0.02
"""How long a commit is put off by `ack_first`, and a callback by `callback_later`."""

PAGES_MAX = 200

DEADLY = "/deadly"
DEADLY_QUIET_S = 0.1
"""`deadly` strikes when no other attempt has begun or ended for so long: with all in flight."""

DEADLY_INTERRUPTED_MAX = 5
"""In place of 20, for each of them costs the start of a process."""


def ack_first() -> None:
    async def transact(self: Writer, calls: list[Any], *, synced: bool = True) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        for call, result in self._apply(calls):
            call.answer(result)
        for follow in self.batch.on_commit:
            follow()
        await asyncio.sleep(FLUSH_S)
        await self._commit(synced=synced)
        if self.batch.next_turn_ms is not None:
            self.on_waiting(self.batch.next_turn_ms)
        self._forget()

    Writer._transact = transact  # type: ignore[method-assign]


def settle_first() -> None:
    async def attempt(self: Dispatcher, attempt: Any) -> None:
        await self._delivery.settle(attempt.claim, Outcome(status=200), births=self.births)
        await self._delivery.attempt(attempt.claim)

    Dispatcher._attempt = attempt  # type: ignore[method-assign]


def callback_later() -> None:
    settle = store.SqliteStore.settle

    async def settled(self: store.SqliteStore, claim: Claim, *rest: Any, **more: Any) -> Logged:
        callbacks = more.pop("callbacks")
        logged = await settle(self, claim, *rest, **more)
        if callbacks:
            await asyncio.sleep(FLUSH_S)
            await self.writer.call(
                add_callbacks, (claim, callbacks, more["births"], more["now_ms"])
            )
        return logged

    def add_callbacks(batch: Batch, calls: list[Any]) -> list[None]:
        for claim, callbacks, births, now_ms in calls:
            adding = Adding(batch, births, now_ms=now_ms)
            for draft in callbacks:
                adding.accept_one(draft, now_ms=now_ms, source=claim)
            adding.write()
        return [None] * len(calls)

    store.SqliteStore.settle = settled  # type: ignore[method-assign]


def free_early() -> None:
    def free(db: apsw.Connection, holds: Iterable[tuple[str, str, int]]) -> None:
        db.executemany(
            "DELETE FROM hold WHERE tenant = ? AND resource = ? AND number = ?"
            " AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.number = hold.number)",
            holds,
        )

    lanes.free = free


def deadly() -> None:
    send = HttpSender.send
    moved = asyncio.Event()

    async def sent(self: HttpSender, request: Request) -> Outcome:
        moved.set()
        if DEADLY not in request.url:
            try:
                return await send(self, request)
            finally:
                moved.set()
        while True:
            moved.clear()
            try:
                await asyncio.wait_for(moved.wait(), DEADLY_QUIET_S)
            except TimeoutError:
                os._exit(137)

    HttpSender.send = sent  # type: ignore[method-assign]
    assert hasattr(delivery, "INTERRUPTED_MAX")
    delivery.INTERRUPTED_MAX = DEADLY_INTERRUPTED_MAX


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


BUGS = {
    bug.__name__: bug
    for bug in (
        ack_first, settle_first, callback_later, free_early, deadly, sync_normal, small_file,
    )
}  # fmt: skip

if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    main()
