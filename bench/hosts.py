"""The home of destinations that hang: addresses that accept and never answer, names unknown.

Only loopback: 127.1.0.0/16 is all this machine's.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence

GOOD_NAME = "good.bench"


def hanging_addresses(count: int) -> list[str]:
    """Addresses within 127.1.0.0/16."""
    return [f"127.1.{n // 250}.{n % 250 + 1}" for n in range(count)]


def hanging_names(count: int) -> list[str]:
    return [f"hanging-{n}.bench" for n in range(count)]


class _Silence(asyncio.Protocol):
    """A connection that is accepted and never answered."""


@contextlib.asynccontextmanager
async def hanging(addresses: Sequence[str]) -> AsyncIterator[int]:
    """Listen on one port of each address; the port.  What comes is never answered."""
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        port = 0
        for address in addresses:
            listener = socket.create_server((address, port), backlog=1024)
            port = listener.getsockname()[1]
            server = await loop.create_server(_Silence, sock=listener)
            stack.callback(server.close)
        yield port
