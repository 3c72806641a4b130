"""What is true of the PostgreSQL engine alone: what a claim costs, who runs again, who waits for
whom, what a commit that is in doubt leaves behind, and that a pooler may stand between."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest

from tests.store.bench import Bench, id_of, ids, queued
from tests.support.databases import Databases, connected
from tests.support.factory import HOUR, T0, a_draft, some_places
from tests.support.lacking import LACKING
from tests.support.pgbouncer import bouncing, pgbouncer
from tests.support.postgres import QUICK, SHIPPED, Server, running
from tests.support.waiting import PATIENCE_S, until
from waypost.domain.errors import Invalid, StoreUnavailable
from waypost.domain.flow import Flow
from waypost.domain.lanes import Place
from waypost.store.postgres import flow_keys, messages
from waypost.store.postgres.database import Connection, migrate
from waypost.store.postgres.store import PostgresStore, open_postgres
from waypost.store.postgres.writer import BATCH_BYTES_MAX, Batch

Connect = Callable[..., Awaitable[PostgresStore]]


@pytest.fixture
async def url(databases: Callable[[str], Databases]) -> AsyncIterator[str]:
    with databases(SHIPPED).lending() as lend:
        yield await lend()


@pytest.fixture
async def join() -> AsyncIterator[Connect]:
    """Opens nodes, which are closed at the end."""
    async with AsyncExitStack() as stack:

        async def opened(url: str, **settings: Any) -> PostgresStore:
            store = await open_postgres(url, now_ms=T0, **settings)
            stack.push_async_callback(store.close)
            return store

        yield opened


# What is refused


async def test_a_database_that_may_lose_what_it_acknowledged_is_refused(url: str) -> None:
    name = url.partition("?")[0].rpartition("/")[2]
    async with connected(url) as db:
        await db.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
        try:
            with pytest.raises(Invalid, match="synchronous_commit"):
                await open_postgres(url, now_ms=T0)
        finally:
            await db.execute(f"ALTER DATABASE {name} RESET synchronous_commit")


async def test_two_who_bring_an_empty_database_up_to_date_at_one_moment_both_can(
    databases: Callable[[str], Databases],
) -> None:
    on = databases(SHIPPED).server.url
    async with connected(on("postgres")) as db:
        await db.execute("CREATE DATABASE bare TEMPLATE template0")
        try:
            async with connected(on("bare")) as one, connected(on("bare")) as other:
                await asyncio.gather(migrate(one), migrate(other))
                assert await one.fetchval("SELECT count(*) FROM schema_version") >= 1
        finally:
            await db.execute("DROP DATABASE bare WITH (FORCE)")


# Who gets in each other's way


async def test_of_two_in_a_deadlock_one_is_run_again_and_both_come_to_their_end(
    url: str, join: Connect
) -> None:
    store = await join(url)
    await store.put_queue("acme", "a", parallelism=1, paused=None, now_ms=T0)
    await store.put_queue("acme", "b", parallelism=1, paused=None, now_ms=T0)
    tries: list[str] = []
    both_have_one = asyncio.Barrier(2)

    def locking(*names: str) -> Callable[[Batch, list[None]], Awaitable[Sequence[str]]]:
        async def lock(batch: Batch, calls: list[None]) -> Sequence[str]:
            tries.append(names[0])
            await batch.db.execute("SET LOCAL deadlock_timeout = '10ms'")
            await batch.lock_rows("queue", "name", [("acme", names[0])])
            if len(tries) <= 2:
                await both_have_one.wait()
            await batch.lock_rows("queue", "name", [("acme", names[1])])
            return [names[0] for _ in calls]

        return lock

    done = await asyncio.gather(
        store.writer.call(locking("a", "b"), None), store.writer.call(locking("b", "a"), None)
    )

    assert done == ["a", "b"]
    # Who is run again may take its row once more before the other has woken up.
    assert len(tries) > 2


async def test_who_was_overtaken_looks_again_and_sees_what_was_done(
    url: str, join: Connect
) -> None:
    """Nobody else's key is an error of one's own: the second of a kind is told of the first."""
    stores = [await join(url) for _ in range(2)]
    drafts = [a_draft(dedup_key="id:a") for _ in range(8)]

    answers = await asyncio.gather(
        *[Bench(stores[n % 2]).add_waiting(draft) for n, draft in enumerate(drafts)]
    )

    assert len({accepted.message_id for [accepted] in answers}) == 1
    assert sum(not accepted.deduplicated for [accepted] in answers) == 1


async def test_a_message_names_a_key_that_upkeep_removes_just_then(
    url: str, join: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await join(url)
    make = flow_keys.make
    removed: list[None] = []

    async def make_and_lose(db: Connection, names: Iterable[Place], *, now_ms: int) -> set[Place]:
        made = await make(db, names, now_ms=now_ms)
        if not removed:
            removed.append(await flow_keys.remove(db, "acme", "k"))
        return made

    monkeypatch.setattr(flow_keys, "make", make_and_lose)
    await Bench(store).add(a_draft(flow=Flow("k", parallelism=3)))

    seen = await store.flow_key("acme", "k", now_ms=T0)
    assert seen is not None
    assert (seen.key.parallelism, seen.in_use) == (3, 1)


async def test_a_fault_of_one_call_is_that_calls_alone(url: str, join: Connect) -> None:
    store = await join(url)

    async def run(batch: Batch, calls: list[str]) -> list[str]:
        for call in calls:
            await batch.db.execute("SELECT $1::text::integer", call)
        return calls

    answers = await asyncio.gather(
        *[store.writer.call(run, call) for call in ("1", "no number", "3")],
        return_exceptions=True,
    )

    assert answers[::2] == ["1", "3"]
    assert isinstance(answers[1], asyncpg.DataError)


async def test_to_catch_up_is_to_run_what_was_asked_before_and_nothing_that_comes_later(
    url: str, join: Connect
) -> None:
    writer = (await join(url)).writer
    gates = {n: asyncio.Event() for n in (1, 2, 3)}

    async def run(_batch: Batch, calls: list[int]) -> list[int]:
        async with asyncio.timeout(PATIENCE_S):
            for call in calls:
                await gates[call].wait()
        return calls

    def ask(number: int) -> asyncio.Future[int]:
        return writer.call(run, number, size=BATCH_BYTES_MAX)  # a batch for each

    first, second = ask(1), ask(2)
    caught_up = asyncio.create_task(writer.catch_up())
    await asyncio.sleep(0)
    later = ask(3)

    gates[1].set()
    await first
    assert not caught_up.done()
    gates[2].set()
    await caught_up
    assert await second == 2
    assert not later.done()
    gates[3].set()
    assert await later == 3


# Who looks


class Gate:
    """Looks at a message stand here until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.standing = 0
        self._open = asyncio.Event()
        self._one = messages.one
        monkeypatch.setattr(messages, "one", self._stand)

    async def _stand(self, db: Connection, tenant: str, message_id: str) -> Any:
        self.standing += 1
        await self._open.wait()
        return await self._one(db, tenant, message_id)

    async def full(self) -> None:
        """Wait until some stand here."""

        async def some() -> bool:
            return bool(self.standing)

        await until(some)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(join: Connect, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open()  # before nodes are closed


@pytest.mark.parametrize("connections_max", [3, 10])
async def test_nobody_who_writes_and_no_loop_waits_for_those_who_look(
    url: str, join: Connect, gate: Gate, connections_max: int
) -> None:
    store = await join(url, connections_max=connections_max)
    bench, draft = Bench(store), a_draft()
    looking = [asyncio.create_task(store.message("acme", id_of(draft))) for _ in range(20)]
    await gate.full()

    async with asyncio.timeout(PATIENCE_S):
        await bench.add_waiting(draft)
        [claim] = await bench.claim()
        await bench.deliver(claim)
        await asyncio.gather(
            store.url_group("acme", "everyone"),
            store.due_schedules(now_ms=T0, count_max=10, bytes_max=1_000),
            store.changed(),
            store.tokens(),
            store.tenants(),
            store.pulse(now_ms=T0),
        )

    assert 1 <= gate.standing < connections_max
    gate.open()
    await asyncio.gather(*looking)


async def test_who_gives_up_before_its_turn_to_look_keeps_nobody_else_from_theirs(
    url: str, join: Connect, gate: Gate
) -> None:
    store = await join(url)
    looking = [asyncio.create_task(store.message("acme", "msg_none")) for _ in range(20)]
    await gate.full()

    for look in looking[:-1]:
        look.cancel()
    gate.open()

    assert await looking[-1] is None
    assert await store.message("acme", "msg_none") is None


# Commits in doubt


@pytest.fixture(scope="module")
def standby_less() -> Iterator[Server]:
    """A server that can be made to wait, at each commit, for a standby that never comes."""
    with running(SHIPPED, QUICK) as server:
        yield server


@pytest.fixture
async def alone(standby_less: Server) -> AsyncIterator["Alone"]:
    with Databases(standby_less).lending() as lend:
        url = await lend()
        async with connected(standby_less.url("postgres")) as db:
            yield Alone(url, db)
            await db.execute("DROP DATABASE pristine")
            name = url.partition("?")[0].rpartition("/")[2]
            await db.execute(f"DROP DATABASE {name} WITH (FORCE)")


class Alone:
    """A database whose standby is away, seen by its administrator."""

    def __init__(self, url: str, db: asyncpg.Connection) -> None:
        self.url = url
        self._db = db

    @asynccontextmanager
    async def waiting_for_standby(self) -> AsyncIterator[None]:
        await self._set("'standby'")
        try:
            yield
        finally:
            await self._set("''")

    async def _set(self, standbys: str) -> None:
        await self._db.execute(f"ALTER SYSTEM SET synchronous_standby_names = {standbys}")
        await self._db.execute("SELECT pg_reload_conf()")

        async def so() -> bool:
            return f"'{await self._db.fetchval('SHOW synchronous_standby_names')}'" == standbys

        await until(so)

    async def no_more(self, how: str, commit: Awaitable[Any]) -> Any:
        """End what waits for the standby, with `pg_cancel_backend` or `pg_terminate_backend`;
        what is then said of the commit."""
        task = asyncio.ensure_future(commit)

        async def end() -> bool:
            ended = await self._db.fetch(
                f"SELECT {how}(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            )
            return bool(ended)

        await until(end)
        [answer] = await asyncio.gather(task, return_exceptions=True)
        return answer


ENDS = pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])


