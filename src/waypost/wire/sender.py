"""The home of sending: from a request to its outcome over the network.

One attempt is: read the URL, look the name up, judge each address it has, take
an idle connection to one that may be reached or dial one, exchange.  The egress
policy is asked every time, about the very address that is connected and for the
tenant whose message it is; a connection from the pool is keyed by that address,
so that nobody is given one that leads where they may not go.  Through a forward
proxy all of this is the same, but that it connects.  Nothing is read from the
environment: no proxies, no netrc.

Error texts hold no part of the URL but its host's shortcomings: userinfo and
query may be secret.
"""

import asyncio
import base64
import errno
import os
import re
import ssl
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import lru_cache
from operator import itemgetter
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import unquote_to_bytes

from msgspec import Struct
from msgspec.structs import replace

from waypost.domain.addresses import literal_address
from waypost.domain.attempt import Outcome
from waypost.wire.egress import Egress
from waypost.wire.http1 import Connection, Pool, Route
from waypost.wire.names import NameFault, Names
from waypost.wire.protocol import Request, Streamed
from waypost.wire.proxy import Proxy
from waypost.wire.streaming import NoAnswer, StreamedConnection

C = TypeVar("C", bound=Connection)

DIAL_S_MAX = 10.0
"""How long one address may take to be connected, TLS included, before the next is tried."""

ORIGINS_KEPT = 4_096
"""Parsed `scheme://authority` parts remembered by the process."""


