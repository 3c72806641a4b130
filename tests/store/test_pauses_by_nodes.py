"""What a pause promises while another node claims: once it is acknowledged nothing begins."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from tests.store.bench import Bench, id_of, ids, queued
from tests.support.databases import Databases, connected
from tests.support.factory import SECOND, T0
from tests.support.postgres import SHIPPED
from tests.support.waiting import until
from waypost.store.calls import Pause
from waypost.store.postgres import queues
from waypost.store.postgres.database import Connection
from waypost.store.postgres.shut import Shut
from waypost.store.postgres.store import open_postgres
from waypost.store.postgres.writer import Batch


@pytest.fixture
async def opened(
    databases: Callable[[str], Databases],
) -> AsyncIterator[tuple[Bench, Connection]]:
    """A node, and the connection of another one."""
    with databases(SHIPPED).lending() as lend:
        url = await lend()
        store = await open_postgres(url, now_ms=T0)
        async with connected(url) as other:
            yield Bench(store), other
        await store.close()


async def test_a_claim_that_waited_for_a_pause_begins_no_retry(
    opened: tuple[Bench, Connection],
) -> None:
    bench, other = opened
    [draft] = queued(count=1)
    await bench.add(draft)
    due_ms = T0 + SECOND
    await bench.retry(bench.born[0], at_ms=due_ms)

    async def one_waits() -> bool:
        return bool(
            await other.fetchval("SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)")
        )

    async with other.transaction():
        batch = Batch(other, node=0, lease=0, shut=Shut(), in_hand=set())
        await queues.pause(batch, [Pause("acme", "mail", paused=True, now_ms=due_ms)])
        asked = asyncio.ensure_future(bench.claim(now_ms=due_ms))
        await until(one_waits)

    assert await asked == []
    assert await bench.claim(now_ms=due_ms) == []
    await bench.store.pause_queue("acme", "mail", paused=False, now_ms=due_ms)
    assert ids(await bench.claim(now_ms=due_ms)) == [id_of(draft)]
