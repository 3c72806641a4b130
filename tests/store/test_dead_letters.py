"""Dead letters: found by what they speak of, deleted, and retried once."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from tests.store.bench import Bench, id_of, ids
from tests.store.conftest import Open
from tests.support.factory import DAY, SECOND, T0, a_callback, a_draft, a_message
from waypost.domain.attempt import GiveUp, Outcome, TryAgain
from waypost.domain.callbacks import Report, body
from waypost.domain.errors import Invalid, LimitReached, StoreFull
from waypost.domain.filters import EVERYTHING, Filter
from waypost.domain.flow import Flow
from waypost.domain.message import Message
from waypost.store.postgres import dead_letters as postgres_dead_letters
from waypost.store.protocol import Draft, NewMessage, Retention
from waypost.store.sqlite import dead_letters as sqlite_dead_letters

LATER = T0 + 5 * SECOND


async def fail(bench: Bench, *drafts: Draft, status: int = 500, now_ms: int = T0) -> list[str]:
    """Add messages and let them fail one after the other; the ids of their dead letters."""
    for draft in drafts:
        await bench.add_waiting(draft, now_ms=now_ms)
        [claim] = await bench.claim(1, now_ms=now_ms)
        await bench.end(claim, GiveUp("enough"), Outcome(status=status), now_ms=now_ms)
    return (await found(bench))[-len(drafts) :]


async def found(
    bench: Bench,
    where: Filter = EVERYTHING,
    *,
    latest_first: bool = False,
    count_max: int = 2,
    tenant: str = "acme",
) -> list[str]:
    """All ids, page by page."""
    named: list[str] = []
    cursor = None
    while True:
        some = await bench.store.dead_letter_ids(
            tenant, where=where, latest_first=latest_first, cursor=cursor, count_max=count_max
        )
        assert len(some.ids) <= count_max
        named += some.ids
        cursor = some.cursor
        if cursor is None:
            return named


def again(dead: Message) -> Draft:
    new = replace(a_message(tenant=dead.tenant), labels=["again"])
    message = replace(dead, id=new.id, labels=new.labels, created_ms=LATER, not_before_ms=LATER)
    return Draft(message=message, host="https://example.com:443")


async def retry(bench: Bench, *letter_ids: str, tenant: str = "acme") -> list[str | None]:
    return await bench.store.retry_dead_letters(tenant, letter_ids, again, now_ms=LATER)


def of(**fields: Any) -> Filter:
    return Filter(**{name: frozenset(values) for name, values in fields.items()})


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "labels": ({"labels": ["x", "wanted"]}, "wanted"),
    "queues": ({"queue": "wanted"}, "wanted"),
    "flow_keys": ({"flow": Flow("wanted", parallelism=1)}, "wanted"),
    "groups": ({"group": "wanted"}, "wanted"),
    "schedules": ({"schedule": "wanted"}, "wanted"),
    "caller_ips": ({"caller_ip": "192.0.2.1"}, "192.0.2.1"),
    "urls": ({"url": "https://wanted.test/a"}, "https://wanted.test/a"),
}


@pytest.mark.parametrize("field", FIELDS)
async def test_a_filter_finds_what_it_means(bench: Bench, field: str) -> None:
    facts, value = FIELDS[field]
    _, wanted, _ = await fail(bench, a_draft(), a_draft(**facts), a_draft(labels=["other"]))

    assert await found(bench, of(**{field: ["none", value]})) == [wanted]
    assert await found(bench, of(**{field: ["none"]})) == []


async def test_they_are_found_by_their_answer_their_message_and_their_id(bench: Bench) -> None:
    first, second, third = a_draft(), a_draft(), a_draft()
    letters = [
        *await fail(bench, first, status=404),
        *await fail(bench, second, status=0),
        *await fail(bench, third, status=503),
    ]

    assert await found(bench, of(statuses=[404, 503])) == [letters[0], letters[2]]
    assert await found(bench, of(statuses=[0])) == [letters[1]]
    by_message = of(message_ids=[id_of(third), id_of(second), "msg_unknown"])
    assert await found(bench, by_message, count_max=1) == letters[1:]
    assert await found(bench, replace(by_message, statuses=frozenset([503]))) == letters[2:]
    by_id = of(dead_letter_ids=[letters[2], letters[0], "nonsense", "1-1"])
    assert await found(bench, by_id, count_max=1) == [letters[0], letters[2]]


async def test_dates_are_those_of_the_failure_and_include_their_ends(bench: Bench) -> None:
    letters = [(await fail(bench, a_draft(), now_ms=T0 + at))[0] for at in range(4)]
    where = Filter(from_ms=T0 + 1, to_ms=T0 + 2)

    for count_max in (1, 5):
        assert await found(bench, where, count_max=count_max) == letters[1:3]
        latest = await found(bench, where, latest_first=True, count_max=count_max)
        assert latest == letters[2:0:-1]
    assert await found(bench, Filter(from_ms=T0 + 4)) == []
    assert await found(bench, Filter(to_ms=T0 - 1)) == []


@pytest.mark.parametrize("latest_first", [False, True])
async def test_pages_are_complete_and_stable_whatever_comes_and_goes(
    bench: Bench, latest_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in (postgres_dead_letters, sqlite_dead_letters):
        monkeypatch.setattr(engine, "LOOKED_AT_MAX", 3)
    drafts = [a_draft(labels=["a"] if number % 4 == 0 else []) for number in range(17)]
    letters = await fail(bench, *drafts)
    wanted = letters[::4]
    if latest_first:
        wanted.reverse()

    seen: list[str] = []
    cursor = None
    while True:
        page = await bench.store.dead_letters(
            "acme",
            where=of(labels=["a"]),
            latest_first=latest_first,
            cursor=cursor,
            count_max=2,
        )
        seen += [letter.id for letter in page.dead_letters]
        cursor = page.cursor
        if cursor is None:
            break
        if seen:  # what the cursor speaks of may be gone
            await bench.store.delete_dead_letters("acme", [seen[-1]])
        if latest_first:
            await fail(bench, a_draft(labels=["a"]))

    assert seen == wanted


async def test_a_page_ends_at_its_bytes(bench: Bench) -> None:
    letters = await fail(bench, *[a_draft(body=bytes(10_000)) for _ in range(3)])

    page = await bench.store.dead_letters("acme", cursor=None, count_max=9, bytes_max=25_000)
    assert [letter.id for letter in page.dead_letters] == letters[:2]
    assert page.cursor == letters[1]
    page = await bench.store.dead_letters("acme", cursor=None, count_max=9, bytes_max=1)
    assert [letter.id for letter in page.dead_letters] == letters[:1]


async def test_bodies_that_are_not_asked_for_take_no_room(bench: Bench) -> None:
    letters = await fail(bench, *[a_draft(body=bytes(10_000)) for _ in range(3)])

    page = await bench.store.dead_letters(
        "acme", latest_first=True, cursor=None, count_max=9, bytes_max=25_000, bodies=False
    )

    assert [letter.id for letter in page.dead_letters] == letters[::-1]
    assert {(letter.body, letter.response_body) for letter in page.dead_letters} == {(b"", b"")}
    assert (page.cursor, page.full, page.size < 10_000) == (None, False, True)


async def test_an_id_that_is_spelled_otherwise_names_nothing(bench: Bench) -> None:
    """Else it would be taken away, and its message not published."""
    [letter] = await fail(bench, a_draft())
    other = f"0{letter}"

    assert await retry(bench, other) == [None]
    assert await bench.store.delete_dead_letters("acme", [other]) == 0
    assert await bench.store.dead_letter("acme", other) is None
    assert await found(bench, of(dead_letter_ids=[other])) == []
    assert await found(bench) == [letter]


async def test_a_retry_that_would_make_a_queue_too_many_changes_nothing(bench: Bench) -> None:
    letters = await fail(bench, a_draft(), a_draft())
    await bench.store.put_queue("acme", "there", parallelism=1, paused=False, now_ms=T0)

    def into(queue: str) -> NewMessage:
        def new_message(dead: Message) -> Draft:
            draft = again(dead)
            return replace(draft, message=replace(draft.message, queue=queue))

        return new_message

    with pytest.raises(LimitReached):
        await bench.store.retry_dead_letters(
            "acme", letters, into("new"), queue_count_max=1, now_ms=LATER
        )
    assert await found(bench) == letters
    new_ids = await bench.store.retry_dead_letters(
        "acme", letters, into("there"), queue_count_max=1, now_ms=LATER
    )
    assert None not in new_ids


async def test_a_cursor_that_is_none_is_refused(bench: Bench) -> None:
    with pytest.raises(Invalid):
        await bench.store.dead_letter_ids("acme", where=EVERYTHING, cursor="x", count_max=1)
    with pytest.raises(Invalid):
        await bench.store.dead_letters("acme", cursor="1-x", count_max=1)


async def test_what_is_deleted_is_gone_and_was_there_once(bench: Bench) -> None:
    letters = await fail(bench, a_draft(), a_draft(), a_draft())

    assert await bench.store.delete_dead_letters("acme", [*letters[:2], "nonsense", "1-1"]) == 2
    assert await bench.store.delete_dead_letters("acme", letters) == 1
    assert await bench.store.delete_dead_letters("acme", letters) == 0
    assert await found(bench) == []


async def test_a_message_whose_log_is_over_goes_with_its_dead_letter(bench: Bench) -> None:
    """Retention had kept it for the dead letter alone."""
    draft, other = a_draft(), a_draft()
    letter, retried = await fail(bench, draft, other)
    await prune(bench, now_ms=T0 + 15 * DAY)
    assert await bench.store.message("acme", id_of(draft)) is not None

    await bench.store.delete_dead_letters("acme", [letter])
    assert await bench.store.message("acme", id_of(draft)) is None

    [new_id] = await retry(bench, retried)
    assert await bench.store.message("acme", id_of(other)) is None
    [claim] = await bench.claim(now_ms=LATER)
    assert (ids([claim]), claim.body) == ([new_id], b"hello")


async def prune(bench: Bench, *, now_ms: int) -> None:
    retention = Retention(log_ms=14 * DAY, dead_letter_ms=30 * DAY)
    while (await bench.store.prune(retention=retention, now_ms=now_ms)).more:
        pass


async def test_a_retry_publishes_a_new_message_with_the_same_body(bench: Bench) -> None:
    """D27."""
    draft = a_draft(body=b"the body", header={"X-A": ["1"]}, dedup_key="id:x", group="news")
    [letter] = await fail(bench, draft)

    [new_id] = await retry(bench, letter)

    assert new_id not in (None, id_of(draft))
    assert await found(bench) == []
    assert await bench.store.dead_letter("acme", letter) is None
    [claim] = await bench.claim(now_ms=LATER)
    assert (claim.message.id, claim.body, claim.retried) == (new_id, b"the body", 0)
    expected = replace(again(draft.message).message, id=claim.message.id)
    assert claim.message == expected
    assert await bench.states(str(new_id)) == ["CREATED", "ACTIVE"]
    assert (await bench.states(id_of(draft)))[-1] == "FAILED"


async def test_a_dead_letter_that_is_retried_at_the_same_moment_is_published_once(
    bench: Bench,
) -> None:
    letters = await fail(bench, a_draft(), a_draft())

    both = await asyncio.gather(
        retry(bench, letters[0], letters[1], letters[0]), retry(bench, *letters)
    )

    new_ids = [new_id for answer in both for new_id in answer if new_id is not None]
    assert sorted(ids(await bench.claim(now_ms=LATER))) == sorted(new_ids)
    assert len(set(new_ids)) == 2
    assert await retry(bench, *letters, "nonsense") == [None, None, None]


async def test_a_retry_that_is_answered_is_on_disk_as_a_whole(
    open_store: Open, durable: None
) -> None:
    async with open_store() as store:
        bench = Bench(store)
        letters = await fail(bench, a_draft(body=b"kept"), a_draft())
        [new_id] = await retry(bench, letters[0])

    async with open_store(now_ms=LATER) as store:
        bench = Bench(store)
        assert await found(bench) == letters[1:]
        assert await retry(bench, letters[0]) == [None]
        [claim] = await bench.claim(now_ms=LATER)
        assert (claim.message.id, claim.body) == (new_id, b"kept")


async def test_the_body_is_kept_for_as_long_as_one_of_them_needs_it(bench: Bench) -> None:
    """The dead message and the new one share it, whichever goes first."""
    drafts = [a_draft(body=b"one"), a_draft(body=b"two")]
    letters = await fail(bench, *drafts)
    first, second = await retry(bench, *letters)
    claims = {claim.message.id: claim for claim in await bench.claim(now_ms=LATER)}
    await bench.deliver(claims[str(first)], now_ms=LATER)

    await prune(bench, now_ms=T0 + 14 * DAY + SECOND)  # the dead ones go
    for draft, new_id, body_ in zip(drafts, (first, second), (b"one", b"two"), strict=True):
        assert await bench.store.message("acme", id_of(draft)) is None
        kept = await bench.store.message("acme", str(new_id))
        assert kept is not None
        assert kept[1] == body_


async def test_the_dead_message_keeps_its_body_when_the_new_one_goes(bench: Bench) -> None:
    draft = a_draft(body=b"shared")
    [letter] = await fail(bench, draft, now_ms=LATER + DAY)
    [new_id] = await retry(bench, letter)  # its log is older than that of the dead one
    [claim] = await bench.claim(now_ms=LATER)
    await bench.deliver(claim, now_ms=LATER)

    await prune(bench, now_ms=LATER + 14 * DAY)

    assert await bench.store.message("acme", str(new_id)) is None
    kept = await bench.store.message("acme", id_of(draft))
    assert kept is not None
    assert kept[1] == b"shared"


async def test_a_callback_that_is_retried_still_tells_of_its_attempt(bench: Bench) -> None:
    """Its body is built from the report and the message that it is about."""
    source = a_draft(queue="mail", body=b"source")
    await bench.add(source)
    [claim] = bench.born
    bench.born.clear()
    report = Report(status=200, body=b"fine")
    callback = a_callback(source.message, report=report)
    await bench.end(claim, GiveUp("enough"), callbacks=[callback])
    [claim] = bench.born
    assert claim.message.id == id_of(callback)
    await bench.fail(claim)
    [_, letter] = await found(bench)

    [new_id] = await retry(bench, letter)

    [claim] = await bench.claim(now_ms=LATER)
    assert claim.message.id == new_id
    assert claim.body == body(report, source.message, b"source")
    await bench.fail(claim, now_ms=LATER)
    [_, letter] = await found(bench)
    [newest] = await retry(bench, letter)
    await prune(bench, now_ms=T0 + 14 * DAY + SECOND)
    [claim] = await bench.claim(now_ms=LATER)
    assert (claim.message.id, claim.body) == (newest, body(report, source.message, b"source"))


async def test_the_place_of_a_queue_is_free_again_after_a_callback_was_retried(
    bench: Bench,
) -> None:
    """D24: also where the message that it is about was still in retry meanwhile."""
    source, after = a_draft(queue="mail"), a_draft(queue="mail")
    await bench.add(source)
    [claim] = bench.born
    bench.born.clear()
    await bench.add_waiting(after)
    await bench.end(claim, TryAgain(T0 + SECOND), callbacks=[a_callback(source.message)])
    [callback] = bench.born
    await bench.fail(callback)
    await retry(bench, *await found(bench))
    [claim] = await bench.claim(1, now_ms=T0 + SECOND)
    assert claim.message.id == id_of(source)
    await bench.deliver(claim, now_ms=T0 + SECOND)

    [callback] = await bench.claim(now_ms=LATER)
    assert callback.message.callback_of == id_of(source)
    await bench.deliver(callback, now_ms=LATER)

    assert ids(await bench.claim(now_ms=LATER)) == [id_of(after)]


async def test_the_messages_of_a_fan_out_are_retried_with_their_body(bench: Bench) -> None:
    shared = b"one for all"
    drafts = [a_draft(body=shared, group="g") for _ in range(3)]
    await bench.add_waiting(*drafts)
    for claim in await bench.claim():
        await bench.fail(claim)

    await retry(bench, *(await found(bench))[1:])

    assert [claim.body for claim in await bench.claim(now_ms=LATER)] == [shared, shared]


async def test_a_retry_takes_its_place_in_the_queue_at_the_end(bench: Bench) -> None:
    [letter] = await fail(bench, a_draft(queue="mail"))
    waiting = a_draft(queue="mail")
    await bench.add_waiting(waiting)

    [new_id] = await retry(bench, letter)

    for expected in (id_of(waiting), new_id):
        [claim] = await bench.claim(now_ms=LATER)
        assert claim.message.id == expected
        await bench.deliver(claim, now_ms=LATER)


async def test_an_empty_body_stays_empty(bench: Bench) -> None:
    [letter] = await fail(bench, a_draft(body=b""))
    await retry(bench, letter)
    [claim] = await bench.claim(now_ms=LATER)
    assert claim.body == b""


async def test_dead_letters_of_others_are_out_of_reach(bench: Bench) -> None:
    await bench.add_waiting(a_draft(tenant="other"))
    [claim] = await bench.claim()
    await bench.fail(claim)
    letters = await found(bench, tenant="other")

    assert await found(bench) == []
    assert await found(bench, of(dead_letter_ids=letters)) == []
    assert await bench.store.delete_dead_letters("acme", letters) == 0
    assert await retry(bench, *letters) == [None]
    assert await found(bench, tenant="other") == letters


async def test_a_full_disk_refuses_a_retry_and_keeps_the_dead_letter(
    open_store: Open, watermark: None
) -> None:
    async with open_store() as store:
        [letter] = await fail(Bench(store), a_draft())
    async with open_store(free_bytes_min=1 << 60) as store:
        bench = Bench(store)
        with pytest.raises(StoreFull):
            await retry(bench, letter)
        assert await found(bench) == [letter]
        assert await store.delete_dead_letters("acme", [letter]) == 1
