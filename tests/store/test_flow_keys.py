"""What a store promises of flow-control keys: their limits, their order, and who goes (D26)."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from tests.store.bench import Bench, id_of, ids
from tests.store.conftest import Open
from tests.support.factory import (
    DAY,
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
from waypost.domain.flow import Flow, FlowKey
from waypost.domain.message import Logged
from waypost.domain.places import SUSPECT_AFTER
from waypost.store.protocol import Draft, FlowKeyState, Retention

pytestmark = pytest.mark.every_server

KEEP = Retention(log_ms=DAY, dead_letter_ms=DAY)


def keyed(
    count: int = 1,
    key: str = "k",
    *,
    parallelism: int | None = None,
    rate: int | None = None,
    period_ms: int = SECOND,
    **facts: object,
) -> list[Draft]:
    flow = Flow(key, parallelism, rate, period_ms)
    return [a_draft(flow=flow, **facts) for _ in range(count)]


async def seen(bench: Bench, name: str = "k", *, now_ms: int = T0) -> FlowKeyState:
    state = await bench.store.flow_key("acme", name, now_ms=now_ms)
    assert state is not None
    return state


async def change(
    bench: Bench, change: Callable[[FlowKey], FlowKey], name: str = "k", *, now_ms: int = T0
) -> None:
    def changed(key: FlowKey | None) -> FlowKey:
        assert key is not None
        return change(key)

    await bench.store.change_flow_key("acme", name, changed, now_ms=now_ms)


async def pause(bench: Bench, *, paused: bool = True, now_ms: int = T0) -> None:
    await change(bench, lambda key: replace(key, paused=paused), now_ms=now_ms)


async def all_go(bench: Bench, *, now_ms: int = T0) -> list[str]:
    """Deliver all that is under way, and then whatever may go, until nothing does."""
    seen = []
    claims = list(bench.born) or await bench.claim(now_ms=now_ms)
    while claims:
        seen += ids(claims)
        for claim in claims:
            await bench.deliver(claim, now_ms=now_ms)
        claims = await bench.claim(now_ms=now_ms)
    return seen


async def test_a_message_makes_its_key_at_once(bench: Bench) -> None:
    [draft] = keyed(parallelism=3, rate=5, period_ms=MINUTE, delay_ms=HOUR)
    await bench.add(draft)

    state = await seen(bench)

    key = state.key
    assert (key.name, key.parallelism, key.rate, key.period_ms) == ("k", 3, 5, MINUTE)
    assert (state.waiting, state.in_use) == (0, 0)
    assert await bench.store.flow_key("other", "k", now_ms=T0) is None
    assert await bench.store.flow_key("acme", "K", now_ms=T0) is None


async def test_no_more_are_under_way_than_the_parallelism(bench: Bench) -> None:
    drafts = keyed(7, parallelism=3)
    await bench.add(*drafts)

    assert ids(bench.born) == [id_of(draft) for draft in drafts[:3]]
    assert await bench.claim() == []
    assert await bench.next_due_ms() is None
    await bench.deliver(bench.born[1])
    [fourth] = await bench.claim()
    assert fourth.message.id == id_of(drafts[3])
    state = await seen(bench)
    assert (state.in_use, state.waiting) == (3, 3)


async def test_what_is_due_and_waits_is_counted_whatever_holds_it_up(bench: Bench) -> None:
    await bench.add(*keyed(3, parallelism=1), *keyed(2, parallelism=1, delay_ms=HOUR))
    await bench.retry(bench.born[0], at_ms=T0 + MINUTE)

    assert (await seen(bench)).waiting == 2
    assert (await seen(bench, now_ms=T0 + MINUTE)).waiting == 3
    assert (await seen(bench, now_ms=T0 + HOUR)).waiting == 5


async def test_a_key_goes_in_order_across_hosts(bench: Bench) -> None:
    drafts = [keyed(parallelism=1, url=f"https://h{n % 3}.example/")[0] for n in range(9)]
    await bench.add(*drafts)

    assert await all_go(bench) == [id_of(draft) for draft in drafts]


async def test_no_more_begin_in_a_window_than_the_rate(bench: Bench) -> None:
    await bench.add_waiting(*keyed(5, rate=2, period_ms=MINUTE))

    assert len(await bench.claim(now_ms=T0 + SECOND)) == 2
    assert await bench.claim(now_ms=T0 + SECOND) == []
    assert await bench.next_due_ms(now_ms=T0 + SECOND) == T0 + SECOND + MINUTE
    assert await bench.claim(now_ms=T0 + SECOND + MINUTE - 1) == []
    assert len(await bench.claim(now_ms=T0 + SECOND + MINUTE)) == 2
    key = (await seen(bench)).key
    assert (key.window_ms, key.dispatched) == (T0 + SECOND + MINUTE, 2)


async def test_ends_do_not_free_what_the_rate_has_taken(bench: Bench) -> None:
    await bench.add(*keyed(3, rate=2, period_ms=MINUTE))
    for claim in bench.born:
        await bench.deliver(claim)

    assert await bench.claim() == []
    assert len(await bench.claim(now_ms=T0 + MINUTE)) == 1


async def test_retries_count_like_any_attempt(bench: Bench) -> None:
    await bench.add(*keyed(2, rate=2, period_ms=MINUTE))
    for claim in bench.born:
        await bench.retry(claim, at_ms=T0)

    assert await bench.claim() == []
    assert len(await bench.claim(now_ms=T0 + MINUTE)) == 2


async def test_births_claims_and_retries_of_one_moment_share_one_window(bench: Bench) -> None:
    await bench.add(*keyed(3, rate=5, period_ms=MINUTE))
    retried = [bench.retry(claim, at_ms=T0) for claim in bench.born]
    bench.born.clear()

    answers = await asyncio.gather(
        *retried, bench.add(*keyed(4, rate=5, period_ms=MINUTE)), bench.claim(), bench.claim()
    )

    later = await bench.claim()
    assert 3 + len(bench.born) + len(answers[-2]) + len(answers[-1]) + len(later) == 5
    assert [entry.state for entry in await bench.log()].count(Logged.ACTIVE) == 5


async def test_by_active_times_no_window_has_more_than_the_rate_whenever_they_ask(
    bench: Bench,
) -> None:
    """Calls that share a moment may be some milliseconds apart, also across a window's end."""
    limits = {"rate": 3, "period_ms": SECOND}
    await bench.add(*keyed(3, **limits), now_ms=T0)
    await asyncio.gather(
        bench.add(*keyed(1, **limits, at_ms=T0 + 998), now_ms=T0 + 998),
        bench.add(*keyed(1, **limits, at_ms=T0 + 1_003), now_ms=T0 + 1_003),
        bench.claim(now_ms=T0 + 999),
    )
    await bench.add(*keyed(3, **limits, at_ms=T0 + 999), now_ms=T0 + 999)
    await bench.claim(now_ms=T0 + 999)

    times = [e.time_ms for e in await bench.log() if e.state is Logged.ACTIVE]
    assert len([at_ms for at_ms in times if at_ms < T0 + SECOND]) == 3
    assert len(times) == 6


