"""The assembled server, a receiver it delivers to, and a clock that only tests move.

Nothing here sleeps: tests wait for the receiver, or ask the server again until
it says what they wait for, and `until` gives up after a few seconds.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import ClientSession, web
from msgspec import Struct
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from tests.support import conformity
from waypost import assembly
from waypost.domain import ids
from waypost.domain.dev_users import DEV_USERS
from waypost.domain.signing import SigningKeys
from waypost.services.access import fingerprint
from waypost.settings import MEMORY, Settings
from waypost.store.protocol import Tenant, Token

T0 = 1_700_000_000_000
SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

PATIENCE_S = 10.0

SETTINGS = Settings(
    database=MEMORY,
    listen_port=0,
    egress_allow=("127.0.0.0/8",),
    drain_ms=0,
    # Nobody is trusted by it: to read whom this machine trusts took 30 of a server's 45 ms.
    ca_file=str(Path(__file__).with_name("no_authority.pem")),
)

T = TypeVar("T")


async def until(ask: Callable[[], Awaitable[T | None]]) -> T:
    """Ask again and again, until there is an answer."""
    give_up_s = time.monotonic() + PATIENCE_S
    while True:
        found = await ask()
        if found is not None:
            return found
        assert time.monotonic() < give_up_s, "waited in vain"
        await asyncio.sleep(0)


class SettableClock:
    """Stands still until it is moved."""

    def __init__(self, now_ms: int = T0) -> None:
        self._now_ms = now_ms
        self.moved: Callable[[], None] = lambda: None

    def now_ms(self) -> int:
        return self._now_ms

    def advance(self, by_ms: int) -> None:
        assert by_ms >= 0
        self._now_ms += by_ms
        self.moved()


class Received(Struct, frozen=True):
    """One request that a receiver got.  `target` is its path and query, raw."""

    method: str
    target: str
    header: CIMultiDictProxy[str]
    body: bytes


class Receiver:
    """Keeps every request, and answers it as the test has it."""

    def __init__(self) -> None:
        self.url = ""
        self.received: list[Received] = []
        self._answer: tuple[int, bytes, Mapping[str, str]] = (200, b"", {})
        self._first: list[tuple[int, bytes, Mapping[str, str]]] = []
        self._open = asyncio.Event()
        self._open.set()

    def answers(
        self, status: int, body: bytes = b"", *, header: Mapping[str, str] | None = None
    ) -> None:
        self._answer = (status, body, header or {})

    def answers_once(
        self, status: int, body: bytes = b"", *, header: Mapping[str, str] | None = None
    ) -> None:
        """To the next request; what `answers` says is for those after it."""
        self._first.append((status, body, header or {}))

    def hold(self) -> None:
        """Keep answers back until `let_go`."""
        self._open.clear()

    def let_go(self) -> None:
        self._open.set()

    async def first(self, count: int) -> list[Received]:
        """The first `count` requests, once they are there."""

        async def there() -> list[Received] | None:
            return self.received[:count] if len(self.received) >= count else None

        return await until(there)

    async def only(self) -> Received:
        """The one request that came."""
        [request] = await self.first(1)
        return request

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        self.received.append(Received(request.method, request.raw_path, request.headers, body))
        await self._open.wait()
        status, answer, header = self._first.pop(0) if self._first else self._answer
        return web.Response(status=status, body=answer, headers=header)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver on a port of its own."""
    receiver = Receiver()
    runner = web.ServerRunner(web.Server(receiver.handle), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        receiver.url = f"http://{host}:{port}/hook"
        yield receiver
    finally:
        receiver.let_go()
        await runner.cleanup()


class Reply(Struct, frozen=True):
    """What the server answered."""

    status: int
    header: CIMultiDictProxy[str]
    json: Any


Fields = Mapping[str, str] | Sequence[tuple[str, str]]


class Application:
    """A running server, seen from outside."""

    def __init__(
        self, *, server: assembly.Server, client: ClientSession, receiver: Receiver,
        clock: SettableClock, token: str,
    ) -> None:  # fmt: skip
        self.port = server.port
        self.receiver = receiver
        self.clock = clock
        self._client = client
        self._token = token

    async def ask(
        self,
        method: str,
        path: str,
        *,
        header: Fields = (),
        body: bytes | None = None,
        token: str | None = "",
    ) -> Reply:
        """One request; `path` goes out as it is.  `token`: None for none.

        Every answer is held against the OpenAPI document.
        """
        fields = CIMultiDict(header)
        if token is not None:
            fields.setdefault("Authorization", f"Bearer {token or self._token}")
        async with self._client.request(
            method,
            URL(f"http://127.0.0.1:{self.port}{path}", encoded=True),
            headers=fields,
            data=body,
            skip_auto_headers=("Content-Type", "User-Agent", "Accept", "Accept-Encoding"),
            allow_redirects=False,
        ) as answer:
            raw = await answer.read()
            said = json.loads(raw) if raw else None
            conformity.check(method, path, status=answer.status, header=answer.headers, body=said)
            return Reply(answer.status, answer.headers, said)

    async def publish(
        self,
        destination: str | None = None,
        *,
        header: Fields = (),
        body: bytes | None = b"hello",
        token: str | None = "",
    ) -> Reply:
        """Publish, to the receiver where no other destination is named."""
        path = "/v2/publish/" + (self.receiver.url if destination is None else destination)
        return await self.ask("POST", path, header=header, body=body, token=token)

    async def accepted(
        self,
        destination: str | None = None,
        *,
        header: Fields = (),
        body: bytes | None = b"hello",
    ) -> str:
        """Publish what must be accepted; its id."""
        reply = await self.publish(destination, header=header, body=body)
        assert reply.status == 200, reply
        return str(reply.json["messageId"])

    async def message(self, message_id: str) -> dict[str, Any]:
        reply = await self.ask("GET", f"/v2/messages/{message_id}")
        assert reply.status == 200, reply
        return dict(reply.json)

    async def log(self, message_id: str = "") -> list[dict[str, Any]]:
        """The log, of one message or of all, newest first."""
        reply = await self.ask("GET", f"/v2/events?messageId={message_id}")
        assert reply.status == 200, reply
        return list(reply.json["events"])

    async def states(self, message_id: str) -> list[str]:
        """What the log says of a message, oldest first."""
        return [entry["state"] for entry in reversed(await self.log(message_id))]

    async def logged(self, message_id: str, state: str, *, times: int = 1) -> list[str]:
        """Wait until the log says `state`; then all that it says, oldest first."""

        async def said() -> list[str] | None:
            states = await self.states(message_id)
            return states if states.count(state) >= times else None

        return await until(said)

    async def dead_letter(self, message_id: str) -> dict[str, Any]:
        """Wait until a message has failed; its dead letter."""

        async def there() -> dict[str, Any] | None:
            reply = await self.ask("GET", "/v2/dlq")
            found = [one for one in reply.json["messages"] if one["messageId"] == message_id]
            return found[0] if found else None

        return await until(there)


def _wake(server: assembly.Server) -> None:
    """The clock has moved: whoever waits for a time looks again."""
    server.store.writer.on_waiting(0)
    for loop in server.supervisor.loops:
        if loop.name == "scheduler":
            loop.wake.set()


@asynccontextmanager
async def serving(
    settings: Settings = SETTINGS,
    *,
    dev: bool = True,
    token: str = DEV_USERS[0].token,
    now_ms: int = T0,
) -> AsyncIterator[Application]:
    """An assembled server and a receiver."""
    clock = SettableClock(now_ms)
    async with (
        receiving() as receiver,
        ClientSession() as client,
        assembly.running(settings, dev=dev, clock=clock) as server,
    ):
        clock.moved = lambda: _wake(server)
        yield Application(server=server, client=client, receiver=receiver, clock=clock, token=token)
        receiver.let_go()


async def person(
    settings: Settings,
    tenant: str,
    *,
    read_only: bool = False,
    new: bool = True,
    keys: SigningKeys | None = None,
) -> str:
    """Make a token, and its tenant where that is `new`, as the command line does."""
    token = ids.api_token(tenant, secrets.token_hex(20))
    async with assembly.open_people(settings) as people:
        if new:
            keys = keys or SigningKeys(f"sig_{tenant}_1", f"sig_{tenant}_2")
            await people.add_tenant(Tenant(id=tenant, created_ms=T0, keys=keys))
        await people.add_token(
            Token(
                id=f"tok_{secrets.token_hex(8)}",
                tenant=tenant,
                sha256=fingerprint(token),
                read_only=read_only,
                created_ms=T0,
            )
        )
    return token
