"""The home of the steady publisher and its receiver, which share a clock.

Publishes are sent when their time has come, whether or not earlier ones have
been answered; a message's time counts from when its request is written until
the receiver has the whole delivery.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

from msgspec import Struct

from bench.loader import AUTHORIZATION, enqueueing_to, publishing_to

CONNECTIONS_MAX = 1_024
LAST_S_MAX = 30

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
NUMBER = re.compile(rb'\{"n":(\d+)\}')


class Way(Struct, frozen=True, kw_only=True):
    """How a message is published: to a queue, with a flow-control key, or plainly."""

    queue: str | None = None
    key: str | None = None
    limits: str = ""

    def head(self, host: str, destination: str) -> bytes:
        """The head of the request, but for the length of the body."""
        path = publishing_to(destination)
        if self.queue is not None:
            path = enqueueing_to(destination, queue=self.queue)
        flow = ""
        if self.key is not None:
            flow = (
                f"Upstash-Flow-Control-Key: {self.key}\r\n"
                f"Upstash-Flow-Control-Value: {self.limits}\r\n"
            )
        return (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {AUTHORIZATION}\r\n{flow}"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()


PLAINLY = (Way(),)


class _Messages(asyncio.Protocol):
    """Cuts what is received into HTTP messages."""

    def __init__(self, on_message: Callable[["_Messages", bytes], None]) -> None:
        self._on_message = on_message
        self._received = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (blank := self._received.find(b"\r\n\r\n")) >= 0:
            found = LENGTH.search(self._received, 0, blank)
            end = blank + 4 + (int(found[1]) if found else 0)
            if len(self._received) < end:
                return
            message, self._received = self._received[:end], self._received[end:]
            self._on_message(self, message)


class OpenLoop:
    """Publishes numbered messages at a steady rate to its own receiver."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.arrived_s: dict[int, float] = {}
        self.repeats = 0
        self._stopped = False

    def stop(self) -> None:
        """Publish no more."""
        self._stopped = True

    def receive(self, connection: _Messages, message: bytes) -> None:
        now_s = time.monotonic()
        connection.transport.write(ANSWER)
        found = NUMBER.search(message)
        assert found is not None, message
        self.repeats += int(found[1]) in self.arrived_s
        self.arrived_s.setdefault(int(found[1]), now_s)

    async def publish(
        self, url: str, *, rate: int, seconds: float, ways: Sequence[Way] = PLAINLY
    ) -> list[float]:
        """Publish in these ways by turns until `seconds` have passed or `stop` is called; how
        long each message took to arrive, in milliseconds."""
        loop = asyncio.get_running_loop()
        host, _, port = url.removeprefix("http://").partition(":")
        free: list[_Messages] = []
        refused: list[bytes] = []
        opened = 0

        def answered(connection: _Messages, answer: bytes) -> None:
            if not answer.startswith(b"HTTP/1.1 200"):
                refused.append(answer)
            free.append(connection)

        async def connect() -> None:
            _, connection = await loop.create_connection(
                lambda: _Messages(answered), host, int(port)
            )
            connections.append(connection)
            free.append(connection)

        connections: list[_Messages] = []
        heads = [way.head(f"{host}:{port}", f"http://127.0.0.1:{self.port}/") for way in ways]
        sent_s: dict[int, float] = {}
        try:
            for _ in range(16):
                await connect()
            opened = len(connections)
            began_s = time.monotonic()
            for n in range(int(rate * seconds)):
                rest_s = began_s + n / rate - time.monotonic()
                if rest_s > 0:
                    await asyncio.sleep(rest_s)
                if self._stopped:
                    break
                while free and free[-1].transport.is_closing():
                    free.pop()  # the server has done with what was idle for long
                while not free:
                    opened += 1
                    if opened > CONNECTIONS_MAX:
                        raise RuntimeError(f"{CONNECTIONS_MAX} publishes are unanswered")
                    await connect()
                body = b'{"n":%d}' % n
                connection = free.pop()
                sent_s[n] = time.monotonic()
                head = heads[n % len(heads)]
                connection.transport.write(head + b"%d\r\n\r\n" % len(body) + body)
            await self._all_of(sent_s)
        finally:
            for connection in connections:
                connection.transport.close()
        if refused:
            raise RuntimeError(f"a publish was refused: {refused[0]!r}")
        return [(self.arrived_s[n] - at_s) * 1000 for n, at_s in sent_s.items()]

    async def _all_of(self, sent_s: dict[int, float]) -> None:
        end_s = time.monotonic() + LAST_S_MAX
        while len(self.arrived_s) < len(sent_s):
            if time.monotonic() > end_s:
                lost = len(sent_s) - len(self.arrived_s)
                raise RuntimeError(f"{lost} messages did not arrive within {LAST_S_MAX} s")
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def open_loop() -> AsyncIterator[OpenLoop]:
    """A publisher whose receiver listens on loopback."""
    loop = asyncio.get_running_loop()
    made = OpenLoop(0)
    server = await loop.create_server(lambda: _Messages(made.receive), "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