async def test_callbacks_have_keys_too(bench: Bench) -> None:
    plain = a_draft()
    await bench.add(plain)
    [source] = bench.born
    told = [a_callback(plain.message, flow=Flow("k", parallelism=1)) for _ in range(3)]

    await bench.end(source, Delivered(), OK, callbacks=told)

    assert len(bench.born) == 2
    assert await bench.claim() == []
    state = await seen(bench)
    assert (state.in_use, state.waiting) == (1, 2)


async def test_a_callback_may_have_the_permit_of_the_message_that_it_is_about(
    bench: Bench,
) -> None:
    [draft] = keyed(parallelism=1)
    await bench.add(draft)
    told = a_callback(draft.message, flow=Flow("k", parallelism=1))

    await bench.end(bench.born[0], Delivered(), OK, callbacks=[told])

    assert [*ids(bench.born[1:]), *ids(await bench.claim())] == [id_of(told)]


async def test_a_paused_key_holds_everything_until_it_is_resumed(bench: Bench) -> None:
    await bench.add(*keyed(1, parallelism=2))
    await pause(bench)
    await bench.add(*keyed(2, parallelism=2))
    await bench.retry(bench.born[0], at_ms=T0)

    assert await bench.claim() == []
    assert await bench.next_due_ms() is None
    assert ((await seen(bench)).waiting, len(bench.born)) == (3, 1)
    await pause(bench, paused=False)
    assert len(await bench.claim()) == 2


