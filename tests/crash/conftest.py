"""The home of what crash tests need: a PostgreSQL of their own."""

from collections.abc import Iterator

import pytest

from tests.crash.cluster import DURABLE
from tests.support.postgres import SHIPPED, Server, running


@pytest.fixture
def postgres() -> Iterator[Server]:
    """One that nobody else misses."""
    with running(SHIPPED, DURABLE) as server:
        yield server
