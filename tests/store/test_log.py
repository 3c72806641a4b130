"""What a store promises of its log and its dead letters: whole, stable, in order."""

from collections.abc import AsyncIterator
from itertools import chain, groupby
from typing import Any

import pytest
from msgspec.structs import replace

from tests.store.bench import Bench, id_of
from tests.support.factory import T0, a_draft
from waypost.domain.errors import Invalid
from waypost.domain.filters import Filter, matches
from waypost.domain.flow import Flow
from waypost.domain.message import Logged
from waypost.store.postgres import log as postgres_log
from waypost.store.protocol import LATEST_FIRST, LogEntry, LogFilter, LogView
from waypost.store.sqlite import log as sqlite_log


async def _pages(
    bench: Bench,
    *,
    count_max: int,
    where: LogFilter | None = None,
    view: LogView = LATEST_FIRST,
) -> list[list[tuple[str, Logged]]]:
    """The entries of all pages."""
    pages, cursor = [], None
    while True:
        page = await bench.store.log(
            "acme",
            where=where or LogFilter(),
            view=view,
            cursor=cursor,
            count_max=count_max,
            bytes_max=1 << 30,
        )
        pages.append([_place(entry) for entry in page.entries])
        cursor = page.cursor
        if cursor is None:
            return pages


def _place(entry: LogEntry) -> tuple[str, Logged]:
    return (entry.message.id, entry.state)


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

    seen = list(chain.from_iterable(pages))
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

    seen = [_place(entry) for entry in first.entries + second.entries]
    assert len(seen) == len(set(seen)) == 10


async def test_a_page_ends_when_it_is_large_enough(bench: Bench) -> None:
    """D35."""
    await bench.add_waiting(*[a_draft(body=b"x" * 10_000) for _ in range(10)])

    page = await bench.store.log(
        "acme", where=LogFilter(), cursor=None, count_max=100, bytes_max=35_000
    )

    assert len(page.entries) == 3
    assert page.cursor is not None


async def test_an_entry_larger_than_a_page_still_comes(bench: Bench) -> None:
    await bench.add_waiting(a_draft(body=b"x" * 10_000))

    page = await bench.store.log("acme", where=LogFilter(), cursor=None, count_max=100, bytes_max=1)

    assert len(page.entries) == 1


async def test_the_log_is_filtered_by_message_and_by_state(bench: Bench) -> None:
    drafts = [a_draft() for _ in range(3)]
    await bench.add(*drafts)
    await bench.deliver(bench.born[1])

    where = LogFilter(
        of=Filter(message_ids=frozenset({id_of(drafts[0]), id_of(drafts[1])})),
        states=[Logged.CREATED, Logged.DELIVERED],
    )
    page = await bench.store.log("acme", where=where, cursor=None, count_max=100, bytes_max=1 << 30)

    assert [(entry.message.id, entry.state) for entry in page.entries] == [
        (id_of(drafts[1]), "DELIVERED"),
        (id_of(drafts[1]), "CREATED"),
        (id_of(drafts[0]), "CREATED"),
    ]
    assert len(await _pages(bench, count_max=1, where=where)) == 3


URLS = (
    "https://example.com",
    "https://example.com/?a=b",
    "https://Example.com:8443/a%20b/c",
    "https://me:secret@example.com/a%2520b",
    "https://[2001:db8::1]:80/a b/c",
    "http://other.test/a",
    "api/llm",
)
FILTERS = (
    Filter(),
    Filter(urls=frozenset({URLS[0], URLS[6]})),
    Filter(hosts=frozenset({"example.com"})),
    Filter(hosts=frozenset({"example.com:8443", "other.test"})),
    Filter(hosts=frozenset({"2001:db8::1"})),
    Filter(hosts=frozenset({"example", "com"})),
    Filter(paths=frozenset({""})),
    Filter(paths=frozenset({"/"})),
    Filter(paths=frozenset({"/a b/c"})),
    Filter(paths=frozenset({"/a%20b"})),
    Filter(paths=frozenset({"/a", "/a%2520b"})),
    Filter(queues=frozenset({"q", "123"})),
    Filter(groups=frozenset({"g"})),
    Filter(schedules=frozenset({"s"}), labels=frozenset({"b"})),
    Filter(labels=frozenset({"a", 'quote"d'})),
    Filter(labels=frozenset({"123"})),
    Filter(flow_keys=frozenset({"é"})),
    Filter(caller_ips=frozenset({"192.0.2.7"})),
    Filter(queues=frozenset({"q"}), hosts=frozenset({"example.com"})),
    Filter(from_ms=T0 + 2, to_ms=T0 + 4),
    Filter(from_ms=T0 + 5, labels=frozenset({"a"})),
    Filter(to_ms=T0 - 1),
    Filter(from_ms=T0 + 4, to_ms=T0 + 2),
)
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"queue": "q", "labels": ["b"]},
    {"group": "g", "labels": ["a", "b"], "schedule": "s"},
    {"labels": ["123"], "caller_ip": "192.0.2.7"},
    {"labels": ['quote"d'], "flow": Flow("é", parallelism=1), "queue": "123"},
)


