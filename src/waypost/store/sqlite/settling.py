"""The home of ends: attempts are settled, claims released, messages cancelled.

What follows from each is asked of the domain's table of states (`NEXT`), and
written in one transaction: log entries, the next due time or the dead letter,
the freed place of a queue, and the callbacks.
"""

from collections.abc import Sequence
from typing import Any

import apsw
import msgspec
from msgspec.structs import replace

from waypost.domain.attempt import Delivered, GiveUp, Outcome, TryAgain, Verdict
from waypost.domain.errors import StaleClaim
from waypost.domain.ids import dead_letter_id
from waypost.domain.lanes import key_lane, lane_of, queue_lane
from waypost.domain.message import NEXT, Event, Logged, Message, State
from waypost.domain.places import SUSPECT_AFTER
from waypost.store.details import Detail, answer_of, note_of
from waypost.store.protocol import Births, Cancelled, Claim, Draft
from waypost.store.sqlite import lanes, permits
from waypost.store.sqlite.adding import Adding
from waypost.store.sqlite.database import filled, insert, marks, query, slices
from waypost.store.sqlite.messages import decode_message, source_number
from waypost.store.sqlite.writer import Batch

encode = msgspec.json.encode


class Settle(msgspec.Struct, frozen=True):
    claim: Claim
    verdict: Verdict
    outcome: Outcome
    callbacks: Sequence[Draft]
    births: Births
    now_ms: int


def settle(batch: Batch, calls: list[Settle]) -> list[Logged | StaleClaim]:
    """Record how attempts ended; see `Deliveries.settle`."""
    ending = Ending(batch, now_ms=max(call.now_ms for call in calls))
    out = _claimed_rows(batch.db, [call.claim for call in calls])
    results = [ending.settle(call, out.pop(call.claim.number, None)) for call in calls]
    ending.write()
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


