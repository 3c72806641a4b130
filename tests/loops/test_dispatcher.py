"""The claims in hand: filled, drained, given back."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.store.bench import Bench, id_of, queued
from tests.support.clock import SetClock
from tests.support.factory import DOWN, HOUR, OK, SECOND, T0, a_draft, some_places
from tests.support.sender import RememberingSender
from waypost.domain.places import SLOW_MS, Places
from waypost.domain.retry import Backoff
from waypost.loops.dispatcher import POLL_MS, Dispatcher
from waypost.services.delivery import Delivery
from waypost.store.sqlite.store import MEMORY, SqliteStore
from waypost.telemetry import Telemetry


class Rig:
    """A dispatcher over a store in memory; its loop is stepped by hand."""

    def __init__(self, store: SqliteStore, places: Places) -> None:
        self.store = store
        self.places = places
        self.clock = SetClock()
        self.sender = RememberingSender()
        telemetry = Telemetry()
        delivery = Delivery(
            store,
            self.sender,
            self.clock,
            telemetry,
            keys=lambda _tenant: None,
            backoff=Backoff(),
            region="EU-CENTRAL-1",
        )
        self.dispatcher = Dispatcher(store, delivery, places, self.clock, telemetry)
        store.writer.on_waiting = self.dispatcher.loop.wake.set
        self.bench = Bench(store, places)

    async def step(self) -> int:
        return await self.dispatcher.step(self.clock.now_ms())

    async def finish(self, *, wait_ms: int = 5_000) -> int:
        """Drain; how many attempts were given back."""
        return await self.dispatcher.drain(wait_ms=wait_ms, hurry=asyncio.Event())


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
    yield Rig(store, some_places(count_max=8, host_count_max=4))
    await store.close()


async def test_a_step_fills_the_free_places(rig: Rig) -> None:
    rig.sender.hold()
    await rig.bench.add_waiting(*[a_draft() for _ in range(10)])

    assert await rig.step() == POLL_MS
    await asyncio.sleep(0)

    assert rig.places.in_flight == len(rig.sender.sent) == 4
    rig.sender.let_go()
    await rig.finish()


async def test_an_attempt_that_ends_wakes_the_loop_when_others_wait_for_its_place(
    rig: Rig,
) -> None:
    rig.sender.hold()
    await rig.bench.add_waiting(*[a_draft() for _ in range(5)])
    await rig.step()
    rig.dispatcher.loop.wake.clear()

    rig.sender.let_go()
    await rig.finish()

    assert rig.dispatcher.loop.wake.is_set()
    await rig.step()
    await rig.finish()
    assert len(rig.sender.sent) == 5


async def test_the_rest_ends_when_the_next_message_falls_due(rig: Rig) -> None:
    await rig.bench.add(a_draft(delay_ms=300))
    assert await rig.step() == 300

    await rig.bench.add(a_draft(delay_ms=HOUR))
    rig.clock.go_on(300)
    await rig.step()
    await rig.finish()
    assert len(rig.sender.sent) == 1
    assert await rig.step() == POLL_MS


async def test_a_queue_goes_on_by_itself_to_its_end(rig: Rig) -> None:
    drafts = queued(count=5)
    await rig.bench.add_waiting(*drafts)
    for _ in drafts:
        await rig.step()
        await rig.finish()

    sent = [dict(request.header)["Upstash-Message-Id"] for request in rig.sender.sent]
    assert sent == [id_of(draft) for draft in drafts]


async def test_a_drain_waits_for_attempts_and_gives_back_what_is_left(rig: Rig) -> None:
    """D18."""
    rig.sender.hold()
    drafts = [a_draft(), a_draft()]
    await rig.bench.add_waiting(*drafts)
    await rig.step()

    assert await rig.finish(wait_ms=1) == 2

    again = await Bench(rig.store).claim()
    assert [(claim.retried, claim.interrupted) for claim in again] == [(0, 0)] * 2
    assert rig.places.in_flight == 0


async def test_a_drain_in_a_hurry_waits_for_nobody(rig: Rig) -> None:
    rig.sender.hold()
    await rig.bench.add_waiting(a_draft())
    await rig.step()
    hurry = asyncio.Event()
    hurry.set()

    assert await rig.dispatcher.drain(wait_ms=HOUR, hurry=hurry) == 1


async def test_an_attempt_that_runs_for_long_speaks_against_its_host(rig: Rig) -> None:
    await rig.bench.add_waiting(a_draft(url="https://slow.example/"))
    await rig.step()
    await rig.finish()
    assert rig.places.room("https://slow.example:443") == 4
    rig.sender.hold()
    await rig.bench.add_waiting(*[a_draft(url="https://slow.example/") for _ in range(4)])
    await rig.step()
    await asyncio.sleep(0)

    rig.clock.go_on(SLOW_MS + 1)
    await rig.step()

    assert rig.places.room("https://new.example:443") == 0
    rig.sender.let_go()
    await rig.finish()


async def test_a_failure_comes_again_when_it_is_due(rig: Rig) -> None:
    rig.sender.answer = lambda _request: DOWN
    draft = a_draft(retries_max=1)
    await rig.bench.add_waiting(draft)
    await rig.step()
    await rig.finish()
    rig.sender.answer = lambda _request: OK

    rig.clock.go_on(8 * SECOND)
    await rig.step()
    await rig.finish()

    assert await rig.bench.states(id_of(draft)) == [
        "CREATED", "ACTIVE", "ERROR", "RETRY", "ACTIVE", "DELIVERED",
    ]  # fmt: skip
    assert [dict(r.header)["Upstash-Retried"] for r in rig.sender.sent] == ["0", "1"]
