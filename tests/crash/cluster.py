"""The home of four real nodes on one PostgreSQL: they are started, killed, frozen and asked here.

    publishers ──▶ a node in turn ──▶ PostgreSQL      each node has its name as its region,
                                                     so that a receiver sees who sent what
    receiver  ◀── whichever node claims

A node that is frozen (SIGSTOP) is taken out of the door, as a load balancer would; calls that
it has taken hang until it wakes.  What it has under way is not answered either, so that it
overlaps with what others send when its lease is over.
"""

import asyncio
import random
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
from msgspec import Struct

from tests.crash.harness import Killer, eventually
from tests.crash.limits import LimitedLoad
from tests.crash.load import Caller, Load, Receiver, dead_letters, gauges, now_s
from tests.support.databases import connected
from tests.support.history import Attempt, History, Kill
from tests.support.ledger import read_shared_ledger
from tests.support.postgres import Server
from tests.support.process import WAYPOST, Program
from waypost.domain.signing import SigningKeys
from waypost.services.access import fingerprint
from waypost.store.postgres.people import PeopleDatabase
from waypost.store.protocol import Tenant, Token

NODES = 4
LEASE_S = 2.0
PAUSE_S = 0.15
"""About how long each publisher rests after a message: all of this shares two cores."""

UNDER_WAY_S = 0.3
"""After so long whatever a dead node had asked of the database is done, and nobody has taken
over from it yet: it had renewed its lease within the last quarter of it."""

ACK_S_MAX = 20
DRAIN_S_MAX = 60
TAKEN_OVER_S_MAX = 20
DURABLE = {"recovery_init_sync_method": "syncfs"}
"""The settings of a server that dies: all that QUICK turns off is on."""


class Node(Program):
    """One process of `waypost serve`."""

    def __init__(
        self, name: str, url: str, *, token: str, place: Path, program: Sequence[str] = WAYPOST
    ) -> None:
        words = ["serve", "--port", "0", "--database", url, "--node-name", name, "--region", name]
        words += ["--lease-ms", f"{LEASE_S * 1000:.0f}", "--egress-allow", "127.0.0.0/8"]
        super().__init__(*program, *words, log=place / f"{name}.log", token=token)
        self.name = name
        self.frozen = False

    @property
    def open(self) -> bool:
        return self.running and bool(self.port) and not self.frozen


class Freeze(Struct):
    """A SIGSTOP that outlasted the lease, and what the node had claimed; at `over_s` it was
    awake, and had sent what it was about to send; how many settles of it came too late."""

    node: str
    at_s: float
    over_s: float
    claimed: frozenset[str]
    stale: int

    def has(self, attempt: Attempt) -> bool:
        """Whether it was under way, from that node."""
        return (
            attempt.node == self.node
            and attempt.message_id in self.claimed
            and attempt.begin_s <= self.over_s
            and (attempt.end_s is None or attempt.end_s >= self.at_s)
        )