class Ending:
    """What one batch of ends gathers, and then writes table by table."""

    def __init__(self, batch: Batch, *, now_ms: int) -> None:
        self.batch = batch
        self.db = batch.db
        self.now_ms = now_ms
        self.ended: list[int] = []
        self.holds: set[tuple[str, str, int]] = set()
        self.retries: list[tuple[Any, ...]] = []
        self.waiting: dict[tuple[str, str], int] = {}
        self.changed: set[tuple[str, str]] = set()
        self.dead_letters: list[tuple[Any, ...]] = []
        self.events: list[tuple[Any, ...]] = []
        self.callbacks: list[tuple[Draft, Settle]] = []
        self.permits: list[tuple[str, str, int]] = []
        self.canceling: list[int] = []

    def settle(self, call: Settle, row: tuple[int, int] | None) -> Logged | StaleClaim:
        claim, verdict, outcome, now_ms = call.claim, call.verdict, call.outcome, call.now_ms
        if row is None or row[0] != claim.token:
            return StaleClaim(f"the claim on {claim.message.id} was lost")
        self._give_back(claim)
        state = State.CANCELING if row[1] else State.CLAIMED
        after = NEXT[state][_EVENT_OF[type(verdict)]]
        for draft in call.callbacks:
            if not _is_of_failure(draft):
                self.callbacks.append((draft, call))
        if after is State.DELIVERED:
            self.log(claim.message, Logged.DELIVERED, now_ms, note_of(outcome))
            self.end(claim.number, claim.message)
            return Logged.DELIVERED
        self.log(claim.message, Logged.ERROR, now_ms, answer_of(outcome))
        if after is State.CANCELED:
            self.log(claim.message, Logged.CANCELED, now_ms)
            self.end(claim.number, claim.message)
            return Logged.CANCELED
        if isinstance(verdict, TryAgain):
            self.log(claim.message, Logged.RETRY, now_ms, Detail(next_delivery_ms=verdict.at_ms))
            retried = claim.retried + verdict.counts
            self.retries.append((verdict.at_ms, retried, claim.interrupted, claim.number))
            self._wait(claim, verdict.at_ms)
            return Logged.RETRY
        assert isinstance(verdict, GiveUp), verdict
        self.log(claim.message, Logged.FAILED, now_ms, Detail(error=verdict.why))
        tenant, number = claim.message.tenant, self.batch.numbers.next()
        detail = encode(answer_of(outcome, why=verdict.why))
        self.dead_letters.append((tenant, now_ms, number, claim.message.id, detail))
        for draft in call.callbacks:
            if _is_of_failure(draft):
                self.callbacks.append((_naming(draft, dead_letter_id(now_ms, number)), call))
        self.end(claim.number, claim.message)
        return Logged.FAILED

    def release(self, claim: Claim, *, canceling: bool) -> None:
        """Put a claim back as it was, or end it where it was to be cancelled."""
        now_ms = self.now_ms
        self._give_back(claim)
        if NEXT[State.CANCELING if canceling else State.CLAIMED][Event.RELEASE] is State.CANCELED:
            self.log(claim.message, Logged.CANCELED, now_ms)
            self.end(claim.number, claim.message)
        else:
            self.retries.append((now_ms, claim.retried, claim.interrupted, claim.number))
            self._wait(claim, now_ms)

    def cancel(self, number: int, message: Message, *, lane: str, state: State) -> None:
        """Cancel a delivery: at once where it waits, else as soon as its attempt ends (D16)."""
        if state is not State.CANCELING:
            self.log(message, Logged.CANCEL_REQUESTED, self.now_ms)
        if NEXT[state][Event.CANCEL] is State.CANCELED:
            self.log(message, Logged.CANCELED, self.now_ms)
            self.end(number, message)
            self.changed.add((message.tenant, lane))
        else:
            self.canceling.append(number)

    def write(self) -> None:
        db = self.db
        for some in slices(self.canceling):
            db.execute(
                f"UPDATE delivery SET canceling = 1 WHERE number IN ({marks(len(some))})",
                filled(some),
            )
        for some in slices(self.ended):
            db.execute(f"DELETE FROM delivery WHERE number IN ({marks(len(some))})", filled(some))
        if self.retries:
            db.executemany(
                "UPDATE delivery SET token = NULL, due_ms = ?, retried = ?, interrupted = ?"
                " WHERE number = ?",
                self.retries,
            )
        insert(db, "event", self.events)
        insert(db, "dead_letter", self.dead_letters)
        permits.give_back(db, self.permits)
        self._call_back()
        lanes.free(db, self.holds)
        for tenant, key in {(tenant, key) for tenant, key, _ in self.permits}:
            permits.look_again(self.batch, tenant, key, now_ms=self.now_ms)
        lanes.join(self.batch, self.waiting, self.changed, now_ms=self.now_ms)

    def _call_back(self) -> None:
        if not self.callbacks:
            return
        adding = Adding(self.batch, self.callbacks[0][1].births, now_ms=self.now_ms)
        for draft, call in self.callbacks:
            adding.accept_callback(draft, call.claim, now_ms=call.now_ms)
        adding.write()

    def end(self, number: int, message: Message) -> None:
        """End a delivery: it goes, and frees its place in a queue."""
        self.ended.append(number)
        if message.queue is not None:
            self._free(message.tenant, message.queue, number)
        if message.awaited_by is not None:
            self._free(message.tenant, message.awaited_by, source_number(self.db, message))

    def _free(self, tenant: str, queue: str, number: int) -> None:
        """Give back a message's place in a queue, where nothing needs it any more."""
        lane = queue_lane(queue)
        self.holds.add((tenant, lane, number))
        self.changed.add((tenant, lane))

    def _give_back(self, claim: Claim) -> None:
        """Give back the permit of an attempt that has ended."""
        message = claim.message
        if message.flow is not None:
            self.permits.append((message.tenant, message.flow.key, claim.number))
            self.changed.add((message.tenant, key_lane(message.flow.key)))

    def _wait(self, claim: Claim, due_ms: int) -> None:
        message = claim.message
        suspect = claim.interrupted >= SUSPECT_AFTER
        place = (message.tenant, lane_of(message, claim.host, suspect=suspect))
        if message.queue is None and message.flow is None:
            self.waiting[place] = min(due_ms, self.waiting.get(place, due_ms))
        else:
            self.changed.add(place)

    def log(
        self, message: Message, state: Logged, now_ms: int, detail: Detail | None = None
    ) -> None:
        self.events.append(
            (
                message.tenant,
                now_ms,
                self.batch.numbers.next(),
                message.id,
                state,
                None if detail is None else encode(detail),
            )
        )


