"""What PostgreSQL is asked while others write: pages whose order goes on, and removals that
meet, each of which thinks that the other thing still needs the message."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from itertools import groupby
from typing import Any

import asyncpg
import pytest

from tests.store.bench import Bench, id_of
from tests.support.databases import Databases, connected
from tests.support.factory import ERROR, T0, a_callback, a_draft
from tests.support.postgres import SHIPPED
from tests.support.waiting import until
from waypost.domain.attempt import GiveUp
from waypost.domain.filters import Filter
from waypost.domain.message import Logged
from waypost.store.postgres import reading
from waypost.store.postgres.database import insert
from waypost.store.postgres.messages import remove_messages
from waypost.store.postgres.shut import Shut
from waypost.store.postgres.store import open_postgres
from waypost.store.postgres.writer import Batch
from waypost.store.protocol import LogFilter, LogPage, LogView

Other = asyncpg.Connection

FAILED = (GiveUp("failed 4 times"), ERROR)
BODY = b"one object"


@pytest.fixture
async def opened(
    databases: Callable[[str], Databases],
) -> AsyncIterator[tuple[Bench, Other]]:
    """A store on the test bench, and a connection of somebody else to its database."""
    with databases(SHIPPED).lending() as lend:
        url = await lend()
        async with AsyncExitStack() as stack:
            other = await stack.enter_async_context(connected(url))
            store = await open_postgres(url, now_ms=T0)
            stack.push_async_callback(store.close)
            yield Bench(store), other


async def _page(bench: Bench, *, cursor: str | None) -> LogPage:
    return await bench.store.log(
        "acme",
        where=LogFilter(),
        view=LogView(by_message=True),
        cursor=cursor,
        count_max=2,
        bytes_max=1 << 30,
    )


async def test_what_was_under_way_moves_no_message_out_of_the_pages_to_come(
    opened: tuple[Bench, Other],
) -> None:
    """Its numbers are smaller than those that the first page has seen."""
    bench, other = opened
    drafts = [a_draft(at_ms=T0 + n) for n in range(6)]
    for draft in drafts[:5]:
        await bench.add_waiting(draft, now_ms=draft.message.created_ms)
    async with other.transaction():
        batch = Batch(other, node=0, lease=0, shut=Shut(), in_hand=set())
        await batch.take_numbers()
        late = [("acme", T0 + 9, batch.numbers.next(), id_of(drafts[0]), "RETRY", None)]
        await bench.add_waiting(drafts[5], now_ms=T0 + 5)

        page = await _page(bench, cursor=None)
        await insert(other, event=late)

    seen = list(page.entries)
    while page.cursor is not None:
        page = await _page(bench, cursor=page.cursor)
        seen += page.entries
    ids = [message_id for message_id, _ in groupby(seen, key=lambda entry: entry.message.id)]
    assert ids == [id_of(draft) for draft in reversed(drafts)]
    assert seen[-2].state == Logged.RETRY


async def test_large_bodies_and_details_come_in_parts_and_in_their_places(
    opened: tuple[Bench, Other], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, _ = opened
    sources = [a_draft(body=b"%d" % n * 100) for n in range(4)]
    await bench.add(*sources)
    for claim in bench.born.copy():
        await bench.end(claim, *FAILED, callbacks=[a_callback(claim.message)])

    whole = await bench.log()
    letters = await bench.store.dead_letters("acme", cursor=None, count_max=10)
    for part_bytes in (1, 250, 700):
        monkeypatch.setattr(reading, "PART_BYTES", part_bytes)
        assert await bench.log() == whole
        again = await bench.store.dead_letters("acme", cursor=None, count_max=10)
        assert again == letters
    assert {entry.body for entry in whole} >= {draft.body for draft in sources}
    assert [letter.response_body for letter in letters.dead_letters] == [b"no"] * 4


async def test_facts_of_which_no_text_can_be_made_are_found_by_what_they_have(
    opened: tuple[Bench, Other],
) -> None:
    bench, _ = opened
    strange, other = a_draft(labels=["a\0", "b"]), a_draft(labels=["c", "\\u0000"])
    await bench.add_waiting(strange, other)

    for label, draft in (("a\0", strange), ("b", strange), ("c", other), ("\\u0000", other)):
        found = await bench.store.cancellable(
            "acme", where=Filter(labels=frozenset({label, "none"})), cursor=None
        )
        assert found.ids == [id_of(draft)]
    assert await bench.store.message("acme", "msg_\0") is None
    named = Filter(message_ids=frozenset({"msg_\0", id_of(other)}))
    assert (await bench.store.cancellable("acme", where=named, cursor=None)).ids == [id_of(other)]


async def test_a_message_goes_when_its_log_and_its_dead_letter_go_at_one_moment(
    opened: tuple[Bench, Other],
) -> None:
    bench, other = opened
    draft = a_draft()
    await bench.add(draft)
    await bench.fail(bench.born[0])
    [letter] = (await bench.store.dead_letters("acme", cursor=None, count_max=1)).dead_letters

    async with other.transaction():
        await other.execute("DELETE FROM event")
        assert await remove_messages(other, "acme", [id_of(draft)]) == 0
        deleting = await _held_up(other, bench.store.delete_dead_letters("acme", [letter.id]))

    assert await deleting == 1
    assert await bench.store.message("acme", id_of(draft)) is None
    assert await other.fetchval("SELECT count(*) FROM body") == 0


async def test_a_shared_body_goes_with_the_last_two_that_go_at_one_moment(
    opened: tuple[Bench, Other],
) -> None:
    bench, other = opened
    drafts = [a_draft(body=BODY), a_draft(body=BODY)]
    await bench.add(*drafts)
    for claim in bench.born:
        await bench.fail(claim)
    letters = (await bench.store.dead_letters("acme", cursor=None, count_max=2)).dead_letters
    await other.execute("DELETE FROM event")

    async with other.transaction():
        await other.execute("DELETE FROM dead_letter WHERE message_id = $1", id_of(drafts[0]))
        assert await remove_messages(other, "acme", [id_of(drafts[0])]) == 1
        deleting = await _held_up(other, bench.store.delete_dead_letters("acme", [letters[1].id]))

    assert await deleting == 1
    assert await other.fetchval("SELECT count(*) FROM body") == 0


async def test_a_dead_letter_that_is_retried_and_deleted_at_one_moment_has_one_end(
    opened: tuple[Bench, Other],
) -> None:
    bench, other = opened
    draft = a_draft(queue="q")
    await bench.add(draft)
    await bench.fail(bench.born[0])
    [letter] = (await bench.store.dead_letters("acme", cursor=None, count_max=1)).dead_letters
    again = a_draft(queue="q")

    async with other.transaction():
        await other.execute("DELETE FROM dead_letter")
        retrying = await _held_up(
            other,
            bench.store.retry_dead_letters("acme", [letter.id], lambda _: again, now_ms=T0),
        )

    assert await retrying == [None]
    assert await bench.claim() == []


async def _held_up(other: Other, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A call that has come to wait for what `other` has locked."""
    task = asyncio.create_task(call)

    async def waits() -> bool:
        assert not task.done(), "nothing held it up"
        count = await other.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(count)

    await until(waits)
    return task