class Cluster:
    """The nodes, their load and their receiver.  As a door it leads to any of those that serve."""

    def __init__(self, url: str, nodes: Sequence[Node], history: History, *, seed: int) -> None:
        self.url = url
        self.nodes = nodes
        self.token = nodes[0].token
        self.history = history
        self.rng = random.Random(seed)
        self.receiver = Receiver(history, random.Random(self.rng.random()))
        self.load = Load(
            self, self.receiver, history, random.Random(self.rng.random()), pause_s=PAUSE_S
        )
        self.limited = LimitedLoad(self, self.receiver, history)
        self.freezes: list[Freeze] = []
        self.left: list[str] = []
        self._door = random.Random(self.rng.random())
        self._starting: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """That of any node that serves."""
        there = [node.port for node in self.nodes if node.open]
        return self._door.choice(there) if there else 0

    @property
    def refused(self) -> list[tuple[int, Any]]:
        return self.load.refused + self.limited.refused

    def start_load(self) -> None:
        self.load.serving(True)
        self.load.start()
        self.limited.start()

    async def acks(self, count: int, *, within_s: float = ACK_S_MAX) -> bool:
        """Wait until so many more messages are acknowledged and so many more attempts are made;
        whether they were."""
        acked = self._acked() + count
        attempts = len(self.history.attempts) + count
        return await eventually(
            lambda: self._acked() >= acked and len(self.history.attempts) >= attempts,
            within_s=within_s,
        )

    async def an_ack(self) -> None:
        """Wait for the moment of the next acknowledgement."""
        acked = asyncio.Event()
        self.load.on_acked = acked.set
        async with asyncio.timeout(ACK_S_MAX):
            await acked.wait()

    async def ask(self, look: Callable[[asyncpg.Connection], Awaitable[Any]]) -> Any:
        """Look into the database."""
        async with connected(self.url) as db:
            return await look(db)

    async def kill(self, node: Node, aim: str) -> None:
        """Kill a node with -9, at an aimed moment.  A node that does not run is killed while it
        starts."""
        if not node.running:
            await node.spawn()
            aim = "random"
        killer = Killer(node, self.rng)
        self.receiver.on_begin, self.receiver.on_answered = killer.attempt, killer.outcome
        self.load.on_written, self.load.on_acked = killer.publish, killer.ack
        await killer.kill(aim)
        await node.ended()
        await asyncio.sleep(UNDER_WAY_S)
        claimed = await self.ask(lambda db: _claimed_by(db, node))
        self.history.kills.append(Kill(killer.at_s, now_s(), claimed))

    def start_again(self, node: Node, *, after_s: float) -> None:
        """Start a node in a while."""

        async def start() -> None:
            await asyncio.sleep(after_s)
            await node.start()

        self._starting.add(asyncio.create_task(start()))

    async def any_node(self) -> Node:
        """One that serves, of which no more than one beside it does not."""

        def there() -> list[Node]:
            return [node for node in self.nodes if node.open]

        assert await eventually(lambda: len(there()) >= len(self.nodes) - 1, within_s=60)
        return self.rng.choice(there())

    async def freeze(
        self, node: Node, *, meanwhile: Callable[[], Awaitable[None]] | None = None
    ) -> Freeze:
        """Stop a node until others have taken over what it had claimed, and `meanwhile` is over;
        then it goes on."""
        number = await self.ask(lambda db: _number_of(db, node))
        self.receiver.unanswered.add(node.name)
        await eventually(lambda: self.under_way(node), within_s=0.5, pause_s=0.005)
        before = await self.stale(node)
        node.frozen = True
        at_s = now_s()
        node.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(UNDER_WAY_S)
            claimed = await self.ask(lambda db: _claimed_by(db, node))

            async def is_taken_over() -> bool:
                gone: bool = await self.ask(
                    lambda db: db.fetchval(
                        "SELECT NOT EXISTS (SELECT FROM node WHERE id = $1)", number
                    )
                )
                return gone

            over = await eventually(is_taken_over, within_s=TAKEN_OVER_S_MAX, pause_s=0.1)
            assert over, f"{number} is not taken over: {await self.ask(_who_waits)}"
            await asyncio.sleep(max(0, at_s + 2 * LEASE_S - now_s()))
            if meanwhile is not None:
                await meanwhile()
        finally:
            node.signal(signal.SIGCONT)
            self.receiver.unanswered.discard(node.name)
            node.frozen = False
        await self.stale(node)
        over_s = now_s()
        self.history.kills.append(Kill(at_s, over_s, claimed))
        freeze = Freeze(node.name, at_s, over_s, claimed, stale=0)
        self.freezes.append(freeze)
        under_way = {each.message_id for each in self.attempts() if freeze.has(each)}

        async def are_settled() -> bool:
            freeze.stale = await self.stale(node) - before
            return freeze.stale >= len(under_way)

        await eventually(are_settled, within_s=2, pause_s=0.1)
        return freeze

    async def still(self) -> None:
        """Let publishers end, and those that are being started again serve, or fail to."""
        for started in await asyncio.gather(*self._starting, return_exceptions=True):
            if started is not None:
                self.left.append(f"a node did not start again: {started}")
        await asyncio.gather(self.load.stop(), self.limited.stop())

    def under_way(self, node: Node) -> list[Attempt]:
        """The attempts of a node that have not ended."""
        return [
            each for each in self.attempts()[-200:] if each.node == node.name and each.end_s is None
        ]

    def attempts(self) -> list[Attempt]:
        """Those that are known to have begun, and when, those of callbacks too: in that order."""
        found = [*self.history.attempts, *(each.attempt for each in self.history.callbacks)]
        return sorted((each for each in found if not each.late), key=lambda each: each.begin_s)

    async def stale(self, node: Node) -> int:
        """How many settles of a node came after its claim was lost."""
        caller = Caller(node)
        try:
            return int((await gauges(caller))["waypost_settles_stale_total"])
        finally:
            caller.close()

    async def end(self, *, drain_s_max: float = DRAIN_S_MAX) -> None:
        """Let the load end, and wait until nothing waits; the history holds what became of all.
        Every node ends at SIGTERM."""
        self.receiver.faulty = False
        await self.still()

        async def idle() -> bool:
            return not await self.ask(lambda db: db.fetchval("SELECT count(*) FROM delivery"))

        if not await eventually(idle, within_s=drain_s_max, pause_s=0.1):
            self.left.append(f"not drained in {drain_s_max} s")
        caller = Caller(self)
        self.history.dead = await dead_letters(caller)
        caller.close()
        running = [node for node in self.nodes if node.running]
        codes = await asyncio.gather(*(node.stop() for node in running))
        for node, code in zip(running, codes, strict=True):
            if code:
                self.left.append(f"{node.name}: SIGTERM ended in {code}: {node.said()[-2_000:]}")
            if "Traceback" in node.said():
                self.left.append(f"{node.name} had a fault: {node.said()[-4_000:]}")
        self.left += await self.ask(_left_over)
        self.history.ledger = await self.ask(read_shared_ledger)
        self.limited.active_ms = await self.ask(_active_ms)

    def _acked(self) -> int:
        return sum(1 for each in self.history.submits.values() if each.ids)


