"""The log on PostgreSQL: a part for each day, made ahead and dropped whole."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import asyncpg
import pytest

from tests.store.bench import Bench, id_of
from tests.support.databases import Databases, connected
from tests.support.factory import DAY, HOUR, SECOND, T0, a_callback, a_draft
from tests.support.postgres import SHIPPED
from waypost.domain.attempt import Delivered
from waypost.store.counts import Kept
from waypost.store.postgres import parts, upkeep
from waypost.store.postgres.store import PostgresStore, open_postgres
from waypost.store.protocol import BYTES_MAX, Pruned, Retention

TODAY = T0 - T0 % DAY

KEEP = Retention(log_ms=14 * DAY, dead_letter_ms=30 * DAY)


class Node(Bench):
    """A node on the test bench, and a connection of one's own to the same database."""

    store: PostgresStore

    def __init__(self, store: PostgresStore, url: str, db: asyncpg.Connection) -> None:
        super().__init__(store)
        self.url = url
        self.db = db

    async def prune(self, *, now_ms: int, retention: Retention = KEEP) -> list[Pruned]:
        chunks: list[Pruned] = []
        while not chunks or chunks[-1].more:
            assert len(chunks) < 1_000, "pruning has no end"
            chunks.append(await self.store.prune(retention=retention, now_ms=now_ms))
        return chunks

    async def deliver_one(self, *, now_ms: int, **facts: object) -> str:
        """Deliver a message in a second; its id."""
        draft = a_draft(at_ms=now_ms, **facts)
        await self.add(draft, now_ms=now_ms)
        await self.deliver(self.born.pop(), now_ms=now_ms + SECOND)
        return id_of(draft)

    async def is_kept(self, message_id: str) -> bool:
        return await self.store.message("acme", message_id) is not None

    async def days(self) -> list[int]:
        """The days that have a part, counted from the first of the test."""
        return [(day_ms - TODAY) // DAY for day_ms in await parts.days(self.db)]

    async def rows_of_other_times(self) -> int:
        count: int = await self.db.fetchval(f"SELECT count(*) FROM ONLY {parts.OTHER_TIMES}")
        return count


@pytest.fixture
async def node(databases: Callable[[str], Databases]) -> AsyncIterator[Node]:
    with databases(SHIPPED).lending() as lend:
        url = await lend()
        async with AsyncExitStack() as stack:
            db = await stack.enter_async_context(connected(url))
            store = await open_postgres(url, now_ms=T0)
            stack.push_async_callback(store.close)
            yield Node(store, url, db)


async def test_parts_are_made_for_today_and_two_days_ahead(node: Node) -> None:
    await node.prune(now_ms=T0)
    assert await node.days() == [0, 1, 2]

    await node.prune(now_ms=T0 + DAY)
    assert await node.days() == [0, 1, 2, 3]

    await node.deliver_one(now_ms=T0 + 3 * DAY)
    assert await node.rows_of_other_times() == 0


async def test_a_clock_gone_wrong_makes_no_parts(node: Node) -> None:
    for now_ms in (0, parts.TIMES.stop, 1 << 47):
        await node.prune(now_ms=now_ms)

    assert await node.days() == []


async def test_a_part_takes_over_what_was_logged_before_there_was_one(node: Node) -> None:
    message_id = await node.deliver_one(now_ms=T0)
    assert await node.rows_of_other_times() == 3

    await node.prune(now_ms=T0 + HOUR)

    assert await node.rows_of_other_times() == 0
    assert await node.states(message_id) == ["CREATED", "ACTIVE", "DELIVERED"]


async def test_a_day_with_much_in_the_default_part_has_no_part_until_it_is_gone(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MOVED_MAX", 2)
    message_id = await node.deliver_one(now_ms=T0)

    await node.prune(now_ms=T0 + HOUR)

    assert await node.days() == [1, 2]
    assert len(await node.states(message_id)) == 3
    await node.prune(now_ms=T0 + 15 * DAY)
    assert not await node.is_kept(message_id)
    assert await node.rows_of_other_times() == 0


async def test_a_message_goes_when_its_time_is_over_and_its_part_when_the_day_is(
    node: Node,
) -> None:
    await node.prune(now_ms=T0)
    early = await node.deliver_one(now_ms=TODAY + HOUR)
    late = await node.deliver_one(now_ms=TODAY + 2 * HOUR)

    await node.prune(now_ms=TODAY + 14 * DAY + HOUR)
    assert await node.is_kept(early)
    chunks = await node.prune(now_ms=TODAY + 14 * DAY + HOUR + SECOND)

    assert not await node.is_kept(early)
    assert await node.log(early) == []
    assert await node.states(late) == ["CREATED", "ACTIVE", "DELIVERED"]
    assert 0 in await node.days()
    assert sum(chunk.rows for chunk in chunks) == 1
    await node.prune(now_ms=TODAY + 15 * DAY - 2)
    assert 0 in await node.days()
    assert not await node.is_kept(late)
    await node.prune(now_ms=TODAY + 15 * DAY - 1)
    assert 0 not in await node.days()


async def test_a_message_stays_while_a_later_part_names_it(node: Node) -> None:
    await node.prune(now_ms=T0)
    draft = a_draft(at_ms=T0)
    await node.add(draft)
    await node.deliver(node.born[0], now_ms=T0 + 2 * DAY)

    await node.prune(now_ms=T0 + 15 * DAY)
    assert await node.is_kept(id_of(draft))
    assert await node.states(id_of(draft)) == ["DELIVERED"]
    await node.prune(now_ms=T0 + 16 * DAY)

    assert not await node.is_kept(id_of(draft))


async def test_what_is_alive_outlives_its_parts(node: Node) -> None:
    await node.prune(now_ms=T0)
    delayed, failed = a_draft(at_ms=T0, delay_ms=100 * DAY), a_draft(at_ms=T0)
    await node.add(delayed, failed)
    await node.fail(node.born[0])

    await node.prune(now_ms=T0 + 20 * DAY)
    assert 0 not in await node.days()
    assert await node.is_kept(id_of(failed))
    await node.prune(now_ms=T0 + 30 * DAY)
    assert not await node.is_kept(id_of(failed))
    assert await node.is_kept(id_of(delayed))
    [claim] = await node.claim(now_ms=T0 + 100 * DAY)
    await node.deliver(claim, now_ms=T0 + 100 * DAY)
    await node.prune(now_ms=T0 + 114 * DAY)

    assert not await node.is_kept(id_of(delayed))
    assert await node.db.fetchval("SELECT count(*) FROM body") == 0


async def test_a_message_goes_with_a_dead_letter_that_is_deleted_after_its_log(
    node: Node,
) -> None:
    await node.prune(now_ms=T0)
    draft = a_draft(at_ms=T0)
    await node.add(draft)
    await node.fail(node.born[0])
    [letter] = (await node.store.dead_letters("acme", cursor=None, count_max=1)).dead_letters
    await node.prune(now_ms=T0 + 14 * DAY)
    assert 0 in await node.days()
    assert await node.is_kept(id_of(draft))

    await node.store.delete_dead_letters("acme", [letter.id])

    assert not await node.is_kept(id_of(draft))


async def test_a_message_stays_for_its_callback(node: Node) -> None:
    await node.prune(now_ms=T0)
    draft = a_draft(at_ms=T0)
    await node.add(draft)
    callback = a_callback(draft.message, at_ms=T0, delay_ms=20 * DAY)
    await node.end(node.born[0], Delivered(), callbacks=[callback])

    await node.prune(now_ms=T0 + 16 * DAY)
    assert await node.is_kept(id_of(draft))
    [claim] = await node.claim(now_ms=T0 + 20 * DAY)
    await node.deliver(claim, now_ms=T0 + 20 * DAY)
    await node.prune(now_ms=T0 + 34 * DAY)

    assert not await node.is_kept(id_of(draft))
    assert not await node.is_kept(id_of(callback))


async def test_another_node_goes_on_where_one_has_stopped(node: Node) -> None:
    await node.prune(now_ms=T0)
    for n in range(400):
        await node.deliver_one(now_ms=T0 + n)
    now_ms = T0 + 14 * DAY + 2 * SECOND
    while (first := await node.store.prune(retention=KEEP, now_ms=now_ms)).rows == 0:
        assert first.more
    other = await open_postgres(node.url, now_ms=now_ms)
    try:
        rest = []
        while not rest or rest[-1].more:
            rest.append(await other.prune(retention=KEEP, now_ms=now_ms))
    finally:
        await other.close()

    assert 0 < first.rows <= 500
    assert first.rows + sum(chunk.rows for chunk in rest) == 3 * 400
    assert await node.db.fetchval("SELECT count(*) FROM message") == 0


async def test_one_node_prunes_at_a_time(node: Node) -> None:
    await node.prune(now_ms=T0)
    await node.deliver_one(now_ms=T0)
    async with node.db.transaction():
        await node.db.execute("SELECT 1 FROM upkeep FOR UPDATE")

        pruned = await node.store.prune(retention=KEEP, now_ms=T0 + 20 * DAY)

    assert pruned == Pruned(rows=0, more=False)


async def test_nothing_waits_for_a_part_that_cannot_be_had(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "LOCK_MS", 1)
    await node.prune(now_ms=T0)
    message_id = await node.deliver_one(now_ms=T0)
    async with node.db.transaction():  # as a backup does, for hours
        await node.db.execute("LOCK TABLE event, event_of_other_times IN ACCESS SHARE MODE")

        await node.prune(now_ms=T0 + 15 * DAY)

        assert await node.days() == [0, 1, 2]
        assert not await node.is_kept(message_id)
    await node.prune(now_ms=T0 + 15 * DAY)
    assert await node.days() == [1, 2, 15, 16, 17]


async def test_who_logs_just_as_a_part_is_made_is_none_the_wiser(node: Node) -> None:
    draft = a_draft()
    async with node.db.transaction():
        await node.db.execute(f"LOCK TABLE {parts.OTHER_TIMES} IN ACCESS EXCLUSIVE MODE")
        adding = asyncio.ensure_future(node.add(draft))
        async with asyncio.timeout(10):
            while not await node.db.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                assert not adding.done()
        assert await parts.make_ahead(node.db, [], now_ms=T0)
    await adding

    assert await node.rows_of_other_times() == 0
    assert await node.states(id_of(draft)) == ["CREATED", "ACTIVE"]


async def test_a_clock_that_was_set_back_does_not_stop_pruning(node: Node) -> None:
    await node.prune(now_ms=T0 + 1_000 * DAY)
    await node.prune(now_ms=T0)
    message_id = await node.deliver_one(now_ms=T0)

    await node.prune(now_ms=T0 + 14 * DAY + SECOND)

    assert not await node.is_kept(message_id)


async def test_a_store_that_is_too_large_loses_whole_days_the_oldest_first(node: Node) -> None:
    messages = []
    for day in range(8):
        now_ms = T0 + day * DAY
        await node.prune(now_ms=now_ms)
        for n in range(20):
            messages.append(await node.deliver_one(now_ms=now_ms + n, body=b"x" * 10_000))
    now_ms = T0 + 7 * DAY + HOUR
    delayed = a_draft(at_ms=now_ms, delay_ms=DAY)
    await node.add(delayed, now_ms=now_ms)
    size = (await node.store.pulse(now_ms=now_ms)).store_bytes
    small = Retention(log_ms=14 * DAY, dead_letter_ms=30 * DAY, store_bytes_max=size * 4 // 5)

    await node.prune(now_ms=now_ms, retention=small)

    assert await node.days() == [2, 3, 4, 5, 6, 7, 8, 9]
    kept = [await node.is_kept(message_id) for message_id in messages]
    assert kept == [False] * 40 + [True] * 120
    assert await node.is_kept(id_of(delayed))


async def test_a_store_that_stays_too_large_loses_more_only_once_it_has_grown(
    node: Node,
) -> None:
    await node.prune(now_ms=T0)
    messages = [await node.deliver_one(now_ms=T0 + n * HOUR // 4) for n in range(40)]
    now_ms = T0 + 10 * HOUR
    size = (await node.store.pulse(now_ms=now_ms)).store_bytes
    small = Retention(log_ms=14 * DAY, dead_letter_ms=30 * DAY, store_bytes_max=size * 9 // 10)

    async def kept() -> int:
        return sum([await node.is_kept(message_id) for message_id in messages])

    for _ in range(3):
        await node.prune(now_ms=now_ms, retention=small)
        assert await kept() == 36
    await node.db.execute(
        "CREATE TABLE grown AS SELECT repeat('x', 1000) FROM generate_series(1, 900)"
    )
    await node.prune(now_ms=now_ms, retention=small)
    assert 20 < await kept() < 36


async def test_how_much_room_the_disk_has_is_not_told(node: Node) -> None:
    pulse = await node.store.pulse(now_ms=T0)

    assert pulse.free_bytes == BYTES_MAX
    assert pulse.store_bytes > 1_000_000
    assert pulse.refusing is None


async def test_a_database_that_can_only_be_read_says_so(node: Node) -> None:
    name = await node.db.fetchval("SELECT current_database()")
    await node.db.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        async with connected(node.url) as reading:
            pulse = await upkeep.pulse(reading, Kept(), shut=[], now_ms=T0)
    finally:
        await node.db.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")

    assert pulse.refusing is not None
