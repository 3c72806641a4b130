"""What a drain waits for.  `test_ends` meets the race one time in a few; here it is made."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from waypost.clock import SystemClock
from waypost.domain.attempt import Outcome
from waypost.domain.message import Logged, Message
from waypost.domain.places import Places
from waypost.loops.dispatcher import Dispatcher
from waypost.store.protocol import Births, Claim, take_place
from waypost.telemetry import Telemetry


class Destination:
    """Stands for store and sender: an attempt ends when its message is answered."""

    def __init__(self) -> None:
        self.answered: dict[int, asyncio.Event] = {}
        self.settled: list[int] = []
        self.released: list[int] = []

    async def attempt(self, claim: Claim) -> Outcome:
        await self.answered.setdefault(claim.number, asyncio.Event()).wait()
        return Outcome(status=200)

    async def settle(self, claim: Claim, _outcome: Outcome, *, births: Births) -> Logged:
        self.settled.append(claim.number)
        return Logged.DELIVERED

    async def release(self, claims: Sequence[Claim], *, now_ms: int) -> None:
        self.released += [claim.number for claim in claims]


def a_claim(number: int) -> Claim:
    message = Message(
        tenant="t",
        id=f"msg_{number}",
        created_ms=0,
        not_before_ms=0,
        url="http://127.0.0.1/",
        method="POST",
        header={},
        retries_max=0,
        timeout_ms=1_000,
    )
    return Claim(number=number, token=1, message=message, body=b"", host="h")


async def test_a_message_handed_over_while_it_drains_is_waited_for_too():
    """Its commit was under way when the signal came: it is sent, so its answer counts."""
    places = Places(count_max=10, host_count_max=10, bytes_max=1_000)
    destination = Destination()
    stand_in = cast("Any", destination)
    dispatcher = Dispatcher(stand_in, stand_in, places, SystemClock(), Telemetry())
    first, second = a_claim(1), a_claim(2)
    for claim in (first, second):
        take_place(places, claim)
    dispatcher.hand_over(first)
    await asyncio.sleep(0)
    places.close()
    drain = asyncio.create_task(dispatcher.drain(wait_ms=10_000, hurry=asyncio.Event()))
    await asyncio.sleep(0)

    dispatcher.hand_over(second)
    for claim in (first, second):
        await asyncio.sleep(0)
        destination.answered.setdefault(claim.number, asyncio.Event()).set()
        for _ in range(10):
            await asyncio.sleep(0)

    assert await drain == 0
    assert destination.settled == [1, 2]
    assert destination.released == []