@ENDS
async def test_a_publish_whose_commit_may_be_lost_is_not_acknowledged(
    alone: Alone, join: Connect, how: str
) -> None:
    """A commit that no longer waits for its standby says so in a warning only (01000)."""
    store = await join(alone.url)
    async with alone.waiting_for_standby():
        answer = await alone.no_more(how, Bench(store).add_waiting(a_draft()))

    assert isinstance(answer, StoreUnavailable)
    assert await Bench(store).add_waiting(a_draft())


@ENDS
async def test_a_claim_whose_commit_may_be_lost_takes_no_place_and_is_there_again(
    alone: Alone, join: Connect, how: str
) -> None:
    """It was committed: the message waits for an attempt that nobody makes, until its node
    finds it."""
    store = await join(alone.url, lease_ms=2_000)
    bench, draft = Bench(store), a_draft()
    await bench.add_waiting(draft)
    async with alone.waiting_for_standby():
        answer = await alone.no_more(how, bench.claim())

    assert isinstance(answer, StoreUnavailable)
    assert bench.places.in_flight == 0
    # What is found is due by the database's clock, which is years after T0.
    [claim] = await until(lambda: bench.claim(now_ms=T0 + 100 * 365 * 24 * HOUR))
    assert ids([claim]) == [draft.message.id]


