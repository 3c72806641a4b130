"""What can be asked of dead letters, over a store in memory."""

import asyncio
from random import Random
from typing import Any

import pytest

from tests.store.bench import Bench
from tests.support.clock import SetClock
from tests.support.factory import SECOND, T0, a_draft
from waypost.domain.errors import (
    Invalid,
    LimitReached,
    NotFound,
    Problem,
    RateLimited,
    StoreFull,
    StoreUnavailable,
)
from waypost.domain.filters import EVERYTHING, Filter
from waypost.domain.options import Limits
from waypost.services.dead_letters import DeadLetters
from waypost.services.messages import Messages
from waypost.services.rates import Rates
from waypost.store.sqlite import dead_letters, messages
from waypost.store.sqlite.store import SqliteStore
from waypost.telemetry import Telemetry


@pytest.fixture
def bench(store: SqliteStore) -> Bench:
    return Bench(store)


@pytest.fixture
def rates(clock: SetClock) -> Rates:
    return Rates(clock, messages_per_day_max=1_000)


@pytest.fixture
def letters(store: SqliteStore, clock: SetClock, rates: Rates) -> DeadLetters:
    return DeadLetters(
        store,
        store,
        clock,
        Telemetry(),
        limits=Limits(queue_count_max=2),
        rates=rates,
        refusal_of_host=lambda host, _port, _tenant: f"{host} is refused" if "no" in host else None,
        entropy=Random(0).getrandbits,
    )


async def fail(bench: Bench, count: int, *, now_ms: int = T0, **facts: Any) -> None:
    await bench.add_waiting(*[a_draft(**facts) for _ in range(count)], now_ms=now_ms)
    for claim in await bench.claim(count, now_ms=now_ms):
        await bench.fail(claim, now_ms=now_ms)


async def count(bench: Bench) -> int:
    page = await bench.store.dead_letters("acme", cursor=None, count_max=10_000)
    assert page.cursor is None
    return len(page.dead_letters)


async def test_all_are_deleted_in_chunks(bench: Bench, letters: DeadLetters) -> None:
    for _ in range(5):
        await fail(bench, 51)

    deleted = await letters.delete_many("acme", EVERYTHING, cursor=None, count_max=None)

    assert (deleted.count, deleted.cursor, await count(bench)) == (255, None, 0)


async def test_of_two_who_delete_the_same_at_once_each_counts_its_own(
    bench: Bench, letters: DeadLetters
) -> None:
    """W155: both have found all of them before any is deleted."""
    await fail(bench, 51)

    both = await asyncio.gather(
        *(letters.delete_many("acme", EVERYTHING, cursor=None, count_max=None) for _ in range(2))
    )

    assert sum(deleted.count for deleted in both) == 51
    assert await count(bench) == 0


async def test_what_fails_while_others_are_deleted_or_retried_is_not_meant(
    bench: Bench, letters: DeadLetters
) -> None:
    """Else what fails again at once would be retried again and again."""
    await fail(bench, 2)
    await fail(bench, 3, now_ms=T0 + 1)

    retried = await letters.retry_many("acme", EVERYTHING, cursor=None, count_max=None, header=[])
    assert (len(retried.message_ids), retried.cursor, await count(bench)) == (2, None, 3)
    where = Filter(to_ms=T0 + SECOND)
    deleted = await letters.delete_many("acme", where, cursor=None, count_max=None)
    assert (deleted.count, await count(bench)) == (0, 3)