@pytest.mark.parametrize("view", [LATEST_FIRST, LogView(latest_first=False)])
async def test_a_filter_means_the_same_of_the_log_as_of_messages(
    bench: Bench, view: LogView
) -> None:
    """W171, W172."""
    drafts = [
        a_draft(at_ms=T0 + at, url="https://example.com", **kind) for at, kind in enumerate(KINDS)
    ]
    drafts += [a_draft(at_ms=T0 + 2) for _ in URLS]
    drafts = [
        replace(draft, message=replace(draft.message, url=URLS[at % len(URLS)]))
        for at, draft in enumerate(drafts)
    ]
    for draft in drafts:
        await bench.add_waiting(draft, now_ms=draft.message.created_ms)
    others = [a_draft(tenant="other", labels=["a"]) for _ in range(3)]
    await bench.add_waiting(*others)

    for wanted in FILTERS:
        page = await bench.store.log(
            "acme",
            where=LogFilter(of=wanted),
            view=view,
            cursor=None,
            count_max=100,
            bytes_max=1 << 30,
        )
        found = [entry.message.id for entry in page.entries]
        assert sorted(found) == sorted(
            id_of(draft)
            for draft in drafts
            if matches(wanted, draft.message, at_ms=draft.message.created_ms)
        ), wanted
        times = [entry.time_ms for entry in page.entries]
        assert times == sorted(times, reverse=view.latest_first)
        assert page.cursor is None