async def test_the_latest_message_opens_a_key_and_closes_it(bench: Bench) -> None:
    await bench.add(*keyed(4, parallelism=1))

    await bench.add(*keyed(1, parallelism=4))
    assert len(await bench.claim()) == 3
    await bench.add(*keyed(1, parallelism=2))
    await bench.deliver(bench.born[0])
    assert await bench.claim() == []


async def test_a_message_that_is_sent_at_once_may_open_its_key_for_those_that_wait(
    bench: Bench,
) -> None:
    await bench.add(*keyed(1, rate=1, period_ms=DAY))
    await bench.add(*keyed(1, rate=1, period_ms=DAY, delay_ms=SECOND))

    await bench.add(*keyed(1, rate=9, period_ms=DAY))

    assert len(bench.born) == 2
    assert await bench.next_due_ms() == T0 + SECOND
    assert len(await bench.claim(now_ms=T0 + SECOND)) == 1


async def test_pinned_limits_hold_whatever_messages_ask_for(bench: Bench) -> None:
    await bench.add(*keyed(5, parallelism=1))

    def pinned(key: FlowKey) -> FlowKey:
        return key.pinned(parallelism=3, rate=None, period_ms=None, now_ms=T0)

    await change(bench, pinned)
    assert len(await bench.claim()) == 2
    await bench.add(*keyed(1, parallelism=9))
    assert await bench.claim() == []
    await change(bench, lambda key: key.unpinned(parallelism=True, rate=True))
    assert await bench.claim() == []
    await bench.add(*keyed(1, parallelism=9))
    assert len(await bench.claim()) == 4


async def test_a_rate_that_is_reset_lets_more_go_at_once(bench: Bench) -> None:
    await bench.add(*keyed(5, rate=2, period_ms=HOUR))
    assert await bench.claim() == []

    await change(bench, lambda key: key.rate_reset(now_ms=T0))

    assert len(await bench.claim()) == 2


async def test_those_who_claim_are_told_of_a_key_that_opened(bench: Bench) -> None:
    await bench.add(*keyed(2, parallelism=1), *keyed(1, parallelism=1, queue="q"))
    assert await bench.claim() == []
    assert await bench.next_due_ms() is None

    await bench.deliver(bench.born[0])

    due_ms = await bench.next_due_ms()
    assert due_ms is not None
    assert due_ms <= T0


async def test_other_lanes_are_not_hurt(bench: Bench) -> None:
    await bench.add(*keyed(300, parallelism=1))
    bench.born.clear()
    await bench.add_waiting(a_draft(), *keyed(1, "other", rate=1), a_draft(queue="q"))

    assert len(await bench.claim()) == 3


async def test_a_message_in_a_queue_obeys_its_key_too(bench: Bench) -> None:
    in_queue = keyed(2, parallelism=1, queue="q")
    [alone] = keyed(1, parallelism=1)
    await bench.add(alone)
    await bench.add(*in_queue)
    assert await bench.claim() == []

    await bench.deliver(bench.born[0])
    [first] = await bench.claim()
    assert first.message.id == id_of(in_queue[0])
    assert await bench.claim() == []
    await bench.deliver(first)
    assert ids(await bench.claim()) == [id_of(in_queue[1])]


async def test_the_place_in_a_queue_is_kept_between_retries_and_the_permit_is_not(
    bench: Bench,
) -> None:
    first, second = keyed(2, parallelism=1, queue="q")
    [other] = keyed(1, parallelism=1, queue="p")
    await bench.add(first, second)
    await bench.add(other)
    await bench.retry(bench.born[0], at_ms=T0 + MINUTE)

    assert ids(await bench.claim()) == [id_of(other)]
    assert await bench.claim(now_ms=T0 + MINUTE) == []


