"""The home of a message's life: added, claimed, settled, released, cancelled.

Each function runs all calls of its kind that wait at one moment, inside the
writer's transaction.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import apsw
import msgspec

from waypost.domain.attempt import Delivered, GiveUp, Outcome, TryAgain, Verdict
from waypost.domain.errors import StaleClaim
from waypost.domain.lanes import lane_of, queue_of
from waypost.domain.message import NEXT, Event, Logged, Message, State
from waypost.domain.places import INTERRUPTED_MAX, NODE, SUSPECT_AFTER, Places, Sign
from waypost.store.protocol import (
    Accepted,
    Cancelled,
    Claim,
    Claimed,
    Draft,
    give_back_place,
    take_place,
)
from waypost.store.sqlite import lanes
from waypost.store.sqlite.database import Batch, filled, insert, marks, query, slices
from waypost.store.sqlite.log import Detail, answer_of, note_of

LANES_VISITED_MAX = 128
"""Lanes that one claim reads from."""

TENANTS_VISITED_MAX = 64
"""Tenants that one claim looks at, beside those whose lanes have waited longest."""

PASSES_MAX = 3
"""How often one claim goes round: lanes that had little leave their share to the others."""

encode = msgspec.json.encode
decode_message = msgspec.json.Decoder(Message).decode


class Add(msgspec.Struct, frozen=True):
    drafts: Sequence[Draft]
    places: Places
    hand_over: Callable[[Claim], None]
    now_ms: int


def add(batch: Batch, calls: list[Add]) -> list[list[Accepted]]:
    """Accept drafts; see `Deliveries.add`."""
    return _Adding(batch, calls[0].places, max(call.now_ms for call in calls)).run(calls)


class _Adding:
    """What one batch of adds gathers, and then writes table by table.

    `now_ms` is the latest of its calls': what is due to one of them may not be
    overtaken by another that came a moment earlier.
    """

    def __init__(self, batch: Batch, places: Places, now_ms: int) -> None:
        self.batch = batch
        self.db = batch.db
        self.places = places
        self.now_ms = now_ms
        self.token = batch.numbers.next()
        self.quota = places.free
        if lanes.is_ready(self.db, now_ms=now_ms):
            self.quota //= 2
        self.open: dict[tuple[str, str], int] = {}
        self.accepted_ms: dict[tuple[str, str], int] = {}
        self.waiting: dict[tuple[str, str], int] = {}
        self.queues_waiting: set[tuple[str, str]] = set()
        self.messages: list[tuple[Any, ...]] = []
        self.bodies: list[tuple[Any, ...]] = []
        self.deliveries: list[tuple[Any, ...]] = []
        self.holds: list[tuple[Any, ...]] = []
        self.events: list[tuple[Any, ...]] = []

    def run(self, calls: list[Add]) -> list[list[Accepted]]:
        results = [[self._accept(draft, call) for draft in call.drafts] for call in calls]
        insert(self.db, "message", self.messages)
        insert(self.db, "body", self.bodies)
        insert(self.db, "delivery", self.deliveries)
        insert(self.db, "hold", self.holds)
        insert(self.db, "event", self.events)
        _join(self.batch, self.waiting, self.queues_waiting, now_ms=self.now_ms)
        return results

    def _accept(self, draft: Draft, call: Add) -> Accepted:
        message = draft.message
        if draft.dedup_key is not None:
            first = _take_dedup_key(self.db, draft, now_ms=call.now_ms)
            if first is not None:
                return Accepted(message_id=first, deduplicated=True)
        numbers = self.batch.numbers
        number = numbers.next()
        tenant, now_ms = message.tenant, call.now_ms
        lane = lane_of(message.queue, draft.host)
        place = (tenant, lane)
        room = self.open.get(place)
        if room is None:
            room = self.open[place] = self._room(message, place)
        due_ms = message.not_before_ms
        if message.queue is not None:
            due_ms = max(due_ms, self.accepted_ms[place])
        token = None
        if due_ms <= self.now_ms and room:
            if self.quota > 0 and not self.places.refusal(draft.host, size=len(draft.body)):
                token = self.token
                self.quota -= 1
                self.open[place] = room - 1
            else:
                self.open[place] = 0
        self.messages.append((tenant, message.id, number, encode(message)))
        if draft.body:
            self.bodies.append((number, draft.body))
        holding = int(token is not None and message.queue is not None)
        self.deliveries.append(
            (number, tenant, message.id, lane, draft.host, due_ms, token, holding, 0, 0, 0)
        )
        self.events.append((tenant, now_ms, numbers.next(), message.id, "CREATED", None))
        if token is not None:
            self.events.append((tenant, now_ms, numbers.next(), message.id, "ACTIVE", None))
            if holding:
                self.holds.append((tenant, lane, number))
            claim = Claim(
                number=number, token=token, message=message, body=draft.body, host=draft.host
            )
            _take_place(self.batch, self.places, claim)
            self.batch.on_commit.append(lambda: call.hand_over(claim))
        elif message.queue is not None:
            self.queues_waiting.add(place)
        else:
            self.waiting[place] = min(due_ms, self.waiting.get(place, due_ms))
        return Accepted(message_id=message.id)

    def _room(self, message: Message, place: tuple[str, str]) -> int:
        """How many messages may be claimed at birth in a lane, were they due."""
        (tenant, lane), now_ms = place, self.now_ms
        if message.queue is None:
            older = query(
                self.db,
                "SELECT 1 FROM lane WHERE tenant = ? AND lane = ?"
                " AND (turn_ms <= ? OR blocked_on IS NOT NULL)",
                (tenant, lane, now_ms),
            ).fetchone()
            return 0 if older else self.quota
        [self.accepted_ms[place]] = query(
            self.db,
            "INSERT INTO queue VALUES (?1, ?2, 1, 0, ?3, ?3, ?3) ON CONFLICT (tenant, name)"
            " DO UPDATE SET accepted_ms = max(accepted_ms, excluded.accepted_ms)"
            " RETURNING accepted_ms",
            (tenant, message.queue, now_ms),
        ).fetchone()
        state = lanes.queue_place(self.db, tenant, message.queue)
        older_ms = lanes.head_due_ms(self.db, tenant, lane, holding=0)
        if state.paused or (older_ms is not None and older_ms <= now_ms):
            return 0
        return state.free


def _take_dedup_key(db: apsw.Connection, draft: Draft, *, now_ms: int) -> str | None:
    """Take a key for a message; or the id of the first message that has it."""
    message = draft.message
    found = query(
        db,
        "SELECT message_id FROM dedup WHERE tenant = ? AND key = ? AND until_ms > ?",
        (message.tenant, draft.dedup_key, now_ms),
    ).fetchone()
    if found is not None:
        return str(found[0])
    db.execute(
        "INSERT OR REPLACE INTO dedup VALUES (?, ?, ?, ?)",
        (message.tenant, draft.dedup_key, message.id, draft.dedup_until_ms),
    )
    return None


def _take_place(batch: Batch, places: Places, claim: Claim) -> None:
    """Take the claim's place, until it is given back or the transaction fails."""
    take_place(places, claim)
    batch.on_rollback.append(lambda: give_back_place(places, claim, Sign.NONE))


