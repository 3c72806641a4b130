"""What a node may do while its lease goes on, once it is over, and when it has another."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable

import pytest
from asyncpg.pool import PoolConnectionProxy

from tests.store.bench import Bench, id_of
from tests.support.application import until
from tests.support.databases import Databases, connected
from tests.support.factory import T0, a_draft
from tests.support.postgres import SHIPPED
from waypost.domain.errors import StaleClaim, StoreUnavailable
from waypost.store.postgres import nodes
from waypost.store.postgres.database import lent
from waypost.store.postgres.nodes import seen
from waypost.store.postgres.store import PostgresStore, open_postgres
from waypost.store.protocol import Node

LEASE_MS = 1_000


class Cluster:
    """Nodes with short leases on one database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.benches: list[Bench] = []

    async def join(self, name: str) -> Bench:
        self.benches.append(
            Bench(await open_postgres(self.url, now_ms=T0, name=name, lease_ms=LEASE_MS))
        )
        return self.benches[-1]

    async def nodes(self) -> list[Node]:
        async with connected(self.url) as db:
            return await seen(db)

    async def waiting(self, bench: Bench, count: int) -> None:
        """Wait until so many messages do."""

        async def there() -> bool | None:
            return (await bench.store.pulse(now_ms=T0)).waiting == count or None

        await until(there)


@pytest.fixture
async def cluster(databases: Callable[[str], Databases]) -> AsyncIterator[Cluster]:
    with databases(SHIPPED).lending() as lend:
        cluster = Cluster(await lend())
        yield cluster
        for bench in cluster.benches:
            await bench.store.close()


def life_of(bench: Bench):
    assert isinstance(bench.store, PostgresStore)
    return bench.store._life


async def stop_the_heart(bench: Bench) -> None:
    """As where a process is frozen: its lease is not renewed.  It ends in a moment."""
    life = life_of(bench)
    for task in life._tasks:
        task.cancel()
    await asyncio.gather(*life._tasks, return_exceptions=True)

    async def over() -> bool | None:
        return not life.is_alive() or None

    await until(over)


async def test_a_node_that_is_taken_over_begins_nothing_and_changes_nothing(
    cluster: Cluster,
) -> None:
    frozen, other = await cluster.join("frozen"), await cluster.join("other")
    await other.add_waiting(a_draft(), a_draft())
    held, unbegun = await frozen.claim()
    assert frozen.store.may_begin(unbegun)

    await stop_the_heart(frozen)
    assert not frozen.store.may_begin(unbegun)
    with pytest.raises(StoreUnavailable):
        await frozen.claim()
    await cluster.waiting(other, 2)
    taken = await other.claim()
    await life_of(frozen)._beat()  # it wakes

    assert [claim.interrupted for claim in taken] == [1, 1]
    assert life_of(frozen).is_alive()
    assert not frozen.store.may_begin(unbegun)
    with pytest.raises(StaleClaim):
        await frozen.deliver(held)
    await frozen.store.release([unbegun], now_ms=T0)
    assert [await other.deliver(claim) for claim in taken] == ["DELIVERED"] * 2


async def test_a_node_that_nobody_took_over_keeps_what_it_has_begun(cluster: Cluster) -> None:
    """An outage of the database is nobody's death."""
    node = await cluster.join("node")
    begun, unbegun = a_draft(), a_draft()
    await node.add_waiting(begun, unbegun)
    claims = {claim.message.id: claim for claim in await node.claim()}

    await stop_the_heart(node)
    await life_of(node)._beat()

    assert await node.deliver(claims[id_of(begun)]) == "DELIVERED"
    late = claims[id_of(unbegun)]
    assert not node.store.may_begin(late)
    await node.store.release([late], now_ms=T0)
    [again] = await node.claim()
    assert node.store.may_begin(again)
    assert (again.message.id, again.interrupted) == (id_of(unbegun), 0)


