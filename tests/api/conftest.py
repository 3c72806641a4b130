from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support.application import Application, serving


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Application]:
    """A development server with an empty store, and a receiver."""
    async with serving() as application:
        yield application
