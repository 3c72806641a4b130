"""The home of a node's life: it renews its lease, takes over from the dead, and gives back what
it has claimed and does not know of.

It has a connection of its own: whatever the node is busy with, its heart beats.
"""

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import asyncpg
import structlog

from waypost.domain.errors import StoreFull, StoreUnavailable
from waypost.store.calls import Release
from waypost.store.postgres import nodes
from waypost.store.postgres.database import as_problems, lent
from waypost.store.postgres.nodes import TakeOver
from waypost.store.postgres.settling import release
from waypost.store.postgres.writer import Writer
from waypost.store.protocol import Claim

log = structlog.stdlib.get_logger()

RENEWALS = 4
"""How often a lease is renewed before it would be over."""

_FAULTS = (StoreFull, StoreUnavailable, TimeoutError, asyncpg.PostgresError)
"""After these it tries again: a node without a heart could do nothing any more."""


class Life:
    """A node while it lives, as it knows it.

    `on_time` is told what the database's clock says, and what the monotonic clock said when
    it was asked (s).
    """

    def __init__(
        self,
        pool: "asyncpg.Pool[Any]",
        writer: Writer,
        *,
        name: str,
        lease_ms: int,
        on_time: Callable[[int, float], None],
    ) -> None:
        self._pool = pool
        self._name = name
        self._lease_ms = lease_ms
        self._on_time = on_time
        self._until_s = 0.0
        self._reached_s = math.inf  # since when every renewal was answered
        self._away = False
        self._tasks: list[asyncio.Task[None]] = []
        self.writer = writer

    async def begin(self, *, now_ms: int | None) -> int:
        """Join the nodes, and take over from those that have left: how many deliveries.

        A `now_ms` of None is what the database's clock says.  Raises StoreUnavailable.
        """
        joined_ms = await self._join()
        count = await self._take_over(left_only=True, now_ms=now_ms or joined_ms)
        self._tasks = [
            asyncio.create_task(self._go_on(self._beat), name="node"),
            asyncio.create_task(self._go_on(self._tidy), name="node's upkeep"),
            asyncio.create_task(self._go_on(self._watch), name="node's watch"),
        ]
        return count

    async def end(self) -> None:
        """Finish what was asked, and end the lease: others take over at once what is left.

        Nothing begins any more.  What is claimed meanwhile can still be given back.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._until_s = 0.0
        await self.writer.catch_up()  # what this hands over is released before the writer closes
        await self.writer.close()
        with suppress(*_FAULTS), as_problems("end the lease"):
            async with asyncio.timeout(self._rest_s), lent(self._pool) as db:
                await nodes.leave(db, self.writer.node)

    def is_alive(self) -> bool:
        """Whether the lease goes on for certain.  What is begun later may be another's."""
        return time.monotonic() < self._until_s

    def may_begin(self, claim: Claim) -> bool:
        """Whether the lease that a claim was made under goes on for certain."""
        return claim.lease == self.writer.lease and self.is_alive()

    def vital(self) -> str | None:
        """What is wrong with this node, or None."""
        if any(task.done() for task in self._tasks):
            return "this node does not renew its lease any more"
        return None if self.is_alive() else "this node's lease is over, and it begins nothing"

    @property
    def _rest_s(self) -> float:
        return self._lease_ms / 1000 / RENEWALS

    async def _go_on(self, step: Callable[[], Any]) -> None:
        while True:
            await asyncio.sleep(self._rest_s)
            try:
                await step()
            except _FAULTS as fault:
                if not self._away:
                    log.warning("database_away", why=str(fault) or "no answer in time")
                self._away = True
            else:
                if self._away and self.is_alive():
                    log.info("database_back")
                    self._away = False

    async def _beat(self) -> None:
        try:
            async with asyncio.timeout(self._rest_s):
                asked_s = time.monotonic()
                with as_problems("renew the lease"):
                    async with lent(self._pool) as db:
                        now_ms = await nodes.renew(db, self.writer.node, lease_ms=self._lease_ms)
                if now_ms is None:
                    log.error("node_was_taken_over", node=self.writer.node)
                    await self._join()
                else:
                    self._extended(asked_s, now_ms)
        except _FAULTS:
            self._reached_s = math.inf
            raise

    async def _tidy(self) -> None:
        if not self.is_alive():
            return
        # Before that, whoever did not renew their lease perhaps could not.
        reached = time.monotonic() - self._reached_s >= self._lease_ms / 1000
        await self._take_over(left_only=not reached, now_ms=self._now_ms())
        await self._give_back()

    async def _watch(self) -> None:
        """Let nobody wait for long for whoever holds locks and is silent."""
        with as_problems("look for silent sessions"):
            async with lent(self._pool) as db:
                ended = await nodes.end_the_silent(db, silence_ms_max=self._lease_ms)
        if ended:
            log.warning("silent_sessions_ended", count=ended)

    async def _join(self) -> int:
        asked_s = time.monotonic()
        with as_problems("join the nodes"):
            async with lent(self._pool) as db:
                node, now_ms = await nodes.join(db, name=self._name, lease_ms=self._lease_ms)
        self.writer.node = node
        self._until_s = 0.0
        self._extended(asked_s, now_ms)
        return now_ms

    def _extended(self, asked_s: float, now_ms: int) -> None:
        if asked_s > self._until_s:
            self._reached_s = math.inf
            self.writer.lease += 1
        self._reached_s = min(self._reached_s, asked_s)
        self._until_s = asked_s + self._lease_ms / 1000
        self._ahead_ms = now_ms - asked_s * 1000
        self._on_time(now_ms, asked_s)

    def _now_ms(self) -> int:
        """About what the database's clock says."""
        return int(time.monotonic() * 1000 + self._ahead_ms)

    async def _take_over(self, *, left_only: bool, now_ms: int) -> int:
        """Let wait again what nodes had claimed whose leases are over: how many deliveries."""
        with as_problems("look for dead nodes"):
            async with lent(self._pool) as db:
                over = await nodes.over(db, left_only=left_only)
        total = 0
        for node in over:
            count = nodes.CHUNK
            while count == nodes.CHUNK:
                count = await self.writer.call(nodes.take_over, TakeOver(node, now_ms))
                total += count
            log.info("node_taken_over", node=node)
        return total

    async def _give_back(self) -> None:
        """Let wait again what is written down as claimed by us, and is in nobody's hand."""
        writer = self.writer
        with as_problems("look for lost claims"):
            async with lent(self._pool) as db:
                strays = await nodes.strays(db, writer.node, writer.in_hand)
        if strays:
            await writer.call(release, Release(strays, self._now_ms()))
            log.warning("claims_found", count=len(strays))