async def test_a_claim_whose_commit_was_not_heard_of_waits_again(cluster: Cluster) -> None:
    node = await cluster.join("node")
    await node.add_waiting(a_draft(), a_draft())
    kept, unheard = await node.claim()
    life_of(node).writer.in_hand.remove((unheard.number, unheard.token))

    await cluster.waiting(node, 1)

    assert await node.deliver(kept) == "DELIVERED"
    [again] = await node.claim()
    assert (again.number, again.interrupted) == (unheard.number, 0)


async def test_what_is_settled_or_released_is_no_longer_in_hand(cluster: Cluster) -> None:
    node = await cluster.join("node")
    await node.add(a_draft(), a_draft(), a_draft())
    claims = [*node.born, *await node.claim()]
    writer = life_of(node).writer
    assert len(claims) == len(writer.in_hand) == 3

    await node.deliver(claims[0])
    await node.retry(claims[1], at_ms=T0)
    await node.store.release(claims[2:], now_ms=T0)

    assert writer.in_hand == set()


async def test_nodes_are_told_apart_by_their_names_until_they_leave(cluster: Cluster) -> None:
    one, _ = await cluster.join("one"), await cluster.join("other")
    await one.add_waiting(a_draft())
    await one.claim()

    found = await cluster.nodes()

    assert [(node.name, node.in_flight) for node in found] == [("one", 1), ("other", 0)]
    assert all(0 < node.lease_ms <= LEASE_MS for node in found)

    await one.store.close()
    cluster.benches.remove(one)

    async def forgotten() -> bool | None:
        return [node.name for node in await cluster.nodes()] == ["other"] or None

    await until(forgotten)


@pytest.mark.parametrize(
    "over", ["a transaction", "a statement", "an answer", "the end of an answer"]
)
async def test_a_transaction_of_a_node_that_is_frozen_keeps_nobody_waiting(
    over: str, cluster: Cluster
) -> None:
    frozen, other = await cluster.join("frozen"), await cluster.join("other")
    await stop_the_heart(frozen)
    await other.store.put_queue("acme", "mail", parallelism=1, paused=False, now_ms=T0)
    async with lent(life_of(frozen).writer._pool) as db:
        await db.execute("BEGIN; SELECT 1 FROM queue FOR UPDATE")
        answers = []
        if over in ("a statement", "an answer"):
            statement = await db.prepare("SELECT repeat('x', 50000000)")
        if over == "an answer":
            assert isinstance(db, PoolConnectionProxy)
            db._con._transport.pause_reading()
            answers.append(asyncio.create_task(statement.fetchval()))
        if over == "the end of an answer":
            assert isinstance(db, PoolConnectionProxy)
            db._con._transport.pause_reading()
            # Each is smaller than the server's buffer, which leaves when it awaits the next.
            query = b"SELECT repeat('x', 4000)\0"
            db._con._transport.write((b"Q" + struct.pack("!i", 4 + len(query)) + query) * 500)

        async with asyncio.timeout(10 * LEASE_MS / 1000):
            assert await other.store.pause_queue("acme", "mail", paused=True, now_ms=T0)
        if answers:
            db._con._transport.resume_reading()
            await asyncio.gather(*answers, return_exceptions=True)


async def test_a_node_that_could_not_renew_takes_over_from_nobody_before_others_can(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database was away for a moment: those who were late to come back are not dead."""
    late, other = await cluster.join("late"), await cluster.join("other")
    await other.add_waiting(a_draft())
    assert len(await late.claim()) == 1
    await stop_the_heart(late)
    life = life_of(other)
    for task in life._tasks:
        task.cancel()
    life._reached_s = 0.0  # for long

    with monkeypatch.context() as away:
        away.setattr(nodes, "renew", out_of_reach)
        with pytest.raises(StoreUnavailable):
            await life._beat()
    await life._beat()
    await life._tidy()
    assert (await other.store.pulse(now_ms=T0)).waiting == 0

    async def reached_for_a_lease() -> bool | None:
        await life._beat()
        await life._tidy()
        return (await other.store.pulse(now_ms=T0)).waiting == 1 or None

    await until(reached_for_a_lease)


async def out_of_reach(*_: object, **_more: object) -> None:
    raise StoreUnavailable("the database is away")
