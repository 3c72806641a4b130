"""When claims that were born are handed over: what whoever stops a node relies on."""

import asyncio

from tests.store.bench import Bench, id_of, ids
from tests.support.factory import OK, T0, a_callback, a_draft
from waypost.domain.attempt import Delivered


async def test_when_a_release_returns_what_was_asked_before_has_handed_its_births_over(
    bench: Bench,
) -> None:
    """Also where it has nothing to give back, and where the callers have gone."""
    source = a_draft(url="https://source.example/")
    await bench.add(source)
    [claim] = bench.born
    bench.born.clear()
    drafts = [a_draft(url=f"https://{n}.example/") for n in range(3)]
    callback = a_callback(source.message, url="https://callback.example/")
    asked = [
        asyncio.ensure_future(bench.add(*drafts)),
        asyncio.ensure_future(bench.end(claim, Delivered(), OK, callbacks=[callback])),
    ]
    await asyncio.sleep(0)
    for call in asked:
        call.cancel()

    await bench.store.release([], now_ms=T0)

    assert {*ids(bench.born)} == {id_of(draft) for draft in (*drafts, callback)}
