"""The home of name look-ups: from a host name to the addresses to try.

Each name is looked up once at a time, and whoever else wants it shares the
answer.  Look-ups under way are bounded, and each has a deadline, so that a name
server that is slow or gone holds up only the names it serves.  A good answer is
kept as long as its record says, within bounds; an old one is never used.  The
hosts file is honoured.

Faults are values here; which addresses may be reached is `egress`'s to say.
"""

import asyncio
import socket
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import aiodns
from msgspec import Struct

LOOK_UPS_MAX = 256
"""Look-ups under way at once; more wait in line, and their deadline runs."""

LOOK_UP_MS_MAX = 5_000
"""How long one look-up may take, its wait in line included."""

TRY_MS = 1_500
"""How long a name server may take to answer one query; each is asked twice."""

KEPT_MAX = 16_384
"""Good answers kept at once; the oldest go first."""

KEPT_MS_MIN = 1_000
KEPT_MS_MAX = 60_000
"""How long a good answer is kept, whatever its record says."""

ADDRESSES_MAX = 8
"""Addresses of one name that are tried; a name with more is using them for balance."""

_AI_NOSORT = 1 << 7  # ARES_AI_NOSORT: sorting opens a socket per address


class NameFault(Struct, frozen=True):
    """A name that has no address for us now, and why."""

    why: str


Answer = tuple[str, ...] | NameFault
"""The addresses of a name, IPv4 first, or the fault."""


class Names:
    """Looks names up through c-ares.  Make it inside a running loop; close it by `async with`."""

    def __init__(
        self,
        *,
        nameservers: Sequence[str] = (),
        look_ups_max: int = LOOK_UPS_MAX,
        look_up_ms_max: int = LOOK_UP_MS_MAX,
    ) -> None:
        """`nameservers` are `ip:port`; none means those of the system."""
        self._loop = asyncio.get_running_loop()
        self._resolver = aiodns.DNSResolver(
            nameservers or None, loop=self._loop, timeout=TRY_MS / 1000, tries=2
        )
        self._look_ups_max = look_ups_max
        self._look_up_s_max = look_up_ms_max / 1000
        self._kept: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._wanted: dict[str, asyncio.Future[Answer]] = {}
        self._in_line: dict[str, None] = {}  # in order of arrival
        self._under_way = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._in_line.clear()
        for name in list(self._wanted):
            self._answer(name, NameFault("the sender is closing"))
        await self._resolver.close()

    def known(self, name: str) -> tuple[str, ...] | None:
        """The addresses of `name`, if an answer is kept that still holds."""
        kept = self._kept.get(name)
        if kept is None or kept[0] <= self._loop.time():
            return None
        return kept[1]

    async def find(self, name: str) -> Answer:
        """Look `name` up, or join whoever is looking it up already.

        A caller that is cancelled leaves the look-up running for the others.
        """
        wanted = self._wanted.get(name)
        if wanted is None:
            wanted = self._wanted[name] = self._loop.create_future()
            why = f"name not found: no answer within {self._look_up_s_max:g} s"
            deadline = self._loop.call_later(
                self._look_up_s_max, self._answer, name, NameFault(why)
            )
            wanted.add_done_callback(lambda _: deadline.cancel())
            self._in_line[name] = None
            self._start()
        return await asyncio.shield(wanted)

    def _start(self) -> None:
        while self._in_line and self._under_way < self._look_ups_max:
            name = next(iter(self._in_line))
            del self._in_line[name]
            self._under_way += 1
            query = self._resolver.getaddrinfo(name, type=socket.SOCK_STREAM, flags=_AI_NOSORT)
            query.add_done_callback(partial(self._end, name))

    def _end(self, name: str, query: "asyncio.Future[Any]") -> None:
        # A query that outlived its deadline frees its place only here, so that
        # the bound holds for what c-ares really has to do.
        self._under_way -= 1
        fault = None if query.cancelled() else query.exception()
        if query.cancelled() or isinstance(fault, aiodns.error.DNSError):
            text = fault.args[1] if fault is not None else "cancelled"
            self._answer(name, NameFault(f"name not found: {text}"))
        else:
            self._answer(name, self._keep(name, query.result().nodes))
        self._start()

    def _keep(self, name: str, nodes: list[Any]) -> Answer:
        ordered = sorted(nodes, key=lambda node: node.family != socket.AF_INET)
        addresses = tuple(dict.fromkeys(node.addr[0].decode("ascii") for node in ordered))
        if not addresses:
            return NameFault("name not found: no address")
        addresses = addresses[:ADDRESSES_MAX]
        kept_ms = min(max(min(node.ttl for node in nodes) * 1000, KEPT_MS_MIN), KEPT_MS_MAX)
        self._kept.pop(name, None)  # so that the order is that of age
        while len(self._kept) >= KEPT_MAX:
            del self._kept[next(iter(self._kept))]
        self._kept[name] = (self._loop.time() + kept_ms / 1000, addresses)
        return addresses

    def _answer(self, name: str, answer: Answer) -> None:
        self._in_line.pop(name, None)
        wanted = self._wanted.pop(name, None)
        if wanted is not None and not wanted.done():
            wanted.set_result(answer)
