"""Two nodes meet on the same rows: each test holds one transaction open, before its commit or
at its locks, while another begins."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest

from tests.store.bench import Bench, id_of, ids, queued
from tests.support.application import until
from tests.support.databases import Databases
from tests.support.factory import ERROR, OK, SECOND, T0, a_callback, a_draft
from tests.support.postgres import SHIPPED
from waypost.domain.attempt import Delivered, TryAgain
from waypost.domain.lanes import queue_lane
from waypost.store.calls import Add, Put, Settle
from waypost.store.postgres import queues, settling
from waypost.store.postgres.settling import Ending
from waypost.store.postgres.store import PostgresStore, open_postgres
from waypost.store.postgres.writer import Batch, Operation
from waypost.store.protocol import Claim


class Pair:
    """Two nodes on one database, and a connection that looks on."""

    def __init__(self, one: Bench, other: Bench, db: asyncpg.Connection) -> None:
        self.one = one
        self.other = other
        self.db = db

    @asynccontextmanager
    async def open(self, operation: Operation, call: Any) -> AsyncIterator[Any]:
        """An operation of the one node, which commits at the end of the block."""
        async with self.batch() as batch:
            [result] = await operation(batch, [call])
            yield result
        for follow in batch.on_commit:
            follow()

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[Batch]:
        """A transaction of the one node."""
        writer = store_of(self.one).writer
        async with writer._pool.acquire() as db, db.transaction():
            yield Batch(
                db, node=writer.node, lease=writer.lease, shut=writer.shut, in_hand=writer.in_hand
            )

    async def begun(self, call: Awaitable[Any]) -> "asyncio.Future[Any]":
        """A call that has begun: it has ended, or waits for a lock."""
        task = asyncio.ensure_future(call)

        async def stands() -> bool | None:
            return task.done() or await self.someone_waits() or None

        await until(stands)
        return task

    async def someone_waits(self) -> bool:
        waits: bool = await self.db.fetchval(
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)"
        )
        return waits

    async def holds(self) -> list[str]:
        return [row[0] for row in await self.db.fetch("SELECT resource FROM hold")]


@pytest.fixture
async def pair(databases: Callable[[str], Databases]) -> AsyncIterator[Pair]:
    with databases(SHIPPED).lending() as lend:
        url = await lend()
        async with AsyncExitStack() as opened:
            benches = []
            for name in ("one", "other"):
                store = await open_postgres(url, now_ms=T0, name=name)
                opened.push_async_callback(store.close)
                benches.append(Bench(store))
            db = await asyncpg.connect(url)
            opened.push_async_callback(db.close)
            yield Pair(*benches, db)


def store_of(bench: Bench) -> PostgresStore:
    assert isinstance(bench.store, PostgresStore)
    return bench.store


def an_end(bench: Bench, claim: Claim, verdict: Any) -> Settle:
    return Settle(claim, verdict, ERROR, (), bench.births, T0)


def an_add(bench: Bench, *drafts: Any) -> Add:
    return Add(drafts, bench.births, 1 << 30, T0)


async def emptied(bench: Bench, name: str = "mail") -> None:
    answer = await bench.store.empty_queue("acme", name, mark=None, count_max=100, now_ms=T0)
    assert answer.mark is None


async def test_callbacks_that_end_at_one_moment_free_the_place_in_a_queue_that_is_gone(
    pair: Pair,
) -> None:
    one, other = pair.one, pair.other
    [draft] = queued(count=1)
    await one.add_waiting(draft)
    [claim] = await one.claim()
    callbacks = [a_callback(draft.message), a_callback(draft.message)]
    await one.store.settle(
        claim, Delivered(), OK, callbacks=callbacks, births=one.births, now_ms=T0
    )
    first, second = [*one.born, *await one.claim()]
    await emptied(one)
    assert await pair.holds() == ["queue:mail"]

    async with pair.open(settling.settle, an_end(one, first, Delivered())):
        end = await pair.begun(
            other.store.settle(second, Delivered(), OK, births=other.births, now_ms=T0)
        )
    await end

    assert await pair.holds() == []


async def test_a_message_in_a_queue_that_is_made_anew_hears_of_the_place_that_the_old_one_frees(
    pair: Pair,
) -> None:
    one, other = pair.one, pair.other
    await one.add_waiting(*queued(count=1))
    [last] = await one.claim()
    await emptied(one)

    async with pair.open(settling.settle, an_end(one, last, TryAgain(T0))) as logged:
        assert logged == "CANCELED"
        new = a_draft(queue="mail")
        add = await pair.begun(other.add(new))
    await add

    assert ids([*other.born, *await other.claim()]) == [id_of(new)]


async def test_a_queue_that_is_full_does_not_stand_in_line_when_another_falls_due(
    pair: Pair,
) -> None:
    one = pair.one
    await one.add(a_draft(queue="mail", delay_ms=SECOND))
    await one.add(a_draft(queue="mail"))
    [born] = one.born

    assert await one.claim(now_ms=T0 + SECOND) == []
    assert await one.next_due_ms(now_ms=T0 + SECOND) is None

    await one.deliver(born, now_ms=T0 + SECOND)
    assert len(await one.claim(now_ms=T0 + SECOND)) == 1


async def test_a_cancel_leaves_a_lane_to_what_joins_it_meanwhile(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair.one, pair.other
    draft, later = a_draft(), a_draft()
    await one.add_waiting(draft)
    [claim] = await one.claim()
    lock, refresh = Ending.lock, settling.lanes.states
    adds: list[asyncio.Future[Any]] = []

    async def lock_then_retry(ending: Ending, *args: Any, **more: Any) -> None:
        await lock(ending, *args, **more)
        monkeypatch.setattr(Ending, "lock", lock)
        await other.retry(claim, at_ms=T0)

    async def look_then_add(*args: Any, **more: Any) -> Any:
        states = await refresh(*args, **more)
        monkeypatch.setattr(settling.lanes, "states", refresh)
        adds.append(await pair.begun(other.add_waiting(later)))
        return states

    other.places = one.places
    monkeypatch.setattr(Ending, "lock", lock_then_retry)
    monkeypatch.setattr(settling.lanes, "states", look_then_add)
    assert (await one.store.cancel("acme", id_of(draft), now_ms=T0)).count == 1
    for add in adds:
        await add

    assert ids(await one.claim()) == [id_of(later)]


async def test_an_attempt_that_is_to_be_repeated_locks_its_lane_before_its_delivery(
    pair: Pair,
) -> None:
    one = pair.one
    await one.add_waiting(a_draft(), a_draft())
    [claim] = await one.claim(1)

    async with pair.db.transaction():
        await pair.db.execute("SELECT 1 FROM lane FOR UPDATE")
        end = await pair.begun(one.retry(claim, at_ms=T0))
        free = await pair.db.fetchval(
            "SELECT number FROM delivery WHERE number = $1 FOR UPDATE SKIP LOCKED", claim.number
        )
    await end

    assert free == claim.number


async def test_a_node_looks_at_its_lease_before_it_locks_what_a_take_over_locks(
    pair: Pair,
) -> None:
    one = pair.one
    await one.add_waiting(a_draft(queue="mail"))
    async with pair.db.transaction():
        await pair.db.execute("SELECT 1 FROM node FOR UPDATE")
        add = await pair.begun(one.add(a_draft(queue="mail")))
        free = await pair.db.fetchval("SELECT name FROM queue FOR UPDATE SKIP LOCKED")
    await add

    assert free == "mail"


async def test_a_queue_is_published_to_and_put_for_the_first_time_without_a_deadlock(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0
    run = queues.put

    async def put(batch: Batch, calls: list[Put]) -> Any:
        nonlocal tries
        tries += 1
        return await run(batch, calls)

    monkeypatch.setattr(queues, "put", put)
    async with pair.batch() as publishing:
        made = await queues.make(publishing.db, [("acme", "mail")], now_ms=T0)
        putting = await pair.begun(
            pair.other.store.put_queue("acme", "mail", parallelism=3, paused=None, now_ms=T0)
        )
        await publishing.lock([("acme", queue_lane("mail"))], made=made)
    await putting

    assert tries == 1
    queue = await pair.one.store.queue("acme", "mail")
    assert queue is not None
    assert queue.parallelism == 3


async def test_a_claim_that_is_given_back_twice_at_once_is_given_back_once(pair: Pair) -> None:
    one = pair.one
    draft = a_draft()
    await one.add_waiting(draft)
    [claim] = await one.claim()
    await one.store.cancel("acme", id_of(draft), now_ms=T0)

    await asyncio.gather(*(one.store.release([claim], now_ms=T0) for _ in range(2)))

    assert (await one.states(id_of(draft))).count("CANCELED") == 1