@pytest.mark.parametrize("opened", ["window", "resumed", "pinned", "reset", "asked", "ended"])
async def test_queues_that_wait_for_a_key_go_when_it_opens(bench: Bench, opened: str) -> None:
    limits = {"rate": 1, "period_ms": HOUR}
    await bench.add(*keyed(1, **limits))
    queued = [keyed(1, **limits, queue=f"q{n}")[0] for n in range(3)]
    if opened == "resumed":
        await change(bench, lambda key: key.rate_reset(now_ms=T0))
        await pause(bench)
    await bench.add(*queued)
    assert await bench.claim() == []
    assert await bench.claim(now_ms=T0 + HOUR - 1) == []
    now_ms = T0 + 1

    if opened == "window":
        now_ms = T0 + HOUR
        assert await bench.next_due_ms() == now_ms
    elif opened == "resumed":
        await pause(bench, paused=False, now_ms=now_ms)
    elif opened == "pinned":
        await change(
            bench,
            lambda key: key.pinned(parallelism=None, rate=1, period_ms=None, now_ms=now_ms),
            now_ms=now_ms,
        )
    elif opened == "reset":
        await change(bench, lambda key: key.rate_reset(now_ms=now_ms), now_ms=now_ms)
    elif opened == "asked":
        more = keyed(1, rate=2, period_ms=HOUR, delay_ms=HOUR, at_ms=now_ms)
        await bench.add(*more, now_ms=now_ms)
    else:
        await bench.store.change_flow_key("acme", "k", lambda _key: None, now_ms=now_ms)

    went = ids(await bench.claim(now_ms=now_ms))
    assert went == [id_of(draft) for draft in (queued if opened == "ended" else queued[:1])]


async def test_many_queues_behind_a_key_all_go_in_the_end_and_none_too_many(
    bench: Bench,
) -> None:
    queued = [keyed(1, parallelism=3, queue=f"q{n}")[0] for n in range(40)]
    await bench.add_waiting(*queued)

    went: Counter[str] = Counter()
    claims = await bench.claim()
    while claims:
        assert len(claims) <= 3
        assert (await seen(bench)).in_use == len(claims)
        went.update(ids(claims))
        for claim in claims:
            await bench.deliver(claim)
        claims = await bench.claim()

    assert went == Counter(id_of(draft) for draft in queued)


async def test_queues_that_wait_for_a_key_and_its_own_messages_take_turns(bench: Bench) -> None:
    own = keyed(10, parallelism=1)
    queued = [draft for n in range(2) for draft in keyed(5, parallelism=1, queue=f"q{n}")]
    await bench.add_waiting(*own, *queued)

    went = await all_go(bench)

    own_ids = {id_of(draft) for draft in own}
    assert len(went) == 20
    for at in range(0, 20, 2):
        assert len(own_ids.intersection(went[at : at + 2])) == 1, went


@pytest.mark.parametrize("queues", [("q", None), (None, "q"), ("q", "p")])
async def test_who_comes_just_when_a_permit_is_free_does_not_overtake_who_waits(
    bench: Bench, queues: tuple[str | None, str | None]
) -> None:
    [waits] = keyed(1, parallelism=1, queue=queues[0])
    [comes] = keyed(1, parallelism=1, queue=queues[1])
    await bench.add(*keyed(1, parallelism=1))
    await bench.add(waits)
    assert await bench.claim() == []

    await asyncio.gather(bench.deliver(bench.born[0]), bench.add(comes))

    assert [*ids(bench.born[1:]), *ids(await bench.claim())] == [id_of(waits)]


async def test_a_lane_that_was_let_in_and_is_held_by_its_host_does_not_stop_the_others(
    open_store: Open,
) -> None:
    async with open_store() as store:
        bench = Bench(store, some_places(host_count_max=1))
        limits = {"rate": 1, "period_ms": HOUR}
        await bench.add(a_draft(url="https://busy.example/"))
        await bench.add(*keyed(1, **limits, url="https://free.example/"))
        assert len(bench.born) == 2
        for n in range(4):
            await bench.add(*keyed(1, **limits, queue=f"q{n}", url="https://busy.example/"))
        [free] = keyed(1, **limits, queue="q4", url="https://other.example/")
        await bench.add(free)
        assert await bench.claim() == []

        went: list[str] = []
        for _ in range(5):
            went += ids(await bench.claim(now_ms=T0 + HOUR))

        assert went == [id_of(free)]


