"""Callbacks: written with the outcome that they tell of, and awaited by its queue."""

import asyncio

import msgspec
import pytest

from tests.store.bench import Bench, id_of, ids, queued
from tests.store.conftest import Open
from tests.support.factory import (
    ERROR,
    HOUR,
    OK,
    SECOND,
    T0,
    a_callback,
    a_draft,
)
from waypost.domain.attempt import Delivered, GiveUp, TryAgain
from waypost.domain.callbacks import Report
from waypost.domain.errors import StaleClaim
from waypost.domain.flow import Flow
from waypost.store.protocol import Claim, Draft, Retention


async def first_claim(bench: Bench, draft: Draft) -> Claim:
    await bench.add(draft)
    claim = bench.born.pop()
    assert claim.message.id == id_of(draft)
    return claim


def told(body: bytes) -> dict[str, object]:
    decoded: dict[str, object] = msgspec.json.decode(body)
    return decoded


async def test_a_callback_is_accepted_with_the_outcome_that_it_tells_of(bench: Bench) -> None:
    claim = await first_claim(bench, a_draft())
    callback = a_callback(claim.message)

    await bench.end(claim, Delivered(), OK, callbacks=[callback])

    assert await bench.states(claim.message.id) == ["CREATED", "ACTIVE", "DELIVERED"]
    assert await bench.states(id_of(callback)) == ["CREATED", "ACTIVE"]
    assert ids(bench.born) == [id_of(callback)]


async def test_a_stale_settle_calls_nobody_back(bench: Bench) -> None:
    claim = await first_claim(bench, a_draft())
    await bench.deliver(claim)
    callback = a_callback(claim.message)

    [answer] = await asyncio.gather(
        bench.store.settle(
            claim, Delivered(), OK, callbacks=[callback], births=bench.births, now_ms=T0
        ),
        return_exceptions=True,
    )

    assert isinstance(answer, StaleClaim)
    assert await bench.store.message("acme", id_of(callback)) is None


async def test_a_callback_that_is_not_accepted_makes_neither_its_queue_nor_its_key(
    bench: Bench,
) -> None:
    """Not where an attempt failed that is made again, nor where its claim was lost."""
    claim = await first_claim(bench, a_draft())
    of_failure = a_callback(
        claim.message,
        queue="of failures",
        flow=Flow("of failures", parallelism=1),
        report=Report(status=500, failure=True),
    )
    await bench.end(claim, TryAgain(T0 + 1), callbacks=[of_failure])
    with pytest.raises(StaleClaim):
        await bench.end(claim, GiveUp("why"), callbacks=[of_failure])

    assert await bench.store.queues("acme") == []
    assert await bench.store.flow_keys("acme", now_ms=T0) == []


async def test_the_body_of_a_callback_is_the_same_wherever_it_is_seen(bench: Bench) -> None:
    claim = await first_claim(bench, a_draft(body=b"what was sent"))
    callback = a_callback(claim.message, report=Report(status=201, body=b"what came back"))
    await bench.end(claim, Delivered(), OK, callbacks=[callback])

    [born] = bench.born
    await bench.store.release([born], now_ms=T0)
    [claimed] = await bench.claim()
    read = await bench.store.message("acme", id_of(callback))
    logged = await bench.log(id_of(callback))
    await bench.fail(claimed)
    dead = await bench.store.dead_letters("acme", cursor=None, count_max=1)

    assert read is not None
    bodies = {born.body, claimed.body, read[1], logged[0].body, dead.dead_letters[0].body}
    [body] = bodies
    assert told(body)["sourceBody"] == "d2hhdCB3YXMgc2VudA=="
    assert told(body)["body"] == "d2hhdCBjYW1lIGJhY2s="


async def test_a_report_of_a_failure_names_the_dead_letter(bench: Bench) -> None:
    claim = await first_claim(bench, a_draft())
    after_each = a_callback(claim.message)
    at_the_end = a_callback(claim.message, report=Report(status=500, failure=True))

    await bench.end(claim, GiveUp("failed"), callbacks=[after_each, at_the_end])

    [letter] = (await bench.store.dead_letters("acme", cursor=None, count_max=9)).dead_letters
    bodies = {born.message.id: told(born.body) for born in bench.born}
    assert bodies[id_of(at_the_end)]["dlqId"] == letter.id
    assert "dlqId" not in bodies[id_of(after_each)]


