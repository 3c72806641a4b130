"""The home of claims: whose turn it is, and what is handed out.

A claim goes round the lanes that are ready and reads each from its head; see
docs/decisions/0001-lanes-take-turns.md.  It locks what it reads from, queues and keys
too, so that no other node admits from them meanwhile, and reads in a few statements
whatever it may hand out.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import zip_longest

import msgspec

from waypost.domain.lanes import HOST, Place, key_of, queue_of
from waypost.domain.message import Logged, Message
from waypost.domain.places import BODIES, NODE, SUSPECT_AFTER
from waypost.store.calls import Ask
from waypost.store.postgres import flow_keys, lanes, permits
from waypost.store.postgres.database import Connection, columns, insert
from waypost.store.postgres.lanes import LaneState
from waypost.store.postgres.messages import FACTS_AND_BODY, message_of, wholes
from waypost.store.postgres.permits import Permits
from waypost.store.postgres.writer import Batch
from waypost.store.protocol import Claim, Claimed

LANES_VISITED_MAX = 128
"""Lanes that one claim reads from."""

TENANTS_VISITED_MAX = 64
"""Tenants that one claim looks at, beside those whose lanes have waited longest."""

PASSES_MAX = 3
"""How often one claim goes round: lanes that had little leave their share to the others."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """One that waits at the head of a lane."""

    number: int
    host: str
    retried: int
    interrupted: int
    message: Message
    body: bytes


class Claims:
    """Hands out claims; remembers whose turn it is, as a hint that may be lost."""

    def __init__(self) -> None:
        self._tenant = ""

    async def claim(self, batch: Batch, calls: list[Ask]) -> list[Claimed]:
        """Hand out due messages; see `Deliveries.claim`."""
        return [await self._claim(batch, ask) for ask in calls]

    async def _claim(self, batch: Batch, ask: Ask) -> Claimed:
        db, shut, places = batch.db, batch.shut, ask.places
        for resource, room in places.openings():
            batch.on_rollback.append(partial(places.wait_for, resource))
            if shut.open(resource, count_max=room):
                places.wait_for(resource)
        shut.open_for_retries(now_ms=ask.now_ms)
        claiming = _Claiming(batch, ask)
        if ask.count_max > 0:
            turns = await self._turns(db, shut.names(), now_ms=ask.now_ms)
            if turns and await batch.may_claim():  # which is a lock, and so is written down
                self._go_round(claiming, await claiming.read(turns))
                await claiming.write()
        shut.next_turn_ms = await lanes.next_turn_ms(db, shut.names())
        nexts = (
            shut.next_turn_ms,
            await flow_keys.next_opens_ms(db),
            shut.next_retry_ms(),
        )
        next_due_ms = min((turn_ms for turn_ms in nexts if turn_ms is not None), default=None)
        return Claimed(claims=claiming.claims, next_due_ms=next_due_ms)

    async def _turns(self, db: Connection, shut: Sequence[str], *, now_ms: int) -> list[Place]:
        """The lanes that are ready, tenants in turn."""
        oldest = await lanes.longest_waiting(db, shut, now_ms=now_ms, count_max=LANES_VISITED_MAX)
        ready: dict[str, list[str]] = {}
        for tenant, lane in oldest:
            ready.setdefault(tenant, []).append(lane)
        if len(oldest) == LANES_VISITED_MAX:  # there may be more, perhaps of other tenants
            met = await lanes.ready_tenants(
                db, shut, after=self._tenant, now_ms=now_ms, count_max=TENANTS_VISITED_MAX
            )
            tenants = list(dict.fromkeys([*ready, *met]))
            count_max = -(-LANES_VISITED_MAX // len(tenants))
            ready = await lanes.ready_lanes(db, shut, tenants, now_ms=now_ms, count_max=count_max)
            self._met = met
        else:
            self._met = []
        by_turn = zip_longest(*[[(tenant, lane) for lane in its] for tenant, its in ready.items()])
        return [turn for nth in by_turn for turn in nth if turn is not None]

    def _go_round(self, claiming: "_Claiming", turns: list[Place]) -> None:
        """Give each ready lane its share, and what others leave of theirs."""
        visited: set[str] = set()
        claiming.pass_by(place for place in turns if claiming.is_done(place))
        for _ in range(PASSES_MAX):
            before = claiming.left
            turns = [place for place in turns if not claiming.is_done(place)]
            for nth, place in enumerate(turns):
                if claiming.left <= 0:
                    break
                claiming.visit(place, share=-(-claiming.left // (len(turns) - nth)))
                visited.add(place[0])
            if claiming.left <= 0 or claiming.left == before:
                break
        for tenant in self._met:  # the next walk begins with whoever had no turn in this one
            if tenant not in visited:
                break
            self._tenant = tenant


class _Line:
    """What was read of a lane, and how far it has been handed out."""

    __slots__ = ("blocked_on", "free", "held", "state", "taken", "waiting")

    def __init__(self, state: LaneState) -> None:
        self.state = state
        self.held: list[Head] = []
        self.waiting: list[Head] = []
        self.free = state.free
        self.taken = 0
        self.blocked_on: str | None = None


class _Key(str):
    """A flow-control key that a lane waits for."""


class _Claiming:
    """What one claim gathers, and then writes table by table."""

    def __init__(self, batch: Batch, ask: Ask) -> None:
        self.batch = batch
        self.db = batch.db
        self.ask = ask
        self.places = ask.places
        self.left = ask.count_max
        self.token = 0
        self.permits = Permits(batch, now_ms=ask.now_ms)
        self.lines: dict[Place, _Line] = {}
        self.visited: dict[Place, _Line] = {}
        self.claims: list[Claim] = []
        self.active_ms: list[int] = []
        self.taken: list[tuple[int, bool]] = []
        self.holds: list[tuple[str, str, int]] = []

    async def read(self, turns: list[Place]) -> list[Place]:
        """Lock the lanes, and read their heads: the lanes in which something waits still."""
        now_ms = self.ask.now_ms
        # Twice a share, for lanes that have more than those that have little.
        count_max = min(self.left, 2 * -(-self.left // len(turns)))
        locked = await self.batch.lock(turns, keys=await self._keys(turns, count_max))
        turns = [place for place in turns if place in locked]
        self.token = self.batch.numbers.next()
        states = await lanes.states(self.db, turns, now_ms=now_ms)
        self.lines = {place: _Line(states[place]) for place in turns}
        rows = await self.db.fetch(
            "SELECT p.tenant, p.lane, d.holding, d.number, d.host, d.retried, d.interrupted,"
            f" {FACTS_AND_BODY}"
            " FROM unnest($1::text[], $2::text[]) p (tenant, lane)"
            " CROSS JOIN (VALUES (true), (false)) v (holding)"
            f" CROSS JOIN LATERAL ({_HEADS}) d{message_of('d')}"
            " ORDER BY d.due_ms, d.number",
            *columns(turns),
            now_ms,
            count_max,
        )
        read = await wholes(self.db, [(row[7], row[8]) for row in rows])
        for row, (message, body) in zip(rows, read, strict=True):
            line = self.lines[row["tenant"], row["lane"]]
            head = Head(
                number=row["number"],
                host=row["host"],
                retried=row["retried"],
                interrupted=row["interrupted"],
                message=message,
                body=body,
            )
            (line.held if row["holding"] else line.waiting).append(head)
        names = {
            (place[0], head.message.flow.key)
            for place, line in self.lines.items()
            for head in (*line.held, *line.waiting)
            if head.message.flow is not None
        }
        await self.permits.read(names & self._locked)
        return turns

    async def _keys(self, turns: list[Place], count_max: int) -> set[Place]:
        """The keys of what stands at the heads of lanes now.  Another head that comes up
        before they are locked has its turn next time, if its key is another one."""
        self._locked = {(tenant, key) for tenant, lane in turns if (key := key_of(lane))}
        others = [
            place for place in turns if key_of(place[1]) is None and not place[1].startswith(HOST)
        ]
        if not others:
            return self._locked
        rows = await self.db.fetch(
            "SELECT DISTINCT p.tenant, d.key FROM unnest($1::text[], $2::text[]) p (tenant, lane)"
            " CROSS JOIN (VALUES (true), (false)) v (holding)"
            f" CROSS JOIN LATERAL ({_HEADS}) d WHERE d.key IS NOT NULL",
            *columns(others),
            self.ask.now_ms,
            count_max,
        )
        self._locked |= {(row[0], row[1]) for row in rows}
        return self._locked

    def is_done(self, place: Place) -> bool:
        """Whether there is nothing more to hand out of a lane: as in a queue that was paused
        while its lock was waited for."""
        line = self.lines[place]
        if line.state.paused or line.blocked_on is not None:
            return True
        return not (line.held or (line.waiting and (queue_of(place[1]) is None or line.free)))

    def pass_by(self, places: Iterable[Place]) -> None:
        """Lanes have had their turns, and nothing that may go: as where a message took the
        last place of a queue at its birth."""
        self.visited.update((place, self.lines[place]) for place in places)

    def visit(self, place: Place, *, share: int) -> None:
        """Claim from one lane: first those that hold a place of its queue, then in order."""
        line = self.visited[place] = self.lines[place]
        in_queue = queue_of(place[1]) is not None
        before = len(self.claims)
        self._take(place, line, line.held, count_max=share)
        if line.blocked_on is None:
            share -= len(self.claims) - before
            begun = len(self.claims)
            self._take(
                place, line, line.waiting, count_max=min(line.free, share) if in_queue else share
            )
            if in_queue:
                new = self.claims[begun:]
                line.free -= len(new)
                self.holds += [(*place, claim.number) for claim in new]
        line.taken += len(self.claims) - before

    def _take(self, place: Place, line: _Line, heads: list[Head], *, count_max: int) -> None:
        """Claim up to `count_max` from the head, unless a resource stops us."""
        tenant, lane = place
        while heads and count_max > 0 and self.left > 0:
            head = heads[0]
            flow = head.message.flow
            if flow is not None and (
                (tenant, flow.key) not in self._locked or not self.permits.room(tenant, flow.key)
            ):
                line.blocked_on = _Key(flow.key)
                return
            refusal = self.places.refusal(
                head.host, size=len(head.body), suspect=head.interrupted >= SUSPECT_AFTER
            )
            if refusal is not None:
                self.places.wait_for(refusal)
                if refusal == NODE:
                    self.left = 0
                line.blocked_on = refusal
                return
            claim = Claim(
                number=head.number,
                token=self.token,
                message=head.message,
                body=head.body,
                host=head.host,
                retried=head.retried,
                interrupted=head.interrupted,
                lease=self.batch.lease,
            )
            self.batch.take_place(self.places, claim)
            active_ms = self.ask.now_ms
            if flow is not None:
                own = key_of(lane) is not None
                active_ms = self.permits.take(tenant, flow.key, head.number, own=own)
            self.claims.append(claim)
            self.active_ms.append(active_ms)
            self.taken.append((head.number, queue_of(lane) is not None))
            del heads[0]
            self.left -= 1
            count_max -= 1

    async def write(self) -> None:
        """Write what was handed out, and log each claim as ACTIVE (D19)."""
        db, now_ms = self.db, self.ask.now_ms
        if self.taken:
            numbers, holding = zip(*sorted(self.taken), strict=True)
            status: str = await db.execute(
                "UPDATE delivery d SET token = $3, node = $4, holding = n.holding"
                " FROM unnest($1::bigint[], $2::boolean[]) n (number, holding)"
                " WHERE d.number = n.number AND d.token IS NULL",
                numbers,
                holding,
                self.token,
                self.batch.node,
            )
            assert status == f"UPDATE {len(numbers)}", "a lane was not ours alone"
        events = [
            (
                *(claim.message.tenant, at_ms, self.batch.numbers.next()),
                *(claim.message.id, Logged.ACTIVE, None),
            )
            for claim, at_ms in zip(self.claims, self.active_ms, strict=True)
        ]
        await insert(db, hold=self.holds, event=events)
        changed = await self.permits.write()
        shut = self.batch.shut
        seen = {
            place: line
            for place, line in self.visited.items()
            if line.taken or line.blocked_on != NODE
        }
        # Those that can neither go nor be left out would stand before all others for ever.
        served = [
            place
            for place, line in seen.items()
            if line.taken or (shut.full and not isinstance(line.blocked_on, _Key))
        ]
        states = await lanes.refresh(self.batch, seen, now_ms=now_ms, served=served)
        await lanes.refresh(self.batch, set(changed) - set(seen), now_ms=now_ms)
        blocked = []
        turns: dict[Place, int | None] = {}
        for place, line in seen.items():
            on, retry_ms = line.blocked_on, states[place].next_retry_ms(now_ms=now_ms)
            if isinstance(on, _Key):
                key = (place[0], str(on))
                if key_of(place[1]) is None and self.permits.knows(*key):
                    blocked.append((*place, lanes.key_resource(*key), retry_ms))
                    turns[key] = self.permits.opens_ms(*key)
            elif on is not None and on != NODE:
                turn_ms = now_ms if line.taken else line.state.turn_ms or now_ms
                if on == BODIES and not line.taken:
                    turn_ms = now_ms - 1  # others may fit; but who was served comes after it
                shut.shut(place, on=on, turn_ms=turn_ms, retry_ms=retry_ms)
        await lanes.block(db, blocked)
        await permits.set_opens(db, ((*key, opens_ms) for key, opens_ms in turns.items()))


_HEADS = (
    "SELECT * FROM delivery d WHERE d.tenant = p.tenant AND d.lane = p.lane"
    " AND d.holding = v.holding AND d.token IS NULL AND d.due_ms <= $3"
    " ORDER BY d.due_ms, d.number LIMIT $4"
)