async def test_a_message_in_flight_that_is_cancelled_keeps_its_permit_until_it_ends(
    bench: Bench,
) -> None:
    first, second = keyed(2, parallelism=1)
    await bench.add(first, second)

    await bench.store.cancel("acme", id_of(first), now_ms=T0)
    assert await bench.claim() == []
    await bench.retry(bench.born[0], at_ms=T0)

    assert ids(await bench.claim()) == [id_of(second)]


@pytest.mark.parametrize("queue", [None, "q"])
async def test_a_head_that_waits_and_is_cancelled_lets_the_next_go(
    bench: Bench, queue: str | None
) -> None:
    await bench.add(*keyed(1, parallelism=1))
    [waits] = keyed(1, parallelism=1, queue=queue)
    after = a_draft(queue="q") if queue else keyed(1, parallelism=1)[0]
    await bench.add(waits, after)
    assert await bench.claim() == []

    await bench.store.cancel("acme", id_of(waits), now_ms=T0)
    if queue is None:
        await bench.deliver(bench.born[0])

    assert ids(await bench.claim()) == [id_of(after)]


async def test_a_released_claim_gives_its_permit_back_and_goes_first(bench: Bench) -> None:
    drafts = keyed(3, parallelism=2)
    await bench.add(*drafts)

    await bench.store.release(bench.born, now_ms=T0)

    assert (await seen(bench)).in_use == 0
    assert ids(await bench.claim()) == [id_of(draft) for draft in drafts[:2]]


async def test_permits_of_the_dead_are_free_again_and_windows_go_on(
    open_store: Open, durable: None
) -> None:
    async with open_store() as store:
        await Bench(store).add(
            *keyed(4, "wide", parallelism=2), *keyed(4, "slow", rate=2, period_ms=HOUR)
        )
    async with open_store(now_ms=T0 + 1) as store:
        bench = Bench(store)

        assert (await seen(bench, "wide")).in_use == 0
        claims = await bench.claim(now_ms=T0 + 1)
        assert [claim.message.flow.key for claim in claims if claim.message.flow] == ["wide"] * 2
        assert len(await bench.claim(now_ms=T0 + HOUR)) == 2


async def test_queues_that_waited_for_a_key_go_after_a_restart(
    open_store: Open, durable: None
) -> None:
    async with open_store() as store:
        bench = Bench(store)
        await bench.add(*keyed(1, parallelism=1))
        await bench.add(*keyed(1, parallelism=1, queue="q"))
        await bench.claim()
    async with open_store() as store:
        bench = Bench(store)
        [first] = await bench.claim()
        await bench.deliver(first)
        assert len(await bench.claim()) == 1


async def test_a_suspect_obeys_its_key_and_holds_up_nobody_else(
    open_store: Open, durable: None
) -> None:
    suspects = [*keyed(1, "k", parallelism=1), *keyed(1, "other", parallelism=1)]
    async with open_store() as store:
        await Bench(store).add_waiting(*suspects)
    for _ in range(SUSPECT_AFTER):
        async with open_store() as store:
            claims = await Bench(store).claim()
            assert len(claims) == 2

    async with open_store() as store:
        bench = Bench(store)
        await pause(bench)
        [free] = keyed(1, "other", parallelism=2)
        await bench.add(free)
        assert ids(bench.born + await bench.claim()) in (
            [id_of(free), id_of(suspects[1])],
            [id_of(suspects[1]), id_of(free)],
        )
        assert await bench.claim() == []
        await bench.deliver(next(c for c in [*bench.born] if c.message.id == id_of(free)))
        await pause(bench, paused=False)
        assert await bench.claim() == []  # the other suspect is still under way
        assert (await seen(bench)).waiting == 1


async def test_keys_are_listed_by_name_and_found_by_part_of_it(bench: Bench) -> None:
    for name in ("b-mail", "a-mail", "x%", "a_b"):
        await bench.add(*keyed(2, name, parallelism=1))
    await bench.add(*keyed(1, "a-mail", parallelism=1, tenant="other"))

    async def names(search: str = "") -> list[tuple[str, int, int]]:
        found = await bench.store.flow_keys("acme", search=search, now_ms=T0)
        return [(state.key.name, state.waiting, state.in_use) for state in found]

    assert await names() == [(name, 1, 1) for name in ("a-mail", "a_b", "b-mail", "x%")]
    assert [name for name, _, _ in await names("mail")] == ["a-mail", "b-mail"]
    assert [name for name, _, _ in await names("%")] == ["x%"]
    assert await names("nothing") == []


