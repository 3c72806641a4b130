"""The home of one run under load: publish, then wait until the last message is delivered."""

import time
from collections.abc import Awaitable

from msgspec import Struct

from bench.loader import Load
from bench.machine import Others
from bench.server import Service


class Run(Struct, frozen=True, kw_only=True):
    """What came of it.  `rate` counts from the first publish until the last was delivered."""

    delivered: int
    took_s: float
    published_rate: float
    cpu_us: float
    others_cores: float

    @property
    def rate(self) -> float:
        return self.delivered / self.took_s


async def under(load: Awaitable[Load], server: Service, *, callbacks: bool = False) -> Run:
    """Let wrk do as `load` says, and wait for all that it published, and its callbacks."""
    since = await server.counts()
    cpu_us = server.cpu_us()
    others = Others()
    began_s = time.monotonic()
    did = await load
    delivered, ended_s = await server.drained(since=since, callbacks=callbacks)
    return Run(
        delivered=delivered,
        took_s=ended_s - began_s,
        published_rate=did.rate,
        cpu_us=(server.cpu_us() - cpu_us) / max(1, delivered),
        others_cores=others.cores(),
    )
