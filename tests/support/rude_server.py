"""The home of the rude server: a raw local server whose every byte and manner a test chooses.

A script is what one connection does: it gets a `Peer` and may read requests,
send any bytes, hang, close or reset.  What a script leaves open is closed with
the server.  `RudeServer` counts connections and keeps the requests as they came.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """One connection, seen from the server."""

    def __init__(
        self, server: "RudeServer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer

    async def read_request(self) -> bytes:
        """One whole request: its head, and as much body as it says."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        request = head + await self._reader.readexactly(length)
        self._server.requests.append(request)
        return request

    async def send(self, data: bytes) -> None:
        if self._writer.is_closing():
            raise ConnectionResetError
        self._writer.write(data)
        await self._writer.drain()

    async def drip(self, data: bytes, *, every_s: float) -> None:
        for place in range(len(data)):
            await self.send(data[place : place + 1])
            await asyncio.sleep(every_s)

    async def flood(self, unit: bytes) -> None:
        """Send `unit` for ever."""
        block = unit * (16_384 // len(unit) + 1)
        while True:
            await self.send(block)
            await asyncio.sleep(0)  # drain does not yield while there is room

    async def hang(self) -> None:
        await asyncio.Event().wait()

    async def until_closed(self) -> None:
        """Wait until the other side has closed."""
        while await self._reader.read(65_536):
            pass

    def reset(self) -> None:
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()


class RudeServer:
    """A listening server; `url` leads to it."""

    def __init__(self, *, tls: bool) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.port = 0
        self._scheme = "https" if tls else "http"

    def url(self, path: str = "/", *, host: str = "127.0.0.1") -> str:
        return f"{self._scheme}://{host}:{self.port}{path}"


@contextlib.asynccontextmanager
async def rude_server(
    script: Script, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[RudeServer]:
    """Listen on a free port and run `script` for each connection."""
    server = RudeServer(tls=tls is not None)
    under_way: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        under_way.add(task)
        server.connections += 1
        try:
            # Whoever is tested may break off; that is its right.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await script(Peer(server, reader, writer))
        except asyncio.CancelledError:  # at the end of the test
            pass
        finally:
            writer.transport.abort()
            under_way.discard(task)

    listener = await asyncio.start_server(serve, host, 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        ending = list(under_way)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


def answering(*answers: bytes) -> Script:
    """Answer each request with the next of `answers`; after the last, close."""

    async def script(peer: Peer) -> None:
        for answer in answers:
            await peer.read_request()
            await peer.send(answer)
        peer.close()

    return script


def answering_always(answer: bytes) -> Script:
    """Answer every request the same way and keep the connection open."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.read_request()
            await peer.send(answer)

    return script


def once_each(*scripts: Script) -> Script:
    """The first connection runs the first script, and so on; the last is for all that follow."""
    waiting: Iterator[Script] = iter(scripts)
    last = scripts[-1]

    async def script(peer: Peer) -> None:
        await next(waiting, last)(peer)

    return script


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
