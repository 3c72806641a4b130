"""The home of one exchange: what handlers are given, and how bodies and queries are read.

A body is read within three bounds: its own size, the size of all bodies that
are held at once, and its pace.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Network, IPv6Network
from typing import Final
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from waypost.api.problems import Busy, TooSlow
from waypost.clock import Clock
from waypost.domain.errors import Invalid, TooLarge
from waypost.services.access import Access, Failures
from waypost.services.chat import Chat
from waypost.services.dead_letters import DeadLetters
from waypost.services.flow_keys import FlowKeys
from waypost.services.health import Health
from waypost.services.messages import Messages
from waypost.services.publishing import Publishing
from waypost.services.queues import Queues
from waypost.services.rates import Rates
from waypost.services.schedules import Schedules
from waypost.services.url_groups import UrlGroups
from waypost.store.protocol import Deliveries, Reader

Network = IPv4Network | IPv6Network

BODY_GRACE_S: Final = 20
BODY_BYTES_PER_S_MIN: Final = 1_000
BODY_S_MAX: Final = 300
"""A body must keep up a pace once the time of grace is over, and be there in five minutes."""

PARAMETERS_MAX: Final = 1_000


class Gone(Exception):
    """The caller hung up."""


class Limits(Struct, frozen=True, kw_only=True):
    """How much may come in, and how much goes out in one page (D35)."""

    body_bytes_max: int = 10_000_000
    head_bytes_max: int = 64_000
    batch_bytes_max: int = 100_000_000
    batch_count_max: int = 1_000
    receive_bytes_max: int = 256_000_000
    page_bytes_max: int = 8_000_000


class Api(Struct, kw_only=True):
    """What handlers work with, the same for every request.

    `received_bytes` counts the bodies that are held now, over all requests.
    """

    publishing: Publishing
    messages: Messages
    dead_letters: DeadLetters
    url_groups: UrlGroups
    queues: Queues
    flow_keys: FlowKeys
    schedules: Schedules
    chat: Chat
    deliveries: Deliveries
    reader: Reader
    access: Access
    rates: Rates
    health: Health
    metrics: Callable[[], Awaitable[bytes]]
    description: Callable[[], bytes]
    answered: Callable[[str, int], None]
    clock: Clock
    limits: Limits
    trusted_proxies: Sequence[Network]
    dev: bool
    failures: Failures
    received_bytes: int = 0


class Request:
    """One request.  Names in `header` are in lower case; `client` is the peer's address.

    The server puts the body in as it comes; a handler asks for the whole of it.
    `segments` are what stands in the braces of the route, still encoded.
    """

    __slots__ = (
        "_arrived",
        "_held_bytes",
        "_pending",
        "_received",
        "_want_more",
        "caller_ip",
        "client",
        "gone",
        "header",
        "method",
        "path",
        "query",
        "segments",
        "tenant",
        "whole",
    )

    def __init__(
        self,
        *,
        method: str,
        path: bytes,
        query: bytes,
        header: list[tuple[bytes, bytes]],
        client: str | None,
        want_more: Callable[[], None],
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.header = header
        self.client = client
        self.segments: list[bytes] = []
        self.tenant = ""
        self.caller_ip: str | None = None
        self.whole = False
        self.gone = False
        self._want_more = want_more
        self._received: bytes | bytearray = b""
        self._held_bytes = 0
        self._arrived: asyncio.Event | None = None
        self._pending: asyncio.Task[object] | None = None

    # What the server says.

    def arrive(self, chunk: bytes) -> int:
        """Take a piece of the body; how many bytes there are now."""
        if not self._received:
            self._received = chunk
        else:
            if isinstance(self._received, bytes):
                self._received = bytearray(self._received)
            self._received += chunk
        if self._arrived is not None:
            self._arrived.set()
        return len(self._received)

    def finish(self) -> None:
        """The body is whole."""
        self.whole = True
        if self._arrived is not None:
            self._arrived.set()

    def lose(self) -> None:
        """The caller has gone; there will be no more, and nobody to answer."""
        self.gone = True
        if self._arrived is not None:
            self._arrived.set()
        if self._pending is not None:
            self._pending.cancel()

    @property
    def ends_with_caller(self) -> bool:
        """Whether the answer is worth nothing to a caller who stops sending."""
        return self._pending is not None

    # What handlers ask.

    @contextmanager
    def while_there(self) -> Iterator[None]:
        """Break off what is awaited within once the caller hangs up; raises Gone then.

        A caller who shuts down his half of the connection has hung up here: what
        is awaited costs money, and nearly nobody who does so still reads.
        """
        if self.gone:
            raise Gone
        self._pending = task = asyncio.current_task()
        assert task is not None
        try:
            yield
        except asyncio.CancelledError:
            if self.gone and not task.uncancel():
                raise Gone from None
            raise
        finally:
            self._pending = None

    def segment(self, number: int) -> str:
        """A segment of the path, percent-decoded once (contract section 0.1)."""
        raw = self.segments[number]
        try:
            return (unquote_to_bytes(raw) if b"%" in raw else raw).decode()
        except UnicodeDecodeError:
            raise Invalid("the path is not UTF-8") from None

    def parameters(self, *, blank: bool = False) -> dict[str, list[str]]:
        """The query: each name with its values, in order; those that are empty are left out,
        unless the `blank` ones are asked for too."""
        found: dict[str, list[str]] = {}
        if not self.query:
            return found
        parts = self.query.split(b"&")
        if len(parts) > PARAMETERS_MAX:
            raise Invalid(f"more than {PARAMETERS_MAX} query parameters")
        for part in parts:
            name, _, value = part.replace(b"+", b" ").partition(b"=")
            if value or (blank and name):
                try:
                    found.setdefault(unquote_to_bytes(name).decode(), []).append(
                        unquote_to_bytes(value).decode()
                    )
                except UnicodeDecodeError:
                    raise Invalid("the query is not UTF-8") from None
        found.pop("qstash_token", None)
        return found

    async def body(self, api: Api, *, bytes_max: int | None = None) -> bytes:
        """The whole body, of at most `bytes_max`, or else of what a message may have.

        Raises TooLarge, Busy or TooSlow when a bound is passed, and Gone when
        the caller hangs up before its end.
        """
        bytes_max = api.limits.body_bytes_max if bytes_max is None else bytes_max
        for name, value in self.header:
            if name == b"content-length" and int(value) > bytes_max:
                raise TooLarge(f"the body is larger than {bytes_max} bytes")
        if not self.whole:
            await self._arrival(api, bytes_max)
        self._hold(api, bytes_max)
        self._received = body = bytes(self._received)  # one of them is enough
        return body

    def release(self, api: Api) -> None:
        """Let go of the body, and count it as no longer held."""
        api.received_bytes -= self._held_bytes
        self._held_bytes = 0
        self._received = b""

    def _hold(self, api: Api, bytes_max: int) -> None:
        api.received_bytes += len(self._received) - self._held_bytes
        self._held_bytes = len(self._received)
        if self._held_bytes > bytes_max:
            raise TooLarge(f"the body is larger than {bytes_max} bytes")
        if api.received_bytes > api.limits.receive_bytes_max:
            raise Busy("too many bodies are being received, try again")

    async def _arrival(self, api: Api, bytes_max: int) -> None:
        began_s = asyncio.get_running_loop().time()
        self._arrived = asyncio.Event()
        try:
            async with asyncio.timeout_at(began_s + BODY_GRACE_S) as deadline:
                while not self.whole:
                    if self.gone:
                        raise Gone
                    self._hold(api, bytes_max)
                    pace_s = BODY_GRACE_S + self._held_bytes / BODY_BYTES_PER_S_MIN
                    deadline.reschedule(began_s + min(BODY_S_MAX, pace_s))
                    self._want_more()
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise TooSlow("the body did not arrive in time") from None