class Ask(msgspec.Struct, frozen=True):
    count_max: int
    places: Places
    now_ms: int


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
            if lanes.reopen(db, resource, count_max=room, now_ms=ask.now_ms):
                places.wait_for(resource)
        claiming = _Claiming(batch, ask)
        for _ in range(PASSES_MAX):
            if claiming.left <= 0 or not self._pass(db, claiming):
                break
        claiming.log()
        return Claimed(claims=claiming.claims, next_due_ms=lanes.next_turn_ms(db))

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


class _Claiming:
    """What one claim gathers, and then writes table by table."""

    def __init__(self, batch: Batch, ask: Ask) -> None:
        self.batch = batch
        self.db = batch.db
        self.ask = ask
        self.places = ask.places
        self.left = ask.count_max
        self.token = batch.numbers.next()
        self.claims: list[Claim] = []

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
                blocked_on = self._read(tenant, lane, holding=0, count_max=place.free)
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
        lanes.refresh(self.db, tenant, lane, now_ms=self.ask.now_ms, served=True)
        if blocked_on is not None and blocked_on != NODE:
            lanes.block(self.db, tenant, lane, on=blocked_on)

    def _read(self, tenant: str, lane: str, *, holding: int, count_max: int) -> str | None:
        """Claim up to `count_max` from the head; the resource that stopped us, if one did."""
        for number, host, retried, interrupted, facts, size in query(
            self.db,
            "SELECT d.number, d.host, d.retried, d.interrupted, m.facts,"
            "  (SELECT length(bytes) FROM body b WHERE b.number = d.number)"
            " FROM delivery d CROSS JOIN message m ON m.tenant = d.tenant AND m.id = d.message_id"
            " WHERE d.tenant = ? AND d.lane = ? AND d.holding = ? AND d.token IS NULL"
            "  AND d.due_ms <= ?"
            " ORDER BY d.due_ms, d.number LIMIT ?",
            (tenant, lane, holding, self.ask.now_ms, min(count_max, self.left)),
        ):
            refusal = self.places.refusal(
                host, size=size or 0, suspect=interrupted >= SUSPECT_AFTER
            )
            if refusal is not None:
                self.places.wait_for(refusal)
                if refusal == NODE:
                    self.left = 0
                return refusal
            claim = Claim(
                number=number,
                token=self.token,
                message=decode_message(facts),
                body=body_of(self.db, number) if size else b"",
                host=host,
                retried=retried,
                interrupted=interrupted,
            )
            _take_place(self.batch, self.places, claim)
            self.claims.append(claim)
            self.left -= 1
        return None

    def log(self) -> None:
        """Log each claim as ACTIVE (D19)."""
        numbers, now_ms = self.batch.numbers, self.ask.now_ms
        insert(
            self.db,
            "event",
            [
                (m.tenant, now_ms, numbers.next(), m.id, Logged.ACTIVE, None)
                for m in (claim.message for claim in self.claims)
            ],
        )


