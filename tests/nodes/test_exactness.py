"""Four nodes on one database, which publish and deliver at once: what holds on one node holds
for all of them together (D23, D26, D3)."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from tests.store.bench import Bench
from tests.support.databases import Databases
from tests.support.factory import DAY, ERROR, HOUR, T0, a_draft, a_schedule, some_places
from tests.support.postgres import SHIPPED
from waypost.domain.attempt import Delivered, GiveUp, TryAgain
from waypost.domain.flow import Flow
from waypost.domain.message import Logged
from waypost.domain.places import Sign
from waypost.store.postgres.store import PostgresStore, open_postgres
from waypost.store.protocol import Births, Claim, LogFilter, LogView, give_back_place

NODES = 4
PERIOD = 1_000
KEYS = {
    "narrow": Flow("narrow", parallelism=2),
    "slow": Flow("slow", rate=5, period_ms=PERIOD),
    "both": Flow("both", parallelism=3, rate=20, period_ms=PERIOD),
}
QUEUES = {"one": 1, "three": 3, "keyed": 1}


@pytest.fixture
async def nodes(databases: Callable[[str], Databases]) -> AsyncIterator[list[PostgresStore]]:
    with databases(SHIPPED).lending() as lend:
        url = await lend()
        async with AsyncExitStack() as opened:
            stores = []
            for n in range(NODES):
                store = await open_postgres(url, now_ms=T0, name=f"node {n}")
                opened.push_async_callback(store.close)
                stores.append(store)
            yield stores


class Cluster:
    """Drives the nodes, and looks on as their receivers would."""

    def __init__(self, nodes: list[PostgresStore], seed: int) -> None:
        self.random = random.Random(seed)
        self.nodes = nodes
        self.now_ms = T0
        self.under_way: Counter[str] = Counter()
        self.faults: list[str] = []
        self.published: dict[str, list[str]] = defaultdict(list)
        self.begun: dict[str, list[str]] = defaultdict(list)
        self.ended: set[str] = set()
        self.accepted: set[str] = set()
        self.firsts: dict[str, set[str]] = defaultdict(set)
        self.order = {queue: asyncio.Lock() for queue in QUEUES}
        self.attempts: set[asyncio.Task[None]] = set()
        self.publishing = NODES

    def tick(self) -> int:
        self.now_ms += self.random.choice((0, 0, 1, 5))
        return self.now_ms

    async def publish(self, node: Bench, count: int) -> None:
        for n in range(count):
            kind = self.random.choice(["plain", *KEYS, *QUEUES, "dedup"])
            if kind in QUEUES:
                async with self.order[kind]:
                    await self._publish(node, kind, n)
            else:
                await self._publish(node, kind, n)
        self.publishing -= 1

    async def _publish(self, node: Bench, kind: str, n: int) -> None:
        facts = {"queue": kind} if kind in QUEUES else {}
        flow = KEYS["both"] if kind == "keyed" else KEYS.get(kind)
        dedup_key = f"id:{n % 7}" if kind == "dedup" else None
        now_ms = self.tick()
        host = f"https://h{self.random.randrange(3)}.example/"
        draft = a_draft(
            at_ms=now_ms, url=host, flow=flow, dedup_key=dedup_key, window_ms=DAY, **facts
        )
        [accepted] = await node.add(draft, now_ms=now_ms)
        if dedup_key is not None:
            self.firsts[dedup_key].add(accepted.message_id)
        if not accepted.deduplicated:
            self.accepted.add(accepted.message_id)
            self.published[kind].append(accepted.message_id)

    def begin(self, node: Bench, claim: Claim) -> None:
        task = asyncio.ensure_future(self._attempt(node, claim))
        self.attempts.add(task)
        task.add_done_callback(self.attempts.discard)

    async def _attempt(self, node: Bench, claim: Claim) -> None:
        message = claim.message
        held = [message.queue or ""] + ([message.flow.key] if message.flow else [])
        for name in filter(None, held):
            self.under_way[name] += 1
            flow = KEYS.get(name)
            most = QUEUES.get(name) or (flow and flow.parallelism)
            if most and self.under_way[name] > most:
                self.faults.append(f"{self.under_way[name]} under way of {name}")
        if not claim.retried:
            self.begun[message.queue or ""].append(message.id)
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        for name in filter(None, held):
            self.under_way[name] -= 1
        verdict = Delivered()
        if claim.retried < 2 and self.random.random() < 0.3:
            verdict = TryAgain(self.now_ms + self.random.randrange(20))
        elif self.random.random() < 0.1:
            verdict = GiveUp("no")
        if not isinstance(verdict, TryAgain):
            if message.id in self.ended:
                self.faults.append(f"{message.id} ended twice")
            self.ended.add(message.id)
        await node.end(claim, verdict, ERROR, now_ms=self.tick())

    async def deliver(self, node: Bench) -> None:
        idle = 0
        while self.publishing or len(self.ended) < len(self.accepted):
            claims = await node.claim(self.random.choice((1, 5, 50)), now_ms=self.tick())
            for claim in claims:
                self.begin(node, claim)
            idle = 0 if claims else idle + 1
            if not self.publishing:
                self.now_ms += 20  # nothing but time is waited for
            assert idle < 3_000, f"{len(self.accepted - self.ended)} messages never went"


@pytest.mark.parametrize("seed", range(2))
async def test_limits_order_and_ids_hold_across_nodes(
    nodes: list[PostgresStore], seed: int
) -> None:
    cluster = Cluster(nodes, seed)
    benches = []
    for store in nodes:
        bench = Bench(store, some_places(count_max=50, host_count_max=20))
        bench.births = Births(bench.places, lambda claim, on=bench: cluster.begin(on, claim))
        benches.append(bench)
    for name, parallelism in QUEUES.items():
        await nodes[0].put_queue("acme", name, parallelism=parallelism, paused=None, now_ms=T0)

    await asyncio.gather(
        *(cluster.publish(bench, 60) for bench in benches),
        *(cluster.deliver(bench) for bench in benches),
    )
    while cluster.attempts:
        await asyncio.gather(*cluster.attempts)

    assert cluster.faults == []
    assert cluster.ended == cluster.accepted
    assert all(len(ids) == 1 for ids in cluster.firsts.values())
    for queue, parallelism in QUEUES.items():
        if parallelism == 1:
            assert cluster.begun[queue] == cluster.published[queue]
    for key in ("slow", "both"):
        assert most_in_a_window(await began_ms(nodes[0], key)) <= (KEYS[key].rate or 0)
    for bench in benches:
        assert bench.places.in_flight == 0
    assert (await nodes[0].pulse(now_ms=cluster.now_ms)).claimed == 0


async def began_ms(store: PostgresStore, key: str) -> list[int]:
    """When the attempts of a key were logged ACTIVE."""
    page = await store.log(
        "acme",
        where=LogFilter(states=[Logged.ACTIVE]),
        view=LogView(latest_first=False),
        cursor=None,
        count_max=100_000,
        bytes_max=1 << 40,
    )
    return [
        entry.time_ms
        for entry in page.entries
        if entry.message.flow is not None and entry.message.flow.key == key
    ]


def most_in_a_window(times_ms: list[int]) -> int:
    """A window begins with the first attempt after the one before is over (D26)."""
    most = count = 0
    until_ms = 0
    for at_ms in sorted(times_ms):
        if at_ms >= until_ms:
            count, until_ms = 0, at_ms + PERIOD
        count += 1
        most = max(most, count)
    return most


async def test_a_fire_time_makes_one_run_however_many_nodes_fire(
    nodes: list[PostgresStore],
) -> None:
    schedule = a_schedule(next_ms=T0 + HOUR)
    await nodes[0].change_schedule("acme", "s", lambda _: schedule, body=b"")
    fired = 0
    for run in range(10):
        found = [
            (await node.due_schedules(now_ms=T0 + DAY, count_max=10, bytes_max=1 << 30)).due
            for node in nodes
        ]
        after = a_schedule(next_ms=T0 + HOUR + run + 1)
        births = [Births(some_places(count_max=0), lambda claim: None) for _ in nodes]
        answers = await asyncio.gather(
            *(
                node.fire(due[0][0], after, [a_draft()], births=births[n], now_ms=T0 + DAY)
                for n, (node, due) in enumerate(zip(nodes, found, strict=True))
            )
        )
        fired += sum(answers)

    assert fired == 10
    assert (await nodes[0].pulse(now_ms=T0)).waiting == 10


async def test_a_lane_that_one_node_has_no_places_for_is_open_to_the_others(
    nodes: list[PostgresStore],
) -> None:
    full, free = Bench(nodes[0], some_places(host_count_max=1)), Bench(nodes[1])
    await free.add_waiting(*[a_draft() for _ in range(3)])

    assert len(await full.claim()) == 1
    assert await full.claim() == []
    claims = await free.claim()
    assert len(claims) == 2
    for claim in claims:
        give_back_place(free.places, claim, Sign.WELL)
