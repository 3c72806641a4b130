"""What a store promises of queues: their order, their places, their lag (D23)."""

import asyncio

from tests.store.bench import Bench, id_of, ids, queued
from tests.store.conftest import Open
from tests.support.factory import HOUR, MINUTE, SECOND, T0, a_draft, some_places
from waypost.domain.places import SUSPECT_AFTER


async def test_enqueueing_creates_the_queue_with_parallelism_one(bench: Bench) -> None:
    """W75."""
    await bench.add(*queued(count=2))

    queue = await bench.store.queue("acme", "mail")

    assert queue is not None
    assert (queue.name, queue.parallelism, queue.paused, queue.lag) == ("mail", 1, False, 2)
    assert (queue.created_ms, queue.updated_ms) == (T0, T0)
    assert await bench.store.queue("other", "mail") is None
    assert await bench.store.queue("acme", "nothing") is None


async def test_a_queue_goes_one_by_one_in_order_of_acceptance(bench: Bench) -> None:
    drafts = queued(count=4)
    await bench.add(*drafts)

    seen = []
    claims = bench.born
    while claims:
        assert len(claims) == 1
        assert await bench.claim() == []
        seen += ids(claims)
        await bench.deliver(claims[0])
        claims = await bench.claim()

    assert seen == [id_of(draft) for draft in drafts]


async def test_a_message_in_retry_keeps_its_place_and_the_others_wait(bench: Bench) -> None:
    first, second = queued(count=2)
    await bench.add(first, second)

    await bench.retry(bench.born[0], at_ms=T0 + MINUTE)

    assert await bench.next_due_ms() == T0 + MINUTE
    assert await bench.claim(now_ms=T0 + MINUTE - 1) == []
    [again] = await bench.claim(now_ms=T0 + MINUTE)
    assert id_of(first) == again.message.id
    await bench.fail(again, now_ms=T0 + MINUTE)
    assert ids(await bench.claim(now_ms=T0 + MINUTE)) == [id_of(second)]


async def test_a_delayed_message_joins_when_its_delay_ends_and_blocks_nobody_before(
    bench: Bench,
) -> None:
    [delayed] = queued(count=1, delay_ms=MINUTE)
    first, second = queued(count=2)
    await bench.add(delayed, first, second)
    [later] = queued(count=1, at_ms=T0 + 2 * MINUTE)

    seen = ids(bench.born)
    await bench.deliver(bench.born[0])
    await bench.add(later, now_ms=T0 + 2 * MINUTE)
    for _ in range(3):
        [claim] = await bench.claim(now_ms=T0 + 2 * MINUTE)
        seen.append(claim.message.id)
        await bench.deliver(claim)

    assert seen == [id_of(draft) for draft in (first, second, delayed, later)]


async def test_acceptance_never_goes_back_within_a_queue(bench: Bench) -> None:
    [first] = queued(count=1, at_ms=T0)
    [second] = queued(count=1, at_ms=T0 - SECOND)
    await bench.add_waiting(first, now_ms=T0)
    await bench.add_waiting(second, now_ms=T0 - SECOND)

    [claim] = await bench.claim()

    assert claim.message.id == id_of(first)


async def test_of_two_that_come_at_the_same_moment_none_overtakes_what_is_due_to_the_later(
    bench: Bench,
) -> None:
    [older] = queued(count=1, delay_ms=5)
    await bench.add(older)
    [delayed] = queued(count=1, at_ms=T0 + 1, delay_ms=HOUR)
    [late] = queued(count=1, at_ms=T0 + 10)

    await asyncio.gather(bench.add(delayed, now_ms=T0 + 1), bench.add(late, now_ms=T0 + 10))

    assert bench.born == []
    assert ids(await bench.claim(now_ms=T0 + 10)) == [id_of(older)]


