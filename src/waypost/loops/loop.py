"""The home of a loop's shape: a step, then a rest; waking, faults and stopping, once."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from waypost.clock import Clock
from waypost.domain.errors import StoreBroken, StoreFull, StoreUnavailable
from waypost.telemetry import Telemetry

log = structlog.stdlib.get_logger()

Step = Callable[[int], Awaitable[int]]
"""Given now (ms), work; answer how long to rest at most (ms).  0 means: there is more."""

REST_AFTER_FAULT_MS = 1_000

DEAD_AFTER_MS = 15_000
"""A loop that has ended no step for so long is dead, whatever its task says."""


class Loop:
    """One loop.  `wake` ends a rest early; it is a hint, never the truth."""

    def __init__(self, name: str, step: Step, *, clock: Clock, telemetry: Telemetry) -> None:
        self.name = name
        self.wake = asyncio.Event()
        self._step = step
        self._clock = clock
        self._telemetry = telemetry
        self._stopping = False
        self._waits = False
        self._away = False
        self._alive_ms = clock.now_ms()

    async def run(self) -> None:
        """Step and rest until `stop`.  A step that has begun is never cut short by it."""
        while not self._stopping:
            self.wake.clear()
            try:
                rest_ms = await self._step(self._clock.now_ms())
                self._waits = False
                if self._away:
                    log.info("loop_goes_on", loop=self.name)
                self._away = False
            except StoreBroken:
                raise
            except StoreFull as why:  # no fault: it passes when there is room again
                if not self._waits:
                    log.warning("loop_waits", loop=self.name, why=str(why))
                self._waits = True
                rest_ms = REST_AFTER_FAULT_MS
            except StoreUnavailable as why:
                if not self._away:
                    log.error("loop_fault", loop=self.name, why=str(why))
                self._away = True
                self._telemetry.loop_faults += 1
                rest_ms = REST_AFTER_FAULT_MS
            self._alive_ms = self._clock.now_ms()
            if rest_ms > 0 and not self._stopping:
                await self._rest(rest_ms)

    def stop(self) -> None:
        """End after the step that is under way."""
        self._stopping = True
        self.wake.set()

    def vital(self) -> str | None:
        """What is wrong with this loop, or None."""
        silent_ms = self._clock.now_ms() - self._alive_ms
        if silent_ms > DEAD_AFTER_MS:
            return f"the {self.name} loop has ended no step for {silent_ms} ms"
        return None

    async def _rest(self, rest_ms: int) -> None:
        try:
            async with asyncio.timeout(rest_ms / 1000):
                await self.wake.wait()
        except TimeoutError:
            pass