def _is_of_failure(draft: Draft) -> bool:
    return draft.report is not None and draft.report.failure


def _naming(draft: Draft, dlq_id: str) -> Draft:
    """The callback, with the dead letter in its report."""
    assert draft.report is not None, draft.message.id
    return replace(draft, report=replace(draft.report, dlq_id=dlq_id))


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
        ending = Ending(batch, now_ms=call.now_ms)
        out = _claimed_rows(batch.db, call.claims)
        for claim in call.claims:
            token, canceling = out.get(claim.number, (None, 0))
            if token == claim.token:
                ending.release(claim, canceling=bool(canceling))
        ending.write()
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
        db,
        "SELECT number, facts FROM message WHERE tenant = ? AND id = ?",
        (tenant, call.message_id),
    ).fetchone()
    if found is None:
        return Cancelled(count=0, known=False)
    number, facts = found
    row = query(
        db, "SELECT lane, token, canceling FROM delivery WHERE number = ?", (number,)
    ).fetchone()
    if row is None:
        return Cancelled(count=0, known=True)
    lane, token, canceling = row
    state = State.WAITING
    if token is not None:
        state = State.CANCELING if canceling else State.CLAIMED
    ending = Ending(batch, now_ms=call.now_ms)
    ending.cancel(number, decode_message(facts), lane=lane, state=state)
    ending.write()
    return Cancelled(count=1, known=True)


class CancelMany(msgspec.Struct, frozen=True):
    tenant: str
    message_ids: Sequence[str]
    now_ms: int


def cancel_many(batch: Batch, calls: list[CancelMany]) -> list[int]:
    """Cancel messages; see `Deliveries.cancel_many`."""
    return [_cancel_many(batch, call) for call in calls]


def _cancel_many(batch: Batch, call: CancelMany) -> int:
    ending = Ending(batch, now_ms=call.now_ms)
    found = query(
        batch.db,
        "SELECT d.number, d.lane, d.token, m.facts FROM json_each(?) j"
        " CROSS JOIN message m ON m.tenant = ? AND m.id = j.value"
        " CROSS JOIN delivery d ON d.number = m.number WHERE d.canceling = 0",
        (encode(sorted(set(call.message_ids))).decode(), call.tenant),
    ).fetchall()
    for number, lane, token, facts in found:
        state = State.WAITING if token is None else State.CLAIMED
        ending.cancel(number, decode_message(facts), lane=lane, state=state)
    ending.write()
    return len(found)


def take_over(batch: Batch, *, now_ms: int) -> int:
    """At start: whatever was claimed by the process before us waits again (D18).

    It uses up no retry, but counts as an interruption.  How many there were.
    """
    db = batch.db
    db.execute(
        "UPDATE lane SET blocked_on = NULL, turn_ms = max(turn_ms, ?) WHERE blocked_on IS NOT NULL",
        (now_ms,),
    )
    permits.give_back_all(db)
    ending = Ending(batch, now_ms=now_ms)
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
            suspects.append((lane_of(claim.message, host, suspect=True), number))
        ending.release(claim, canceling=bool(canceling))
    db.executemany("UPDATE delivery SET lane = ? WHERE number = ?", suspects)
    ending.write()
    return len(cut_short)
