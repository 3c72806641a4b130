"""What a store promises of its upkeep: history goes, nothing alive does."""

import pytest

from tests.store.bench import Bench, id_of, queued
from tests.store.conftest import Open
from tests.support.factory import DAY, HOUR, SECOND, T0, a_draft, some_places
from waypost.store.protocol import Retention

KEEP = Retention(log_ms=14 * DAY, dead_letter_ms=30 * DAY)


async def _prune(bench: Bench, *, now_ms: int, retention: Retention = KEEP) -> None:
    for _ in range(1_000):
        pruned = await bench.store.prune(retention=retention, now_ms=now_ms)
        if not pruned.more:
            return
    raise AssertionError("pruning has no end")


async def test_a_message_goes_with_its_log_when_its_time_is_over(bench: Bench) -> None:
    """W231, D17."""
    draft = a_draft()
    await bench.add(draft)
    await bench.deliver(bench.born[0], now_ms=T0 + SECOND)

    await _prune(bench, now_ms=T0 + 14 * DAY)
    assert await bench.store.message("acme", id_of(draft)) is not None
    await _prune(bench, now_ms=T0 + 14 * DAY + SECOND)

    assert await bench.store.message("acme", id_of(draft)) is None
    assert await bench.log(id_of(draft)) == []


async def test_what_is_alive_stays_however_old(bench: Bench) -> None:
    delayed, claimed, retrying = a_draft(delay_ms=300 * DAY), a_draft(), a_draft()
    await bench.add(delayed, claimed, retrying)
    await bench.retry(bench.born[1], at_ms=T0 + 200 * DAY)

    await _prune(bench, now_ms=T0 + 100 * DAY)

    for draft in (delayed, claimed, retrying):
        assert await bench.store.message("acme", id_of(draft)) == (draft.message, b"hello")
    assert len(await bench.claim(now_ms=T0 + 300 * DAY)) == 2


async def test_a_dead_letter_keeps_its_message_for_its_own_time(bench: Bench) -> None:
    draft = a_draft()
    await bench.add(draft)
    await bench.fail(bench.born[0])

    await _prune(bench, now_ms=T0 + 30 * DAY - 1)
    [letter] = (await bench.store.dead_letters("acme", cursor=None, count_max=1)).dead_letters
    assert letter.body == b"hello"
    await _prune(bench, now_ms=T0 + 30 * DAY)

    assert await bench.store.dead_letter("acme", letter.id) is None
    assert await bench.store.message("acme", id_of(draft)) is None


async def test_a_chunk_is_small_and_pruning_goes_on_where_it_was(bench: Bench) -> None:
    alive = [a_draft(delay_ms=100 * DAY) for _ in range(700)]
    ended = [a_draft(at_ms=T0 + 1, url=f"https://h{n % 30}.example/") for n in range(700)]
    await bench.add(*alive)
    await bench.add(*ended, now_ms=T0 + 1)
    claims = bench.born
    while claims:
        for claim in claims:
            await bench.deliver(claim, now_ms=T0 + 1)
        claims = await bench.claim(2_000, now_ms=T0 + 1)

    now_ms = T0 + 20 * DAY
    chunks = []
    while not chunks or chunks[-1].more:
        chunks.append(await bench.store.prune(retention=KEEP, now_ms=now_ms))

    assert 5 < len(chunks) < 20
    assert max(chunk.rows for chunk in chunks) <= 500
    assert await bench.store.message("acme", id_of(ended[0])) is None
    assert await bench.store.message("acme", id_of(ended[-1])) is None
    assert await bench.store.message("acme", id_of(alive[0])) is not None


@pytest.mark.usefixtures("gives_back")
async def test_a_store_that_is_too_large_loses_its_oldest_history_first(bench: Bench) -> None:
    small = Retention(log_ms=14 * DAY, dead_letter_ms=30 * DAY, store_bytes_max=2_000_000)
    drafts = [a_draft(at_ms=T0 + n, body=b"x" * 10_000) for n in range(600)]
    for n, draft in enumerate(drafts):
        await bench.add(draft, now_ms=T0 + n)
        await bench.deliver(bench.born[-1], now_ms=T0 + n)
    alive = a_draft(at_ms=T0 + HOUR, body=b"y" * 10_000, delay_ms=DAY)
    await bench.add(alive, now_ms=T0 + HOUR)

    await _prune(bench, now_ms=T0 + HOUR, retention=small)

    pulse = await bench.store.pulse(now_ms=T0 + HOUR)
    assert pulse.store_bytes <= small.store_bytes_max
    assert await bench.store.message("acme", id_of(drafts[0])) is None
    assert await bench.store.message("acme", id_of(alive)) is not None


