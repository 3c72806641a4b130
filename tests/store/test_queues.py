"""What a store promises of queues: their order, their places, their lag (D23)."""

import asyncio
from random import Random

import pytest
from msgspec.structs import replace

from tests.store.bench import Bench, id_of, ids, queued
from tests.store.conftest import Open
from tests.support.factory import (
    HOUR,
    MINUTE,
    OK,
    SECOND,
    T0,
    a_callback,
    a_draft,
    some_places,
)
from waypost.domain.attempt import Delivered
from waypost.domain.errors import LimitReached
from waypost.domain.flow import Flow
from waypost.domain.places import SUSPECT_AFTER
from waypost.store.protocol import Claim, Draft, Emptied, Queue


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


async def put(bench: Bench, parallelism: int, *, paused: bool | None = None) -> None:
    await bench.store.put_queue("acme", "mail", parallelism=parallelism, paused=paused, now_ms=T0)


async def pause(bench: Bench, *, paused: bool = True) -> bool:
    return await bench.store.pause_queue("acme", "mail", paused=paused, now_ms=T0)


async def empty(bench: Bench, *, mark: int | None = None, count_max: int = 500) -> Emptied:
    return await bench.store.empty_queue("acme", "mail", mark=mark, count_max=count_max, now_ms=T0)


async def shown(bench: Bench) -> Queue | None:
    return await bench.store.queue("acme", "mail")


async def test_a_queue_is_made_and_changed_and_keeps_when_it_was_made(bench: Bench) -> None:
    """W109, W110."""
    await put(bench, 3)
    made = await shown(bench)
    await bench.store.put_queue("acme", "mail", parallelism=2, paused=True, now_ms=T0 + SECOND)

    assert made == Queue(
        name="mail", parallelism=3, paused=False, created_ms=T0, updated_ms=T0, lag=0
    )
    assert await shown(bench) == replace(made, parallelism=2, paused=True, updated_ms=T0 + SECOND)
    assert await bench.store.queue("other", "mail") is None


async def test_a_change_that_does_not_speak_of_pausing_leaves_it(bench: Bench) -> None:
    await put(bench, 1, paused=True)
    await put(bench, 2)

    queue = await shown(bench)
    assert queue is not None
    assert queue.paused


async def test_queues_are_listed_by_name_and_only_their_owners(bench: Bench) -> None:
    """W112, W116."""
    await bench.add(*queued("b", count=2), *queued("a", count=1))
    await bench.store.put_queue("other", "c", parallelism=1, paused=None, now_ms=T0)

    found = await bench.store.queues("acme")

    assert [(queue.name, queue.lag) for queue in found] == [("a", 1), ("b", 2)]
    assert await bench.store.queues("nobody") == []


async def test_as_many_go_at_once_as_the_parallelism_says_and_they_begin_in_order(
    bench: Bench,
) -> None:
    """W80."""
    drafts = queued(count=7)
    await put(bench, 3)
    await bench.add_waiting(*drafts)

    claims = await bench.claim()
    seen = ids(claims)
    assert len(seen) == 3
    assert await bench.claim() == []
    while claims:
        await bench.deliver(claims.pop(1 if len(claims) > 1 else 0))
        more = await bench.claim()
        assert len(more) <= 1
        seen += ids(more)
        claims += more

    assert seen == [id_of(draft) for draft in drafts]


async def test_messages_are_born_claimed_up_to_the_parallelism(bench: Bench) -> None:
    drafts = queued(count=4)
    await put(bench, 2)

    await bench.add(*drafts)

    assert ids(bench.born) == [id_of(draft) for draft in drafts[:2]]
    assert await bench.claim() == []


async def test_a_parallelism_raised_while_in_flight_lets_more_begin(bench: Bench) -> None:
    drafts = queued(count=4)
    await bench.add(*drafts)
    assert len(bench.born) == 1

    await put(bench, 3)

    assert ids(await bench.claim()) == [id_of(draft) for draft in drafts[1:3]]
    assert await bench.claim() == []


async def test_a_parallelism_lowered_while_in_flight_waits_until_enough_have_ended(
    bench: Bench,
) -> None:
    drafts = queued(count=5)
    await put(bench, 3)
    await bench.add(*drafts)
    first, second, third = bench.born

    await put(bench, 1)
    await bench.deliver(third)
    assert await bench.claim() == []
    await bench.deliver(second)
    assert await bench.claim() == []
    await bench.deliver(first)

    assert ids(await bench.claim()) == [id_of(drafts[3])]
    assert await bench.claim() == []


