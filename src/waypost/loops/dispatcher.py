"""The home of the claims in hand: as many as there are places for, each an attempt under way."""

import asyncio

from waypost.clock import Clock
from waypost.domain.attempt import Outcome
from waypost.domain.places import SLOW_MS, Places, Sign
from waypost.loops.loop import Loop
from waypost.services.delivery import Delivery
from waypost.store.protocol import Claim, Deliveries, give_back_place
from waypost.telemetry import Telemetry

POLL_MS = 1_000
"""How long to rest at most: hints may be lost, polling is the truth."""

NOTHING_WENT_MS = 10
"""The rest after a claim that handed out nothing although a lane's turn had come."""


class Dispatcher:
    """Claims what is due and attempts it; also what publishing hands over at birth."""

    def __init__(
        self,
        deliveries: Deliveries,
        delivery: Delivery,
        places: Places,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._deliveries = deliveries
        self._delivery = delivery
        self._places = places
        self._clock = clock
        self._telemetry = telemetry
        self._claims: dict[asyncio.Task[None], Claim] = {}
        self._young: dict[int, tuple[int, str]] = {}
        self._more = False
        self._faults: list[BaseException] = []
        self.loop = Loop("dispatcher", self.step, clock=clock, telemetry=telemetry)

    def hand_over(self, claim: Claim) -> None:
        """Begin the attempt of a claim.  Its place was taken with it."""
        task = asyncio.get_running_loop().create_task(self._attempt(claim))
        self._claims[task] = claim
        task.add_done_callback(self._ended)

    async def step(self, now_ms: int) -> int:
        """Fill the free places."""
        if self._faults:
            raise self._faults[0]
        self._doubt(now_ms)
        free = self._places.free
        self._more = free <= 0
        if free <= 0:
            return POLL_MS
        claimed = await self._deliveries.claim(count_max=free, places=self._places, now_ms=now_ms)
        for claim in claimed.claims:
            self.hand_over(claim)
        if claimed.next_due_ms is None:
            return POLL_MS
        rest_ms = claimed.next_due_ms - self._clock.now_ms()
        if rest_ms > 0:
            return min(rest_ms, POLL_MS)
        self._more = True
        return 0 if claimed.claims else NOTHING_WENT_MS

    async def drain(self, *, wait_ms: int, hurry: asyncio.Event) -> int:
        """Wait for the attempts under way, at most `wait_ms`; release the others.

        How many were released.
        """
        # What was being accepted may still be handed over: a release of nothing comes
        # after the batch that is under way.
        await self._deliveries.release([], now_ms=self._clock.now_ms())
        hurried = asyncio.ensure_future(hurry.wait())
        deadline_s = asyncio.get_running_loop().time() + wait_ms / 1000
        while self._claims and not hurried.done():
            left_s = deadline_s - asyncio.get_running_loop().time()
            if left_s <= 0:
                break
            await asyncio.wait(
                (*self._claims, hurried), timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
        hurried.cancel()
        left = dict(self._claims)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
            await self._deliveries.release(list(left.values()), now_ms=self._clock.now_ms())
            self._telemetry.claims_released += len(left)
        return len(left)

    async def _attempt(self, claim: Claim) -> None:
        started_ms = self._clock.now_ms()
        self._young[claim.token << 64 | claim.number] = (started_ms, claim.host)
        sign = Sign.NONE
        try:
            outcome = await self._delivery.attempt(claim)
            sign = _sign_of(outcome, took_ms=self._clock.now_ms() - started_ms)
        finally:
            self._young.pop(claim.token << 64 | claim.number, None)
            give_back_place(self._places, claim, sign)
            if self._more or self._places.any_freed:
                self.loop.wake.set()
        await self._delivery.settle(claim, outcome)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._claims[task]
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._faults.append(fault)
            self.loop.wake.set()

    def _doubt(self, now_ms: int) -> None:
        """Let attempts that have run for long speak against their hosts."""
        for key, (started_ms, host) in list(self._young.items()):
            if now_ms - started_ms <= SLOW_MS:
                break
            del self._young[key]
            self._places.doubt(host)


def _sign_of(outcome: Outcome, *, took_ms: int) -> Sign:
    if outcome.host_down:
        return Sign.DOWN
    if took_ms > SLOW_MS:
        return Sign.SLOW
    return Sign.WELL
