"""The home of waiting for what somebody else does, in their own time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

PATIENCE_S = 20
PAUSE_S = 0.005

T = TypeVar("T")


async def until(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again and again, until there is an answer."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if found := await ask():
                return found
            await asyncio.sleep(PAUSE_S)