@pytest.mark.parametrize("count_max", [1, 3, 20])
async def test_pages_from_the_beginning_are_those_from_the_end_backwards(
    bench: Bench, count_max: int
) -> None:
    """W173."""
    for n in range(10):
        await bench.add_waiting(a_draft(at_ms=T0 + n // 3), now_ms=T0 + n // 3)

    from_the_end = await _pages(bench, count_max=count_max)
    from_the_beginning = await _pages(bench, count_max=count_max, view=LogView(latest_first=False))

    forwards = list(chain.from_iterable(from_the_beginning))
    backwards = list(chain.from_iterable(from_the_end))
    assert forwards == backwards[::-1]
    assert len(forwards) == 10


async def test_without_bodies_neither_those_nor_the_answers_are_read(bench: Bench) -> None:
    await bench.add(a_draft(body=b"x" * 10_000))
    await bench.fail(bench.born[0])

    page = await bench.store.log(
        "acme",
        where=LogFilter(),
        view=LogView(bodies=False),
        cursor=None,
        count_max=10,
        bytes_max=9_000,
    )

    assert [entry.state for entry in page.entries] == ["FAILED", "ERROR", "ACTIVE", "CREATED"]
    assert {(entry.body, entry.response_body) for entry in page.entries} == {(b"", None)}
    assert page.entries[1].response_status == 500


async def _messages(
    bench: Bench, *, count_max: int, view: LogView, where: LogFilter | None = None
) -> AsyncIterator[list[tuple[str, list[str]]]]:
    """Page by page, the log by message: ids, and states."""
    cursor = None
    while True:
        page = await bench.store.log(
            "acme",
            where=where or LogFilter(),
            view=view,
            cursor=cursor,
            count_max=count_max,
            bytes_max=1 << 30,
        )
        yield [
            (message_id, [entry.state.value for entry in entries])
            for message_id, entries in groupby(page.entries, key=lambda entry: entry.message.id)
        ]
        cursor = page.cursor
        if cursor is None:
            return


@pytest.mark.parametrize("latest_first", [True, False])
async def test_by_message_every_message_comes_once_with_all_that_is_asked_for(
    bench: Bench, latest_first: bool
) -> None:
    """W175: while those that are still to come go on, and more come."""
    drafts = [a_draft(at_ms=T0 + n, queue=f"q{n}") for n in range(8)]
    for n, draft in enumerate(drafts):
        await bench.add_waiting(draft, now_ms=T0 + n)
    view = LogView(by_message=True, latest_first=latest_first)
    seen, now_ms = [], T0 + 100
    async for page in _messages(bench, count_max=3, view=view):
        assert len(page) <= 3
        seen += page
        now_ms += 1
        for claim in await bench.claim(2, now_ms=now_ms):
            await bench.retry(claim, at_ms=now_ms, now_ms=now_ms)
        if now_ms < T0 + 103:
            await bench.add_waiting(a_draft(at_ms=now_ms, queue="late"), now_ms=now_ms)

    ids = [message_id for message_id, _ in seen]
    assert len(ids) == len(set(ids))
    assert {id_of(draft) for draft in drafts} <= set(ids)
    order = [id_of(draft) for draft in (reversed(drafts) if latest_first else drafts)]
    assert ids[: len(order)] == order
    for message_id, states in seen:
        assert states[-1 if latest_first else 0] == "CREATED", message_id


async def test_by_message_a_filter_says_which_entries_come(bench: Bench) -> None:
    """W175."""
    drafts = [a_draft(labels=["a"]), a_draft(labels=["b"]), a_draft(labels=["a"])]
    await bench.add(*drafts)
    for claim in bench.born:
        await bench.deliver(claim, now_ms=T0 + 1)
    where = LogFilter(of=Filter(labels=frozenset({"a"})), states=[Logged.CREATED, Logged.DELIVERED])

    pages = [
        page
        async for page in _messages(bench, count_max=1, view=LogView(by_message=True), where=where)
    ]

    assert [one for page in pages for one in page] == [
        (id_of(draft), ["DELIVERED", "CREATED"]) for draft in (drafts[2], drafts[0])
    ]


async def test_by_message_what_does_not_fit_comes_on_the_next_page(bench: Bench) -> None:
    """D35."""
    drafts = [a_draft(body=b"x" * 10_000) for _ in range(5)]
    await bench.add_waiting(*drafts)
    view, seen, cursor = LogView(by_message=True), [], None
    while True:
        page = await bench.store.log(
            "acme", where=LogFilter(), view=view, cursor=cursor, count_max=10, bytes_max=25_000
        )
        seen.append([entry.message.id for entry in page.entries])
        cursor = page.cursor
        if cursor is None:
            break

    ids = [id_of(draft) for draft in drafts][::-1]
    assert seen == [ids[:2], ids[2:4], ids[4:]]


async def test_a_message_whose_entries_are_too_large_comes_whole_without_all_bodies(
    bench: Bench,
) -> None:
    """D35: nothing of it is left out."""
    await bench.add(a_draft(body=b"x" * 10_000))
    await bench.fail(bench.born[0])

    page = await bench.store.log(
        "acme",
        where=LogFilter(),
        view=LogView(by_message=True),
        cursor=None,
        count_max=10,
        bytes_max=15_000,
    )

    assert [entry.state for entry in page.entries] == ["FAILED", "ERROR", "ACTIVE", "CREATED"]
    assert [len(entry.body) for entry in page.entries] == [10_000, 10_000, 0, 0]


async def test_a_cursor_by_message_is_not_one_of_entries(bench: Bench) -> None:
    await bench.add_waiting(a_draft(), a_draft())
    for mine, other in ((True, False), (False, True)):
        page = await bench.store.log(
            "acme",
            where=LogFilter(),
            view=LogView(by_message=mine),
            cursor=None,
            count_max=1,
            bytes_max=1 << 30,
        )
        with pytest.raises(Invalid):
            await bench.store.log(
                "acme",
                where=LogFilter(),
                view=LogView(by_message=other),
                cursor=page.cursor,
                count_max=1,
                bytes_max=1,
            )


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


async def test_a_page_of_a_state_that_is_rare_ends_early_and_none_is_missed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in (postgres_log, sqlite_log):
        monkeypatch.setattr(engine, "LOOKED_AT_MAX", 10)
    await bench.add(*[a_draft() for _ in range(30)])
    failed = bench.born[3]
    await bench.fail(failed)
    bench.born.clear()
    await bench.add_waiting(*[a_draft(at_ms=T0 + 1) for _ in range(25)], now_ms=T0 + 1)

    found, cursor, pages = [], None, 0
    while pages == 0 or cursor is not None:
        page = await bench.store.log(
            "acme",
            where=LogFilter(states=[Logged.FAILED]),
            cursor=cursor,
            count_max=5,
            bytes_max=1 << 20,
        )
        found += [entry.message.id for entry in page.entries]
        cursor, pages = page.cursor, pages + 1

    assert found == [failed.message.id]
    assert pages == 9


@pytest.mark.parametrize("by_message", [False, True])
@pytest.mark.parametrize("latest_first", [False, True])
async def test_a_page_looks_at_so_many_entries_and_none_that_is_wanted_is_missed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, by_message: bool, latest_first: bool
) -> None:
    for engine in (postgres_log, sqlite_log):
        monkeypatch.setattr(engine, "LOOKED_AT_MAX", 10)
    drafts = [a_draft(at_ms=T0 + n, labels=["a"] if n % 20 == 7 else []) for n in range(60)]
    for n, draft in enumerate(drafts):
        await bench.add_waiting(draft, now_ms=T0 + n)

    found, cursor, pages = [], None, 0
    while pages == 0 or cursor is not None:
        page = await bench.store.log(
            "acme",
            where=LogFilter(of=Filter(labels=frozenset({"a"}))),
            view=LogView(latest_first=latest_first, by_message=by_message),
            cursor=cursor,
            count_max=5,
            bytes_max=1 << 20,
        )
        found += [entry.message.id for entry in page.entries]
        cursor, pages = page.cursor, pages + 1

    wanted = [draft.message.id for draft in drafts[7::20]]
    assert found == (wanted[::-1] if latest_first else wanted)
    assert pages == 7
