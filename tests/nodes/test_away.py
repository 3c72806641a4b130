"""PostgreSQL goes away under nodes that serve, and comes back: nothing that was acknowledged is
lost, nothing is acknowledged that is, and nobody is asked twice."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession

from tests.support.application import Application, SettableClock, receiving, until
from tests.support.databases import connected
from tests.support.postgres import SHIPPED, Server, running
from waypost import assembly
from waypost.domain.dev_users import DEV_USERS
from waypost.settings import Settings

LEASE_MS = 1_000


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    """One that writes to its disk, for it is killed."""
    with running(SHIPPED, {"autovacuum": "off"}) as server:
        yield server


class Node(Application):
    """A node that serves on a database which tests take away."""

    server: assembly.Server

    async def reasons(self) -> list[str]:
        reply = await self.ask("GET", "/readyz", token=None)
        assert reply.status == (200 if reply.json == {"status": "ready"} else 503)
        return list(reply.json.get("reasons", []))

    async def ready(self, *, reasons: list[str]) -> None:
        """Wait until it is ready, or not for these reasons."""

        async def there() -> bool | None:
            return await self.reasons() == reasons or None

        await until(there)


@asynccontextmanager
async def serving(postgres: Server, **more: object) -> AsyncIterator[Node]:
    async with connected(postgres.url("postgres")) as db:
        await db.execute("DROP DATABASE IF EXISTS away WITH (FORCE)")
        await db.execute("CREATE DATABASE away")
    settings = Settings(
        database=postgres.url("away"),
        listen_port=0,
        egress_allow=("127.0.0.0/8",),
        drain_ms=0,
        lease_ms=LEASE_MS,
        **more,
    )
    async with (
        receiving() as receiver,
        ClientSession() as client,
        assembly.running(settings, dev=True) as server,
    ):
        node = Node(
            server=server,
            client=client,
            receiver=receiver,
            clock=SettableClock(),
            token=DEV_USERS[0].token,
        )
        node.server = server
        yield node
        assert server.supervisor.failed is None
        receiver.let_go()


AWAY = "the store cannot answer"
OVER = "this node's lease is over, and it begins nothing"


async def test_what_was_under_way_is_settled_once_when_the_database_is_back(
    postgres: Server,
) -> None:
    async with serving(postgres) as node:
        node.receiver.hold()
        first = (await node.publish()).json["messageId"]
        await node.receiver.first(1)

        await asyncio.to_thread(postgres.stop)
        refused = await node.publish()
        assert (refused.status, refused.header["Retry-After"]) == (503, "1")
        assert str(postgres.directory) not in str(refused.json)
        node.receiver.let_go()
        await node.ready(reasons=[OVER, AWAY])

        await asyncio.to_thread(postgres.start)
        assert (await node.logged(first, "DELIVERED")) == ["CREATED", "ACTIVE", "DELIVERED"]
        await node.ready(reasons=[])
        second = (await node.publish()).json["messageId"]
        await node.logged(second, "DELIVERED")
        got = [each.header["Upstash-Message-Id"] for each in node.receiver.received]
        assert got == [first, second]


async def test_an_attempt_that_outlasts_an_outage_and_a_lease_is_made_once(
    postgres: Server,
) -> None:
    async with serving(postgres) as node:
        node.receiver.hold()
        message_id = (await node.publish()).json["messageId"]
        await node.receiver.first(1)

        await asyncio.to_thread(postgres.stop)
        await node.ready(reasons=[OVER, AWAY])
        await asyncio.to_thread(postgres.start)
        await node.ready(reasons=[])
        later_s = time.monotonic() + 2 * LEASE_MS / 1000

        async def two_leases_later() -> bool | None:
            return time.monotonic() > later_s or None

        await until(two_leases_later)
        node.receiver.let_go()

        assert (await node.logged(message_id, "DELIVERED"))[-1] == "DELIVERED"
        assert len(node.receiver.received) == 1


async def test_a_node_that_is_stopped_while_the_database_is_away_ends(postgres: Server) -> None:
    try:
        async with serving(postgres) as node:
            node.receiver.hold()
            await node.publish()
            await node.receiver.first(1)
            await asyncio.to_thread(postgres.stop)
    finally:
        await asyncio.to_thread(postgres.start)


async def test_a_database_that_can_only_be_read_makes_a_node_unready(postgres: Server) -> None:
    async with serving(postgres) as node, connected(postgres.url("postgres")) as db:
        await db.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await db.execute("SELECT pg_reload_conf()")
        try:
            await node.ready(reasons=[OVER])
            assert (await node.publish()).status == 503
        finally:
            await db.execute("SET default_transaction_read_only = off")
            await db.execute("ALTER SYSTEM RESET default_transaction_read_only")
            await db.execute("SELECT pg_reload_conf()")
        await node.ready(reasons=[])
        assert (await node.publish()).status == 200


async def test_a_node_that_is_not_let_in_for_a_while_lives_on(postgres: Server) -> None:
    """As while the database is restored, or moved."""
    async with serving(postgres) as node, connected(postgres.url("postgres")) as db:
        await db.execute("ALTER DATABASE away ALLOW_CONNECTIONS false")
        await db.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = 'away'"
        )
        await db.execute("ALTER DATABASE away RENAME TO moved")
        await node.ready(reasons=[OVER, AWAY])
        assert (await node.publish()).status == 503
        await db.execute("ALTER DATABASE moved RENAME TO away")
        await db.execute("ALTER DATABASE away ALLOW_CONNECTIONS true")
        await node.ready(reasons=[])
        assert (await node.publish()).status == 200


async def test_the_clock_of_a_node_is_the_databases(
    postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waypost.clock.time.time_ns", lambda: 0)
    async with serving(postgres) as node:
        message_id = (await node.publish()).json["messageId"]
        await node.logged(message_id, "DELIVERED")
        async with connected(postgres.url("away")) as db:
            now_ms = await db.fetchval("SELECT extract(epoch FROM clock_timestamp()) * 1000")
        [*_, created] = await node.log(message_id)
        assert 0 <= now_ms - created["time"] < 60_000
