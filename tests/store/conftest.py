"""The store under test: every engine runs the same suite.

An engine is a fixture; a promise that leans on one engine does not belong here.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from tests.store.bench import Bench
from tests.support.factory import T0
from waypost.store.protocol import Store
from waypost.store.sqlite.store import MEMORY, SqliteStore

Open = Callable[..., AbstractAsyncContextManager[Store]]


@pytest.fixture(params=["sqlite file", "sqlite memory"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_store(engine: str, tmp_path: Path) -> Open:
    """Opens the test's own store, or one of several names; on disk, it can be opened again."""

    @asynccontextmanager
    async def opened(
        *, name: str = "waypost", now_ms: int = T0, free_bytes_min: int = 0
    ) -> AsyncIterator[Store]:
        path = MEMORY if engine == "sqlite memory" else str(tmp_path / f"{name}.db")
        store = SqliteStore(path, free_bytes_min=free_bytes_min, now_ms=now_ms)
        try:
            yield store
        finally:
            await store.close()

    return opened


@pytest.fixture
async def bench(open_store: Open) -> AsyncIterator[Bench]:
    """A store on the test bench: with places, and what was handed over at birth."""
    async with open_store() as store:
        yield Bench(store)


@pytest.fixture
def durable(engine: str) -> None:
    """For claims about opening a store again."""
    if engine == "sqlite memory":
        pytest.skip("a store in memory ends with its process")
