"""The home of the HTTP server: what a connection may do before a request reaches the application.

HTTP/1.1 on httptools' parser, strict, and made for the hot path: measured
against uvicorn in docs/decisions/0006-the-hot-path.md.

- What cannot be read is answered in JSON (D34), after the answers to what was
  sent before it, and with the connection left open for a moment, so that a
  caller who is still sending gets to read why.
- A request's head is counted (431) and must come in time, and a connection
  that waits is closed in the end; one sweep a second looks after that.
- `Transfer-Encoding` other than `chunked`, HTTP versions other than 1.0 and
  1.1, and a Host that is missing or doubled are refused; trailers are dropped.
- An offer to upgrade is ignored as HTTP wants it, its request keeps its body
  (Java's client offers HTTP/2 with its first request).
- A caller who shuts down his half of the connection gets his answers.
- Requests that are pipelined are answered one by one, in order.
- An answer whose body is still to come is written in chunks as it comes, no
  faster than it is read, and broken off where the body is; its caller's going
  away ends it at its source.

The parser itself refuses Content-Length beside Transfer-Encoding, two
Content-Lengths, bare line feeds, folded lines, blanks before a colon, control
characters and malformed chunks.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Final, cast

import httptools

from waypost.api import problems
from waypost.api.answer import Answer, Rest
from waypost.api.app import Application
from waypost.api.exchange import Gone, Request
from waypost.api.problems import Busy
from waypost.domain.errors import HeadersTooLarge, Invalid, Problem
from waypost.wire.protocol import BrokenOff

FIELDS_MAX: Final = 200
HEAD_S_MAX: Final = 10
IDLE_S_MAX: Final = 75
LINGER_S: Final = 2
WRITE_S_MAX: Final = 30
"""A caller who reads nothing of his answers for so long is dropped."""
CLOSE_S_MAX: Final = 10
"""An answer that was written must be read in this time once the connection is to close."""
DRAIN_S_MAX: Final = 5
SWEEP_S: Final = 1.0
UNSENT_POLL_S: Final = 0.02
BACKLOG: Final = 2_048
UNREAD_BYTES_MAX: Final = 65_536
"""How much of a body is taken in before the application asks for it."""

NEVER: Final = float("inf")

STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}

BODILESS: Final = frozenset((204, 304))
"""What has no body, whatever its head says."""


class _Exchange:
    """A request that was begun, and how its connection is to go on after it."""

    __slots__ = ("answered", "expects_continue", "keep_alive", "request", "takes_chunks")

    def __init__(
        self, request: Request, *, keep_alive: bool, expects_continue: bool, takes_chunks: bool
    ) -> None:
        self.request = request
        self.keep_alive = keep_alive
        self.expects_continue = expects_continue
        self.takes_chunks = takes_chunks
        self.answered = False


class _Protocol(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self, server: "HttpServer", loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._parser = _a_parser(self)
        self._head_bytes_max = server.head_bytes_max
        self._client: str | None = None
        self._exchange: _Exchange | None = None
        self._pipeline: deque[_Exchange] = deque()
        self._reading = True
        self._writable = True
        self._room: asyncio.Future[None] | None = None
        self._unsent: list[bytes] = []
        self._in_head = False
        self._in_body = False
        self._upgrading = False
        self._deaf = False
        self._turned_away = False
        self._refusal: bytes | None = None
        self._head_bytes = 0
        self._barren_bytes = 0
        self._advanced = False
        self._body_bytes = 0
        self._stalled_bytes = 0
        self._hung_up = False
        self._hosts = 0
        self._url = b""
        self._header: list[tuple[bytes, bytes]] = []
        self._expects_continue = False
        self.deadline_s = NEVER

    # What the transport says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self._client = str(peer[0]) if isinstance(peer, tuple) else None
        connections = self._server.connections
        connections.add(self)
        self._turned_away = len(connections) > self._server.connections_max
        self.deadline_s = self._loop.time() + HEAD_S_MAX
        if len(connections) > 2 * self._server.connections_max:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._deaf = True
        for exchange in (self._exchange, *self._pipeline):
            if exchange is not None and not exchange.answered:
                exchange.request.lose()
        self._pipeline.clear()

    def eof_received(self) -> bool:
        """Keep the connection for as long as whole requests are unanswered."""
        self._flush()
        exchange = self._exchange
        if exchange is None or exchange.answered or not exchange.request.whole:
            return False
        if exchange.request.ends_with_caller:
            exchange.request.lose()
            self.deadline_s = self._loop.time() + CLOSE_S_MAX
            return False
        self._deaf = True
        if self._pipeline and not self._pipeline[-1].request.whole:
            self._pipeline.pop().request.lose()
        (self._pipeline[-1] if self._pipeline else exchange).keep_alive = False
        self.deadline_s = NEVER
        return True

    def pause_writing(self) -> None:
        """A caller who does not read his answers is not read either."""
        self._writable = False
        self._pause_reading()
        self._await_reader()

    def resume_writing(self) -> None:
        self._writable = True
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        if self._exchange is not None and self._exchange.answered and not self._hung_up:
            self._go_on()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._turned_away:
            self._refuse(problems.answer(Busy("too many connections, try again")))
            return
        body_bytes = self._body_bytes
        self._advanced = False
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, Problem):
                self._refuse(problems.answer(cause))
            elif isinstance(error, httptools.HttpParserCallbackError):
                self._refuse(problems.unexpected("none"))
            else:
                self._refuse(problems.answer(Invalid(_malformed(error))))
            return
        if self._advanced or self._body_bytes != body_bytes:
            self._barren_bytes = 0
        elif self._in_head or self._in_body:
            # The parser gathers a field, a chunk extension or a trailer that has no end yet.
            self._barren_bytes += len(data)
            if self._barren_bytes > self._head_bytes_max:
                self._refuse(problems.answer(self._too_large()))

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                offset = upgrade.args[0]
            else:
                return
            # httptools has passed over the body; a new parser reads the same
            # request again without its offer.
            method = self._parser.get_method()
            version = self._parser.get_http_version().encode()
            lines = [b"%b %b HTTP/%b\r\n" % (method, self._url, version)]
            lines += [
                b"%b: %b\r\n" % (name, value) for name, value in self._header if name != b"upgrade"
            ]
            self._parser = _a_parser(self)
            data = b"".join([*lines, b"\r\n", data[offset:]])

    # What the parser finds.

    def on_message_begin(self) -> None:
        self._url = b""
        self._header = []
        self._expects_continue = False
        self._in_head = True
        self._head_bytes = self._hosts = 0
        self._barren_bytes = 0
        self.deadline_s = self._loop.time() + HEAD_S_MAX

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        if not self._in_head:
            return  # A trailer; what was decided on the head must stay decided.
        if len(self._header) >= FIELDS_MAX:
            raise HeadersTooLarge(f"the request has more than {FIELDS_MAX} header fields")
        name = name.lower()
        value = value.rstrip(b" \t")
        if name == b"host":
            self._hosts += 1
        elif name == b"expect":
            self._expects_continue = value.lower() == b"100-continue"
        elif name == b"transfer-encoding" and value.lower() != b"chunked":
            raise Invalid("malformed request: Transfer-Encoding must be chunked")
        self._header.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        method = parser.get_method().decode("ascii")
        if method == "CONNECT":
            raise Invalid("malformed request: there are no tunnels here")
        if parser.should_upgrade():
            self._upgrading = True
            return
        version = parser.get_http_version()
        target = self._url
        if not target.startswith(b"/"):
            target = _origin_form(target)
        if version not in ("1.1", "1.0"):
            raise Invalid(f"malformed request: HTTP/{version} is not spoken here")
        if self._hosts != 1 and (self._hosts or version == "1.1"):
            raise Invalid("malformed request: there must be one Host header")
        path, _, query = target.partition(b"?")
        self._in_head = False
        self._in_body = True
        self._barren_bytes = -self._head_bytes  # the head is in this read, or was counted before
        self.deadline_s = NEVER
        request = Request(
            method=method,
            path=path,
            query=query,
            header=self._header,
            client=self._client,
            want_more=self._want_more,
        )
        exchange = _Exchange(
            request,
            keep_alive=version == "1.1" and parser.should_keep_alive(),
            expects_continue=self._expects_continue and version == "1.1",
            takes_chunks=version == "1.1",
        )
        if self._exchange is None or self._exchange.answered:
            self._begin(exchange)
        else:
            self._pause_reading()
            self._pipeline.append(exchange)

    def on_body(self, chunk: bytes) -> None:
        self._body_bytes += len(chunk)
        exchange = self._newest()
        if not exchange.answered and exchange.request.arrive(chunk) > UNREAD_BYTES_MAX:
            self._pause_reading()

    def on_message_complete(self) -> None:
        if self._upgrading:
            self._upgrading = False
            return
        self._in_body = False
        self._advanced = True
        newest = self._newest()
        newest.request.finish()
        if not self._pipeline and self._writable and not newest.answered:
            self._resume_reading()  # or nobody would hear that the caller has gone

    # What follows.

    def _newest(self) -> _Exchange:
        """The exchange whose request is being parsed."""
        newest = self._pipeline[-1] if self._pipeline else self._exchange
        assert newest is not None
        return newest

    def _begin(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self._server.begin(self._answer(exchange))

    def _want_more(self) -> None:
        """The application asks for a body that is not whole yet."""
        exchange = self._exchange
        assert exchange is not None
        if exchange.expects_continue:
            exchange.expects_continue = False
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._resume_reading()

    async def _answer(self, exchange: _Exchange) -> None:
        """Let the application answer, and write the answer whole and at once, if it is there."""
        request = exchange.request
        if self._server.draining:
            answer: Answer | None = problems.answer(Busy("shutting down, try another server"))
        else:
            answer = await self._server.app(request)
        if answer is not None and answer.rest is not None:
            await self._pass_on(exchange, answer, answer.rest)
            return
        exchange.answered = True
        if answer is None or request.gone or self.transport.is_closing():
            return
        if self._server.draining or not request.whole:
            exchange.keep_alive = False
        self._write(answer, close=not exchange.keep_alive, head_only=request.method == "HEAD")
        self._go_on()

    def _write(
        self, answer: Answer, *, close: bool, chunked: bool = False, head_only: bool = False
    ) -> None:
        lines = [STATUS_LINES.get(answer.status) or b"HTTP/1.1 %d \r\n" % answer.status]
        for name, value in answer.header:
            lines += (name, b": ", value, b"\r\n")
        if chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"connection: close\r\n\r\n" if close else b"\r\n")
        if not head_only:
            lines.append(answer.body)
        self._send(b"".join(lines))

    async def _pass_on(self, exchange: _Exchange, answer: Answer, rest: Rest) -> None:
        """Write an answer whose body is still to come, and let go of it.

        Without a length and without chunks (HTTP/1.0) its end is the connection's.
        """
        request = exchange.request
        whole = False
        try:
            with request.while_there():
                bare = request.method == "HEAD" or answer.status in BODILESS
                measured = bare or any(name == b"content-length" for name, _ in answer.header)
                chunked = exchange.takes_chunks and not measured
                if self._server.draining or not request.whole or not (chunked or measured):
                    exchange.keep_alive = False
                self._write(answer, close=not exchange.keep_alive, chunked=chunked, head_only=bare)
                self._flush()
                if not bare:
                    async for piece in rest.pieces():
                        self._send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                        self._flush()
                        await self._readable_again()
                    if chunked:
                        self._send(b"0\r\n\r\n")
                whole = True
        except (Gone, BrokenOff):
            pass
        finally:
            exchange.answered = True
            rest.close()
        if self.transport.is_closing():
            return
        if whole:
            self._go_on()
        else:
            self._hang_up(linger=False)

    async def _readable_again(self) -> None:
        """Wait until the caller has read what was written, but for a rest."""
        if not self._writable:
            self._room = self._loop.create_future()
            await self._room
            self.deadline_s = NEVER
            if not self._pipeline:
                self._resume_reading()  # or his going away would not be seen

    def _send(self, data: bytes) -> None:
        """Write after all that is ready now has run.

        Answers then leave in bursts, and their callers' process is woken once for
        many of them: 1.5 times the publishes a second (docs/decisions/0006-the-hot-path.md).
        """
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(data)

    def _flush(self) -> None:
        if self._unsent:
            self.transport.write(b"".join(self._unsent))
            self._unsent.clear()

    def _go_on(self) -> None:
        """Go on to what was sent meanwhile, or wait for more, or hang up."""
        exchange = self._exchange
        assert exchange is not None
        if not exchange.keep_alive:
            unread = self._in_head or self._in_body or self._pipeline or not self._reading
            self._hang_up(linger=bool(unread))
        elif not self._writable:
            self._await_reader()
        elif self._pipeline:
            # Reading goes on once this is empty, or a body that is not whole is asked for.
            self._begin(self._pipeline.popleft())
        elif self._refusal is not None:
            self._send(self._refusal)
            self._hang_up(linger=True)
        else:
            self._resume_reading()
            self.deadline_s = self._loop.time() + (HEAD_S_MAX if self._in_head else IDLE_S_MAX)

    def overdue(self) -> None:
        """Close a connection on which nothing goes on; abort it where its caller does not read."""
        left_bytes = self.transport.get_write_buffer_size()
        if 0 < left_bytes < self._stalled_bytes:  # he reads, if slowly
            self._await_reader()
        elif self.transport.is_closing() or self._hung_up or not self._writable:
            self.transport.abort()
        elif self._exchange is None or self._exchange.answered:
            self._hang_up(linger=False)
        else:
            self.deadline_s = NEVER

    def finish(self) -> None:
        """Accept no further request; hang up once there is nothing to answer."""
        if self._hung_up:
            return
        if self._exchange is None or self._exchange.answered:
            self._hang_up(linger=False)
        else:
            self._exchange.keep_alive = False

    def _refuse(self, answer: Answer) -> None:
        """Give an answer to what cannot be read, after all that came before it, and hang up."""
        self._deaf = True
        lines = [STATUS_LINES[answer.status]]
        lines += [b"%b: %b\r\n" % field for field in answer.header]
        refusal = b"".join([*lines, b"connection: close\r\n\r\n", answer.body])
        newest = self._pipeline[-1] if self._pipeline else self._exchange
        if newest is not None and not newest.request.whole and not newest.answered:
            # The fault is in this one's body, so it will never be whole.
            newest.request.lose()
            if self._pipeline:
                self._pipeline.pop()
                self._refusal = refusal
                return
        elif newest is not None and not newest.answered:
            self._refusal = refusal
            return
        self._send(refusal)
        self._hang_up(linger=True)

    def _hang_up(self, *, linger: bool) -> None:
        """Close once everything is written.

        `linger` where the caller may still be sending: to close on unread bytes
        resets the connection, and takes the answer with it.
        """
        self._deaf = self._hung_up = True
        self._flush()
        self._stalled_bytes = self.transport.get_write_buffer_size()
        if linger and not self.transport.is_closing():
            self._resume_reading()
            self.transport.write_eof()
            wait_s = CLOSE_S_MAX if self._stalled_bytes else LINGER_S
        else:
            self.transport.close()
            wait_s = CLOSE_S_MAX
        self.deadline_s = self._loop.time() + wait_s

    def _await_reader(self) -> None:
        """Give the caller time to read something of what was written."""
        self._stalled_bytes = self.transport.get_write_buffer_size()
        self.deadline_s = self._loop.time() + WRITE_S_MAX

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self.transport.resume_reading()

    def _count(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > self._head_bytes_max:
            raise self._too_large()

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(f"the head of the request is over {self._head_bytes_max} bytes")


def _a_parser(protocol: _Protocol) -> httptools.HttpRequestParser:
    parser = httptools.HttpRequestParser(protocol)
    # Pipelined requests after one that says `close` are read, and not answered.
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def _malformed(error: httptools.HttpParserError) -> str:
    """What is wrong with a request; of a raw URL in the path the parser says little."""
    text = f"malformed request: {error}"
    if "url" in text or "Expected HTTP/" in text:
        text += "; spaces, control and non-ASCII characters in a URL must be percent-encoded"
    return text


def _origin_form(target: bytes) -> bytes:
    """The path and query of a target in absolute form, which servers must accept (RFC 9112)."""
    scheme, separator, rest = target.partition(b"://")
    slash = rest.find(b"/")
    if scheme.lower() not in (b"http", b"https") or not separator or slash < 0:
        raise Invalid("malformed request: the target must be a path")
    return rest[slash:]


class HttpServer:
    """An application on sockets that are already bound."""

    def __init__(
        self, app: Application, *, head_bytes_max: int = 64_000, connections_max: int = 4_096
    ) -> None:
        self.app = app
        self.head_bytes_max = head_bytes_max
        self.connections_max = connections_max
        self.connections: set[_Protocol] = set()
        self.draining = False
        self._answers: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._sweep: asyncio.TimerHandle | None = None

    async def start(self, *sockets: socket.socket) -> None:
        """Accept connections.  The sockets are ours from here on."""
        self._loop = asyncio.get_running_loop()
        for sock in sockets:
            server = await self._loop.create_server(
                lambda: _Protocol(self, self._loop), sock=sock, backlog=BACKLOG
            )
            self._servers.append(server)
        self.look_after()

    def begin(self, answer: Coroutine[None, None, None]) -> None:
        """Run the answer to one request; `close` waits for it."""
        task = self._loop.create_task(answer)
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    def stop_accepting(self) -> None:
        """Accept no connection; answer what is under way, and 503 to what still comes."""
        self.draining = True
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.finish()

    async def close(self, *, drain_s_max: float = DRAIN_S_MAX) -> None:
        """Wait for answers under way, then drop every connection."""
        self.stop_accepting()
        if self._answers:
            _done, late = await asyncio.wait(self._answers, timeout=drain_s_max)
            for task in late:
                task.cancel()
        await self._delivered(until_s=self._loop.time() + drain_s_max)
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self.connections):
            connection.transport.abort()

    async def _delivered(self, *, until_s: float) -> None:
        """Wait until what was answered has left, as far as the callers read it."""
        while self._loop.time() < until_s and any(  # noqa: ASYNC110 -- a transport tells nobody
            connection.transport.get_write_buffer_size() for connection in self.connections
        ):
            await asyncio.sleep(UNSENT_POLL_S)

    def look_after(self) -> None:
        """Close what is overdue, once a second."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep = self._loop.call_later(SWEEP_S, self.look_after)
        now_s = self._loop.time()
        for connection in list(self.connections):
            if connection.deadline_s < now_s:
                connection.overdue()