async def test_lanes_come_back_from_a_key_no_faster_than_they_may_go(bench: Bench) -> None:
    """They have old turns, and those that stand in line say how far claiming is behind."""
    await bench.add(*keyed())
    await pause(bench)
    for n in range(10):
        await bench.add(*keyed(queue=f"q{n}"))
    assert await bench.claim() == []
    now_ms = T0 + HOUR
    await pause(bench, paused=False, now_ms=now_ms)

    for count in (3, 3, 3, 1):
        assert len(await bench.claim(3, now_ms=now_ms)) == count
        assert (await bench.store.pulse(now_ms=now_ms)).oldest_due_ms is None


async def test_a_retry_in_a_queue_that_waits_for_a_key_is_looked_at_when_it_is_due(
    bench: Bench,
) -> None:
    await bench.add(*keyed(parallelism=1))
    await bench.store.put_queue("acme", "q", parallelism=3, paused=None, now_ms=T0)
    await bench.add(a_draft(queue="q"))
    free = bench.born[-1]
    await bench.add(*keyed(queue="q", parallelism=1))
    assert await bench.claim() == []
    hints: list[int] = []
    bench.store.writer.on_waiting = hints.append

    await bench.retry(free, at_ms=T0 + 10)

    assert hints == [T0 + 10]
    assert ids(await bench.claim(now_ms=T0 + 10)) == [free.message.id]


async def test_changes_of_one_moment_see_each_other_and_a_fault_reaches_its_caller_alone(
    bench: Bench,
) -> None:
    await bench.add(*keyed(1, parallelism=1))

    def widen(key: FlowKey | None) -> FlowKey:
        assert key is not None
        return replace(key, parallelism=(key.parallelism or 0) + 1)

    def fail(_key: FlowKey | None) -> FlowKey:
        raise LookupError

    changes = [
        bench.store.change_flow_key("acme", "k", change, now_ms=T0)
        for change in (widen, fail, widen)
    ]
    answers = await asyncio.gather(*changes, return_exceptions=True)

    assert isinstance(answers[1], LookupError)
    assert (await seen(bench)).key.parallelism == 3


async def test_a_key_that_is_not_there_stays_so(bench: Bench) -> None:
    assert await bench.store.change_flow_key("acme", "k", lambda key: key, now_ms=T0) is None
    assert await bench.store.flow_key("acme", "k", now_ms=T0) is None


async def test_a_key_goes_when_nothing_has_used_it_for_the_time_of_the_log(bench: Bench) -> None:
    names = ("unused", "waited-for", "paused", "pinned", "windowed", "recent")
    for name in names:
        period_ms = 7 * DAY if name == "windowed" else SECOND
        delay_ms = 9 * DAY if name == "waited-for" else 0
        await bench.add(*keyed(1, name, rate=5, period_ms=period_ms, delay_ms=delay_ms))
    for claim in bench.born:
        await bench.deliver(claim)
    await change(bench, lambda key: replace(key, paused=True), "paused")
    await change(
        bench,
        lambda key: key.pinned(parallelism=1, rate=None, period_ms=None, now_ms=T0),
        "pinned",
    )
    await bench.add(*keyed(1, "recent", rate=5, at_ms=T0 + 1), now_ms=T0 + 1)
    await bench.deliver(bench.born[-1], now_ms=T0 + 1)

    async def left(now_ms: int) -> set[str]:
        while (await bench.store.prune(retention=KEEP, now_ms=now_ms)).more:
            pass
        return {state.key.name for state in await bench.store.flow_keys("acme", now_ms=now_ms)}

    assert await left(T0 + DAY - 1) == set(names)
    assert await left(T0 + DAY) == set(names) - {"unused"}
    assert await left(T0 + 8 * DAY) == {"waited-for", "paused", "pinned"}
