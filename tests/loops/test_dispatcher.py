"""The claims in hand: filled, drained, given back."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence

import pytest

from tests.store.bench import Bench, id_of, queued
from tests.support.clock import SetClock
from tests.support.factory import DOWN, HOUR, OK, SECOND, T0, a_draft, some_places
from tests.support.sender import RememberingSender
from waypost import services
from waypost.domain.errors import StoreFull, StoreUnavailable
from waypost.domain.places import SLOW_MS, Places
from waypost.domain.retry import Backoff
from waypost.loops.dispatcher import POLL_MS, Dispatcher
from waypost.services.delivery import Delivery
from waypost.store.protocol import Claim
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
            entropy=random.Random(0).getrandbits,
        )
        self.dispatcher = Dispatcher(store, delivery, places, self.clock, telemetry)
        store.writer.on_waiting = self.dispatcher.hint
        self.bench = Bench(store, places)

    async def step(self) -> int:
        return await self.dispatcher.step(self.clock.now_ms())

    async def finish(self) -> None:
        """Wait for the attempts under way; unlike after a drain, others may begin later."""
        await self.dispatcher._all_have_ended()


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

    assert await rig.dispatcher.drain(wait_ms=1, hurry=asyncio.Event()) == 2

    again = await Bench(rig.store).claim()
    assert [(claim.retried, claim.interrupted) for claim in again] == [(0, 0)] * 2
    assert rig.places.in_flight == 0


async def test_what_may_not_begin_any_more_is_given_back_and_not_sent(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.bench.add_waiting(a_draft())
    monkeypatch.setattr(rig.store, "may_begin", lambda _claim: False)
    await rig.step()
    await rig.finish()

    assert rig.sender.sent == []
    assert rig.places.in_flight == 0
    [again] = await Bench(rig.store).claim()
    assert (again.retried, again.interrupted) == (0, 0)


async def test_a_claim_is_given_back_once_the_store_is_there_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.bench.add_waiting(a_draft())
    release, away = rig.store.release, iter([True, True])

    async def release_later(claims: Sequence[Claim], *, now_ms: int) -> None:
        if claims and next(away, False):
            raise StoreUnavailable("away")
        await release(claims, now_ms=now_ms)

    monkeypatch.setattr(services.delivery, "SETTLE_AGAIN_MS", 1)
    monkeypatch.setattr(rig.store, "release", release_later)
    monkeypatch.setattr(rig.store, "may_begin", lambda _claim: False)
    await rig.step()
    await rig.finish()

    assert next(away, None) is None
    assert len(await Bench(rig.store).claim()) == 1


async def test_a_drain_in_a_hurry_waits_for_nobody(rig: Rig) -> None:
    rig.sender.hold()
    await rig.bench.add_waiting(a_draft())
    await rig.step()
    hurry = asyncio.Event()
    hurry.set()

    assert await rig.dispatcher.drain(wait_ms=HOUR, hurry=hurry) == 1


@pytest.mark.parametrize("problem", [StoreFull, StoreUnavailable])
async def test_a_drain_waits_for_attempts_while_the_store_is_full_or_away(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, problem: type[Exception]
) -> None:
    async def release(_claims: Sequence[Claim], *, now_ms: int) -> None:
        raise problem

    rig.sender.hold()
    draft = a_draft()
    await rig.bench.add_waiting(draft)
    await rig.step()
    monkeypatch.setattr(rig.store, "release", release)
    drain = asyncio.create_task(rig.dispatcher.drain(wait_ms=HOUR, hurry=asyncio.Event()))
    for _ in range(10):
        await asyncio.sleep(0)
    rig.sender.let_go()

    assert await drain == 0
    assert await rig.bench.states(id_of(draft)) == ["CREATED", "ACTIVE", "DELIVERED"]


async def test_an_attempt_that_runs_for_long_leaves_its_place_and_speaks_against_its_host(
    rig: Rig,
) -> None:
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

    assert (rig.places.free, rig.places.lingering) == (8, 4)
    rig.sender.let_go()
    await rig.finish()
    assert (rig.places.free, rig.places.lingering) == (8, 0)


async def test_whoever_waits_for_a_place_has_it_when_the_oldest_attempt_lingers(rig: Rig) -> None:
    rig.sender.hold()
    await rig.bench.add_waiting(*[a_draft(url=f"https://hanging{n}.example/") for n in range(4)])
    await rig.step()
    await rig.bench.add_waiting(a_draft(url="https://new.example/"))

    rig.clock.go_on(SLOW_MS - 300)
    assert await rig.step() == 301
    rig.clock.go_on(301)
    await rig.step()
    await asyncio.sleep(0)

    assert rig.sender.sent[-1].url == "https://new.example/"
    rig.sender.let_go()
    await rig.finish()


async def test_a_hint_of_a_turn_after_the_rest_wakes_nobody(rig: Rig) -> None:
    await rig.step()
    rig.dispatcher.loop.wake.clear()

    await rig.bench.add(a_draft(delay_ms=POLL_MS))
    assert not rig.dispatcher.loop.wake.is_set()
    await rig.bench.add(a_draft(delay_ms=POLL_MS - 1))
    assert rig.dispatcher.loop.wake.is_set()


async def test_a_claim_that_waits_for_bodies_to_go_is_not_asked_over_and_over(rig: Rig) -> None:
    places = some_places(bytes_max=1_000)
    rig = Rig(rig.store, places)
    rig.sender.hold()
    await rig.bench.add_waiting(a_draft(body=b"x" * 1_000), a_draft(body=b"y"))
    assert await rig.step() == POLL_MS
    await asyncio.sleep(0)
    rig.dispatcher.loop.wake.clear()

    assert await rig.step() == POLL_MS
    rig.sender.let_go()
    await rig.finish()

    assert rig.dispatcher.loop.wake.is_set()
    await rig.step()
    await rig.finish()
    assert len(rig.sender.sent) == 2


async def test_an_attempt_that_is_cancelled_before_it_began_gives_its_place_back(rig: Rig) -> None:
    await rig.bench.add_waiting(a_draft())
    [claim] = await rig.bench.claim()
    others = asyncio.all_tasks()
    rig.dispatcher.hand_over(claim)
    [task] = asyncio.all_tasks() - others

    task.cancel()
    await asyncio.wait([task])

    assert rig.sender.sent == []
    assert rig.places.in_flight == 0


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
