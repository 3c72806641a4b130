"""The home of answers that are passed on as they come: an exchange whose body is never held whole.

It is `http1`'s exchange, with all that it distrusts; but the head is told as
soon as it is there, and the body goes through a buffer that stops the reading
when it is full.  The deadline covers the whole of it.  Such a connection is
made for one exchange (docs/decisions/0014-chat-is-passed-through.md).
"""

import asyncio
from collections.abc import AsyncIterator

from msgspec import Struct

from waypost.domain.attempt import Outcome
from waypost.wire.http1 import Connection
from waypost.wire.protocol import BrokenOff

HELD_BYTES_MAX = 65_536
"""How much may wait for the one to whom it is passed on, and one read on top."""


class NoAnswer(Struct, frozen=True):
    """What there is to pass on where nothing answered."""

    outcome: Outcome

    async def pieces(self) -> AsyncIterator[bytes]:
        return
        yield b""

    def close(self) -> None:
        pass


class StreamedConnection(Connection):
    """A connection for one exchange; `waypost.wire.protocol.Streamed` once it has begun."""

    __slots__ = ("_changed", "_held_bytes", "_last", "_pieces", "outcome")

    async def begin(self, head: bytes, body: bytes, *, wait_s: float) -> None:
        """Send a request, and wait for the answer's head, or for the end without one."""
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._changed = asyncio.Event()
        self.outcome = Outcome()
        self._last = self.exchange(head, body, head_only=False, wait_s=wait_s)
        try:
            while not self.outcome.status and not self._last.done():
                await self._change()
        except BaseException:
            self.close()
            raise
        if not self.outcome.status:
            self.outcome = self._last.result()

    async def pieces(self) -> AsyncIterator[bytes]:
        while self._pieces or not self._last.done():
            if not self._pieces:
                await self._change()
                continue
            piece = b"".join(self._pieces)
            self._pieces.clear()
            self._read_on(len(piece))
            yield piece
        error = self._last.result().error
        if error is not None:
            raise BrokenOff(error)

    def close(self) -> None:
        self.give_up(self._last)
        self._last.cancel()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _read_on(self, taken_bytes: int) -> None:
        full = self._held_bytes > HELD_BYTES_MAX
        self._held_bytes -= taken_bytes
        if full and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # What the parser tells, and how it ends.

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self._status and not self.outcome.status:
            self.outcome = Outcome(status=self._status, header=self._header)
            self._changed.set()

    def on_body(self, data: bytes) -> None:
        if self._complete:
            return
        self._body_bytes += len(data)
        full = self._held_bytes > HELD_BYTES_MAX
        self._pieces.append(data)
        self._held_bytes += len(data)
        self._changed.set()
        if not full and self._held_bytes > HELD_BYTES_MAX and self._transport is not None:
            self._transport.pause_reading()

    def _succeed(self) -> None:
        self._keep = False
        super()._succeed()
        self._changed.set()

    def _fail(self, why: str, *, host_down: bool = False) -> None:
        super()._fail(why, host_down=host_down)
        self._changed.set()
