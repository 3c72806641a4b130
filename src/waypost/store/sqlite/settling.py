"""The home of ends as SQLite writes them: attempts are settled, claims released, messages
cancelled.

What follows from each is gathered by `waypost.store.ends`, and written in one transaction.
"""

from collections.abc import Sequence

import apsw
import msgspec

from waypost.domain.errors import StaleClaim
from waypost.domain.lanes import lane_of
from waypost.domain.message import Logged, State
from waypost.domain.places import SUSPECT_AFTER
from waypost.store.calls import Cancel, CancelMany, Release, Settle
from waypost.store.ends import Ends
from waypost.store.protocol import Cancelled, Claim
from waypost.store.sqlite import lanes, permits
from waypost.store.sqlite.adding import Adding
from waypost.store.sqlite.database import filled, insert, marks, query, slices
from waypost.store.sqlite.messages import decode_message, source_numbers
from waypost.store.sqlite.writer import Batch

encode = msgspec.json.encode


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


class Ending(Ends):
    """What one batch of ends gathers, and then writes table by table."""

    batch: Batch

    def write(self) -> None:
        db = self.batch.db
        for some in slices(self.canceling):
            db.execute(
                f"UPDATE delivery SET canceling = 1 WHERE number IN ({marks(len(some))})",
                filled(some),
            )
        for some in slices(self.ended):
            db.execute(f"DELETE FROM delivery WHERE number IN ({marks(len(some))})", filled(some))
        if self.retries:
            db.executemany(
                "UPDATE delivery SET token = NULL, due_ms = ?2, retried = ?3, interrupted = ?4"
                " WHERE number = ?1",
                self.retries,
            )
        insert(db, "event", self.events)
        insert(db, "dead_letter", self.dead_letters)
        permits.give_back(db, self.permits)
        self._call_back()
        self.free_awaited(source_numbers(db, self.awaited))
        lanes.free(db, self.holds)
        for tenant, key in {(tenant, key) for tenant, key, _ in self.permits}:
            permits.look_again(self.batch, tenant, key, now_ms=self.now_ms)
        lanes.join(self.batch, self.waiting, self.changed, now_ms=self.now_ms)

    def _call_back(self) -> None:
        if not self.callbacks:
            return
        adding = Adding(self.batch, self.callbacks[0][1].births, now_ms=self.now_ms)
        for draft, call in self.callbacks:
            adding.accept_one(draft, now_ms=call.now_ms, source=call.claim)
        adding.write()


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
