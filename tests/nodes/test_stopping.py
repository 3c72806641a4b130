"""A node stops while a message is being accepted, slowly: another node holds what it waits for."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest
from structlog.testing import capture_logs

from tests.store.bench import Bench, id_of, ids
from tests.support.clock import SetClock
from tests.support.databases import Databases, connected
from tests.support.factory import HOUR, T0, a_draft, some_places
from tests.support.postgres import SHIPPED
from tests.support.sender import RememberingSender
from tests.support.waiting import PATIENCE_S, until
from waypost.domain.retry import Backoff
from waypost.loops.dispatcher import Dispatcher
from waypost.services.delivery import Delivery
from waypost.store.postgres.store import open_postgres
from waypost.store.protocol import Accepted
from waypost.telemetry import Telemetry


class Node:
    """A node with a dispatcher, whose loop does not run: it attempts what is born."""

    def __init__(self, bench: Bench, url: str) -> None:
        self.bench = bench
        self.url = url
        self.sender = RememberingSender()
        self.telemetry = Telemetry()
        clock = SetClock()
        delivery = Delivery(
            bench.store,
            self.sender,
            clock,
            self.telemetry,
            keys=lambda _tenant: None,
            backoff=Backoff(),
            region="EU-CENTRAL-1",
            entropy=random.Random(0).getrandbits,
        )
        self.dispatcher = Dispatcher(bench.store, delivery, bench.places, clock, self.telemetry)
        bench.births = self.dispatcher.births
        self.born = a_draft(url="https://born.example/")

    async def begin(self) -> None:
        """Have an attempt in hand that does not end."""
        self.sender.hold()
        await self.bench.add(a_draft(url="https://begun.example/"))

    @asynccontextmanager
    async def accepting(self) -> AsyncIterator["asyncio.Task[list[Accepted]]"]:
        """It accepts a message that is born, and waits for a lock until the end of the block."""
        late = "https://late.example/"
        await self.bench.add(a_draft(url=late, delay_ms=HOUR))
        async with (
            asyncio.timeout(PATIENCE_S),
            connected(self.url) as db,
            db.transaction(),
        ):
            await db.execute("SELECT 1 FROM lane FOR UPDATE")
            drafts = [self.born, a_draft(url=late, delay_ms=HOUR - 1)]
            adding = asyncio.create_task(self.bench.add(*drafts))
            await until(lambda: is_waited_for(db))
            yield adding
            assert not adding.done()


async def is_waited_for(db: asyncpg.Connection) -> bool:
    """Whether somebody waits for the end of the transaction of `db`."""
    waits: bool = await db.fetchval(
        "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted"
        " AND transactionid = pg_current_xact_id()::xid)"
    )
    return waits


async def is_closing(node: Node) -> bool:
    return node.bench.store.vital() is not None


@pytest.fixture
async def node(databases: Callable[[str], Databases]) -> AsyncIterator[Node]:
    with databases(SHIPPED).lending() as lend:
        url = await lend()
        store = await open_postgres(url, now_ms=T0)
        yield Node(Bench(store, some_places()), url)
        await store.close()


async def test_a_drain_waits_for_what_is_being_accepted_and_for_its_attempt(node: Node) -> None:
    async with node.accepting() as adding:
        node.bench.places.close()
        drain = asyncio.create_task(node.dispatcher.drain(wait_ms=HOUR, hurry=asyncio.Event()))
        for _ in range(10):  # time enough for a transaction that waits for nobody
            await node.bench.store.pulse(now_ms=T0)
        assert not drain.done()

    assert await drain == 0
    assert adding.done()
    assert await node.bench.states(id_of(node.born)) == ["CREATED", "ACTIVE", "DELIVERED"]


async def test_a_drain_in_a_hurry_waits_for_nothing_that_is_being_accepted(node: Node) -> None:
    hurry = asyncio.Event()
    hurry.set()
    await node.begin()
    async with node.accepting() as adding:
        node.bench.places.close()

        assert await node.dispatcher.drain(wait_ms=HOUR, hurry=hurry) == 1
        assert not adding.done()


async def test_a_drain_waits_for_what_is_being_accepted_no_longer_than_for_attempts(
    node: Node,
) -> None:
    await node.begin()
    async with node.accepting() as adding:
        node.bench.places.close()

        assert await node.dispatcher.drain(wait_ms=1, hurry=asyncio.Event()) == 1
        assert not adding.done()


async def test_what_is_born_after_the_drain_is_not_sent_and_goes_back(node: Node) -> None:
    async with node.accepting() as adding:
        node.bench.places.close()
        await node.dispatcher.drain(wait_ms=1, hurry=asyncio.Event())
    await adding

    [again] = await until(Bench(node.bench.store).claim)
    assert (ids([again]), again.interrupted) == ([id_of(node.born)], 0)
    assert node.sender.sent == []
    assert node.bench.places.in_flight == 0


async def test_what_is_born_while_the_store_closes_is_not_sent_and_goes_back_at_once(
    node: Node,
) -> None:
    """Others may take it over in the same moment."""
    tasks = asyncio.all_tasks()
    with capture_logs() as logs:
        async with node.accepting():
            closing = asyncio.create_task(node.bench.store.close())
            await until(lambda: is_closing(node))
        await closing

    assert node.sender.sent == []
    assert node.bench.places.in_flight == 0
    assert node.telemetry.claims_released == 1
    assert asyncio.all_tasks() <= tasks
    assert logs == []
    other = Bench(await open_postgres(node.url, now_ms=T0))
    [again] = await other.claim()
    await other.store.close()
    assert (ids([again]), again.interrupted) == ([id_of(node.born)], 0)
