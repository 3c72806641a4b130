"""The home of our HTTP/1.1 client: connections, the pool of idle ones, one exchange at a time.

Parsing is httptools'; what is ours is that an exchange costs one future and one
timer, and that nothing a server does is trusted.

| the server                                  | the outcome                          |
| ------------------------------------------- | ------------------------------------ |
| ends the answer as it said it would         | the answer; the connection is kept   |
| answers 101, two heads, or bytes after the end | never reused; 101 is an error     |
| announces a body with 204 or 304            | never reused: it may come all the same, and late |
| sends more body than we keep                | the answer, `truncated`; closed, not drained |
| breaks off, breaks the rules, is too slow   | an error; status, header and body so far |
| closes an idle connection as we send        | `unanswered`: the sender may redial (D15) |

Where a connection leads, and whether it may, is `sender`'s and `egress`'s.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, cast

import httptools

from waypost.domain.attempt import Outcome
from waypost.wire.protocol import NotBegun, always

HEAD_BYTES_MAX = 65_536
"""All heads of one answer together: status lines, fields, and any 1xx before them."""

FIELDS_MAX = 256
"""Fields in one head."""

INFORMATIONAL_MAX = 16
"""Answers of 1xx that are skipped before the real one."""

FRAMING_FACTOR = 16
"""Bytes on the wire per byte of body: a chunk of one byte takes six, extensions and trailers
may take the rest.  Past it (and twice HEAD_BYTES_MAX) the framing is an attack."""

IDLE_S_MAX = 15.0
"""How long an idle connection is kept; servers commonly close theirs after 60 s or more."""

IDLE_PER_ROUTE_MAX = 64
"""Idle connections kept to one place: as many as go out to one host at once."""

IDLE_MAX = 1_024
"""Idle connections kept in all."""

JOIN_BYTES_MAX = 65_536
"""A body up to this size is copied behind the head and written with it."""


class Route(NamedTuple):
    """Where a connection leads; connections to equal routes are interchangeable.

    `server_name` is what the certificate must say, None without TLS.
    """

    address: str
    port: int
    server_name: str | None


class _BrokenAnswerError(Exception):
    """The answer breaks a rule; raised through the parser to stop it."""


class Connection(asyncio.Protocol):
    """One connection.  At most one exchange is under way on it."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_body_bytes_max",
        "_complete",
        "_fields",
        "_head_only",
        "_header",
        "_informational",
        "_is_1_1",
        "_keep",
        "_loop",
        "_parser",
        "_pool",
        "_sent",
        "_status",
        "_timer",
        "_transport",
        "_truncated",
        "_waiter",
        "_wire_bytes",
        "idle_since_s",
        "route",
        "unanswered",
    )

    def __init__(
        self,
        *,
        route: Route,
        pool: "Pool",
        body_bytes_max: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.route = route
        self.idle_since_s = 0.0
        self.unanswered = False
        self._pool = pool
        self._loop = loop
        self._body_bytes_max = body_bytes_max
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Outcome] | None = None
        self._complete = False

    def exchange(
        self,
        head: bytes,
        body: bytes,
        *,
        head_only: bool,
        wait_s: float,
        may_begin: Callable[[], bool] = always,
    ) -> asyncio.Future[Outcome]:
        """Send a request; the future is the outcome, within `wait_s`.

        `head_only` says that the answer has no body whatever its head says
        (HEAD).  Whoever stops waiting must call `give_up`.  Raises NotBegun, in the
        future, where `may_begin` says no as the request is about to be written.
        """
        assert self._waiter is None
        self._head_only = head_only
        self._header: list[tuple[str, str]] = []
        self._fields: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._status = self._body_bytes = self._wire_bytes = self._informational = 0
        self._complete = self._keep = self._truncated = self.unanswered = self._sent = False
        self._waiter = waiter = self._loop.create_future()
        self._timer = self._loop.call_later(wait_s, self._expire)
        transport = self._transport
        if transport is None or transport.is_closing():
            self._lose("closed")
        elif len(body) <= JOIN_BYTES_MAX:
            # After all that is ready now: requests then leave in bursts, and the receiver
            # is woken once for many of them (docs/decisions/0006-the-hot-path.md).
            self._loop.call_soon(self._write, waiter, (head + body,), may_begin)
        else:
            self._write(waiter, (head, body), may_begin)
        return waiter

    def _write(
        self,
        waiter: asyncio.Future[Outcome],
        pieces: tuple[bytes, ...],
        may_begin: Callable[[], bool],
    ) -> None:
        """Write a request, if somebody still waits for its answer and it may begin."""
        if self._waiter is not waiter or self._transport is None:
            return
        if may_begin():
            self._sent = True
            self._transport.writelines(pieces)
        else:
            if not waiter.done():
                waiter.set_exception(NotBegun())
            self._forget()
            self.abandon()

    def give_up(self, waiter: asyncio.Future[Outcome]) -> None:
        """Close the connection if the exchange that `waiter` waits for is still under way.

        When it has ended, the connection may be in the pool or another's by now.
        """
        if self._waiter is waiter:
            self.abandon()

    def abandon(self) -> None:
        """Close the connection now, whatever is under way on it."""
        if self._waiter is not None:
            self._waiter = None
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:  # nobody asked: it is no answer to what we send next
            self._pool.forget(self)
            self.abandon()
            return
        if not self._sent:  # nor is it an answer to what has not left yet
            self._lose("closed")
            return
        if self._wire_bytes == 0:
            self._is_1_1 = data.startswith(b"HTTP/1.1 ")
            if not self._is_1_1 and data[0] != 0x48:  # "H"; the parser takes RTSP and ICE too
                self._fail("invalid HTTP: the answer does not begin with HTTP/")
                return
        self._wire_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as fault:
            self._keep = False
            if not self._complete:
                cause = fault.__context__
                text = str(cause) if isinstance(cause, _BrokenAnswerError) else _invalid(fault)
                self._fail(text)
                return
        if self._complete:
            self._succeed()
        elif self._status == 0:
            if self._wire_bytes > HEAD_BYTES_MAX:
                self._fail(_HEAD_TOO_LARGE)
        elif self._wire_bytes > 2 * HEAD_BYTES_MAX + FRAMING_FACTOR * self._body_bytes:
            self._fail("invalid HTTP: more framing than body")

    def eof_received(self) -> None:
        if self._waiter is None:
            self._pool.forget(self)
        elif self._ends_by_closing():
            self._succeed()
        else:
            self._lose("closed")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._waiter is None:
            self._pool.forget(self)
        else:
            self._lose("closed" if exc is None else "reset")

    # What the parser tells.

    def on_message_begin(self) -> None:
        if self._complete:  # bytes after the end
            self._keep = False

    def on_header(self, name: bytes, value: bytes) -> None:
        fields = self._fields  # after the head these are trailers, which nobody reads
        fields.append((name, value))
        if len(fields) > FIELDS_MAX:
            raise _BrokenAnswerError(f"the answer has more than {FIELDS_MAX} fields")

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        parser = self._parser
        fields = self._fields
        self._fields = []
        status = parser.get_status_code()
        # Asking the parser for the version costs a string, so it is asked when in doubt.
        certain = self._is_1_1 and not self._informational
        if not certain and parser.get_http_version() not in _VERSIONS:
            raise _BrokenAnswerError("invalid HTTP: the answer's version is neither 1.1 nor 1.0")
        if self._wire_bytes > HEAD_BYTES_MAX:
            # The head may be small and the rest of these bytes the body.
            head_bytes = sum(len(name) + len(value) + 4 for name, value in fields)
            if head_bytes > HEAD_BYTES_MAX:
                raise _BrokenAnswerError(_HEAD_TOO_LARGE)
        if 200 <= status <= 599:
            self._status = status
            self._header = [
                # No name is kept: a destination may send ever new ones, each as large as a
                # head, and to look one up takes as long as to make it.
                (name.lower().decode("latin-1"), value.decode("latin-1").rstrip(" \t"))
                for name, value in fields
            ]
            if self._head_only:
                self._complete = True
                self._keep = parser.should_keep_alive()
                # It waits for a body that does not come.
                self._parser = httptools.HttpResponseParser(self)
            return
        if status == 101:
            raise _BrokenAnswerError(
                "the answer is 101 Switching Protocols, which was not asked for"
            )
        if not 100 <= status <= 199:
            self._status = status
            raise _BrokenAnswerError(f"invalid HTTP: status {status:03}")
        self._informational += 1
        if self._informational > INFORMATIONAL_MAX:
            raise _BrokenAnswerError(f"more than {INFORMATIONAL_MAX} answers of 1xx")

    def on_body(self, data: bytes) -> None:
        if self._complete:  # a body after HEAD
            self._keep = False
            return
        self._body_bytes += len(data)
        over = self._body_bytes - self._body_bytes_max
        if over > 0:
            self._body.append(data[: len(data) - over])
            self._truncated = self._complete = True
            raise _BrokenAnswerError  # to stop the parser; what is kept is the answer
        self._body.append(data)

    def on_message_complete(self) -> None:
        if self._status and not self._complete:
            self._complete = True
            self._keep = self._parser.should_keep_alive()
            if self._status in _BODILESS and self._announces_a_body():
                self._keep = False

    # How an exchange ends.

    def _succeed(self) -> None:
        body = self._body
        transport = self._transport
        waiter = self._waiter
        assert waiter is not None
        if waiter.done():  # cancelled, and `give_up` has not been called yet
            self.abandon()
            return
        self._waiter = None
        self._timer.cancel()
        # An answer that came before the request was read leaves bytes unsent.
        if self._keep and transport is not None and not transport.get_write_buffer_size():
            self._pool.put(self)
        elif transport is not None:
            transport.abort()
        waiter.set_result(
            Outcome(
                status=self._status,
                header=self._header,
                body=body[0] if len(body) == 1 else b"".join(body),
                truncated=self._truncated,
            )
        )
        self._forget()

    def _fail(self, why: str, *, host_down: bool = False) -> None:
        waiter = self._waiter
        assert waiter is not None
        if not waiter.done():
            waiter.set_result(
                Outcome(
                    status=self._status,
                    header=self._header,
                    body=b"".join(self._body),
                    error=why,
                    host_down=host_down,
                )
            )
        self._forget()
        self.abandon()

    def _forget(self) -> None:
        """Let go of the answer: the connection may live on, and it is the outcome's now."""
        self._header, self._fields, self._body = [], [], []

    def _lose(self, how: str) -> None:
        if self._wire_bytes == 0:
            self.unanswered = True
            where = "before any answer"
        else:
            where = "in the middle of the answer's " + ("body" if self._status else "head")
        self._fail(f"the connection was {how} {where}", host_down=self._status == 0)

    def _expire(self) -> None:
        if self._wire_bytes == 0:
            where = "no answer"
        else:
            where = "the answer's " + ("body" if self._status else "head") + " was not finished"
        self._fail(f"timed out: {where}", host_down=True)

    def _announces_a_body(self) -> bool:
        return any(
            name == "transfer-encoding" or (name == "content-length" and value != "0")
            for name, value in self._header
        )

    def _ends_by_closing(self) -> bool:
        """Whether the answer's body is all that comes until the connection is closed."""
        if not self._status:
            return False
        for name, value in self._header:
            if name == "content-length":
                return False
            if name == "transfer-encoding" and value.lower().endswith("chunked"):
                return False
        return True


