"""The home of claims: whose turn it is, and what is handed out.

A claim goes round the lanes that are ready and reads each from its head; see
docs/decisions/0001-lanes-take-turns.md.
"""

from functools import partial
from itertools import zip_longest

import apsw

from waypost.domain.lanes import key_of, queue_of
from waypost.domain.message import Logged
from waypost.domain.places import BODIES, NODE, SUSPECT_AFTER
from waypost.store.calls import Ask
from waypost.store.protocol import Claim, Claimed
from waypost.store.sqlite import flow_keys, lanes
from waypost.store.sqlite.database import filled, insert, marks, query, slices
from waypost.store.sqlite.messages import FACTS_AND_BODY, whole
from waypost.store.sqlite.permits import Permits
from waypost.store.sqlite.writer import Batch

LANES_VISITED_MAX = 128
"""Lanes that one claim reads from."""

TENANTS_VISITED_MAX = 64
"""Tenants that one claim looks at, beside those whose lanes have waited longest."""

PASSES_MAX = 3
"""How often one claim goes round: lanes that had little leave their share to the others."""


class Claims:
    """Hands out claims; remembers whose turn it is, as a hint that may be lost."""

    def __init__(self) -> None:
        self._tenant = ""

    def claim(self, batch: Batch, calls: list[Ask]) -> list[Claimed]:
        """Hand out due messages; see `Deliveries.claim`."""
        return [self._claim(batch, ask) for ask in calls]

    def _claim(self, batch: Batch, ask: Ask) -> Claimed:
        db, places = batch.db, ask.places
        for resource, room in places.openings():
            batch.on_rollback.append(partial(places.wait_for, resource))
            if lanes.reopen(db, resource, count_max=room) == room:
                places.wait_for(resource)
        claiming = _Claiming(batch, ask)
        # Before retries come back: a key's own lane may go before these.
        claiming.permits.open(count_max=min(ask.count_max, places.free))
        lanes.reopen_for_retries(db, count_max=LANES_VISITED_MAX, now_ms=ask.now_ms)
        for _ in range(PASSES_MAX):
            if claiming.left <= 0 or not self._pass(db, claiming):
                break
        claiming.log()
        turns = (lanes.next_turn_ms(db), flow_keys.next_opens_ms(db))
        next_due_ms = min((turn_ms for turn_ms in turns if turn_ms is not None), default=None)
        return Claimed(claims=claiming.claims, next_due_ms=next_due_ms)

    def _pass(self, db: apsw.Connection, claiming: "_Claiming") -> bool:
        """Give each ready lane its share, tenants in turn; whether anything was claimed."""
        now_ms = claiming.ask.now_ms
        ready: dict[str, list[str]] = {}
        oldest = lanes.longest_waiting(db, now_ms=now_ms, count_max=LANES_VISITED_MAX)
        for tenant, lane in oldest:
            ready.setdefault(tenant, []).append(lane)
        met: list[tuple[str, int]] = []
        if len(oldest) == LANES_VISITED_MAX:  # there may be more, perhaps of other tenants
            met = lanes.next_tenants(db, after=self._tenant, count_max=TENANTS_VISITED_MAX)
            for tenant, turn_ms in met:
                if turn_ms <= now_ms:
                    ready.setdefault(tenant, [])
            count_max = -(-LANES_VISITED_MAX // len(ready))
            for tenant in ready:
                ready[tenant] = lanes.ready_lanes(db, tenant, now_ms=now_ms, count_max=count_max)
        by_turn = zip_longest(*[[(tenant, lane) for lane in its] for tenant, its in ready.items()])
        turns = [turn for nth in by_turn for turn in nth if turn is not None]
        before = claiming.left
        visited = set()
        for nth, (tenant, lane) in enumerate(turns):
            if claiming.left <= 0:
                break
            claiming.visit(tenant, lane, share=-(-claiming.left // (len(turns) - nth)))
            visited.add(tenant)
        for tenant, _ in met:  # the next walk begins with whoever had no turn in this one
            if tenant in ready and tenant not in visited:
                break
            self._tenant = tenant
        return claiming.left < before


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
        self.token = batch.numbers.next()
        self.permits = Permits(batch, now_ms=ask.now_ms)
        self.claims: list[Claim] = []
        self.active_ms: list[int] = []

    def visit(self, tenant: str, lane: str, *, share: int) -> None:
        """Claim from one lane: first those that hold a place of its queue, then in order."""
        begun = len(self.claims)
        queue = queue_of(lane)
        if queue is None:
            blocked_on = self._read(tenant, lane, holding=0, count_max=share)
        else:
            blocked_on = self._read(tenant, lane, holding=1, count_max=share)
            place = lanes.queue_place(self.db, tenant, queue)
            if blocked_on is None and not place.paused:
                waiting = len(self.claims)
                count_max = min(place.free, share - (waiting - begun))
                blocked_on = self._read(tenant, lane, holding=0, count_max=count_max)
                holds = [(tenant, lane, claim.number) for claim in self.claims[waiting:]]
                insert(self.db, "hold", holds)
        taken = [claim.number for claim in self.claims[begun:]]
        for some in slices(taken):
            self.db.execute(
                f"UPDATE delivery SET token = ?, holding = ? WHERE number IN ({marks(len(some))})",
                (self.token, int(queue is not None), *filled(some)),
            )
        if not taken and blocked_on == NODE:
            return  # nothing happened here, and nothing is written
        self.permits.write()
        lanes.refresh(self.db, tenant, lane, now_ms=self.ask.now_ms, served=bool(taken))
        if isinstance(blocked_on, _Key):
            if key_of(lane) is None:  # the lane of the key itself waits already
                self.permits.wait(tenant, lane, blocked_on)
        elif blocked_on is not None and blocked_on != NODE:
            lanes.block(self.db, tenant, lane, on=blocked_on)
            if blocked_on == BODIES and not taken:
                # Others may fit, and are to be looked at; but who was served comes after it.
                lanes.stand_back(self.db, tenant, lane, turn_ms=self.ask.now_ms - 1)

    def _read(self, tenant: str, lane: str, *, holding: int, count_max: int) -> str | None:
        """Claim up to `count_max` from the head; the resource that stopped us, if one did."""
        for number, host, retried, interrupted, facts, kept in query(
            self.db,
            f"SELECT d.number, d.host, d.retried, d.interrupted, {FACTS_AND_BODY}"
            " FROM delivery d CROSS JOIN message m ON m.tenant = d.tenant AND m.id = d.message_id"
            " WHERE d.tenant = ? AND d.lane = ? AND d.holding = ? AND d.token IS NULL"
            "  AND d.due_ms <= ?"
            " ORDER BY d.due_ms, d.number LIMIT ?",
            (tenant, lane, holding, self.ask.now_ms, min(count_max, self.left)),
        ):
            message, body = whole(self.db, facts, kept)
            flow = message.flow
            if flow is not None and not self.permits.room(tenant, flow.key):
                return _Key(flow.key)
            refusal = self.places.refusal(
                host, size=len(body), suspect=interrupted >= SUSPECT_AFTER
            )
            if refusal is not None:
                self.places.wait_for(refusal)
                if refusal == NODE:
                    self.left = 0
                return refusal
            claim = Claim(
                number=number,
                token=self.token,
                message=message,
                body=body,
                host=host,
                retried=retried,
                interrupted=interrupted,
            )
            self.batch.take_place(self.places, claim)
            active_ms = self.ask.now_ms
            if flow is not None:
                own = key_of(lane) is not None
                active_ms = self.permits.take(tenant, flow.key, number, own=own)
            self.claims.append(claim)
            self.active_ms.append(active_ms)
            self.left -= 1
        return None

    def log(self) -> None:
        """Log each claim as ACTIVE (D19)."""
        numbers = self.batch.numbers
        insert(
            self.db,
            "event",
            [
                (claim.message.tenant, at_ms, numbers.next(), claim.message.id, Logged.ACTIVE, None)
                for claim, at_ms in zip(self.claims, self.active_ms, strict=True)
            ],
        )
