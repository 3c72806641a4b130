"""The store under test: every engine runs the same suite.

An engine is a parameter; a promise that leans on one engine does not belong here.  Where
an engine cannot keep one, a fixture skips it and says why.

| engine                 | in `make test`                  | in `make prove`  |
| ---------------------- | ------------------------------- | ---------------- |
| sqlite file            | all                             |                  |
| sqlite memory          | all                             |                  |
| postgres               | all                             |                  |
| postgres of the system | what is marked `every_server`   | what is not      |
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from itertools import count
from pathlib import Path

import pytest

from tests.store.bench import Bench
from tests.support.databases import Databases
from tests.support.factory import T0
from tests.support.postgres import SHIPPED, SYSTEM
from waypost.store.postgres.store import open_postgres
from waypost.store.protocol import Store
from waypost.store.sqlite.store import MEMORY, SqliteStore

FILE, IN_MEMORY = "sqlite file", "sqlite memory"
DATABASES = (SHIPPED, SYSTEM)

Open = Callable[..., AbstractAsyncContextManager[Store]]
"""Opens a store, or one of several names; but for those in memory it can be opened again."""

Stores = Callable[[], AbstractContextManager[Open]]
"""Gives out stores that are new, and nobody else's until the end of the block."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        engines = [FILE, IN_MEMORY, SHIPPED]
        if metafunc.definition.get_closest_marker("every_server"):
            engines.append(SYSTEM)
        elif metafunc.config.getoption("every_server"):
            engines.append(pytest.param(SYSTEM, marks=pytest.mark.prove))
        metafunc.parametrize("engine", engines)


@pytest.fixture
def stores(engine: str, tmp_path: Path, databases: Callable[[str], Databases]) -> Stores:
    numbers = count()

    @contextmanager
    def in_files() -> Iterator[Open]:
        directory = tmp_path / str(next(numbers))
        directory.mkdir()

        @asynccontextmanager
        async def opened(
            *, name: str = "waypost", now_ms: int = T0, free_bytes_min: int = 0
        ) -> AsyncIterator[Store]:
            path = MEMORY if engine == IN_MEMORY else str(directory / f"{name}.db")
            store = SqliteStore(path, free_bytes_min=free_bytes_min, now_ms=now_ms)
            try:
                yield store
            finally:
                await store.close()

        yield opened

    @contextmanager
    def in_databases() -> Iterator[Open]:
        with databases(engine).lending() as lend:
            urls: dict[str, str] = {}

            @asynccontextmanager
            async def opened(*, name: str = "waypost", now_ms: int = T0) -> AsyncIterator[Store]:
                if name not in urls:
                    urls[name] = await lend()
                store = await open_postgres(urls[name], now_ms=now_ms)
                try:
                    yield store
                finally:
                    await store.close()

            yield opened

    return in_databases if engine in DATABASES else in_files


@pytest.fixture
def open_store(stores: Stores) -> Iterator[Open]:
    with stores() as opened:
        yield opened


@pytest.fixture
async def bench(open_store: Open) -> AsyncIterator[Bench]:
    """A store on the test bench: with places, and what was handed over at birth."""
    async with open_store() as store:
        yield Bench(store)


@pytest.fixture
def durable(engine: str) -> None:
    """For claims about opening a store again."""
    if engine == IN_MEMORY:
        pytest.skip("a store in memory ends with its process")


@pytest.fixture
def watermark(engine: str, durable: None) -> None:
    """For claims about the free space below which publishes are refused."""
    if engine in DATABASES:
        pytest.skip("the disk of a database server is not ours to see")


@pytest.fixture
def gives_back(engine: str) -> None:
    """For claims about the size of a store from which rows are removed."""
    if engine in DATABASES:
        pytest.skip("PostgreSQL keeps the room of rows; see test_parts.py")
