"""A host that was down comes back to everything that waited for it, one at a time first (D21).

An assembled server, a clock that is set and a sender that stands for the
network: what is under way is answered in rounds, so that what a receiver sees
is exact.  The last test is a real receiver, and says what holds there.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from msgspec import structs

from tests.store.bench import Bench
from tests.support.application import SECOND, SETTINGS, T0, SettableClock, serving, until
from tests.support.factory import DOWN, OK, a_draft
from tests.support.program import free_port
from waypost import assembly
from waypost.domain.attempt import Outcome
from waypost.domain.destination import origin_of
from waypost.store.protocol import Draft
from waypost.wire.protocol import Request

BACK = "https://back.example"
HOST_MAX = SETTINGS.in_flight_host_max
RAMP = [1, 2, 4, 8, 16, 32, 64]
"""Under way at the host in each round: every answer makes room for itself and for one more."""

COUNT = 50_000
STILL_TURNS = 60
"""Turns of the event loop without a new request, after which none comes: a claim, a commit
and a settle of a store in memory take a few."""


class Rounds:
    """A sender whose requests to `BACK` hang until the next round; others are answered at once."""

    def __init__(self) -> None:
        self.up = False
        self.answered: Counter[str] = Counter()
        self.elsewhere: Counter[str] = Counter()
        self.peak = 0
        self._waiting: list[asyncio.Future[Outcome]] = []
        self._begun = 0

    async def send(self, request: Request) -> Outcome:
        self._begun += 1
        key = dict(request.header)["Upstash-Message-Id"]
        if not request.url.startswith(BACK):
            self.elsewhere[origin_of(request.url).host] += 1
            return OK
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self.peak = max(self.peak, len(self._waiting))
        outcome = await answer
        self.answered[key] += outcome is OK
        return outcome

    async def still(self) -> int:
        """Wait until nothing more begins; how much is under way at the host."""
        turns = begun = 0
        while turns < STILL_TURNS:
            await asyncio.sleep(0)
            turns = turns + 1 if begun == self._begun else 0
            begun = self._begun
        return len(self._waiting)

    async def round(self) -> int:
        """Answer all that is under way, once nothing more begins; how much it was."""
        count = await self.still()
        answered, self._waiting = self._waiting, []
        for answer in answered:
            answer.set_result(OK if self.up else DOWN)
        return count


class Rig:
    """A server with a returning host."""

    def __init__(self, server: assembly.Server, sender: Rounds, clock: SettableClock) -> None:
        self.sender = sender
        self.clock = clock
        self._bench = Bench(server.store)
        self._store = server.store

    async def add(self, drafts: list[Draft]) -> None:
        for begin in range(0, len(drafts), 1_000):
            part = drafts[begin : begin + 1_000]
            await self._bench.add_waiting(*part, now_ms=self.clock.now_ms())

    def left(self) -> int:
        """How many have not come to an end; the store's own counts may be some seconds old."""
        return self._count("delivery")

    def dead(self) -> int:
        return self._count("dead_letter")

    def _count(self, table: str) -> int:
        [(count,)] = self._store.writer.db.execute(f"SELECT count(*) FROM {table}")
        return int(count)

    async def be_down(self, *, rounds: int) -> list[int]:
        """Let the host refuse what comes, for so many rounds; what was under way in each."""
        self.sender.up = False
        return [await self.sender.round() for _ in range(rounds)]


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    sender, clock = Rounds(), SettableClock()
    async with assembly.running(SETTINGS, dev=True, clock=clock, sender=sender) as server:
        clock.moved = lambda: server.store.writer.on_waiting(0)
        yield Rig(server, sender, clock)
        sender.up = True
        while await sender.round():  # or the drain would wait for them
            pass


def to_back(count: int) -> list[Draft]:
    return [a_draft(url=f"{BACK}/{n}", at_ms=T0) for n in range(count)]