class Pool:
    """Idle connections by route; the last one used is the first one taken."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        idle_s_max: float = IDLE_S_MAX,
        idle_per_route_max: int = IDLE_PER_ROUTE_MAX,
        idle_max: int = IDLE_MAX,
    ) -> None:
        self._loop = loop
        self._idle_s_max = idle_s_max
        self._idle_per_route_max = idle_per_route_max
        self._idle_max = idle_max
        self._idle: dict[Route, list[Connection]] = {}
        self._count = 0
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        return self._count

    def take(self, route: Route) -> Connection | None:
        """An idle connection to `route`, or None."""
        idle = self._idle.get(route)
        if not idle:
            return None
        self._count -= 1
        return idle.pop()

    def put(self, connection: Connection) -> None:
        """Keep a connection whose exchange has ended, or close it or an older one for room."""
        if self._closed:
            connection.abandon()
            return
        idle = self._idle.get(connection.route)
        if idle is None:
            idle = self._idle[connection.route] = []
        elif len(idle) >= self._idle_per_route_max:
            connection.abandon()
            return
        connection.idle_since_s = self._loop.time()
        idle.append(connection)
        self._count += 1
        if self._count > self._idle_max:
            self._make_room()
        if self._sweep is None:
            self._sweep = self._loop.call_later(self._idle_s_max / 2, self._close_old)

    def forget(self, connection: Connection) -> None:
        """Drop a connection that its server closed; it need not be idle here."""
        idle = self._idle.get(connection.route)
        if idle is not None and connection in idle:
            idle.remove(connection)
            self._count -= 1

    def close(self) -> None:
        """Close every idle connection, and from now on those that become idle."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for idle in self._idle.values():
            while idle:
                self._close_oldest(idle)

    def _close_old(self) -> None:
        self._sweep = None
        limit_s = self._loop.time() - self._idle_s_max
        for route, idle in list(self._idle.items()):
            while idle and idle[0].idle_since_s <= limit_s:
                self._close_oldest(idle)
            if not idle:
                del self._idle[route]
        if self._idle:
            self._sweep = self._loop.call_later(self._idle_s_max / 2, self._close_old)

    def _make_room(self) -> None:
        """Close the oldest connection of the route that has been here longest."""
        while True:
            route = next(iter(self._idle))
            idle = self._idle[route]
            if idle:
                self._close_oldest(idle)
                return
            del self._idle[route]

    def _close_oldest(self, idle: list[Connection]) -> None:
        self._count -= 1
        idle.pop(0).abandon()


_VERSIONS = frozenset(("1.1", "1.0"))

_BODILESS = frozenset((204, 304))

_HEAD_TOO_LARGE = f"the answer's head is larger than {HEAD_BYTES_MAX} bytes"


def _invalid(fault: Exception) -> str:
    return f"invalid HTTP: {str(fault)[:200]}"
