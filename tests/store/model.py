"""The home of what a store promises, as a model of it: simple, slow, and in no hurry to be clever.

It is told what was asked and what was answered, and objects to every answer that breaks a
promise of `waypost.store.protocol`.  It counts for itself what flow-control keys and
schedules allow, and takes no word of the domain's for it.
"""

from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

from msgspec.structs import replace

from tests.support.factory import T0
from waypost.domain import callbacks
from waypost.domain.attempt import Delivered, GiveUp, TryAgain, Verdict
from waypost.domain.flow import Flow
from waypost.domain.message import Logged
from waypost.domain.places import SUSPECT_AFTER
from waypost.store.protocol import Accepted, Cancelled, Claim, Draft

Name = tuple[str, str]
"""Whose it is, and what they call it."""


@dataclass
class Known:
    """What the model knows of a message.  It `holds` a place in its queue from its first
    claim on; `awaited` are the callbacks that its queue waits for."""

    draft: Draft
    order: tuple[int, int]
    due_ms: int
    state: str = "waiting"  # or "in flight", "ended"
    holds: bool = False
    awaited: list["Known"] = field(default_factory=list)
    retried: int = 0
    interrupted: int = 0
    canceling: bool = False
    lingers: bool = False

    @property
    def alive(self) -> bool:
        return self.state != "ended"

    @property
    def id(self) -> str:
        return self.draft.message.id

    @property
    def tenant(self) -> str:
        return self.draft.message.tenant

    @property
    def queue(self) -> Name | None:
        queue = self.draft.message.queue
        return None if queue is None else (self.tenant, queue)

    @property
    def key(self) -> Name | None:
        flow = self.draft.message.flow
        return None if flow is None else (self.tenant, flow.key)

    @property
    def waits_for_key_alone(self) -> bool:
        """Whether it is in the lane of its key."""
        keyed = self.key is not None and self.queue is None
        return keyed and self.interrupted < SUSPECT_AFTER


@dataclass
class KnownQueue:
    parallelism: int = 1
    paused: bool = False


@dataclass
class KnownKey:
    """A flow-control key: its limits, and what began in the window that began at `window_ms`."""

    parallelism: int | None = None
    rate: int | None = None
    period_ms: int = 0
    window_ms: int = 0
    begun: int = 0
    paused: bool = False
    parallelism_pinned: bool = False
    rate_pinned: bool = False

    def ask(self, flow: Flow) -> None:
        if not self.parallelism_pinned:
            self.parallelism = flow.parallelism
        if not self.rate_pinned:
            self.rate, self.period_ms = flow.rate, flow.period_ms

    def begin(self, now_ms: int) -> None:
        if now_ms >= self.window_ms + self.period_ms:
            self.reset(now_ms)
        self.begun += 1

    def reset(self, now_ms: int) -> None:
        self.window_ms, self.begun = now_ms, 0

    def change(self, change: str, now_ms: int) -> None:
        match change:
            case "pause" | "resume":
                self.paused = change == "pause"
            case "reset":
                self.reset(now_ms)
            case "unpin":
                self.parallelism_pinned = self.rate_pinned = False
            case "pin parallelism":
                self.parallelism, self.parallelism_pinned = 2, True
            case "pin rate":
                self.rate, self.period_ms, self.rate_pinned = 2, 30, True
                self.reset(now_ms)

    def begun_in_window(self, now_ms: int) -> int:
        return 0 if now_ms >= self.window_ms + self.period_ms else self.begun

    def opens_ms(self, in_use: int, now_ms: int) -> int | None:
        """When an attempt may begin by the clock alone: now, later, or None."""
        if self.paused or (self.parallelism is not None and in_use >= self.parallelism):
            return None
        if self.rate is None or self.begun_in_window(now_ms) < self.rate:
            return now_ms
        return self.window_ms + self.period_ms


@dataclass
class KnownSchedule:
    """`version` grows with each change: a firing of an older one is nothing any more."""

    every_ms: int
    body: bytes
    version: int
    next_ms: int | None = None
    paused: bool = False
    fired: list[int] = field(default_factory=list)

    def aim(self, now_ms: int) -> None:
        """Fire next at the first whole multiple of `every_ms` that is to come."""
        after_ms = max([now_ms, *self.fired])
        self.next_ms = after_ms - after_ms % self.every_ms + self.every_ms