async def test_what_is_in_retry_under_a_lowered_parallelism_keeps_its_place(bench: Bench) -> None:
    drafts = queued(count=3)
    await put(bench, 2)
    await bench.add(*drafts)
    first, second = bench.born

    await put(bench, 1)
    await bench.retry(second, at_ms=T0)
    [again] = await bench.claim()
    assert again.message.id == id_of(drafts[1])
    await bench.deliver(first)
    assert await bench.claim() == []
    await bench.deliver(again)

    assert ids(await bench.claim()) == [id_of(drafts[2])]


async def test_a_paused_queue_takes_messages_and_begins_none(bench: Bench) -> None:
    """W114."""
    drafts = queued(count=2)
    await put(bench, 2, paused=True)

    await bench.add(*drafts)
    assert bench.born == []
    assert await bench.claim() == []
    assert await bench.next_due_ms() is None
    assert await pause(bench, paused=False)

    assert ids(await bench.claim()) == [id_of(draft) for draft in drafts]


async def test_a_queue_paused_in_flight_lets_the_attempt_end_and_begins_no_other(
    bench: Bench,
) -> None:
    first, second = queued(count=2)
    await bench.add(first, second)

    assert await pause(bench)
    await bench.deliver(bench.born[0])
    assert await bench.claim() == []
    assert await bench.states(id_of(first)) == ["CREATED", "ACTIVE", "DELIVERED"]
    assert await pause(bench, paused=False)

    assert ids(await bench.claim()) == [id_of(second)]


async def test_a_retry_waits_while_its_queue_is_paused(bench: Bench) -> None:
    [first] = queued(count=1)
    await bench.add(first)

    await pause(bench)
    await bench.retry(bench.born[0], at_ms=T0)
    assert await bench.claim(now_ms=T0 + HOUR) == []
    await pause(bench, paused=False)

    assert ids(await bench.claim(now_ms=T0 + HOUR)) == [id_of(first)]


async def test_a_retry_that_has_fallen_due_waits_though_its_host_gets_room_in_a_pause(
    open_store: Open,
) -> None:
    async with open_store() as store:
        bench = Bench(store, some_places(host_count_max=1))
        [first] = queued(count=1)
        await bench.add(first)
        await bench.retry(bench.born[0], at_ms=T0 + SECOND)
        await bench.add(a_draft())
        assert await bench.claim(now_ms=T0 + SECOND) == []

        await pause(bench)
        await bench.deliver(bench.born[1])
        assert await bench.claim(now_ms=T0 + SECOND) == []
        await pause(bench, paused=False)

        assert ids(await bench.claim(now_ms=T0 + SECOND)) == [id_of(first)]


async def test_pausing_survives_a_restart(open_store: Open, durable: None) -> None:
    [first] = queued(count=1)
    async with open_store() as store:
        await Bench(store).add(first)
        await pause(Bench(store))

    async with open_store() as store:
        bench = Bench(store)
        assert await bench.claim() == []
        await pause(bench, paused=False)
        assert ids(await bench.claim()) == [id_of(first)]


async def test_a_queue_that_is_not_there_is_not_paused(bench: Bench) -> None:
    assert not await pause(bench)
    assert await bench.store.queues("acme") == []


async def test_callbacks_hold_one_place_of_several(bench: Bench) -> None:
    """D24: with N places, the others go on."""
    drafts = queued(count=4)
    await put(bench, 2)
    await bench.add(*drafts)
    first, second = bench.born
    bench.born.clear()

    await bench.end(first, Delivered(), OK, callbacks=[a_callback(first.message)])
    [callback] = bench.born
    assert callback.message.callback_of == first.message.id
    assert await bench.claim() == []
    await bench.deliver(second)
    [third] = await bench.claim()
    assert third.message.id == id_of(drafts[2])
    assert await bench.claim() == []
    await bench.deliver(callback)

    assert ids(await bench.claim()) == [id_of(drafts[3])]


async def test_the_limit_of_queues_holds_for_new_ones_only(bench: Bench) -> None:
    """W117: whether they are put or enqueued to; nothing of a refused call is kept."""

    async def enqueue(*drafts: Draft) -> None:
        await bench.store.add(drafts, births=bench.births, queue_count_max=2, now_ms=T0)

    async def put_one(name: str) -> None:
        await bench.store.put_queue(
            "acme", name, parallelism=5, paused=None, count_max=2, now_ms=T0
        )

    await put_one("a")
    await enqueue(*queued("b", count=1))
    plain = a_draft(dedup_key="k")
    for refused in (
        put_one("c"),
        enqueue(plain, *queued("c", count=1)),
        enqueue(*queued("c", count=1), *queued("d", count=1)),
    ):
        with pytest.raises(LimitReached, match="quota maxQueues exceeded, current limit: 2"):
            await refused

    assert [queue.name for queue in await bench.store.queues("acme")] == ["a", "b"]
    await put_one("a")
    await enqueue(*queued("a", count=1))
    await enqueue(a_draft(tenant="other", queue="c"))
    [accepted] = await bench.add(a_draft(dedup_key="k"))
    assert not accepted.deduplicated


