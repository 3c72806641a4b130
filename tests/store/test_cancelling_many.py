"""Cancelling many messages at once: which are found, and what becomes of them."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.store.bench import Bench, id_of, ids, queued
from tests.support.factory import SECOND, T0, a_callback, a_draft
from waypost.domain.attempt import TryAgain
from waypost.domain.filters import EVERYTHING, Filter
from waypost.domain.flow import Flow
from waypost.store.postgres import messages as postgres_messages
from waypost.store.protocol import Draft
from waypost.store.sqlite import messages as sqlite_messages


async def found(bench: Bench, where: Filter = EVERYTHING, tenant: str = "acme") -> list[str]:
    """The whole walk."""
    named: list[str] = []
    cursor = None
    while True:
        some = await bench.store.cancellable(tenant, where=where, cursor=cursor)
        named += some.ids
        cursor = some.cursor
        if cursor is None:
            return named


async def cancel(
    bench: Bench, message_ids: Sequence[str], *, tenant: str = "acme", now_ms: int = T0
) -> int:
    return await bench.store.cancel_many(tenant, message_ids, now_ms=now_ms)


def each(**fields: Any) -> Filter:
    return Filter(**{name: frozenset(values) for name, values in fields.items()})


async def test_what_is_alive_is_found_in_the_order_of_its_acceptance(bench: Bench) -> None:
    ended, in_retry, in_flight = a_draft(), a_draft(), a_draft()
    waiting, delayed = a_draft(), a_draft(delay_ms=60 * SECOND)
    await bench.add(ended, in_retry, in_flight)
    claims = {claim.message.id: claim for claim in bench.born}
    bench.born.clear()
    await bench.add_waiting(waiting, delayed)
    await bench.deliver(claims[id_of(ended)])
    await bench.retry(claims[id_of(in_retry)], at_ms=T0 + SECOND)

    assert await found(bench) == [id_of(each) for each in (in_retry, in_flight, waiting, delayed)]


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "labels": ({"labels": ["x", "wanted"]}, "wanted"),
    "queues": ({"queue": "wanted"}, "wanted"),
    "flow_keys": ({"flow": Flow("wanted", parallelism=1)}, "wanted"),
    "groups": ({"group": "wanted"}, "wanted"),
    "schedules": ({"schedule": "wanted"}, "wanted"),
    "caller_ips": ({"caller_ip": "192.0.2.1"}, "192.0.2.1"),
    "urls": ({"url": "https://wanted.test/a%20b"}, "https://wanted.test/a%20b"),
    "hosts": ({"url": "https://WANTED.test/a%20b"}, "wanted.test"),
    "paths": ({"url": "https://wanted.test/a%20b"}, "/a b"),
}


@pytest.mark.parametrize("field", FIELDS)
async def test_a_filter_finds_what_it_means(bench: Bench, field: str) -> None:
    """Whatever else a filter asks of the engine, `domain.filters` says what it means."""
    facts, value = FIELDS[field]
    wanted = a_draft(**facts)
    others = [a_draft(), a_draft(url="https://other.test/other", labels=["other"]), *queued("o")]
    await bench.add_waiting(others[0], wanted, *others[1:])

    assert await found(bench, each(**{field: ["none", value]})) == [id_of(wanted)]
    assert await found(bench, each(**{field: ["none"]})) == []
    assert await found(bench, each(**{field: [value]}, message_ids=[id_of(others[0])])) == []


async def test_ids_find_what_is_alive_of_them(bench: Bench) -> None:
    drafts = [a_draft(labels=["a"]), a_draft(), a_draft(), a_draft(tenant="other")]
    await bench.add_waiting(*drafts)
    await bench.store.cancel("acme", id_of(drafts[1]), now_ms=T0)
    named = ["msg_unknown", *map(id_of, drafts)]

    assert await found(bench, each(message_ids=named)) == [id_of(drafts[0]), id_of(drafts[2])]
    assert await found(bench, each(message_ids=named, labels=["a"])) == [id_of(drafts[0])]


async def test_dates_are_those_of_acceptance_and_include_their_ends(bench: Bench) -> None:
    drafts = [a_draft(at_ms=T0 + at) for at in range(4)]
    await bench.add_waiting(*drafts)

    between = await found(bench, Filter(from_ms=T0 + 1, to_ms=T0 + 2))
    assert between == [id_of(draft) for draft in drafts[1:3]]


async def test_a_long_walk_comes_by_each_message_once_and_by_none_that_came_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in (postgres_messages, sqlite_messages):
        monkeypatch.setattr(engine, "LOOKED_AT_MAX", 4)
    drafts = [a_draft(labels=["a"] if number % 3 else []) for number in range(20)]
    await bench.add_waiting(*drafts)
    wanted = [id_of(draft) for draft in drafts if draft.message.labels]
    where = each(labels=["a"])

    named: list[str] = []
    cursor = None
    while True:
        some = await bench.store.cancellable("acme", where=where, cursor=cursor)
        named += some.ids
        cursor = some.cursor
        if cursor is None:
            break
        await bench.add_waiting(a_draft(labels=["a"]))
        for claim in await bench.claim(1):  # what is tried meanwhile keeps its place
            await bench.retry(claim, at_ms=T0)

    assert named == wanted


@pytest.mark.parametrize(
    "facts",
    [{}, {"queue": "mail"}, {"flow": Flow("k", parallelism=1)}],
    ids=["lane", "queue", "key"],
)
async def test_many_are_cancelled_wherever_they_stand(bench: Bench, facts: dict[str, Any]) -> None:
    """D16, D38: in retry, delayed, waiting and in flight; counted exactly."""

    def one(**more: Any) -> Draft:
        return a_draft(**facts, **more)

    in_retry, in_flight, waiting, delayed = one(), one(), one(), one(delay_ms=60 * SECOND)
    await bench.add(in_retry)
    [claim] = bench.born
    await bench.retry(claim, at_ms=T0)
    bench.born.clear()
    await bench.add_waiting(in_flight, waiting, delayed)
    await bench.claim(1)
    drafts = [in_retry, in_flight, waiting, delayed]
    alive = await found(bench)
    assert alive == [id_of(draft) for draft in drafts]

    assert await cancel(bench, ["msg_unknown", *alive, alive[0]], now_ms=T0 + 1) == 4

    assert await found(bench) == []
    said = [(await bench.states(id_of(draft)))[-1] for draft in drafts]
    assert sorted(said) == ["CANCELED"] * 3 + ["CANCEL_REQUESTED"]
    assert await cancel(bench, alive, now_ms=T0 + 2) == 0
    assert await bench.claim(now_ms=T0 + 3_600 * SECOND) == []


async def test_one_in_flight_ends_as_cancelled_and_frees_its_queue(bench: Bench) -> None:
    first, second = queued(count=2)
    await bench.add(first, second)
    [claim] = bench.born

    assert await cancel(bench, [id_of(first)]) == 1
    assert await cancel(bench, [id_of(first)]) == 0
    assert await bench.claim() == []

    await bench.end(claim, TryAgain(T0 + SECOND))

    assert (await bench.states(id_of(first)))[-1] == "CANCELED"
    assert ids(await bench.claim()) == [id_of(second)]


async def test_a_queue_goes_on_when_what_was_before_is_cancelled(bench: Bench) -> None:
    drafts = queued(count=5)
    await bench.add_waiting(*drafts)

    assert await cancel(bench, [id_of(draft) for draft in drafts[:4]]) == 4

    assert ids(await bench.claim()) == [id_of(drafts[4])]


async def test_messages_of_others_are_neither_found_nor_cancelled(bench: Bench) -> None:
    theirs = a_draft(tenant="other", labels=["a"])
    await bench.add_waiting(theirs)

    assert await found(bench) == []
    assert await found(bench, each(message_ids=[id_of(theirs)])) == []
    assert await cancel(bench, [id_of(theirs)]) == 0
    assert await found(bench, tenant="other") == [id_of(theirs)]


async def test_callbacks_that_wait_are_messages_too(bench: Bench) -> None:
    source = a_draft(queue="mail")
    await bench.add(source)
    [claim] = bench.born
    bench.born.clear()
    callback = a_callback(source.message, delay_ms=60 * SECOND)
    await bench.end(claim, TryAgain(T0 + SECOND), callbacks=[callback])

    assert await found(bench) == [id_of(source), id_of(callback)]
    assert await cancel(bench, await found(bench)) == 2

    late = a_draft(queue="mail")
    await bench.add_waiting(late)
    assert ids(await bench.claim()) == [id_of(late)]