async def test_a_cancelled_message_tells_of_its_attempt_and_not_of_a_failure(bench: Bench) -> None:
    """D16."""
    claim = await first_claim(bench, a_draft())
    await bench.store.cancel("acme", claim.message.id, now_ms=T0)
    after_each = a_callback(claim.message)
    at_the_end = a_callback(claim.message, report=Report(status=500, failure=True))

    await bench.end(claim, GiveUp("failed"), callbacks=[after_each, at_the_end])

    assert ids(bench.born) == [id_of(after_each)]
    assert await bench.store.message("acme", id_of(at_the_end)) is None


async def test_a_callback_may_be_delayed(bench: Bench) -> None:
    claim = await first_claim(bench, a_draft())
    callback = a_callback(claim.message, delay_ms=HOUR)

    await bench.end(claim, Delivered(), OK, callbacks=[callback])

    assert bench.born == []
    assert await bench.next_due_ms() == T0 + HOUR


async def test_a_callback_outlives_a_restart(open_store: Open, durable: None) -> None:
    async with open_store() as store:
        bench = Bench(store)
        claim = await first_claim(bench, a_draft())
        callback = a_callback(claim.message)
        await bench.end(claim, Delivered(), OK, callbacks=[callback])
        body = bench.born[0].body
    async with open_store() as store:
        [again] = await Bench(store).claim()
    assert (again.message.id, again.body, again.interrupted) == (id_of(callback), body, 1)


# Queues


async def test_a_queue_waits_for_the_callback_of_its_message(bench: Bench) -> None:
    """W79."""
    first, second = queued(count=2)
    claim = await first_claim(bench, first)
    await bench.add(second)
    callback = a_callback(first.message)

    await bench.end(claim, Delivered(), OK, callbacks=[callback])
    assert await bench.claim() == []

    await bench.deliver(bench.born[0])
    assert ids(await bench.claim()) == [id_of(second)]


async def test_a_queue_waits_for_a_callback_in_retry_and_for_one_that_is_delayed(
    bench: Bench,
) -> None:
    first, second = queued(count=2)
    claim = await first_claim(bench, first)
    await bench.add(second)
    callback = a_callback(first.message, delay_ms=SECOND)
    await bench.end(claim, Delivered(), OK, callbacks=[callback])

    [called] = await bench.claim(now_ms=T0 + SECOND)
    assert called.message.id == id_of(callback)
    await bench.retry(called, at_ms=T0 + HOUR, now_ms=T0 + SECOND)
    [called] = await bench.claim(now_ms=T0 + HOUR)
    assert called.message.id == id_of(callback)
    await bench.fail(called, now_ms=T0 + HOUR)

    assert ids(await bench.claim(now_ms=T0 + HOUR)) == [id_of(second)]


async def test_a_queue_waits_for_the_last_of_several_callbacks(bench: Bench) -> None:
    first, second = queued(count=2)
    claim = await first_claim(bench, first)
    await bench.add(second)
    each, end = [a_callback(first.message) for _ in range(2)]
    await bench.end(claim, GiveUp("failed"), callbacks=[each, end])

    one, other = bench.born
    await bench.deliver(one)
    assert await bench.claim() == []
    await bench.deliver(other)
    assert ids(await bench.claim()) == [id_of(second)]


async def test_a_callback_of_an_earlier_attempt_does_not_end_the_wait_for_the_message(
    bench: Bench,
) -> None:
    first, second = queued(count=2)
    claim = await first_claim(bench, first)
    await bench.add(second)
    await bench.end(claim, TryAgain(T0 + HOUR), callbacks=[a_callback(first.message)])

    await bench.deliver(bench.born[0])

    assert await bench.claim() == []
    assert ids(await bench.claim(now_ms=T0 + HOUR)) == [id_of(first)]


async def test_the_next_attempt_does_not_wait_for_the_callback_of_the_last(bench: Bench) -> None:
    [draft] = queued(count=1)
    claim = await first_claim(bench, draft)

    await bench.end(claim, TryAgain(T0), callbacks=[a_callback(draft.message, delay_ms=HOUR)])

    assert ids(await bench.claim()) == [id_of(draft)]


async def test_a_callback_that_names_a_queue_is_not_waited_for(bench: Bench) -> None:
    first, second = queued(count=2)
    claim = await first_claim(bench, first)
    await bench.add(second)
    callback = a_callback(first.message, queue="callbacks", awaited_by=None)

    await bench.end(claim, Delivered(), OK, callbacks=[callback])

    assert ids(await bench.claim()) == [id_of(second)]