@ENDS
async def test_a_birth_whose_commit_may_be_lost_is_not_begun(
    alone: Alone, join: Connect, how: str
) -> None:
    bench = Bench(await join(alone.url))
    async with alone.waiting_for_standby():
        answer = await alone.no_more(how, bench.add(a_draft()))

    assert isinstance(answer, StoreUnavailable)
    assert bench.born == []
    assert bench.places.in_flight == 0


# A pooler in between


@pytest.fixture
def bounced(url: str, databases: Callable[[str], Databases]) -> Iterator[str]:
    """The same database by way of a pooler."""
    if pgbouncer() is None:
        pytest.skip(f"{LACKING}pgbouncer")
    with bouncing(databases(SHIPPED).server, connections=3) as by_way_of:
        yield url.partition("?")[0] + by_way_of


async def test_it_works_behind_a_pooler_that_changes_connections_after_each_transaction(
    bounced: str, join: Connect
) -> None:
    stores = [await join(bounced, statements_cached=0) for _ in range(2)]

    await _all_go_through(stores)


async def test_it_works_with_no_statement_prepared_by_name(url: str, join: Connect) -> None:
    stores = [await join(url, statements_cached=0) for _ in range(2)]

    await _all_go_through(stores)


async def _all_go_through(stores: Sequence[PostgresStore]) -> None:
    """Everything a node does, at one moment and on each of them, until all is delivered."""
    benches = [Bench(store) for store in stores]
    drafts = [[a_draft(flow=Flow("k", parallelism=2)) for _ in range(5)] for _ in benches]
    await asyncio.gather(
        *[
            bench.add_waiting(*queued(count=2), draft)
            for bench, its in zip(benches, drafts, strict=True)
            for draft in its
        ]
    )

    async def deliver_all(bench: Bench) -> int:
        delivered = 0
        while (await bench.store.pulse(now_ms=T0)).waiting:
            claims, _, _ = await asyncio.gather(
                bench.claim(), bench.log(), bench.store.flow_keys("acme", now_ms=T0)
            )
            await asyncio.gather(*[bench.deliver(claim) for claim in claims])
            delivered += len(claims)
        return delivered

    async with asyncio.timeout(PATIENCE_S):
        assert sum(await asyncio.gather(*map(deliver_all, benches))) == 3 * 10


