"""The home of bulk work: much is done in small calls, so that nobody waits long for one."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

CHUNK: Final = 10
"""What one call does, some 40 us each: a publish that comes meanwhile waits for it."""

Result = TypeVar("Result")


async def in_chunks(
    ids: Sequence[str], call: Callable[[Sequence[str]], Awaitable[Result]]
) -> list[Result | BaseException]:
    """Ask for all of the chunks at once: what became of each, in their order."""
    return await asyncio.gather(
        *(call(ids[at : at + CHUNK]) for at in range(0, len(ids), CHUNK)), return_exceptions=True
    )


async def total(ids: Sequence[str], call: Callable[[Sequence[str]], Awaitable[int]]) -> int:
    """The sum of what the chunks answer.  Raises what the first of them raised that failed."""
    done = 0
    for result in await in_chunks(ids, call):
        if isinstance(result, BaseException):
            raise result
        done += result
    return done
