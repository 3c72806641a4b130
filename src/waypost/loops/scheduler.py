"""The home of the loop that fires schedules when they are due."""

from waypost.clock import Clock
from waypost.loops.loop import Loop
from waypost.services.schedules import Schedules
from waypost.telemetry import Telemetry

POLL_MS = 1_000
"""How long to rest at most: hints may be lost, and clocks be set; polling is the truth."""


class Scheduler:
    """Fires some schedules a step, until none is due."""

    def __init__(self, schedules: Schedules, clock: Clock, telemetry: Telemetry) -> None:
        self._schedules = schedules
        self._clock = clock
        self.loop = Loop("scheduler", self.step, clock=clock, telemetry=telemetry)
        schedules.changed = self.loop.wake.set

    async def step(self, now_ms: int) -> int:
        next_ms = await self._schedules.fire_due(now_ms)
        if next_ms is None:
            return POLL_MS
        return min(POLL_MS, max(0, next_ms - self._clock.now_ms()))