async def test_calls_of_one_moment_keep_the_limit_of_queues_between_them(bench: Bench) -> None:
    async def enqueue(name: str) -> None:
        await bench.store.add(
            queued(name, count=1), births=bench.births, queue_count_max=2, now_ms=T0
        )

    done = await asyncio.gather(*map(enqueue, "abcd"), return_exceptions=True)

    assert [type(one) for one in done] == [type(None)] * 2 + [LimitReached] * 2
    assert [queue.name for queue in await bench.store.queues("acme")] == ["a", "b"]


async def test_ending_a_queue_cancels_what_waits_and_asks_what_is_in_flight(
    bench: Bench,
) -> None:
    """D28, D16."""
    in_flight, in_retry, waiting = queued(count=3)
    [delayed] = queued(count=1, delay_ms=HOUR)
    await put(bench, 2)
    await bench.add(in_flight, in_retry, waiting, delayed)
    first, second = bench.born
    await bench.retry(second, at_ms=T0 + MINUTE)
    assert await bench.claim() == []

    assert await empty(bench) == Emptied(cancelled=4, mark=None)

    assert await bench.store.queues("acme") == []
    asked, ended = "CANCEL_REQUESTED", "CANCELED"
    assert await bench.states(id_of(waiting)) == ["CREATED", asked, ended]
    assert await bench.states(id_of(delayed)) == ["CREATED", asked, ended]
    assert (await bench.states(id_of(in_retry)))[-2:] == [asked, ended]
    assert await bench.states(id_of(in_flight)) == ["CREATED", "ACTIVE", asked]
    assert await bench.retry(first, at_ms=T0 + MINUTE) == ended
    assert await bench.claim(now_ms=T0 + HOUR) == []
    assert await bench.next_due_ms(now_ms=T0 + HOUR) is None


async def test_ending_a_queue_that_is_not_there_is_nothing(bench: Bench) -> None:
    """W113."""
    assert await empty(bench) == Emptied(cancelled=0, mark=None)


async def test_other_queues_and_tenants_are_left_alone_when_one_ends(bench: Bench) -> None:
    theirs = a_draft(tenant="other", queue="mail")
    [beside] = queued("mail2", count=1)
    await bench.add_waiting(*queued(count=3), theirs, beside, a_draft())

    await empty(bench)

    assert {claim.message.id for claim in await bench.claim()} >= {id_of(theirs), id_of(beside)}
    assert await bench.store.queue("other", "mail") is not None


async def test_a_large_queue_ends_in_chunks_and_stays_until_the_last(bench: Bench) -> None:
    await put(bench, 1, paused=True)
    await bench.add(*queued(count=7))

    emptied = await empty(bench, count_max=3)
    queue = await shown(bench)
    assert (emptied.cancelled, queue and queue.lag, queue and queue.paused) == (3, 4, True)
    emptied = await empty(bench, mark=emptied.mark, count_max=3)
    emptied = await empty(bench, mark=emptied.mark, count_max=3)

    assert emptied == Emptied(cancelled=1, mark=None)
    assert await shown(bench) is None


async def test_what_is_enqueued_while_a_queue_ends_is_in_a_new_one(bench: Bench) -> None:
    await put(bench, 2, paused=True)
    await bench.add(*queued(count=4))
    emptied = await empty(bench, count_max=3)
    [late] = queued(count=1)
    await bench.add(late)

    assert await empty(bench, mark=emptied.mark) == Emptied(cancelled=1, mark=None)

    queue = await shown(bench)
    assert queue is not None
    assert (queue.parallelism, queue.paused, queue.lag) == (1, False, 1)
    assert ids(await bench.claim()) == [id_of(late)]


async def test_what_was_in_flight_keeps_its_place_in_a_new_queue_of_that_name(
    bench: Bench,
) -> None:
    old, new = queued(count=2)
    await bench.add(old)

    await empty(bench)
    await bench.add(new)
    assert await bench.claim() == []
    await bench.deliver(bench.born[0])

    assert ids(await bench.claim()) == [id_of(new)]