async def test_a_queue_does_not_wait_for_a_cancelled_callback(bench: Bench) -> None:
    first, second = queued(count=2)
    claim = await first_claim(bench, first)
    await bench.add(second)
    callback = a_callback(first.message, delay_ms=HOUR)
    await bench.end(claim, Delivered(), OK, callbacks=[callback])

    await bench.store.cancel("acme", id_of(callback), now_ms=T0)

    assert ids(await bench.claim()) == [id_of(second)]


async def test_cancelling_a_message_does_not_end_the_wait_for_its_callback(bench: Bench) -> None:
    first, second = queued(count=2)
    claim = await first_claim(bench, first)
    await bench.add(second)
    await bench.end(claim, TryAgain(T0 + HOUR), ERROR, callbacks=[a_callback(first.message)])

    await bench.store.cancel("acme", id_of(first), now_ms=T0)

    assert await bench.claim() == []
    await bench.deliver(bench.born[0])
    assert ids(await bench.claim()) == [id_of(second)]


async def test_a_queue_still_waits_after_a_restart(open_store: Open, durable: None) -> None:
    first, second = queued(count=2)
    async with open_store() as store:
        bench = Bench(store)
        claim = await first_claim(bench, first)
        await bench.add(second)
        callback = a_callback(first.message)
        await bench.end(claim, Delivered(), OK, callbacks=[callback])
    async with open_store() as store:
        bench = Bench(store)
        [again] = await bench.claim()
        assert again.message.id == id_of(callback)
        assert await bench.claim() == []
        await bench.deliver(again)
        assert ids(await bench.claim()) == [id_of(second)]


# Retention


async def test_a_message_is_kept_for_as_long_as_a_callback_of_it(bench: Bench) -> None:
    claim = await first_claim(bench, a_draft(body=b"what was sent"))
    callback = a_callback(claim.message, delay_ms=10 * HOUR)
    await bench.end(claim, Delivered(), OK, callbacks=[callback])
    keep_little = Retention(log_ms=HOUR, dead_letter_ms=HOUR)

    await prune(bench, keep_little, now_ms=T0 + 10 * HOUR)
    [called] = await bench.claim(now_ms=T0 + 10 * HOUR)
    assert told(called.body)["sourceBody"] == "d2hhdCB3YXMgc2VudA=="

    await bench.deliver(called, now_ms=T0 + 10 * HOUR)
    await prune(bench, keep_little, now_ms=T0 + 20 * HOUR)
    assert await bench.store.message("acme", id_of(callback)) is None
    assert await bench.store.message("acme", claim.message.id) is None


async def prune(bench: Bench, retention: Retention, *, now_ms: int) -> None:
    while (await bench.store.prune(retention=retention, now_ms=now_ms)).more:
        pass


# A fan-out


async def test_messages_that_share_a_body_have_it_each(bench: Bench) -> None:
    body = b"for all of you"
    drafts = [a_draft(body=body, url=f"https://{host}.test/") for host in "abc"]

    await bench.add(*drafts)

    assert [claim.body for claim in bench.born] == [body] * 3
    await bench.store.release(bench.born, now_ms=T0)
    assert [claim.body for claim in await bench.claim()] == [body] * 3
    assert [await bench.store.message("acme", id_of(d)) for d in drafts] == [
        (d.message, body) for d in drafts
    ]


async def test_a_shared_body_is_kept_for_the_last_that_needs_it(bench: Bench) -> None:
    body = b"for all of you"
    done, late = a_draft(body=body), a_draft(body=body, delay_ms=10 * HOUR)
    await bench.add(done, late)
    await bench.deliver(bench.born[0])

    await prune(bench, Retention(log_ms=HOUR, dead_letter_ms=HOUR), now_ms=T0 + 10 * HOUR)

    assert await bench.store.message("acme", id_of(done)) is None
    [claim] = await bench.claim(now_ms=T0 + 10 * HOUR)
    assert claim.body == body


async def test_a_fan_out_with_duplicates_shares_the_body_of_the_rest(bench: Bench) -> None:
    body = b"for all of you"
    keys = ["first", "second", "third"]
    await bench.add(a_draft(body=b"before", dedup_key="first"))
    bench.born.clear()

    accepted = await bench.add(*[a_draft(body=body, dedup_key=key) for key in keys])

    assert [one.deduplicated for one in accepted] == [True, False, False]
    assert [claim.body for claim in bench.born] == [body] * 2
    await bench.store.release(bench.born, now_ms=T0)
    assert [claim.body for claim in await bench.claim()] == [body] * 2
