"""What a store promises to those who wait for the same place: whoever was served stands back."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Any

import pytest

from tests.store.bench import Bench, id_of, ids
from tests.store.conftest import Open
from tests.support.factory import SECOND, T0, a_draft, some_places
from waypost.domain.flow import Flow
from waypost.store.postgres import shut
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


PERMITS = 3
"""Of the key that all of them wait for."""

ROUNDS = 20
"""In each, all attempts end and others begin."""

LIMITS = {
    "parallelism": Flow("k", parallelism=PERMITS),
    "rate": Flow("k", rate=PERMITS, period_ms=SECOND),
}


class Busy:
    """A host whose places are all taken, or a key.  Whatever happens takes a millisecond."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._now_ms = T0
        self._in_flight: list[Claim] = []

    def _tick(self) -> int:
        self._now_ms += 1
        return self._now_ms

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
        await self.bench.add_waiting(*drafts, now_ms=self._tick())

    async def end(self, places: int) -> None:
        """Give back some places."""
        for claim in self._in_flight[:places]:
            await self.bench.deliver(claim, now_ms=self._tick())
        del self._in_flight[:places]

    async def retry_all(self, *, wait_ms: int, apart_ms: int) -> None:
        """Let all attempts fail: the first is made again after `wait_ms`, the others one after
        another."""
        at_ms = self._now_ms + wait_ms
        for nth, claim in enumerate(self._in_flight):
            await self.bench.retry(claim, at_ms=at_ms + nth * apart_ms, now_ms=self._tick())
        self._in_flight.clear()

    def pass_by(self, wait_ms: int) -> None:
        self._now_ms += wait_ms

    async def claim(self) -> list[Claim]:
        claims = await self.bench.claim(now_ms=self._tick())
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

    async def round(self) -> Counter[str]:
        """Let all attempts end and a second pass, and hand out what may go: how much of each
        queue, and of what has none."""
        await self.end(len(self._in_flight))
        self.pass_by(SECOND)
        while await self.claim():
            pass
        return Counter(claim.message.queue or "" for claim in self._in_flight)

    async def rounds(self) -> list[Counter[str]]:
        """Round after round, none of which lets more go than there are permits."""
        rounds = [await self.round() for _ in range(ROUNDS)]
        assert {served.total() for served in rounds} == {PERMITS}
        return rounds


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


async def _fill_queues(busy: Busy, flow: Flow, names: str, *, parallelism: int) -> None:
    """Let queues have many messages of a key each; `names` has a letter for each queue."""
    for name in names:
        await busy.bench.store.put_queue(
            "acme", name, parallelism=parallelism, paused=None, now_ms=T0
        )
        await busy.add(*[a_draft(queue=name, flow=flow) for _ in range(ROUNDS * PERMITS)])


def _shared(rounds: Sequence[Counter[str]], names: str, *, within: int) -> Counter[str]:
    """Who was served how often.  Each was so `within` some rounds, over and over, and none
    more than another by what that many rounds allow."""
    for at in range(ROUNDS - within + 1):
        assert set(names) <= set(sum(rounds[at : at + within], Counter[str]())), rounds
    served = sum(rounds, Counter[str]())
    shares = [served[name] for name in names]
    assert max(shares) - min(shares) <= within * PERMITS // 2, served
    return served


@pytest.fixture
async def keyed(open_store: Open) -> AsyncIterator[Busy]:
    """Nothing is scarce but the permits of a key."""
    async with open_store() as store:
        yield Busy(Bench(store))


@pytest.mark.parametrize(
    ("names", "parallelism"),
    [("ab", PERMITS - 1), ("ab", 2 * PERMITS), ("abc", 1), ("abc", 2), ("abc", 2 * PERMITS)],
)
@pytest.mark.parametrize("limits", LIMITS)
async def test_queues_that_have_many_for_a_key_share_its_permits(
    keyed: Busy, limits: str, names: str, parallelism: int
) -> None:
    await _fill_queues(keyed, LIMITS[limits], names, parallelism=parallelism)

    _shared(await keyed.rounds(), names, within=len(names))


@pytest.mark.parametrize("limits", LIMITS)
async def test_queues_share_a_key_where_no_more_lanes_can_be_remembered(
    keyed: Busy, limits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that wait for a host, which is no reason for these to lose their turns."""
    monkeypatch.setattr(shut, "SHUT_MAX", 0)
    await _fill_queues(keyed, LIMITS[limits], "ab", parallelism=2 * PERMITS)

    _shared(await keyed.rounds(), "ab", within=2)


@pytest.mark.parametrize("names", ["ab", "abc"])
@pytest.mark.parametrize("limits", LIMITS)
async def test_queues_that_have_many_for_a_key_share_its_permits_with_what_has_no_queue(
    keyed: Busy, limits: str, names: str
) -> None:
    flow = LIMITS[limits]
    await _fill_queues(keyed, flow, names, parallelism=2 * PERMITS)
    await keyed.add(*[a_draft(flow=flow) for _ in range(ROUNDS * PERMITS)])

    rounds = await keyed.rounds()

    served = _shared(rounds, names, within=2 * len(names))
    assert abs(2 * served[""] - served.total()) <= 2 * PERMITS, served


@pytest.mark.parametrize("parallelism", [1, 2 * PERMITS])
@pytest.mark.parametrize("limits", LIMITS)
async def test_queues_share_what_a_few_messages_of_their_key_without_a_queue_leave(
    keyed: Busy, limits: str, parallelism: int
) -> None:
    """One of these comes in each round."""
    flow, names = LIMITS[limits], "abcd"
    await _fill_queues(keyed, flow, names, parallelism=parallelism)

    rounds = []
    for _ in range(ROUNDS):
        await keyed.add(a_draft(flow=flow))
        rounds.append(await keyed.round())

    served = _shared(rounds, names, within=len(names))
    assert served[""] >= ROUNDS - 2, served


@pytest.mark.parametrize(("crowd", "lonely"), ["ab", "ba"])
@pytest.mark.parametrize("limits", LIMITS)
async def test_a_queue_keeps_its_turn_at_a_key_while_more_is_added_to_it(
    keyed: Busy, limits: str, crowd: str, lonely: str
) -> None:
    flow = LIMITS[limits]
    await _fill_queues(keyed, flow, crowd, parallelism=2 * PERMITS)
    await keyed.round()

    served: Counter[str] = Counter()
    for _ in range(2):
        for _ in range(2):
            await keyed.add(a_draft(queue=lonely, flow=flow))
            assert await keyed.claim() == []
        served += await keyed.round()

    assert served[lonely], served


@pytest.mark.parametrize(("crowd", "retrying"), ["ab", "ba"])
@pytest.mark.parametrize("limits", LIMITS)
async def test_a_queue_keeps_its_turn_at_a_key_while_retries_in_it_fall_due(
    keyed: Busy, limits: str, crowd: str, retrying: str
) -> None:
    """One of them after each round."""
    flow = LIMITS[limits]
    await _fill_queues(keyed, flow, retrying, parallelism=2 * PERMITS)
    await keyed.round()
    await keyed.retry_all(wait_ms=SECOND + SECOND // 4, apart_ms=SECOND + SECOND // 2)
    await _fill_queues(keyed, flow, crowd, parallelism=2 * PERMITS)

    rounds = []
    for _ in range(PERMITS + 1):
        rounds.append(await keyed.round())
        keyed.pass_by(SECOND // 2)
        assert await keyed.claim() == []

    for first, second in pairwise(rounds):
        assert set(first + second) == {crowd, retrying}, rounds
