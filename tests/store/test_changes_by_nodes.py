"""What several nodes of one PostgreSQL change at one moment: each sees what the one before did."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
from msgspec.structs import replace

from tests.store.bench import Bench, queued
from tests.support.databases import Databases
from tests.support.factory import DAY, MINUTE, SECOND, T0, a_draft, a_schedule
from tests.support.postgres import SHIPPED
from waypost.domain.filters import EVERYTHING
from waypost.domain.schedules import Schedule
from waypost.domain.url_groups import Endpoint, UrlGroup
from waypost.store.postgres.store import open_postgres
from waypost.store.protocol import Found, Retention

NODES = 4
NOTHING = Found([], None)


@pytest.fixture
async def nodes(databases: Callable[[str], Databases]) -> AsyncIterator[list[Bench]]:
    with databases(SHIPPED).lending() as lend:
        url = await lend()
        async with AsyncExitStack() as stack:
            benches = []
            for _ in range(NODES):
                store = await open_postgres(url, now_ms=T0)
                stack.push_async_callback(store.close)
                benches.append(Bench(store))
            yield benches


async def test_no_change_of_a_group_is_lost_nor_of_one_that_is_new(nodes: list[Bench]) -> None:
    def adding(number: int) -> Callable[[UrlGroup | None], UrlGroup]:
        def change(group: UrlGroup | None) -> UrlGroup:
            group = group or UrlGroup(
                id=f"tpc_{number}", name="g", created_ms=T0, updated_ms=T0, endpoints=[]
            )
            endpoint = Endpoint(f"https://{number}.example")
            return replace(group, endpoints=[*group.endpoints, endpoint])

        return change

    await asyncio.gather(
        *(
            nodes[number % NODES].store.change_url_group("acme", "g", adding(number))
            for number in range(40)
        )
    )

    group = await nodes[0].store.url_group("acme", "g")
    assert group is not None
    assert {endpoint.url for endpoint in group.endpoints} == {
        f"https://{number}.example" for number in range(40)
    }


async def test_a_fire_time_runs_once_whichever_nodes_ask(nodes: list[Bench]) -> None:
    before = a_schedule(next_ms=T0)
    await nodes[0].store.change_schedule("acme", before.id, lambda _: before)
    for n in range(10):
        after = replace(before, next_ms=T0 + (n + 1) * MINUTE, updated_ms=before.updated_ms + 1)
        fired = await asyncio.gather(
            *(
                node.store.fire(before, after, queued(count=2), births=node.births, now_ms=T0)
                for node in nodes
            )
        )
        assert sorted(fired) == [False, False, False, True]
        before = after

    queue = await nodes[0].store.queue("acme", "mail")
    assert queue is not None
    assert queue.lag == 20


async def test_a_schedule_is_either_changed_or_fired(nodes: list[Bench]) -> None:
    def faster(schedule: Schedule | None) -> Schedule:
        assert schedule is not None
        return replace(schedule, cron="*/2 * * * *", updated_ms=schedule.updated_ms + 1)

    for n in range(10):
        before = a_schedule(f"s{n}", next_ms=T0)
        after = replace(before, next_ms=T0 + MINUTE, updated_ms=T0 + 1)
        one, other, *_ = (node.store for node in nodes)
        await one.change_schedule("acme", before.id, lambda _, kept=before: kept)
        fired, _ = await asyncio.gather(
            one.fire(before, after, [], births=nodes[0].births, now_ms=T0),
            other.change_schedule("acme", before.id, faster),
        )
        seen = await one.schedule("acme", before.id)
        assert seen is not None
        assert seen.schedule == faster(after if fired else before)


async def test_a_queue_is_made_once_and_what_is_put_last_holds(nodes: list[Bench]) -> None:
    for n in range(10):
        await asyncio.gather(
            *(
                node.store.put_queue("acme", f"q{n}", parallelism=3, paused=None, now_ms=T0)
                for node in nodes
            ),
            *(node.add(*queued(f"q{n}", count=2)) for node in nodes),
        )
        queue = await nodes[0].store.queue("acme", f"q{n}")
        assert queue is not None
        assert (queue.parallelism, queue.lag) == (3, 2 * NODES)


async def test_a_queue_ends_while_others_enqueue_and_nothing_is_lost(nodes: list[Bench]) -> None:
    async def empty(node: Bench) -> int:
        cancelled, mark = 0, None
        while True:
            emptied = await node.store.empty_queue(
                "acme", "mail", mark=mark, count_max=3, now_ms=T0
            )
            cancelled, mark = cancelled + emptied.cancelled, emptied.mark
            if mark is None:
                return cancelled

    await nodes[0].store.put_queue("acme", "mail", parallelism=1, paused=True, now_ms=T0)
    await nodes[0].add(*queued(count=10))
    cancelled, *_ = await asyncio.gather(
        empty(nodes[0]), *(node.add(draft) for node in nodes[1:] for draft in queued(count=5))
    )

    queue = await nodes[0].store.queue("acme", "mail")
    assert 10 <= cancelled <= 25
    assert cancelled + (0 if queue is None else queue.lag) == 25


async def test_nodes_prune_and_publish_beside_each_other(nodes: list[Bench]) -> None:
    keep = Retention(log_ms=SECOND, dead_letter_ms=SECOND)

    async def live(node: Bench, *, begin_ms: int) -> None:
        for n in range(10):
            now_ms = begin_ms + n * SECOND
            await node.add(*(a_draft(at_ms=now_ms) for _ in range(5)), now_ms=now_ms)
            while node.born:
                await node.deliver(node.born.pop(), now_ms=now_ms)
            while claims := await node.claim(now_ms=now_ms):
                for claim in claims:
                    await node.deliver(claim, now_ms=now_ms)
            await node.store.prune(retention=keep, now_ms=now_ms)

    await asyncio.gather(*(live(node, begin_ms=T0 + n * DAY) for n, node in enumerate(nodes)))
    late_ms = T0 + 9 * DAY
    while (await nodes[0].store.prune(retention=keep, now_ms=late_ms)).more:
        pass

    assert await nodes[0].store.cancellable("acme", where=EVERYTHING, cursor=None) == NOTHING
    assert await nodes[0].log() == []
