"""Services over a store in memory, a clock that is set and a sender that remembers."""

from collections.abc import AsyncIterator

import pytest

from tests.support.clock import SetClock
from tests.support.factory import T0
from tests.support.sender import RememberingSender
from waypost.store.sqlite.store import MEMORY, SqliteStore


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def sender() -> RememberingSender:
    return RememberingSender()


@pytest.fixture
async def store() -> AsyncIterator[SqliteStore]:
    store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
    yield store
    await store.close()