@dataclass
class Letter:
    it: Known
    failed_ms: int
    why: str


@dataclass
class Model:
    now_ms: int = T0
    known: dict[str, Known] = field(default_factory=dict)
    dedup: dict[Name, tuple[str, int]] = field(default_factory=dict)
    in_flight: list[Claim] = field(default_factory=list)
    queues: dict[Name, KnownQueue] = field(default_factory=dict)
    keys: dict[Name, KnownKey] = field(default_factory=dict)
    schedules: dict[Name, KnownSchedule] = field(default_factory=dict)
    letters: dict[str, Letter] = field(default_factory=dict)
    versions: int = 0
    next_due_ms: int | None = None

    def copy(self) -> "Model":
        """Another one that knows the same.  What was asked for is nobody's to change."""
        asked = [it.draft for it in self.known.values()]
        return deepcopy(self, {id(each): each for each in (*asked, *self.in_flight)})

    # Acceptance

    def added(self, drafts: Sequence[Draft], accepted: Sequence[Accepted]) -> list[str]:
        """Some drafts were to be accepted; the ids of those that were."""
        made = []
        for draft, answer in zip(drafts, accepted, strict=True):
            message = draft.message
            if draft.dedup_key is not None:
                key = (message.tenant, draft.dedup_key)
                first, until_ms = self.dedup.get(key, ("", 0))
                if until_ms > self.now_ms:
                    assert (answer.deduplicated, answer.message_id) == (True, first), answer
                    continue
                self.dedup[key] = (message.id, draft.dedup_until_ms)
            assert (answer.deduplicated, answer.message_id) == (False, message.id), answer
            made.append(self.accepted(draft).id)
        return made

    def accepted(self, draft: Draft) -> Known:
        due_ms = max(draft.message.not_before_ms, self.now_ms)
        it = self.known[draft.message.id] = Known(draft, (due_ms, len(self.known)), due_ms)
        if it.queue is not None:
            self.queues.setdefault(it.queue, KnownQueue())
        if it.key is not None and draft.message.flow is not None:
            self.keys.setdefault(it.key, KnownKey()).ask(draft.message.flow)
        if draft.message.awaited_by is not None and draft.message.callback_of is not None:
            source = self.known[draft.message.callback_of]
            if source.holds:
                source.awaited.append(it)
        return it

    # Attempts

    def claimed(self, claims: Sequence[Claim]) -> None:
        """Some claims were handed out by one call."""
        its = [self.known[claim.message.id] for claim in claims]
        joined = {it.queue for it in its if it.queue is not None and not it.holds}
        for claim in claims:
            self.began(claim)
        overtaken = [it for it in self.due() if it.holds and it.queue in joined]
        assert not overtaken, "those in retry go before those that wait for a place"

    def began(self, claim: Claim) -> Known:
        """An attempt began: it was one that may begin."""
        it = self.known[claim.message.id]
        assert it.state == "waiting", it
        assert it.due_ms <= self.now_ms, it
        assert (claim.message, claim.host) == (it.draft.message, it.draft.host)
        if it.draft.report is not None and it.draft.report.failure:
            assert b'"dlqId":"' in claim.body
        else:
            assert claim.body == it.draft.body
        assert (claim.retried, claim.interrupted) == (it.retried, it.interrupted)
        if it.queue is not None:
            self._takes_its_place(it, it.queue)
        if it.key is not None:
            self._takes_a_permit(it, it.key)
        it.state, it.lingers = "in flight", False
        self.in_flight.append(claim)
        suspects = [c for c in self.in_flight if c.interrupted >= SUSPECT_AFTER]
        assert len(suspects) <= 1, suspects
        return it

    def _takes_its_place(self, it: Known, name: Name) -> None:
        queue = self.queues.get(name, KnownQueue())
        assert not queue.paused, it
        if it.holds:
            return
        assert self.held(name) < queue.parallelism, (it, queue)
        older = [
            other
            for other in self.known.values()
            if (other.queue, other.state, other.holds) == (name, "waiting", False)
            and other.order < it.order
        ]
        assert not older, (it, older)
        it.holds = True

    def _takes_a_permit(self, it: Known, name: Name) -> None:
        assert self.has_room(it), (it, self.keys[name])
        self.keys[name].begin(self.now_ms)
        if it.waits_for_key_alone:
            older = [
                other
                for other in self.known.values()
                if (other.key, other.state) == (name, "waiting")
                and other.waits_for_key_alone
                and (other.due_ms, other.order[1]) < (it.due_ms, it.order[1])
            ]
            assert not older, (it, older)

    def settled(
        self, claim: Claim, verdict: Verdict, calls_back: Sequence[Draft], logged: Logged
    ) -> list[str]:
        """An attempt ended; the ids of the callbacks that were made of it."""
        it = self.known[claim.message.id]
        goes_on = isinstance(verdict, TryAgain) and not it.canceling
        if goes_on:
            expected = Logged.RETRY
        elif isinstance(verdict, Delivered):
            expected = Logged.DELIVERED
        else:
            expected = Logged.CANCELED if it.canceling else Logged.FAILED
        assert logged is expected, (it, verdict, logged)
        made = []
        for draft in calls_back:
            assert draft.report is not None
            if logged is Logged.FAILED or not draft.report.failure:
                body = callbacks.body(draft.report, claim.message, claim.body)
                made.append(self.accepted(replace(draft, body=body)).id)
        if goes_on and isinstance(verdict, TryAgain):
            it.state, it.due_ms, it.retried = "waiting", verdict.at_ms, it.retried + 1
            return made
        if logged is Logged.FAILED and isinstance(verdict, GiveUp):
            self.letters[it.id] = Letter(it, self.now_ms, verdict.why)
        self.ended(it)
        return made

    def released(self, claim: Claim) -> None:
        it = self.known[claim.message.id]
        if it.canceling:
            self.ended(it)
        else:
            it.state, it.due_ms = "waiting", self.now_ms

    def crashed(self) -> None:
        """The process ended while attempts were in flight."""
        for claim in self.in_flight:
            self.released(claim)
            self.known[claim.message.id].interrupted += 1
        self.in_flight.clear()

    def ended(self, it: Known) -> None:
        """A message ended: its place is free, or that of the message that it tells of, but
        for what has yet to end."""
        it.state = "ended"
        source = self.known.get(it.draft.message.callback_of or "", it)
        for each in (it, source):
            if not any(other.alive for other in (each, *each.awaited)):
                each.holds = False

    # What users do

    def cancelled(self, message_id: str, answer: Cancelled) -> None:
        it = self.known[message_id]
        assert (answer.known, answer.count) == (True, int(it.alive)), (it, answer)
        self._cancel(it)

    def cancelled_many(self, message_ids: Collection[str], count: int) -> None:
        its = [self.known[message_id] for message_id in message_ids]
        reached = [it for it in its if it.alive and not it.canceling]
        assert count == len(reached), (count, reached)
        for it in reached:
            self._cancel(it)

    def _cancel(self, it: Known) -> None:
        if it.state == "waiting":
            self.ended(it)
        elif it.state == "in flight":
            it.canceling = True

    def emptied(self, name: Name, count: int) -> None:
        its = [it.id for it in self.cancellable(name[0]) if it.queue == name]
        self.cancelled_many(its, count)
        self.queues.pop(name, None)

    def cancellable(self, tenant: str) -> list[Known]:
        """What a cancel would reach, in the order of acceptance."""
        alive = [it for it in self.known.values() if it.alive and not it.canceling]
        return [it for it in alive if it.tenant == tenant]

    def letters_retried(
        self, message_ids: Sequence[str], made: dict[str, Draft], answers: Sequence[str | None]
    ) -> None:
        """Dead letters of these messages were to be retried; `made` is what was made of each."""
        for message_id, answer in zip(message_ids, answers, strict=True):
            if self.letters.pop(message_id, None) is None:
                assert answer is None, message_id
                continue
            dead = self.known[message_id].draft
            new = replace(made[message_id], body=dead.body, report=dead.report)
            assert answer == new.message.id
            self.accepted(new)

    def letters_deleted(self, message_ids: Sequence[str], count: int) -> None:
        gone = [self.letters.pop(message_id, None) for message_id in message_ids]
        assert count == sum(letter is not None for letter in gone), (message_ids, count)

    def queue_put(self, name: Name, parallelism: int, *, paused: bool | None) -> None:
        queue = self.queues.setdefault(name, KnownQueue())
        queue.parallelism = parallelism
        queue.paused = queue.paused if paused is None else paused

    def queue_paused(self, name: Name, *, paused: bool, known: bool) -> None:
        assert known is (name in self.queues)
        if known:
            self.queues[name].paused = paused

    def schedule_put(self, name: Name, every_ms: int, body: bytes) -> None:
        before = self.schedules.get(name)
        fired = [] if before is None else before.fired
        it = self.schedules[name] = KnownSchedule(every_ms, body, self.next_version(), fired=fired)
        it.aim(self.now_ms)
        if before is not None and before.every_ms == every_ms and before.next_ms is not None:
            it.next_ms = min(it.next_ms or before.next_ms, before.next_ms)

    def schedule_changed(self, name: Name, change: str) -> None:
        if change == "delete":
            self.schedules.pop(name, None)
            return
        it, paused = self.schedules.get(name), change == "pause"
        if it is not None and it.paused is not paused:
            it.paused, it.version, it.next_ms = paused, self.next_version(), None
            if not paused:
                it.aim(self.now_ms)

    def fired(
        self, name: Name, version: int, fire_ms: int, drafts: Sequence[Draft], answer: bool
    ) -> list[str]:
        """A schedule was to fire as it stood at `version`; the ids of the run's messages."""
        it = self.schedules.get(name)
        assert answer is (it is not None and it.version == version), (name, it)
        if it is None or not answer:
            return []
        assert fire_ms == it.next_ms, it
        assert fire_ms not in it.fired, "a fire time ran twice"
        it.fired.append(fire_ms)
        it.next_ms, it.version = fire_ms + it.every_ms, self.next_version()
        return [self.accepted(draft).id for draft in drafts]

    def next_version(self) -> int:
        self.versions += 1
        return self.versions

    # What there is to see

    def waiting(self) -> list[Known]:
        return [it for it in self.known.values() if it.state == "waiting"]

    def due(self) -> list[Known]:
        return [it for it in self.waiting() if it.due_ms <= self.now_ms]

    def held(self, name: Name) -> int:
        """How many places of a queue are taken."""
        return sum(it.holds for it in self.known.values() if it.queue == name)

    def lag(self, name: Name) -> int:
        """How many messages of a queue are not yet done."""
        its = [it for it in self.waiting() if it.queue == name and not it.holds]
        return self.held(name) + len(its)

    def in_use(self, name: Name) -> int:
        """How many attempts of a flow-control key are under way."""
        return sum(self.known[claim.message.id].key == name for claim in self.in_flight)

    def opens_ms(self, name: Name) -> int | None:
        return self.keys[name].opens_ms(self.in_use(name), self.now_ms)

    def has_room(self, it: Known) -> bool:
        """Whether the message's flow-control key lets an attempt begin."""
        return it.key is None or self.opens_ms(it.key) == self.now_ms

    def has_a_place(self, it: Known) -> bool:
        """Whether the message's queue lets an attempt begin, but for those before it."""
        if it.queue is None:
            return True
        queue = self.queues.get(it.queue, KnownQueue())
        return not queue.paused and (it.holds or self.held(it.queue) < queue.parallelism)

    def may_go(self) -> list[Known]:
        """What is due and held up by nothing but places, when nothing is in flight."""
        stuck = [it for it in self.due() if it.queue is not None and not self.has_room(it)]
        return [
            it
            for it in self.due()
            if self.has_room(it)
            and self.has_a_place(it)
            and not any(o.queue == it.queue and o.order < it.order for o in stuck)
        ]

    def opens_next_ms(self) -> int:
        """When the first of those that wait may go, when nothing is in flight."""
        return min(
            max(it.due_ms, self.now_ms if it.key is None else self.opens_ms(it.key) or 0)
            for it in self.waiting()
            if self.has_a_place(it) and (it.holds or self._is_head(it))
        )

    def _is_head(self, it: Known) -> bool:
        """Whether it is the first of those that wait for a place of its queue."""
        its = [other for other in self.waiting() if other.queue == it.queue and not other.holds]
        return it.queue is None or it is min(its, key=lambda other: other.order)
