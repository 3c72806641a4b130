"""The home of the loop that keeps things well: people are read again, history goes, and the log
tells while publishes are refused."""

from collections.abc import Awaitable, Callable

import structlog

from waypost.clock import Clock
from waypost.loops.loop import Loop
from waypost.store.protocol import Reader, Retention, Upkeep
from waypost.telemetry import Telemetry

log = structlog.stdlib.get_logger()

REST_MS = 500
"""Tokens that the command line changed are in force within a second (D32)."""

LOOK_EVERY_MS = 5_000
"""How late it may be told that publishes are refused."""

PRUNE_EVERY_MS = 10_000

REST_WHILE_PRUNING_MS = 10
"""Between two chunks publishes and deliveries have their turn."""


class UpkeepLoop:
    """Refreshes people each step; looks whether publishes are refused, and prunes, now and then,
    a chunk a step while there is more."""

    def __init__(
        self,
        store: Upkeep,
        reader: Reader,
        refresh: Callable[[], Awaitable[bool]],
        clock: Clock,
        telemetry: Telemetry,
        *,
        retention: Retention,
    ) -> None:
        self._store = store
        self._reader = reader
        self._refresh = refresh
        self._telemetry = telemetry
        self._retention = retention
        self._look_ms = 0
        self._prune_ms = 0
        self._refusing = False
        self.loop = Loop("upkeep", self.step, clock=clock, telemetry=telemetry)

    async def step(self, now_ms: int) -> int:
        if await self._refresh():
            log.info("people_changed")
        if now_ms >= self._look_ms:  # first of all: on a full disk nothing can be pruned
            await self._look(now_ms)
            self._look_ms = now_ms + LOOK_EVERY_MS
        if now_ms >= self._prune_ms:
            pruned = await self._store.prune(retention=self._retention, now_ms=now_ms)
            self._telemetry.rows_pruned += pruned.rows
            if pruned.more:
                return REST_WHILE_PRUNING_MS
            self._prune_ms = now_ms + PRUNE_EVERY_MS
        return REST_MS

    async def _look(self, now_ms: int) -> None:
        """Tell when publishes begin to be refused, and when that ends."""
        why = (await self._reader.pulse(now_ms=now_ms)).refusing
        if why is not None and not self._refusing:
            log.warning("publishes_refused", why=why)
        elif why is None and self._refusing:
            log.info("publishes_accepted")
        self._refusing = why is not None
