"""The home of what ends bring about: of an attempt, of a claim, of a message.

It is asked of the domain's table of states (`NEXT`), and gathered: log entries, the next due
time or the dead letter, the freed place of a queue, and the callbacks.  An engine locks what
may end, and writes what was gathered in one transaction.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from waypost.domain.attempt import Delivered, GiveUp, TryAgain, Verdict
from waypost.domain.errors import StaleClaim
from waypost.domain.ids import dead_letter_id
from waypost.domain.lanes import Place, key_lane, key_of, lane_of, queue_lane, queue_of
from waypost.domain.message import NEXT, Event, Logged, Message, State
from waypost.domain.places import SUSPECT_AFTER
from waypost.store.calls import Batch, Settle
from waypost.store.details import Detail, answer_of, note_of
from waypost.store.protocol import Claim, Draft

encode = msgspec.json.encode


class Ends:
    """What one batch of ends gathers, to be written table by table."""

    batch: Batch

    def __init__(self, batch: Batch, *, now_ms: int) -> None:
        self.batch = batch
        self.now_ms = now_ms
        self.ended: list[int] = []
        self.awaited: list[Message] = []  # callbacks that have ended, and that a queue waited for
        self.holds: set[tuple[str, str, int]] = set()  # tenant, lane and number of the message
        self.permits: list[tuple[str, str, int]] = []  # tenant, key and number of the message
        self.canceling: list[int] = []
        self.retries: list[tuple[int, int, int, int]] = []  # number, due_ms, retried, interrupted
        self.waiting: dict[Place, int] = {}  # in lanes without places of their own
        self.changed: set[Place] = set()
        self.dead_letters: list[tuple[Any, ...]] = []
        self.events: list[tuple[Any, ...]] = []
        self.callbacks: list[tuple[Draft, Settle]] = []

    def settle(self, call: Settle, row: tuple[int | None, int] | None) -> Logged | StaleClaim:
        """End an attempt.  `row`: the token of the delivery, and whether it is to be cancelled;
        None where there is none any more."""
        claim, verdict, outcome, now_ms = call.claim, call.verdict, call.outcome, call.now_ms
        if row is None or row[0] != claim.token:
            return StaleClaim(f"the claim on {claim.message.id} was lost")
        self._give_back(claim)
        state = State.CANCELING if row[1] else State.CLAIMED
        after = NEXT[state][_EVENT_OF[type(verdict)]]
        for draft in call.callbacks:
            if not is_of_failure(draft):
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
            self._wait(claim, verdict.at_ms, retried=claim.retried + verdict.counts)
            return Logged.RETRY
        assert isinstance(verdict, GiveUp), verdict
        self.log(claim.message, Logged.FAILED, now_ms, Detail(error=verdict.why))
        tenant, number = claim.message.tenant, self.batch.numbers.next()
        detail = encode(answer_of(outcome, why=verdict.why))
        self.dead_letters.append((tenant, now_ms, number, claim.message.id, detail))
        for draft in call.callbacks:
            if is_of_failure(draft):
                self.callbacks.append((_naming(draft, dead_letter_id(now_ms, number)), call))
        self.end(claim.number, claim.message)
        return Logged.FAILED

    def release(self, claim: Claim, *, canceling: bool) -> None:
        """Put a claim back as it was, or end it where it was to be cancelled."""
        self._give_back(claim)
        if NEXT[State.CANCELING if canceling else State.CLAIMED][Event.RELEASE] is State.CANCELED:
            self.log(claim.message, Logged.CANCELED, self.now_ms)
            self.end(claim.number, claim.message)
        else:
            self._wait(claim, self.now_ms, retried=claim.retried)

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

    def end(self, number: int, message: Message) -> None:
        """End a delivery: it goes, and frees its place in a queue."""
        self.ended.append(number)
        if message.queue is not None:
            self._free(message.tenant, message.queue, number)
        if message.awaited_by is not None:
            self.awaited.append(message)

    def free_awaited(self, sources: Mapping[tuple[str, str], int]) -> None:
        """Free the places in queues that waited for callbacks which have ended.  `sources`: the
        numbers of the messages that those are about, by the callbacks' tenants and ids."""
        for callback in self.awaited:
            assert callback.awaited_by is not None, callback.id
            number = sources[callback.tenant, callback.id]
            self._free(callback.tenant, callback.awaited_by, number)

    def log(
        self, message: Message, state: Logged, now_ms: int, detail: Detail | None = None
    ) -> None:
        self.events.append(
            (
                *(message.tenant, now_ms, self.batch.numbers.next(), message.id, state),
                None if detail is None else encode(detail),
            )
        )

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

    def _wait(self, claim: Claim, due_ms: int, *, retried: int) -> None:
        """Let a message wait again."""
        self.retries.append((claim.number, due_ms, retried, claim.interrupted))
        place = place_of(claim)
        if queue_of(place[1]) is None and key_of(place[1]) is None:
            self.waiting[place] = min(due_ms, self.waiting.get(place, due_ms))
        else:
            self.changed.add(place)


def place_of(claim: Claim) -> Place:
    """Where a message waits again."""
    message = claim.message
    suspect = claim.interrupted >= SUSPECT_AFTER
    return message.tenant, lane_of(message, claim.host, suspect=suspect)


def is_of_failure(draft: Draft) -> bool:
    """Whether a callback is made only where the message fails."""
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