def cut_short(cluster: Cluster) -> list[str]:
    """Let what frozen nodes had under way count as ended while their leases went on; what was
    wrong with it.

    Attempts of the frozen may overlap with what others send later.  They are then attempts
    of messages that had begun, and each of them was in flight at the freeze.
    """
    faults = []
    for freeze in cluster.freezes:
        for attempt in cluster.attempts():
            if not freeze.has(attempt):
                continue
            later = [
                each
                for each in cluster.attempts()
                if each.message_id == attempt.message_id
                and each is not attempt
                and each.begin_s >= attempt.begin_s
            ]
            for each in later:
                if each.begin_s < freeze.at_s + LEASE_S / 2:
                    faults.append(f"{attempt.key} was sent again before the lease was over")
            # It was renewed within the last quarter of it.
            end_s = max(attempt.begin_s, freeze.at_s + LEASE_S / 2)
            attempt.end_s = end_s if attempt.end_s is None else min(end_s, attempt.end_s)
    return faults


@asynccontextmanager
async def cluster(
    postgres: Server,
    place: Path,
    *,
    seed: int,
    name: str = "waypost",
    count: int = NODES,
    url: str | None = None,
    program: Sequence[str] = WAYPOST,
) -> AsyncIterator[Cluster]:
    """Nodes that serve on a new database, with a receiver, and no load yet."""
    async with connected(postgres.url("postgres")) as db:
        await db.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await db.execute(f"CREATE DATABASE {name}")
    token = await _token(postgres.url(name))
    url = url or postgres.url(name)
    nodes = [
        Node(f"node-{nth}", url, token=token, place=place, program=program) for nth in range(count)
    ]
    made = Cluster(postgres.url(name), nodes, History(), seed=seed)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(made.receiver.listening())
        for node in nodes:
            stack.push_async_callback(_gone, node)
        stack.push_async_callback(made.still)
        await asyncio.gather(*(node.start() for node in nodes))
        yield made


async def _gone(node: Node) -> None:
    if node.running:
        await node.kill()


async def _token(url: str) -> str:
    """A token of a new tenant, as the command line makes it."""
    people = PeopleDatabase(url)
    token = secrets.token_hex(16)
    keys = SigningKeys("sig_current", "sig_next")
    await people.add_tenant(Tenant(id="acme", created_ms=0, keys=keys))
    await people.add_token(
        Token(id="t1", tenant="acme", sha256=fingerprint(token), read_only=False, created_ms=0)
    )
    return token


async def _number_of(db: asyncpg.Connection, node: Node) -> int | None:
    """The number of a node's present life."""
    number: int | None = await db.fetchval("SELECT max(id) FROM node WHERE name = $1", node.name)
    return number


async def _claimed_by(db: asyncpg.Connection, node: Node) -> frozenset[str]:
    rows = await db.fetch(
        "SELECT message_id FROM delivery WHERE node IN (SELECT id FROM node WHERE name = $1)",
        node.name,
    )
    return frozenset(row[0] for row in rows)


async def claimed(db: asyncpg.Connection) -> frozenset[str]:
    """All messages that are claimed."""
    rows = await db.fetch("SELECT message_id FROM delivery WHERE token IS NOT NULL")
    return frozenset(row[0] for row in rows)


async def _who_waits(db: asyncpg.Connection) -> str:
    """What the sessions are doing, and whom each waits for."""
    rows = await db.fetch(
        "SELECT pid, pg_blocking_pids(pid) AS waits_for, state, wait_event, now() - xact_start AS"
        " since, query FROM pg_stat_activity WHERE xact_start IS NOT NULL ORDER BY xact_start"
    )
    return "\n".join(str(tuple(row)) for row in rows)


async def _left_over(db: asyncpg.Connection) -> list[str]:
    """Rows that nobody should have left when nothing waits (I9)."""
    return [
        f"{count} rows in {table}"
        for table in ("delivery", "hold", "lane")
        if (count := await db.fetchval(f"SELECT count(*) FROM {table}"))
    ]


async def _active_ms(db: asyncpg.Connection) -> list[tuple[str, int]]:
    rows = await db.fetch(
        "SELECT message_id, time_ms FROM event WHERE state = 'ACTIVE' ORDER BY time_ms"
    )
    return [(row[0], row[1]) for row in rows]