async def test_a_suspect_keeps_its_place_in_its_queue(open_store: Open, durable: None) -> None:
    first, second = queued(count=2)
    async with open_store() as store:
        await Bench(store).add_waiting(first, second)
    for _ in range(SUSPECT_AFTER):
        async with open_store() as store:
            assert ids(await Bench(store).claim()) == [id_of(first)]

    async with open_store() as store:
        bench = Bench(store)
        [claim] = await bench.claim()
        assert claim.message.id == id_of(first)
        assert await bench.claim() == []
        await bench.deliver(claim)
        assert ids(await bench.claim()) == [id_of(second)]


async def test_when_one_place_is_free_again_one_of_the_lanes_that_wait_for_it_goes(
    open_store: Open,
) -> None:
    async with open_store() as store:
        bench = Bench(store, some_places(host_count_max=1))
        await bench.add_waiting(*[draft for n in range(50) for draft in queued(f"q{n}", count=1)])

        seen = []
        for n in range(50):
            [claim] = await bench.claim(now_ms=T0 + n)
            seen.append(claim.message.queue)
            await bench.deliver(claim, now_ms=T0 + n)

        assert len(set(seen)) == 50


async def test_a_cancelled_head_lets_the_next_go(bench: Bench) -> None:
    first, second = queued(count=2)
    await bench.add(first, second)
    await bench.retry(bench.born[0], at_ms=T0 + HOUR)

    await bench.store.cancel("acme", id_of(first), now_ms=T0)

    assert ids(await bench.claim()) == [id_of(second)]


async def test_a_queue_message_in_flight_keeps_its_place_until_the_attempt_ends(
    bench: Bench,
) -> None:
    first, second = queued(count=2)
    await bench.add(first, second)

    await bench.store.cancel("acme", id_of(first), now_ms=T0)
    assert await bench.claim() == []
    await bench.retry(bench.born[0], at_ms=T0)

    assert ids(await bench.claim()) == [id_of(second)]


async def test_order_survives_a_restart_in_the_middle_of_an_attempt(
    open_store: Open, durable: None
) -> None:
    drafts = queued(count=3)
    async with open_store() as store:
        await Bench(store).add(*drafts)

    seen = []
    async with open_store() as store:
        bench = Bench(store)
        while claims := await bench.claim():
            seen += ids(claims)
            await bench.deliver(claims[0])

    assert seen == [id_of(draft) for draft in drafts]


async def test_a_released_head_goes_first(bench: Bench) -> None:
    first, second = queued(count=2)
    await bench.add(first, second)

    await bench.store.release(bench.born, now_ms=T0)

    assert ids(await bench.claim()) == [id_of(first)]


async def test_a_head_whose_host_has_no_place_waits_for_it(open_store: Open) -> None:
    async with open_store() as store:
        bench = Bench(store, some_places(host_count_max=1))
        plain = a_draft()
        [queued_one] = queued(count=1)
        await bench.add(plain)
        await bench.add(queued_one)
        assert await bench.claim() == []

        await bench.deliver(bench.born[0])

        assert ids(await bench.claim()) == [id_of(queued_one)]


async def test_queues_do_not_wait_for_each_other(bench: Bench) -> None:
    drafts = [draft for n in range(20) for draft in queued(f"q{n}", count=2)]

    await bench.add(*drafts)

    assert len(bench.born) == 20
    for claim in bench.born:
        await bench.deliver(claim)
    assert len(await bench.claim()) == 20


async def test_lag_counts_what_is_not_done(bench: Bench) -> None:
    await bench.add(*queued(count=3), *queued(count=1, delay_ms=HOUR))
    await bench.retry(bench.born[0], at_ms=T0 + HOUR)

    queue = await bench.store.queue("acme", "mail")
    assert queue is not None
    assert queue.lag == 4
    [claim] = await bench.claim(now_ms=T0 + HOUR)
    await bench.deliver(claim)
    queue = await bench.store.queue("acme", "mail")
    assert queue is not None
    assert queue.lag == 3