def one(db: apsw.Connection, tenant: str, message_id: str) -> tuple[Message, bytes] | None:
    """A message and its body; see `Reader.message`."""
    found = query(
        db, "SELECT number, facts FROM message WHERE tenant = ? AND id = ?", (tenant, message_id)
    ).fetchone()
    return None if found is None else (decode_message(found[1]), body_of(db, found[0]))


def body_of(db: apsw.Connection, number: int) -> bytes:
    """The bytes of a message; there is no row for an empty body."""
    found = query(db, "SELECT bytes FROM body WHERE number = ?", (number,)).fetchone()
    return b"" if found is None else bytes(found[0])


class Settle(msgspec.Struct, frozen=True):
    claim: Claim
    verdict: Verdict
    outcome: Outcome
    now_ms: int


def settle(batch: Batch, calls: list[Settle]) -> list[Logged | StaleClaim]:
    """Record how attempts ended; see `Deliveries.settle`."""
    settling = _Settling(batch, now_ms=max(call.now_ms for call in calls))
    out = _claimed_rows(batch.db, [call.claim for call in calls])
    results = [settling.settle(call, out.pop(call.claim.number, None)) for call in calls]
    settling.write()
    return results


def _claimed_rows(db: apsw.Connection, claims: Sequence[Claim]) -> dict[int, tuple[int, int]]:
    """The token and the wish to cancel of each delivery that is still there."""
    return {
        number: (token, canceling)
        for some in slices([claim.number for claim in claims])
        for number, token, canceling in query(
            db,
            f"SELECT number, token, canceling FROM delivery WHERE number IN ({marks(len(some))})",
            filled(some),
        )
    }


