"""The upkeep loop tells when publishes begin to be refused, and when that ends."""

from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from tests.support.clock import SetClock
from tests.support.factory import DAY, SECOND, T0
from waypost.domain.errors import StoreFull
from waypost.loops.upkeep import UpkeepLoop
from waypost.store.protocol import Pruned, Retention
from waypost.store.sqlite.store import MEMORY, SqliteStore
from waypost.telemetry import Telemetry


async def told(store: SqliteStore, *steps: str | None) -> list[tuple[str, str]]:
    """The levels and events of steps five seconds apart, at each of which publishes are refused
    for a reason, or are not."""

    async def refresh() -> bool:
        return False

    keeping = UpkeepLoop(
        store,
        store,
        refresh,
        SetClock(),
        Telemetry(),
        retention=Retention(log_ms=DAY, dead_letter_ms=DAY),
    )
    with capture_logs() as logs:
        for step, why in enumerate(steps):
            store._refusing = lambda why=why: why  # type: ignore[method-assign]
            try:
                await keeping.step(T0 + 5 * SECOND * step)
            except StoreFull:  # as a step of a full disk ends
                assert why is not None
    return [(one["log_level"], one["event"]) for one in logs]


@pytest.fixture
async def store() -> AsyncIterator[SqliteStore]:
    store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
    yield store
    await store.close()


async def test_the_beginning_and_the_end_are_told_once_each(store: SqliteStore) -> None:
    said = await told(store, None, "full", "fuller", None, None, "full")

    assert said == [
        ("warning", "publishes_refused"),
        ("info", "publishes_accepted"),
        ("warning", "publishes_refused"),
    ]


async def test_it_is_told_also_where_nothing_can_be_pruned_for_the_disk_is_full(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def prune(*, retention: Retention, now_ms: int) -> Pruned:
        raise StoreFull("the disk is full")

    monkeypatch.setattr(store, "prune", prune)

    assert await told(store, "full", "full") == [("warning", "publishes_refused")]