class HttpSender:
    """The sender over HTTP/1.1.  Idle connections are closed by `async with`.

    An exchange that is under way at the end keeps its own connection until it
    is answered, cancelled or out of time: drain before closing.
    """

    def __init__(
        self,
        *,
        egress: Egress,
        body_bytes_max: int,
        ca_file: str | None = None,
        nameservers: Sequence[str] = (),
        proxy: Proxy | None = None,
    ) -> None:
        """`body_bytes_max` is how much of an answer's body is read.

        `ca_file` holds the certificates that are trusted instead of the
        system's.  `nameservers` are `ip:port` instead of the system's.  All
        that is sent goes through `proxy`, where there is one.
        """
        self._egress = egress
        self._body_bytes_max = body_bytes_max
        self._nameservers = nameservers
        self._proxy = proxy
        self._tenants = egress.tenants
        # The policy never changes, so neither does what it says of equal addresses.
        self._routes = lru_cache(ORIGINS_KEPT)(self._judge)
        self._tls = ssl.create_default_context(cafile=ca_file)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._tls.set_alpn_protocols(["http/1.1"])

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            self._names = await stack.enter_async_context(Names(nameservers=self._nameservers))
            self._pool = Pool(loop=self._loop)
            stack.callback(self._pool.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def send(self, request: Request) -> Outcome:
        """See `waypost.wire.protocol.Sender`."""
        deadline_s = self._loop.time() + request.timeout_ms / 1000
        asked = _asked(request)
        if isinstance(asked, str):
            return Outcome(error=f"cannot be sent: {asked}")
        origin, head = asked

        addresses = origin.addresses or self._names.known(origin.host)
        if addresses is None:
            found = await self._look_up(origin.host, deadline_s)
            if isinstance(found, Outcome):
                return found
            addresses = found
        tenant = request.tenant
        if request.trusted:
            routes = [Route(address, origin.port, origin.server_name) for address in addresses]
        else:
            judged = (
                self._routes(origin, addresses, tenant)
                if tenant in self._tenants
                else self._routes(origin, addresses)
            )
            if isinstance(judged, Outcome):
                return judged
            routes = judged

        connection = self._idle(routes)
        pooled = connection is not None
        redialled = False
        while True:
            if connection is None:
                dialled = await self._dial(routes, deadline_s, kind=Connection)
                if isinstance(dialled, Outcome):
                    outcome = dialled
                    break
                connection = dialled
            waiter = connection.exchange(
                head,
                request.body,
                head_only=request.method == "HEAD",
                wait_s=deadline_s - self._loop.time(),
                may_begin=request.may_begin,
            )
            try:
                outcome = await waiter
            except asyncio.CancelledError:
                connection.give_up(waiter)
                raise
            # An exchange that went well has given its connection back, and what
            # `unanswered` says then may already be of the next one.
            if not (pooled and outcome.error is not None and connection.unanswered):
                break
            connection, pooled, redialled = None, False, True  # D15: once, on a fresh connection
        return replace(outcome, redialled=True) if redialled else outcome

    async def stream(self, request: Request) -> Streamed:
        """See `waypost.wire.protocol.Sender`.

        Its connection is its own: it is dialled for it, and closed after it.
        """
        assert request.trusted
        deadline_s = self._loop.time() + request.timeout_ms / 1000
        asked = _asked(request)
        if isinstance(asked, str):
            return NoAnswer(Outcome(error=f"cannot be sent: {asked}"))
        origin, head = asked
        addresses = origin.addresses or await self._look_up(origin.host, deadline_s)
        if isinstance(addresses, Outcome):
            return NoAnswer(addresses)
        routes = [Route(address, origin.port, origin.server_name) for address in addresses]
        connection = await self._dial(routes, deadline_s, kind=StreamedConnection)
        if isinstance(connection, Outcome):
            return NoAnswer(connection)
        await connection.begin(head, request.body, wait_s=deadline_s - self._loop.time())
        return connection

    async def _look_up(self, host: str, deadline_s: float) -> tuple[str, ...] | Outcome:
        try:
            async with asyncio.timeout_at(deadline_s):
                found = await self._names.find(host)
        except TimeoutError:
            return Outcome(error="timed out: name look-up", host_down=True)
        if isinstance(found, NameFault):
            return Outcome(error=found.why, host_down=True)
        return found

    def _judge(
        self, origin: "_Origin", addresses: tuple[str, ...], tenant: str = ""
    ) -> list[Route] | Outcome:
        """The routes that the egress policy allows, in order; a refusal where there is none."""
        port = origin.port
        refusals = [
            self._egress.refusal(address, port, host=origin.host, tenant=tenant)
            for address in addresses
        ]
        routes = [
            Route(address, port, origin.server_name)
            for address, refusal in zip(addresses, refusals, strict=True)
            if refusal is None
        ]
        return routes or Outcome(error=refusals[0], refused=True)

    def _idle(self, routes: list[Route]) -> Connection | None:
        for route in routes:
            connection = self._pool.take(route)
            if connection is not None:
                return connection
        return None

    async def _dial(self, routes: list[Route], deadline_s: float, *, kind: type[C]) -> C | Outcome:
        """Connect to the first route that can be; a fault of TLS is not tried elsewhere."""
        outcome = _NO_CONNECTION
        for route in routes:
            left_s = deadline_s - self._loop.time()
            if left_s <= 0:
                return outcome
            connect = self._connect if self._proxy is None else self._connect_through
            try:
                found = await connect(route, min(left_s, DIAL_S_MAX), kind)
            except ssl.SSLError as fault:
                return _tls_fault(fault)
            except TimeoutError:
                outcome = _NO_CONNECTION
            except OSError as fault:
                outcome = _dial_fault(fault)
            else:
                if not isinstance(found, Outcome):
                    return found
                outcome = found
        return outcome

    async def _connect(self, route: Route, wait_s: float, kind: type[C]) -> C | Outcome:
        async with asyncio.timeout(wait_s):
            transport, connection = await self._loop.create_connection(
                lambda: self._connection(route, kind),
                route.address,
                route.port,
                ssl=None if route.server_name is None else self._tls,
                server_hostname=route.server_name,
            )
        refusal = self._refusal_here(transport, route)
        if refusal is None:
            return connection
        connection.abandon()
        return Outcome(error=refusal, refused=True)

    async def _connect_through(self, route: Route, wait_s: float, kind: type[C]) -> C | Outcome:
        assert self._proxy is not None
        until_s = self._loop.time() + wait_s
        tunnel = await self._proxy.tunnel(
            route.address, route.port, names=self._names, until_s=until_s
        )
        if isinstance(tunnel, Outcome):
            return tunnel
        connection = self._connection(route, kind)
        try:
            if route.server_name is None:
                tunnel.set_protocol(connection)
                connection.connection_made(tunnel)
                tunnel.resume_reading()
            else:
                async with asyncio.timeout_at(until_s):
                    transport = await self._loop.start_tls(
                        tunnel, connection, self._tls, server_hostname=route.server_name
                    )
                assert transport is not None
                connection.connection_made(transport)
        except BaseException:
            tunnel.abort()
            raise
        return connection

    def _connection(self, route: Route, kind: type[C]) -> C:
        return kind(
            route=route, pool=self._pool, body_bytes_max=self._body_bytes_max, loop=self._loop
        )

    def _refusal_here(self, transport: asyncio.Transport, route: Route) -> str | None:
        ours, theirs = (transport.get_extra_info(end) for end in ("sockname", "peername"))
        if ours is None or theirs is None or ours[0] != theirs[0]:
            return None
        return self._egress.refusal_here(route.port)


class _Origin(Struct, frozen=True, kw_only=True, eq=False):
    """`scheme://authority` of a URL, read once.

    `addresses` is set where the host is a literal address, and then nothing is
    looked up.  `host_field` is what the URL says, but for userinfo.
    """

    host: str
    port: int
    addresses: tuple[str, ...] | None
    server_name: str | None
    host_field: str
    authorization: str | None


_URL = re.compile(r"(https?)://([^/?#\\]*)([/?][^#]*|)", re.IGNORECASE).fullmatch
_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*").fullmatch
_AUTHORITY = re.compile(r"(?:([^@]*)@)?(\[[^\[\]@]*\]|[^:@\[\]]*)(?::([0-9]{0,5}))?").fullmatch
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+").fullmatch

_FIRST = itemgetter(0)
_OURS = frozenset(("host", "content-length", "transfer-encoding"))
_WITH_LENGTH = frozenset(("POST", "PUT", "PATCH"))
_CONTROLS = bytes(code for code in (*range(0x20), 0x7F) if code != 0x09)

_NO_CONNECTION = Outcome(error="timed out: no connection", host_down=True)

_OUR_FAULTS = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL)
)


