"""The home of a node that dies in this process: an assembled server, and the file that it left.

A sender stands for the network.  Whatever is sent hangs until the end of this
life is waited for (what is published is before its death then) and nothing more
begins, so that as much as can be is in flight at once.  If a deadly request is
among it the node dies: the file is copied at that moment, with every claim
still out, and nothing is answered any more.  The copy is what the next life
starts from, as after a kill.  Otherwise all are answered with 200.
"""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from msgspec import structs

from tests.store.bench import Bench
from tests.support.application import SETTINGS, SettableClock
from tests.support.factory import OK
from waypost import assembly
from waypost.domain.attempt import Outcome
from waypost.store.protocol import DeadLetter
from waypost.store.sqlite.store import SqliteStore
from waypost.wire.protocol import Request

DEADLY = "/deadly"
QUIET_S = 0.02
LIFE_S_MAX = 60


class MortalSender:
    """Sends nothing.  `sent` counts by message id; `answered` those of them with a 200."""

    def __init__(self, database: Path, copy: Path) -> None:
        self.died = asyncio.Event()
        self.may_die = asyncio.Event()
        self.sent: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self._database = database
        self._copy = copy
        self._deadly_in_flight = False
        self._moved = asyncio.Event()

    async def send(self, request: Request) -> Outcome:
        key = dict(request.header)["Upstash-Message-Id"]
        self.sent[key] += 1
        deadly = DEADLY in request.url
        self._deadly_in_flight = self._deadly_in_flight or deadly
        await self._quiet()
        if self._deadly_in_flight:
            if not self.died.is_set():
                for suffix in ("", "-wal"):
                    left = self._database.with_name(self._database.name + suffix)
                    shutil.copy(left, self._copy.with_name(self._copy.name + suffix))
                self.died.set()
            await asyncio.Event().wait()  # the dead do not answer
        self._moved.set()
        self.answered[key] += 1
        return OK

    async def _quiet(self) -> None:
        """Wait until nothing has begun or ended for `QUIET_S`."""
        await self.may_die.wait()
        self._moved.set()
        while True:
            self._moved.clear()
            try:
                await asyncio.wait_for(self._moved.wait(), QUIET_S)
            except TimeoutError:
                break


class Life:
    """One life of a node."""

    def __init__(self, store: SqliteStore, sender: MortalSender) -> None:
        self.bench = Bench(store)
        self.sender = sender
        self._store = store

    async def end(self) -> bool:
        """Wait until the node dies, or nothing is left to do; whether it died."""
        self.sender.may_die.set()
        async with asyncio.timeout(LIFE_S_MAX):
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.sender.died.wait(), QUIET_S)
                    return True
                if not self._store.writer.db.execute("SELECT 1 FROM delivery LIMIT 1").fetchall():
                    return False

    async def dead_letters(self, tenant: str = "acme") -> list[DeadLetter]:
        page = await self.bench.store.dead_letters(tenant, cursor=None, count_max=1_000)
        return page.dead_letters


@asynccontextmanager
async def living(database: Path, *, now_ms: int, next_database: Path) -> AsyncIterator[Life]:
    """A node on a file, which it leaves at `next_database` if it dies."""
    clock = SettableClock(now_ms)
    sender = MortalSender(database, next_database)
    settings = structs.replace(SETTINGS, database=f"sqlite:///{database}")
    async with assembly.running(settings, dev=True, clock=clock, sender=sender) as server:
        yield Life(server.store, sender)
