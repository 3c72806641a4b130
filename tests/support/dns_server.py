"""The home of the local name server: a small UDP server for tests and benchmarks.

It answers A and AAAA questions from a table.  A name may have fixed addresses,
or a function that is asked each time (so that it can flip), or be silent: its
questions are never answered.  Names that are not in the table do not exist.
"""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address

Addresses = Sequence[str] | Callable[[], Sequence[str]]

_A, _AAAA = 1, 28
_ANSWER, _RECURSION, _NO_SUCH_NAME = 0x8000, 0x0180, 3


class DnsServer(asyncio.DatagramProtocol):
    """`asked` holds (name, "A" or "AAAA") of every question, in order."""

    def __init__(
        self, names: Mapping[str, Addresses], *, silent: Iterable[str], ttl_s: int
    ) -> None:
        self.names = dict(names)
        self.silent = set(silent)
        self.asked: list[tuple[str, str]] = []
        self.address = ""
        self._ttl_s = ttl_s
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        host, port = transport.get_extra_info("sockname")
        self.address = f"{host}:{port}"

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        name, end = _name(data)
        (kind,) = struct.unpack_from("!H", data, end)
        if kind in (_A, _AAAA):
            self.asked.append((name, "A" if kind == _A else "AAAA"))
        if name in self.silent:
            return
        found = self.names.get(name)
        addresses = found() if callable(found) else found
        records = [
            struct.pack("!HHHLH", 0xC00C, kind, 1, self._ttl_s, len(address.packed))
            + address.packed
            for address in map(ip_address, addresses or ())
            if kind == (_A if address.version == 4 else _AAAA)
        ]
        flags = _ANSWER | _RECURSION | (_NO_SUCH_NAME if found is None else 0)
        head = data[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0)
        self._transport.sendto(head + data[12 : end + 4] + b"".join(records), addr)


@contextlib.asynccontextmanager
async def dns_server(
    names: Mapping[str, Addresses], *, silent: Iterable[str] = (), ttl_s: int = 60
) -> AsyncIterator[DnsServer]:
    """Listen on a free UDP port; `address` is what a `nameservers` setting takes."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(
        lambda: DnsServer(names, silent=silent, ttl_s=ttl_s), local_addr=("127.0.0.1", 0)
    )
    try:
        yield server
    finally:
        transport.close()


def _name(query: bytes) -> tuple[str, int]:
    labels, place = [], 12
    while length := query[place]:
        labels.append(query[place + 1 : place + 1 + length].decode("ascii"))
        place += 1 + length
    return ".".join(labels).lower(), place + 1