class _Settling:
    """What one batch of ends gathers, and then writes table by table."""

    def __init__(self, batch: Batch, *, now_ms: int) -> None:
        self.batch = batch
        self.db = batch.db
        self.now_ms = now_ms
        self.ended: list[int] = []
        self.holds: list[tuple[Any, ...]] = []
        self.retries: list[tuple[Any, ...]] = []
        self.waiting: dict[tuple[str, str], int] = {}
        self.queues: set[tuple[str, str]] = set()
        self.dead_letters: list[tuple[Any, ...]] = []
        self.events: list[tuple[Any, ...]] = []

    def settle(self, call: Settle, row: tuple[int, int] | None) -> Logged | StaleClaim:
        claim, verdict, outcome, now_ms = call.claim, call.verdict, call.outcome, call.now_ms
        if row is None or row[0] != claim.token:
            return StaleClaim(f"the claim on {claim.message.id} was lost")
        state = State.CANCELING if row[1] else State.CLAIMED
        after = NEXT[state][_EVENT_OF[type(verdict)]]
        if after is State.DELIVERED:
            self._log(claim, Logged.DELIVERED, now_ms, note_of(outcome))
            self._end(claim)
            return Logged.DELIVERED
        self._log(claim, Logged.ERROR, now_ms, answer_of(outcome))
        if after is State.CANCELED:
            self._log(claim, Logged.CANCELED, now_ms)
            self._end(claim)
            return Logged.CANCELED
        if isinstance(verdict, TryAgain):
            self._log(claim, Logged.RETRY, now_ms, Detail(next_delivery_ms=verdict.at_ms))
            self.retries.append((verdict.at_ms, claim.retried + 1, claim.interrupted, claim.number))
            self._wait(claim, verdict.at_ms)
            return Logged.RETRY
        assert isinstance(verdict, GiveUp), verdict
        self._log(claim, Logged.FAILED, now_ms, Detail(error=verdict.why))
        self.dead_letters.append(
            (
                claim.message.tenant,
                now_ms,
                self.batch.numbers.next(),
                claim.message.id,
                encode(answer_of(outcome, why=verdict.why)),
            )
        )
        self._end(claim)
        return Logged.FAILED

    def release(self, claim: Claim, *, canceling: bool) -> None:
        """Put a claim back as it was, or end it where it was to be cancelled."""
        now_ms = self.now_ms
        if NEXT[State.CANCELING if canceling else State.CLAIMED][Event.RELEASE] is State.CANCELED:
            self._log(claim, Logged.CANCELED, now_ms)
            self._end(claim)
        else:
            self.retries.append((now_ms, claim.retried, claim.interrupted, claim.number))
            self._wait(claim, now_ms)

    def write(self) -> None:
        db = self.db
        for some in slices(self.ended):
            db.execute(f"DELETE FROM delivery WHERE number IN ({marks(len(some))})", filled(some))
        if self.holds:
            db.executemany(
                "DELETE FROM hold WHERE tenant = ? AND resource = ? AND number = ?", self.holds
            )
        if self.retries:
            db.executemany(
                "UPDATE delivery SET token = NULL, due_ms = ?, retried = ?, interrupted = ?"
                " WHERE number = ?",
                self.retries,
            )
        insert(db, "event", self.events)
        insert(db, "dead_letter", self.dead_letters)
        _join(self.batch, self.waiting, self.queues, now_ms=self.now_ms)

    def _end(self, claim: Claim) -> None:
        self.ended.append(claim.number)
        message = claim.message
        if message.queue is not None:
            lane = lane_of(message.queue, claim.host)
            self.holds.append((message.tenant, lane, claim.number))
            self.queues.add((message.tenant, lane))

    def _wait(self, claim: Claim, due_ms: int) -> None:
        message = claim.message
        suspect = claim.interrupted >= SUSPECT_AFTER
        place = (message.tenant, lane_of(message.queue, claim.host, suspect=suspect))
        if message.queue is None:
            self.waiting[place] = min(due_ms, self.waiting.get(place, due_ms))
        else:
            self.queues.add(place)

    def _log(self, claim: Claim, state: Logged, now_ms: int, detail: Detail | None = None) -> None:
        self.events.append(
            (
                claim.message.tenant,
                now_ms,
                self.batch.numbers.next(),
                claim.message.id,
                state,
                None if detail is None else encode(detail),
            )
        )


def _join(
    batch: Batch, waiting: dict[tuple[str, str], int], queues: set[tuple[str, str]], *, now_ms: int
) -> None:
    """Let the lanes in which something waits have their turns: those of `waiting` when it
    is due, and `queues` as they stand."""
    turns = {place: max(due_ms, now_ms) for place, due_ms in waiting.items()}
    lanes.wait(batch.db, turns)
    for turn_ms in turns.values():
        batch.someone_waits(turn_ms)
    for tenant, lane in queues:
        batch.someone_waits(lanes.refresh(batch.db, tenant, lane, now_ms=now_ms))