@pytest.mark.usefixtures("gives_back")
async def test_a_store_that_is_too_large_loses_no_more_than_it_must(bench: Bench) -> None:
    for hour in range(10):
        now_ms = T0 + hour * HOUR
        for tenant in ("a", "b"):
            drafts = [a_draft(at_ms=now_ms, tenant=tenant, body=b"x" * 10_000) for _ in range(50)]
            await bench.add(*drafts, now_ms=now_ms)
            for claim in bench.born:
                await bench.deliver(claim, now_ms=now_ms)
            bench.born.clear()
    alive = a_draft(tenant="a", delay_ms=DAY)
    await bench.add(alive)
    size = (await bench.store.pulse(now_ms=T0 + 11 * HOUR)).store_bytes
    small = Retention(log_ms=365 * DAY, dead_letter_ms=365 * DAY, store_bytes_max=size * 9 // 10)

    await _prune(bench, now_ms=T0 + 11 * HOUR, retention=small)

    left = (await bench.store.pulse(now_ms=T0 + 11 * HOUR)).store_bytes
    assert size * 8 // 10 < left <= small.store_bytes_max
    for tenant in ("a", "b"):
        log = await bench.log(tenant=tenant)
        hours = {(entry.message.created_ms - T0) // HOUR for entry in log}
        assert set(range(3, 10)) <= hours
        told = [entry for entry in log if entry.message.id != id_of(alive)]
        assert len(told) == 3 * len({entry.message.id for entry in told})
    assert await bench.states(id_of(alive), "a") == ["CREATED"]


async def test_a_chunk_is_small_however_many_tenants_there_are(bench: Bench) -> None:
    drafts = [a_draft(tenant=f"t{n:03}") for n in range(300) for _ in range(5)]
    await bench.add(*drafts)
    for claim in bench.born:
        await bench.deliver(claim)
    while claims := await bench.claim(1_000):
        for claim in claims:
            await bench.deliver(claim)

    chunks = []
    while not chunks or chunks[-1].more:
        chunks.append(await bench.store.prune(retention=KEEP, now_ms=T0 + 20 * DAY))

    assert max(chunk.rows for chunk in chunks) <= 500
    assert sum(chunk.rows for chunk in chunks) == 3 * len(drafts)
    for draft in drafts[::100]:
        assert await bench.store.message(draft.message.tenant, id_of(draft)) is None


async def test_what_a_message_waited_for_its_queue_or_its_host_is_not_late(
    open_store: Open,
) -> None:
    async with open_store() as store:
        bench = Bench(store, some_places(host_count_max=2))
        await bench.add(*queued(count=2), a_draft(), a_draft())
        assert len(bench.born) == 2
        assert await bench.claim() == []

        for claim in bench.born:
            await bench.deliver(claim, now_ms=T0 + HOUR)
        first = await store.pulse(now_ms=T0 + HOUR)
        await bench.claim(1, now_ms=T0 + HOUR)
        second = await store.pulse(now_ms=T0 + HOUR + 1)

        for pulse in (first, second):
            assert pulse.oldest_due_ms in (None, T0 + HOUR)


async def test_in_an_empty_store_nothing_is_due_and_nothing_waits(bench: Bench) -> None:
    pulse = await bench.store.pulse(now_ms=T0)

    assert (pulse.oldest_due_ms, pulse.waiting, pulse.due, pulse.claimed) == (None, 0, 0, 0)


async def test_the_pulse_tells_how_long_the_oldest_that_may_go_has_been_due(bench: Bench) -> None:
    await bench.add_waiting(a_draft(), a_draft(delay_ms=HOUR))

    pulse = await bench.store.pulse(now_ms=T0 + SECOND)

    assert (pulse.oldest_due_ms, pulse.waiting, pulse.due, pulse.claimed) == (T0, 2, 1, 0)
    assert pulse.refusing is None