async def test_an_end_that_stopped_half_way_leaves_the_rest_as_it_was(
    open_store: Open, durable: None
) -> None:
    drafts = queued(count=5)
    async with open_store() as store:
        bench = Bench(store)
        await bench.add_waiting(*drafts)
        await empty(bench, count_max=2)

    async with open_store() as store:
        bench = Bench(store)
        queue = await shown(bench)
        assert queue is not None
        assert queue.lag == 3
        assert ids(await bench.claim()) == [id_of(drafts[2])]
        assert await empty(bench) == Emptied(cancelled=3, mark=None)


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_places_order_and_pauses_hold(bench: Bench, seed: int) -> None:
    """W80, W114: a random history of one queue."""
    random = Random(seed)
    drafts = queued(count=40)
    parallelism, paused = 1, False
    to_come, begun = drafts[::-1], []
    in_flight: list[Claim] = []
    in_retry: set[str] = set()
    ended = 0
    now_ms = T0
    while ended < len(drafts):
        now_ms += 1
        what = random.choice(["add", "put", "pause", "claim", "claim", "settle", "settle"])
        if what == "add" and to_come:
            await bench.add(*[to_come.pop() for _ in range(min(3, len(to_come)))], now_ms=now_ms)
        elif what == "put":
            parallelism = random.randint(1, 4)
            await put(bench, parallelism)
        elif what == "pause":
            wanted = random.random() < 0.3
            if await pause(bench, paused=wanted):
                paused = wanted
        elif what == "settle" and in_flight:
            claim = in_flight.pop(random.randrange(len(in_flight)))
            if random.random() < 0.3:
                await bench.retry(claim, at_ms=now_ms, now_ms=now_ms)
                in_retry.add(claim.message.id)
            else:
                await bench.deliver(claim, now_ms=now_ms)
                ended += 1
        claims = bench.born + (await bench.claim(now_ms=now_ms) if what == "claim" else [])
        bench.born.clear()
        assert not (claims and paused)
        fresh = [claim for claim in claims if claim.message.id not in in_retry]
        in_flight += claims
        in_retry -= {claim.message.id for claim in claims}
        if fresh:
            assert len(in_flight) + len(in_retry) <= parallelism
        begun += ids(fresh)
        queue = await shown(bench)
        accepted = len(drafts) - len(to_come)
        assert (queue.lag if queue else 0) == accepted - ended

    assert begun == [id_of(draft) for draft in drafts]


async def test_no_message_joins_a_queue_while_one_in_retry_is_left_over(bench: Bench) -> None:
    """The share of the queue is used up by some of those in retry: the others come next."""
    await bench.store.put_queue("acme", "mail", parallelism=8, paused=None, now_ms=T0)
    tried = queued(count=4)
    await bench.add_waiting(*tried)
    for claim in await bench.claim():
        await bench.retry(claim, at_ms=T0 + 1)
    await bench.add_waiting(*queued(count=4))
    await bench.add_waiting(a_draft(delay_ms=2))

    claimed = ids(await bench.claim(4, now_ms=T0 + 2))

    in_queue = [claimed_id for claimed_id in claimed if claimed_id in map(id_of, tried)]
    assert len(in_queue) == 3
    assert len(claimed) == 4


async def test_a_retry_is_not_held_up_by_what_another_message_waits_for(bench: Bench) -> None:
    """It has its place; the key and the host are those of one that waits for a place."""
    full = Flow("k", rate=1, period_ms=MINUTE)
    await bench.add(a_draft(flow=full))
    await bench.store.put_queue("acme", "mail", parallelism=2, paused=None, now_ms=T0)
    retried, waits = a_draft(queue="mail"), a_draft(queue="mail", flow=full)
    bench.born.clear()
    await bench.add_waiting(retried)
    [claim] = await bench.claim()
    await bench.retry(claim, at_ms=T0 + SECOND)
    await bench.add(waits)

    assert await bench.claim() == []
    assert await bench.next_due_ms() == T0 + SECOND
    assert ids(await bench.claim(now_ms=T0 + SECOND)) == [id_of(retried)]
    assert ids(await bench.claim(now_ms=T0 + MINUTE)) == [id_of(waits)]


async def test_a_queue_made_narrower_than_what_is_in_flight_waits_for_enough_of_it_to_end(
    bench: Bench,
) -> None:
    await bench.store.put_queue("acme", "q", parallelism=5, paused=None, now_ms=T0)
    await bench.add(*queued("q", count=6))
    await bench.store.put_queue("acme", "q", parallelism=2, paused=None, now_ms=T0)

    for claim in bench.born[:3]:
        await bench.deliver(claim)
        assert await bench.claim() == []
    await bench.deliver(bench.born[3])

    assert len(await bench.claim()) == 1