# What a claim costs: what it looks at, counted by PostgreSQL itself.


class Cost(msgspec.Struct, frozen=True):
    """`scanned` are the rows that were read by walking through a table, `blocks` the pages of
    tables and indexes that were looked at."""

    scanned: dict[str, int]
    blocks: int


async def _so_far(store: PostgresStore) -> Cost:
    """What was looked at.  A connection tells that of itself: there is to be no other."""
    await store._pool.execute("SELECT pg_stat_force_next_flush()")
    rows = await store._pool.fetch(
        "SELECT s.relname, s.seq_tup_read,"
        " heap_blks_hit + heap_blks_read + coalesce(idx_blks_hit + idx_blks_read, 0)"
        " FROM pg_stat_user_tables s JOIN pg_statio_user_tables USING (relid)"
    )
    return Cost({row[0]: row[1] for row in rows}, sum(row[2] for row in rows))


async def _cost_of_a_claim(store: PostgresStore, bench: Bench) -> Cost:
    before = await _so_far(store)
    claims = await bench.claim(10)
    after = await _so_far(store)
    assert len(claims) == 10
    scanned = {name: rows - before.scanned[name] for name, rows in after.scanned.items()}
    return Cost(
        {name: rows for name, rows in scanned.items() if rows}, after.blocks - before.blocks
    )


async def _analyze(url: str) -> None:
    async with connected(url) as db:
        await db.execute("VACUUM ANALYZE")


async def _fill(store: PostgresStore, *, others: int) -> None:
    """Some of one host that may go; and others that are not due, or stand in a queue."""
    bench = Bench(store)
    await bench.add_waiting(*[a_draft(url="https://good.example/") for _ in range(50)])
    for start in range(0, others, 500):
        await bench.add_waiting(
            *[
                a_draft(url=f"https://late{n % 50}.example/", delay_ms=HOUR + n)
                for n in range(start, start + 250)
            ],
            *queued("blocked", count=250),
        )


async def test_the_cost_of_a_claim_does_not_grow_with_what_waits_or_is_blocked(
    databases: Callable[[str], Databases],
) -> None:
    costs = {}
    for others in (500, 10_000):
        with databases(SHIPPED).lending() as lend:
            url = await lend()
            store = await open_postgres(url, now_ms=T0, connections_max=2)
            await _fill(store, others=others)
            await Bench(store).claim(1)
            await _analyze(url)
            costs[others] = await _cost_of_a_claim(store, Bench(store))
            await store.close()

    assert costs[10_000].blocks <= costs[500].blocks * 1.5, costs
    assert not {"delivery", "message"} & set(costs[10_000].scanned), costs


async def test_the_cost_of_a_claim_does_not_grow_with_hosts_that_have_no_place(
    databases: Callable[[str], Databases],
) -> None:
    costs = {}
    for hosts in (10, 1_000):
        with databases(SHIPPED).lending() as lend:
            url = await lend()
            store = await open_postgres(url, now_ms=T0, connections_max=2)
            bench = Bench(store, some_places(host_count_max=1, count_max=100_000))
            for start in range(0, hosts, 100):
                await bench.add_waiting(
                    *[
                        a_draft(url=f"https://hanging{n}.example/")
                        for n in range(start, min(hosts, start + 100))
                        for _ in range(3)
                    ]
                )
            while await bench.claim(1_000):
                pass
            await bench.add_waiting(*[a_draft(url=f"https://good{n}.example/") for n in range(40)])
            await _analyze(url)
            costs[hosts] = await _cost_of_a_claim(store, bench)
            await store.close()

    assert costs[1_000].blocks <= costs[10].blocks * 1.5, costs


async def test_a_claim_that_can_do_nothing_writes_nothing(url: str, join: Connect) -> None:
    bench = Bench(await join(url))
    await bench.add_waiting(a_draft(delay_ms=HOUR), *queued("paused"))
    await bench.store.pause_queue("acme", "paused", paused=True, now_ms=T0)
    async with connected(url) as db:
        before = await db.fetchval("SELECT pg_current_wal_insert_lsn()")

        for n in range(20):
            assert await bench.claim(now_ms=T0 + n) == []

        assert await db.fetchval("SELECT pg_current_wal_insert_lsn()") == before