async def test_a_host_that_returns_to_fifty_thousand_messages_is_ramped_up() -> None:
    """D21: 1, 2, 4, 8 … and never more than a host may have; each message comes once."""
    async with rig() as it:
        await it.add(to_back(COUNT))
        down = await it.be_down(rounds=100)
        assert down == [down[0]] + [1] * 99
        assert down[0] <= HOST_MAX
        assert it.left() == COUNT
        it.sender.peak = 0

        it.sender.up = True
        curve = []
        while count := await it.sender.round():
            curve.append(count)
        it.clock.advance(8 * SECOND)  # when those that failed first are tried again
        while count := await it.sender.round():
            curve.append(count)

        full = (COUNT - sum(RAMP)) // HOST_MAX
        assert curve[: len(RAMP)] == RAMP
        assert curve[len(RAMP) : full] == [HOST_MAX] * (full - len(RAMP))
        assert sum(curve) == COUNT
        assert it.sender.peak == HOST_MAX
        assert set(it.sender.answered.values()) == {1}
        assert len(it.sender.answered) == COUNT
        assert (it.left(), it.dead()) == (0, 0)


async def test_other_hosts_do_not_notice_a_host_that_is_down_or_comes_back() -> None:
    """D21: what is for them goes in the round in which it comes, however much waits for the one."""
    async with rig() as it:
        await it.add(to_back(5_000))
        await it.be_down(rounds=1)
        sent = 0
        for nth in range(30):
            it.sender.up = nth >= 10
            urls = [f"https://other{n}.example/" for n in range(20)]
            await it.add([a_draft(url=url, at_ms=T0) for url in urls])
            sent += 20
            await it.sender.still()

            assert it.sender.elsewhere.total() == sent, f"round {nth}"
            assert set(it.sender.elsewhere.values()) == {nth + 1}
            await it.sender.round()
        assert it.sender.answered.total() > 800


async def test_a_host_that_fails_on_its_way_back_begins_again_with_one() -> None:
    """D21."""
    async with rig() as it:
        await it.add(to_back(2_000))
        await it.be_down(rounds=2)
        it.sender.up = True
        assert [await it.sender.round() for _ in range(5)] == RAMP[:5]

        assert await it.be_down(rounds=3) == [32, 1, 1]
        it.sender.up = True
        assert [await it.sender.round() for _ in range(9)] == [*RAMP, 64, 64]


async def test_all_that_falls_due_again_at_one_moment_is_not_sent_at_one_moment() -> None:
    """D21: every message failed once, and their second tries are due together."""
    async with rig() as it:
        await it.add(to_back(500))
        while await it.sender.still():
            await it.be_down(rounds=1)
        it.clock.advance(60 * SECOND)

        it.sender.up = True
        curve = []
        while count := await it.sender.round():
            curve.append(count)

        assert curve[: len(RAMP)] == RAMP
        assert max(curve) == HOST_MAX
        assert sum(curve) == 500


class Door:
    """A real receiver that can be closed; `seen` has how many it had answered and how many were
    under way, at each request that came."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self._answered = 0
        self._under_way = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        self._under_way += 1
        self.seen.append((self._answered, self._under_way))
        for _ in range(200):  # as long as others need to come, if they may
            await asyncio.sleep(0)
        self._under_way -= 1
        self._answered += 1
        return web.Response()

    @asynccontextmanager
    async def open(self, port: int) -> AsyncIterator[None]:
        runner = web.ServerRunner(web.Server(self.handle), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            yield
        finally:
            await runner.cleanup()


async def test_a_real_receiver_that_returns_sees_them_come_slowly_first() -> None:
    """D21: never more at once than it has answered, and one; and then many."""
    count = 300
    port = free_port()
    door = Door()
    async with serving(structs.replace(SETTINGS, in_flight_host_max=32)) as server:
        ids = [await server.accepted(f"http://127.0.0.1:{port}/{n}") for n in range(count)]

        async def all_say(state: str) -> bool | None:
            reply = await server.ask("GET", f"/v2/events?state={state}&count=1000")
            return len({entry["messageId"] for entry in reply.json["events"]}) == count or None

        await until(lambda: all_say("RETRY"))
        async with door.open(port):
            server.clock.advance(8 * SECOND)
            await until(lambda: all_say("DELIVERED"))

    assert len(door.seen) == count == len(ids)
    assert door.seen[0] == (0, 1)
    assert [one for one in door.seen if one[1] > min(1 + one[0], 32)] == []
    assert max(under_way for _, under_way in door.seen) >= 16