_EVENT_OF: dict[type[Verdict], Event] = {
    Delivered: Event.DELIVER,
    TryAgain: Event.RETRY,
    GiveUp: Event.GIVE_UP,
}


class Release(msgspec.Struct, frozen=True):
    claims: Sequence[Claim]
    now_ms: int


def release(batch: Batch, calls: list[Release]) -> list[None]:
    """Give claims back undelivered; see `Deliveries.release`."""
    for call in calls:
        settling = _Settling(batch, now_ms=call.now_ms)
        out = _claimed_rows(batch.db, call.claims)
        for claim in call.claims:
            token, canceling = out.get(claim.number, (None, 0))
            if token == claim.token:
                settling.release(claim, canceling=bool(canceling))
        settling.write()
    return [None] * len(calls)


class Cancel(msgspec.Struct, frozen=True):
    tenant: str
    message_id: str
    now_ms: int


def cancel(batch: Batch, calls: list[Cancel]) -> list[Cancelled]:
    """Cancel messages; see `Deliveries.cancel`."""
    return [_cancel(batch, call) for call in calls]


def _cancel(batch: Batch, call: Cancel) -> Cancelled:
    db, tenant = batch.db, call.tenant
    found = query(
        db, "SELECT number FROM message WHERE tenant = ? AND id = ?", (tenant, call.message_id)
    ).fetchone()
    if found is None:
        return Cancelled(count=0, known=False)
    number = found[0]
    row = query(
        db, "SELECT lane, token, canceling FROM delivery WHERE number = ?", (number,)
    ).fetchone()
    if row is None:
        return Cancelled(count=0, known=True)
    lane, token, canceling = row
    state = State.WAITING
    if token is not None:
        state = State.CANCELING if canceling else State.CLAIMED
    logged = []
    if not canceling:
        logged.append(Logged.CANCEL_REQUESTED)
    if NEXT[state][Event.CANCEL] is State.CANCELED:
        logged.append(Logged.CANCELED)
        db.execute("DELETE FROM delivery WHERE number = ?", (number,))
        db.execute(
            "DELETE FROM hold WHERE tenant = ? AND resource = ? AND number = ?",
            (tenant, lane, number),
        )
        batch.someone_waits(lanes.refresh(db, tenant, lane, now_ms=call.now_ms))
    else:
        db.execute("UPDATE delivery SET canceling = 1 WHERE number = ?", (number,))
    insert(
        db,
        "event",
        [
            (tenant, call.now_ms, batch.numbers.next(), call.message_id, word, None)
            for word in logged
        ],
    )
    return Cancelled(count=1, known=True)


def take_over(batch: Batch, *, now_ms: int) -> int:
    """At start: whatever was claimed by the process before us waits again (D18).

    It uses up no retry, but counts as an interruption; after too many of them
    the message is dead.  How many there were.
    """
    db = batch.db
    db.execute(
        "UPDATE lane SET blocked_on = NULL, turn_ms = max(turn_ms, ?) WHERE blocked_on IS NOT NULL",
        (now_ms,),
    )
    settling = _Settling(batch, now_ms=now_ms)
    suspects = []
    cut_short = query(
        db,
        "SELECT d.number, d.token, d.host, d.retried, d.interrupted + 1, d.canceling, m.facts"
        " FROM delivery d CROSS JOIN message m ON m.tenant = d.tenant AND m.id = d.message_id"
        " WHERE d.token IS NOT NULL ORDER BY d.number",
    ).fetchall()
    for number, token, host, retried, interrupted, canceling, facts in cut_short:
        claim = Claim(
            number=number,
            token=token,
            message=decode_message(facts),
            body=b"",
            host=host,
            retried=retried,
            interrupted=interrupted,
        )
        if interrupted >= SUSPECT_AFTER and claim.message.queue is None:
            suspects.append((lane_of(None, host, suspect=True), number))
        if interrupted >= INTERRUPTED_MAX and not canceling:
            why = f"interrupted: {interrupted} attempts were cut short by a crash"
            call = Settle(claim, GiveUp(why), Outcome(error=why), now_ms)
            settling.settle(call, (token, canceling))
        else:
            settling.release(claim, canceling=bool(canceling))
    db.executemany("UPDATE delivery SET lane = ? WHERE number = ?", suspects)
    settling.write()
    return len(cut_short)