async def test_a_cursor_says_that_there_is_more_and_none_that_there_is_not(
    bench: Bench, letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the way to the next one is, and to the end."""
    monkeypatch.setattr(dead_letters, "LOOKED_AT_MAX", 2)
    where = Filter(labels=frozenset({"a"}))
    for labels in (["a"], [], ["a"], []):
        await fail(bench, 5, labels=labels)

    async def page(cursor: str | None, *, latest_first: bool, bytes_max: int = 1 << 30) -> Any:
        found = await letters.page(
            "acme",
            where,
            latest_first=latest_first,
            cursor=cursor,
            count_max=5,
            bytes_max=bytes_max,
        )
        return [letter.id for letter in found.dead_letters], found.cursor

    for latest_first in (False, True):
        first, cursor = await page(None, latest_first=latest_first)
        assert len(first) == 5
        assert cursor is not None
        second, cursor = await page(cursor, latest_first=latest_first)
        assert len(second) == 5
        assert cursor is None
        assert not {*first} & {*second}
    first, cursor = await page(None, latest_first=False, bytes_max=1)
    assert len(first) == 1
    assert cursor is not None

    for expected in (True, False):
        deleted = await letters.delete_many("acme", where, cursor=None, count_max=5)
        assert deleted.count == 5
        assert (deleted.cursor is not None) is expected
    assert await count(bench) == 10


@pytest.mark.parametrize("room", [1, 10, 25, 30])
async def test_a_retry_stops_at_the_quota_and_says_what_was_done(
    bench: Bench, letters: DeadLetters, rates: Rates, room: int
) -> None:
    await fail(bench, 40)
    rates.messages("acme", 1_000 - room)

    retried = await letters.retry_many("acme", EVERYTHING, cursor=None, count_max=None, header=[])

    assert len(retried.message_ids) == room
    rest = await bench.store.dead_letters("acme", cursor=retried.cursor, count_max=100)
    assert len(rest.dead_letters) == await count(bench) == 40 - room
    with pytest.raises(RateLimited):
        await letters.retry_many("acme", EVERYTHING, cursor=None, count_max=None, header=[])


async def test_what_is_not_published_uses_up_no_quota(
    bench: Bench, letters: DeadLetters, rates: Rates
) -> None:
    for _ in range(3):
        with pytest.raises(NotFound):
            await letters.retry("acme", "1-1", header=[])
    await fail(bench, 1)
    [letter] = (await bench.store.dead_letters("acme", cursor=None, count_max=1)).dead_letters
    for name in ("a", "b"):
        await bench.store.put_queue("acme", name, parallelism=1, paused=False, now_ms=T0)
    with pytest.raises(LimitReached):
        await letters.retry("acme", letter.id, header=[(b"upstash-queue-name", b"c")])

    assert rates.messages_room("acme", 5_000) == 1_000
    await letters.retry("acme", letter.id, header=[(b"upstash-queue-name", b"b")])
    assert rates.messages_room("acme", 5_000) == 999


@pytest.mark.parametrize("fault", [StoreUnavailable, StoreFull])
async def test_what_the_store_does_not_retry_uses_up_no_quota(
    bench: Bench,
    letters: DeadLetters,
    rates: Rates,
    monkeypatch: pytest.MonkeyPatch,
    fault: type[Problem],
) -> None:
    await fail(bench, 25)

    async def refuse(*_args: Any, **_more: Any) -> None:
        raise fault("not now")

    monkeypatch.setattr(bench.store, "retry_dead_letters", refuse)
    for _ in range(3):
        with pytest.raises(fault):
            await letters.retry_many("acme", EVERYTHING, cursor=None, count_max=None, header=[])

    assert rates.messages_room("acme", 5_000) == 1_000


@pytest.mark.parametrize("looked_at", [1, 2, 5_000])
async def test_a_page_ends_before_what_would_be_too_large(
    bench: Bench, letters: DeadLetters, looked_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many looks it takes: only the first of a page has room in any case."""
    monkeypatch.setattr(dead_letters, "LOOKED_AT_MAX", looked_at)
    where = Filter(hosts=frozenset({"example.com"}))
    for size in (9_000, 5_000, 7_000, 100):
        await fail(bench, 1, body=bytes(size))

    async def pages(*, bodies: bool) -> list[list[int]]:
        sizes, cursor = [], None
        while True:
            page = await letters.page(
                "acme", where, latest_first=False, cursor=cursor, count_max=9, bytes_max=8_500,
                bodies=bodies,
            )  # fmt: skip
            sizes.append([len(letter.body) for letter in page.dead_letters])
            cursor = page.cursor
            if cursor is None:
                return sizes

    assert await pages(bodies=True) == [[9_000], [5_000], [7_000, 100]]
    assert await pages(bodies=False) == [[0, 0, 0, 0]]


async def test_a_callback_that_may_not_be_reached_is_refused_before_anything(
    bench: Bench, letters: DeadLetters
) -> None:
    """D10."""
    await fail(bench, 1)

    with pytest.raises(Invalid, match=r"Upstash-Callback: no\.test is refused"):
        await letters.retry_many(
            "acme",
            EVERYTHING,
            cursor=None,
            count_max=None,
            header=[(b"upstash-callback", b"https://no.test/")],
        )
    assert await count(bench) == 1


async def test_all_messages_are_cancelled_in_chunks_and_counted(
    bench: Bench, store: SqliteStore, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D36, D38."""
    monkeypatch.setattr(messages, "LOOKED_AT_MAX", 230)
    service = Messages(store, store, clock)
    drafts = [a_draft(labels=["a"] if number % 2 else []) for number in range(1_000)]
    await bench.add_waiting(*drafts)
    where = Filter(labels=frozenset({"a"}))

    assert await service.cancel_many("acme", where, count_max=333) == 333
    assert await service.cancel_many("acme", where, count_max=500) == 167
    assert await service.cancel_many("acme", EVERYTHING, count_max=None) == 500
    assert await service.cancel_many("acme", EVERYTHING, count_max=None) == 0
