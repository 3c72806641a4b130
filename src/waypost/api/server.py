"""The home of the HTTP server: what a connection may do before a request reaches the application.

uvicorn's protocol on httptools' parser, made stricter.  Unlike uvicorn

- what cannot be read is answered in JSON (D34), after the answers to what was
  sent before it, and with the connection left open for a moment, so that a
  caller who is still sending gets to read why;
- a request's head is counted (431) and must come in time, and a connection
  that waits is closed in the end; one sweep a second looks after that;
- `Transfer-Encoding` other than `chunked`, HTTP versions other than 1.0 and
  1.1, and a Host that is missing or doubled are refused; trailers are dropped;
- an offer to upgrade is ignored as HTTP wants it, its request keeps its body
  (Java's client offers HTTP/2 with its first request);
- a caller who shuts down his half of the connection gets his answers.

The parser itself refuses Content-Length beside Transfer-Encoding, two
Content-Lengths, bare line feeds, folded lines, blanks before a colon, control
characters and malformed chunks.

The application answers in one piece: a start, then one body.
"""

import asyncio
import socket
from typing import Any, Final, cast

import httptools
from uvicorn._types import ASGI3Application, ASGISendEvent, HTTPScope
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from waypost.api import problems
from waypost.api.answer import Answer
from waypost.api.exchange import Receive, Scope, Send
from waypost.api.problems import Busy
from waypost.domain.errors import HeadersTooLarge, Invalid, Problem

FIELDS_MAX: Final = 200
HEAD_S_MAX: Final = 10
IDLE_S_MAX: Final = 75
LINGER_S: Final = 2
WRITE_S_MAX: Final = 30
"""A caller must make room for the next answer in this time."""
CLOSE_S_MAX: Final = 10
"""What was written must be read in this time once the connection is to close."""
DRAIN_S_MAX: Final = 5
SWEEP_S: Final = 1.0
BACKLOG: Final = 2_048

NEVER: Final = float("inf")
ASGI: Final = {"version": "3.0", "spec_version": "2.3"}


class _Cycle(RequestResponseCycle):
    """One request and its answer, which is written whole and at once."""

    protocol: "_Protocol"
    _status: int
    _header: list[tuple[bytes, bytes]]

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            self.response_started = True
            self.waiting_for_100_continue = False
            self._status = message["status"]
            self._header = cast("list[tuple[bytes, bytes]]", message["headers"])
            return
        assert message["type"] == "http.response.body"
        if self.flow.write_paused and not self.disconnected:
            self.protocol.deadline_s = self.protocol.loop.time() + WRITE_S_MAX
            await self.flow.drain()
        if self.disconnected or self.transport.is_closing():
            self.disconnected = True
            return
        lines = [STATUS_LINE[self._status]]
        for name, value in self._header:
            lines += (name, b": ", value, b"\r\n")
        if not self.keep_alive or self.more_body or self.protocol.draining:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        if self.scope["method"] != "HEAD":
            lines.append(message["body"])
        self.transport.write(b"".join(lines))
        self.response_complete = True
        self.message_event.set()
        self.protocol.answered(self)


