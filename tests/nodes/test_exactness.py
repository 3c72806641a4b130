"""Four nodes on one database, which publish and deliver at once: what holds on one node holds
for all of them together (D23, D26, D3)."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
from msgspec.structs import replace

from tests.store.bench import Bench
from tests.support.application import until
from tests.support.databases import Databases
from tests.support.factory import DAY, ERROR, HOUR, T0, a_callback, a_draft, a_schedule, some_places
from tests.support.postgres import SHIPPED
from waypost.domain.attempt import Delivered, GiveUp, TryAgain, Verdict
from waypost.domain.errors import StaleClaim, StoreUnavailable
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


class Unrest(Cluster):
    """A cluster in which messages are cancelled and claims given back, queues and keys are
    paused, and nodes go."""

    def __init__(self, nodes: list[PostgresStore], seed: int) -> None:
        super().__init__(nodes, seed)
        self.gone: set[Bench] = set()
        self.at: dict[Bench, Counter[str]] = defaultdict(Counter)

    async def _attempt(self, node: Bench, claim: Claim) -> None:
        message, flow = claim.message, claim.message.flow
        if flow is not None and node not in self.gone:
            self.at[node][flow.key] += 1
            under_way = sum(at[flow.key] for at in self.at.values())
            if flow.parallelism and under_way > flow.parallelism:
                self.faults.append(f"{under_way} under way of {flow.key}")
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        if flow is not None:
            self.at[node][flow.key] = max(0, self.at[node][flow.key] - 1)
        verdict: Verdict = Delivered()
        callbacks = []
        chance = self.random.random()
        if claim.retried < 2 and chance < 0.2:
            verdict = TryAgain(self.now_ms + self.random.randrange(20))
        elif chance < 0.3:
            verdict = GiveUp("no")
        elif message.queue is not None and chance < 0.7:
            callbacks = [a_callback(message)]
        try:
            if chance > 0.9:
                give_back_place(node.places, claim, Sign.NONE)
                await node.store.release([claim], now_ms=self.tick())
            else:
                await node.end(claim, verdict, ERROR, callbacks=callbacks, now_ms=self.tick())
        except (StaleClaim, StoreUnavailable):
            if node not in self.gone:
                self.faults.append(f"{message.id} was lost on a node that lives")

    async def deliver(self, node: Bench) -> None:
        idle = 0
        while await self._goes_on(node):
            try:
                claims = await node.claim(self.random.choice((1, 5, 50)), now_ms=self.tick())
            except StoreUnavailable:
                assert node in self.gone, "a node that lives is away"
                return
            for claim in claims:
                self.begin(node, claim)
            idle = 0 if claims else idle + 1
            if not self.publishing:
                self.now_ms += 20
            assert idle < 3_000, "some messages never went"

    async def _goes_on(self, node: Bench) -> bool:
        if node in self.gone or self.publishing or self.attempts:
            return node not in self.gone
        pulse = await node.store.pulse(now_ms=self.now_ms)
        return pulse.waiting + pulse.claimed > 0

    async def meddle(self, node: Bench) -> None:
        """Cancel messages, and pause a queue and a key now and then."""
        while self.publishing:
            await asyncio.sleep(0)
            if self.accepted:
                message_id = self.random.choice(sorted(self.accepted))
                await node.store.cancel("acme", message_id, now_ms=self.tick())
            for paused in (True, False):
                await node.store.pause_queue("acme", "three", paused=paused, now_ms=self.tick())
                await node.store.change_flow_key(
                    "acme",
                    "narrow",
                    lambda key, paused=paused: key and replace(key, paused=paused),
                    now_ms=self.tick(),
                )

    async def lose(self, node: Bench, heir: Bench, *, by: str) -> None:
        """A node goes in the middle of what it does, and another takes over."""

        async def in_the_middle() -> bool | None:
            return len(self.accepted) >= 60 or None

        await until(in_the_middle)
        store, heirs = node.store, heir.store
        assert isinstance(store, PostgresStore)
        assert isinstance(heirs, PostgresStore)
        self.gone.add(node)
        if by == "leaving":
            await store.close()
        else:
            for task in store._life._tasks:
                task.cancel()
            ended = "UPDATE node SET until_ms = 1 WHERE id = $1"
            async with store._pool.acquire() as db:
                await db.execute(ended, store.writer.node)
        self.at[node].clear()
        await heirs._life._take_over(left_only=by == "leaving", now_ms=self.tick())
        if by == "freezing" and await node.claim(now_ms=self.tick()):
            self.faults.append("a node that was taken over has claimed")


async def test_limits_hold_and_everything_ends_once_whatever_happens(
    nodes: list[PostgresStore],
) -> None:
    cluster = Unrest(nodes, 0)
    benches = []
    for store in nodes:
        bench = Bench(store, some_places(count_max=50, host_count_max=20))
        bench.births = Births(bench.places, lambda claim, on=bench: cluster.begin(on, claim))
        benches.append(bench)
    for name, parallelism in QUEUES.items():
        await nodes[0].put_queue("acme", name, parallelism=parallelism, paused=None, now_ms=T0)
    stay, _, leaving, frozen = benches
    cluster.publishing = 2

    await asyncio.gather(
        *(cluster.publish(bench, 60) for bench in benches[:2]),
        *(cluster.deliver(bench) for bench in benches),
        cluster.meddle(stay),
        cluster.lose(leaving, stay, by="leaving"),
        cluster.lose(frozen, stay, by="freezing"),
    )
    while cluster.attempts:
        await asyncio.gather(*cluster.attempts)

    assert cluster.faults == []
    ends = Counter(
        entry.message.id
        for entry in await stay.log()
        if entry.state in (Logged.DELIVERED, Logged.FAILED, Logged.CANCELED)
    )
    assert set(ends.values()) == {1}
    assert cluster.accepted <= set(ends)
    async with nodes[0]._pool.acquire() as db:
        assert await db.fetchval("SELECT count(*) FROM hold") == 0
        assert await db.fetchval("SELECT count(*) FROM lane") == 0
    for bench in benches:
        assert bench.places.in_flight == 0


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
