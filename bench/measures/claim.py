"""How long it takes to claim a hundred messages of a PostgreSQL with a backlog, over one without.

Half of what waits is blocked, and half is not due (`bench.backlog`).  Measured is the claim of a
store that was there before the backlog: first with the plans, and the planner's statistics, of
that time, and then with fresh ones.  Both databases are of one server, and are asked in turn.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median

from msgspec.structs import replace

from bench import backlog, figures
from bench.figures import Bar, Figure
from bench.loader import BODY
from bench.plan import Plan
from bench.postgres import connected, postgres
from bench.preload import NOBODY, model_of
from waypost.domain.attempt import Delivered, Outcome
from waypost.domain.ids import message_id
from waypost.domain.places import Places, Sign
from waypost.store.postgres.store import PostgresStore, open_postgres
from waypost.store.protocol import Draft, Retention, give_back_place

RATIO_MAX = 1.5
COUNT = 100
HOSTS = 10
WARM = 10
"""Claims after which PostgreSQL keeps its plans."""

DONE = Outcome(status=200)
FOREVER = Retention(log_ms=1 << 40, dead_letter_ms=1 << 40)

_STEADY = ("message", "body", "delivery", "hold", "lane", "queue", "flow_key")

_entropy = random.Random(0).getrandbits


async def measure(plan: Plan) -> list[Figure]:
    with postgres(plan.directory) as server:
        async with (
            server.database() as empty,
            server.database() as full,
            _opened(empty) as alone,
            _opened(full) as beside,
        ):
            for url, store in ((empty, alone), (full, beside)):
                await _prepare(url, store)
            await backlog.load(full, count=plan.waiting)
            await server.rest()
            old = await _compare(plan, alone, beside, statistics="old")
            async with connected(full) as db:
                await db.execute("ANALYZE")
            return old + await _compare(plan, alone, beside, statistics="fresh")


async def _prepare(url: str, store: PostgresStore) -> None:
    """Make statistics, and plans, of a time in which nothing waits for long; statistics stay as
    they are from then on."""
    while (await store.prune(retention=FOREVER, now_ms=_now_ms())).more:
        pass
    await _add(store)
    async with connected(url) as db:
        await db.execute("ANALYZE")
        for table in _STEADY:
            await db.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    await _claim_ms(store)
    await _warm(store)


async def _warm(store: PostgresStore) -> None:
    for _ in range(WARM):
        await _add(store)
        await _claim_ms(store)


async def _compare(
    plan: Plan, alone: PostgresStore, beside: PostgresStore, *, statistics: str
) -> list[Figure]:
    """Claim from both by turns."""
    samples: dict[PostgresStore, list[float]] = {alone: [], beside: []}
    for store in samples:
        await _warm(store)
    for _ in range(plan.pairs):
        took_ms: dict[PostgresStore, list[float]] = {alone: [], beside: []}
        for number in range(plan.claims):
            for store in reversed(took_ms) if number % 2 else took_ms:
                await _add(store)
                took_ms[store].append(await _claim_ms(store))
        for store, each in took_ms.items():
            samples[store].append(median(each))
    ratios = [much / none for none, much in zip(samples[alone], samples[beside], strict=True)]
    bar = Bar(at_most=RATIO_MAX)
    return [
        Figure(name=f"claim of {COUNT}", samples=samples[alone], show=figures.ms),
        Figure(
            name=f"  beside {plan.waiting:,}, {statistics} statistics",
            samples=samples[beside],
            show=figures.ms,
        ),
        Figure(name="    over that without", samples=ratios, show=figures.ratio, bar=bar),
    ]


async def _add(store: PostgresStore) -> None:
    """Add messages that are due, and wait to be claimed."""
    now_ms = _now_ms()
    drafts = [
        Draft(
            message=replace(
                model_of("http://host.bench/", created_ms=now_ms),
                id=message_id(now_ms, _entropy(80)),
                not_before_ms=now_ms,
            ),
            body=BODY.encode(),
            host=backlog.host(n % HOSTS),
        )
        for n in range(COUNT)
    ]
    await store.add(drafts, births=NOBODY, now_ms=now_ms)


async def _claim_ms(store: PostgresStore) -> float:
    """How long it takes to claim what was added; then it is delivered."""
    places = Places(count_max=4 * COUNT, host_count_max=COUNT, bytes_max=1 << 30)
    now_ms = _now_ms()
    began_s = time.monotonic()
    claimed = await store.claim(count_max=COUNT, places=places, now_ms=now_ms)
    took_s = time.monotonic() - began_s
    if len(claimed.claims) != COUNT:
        raise RuntimeError(f"{len(claimed.claims)} were claimed of {COUNT}")
    for claim in claimed.claims:
        give_back_place(places, claim, Sign.WELL)
    settles = [
        store.settle(claim, Delivered(), DONE, births=NOBODY, now_ms=_now_ms())
        for claim in claimed.claims
    ]
    await asyncio.gather(*settles)
    return took_s * 1000


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[PostgresStore]:
    store = await open_postgres(url)
    try:
        yield store
    finally:
        await store.close()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