class _Protocol(HttpToolsProtocol):
    """One connection."""

    cycle: _Cycle | None  # type: ignore[assignment]

    def __init__(self, server: "HttpServer", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server.config, server.state, {}, loop)
        self._server = server
        self._head_bytes_max = server.head_bytes_max
        self._in_head = False
        self._in_body = False
        self._upgrading = False
        self._deaf = False
        self._turned_away = False
        self._refusal: bytes | None = None
        self._head_bytes = 0
        self._barren_bytes = 0
        self._body_bytes = 0
        self._hosts = 0
        self.deadline_s = NEVER

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._turned_away = len(self.connections) > self._server.connections_max
        self.deadline_s = self.loop.time() + HEAD_S_MAX
        if len(self.connections) > 2 * self._server.connections_max:
            transport.abort()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection for as long as whole requests are unanswered."""
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            return False
        self._deaf = True
        self.cycle.keep_alive = False
        return True

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._turned_away:
            self._refuse(problems.answer(Busy("too many connections, try again")))
            return
        body_bytes = self._body_bytes
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, Problem):
                self._refuse(problems.answer(cause))
            elif isinstance(error, httptools.HttpParserCallbackError):
                self._refuse(problems.unexpected("none"))
            else:
                self._refuse(problems.answer(Invalid(f"malformed request: {error}")))
            return
        if self._in_head or (self._in_body and self._body_bytes == body_bytes):
            # The parser gathers a field, a chunk extension or a trailer that has no end yet.
            self._barren_bytes += len(data)
            if self._barren_bytes > self._head_bytes_max:
                self._refuse(problems.answer(self._too_large()))

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # httptools has passed over the body; a new parser reads the same
            # request again without its offer.
            method = self.parser.get_method()
            version = self.parser.get_http_version().encode()
            lines = [b"%b %b HTTP/%b\r\n" % (method, self.url, version)]
            lines += [
                b"%b: %b\r\n" % (name, value) for name, value in self.headers if name != b"upgrade"
            ]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._feed(b"".join([*lines, b"\r\n", data[upgrade.args[0] :]]))

    # What the parser finds.

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._in_head = True
        self._head_bytes = self._barren_bytes = self._hosts = 0
        self.deadline_s = self.loop.time() + HEAD_S_MAX

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # A trailer; what was decided on the head must stay decided.
        self._count(len(name) + len(value) + 4)
        if len(self.headers) >= FIELDS_MAX:
            raise HeadersTooLarge(f"the request has more than {FIELDS_MAX} header fields")
        name = name.lower()
        value = value.rstrip(b" \t")
        if name == b"host":
            self._hosts += 1
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        elif name == b"transfer-encoding" and value.lower() != b"chunked":
            raise Invalid("malformed request: Transfer-Encoding must be chunked")
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self.parser
        method = parser.get_method().decode("ascii")
        if method == "CONNECT":
            raise Invalid("malformed request: this is not a proxy")
        if parser.should_upgrade():
            self._upgrading = True
            return
        version = parser.get_http_version()
        target = self.url
        if not target.startswith(b"/"):
            target = _origin_form(target)
        if version not in ("1.1", "1.0"):
            raise Invalid(f"malformed request: HTTP/{version} is not spoken here")
        if self._hosts != 1 and (self._hosts or version == "1.1"):
            raise Invalid("malformed request: there must be one Host header")
        raw_path, _, query = target.partition(b"?")
        self._in_head = False
        self._in_body = True
        self._barren_bytes = 0
        self.deadline_s = NEVER
        scope = {
            "type": "http",
            "asgi": ASGI,
            "http_version": version,
            "scheme": self.scheme,
            "server": self.server,
            "client": self.client,
            "method": method,
            "path": raw_path.decode("latin-1"),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self.headers,
        }
        before, cycle = (
            self.cycle,
            _Cycle(
                scope=cast("HTTPScope", scope),
                transport=self.transport,
                flow=self.flow,
                logger=self.logger,
                access_logger=self.access_logger,
                access_log=False,
                default_headers=[],
                message_event=asyncio.Event(),
                expect_100_continue=self.expect_100_continue,
                keep_alive=version == "1.1" and parser.should_keep_alive(),
                on_response=_nothing,
            ),
        )
        cycle.protocol = self
        self.cycle = cycle
        app = cast("ASGI3Application", _draining if self.draining else self.app)
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        cycle = self.cycle
        assert cycle is not None
        if not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self._upgrading:
            self._upgrading = False
            return
        self._in_body = False
        cycle = self.cycle
        assert cycle is not None
        cycle.more_body = False
        cycle.message_event.set()

    # What follows.

    @property
    def draining(self) -> bool:
        return self._server.draining

    def answered(self, cycle: _Cycle) -> None:
        """Go on to what was sent meanwhile, or wait for more, or hang up."""
        if not cycle.keep_alive or cycle.more_body or self.draining:
            self._hang_up(linger=cycle.more_body)
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._refusal is not None:
            self.transport.write(self._refusal)
            self._hang_up(linger=True)
        else:
            self.deadline_s = self.loop.time() + (HEAD_S_MAX if self._in_head else IDLE_S_MAX)

    def overdue(self) -> None:
        """Close a connection on which nothing goes on; abort it where its caller does not read."""
        if self.transport.is_closing() or self.flow.write_paused:
            self.transport.abort()
        elif self.cycle is None or self.cycle.response_complete:
            self._hang_up(linger=False)
        else:
            self.deadline_s = NEVER

    def _refuse(self, answer: Answer) -> None:
        """Give an answer to what cannot be read, after all that came before it, and hang up."""
        self._deaf = True
        lines = [STATUS_LINE[answer.status]]
        lines += [b"%b: %b\r\n" % field for field in answer.header]
        refusal = b"".join([*lines, b"connection: close\r\n\r\n", answer.body])
        cycle = self.cycle
        if cycle is not None and cycle.more_body and not cycle.response_complete:
            # The fault is in this one's body, so it will never be whole.
            cycle.disconnected = True
            cycle.message_event.set()
            if self.pipeline:
                self.pipeline.popleft()
                self._refusal = refusal
                return
        elif cycle is not None and not cycle.response_complete:
            self._refusal = refusal
            return
        self.transport.write(refusal)
        self._hang_up(linger=True)

    def _hang_up(self, *, linger: bool) -> None:
        """Close once everything is written.

        `linger` where the caller may still be sending: to close on unread bytes
        resets the connection, and takes the answer with it.
        """
        self._deaf = True
        if linger and not self.transport.is_closing():
            self.flow.resume_reading()
            self.transport.write_eof()
            self.deadline_s = self.loop.time() + LINGER_S
        else:
            self.transport.close()
            self.deadline_s = self.loop.time() + CLOSE_S_MAX

    def _count(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > self._head_bytes_max:
            raise self._too_large()

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(f"the head of the request is over {self._head_bytes_max} bytes")


def _origin_form(target: bytes) -> bytes:
    """The path and query of a target in absolute form, which servers must accept (RFC 9112)."""
    scheme, separator, rest = target.partition(b"://")
    slash = rest.find(b"/")
    if scheme.lower() not in (b"http", b"https") or not separator or slash < 0:
        raise Invalid("malformed request: the target must be a path")
    return rest[slash:]


def _nothing() -> None:
    """uvicorn calls this after an answer; here the cycle tells its protocol itself."""


async def _draining(_scope: Scope, _receive: Receive, send: Send) -> None:
    answer = problems.answer(Busy("shutting down, try another server"))
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.header})
    await send({"type": "http.response.body", "body": answer.body})


class HttpServer:
    """An application on sockets that are already bound.  No signal handler is installed."""

    def __init__(
        self, app: Any, *, head_bytes_max: int = 64_000, connections_max: int = 4_096
    ) -> None:
        self.config = Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
        )
        self.config.load()
        self.state = ServerState()
        self.head_bytes_max = head_bytes_max
        self.connections_max = connections_max
        self.draining = False
        self._servers: list[asyncio.Server] = []
        self._sweep: asyncio.TimerHandle | None = None

    async def start(self, *sockets: socket.socket) -> None:
        """Accept connections.  The sockets are ours from here on."""
        loop = asyncio.get_running_loop()
        for sock in sockets:
            server = await loop.create_server(
                lambda: _Protocol(self, loop), sock=sock, backlog=BACKLOG
            )
            self._servers.append(server)
        self.look_after()

    def stop_accepting(self) -> None:
        """Accept no connection; answer what is under way, and 503 to what still comes."""
        self.draining = True
        for server in self._servers:
            server.close()
        for connection in self._connections():
            connection.shutdown()

    async def close(self, *, drain_s_max: float = DRAIN_S_MAX) -> None:
        """Wait for answers under way, then drop every connection."""
        self.stop_accepting()
        if self.state.tasks:
            _done, late = await asyncio.wait(self.state.tasks, timeout=drain_s_max)
            for task in late:
                task.cancel()
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in self._connections():
            connection.transport.abort()

    def look_after(self) -> None:
        """Close what is overdue, now and again every second."""
        if self._sweep is not None:
            self._sweep.cancel()
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for connection in self._connections():
            if connection.deadline_s < now_s:
                connection.overdue()
        self._sweep = loop.call_later(SWEEP_S, self.look_after)

    def _connections(self) -> list[_Protocol]:
        return cast("list[_Protocol]", list(self.state.connections))
