"""What a store promises of its log and its dead letters: whole, stable, in order."""

import pytest

from tests.store.bench import Bench, id_of
from tests.support.factory import T0, a_draft
from waypost.domain.errors import Invalid
from waypost.domain.message import Logged
from waypost.store.protocol import LogFilter


async def _pages(
    bench: Bench, *, count_max: int, where: LogFilter | None = None
) -> list[list[str]]:
    pages, cursor = [], None
    while True:
        page = await bench.store.log(
            "acme",
            where=where or LogFilter(),
            cursor=cursor,
            count_max=count_max,
            bytes_max=1 << 30,
        )
        pages.append([entry.cursor for entry in page.entries])
        cursor = page.cursor
        if cursor is None:
            return pages


async def test_the_log_is_newest_first(bench: Bench) -> None:
    for n in range(3):
        await bench.add(a_draft(at_ms=T0 + n), now_ms=T0 + n)

    page = await bench.store.log(
        "acme", where=LogFilter(), cursor=None, count_max=100, bytes_max=1 << 30
    )

    assert [entry.time_ms for entry in page.entries] == [T0 + n for n in (2, 2, 1, 1, 0, 0)]
    assert [entry.state for entry in page.entries[:2]] == [Logged.ACTIVE, Logged.CREATED]


@pytest.mark.parametrize("count_max", [1, 2, 3, 7, 20])
async def test_pages_are_complete_and_without_repeats(bench: Bench, count_max: int) -> None:
    await bench.add_waiting(*[a_draft() for _ in range(20)])

    pages = await _pages(bench, count_max=count_max)

    seen = [cursor for page in pages for cursor in page]
    assert len(seen) == len(set(seen)) == 20
    assert all(len(page) == count_max for page in pages[:-1])
    assert pages[-1]


async def test_pages_stay_as_they_are_while_more_is_logged(bench: Bench) -> None:
    await bench.add_waiting(*[a_draft() for _ in range(10)])
    first = await bench.store.log(
        "acme", where=LogFilter(), cursor=None, count_max=5, bytes_max=1 << 30
    )
    await bench.add_waiting(*[a_draft(at_ms=T0 + 1) for _ in range(10)], now_ms=T0 + 1)

    second = await bench.store.log(
        "acme", where=LogFilter(), cursor=first.cursor, count_max=100, bytes_max=1 << 30
    )

    seen = [entry.cursor for entry in first.entries + second.entries]
    assert len(seen) == len(set(seen)) == 10


async def test_a_page_ends_when_it_is_large_enough(bench: Bench) -> None:
    """D35."""
    await bench.add_waiting(*[a_draft(body=b"x" * 10_000) for _ in range(10)])

    page = await bench.store.log(
        "acme", where=LogFilter(), cursor=None, count_max=100, bytes_max=35_000
    )

    assert len(page.entries) == 3
    assert page.cursor == page.entries[-1].cursor


async def test_an_entry_larger_than_a_page_still_comes(bench: Bench) -> None:
    await bench.add_waiting(a_draft(body=b"x" * 10_000))

    page = await bench.store.log("acme", where=LogFilter(), cursor=None, count_max=100, bytes_max=1)

    assert len(page.entries) == 1


async def test_the_log_is_filtered_by_message_and_by_state(bench: Bench) -> None:
    drafts = [a_draft() for _ in range(3)]
    await bench.add(*drafts)
    await bench.deliver(bench.born[1])

    where = LogFilter(
        message_ids=[id_of(drafts[0]), id_of(drafts[1])],
        states=[Logged.CREATED, Logged.DELIVERED],
    )
    page = await bench.store.log("acme", where=where, cursor=None, count_max=100, bytes_max=1 << 30)

    assert [(entry.message.id, entry.state) for entry in page.entries] == [
        (id_of(drafts[1]), "DELIVERED"),
        (id_of(drafts[1]), "CREATED"),
        (id_of(drafts[0]), "CREATED"),
    ]
    assert len(await _pages(bench, count_max=1, where=where)) == 3


@pytest.mark.parametrize(
    "cursor", ["", "x", "1", "1-", "-1", "1-x", "1-2-3", "٣-1", "9" * 30 + "-1"]
)
async def test_a_cursor_that_we_did_not_give_is_refused(bench: Bench, cursor: str) -> None:
    with pytest.raises(Invalid):
        await bench.store.log("acme", where=LogFilter(), cursor=cursor, count_max=1, bytes_max=1)
    with pytest.raises(Invalid):
        await bench.store.dead_letters("acme", cursor=cursor, count_max=1)


async def test_every_entry_has_the_facts_and_the_body_of_its_message(bench: Bench) -> None:
    """W167."""
    draft = a_draft(labels=["a"], header={"X-A": ["1"]}, retry_delay="1000")
    await bench.add(draft)
    await bench.deliver(bench.born[0])

    for entry in await bench.log(id_of(draft)):
        assert (entry.message, entry.body) == (draft.message, b"hello")


async def test_dead_letters_are_paged_oldest_first(bench: Bench) -> None:
    drafts = [a_draft() for _ in range(5)]
    await bench.add(*drafts)
    for n, claim in enumerate(bench.born):
        await bench.fail(claim, now_ms=T0 + n // 2)

    seen, cursor = [], None
    while True:
        page = await bench.store.dead_letters("acme", cursor=cursor, count_max=2)
        seen += [letter.message.id for letter in page.dead_letters]
        cursor = page.cursor
        if cursor is None:
            break

    assert seen == [id_of(draft) for draft in drafts]


async def test_a_dead_letter_is_its_tenants_own(bench: Bench) -> None:
    await bench.add(a_draft())
    await bench.fail(bench.born[0])
    [letter] = (await bench.store.dead_letters("acme", cursor=None, count_max=1)).dead_letters

    assert await bench.store.dead_letter("other", letter.id) is None
    assert (await bench.store.dead_letters("other", cursor=None, count_max=1)).dead_letters == []
