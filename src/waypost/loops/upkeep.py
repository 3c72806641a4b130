"""The home of the loop that keeps things well: people are read again, history goes."""

from collections.abc import Awaitable, Callable

import structlog

from waypost.clock import Clock
from waypost.loops.loop import Loop
from waypost.store.protocol import Retention, Upkeep
from waypost.telemetry import Telemetry

log = structlog.stdlib.get_logger()

REST_MS = 500
"""Tokens that the command line changed are in force within a second (D32)."""

PRUNE_EVERY_MS = 10_000

REST_WHILE_PRUNING_MS = 10
"""Between two chunks publishes and deliveries have their turn."""


class UpkeepLoop:
    """Refreshes people each step, and prunes now and then, a chunk a step while there is more."""

    def __init__(
        self,
        store: Upkeep,
        refresh: Callable[[], Awaitable[bool]],
        clock: Clock,
        telemetry: Telemetry,
        *,
        retention: Retention,
    ) -> None:
        self._store = store
        self._refresh = refresh
        self._telemetry = telemetry
        self._retention = retention
        self._prune_ms = 0
        self.loop = Loop("upkeep", self.step, clock=clock, telemetry=telemetry)

    async def step(self, now_ms: int) -> int:
        if await self._refresh():
            log.info("people_changed")
        if now_ms >= self._prune_ms:
            pruned = await self._store.prune(retention=self._retention, now_ms=now_ms)
            self._telemetry.rows_pruned += pruned.rows
            if pruned.more:
                return REST_WHILE_PRUNING_MS
            self._prune_ms = now_ms + PRUNE_EVERY_MS
        return REST_MS
