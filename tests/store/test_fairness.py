"""What a store promises to those who wait for the same place: whoever was served stands back."""

from collections import Counter
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest

from tests.store.bench import Bench, id_of, ids
from tests.store.conftest import Open
from tests.support.factory import T0, a_draft, some_places
from waypost.domain.flow import Flow
from waypost.store.protocol import Claim, Draft

PLACES = 4
"""Of the host that all of them wait for."""

BACKLOG = 40

CLAIMS_MAX = 3
"""For one that was refused: those before it have their turns, and then it goes."""

LANES: dict[str, dict[str, Any]] = {
    "queue": {"queue": "busy"},
    "key": {"flow": Flow("busy", parallelism=2 * PLACES)},
    "host": {},
}


class Busy:
    """A host whose places are all taken.  Whatever happens takes a millisecond."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._times = count(T0)
        self._in_flight: list[Claim] = []

    async def fill(self, lane: str, *, tenant: str) -> None:
        """Let a tenant have many messages for the host, and all of its places."""
        if lane == "queue":
            await self.bench.store.put_queue(
                tenant, "busy", parallelism=2 * PLACES, paused=None, now_ms=T0
            )
        await self.add(*[a_draft(tenant=tenant, **LANES[lane]) for _ in range(BACKLOG)])
        while await self.claim():
            pass
        await self.end(1)  # which proves the host

    async def add(self, *drafts: Draft) -> None:
        await self.bench.add_waiting(*drafts, now_ms=next(self._times))

    async def end(self, places: int) -> None:
        """Give back some places."""
        for claim in self._in_flight[:places]:
            await self.bench.deliver(claim, now_ms=next(self._times))
        del self._in_flight[:places]

    async def claim(self) -> list[Claim]:
        claims = await self.bench.claim(now_ms=next(self._times))
        self._in_flight += claims
        return claims

    async def claims_until(self, draft: Draft, *, places: int) -> int:
        """How many claims it takes until a message is handed out, with places given back
        before each."""
        for nth in range(1, BACKLOG // places):
            await self.end(places)
            if id_of(draft) in ids(await self.claim()):
                return nth
        raise AssertionError("it went after all the others")


@pytest.fixture
async def busy(open_store: Open) -> AsyncIterator[Busy]:
    async with open_store() as store:
        yield Busy(Bench(store, some_places(host_count_max=PLACES)))


@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize(("crowd", "lonely"), [("acme", "other"), ("other", "acme")])
@pytest.mark.parametrize("lane", LANES)
async def test_a_tenant_has_its_turn_at_a_host_for_which_another_has_many(
    busy: Busy, lane: str, crowd: str, lonely: str, places: int
) -> None:
    await busy.fill(lane, tenant=crowd)
    draft = a_draft(tenant=lonely)
    await busy.add(draft)
    await busy.claim()

    assert await busy.claims_until(draft, places=places) <= CLAIMS_MAX


@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize(("lane", "other"), [("queue", "host"), ("host", "queue"), ("host", "key")])
async def test_a_lane_has_its_turn_at_a_host_for_which_another_of_its_tenant_has_many(
    busy: Busy, lane: str, other: str, places: int
) -> None:
    await busy.fill(lane, tenant="acme")
    draft = a_draft(**LANES[other])
    await busy.add(draft)
    await busy.claim()

    assert await busy.claims_until(draft, places=places) <= CLAIMS_MAX


async def test_a_queue_keeps_its_turn_at_a_host_while_more_is_added_to_it(busy: Busy) -> None:
    """However seldom a place is given back."""
    await busy.fill("host", tenant="acme")
    draft = a_draft(tenant="other", queue="q")
    await busy.add(draft)
    await busy.claim()

    for _ in range(CLAIMS_MAX):
        for _ in range(2):
            await busy.add(a_draft(tenant="other", queue="q"))
            assert await busy.claim() == []
        await busy.end(1)
        if id_of(draft) in ids(await busy.claim()):
            return
    raise AssertionError("it never had its turn")


@pytest.mark.parametrize("places", [1, 3])
async def test_those_who_have_many_for_a_host_share_its_places(busy: Busy, places: int) -> None:
    tenants = ["a", "b", "c"]
    await busy.add(*[a_draft(tenant=tenant) for tenant in tenants for _ in range(BACKLOG)])
    await busy.claim()
    await busy.end(1)

    served: Counter[str] = Counter()
    for _ in range(BACKLOG // places):
        await busy.end(places)
        served.update(claim.message.tenant for claim in await busy.claim())

    assert min(served.values()) * 2 > max(served.values()), served
    assert set(served) == set(tenants)


@pytest.mark.parametrize(("crowd", "lonely"), [("acme", "other"), ("other", "acme")])
async def test_a_large_body_has_its_turn_though_another_tenant_has_many(
    open_store: Open, crowd: str, lonely: str
) -> None:
    async with open_store() as store:
        busy = Busy(Bench(store, some_places(bytes_max=10_000)))
        large = b"x" * 3_000
        await busy.add(
            *[a_draft(tenant=crowd, url=f"https://{n}.x/", body=large) for n in range(9)]
        )
        await busy.claim()
        draft = a_draft(tenant=lonely, url="https://lonely.example/", body=large)
        await busy.add(draft)
        await busy.claim()

        assert await busy.claims_until(draft, places=1) <= 9


async def test_bodies_that_find_no_room_keep_none_from_being_looked_at_that_would(
    open_store: Open,
) -> None:
    async with open_store() as store:
        busy = Busy(Bench(store, some_places(bytes_max=10_000)))
        small = [a_draft(url=f"https://small{n}.example/", body=b"x" * 400) for n in range(2)]
        await busy.add(*small)
        await busy.claim()
        await busy.add(a_draft(url="https://hanging.example/", body=b"x" * 4_000))
        await busy.claim()
        large = [a_draft(url=f"https://large{n}.example/", body=b"x" * 4_000) for n in range(20)]
        await busy.add(*large)
        await busy.claim()
        fits = a_draft(url="https://fits.example/", body=b"x" * 600)
        await busy.add(fits)
        assert await busy.claim() == []

        assert await busy.claims_until(fits, places=1) <= len(small)
