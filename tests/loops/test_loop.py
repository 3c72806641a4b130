"""A loop steps and rests; hints wake it, faults of the store rest it, others end it."""

import asyncio

import pytest
from structlog.testing import capture_logs

from tests.support.clock import SetClock
from tests.support.factory import HOUR, SECOND
from waypost.domain.errors import StoreBroken, StoreFull, StoreUnavailable
from waypost.loops import loop as home
from waypost.loops.loop import Loop
from waypost.telemetry import Telemetry


async def test_a_hint_ends_a_rest() -> None:
    stepped = asyncio.Event()

    async def step(_now_ms: int) -> int:
        stepped.set()
        return HOUR

    loop = Loop("test", step, clock=SetClock(), telemetry=Telemetry())
    async with asyncio.TaskGroup() as group:
        group.create_task(loop.run())
        await stepped.wait()
        stepped.clear()
        loop.wake.set()
        await stepped.wait()
        loop.stop()


async def test_a_store_that_is_away_rests_the_loop_and_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(home, "REST_AFTER_FAULT_MS", 1)
    telemetry = Telemetry()
    steps = 0

    async def step(_now_ms: int) -> int:
        nonlocal steps
        steps += 1
        if steps == 3:
            loop.stop()
        raise StoreUnavailable("away")

    loop = Loop("test", step, clock=SetClock(), telemetry=telemetry)
    with capture_logs() as logs:
        await loop.run()

    assert telemetry.loop_faults == 3
    assert [(one["event"], one["why"]) for one in logs] == [("loop_fault", "away")]


async def test_a_loop_waits_for_free_space_and_says_so_once_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(home, "REST_AFTER_FAULT_MS", 1)
    telemetry = Telemetry()
    full = iter([True, True, True, False, True, True])
    left = 6

    async def step(_now_ms: int) -> int:
        nonlocal left
        left -= 1
        if left == 0:
            loop.stop()
        if next(full):
            raise StoreFull("1 byte is free")
        return 0

    loop = Loop("test", step, clock=SetClock(), telemetry=telemetry)
    with capture_logs() as logs:
        await loop.run()

    assert [(one["event"], one["why"]) for one in logs] == [("loop_waits", "1 byte is free")] * 2
    assert telemetry.loop_faults == 0


@pytest.mark.parametrize("fault", [StoreBroken("gone"), ZeroDivisionError()])
async def test_a_fault_that_will_not_pass_ends_the_loop(fault: Exception) -> None:
    async def step(_now_ms: int) -> int:
        raise fault

    with pytest.raises(type(fault)):
        await Loop("test", step, clock=SetClock(), telemetry=Telemetry()).run()


async def test_a_loop_that_ends_no_step_is_dead() -> None:
    clock = SetClock()

    async def step(_now_ms: int) -> int:
        return 0

    loop = Loop("test", step, clock=clock, telemetry=Telemetry())
    clock.go_on(15 * SECOND)
    assert loop.vital() is None
    clock.go_on(1)
    assert "test loop" in (loop.vital() or "")
