"""The home of the claims in hand: as many as there are places for, each an attempt under way."""

import asyncio
from contextlib import suppress
from itertools import takewhile

from waypost.clock import Clock
from waypost.domain.attempt import Outcome
from waypost.domain.errors import StoreFull, StoreUnavailable
from waypost.domain.places import SLOW_MS, Places, Sign
from waypost.loops.loop import Loop
from waypost.services.delivery import Delivery
from waypost.store.protocol import Births, Claim, Deliveries, give_back_place
from waypost.telemetry import Telemetry
from waypost.wire.protocol import NotBegun

POLL_MS = 1_000
"""How long to rest at most: hints may be lost, polling is the truth."""

NOTHING_WENT_MS = 10
"""The rest after a claim that handed out nothing although a lane's turn had come."""


FOREVER_MS = 1 << 62


class _Attempt:
    """An attempt in hand: since when, whether its place is still taken, and whether it lingers."""

    __slots__ = ("claim", "lingers", "placed", "started_ms")

    def __init__(self, claim: Claim, started_ms: int) -> None:
        self.claim = claim
        self.started_ms = started_ms
        self.placed = True
        self.lingers = False


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
        self.births = Births(places, self.hand_over)
        self._clock = clock
        self._telemetry = telemetry
        self._in_hand: dict[asyncio.Task[None], _Attempt] = {}
        self._none_left = asyncio.Event()
        self._none_left.set()
        self._young: dict[_Attempt, None] = {}  # in the order in which they began
        self._full = False
        self._drained = False
        self._rest_until_ms = 0
        self._faults: list[BaseException] = []
        self.loop = Loop("dispatcher", self.step, clock=clock, telemetry=telemetry)

    def hand_over(self, claim: Claim) -> None:
        """Begin the attempt of a claim.  Its place was taken with it."""
        attempt = _Attempt(claim, self._clock.now_ms())
        self._young[attempt] = None
        task = asyncio.get_running_loop().create_task(self._attempt(attempt))
        self._in_hand[task] = attempt
        self._none_left.clear()
        task.add_done_callback(self._ended)

    def hint(self, turn_ms: int = 0) -> None:
        """Note that a lane has its turn at `turn_ms`: a rest that would last longer ends."""
        if turn_ms < self._rest_until_ms:
            self.loop.wake.set()

    async def step(self, now_ms: int) -> int:
        """Fill the free places."""
        self._rest_until_ms = FOREVER_MS  # a hint that comes during the step is heard
        rest_ms = await self._fill(now_ms)
        self._rest_until_ms = self._clock.now_ms() + rest_ms
        return rest_ms

    async def _fill(self, now_ms: int) -> int:
        if self._faults:
            raise self._faults[0]
        self._let_linger(now_ms)
        places = self._places
        free = places.free
        self._full = free <= 0
        if self._full:
            return self._until_one_lingers_ms()
        claimed = await self._deliveries.claim(count_max=free, places=places, now_ms=now_ms)
        for claim in claimed.claims:
            self.hand_over(claim)
        self._full = places.full
        if self._full:
            return self._until_one_lingers_ms()
        if places.any_open:
            return 0 if claimed.claims else NOTHING_WENT_MS
        rest_ms = POLL_MS
        if claimed.next_due_ms is not None:
            rest_ms = claimed.next_due_ms - self._clock.now_ms()
            if rest_ms <= 0:
                return 0 if claimed.claims else NOTHING_WENT_MS
        return min(rest_ms, self._until_one_lingers_ms())

    async def drain(self, *, wait_ms: int, hurry: asyncio.Event) -> int:
        """Wait for the attempts under way, at most `wait_ms`; release the others.

        How many were released.  What is handed over later is given back, and not sent.
        """
        ends = [asyncio.ensure_future(end) for end in (self._all_have_ended(), hurry.wait())]
        await asyncio.wait(ends, timeout=wait_ms / 1000, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
        self._drained = True
        left = dict(self._in_hand)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
            claims = [attempt.claim for attempt in left.values()]
            await self._deliveries.release(claims, now_ms=self._clock.now_ms())
            self._telemetry.claims_released += len(left)
        return len(left)

    async def _all_have_ended(self) -> None:
        # What is being accepted may still be handed over: a release of nothing returns
        # after that.
        with suppress(StoreFull, StoreUnavailable):
            await self._deliveries.release([], now_ms=self._clock.now_ms())
        await self._none_left.wait()

    async def _attempt(self, attempt: _Attempt) -> None:
        try:
            if self._drained:
                raise NotBegun
            outcome = await self._delivery.attempt(attempt.claim)
        except NotBegun:
            self._give_back(attempt, Sign.NONE)
            await self._delivery.give_back(attempt.claim)
            return
        took_ms = self._clock.now_ms() - attempt.started_ms
        self._give_back(attempt, _sign_of(outcome, took_ms=took_ms))
        await self._delivery.settle(attempt.claim, outcome, births=self.births)

    def _give_back(self, attempt: _Attempt, sign: Sign) -> None:
        attempt.placed = False
        self._young.pop(attempt, None)
        give_back_place(self._places, attempt.claim, sign, lingers=attempt.lingers)
        if self._full or self._places.any_open:
            self.loop.wake.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        attempt = self._in_hand.pop(task)
        if attempt.placed:  # it failed, or was cancelled, perhaps before it began
            self._give_back(attempt, Sign.NONE)
        if not self._in_hand:
            self._none_left.set()
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._faults.append(fault)
            self.loop.wake.set()

    def _let_linger(self, now_ms: int) -> None:
        """Let attempts that have run for long leave their places."""
        for attempt in list(takewhile(lambda a: now_ms - a.started_ms > SLOW_MS, self._young)):
            attempt.lingers = self._places.linger(attempt.claim.host)
            if attempt.lingers:
                del self._young[attempt]

    def _until_one_lingers_ms(self) -> int:
        """How long to rest: whoever waits for a place may get that of the oldest attempt."""
        if self._young and (self._full or self._places.anyone_waits):
            oldest = next(iter(self._young))
            lingers_ms = oldest.started_ms + SLOW_MS + 1 - self._clock.now_ms()
            if lingers_ms > 0:  # else too many linger already
                return min(lingers_ms, POLL_MS)
        return POLL_MS


def _sign_of(outcome: Outcome, *, took_ms: int) -> Sign:
    if outcome.host_down:
        return Sign.DOWN
    if outcome.proxy_fault or outcome.refused:  # nobody was asked
        return Sign.NONE
    if took_ms > SLOW_MS:
        return Sign.SLOW
    return Sign.WELL