def _asked(request: Request) -> tuple[_Origin, bytes] | str:
    """Where a request leads, and its head; a string says why it cannot be sent."""
    split = _URL(request.url)
    if split is None:
        return "the URL is not an absolute http or https URL"
    scheme, authority, rest = split.groups()
    origin = _origin(scheme, authority)
    if isinstance(origin, str):
        return origin
    head = _head(request, origin, rest)
    return head if isinstance(head, str) else (origin, head)


@lru_cache(ORIGINS_KEPT)
def _origin(scheme: str, authority: str) -> _Origin | str:
    """Read `scheme://authority`; a string says why it cannot be sent to."""
    split = _AUTHORITY(authority)
    if split is None:
        return "the URL's host or port is malformed"
    userinfo, host, port_text = split.groups()
    tls = scheme.lower() == "https"
    port = int(port_text) if port_text else 443 if tls else 80
    if not 0 < port < 65_536:
        return "the URL's port is out of range"

    address = literal_address(host)
    if address is not None:
        name = str(address)
        bracketed = f"[{name}]" if address.version == 6 else name
        # A spelling that HTTP cannot carry is replaced; any other is kept.
        host_field = host if host.isascii() and "%" not in host else bracketed
    else:
        name = host.removesuffix(".")
        host_field = host
        if _NAME(name) is None:
            return "the URL's host is not a name"
    return _Origin(
        host=name.lower(),
        port=port,
        addresses=None if address is None else (name,),
        server_name=name if tls else None,
        host_field=f"{host_field}:{port_text}" if port_text else host_field,
        authorization=None if userinfo is None else _basic(userinfo),
    )


def _basic(userinfo: str) -> str:
    user, _, password = userinfo.partition(":")
    plain = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return "Basic " + base64.b64encode(plain).decode("ascii")


def _head(request: Request, origin: _Origin, rest: str) -> bytes | str:
    """The request's head, ready to be written; a string says why it cannot be sent.

    The domain has validated all of this.  It is checked again because what
    slips through here is another request in the destination's eyes.
    """
    if not _is_token(request.method):
        return "the method is not a token"
    if " " in rest:
        return "the URL holds a space"
    target = rest if rest.startswith("/") else "/" + rest
    if not _are_field_names(tuple(map(_FIRST, request.header))):
        return "a header name is not a token, or is the sender's to set"
    lines = [f"{name}: {value}\r\n" for name, value in request.header]
    if origin.authorization is not None and not any(
        name.lower() == "authorization" for name, _ in request.header
    ):
        lines.append(f"Authorization: {origin.authorization}\r\n")
    if request.body or request.method in _WITH_LENGTH:
        lines.append(f"Content-Length: {len(request.body)}\r\n")
    try:
        head = (
            f"{request.method} {target} HTTP/1.1\r\nHost: {origin.host_field}\r\n"
            f"{''.join(lines)}\r\n"
        ).encode("latin-1")
    except UnicodeEncodeError:
        return "the URL or a header value holds a character that HTTP cannot carry"
    # The request line, Host, the fields and the empty line have one CR and one
    # LF each; any other control character, and any further CR or LF, is too many.
    if len(head) - len(head.translate(None, _CONTROLS)) != 2 * (len(lines) + 3):
        return "the URL or a header value holds a control character"
    return head


@lru_cache(1_024)
def _is_token(text: str) -> bool:
    return _TOKEN(text) is not None


@lru_cache(1_024)
def _are_field_names(names: tuple[str, ...]) -> bool:
    """Whether a caller may send fields of these names; messages of a kind have the same ones."""
    return all(_TOKEN(name) is not None and name.lower() not in _OURS for name in names)


def _tls_fault(fault: ssl.SSLError) -> Outcome:
    if isinstance(fault, ssl.SSLCertVerificationError):
        # OpenSSL's words name the host, which is the operator's own for a built-in API (D9).
        said = fault.verify_message.partition(",")[0].lower()
        why = f"the certificate was not accepted: {said}"
    else:
        why = (fault.reason or "the handshake failed").lower().replace("_", " ")
    return Outcome(error=f"TLS: {why}", host_down=True)


def _dial_fault(fault: OSError) -> Outcome:
    if fault.errno in _OUR_FAULTS:  # it says nothing about the host
        return Outcome(error=f"this server cannot connect: {os.strerror(fault.errno)}")
    if fault.errno is None:
        return Outcome(error="TLS: the handshake was broken off", host_down=True)
    return Outcome(error=f"cannot connect: {os.strerror(fault.errno)}", host_down=True)
