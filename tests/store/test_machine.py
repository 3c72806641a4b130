"""A store against the model of it: whatever is asked, in whatever order and at the same moment,
no answer breaks a promise, and whatever is due goes in the end.

A history that fails is told at its shortest.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from tests.store.conftest import DATABASES, IN_MEMORY, Stores
from tests.store.model import Known, Model
from tests.support.factory import ERROR, MINUTE, OK, a_callback, a_draft, a_message, a_schedule
from waypost.domain import schedules
from waypost.domain.attempt import Delivered, GiveUp, TryAgain, Verdict
from waypost.domain.callbacks import Report
from waypost.domain.errors import StaleClaim
from waypost.domain.filters import EVERYTHING, Filter
from waypost.domain.flow import Flow, FlowKey
from waypost.domain.message import Message
from waypost.domain.places import Places, Sign
from waypost.domain.schedules import Rule, Schedule
from waypost.store.postgres.store import PostgresStore
from waypost.store.protocol import Births, Claim, Draft, Store, give_back_place
from waypost.store.sqlite.store import SqliteStore

TENANTS = ("a", "b")
HOSTS = tuple(f"https://h{n}.example/" for n in range(5))
FLOWS = {
    "k0": Flow("k0", parallelism=1),
    "k1": Flow("k1", rate=3, period_ms=40),
    "k2": Flow("k2", parallelism=2, rate=5, period_ms=60),
}
EVERY_MS = {"* * * * *": MINUTE, "*/2 * * * *": 2 * MINUTE}
ALL_MISFIRES = Rule("all", window_ms=1 << 40)

CHANGES: dict[str, Callable[[FlowKey, int], FlowKey]] = {
    "pause": lambda key, _: replace(key, paused=True),
    "resume": lambda key, _: replace(key, paused=False),
    "reset": lambda key, now_ms: key.rate_reset(now_ms=now_ms),
    "unpin": lambda key, _: key.unpinned(parallelism=True, rate=True),
    "pin parallelism": lambda key, now_ms: key.pinned(
        parallelism=2, rate=None, period_ms=None, now_ms=now_ms
    ),
    "pin rate": lambda key, now_ms: key.pinned(
        parallelism=None, rate=2, period_ms=30, now_ms=now_ms
    ),
}

RANK = {"settle": 0, "release": 1, "cancel": 2, "add": 3}
"""The order in which SQLite does calls that share a transaction; the other kinds come after
these, in the order in which they were asked for.  PostgreSQL does those of different kinds
side by side: there it is as if they had been done in some order."""

COUNT_MAX = 10_000


@dataclass(frozen=True)
class Wish:
    """What a publisher asks for."""

    host: str
    key: str | None
    delay_ms: int
    size: int
    dedup_key: str | None


wishes = st.builds(
    Wish,
    host=st.sampled_from(HOSTS),
    key=st.sampled_from((None, *FLOWS)),
    delay_ms=st.sampled_from((0, 0, 0, 5, 50)),
    size=st.sampled_from((0, 10, 1_000)),
    dedup_key=st.sampled_from((None, None, "d0", "d1")),
)
fan_outs = st.lists(wishes, min_size=1, max_size=3)


@dataclass(frozen=True)
class CallBack:
    """A callback that a message asks for."""

    failure: bool
    host: str
    queue: str | None
    key: str | None
    delay_ms: int


callbacks = st.lists(
    st.builds(
        CallBack,
        failure=st.booleans(),
        host=st.sampled_from(HOSTS),
        queue=st.sampled_from((None, None, "q0")),
        key=st.sampled_from((None, None, *FLOWS)),
        delay_ms=st.sampled_from((0, 0, 20)),
    ),
    max_size=2,
)
picks = st.integers(0, 99)
tenants = st.sampled_from(("a", "a", "a", "b"))
queues = st.sampled_from(("q0", "q0", "q1"))
signs = st.sampled_from((Sign.WELL, Sign.WELL, Sign.DOWN, Sign.SLOW))
together = st.booleans()
"""Whether a call is to share its moment with the next ones."""


@dataclass
class Asked:
    kind: str
    call: Callable[[], Awaitable[Any]]
    heard: Callable[[Any], Collection[str] | None]
    """Holds the answer against the model; the ids of messages that were made, if any were."""


class Machine(RuleBasedStateMachine):
    steps = 0

    def __init__(self, stores: Stores, *, crashes: bool, side_by_side: bool, alone: bool) -> None:
        super().__init__()
        self.crashes, self.side_by_side, self.alone = crashes, side_by_side, alone
        self.model = Model()
        self.runner = asyncio.Runner()
        self.given = ExitStack()
        self.open_store = self.given.enter_context(stores())
        self.opened: AbstractAsyncContextManager[Store] | None = None
        self.asked: list[Asked] = []
        self.born: list[Claim] = []
        self.lost: list[Claim] = []
        self.letter_ids: dict[str, str] = {}
        self.seen: list[tuple[Schedule, bytes, int]] = []
        self.sound = True
        self.run(self._open())

    def run(self, steps: Awaitable[None]) -> None:
        async def take() -> None:
            await steps

        sound, self.sound = self.sound, False
        self.runner.run(take())
        self.sound = sound

    async def _open(self) -> None:
        self.opened = self.open_store(now_ms=self.model.now_ms)
        self.store = await self.opened.__aenter__()
        self.places = Places(count_max=12, host_count_max=4, bytes_max=3_000, hosts_known_max=3)

    async def _close(self) -> None:
        assert self.opened is not None
        await self.opened.__aexit__(None, None, None)

    def teardown(self) -> None:
        try:
            if self.sound:
                self.run(self._come_to_an_end())
        finally:
            with self.given, self.runner:
                self.runner.run(self._close())

    # Calls

    def ask(
        self,
        kind: str,
        call: Callable[[], Awaitable[Any]],
        heard: Callable[[Any], Collection[str] | None],
        *,
        shared: bool,
    ) -> None:
        """Ask for something now, or at the same moment as the next, unless each is to be alone."""
        type(self).steps += 1
        self.asked.append(Asked(kind, call, heard))
        if self.alone or not shared or len(self.asked) == 4:
            self.run(self._hear())

    async def _hear(self) -> None:
        """Ask for all that is to be asked for at this moment, and hold the answers against
        the model."""
        asked, self.asked = self.asked, []
        answers = await asyncio.gather(*[each.call() for each in asked])
        kinds = list(dict.fromkeys(each.kind for each in asked))
        rank = {kind: RANK.get(kind, len(RANK) + nth) for nth, kind in enumerate(kinds)}
        heard = sorted(zip(asked, answers, strict=True), key=lambda pair: rank[pair[0].kind])
        if self.side_by_side and len(kinds) > 1:
            await self._find_an_order(heard)
        else:
            self._believe(heard)

    def _believe(self, heard: Sequence[tuple[Asked, Any]]) -> None:
        """Hold answers against the model, in the order in which they were made."""
        for each, answer in heard:
            made = each.heard(answer) or ()
            for claim in [claim for claim in self.born if claim.message.id in made]:
                self.model.began(claim)
                self.born.remove(claim)
        assert not self.born
        assert self.places.in_flight == len(self.model.in_flight)

    async def _find_an_order(self, heard: Sequence[tuple[Asked, Any]]) -> None:
        """Find an order that explains the answers, and what is seen now."""
        before, born = self.model, self.born
        faults: list[AssertionError] = []
        for order in permutations(heard):
            self.model, self.born = before.copy(), list(born)
            try:
                self._believe(order)
                await self._check()
            except AssertionError as fault:
                faults.append(fault)
            else:
                return
        raise faults[0]

    @property
    def births(self) -> Births:
        return Births(self.places, self.born.append)

    # Publishing

    @rule(tenant=tenants, wished=fan_outs, one_body=st.booleans(), shared=together)
    def publish(self, tenant: str, wished: list[Wish], one_body: bool, shared: bool) -> None:
        self._add([self._draft(tenant, wish) for wish in wished], one_body, shared)

    @rule(tenant=tenants, queue=queues, wished=fan_outs, one_body=st.booleans(), shared=together)
    def enqueue(
        self, tenant: str, queue: str, wished: list[Wish], one_body: bool, shared: bool
    ) -> None:
        drafts = [self._draft(tenant, wish, queue=queue) for wish in wished]
        self._add(drafts, one_body, shared)

    def _add(self, drafts: list[Draft], one_body: bool, shared: bool) -> None:
        if one_body:
            drafts = [replace(draft, body=drafts[0].body) for draft in drafts]
        births, now_ms = self.births, self.model.now_ms
        self.ask(
            "add",
            lambda: self.store.add(drafts, births=births, now_ms=now_ms),
            lambda accepted: self.model.added(drafts, accepted),
            shared=shared,
        )

    def _draft(self, tenant: str, wish: Wish, **facts: Any) -> Draft:
        return a_draft(
            at_ms=self.model.now_ms,
            tenant=tenant,
            url=wish.host,
            flow=None if wish.key is None else FLOWS[wish.key],
            delay_ms=wish.delay_ms,
            body=b"x" * wish.size,
            dedup_key=wish.dedup_key,
            window_ms=100,
            **facts,
        )

    # Attempts

    @rule(count_max=st.sampled_from((1, 3, 12)), shared=together)
    def claim(self, count_max: int, shared: bool) -> None:
        if any(each.kind == "claim" for each in self.asked):
            return
        places, now_ms = self.places, self.model.now_ms
        self.ask(
            "claim",
            lambda: self.store.claim(count_max=count_max, places=places, now_ms=now_ms),
            lambda claimed: self.model.claimed(claimed.claims),
            shared=shared,
        )

    in_flight = precondition(lambda self: bool(self.model.in_flight))

    @in_flight
    @rule(pick=picks, calls_back=callbacks, shared=together)
    def deliver(self, pick: int, calls_back: list[CallBack], shared: bool) -> None:
        self._settle(pick, Sign.WELL, Delivered(), calls_back, shared)

    @in_flight
    @rule(
        pick=picks,
        sign=signs,
        wait_ms=st.sampled_from((0, 0, 7, 40)),
        calls_back=callbacks,
        shared=together,
    )
    def retry(
        self, pick: int, sign: Sign, wait_ms: int, calls_back: list[CallBack], shared: bool
    ) -> None:
        self._settle(pick, sign, TryAgain(self.model.now_ms + wait_ms), calls_back, shared)

    @in_flight
    @rule(pick=picks, sign=signs, calls_back=callbacks, shared=together)
    def give_up(self, pick: int, sign: Sign, calls_back: list[CallBack], shared: bool) -> None:
        self._settle(pick, sign, GiveUp("why"), calls_back, shared)

    def _settle(
        self, pick: int, sign: Sign, verdict: Verdict, calls_back: list[CallBack], shared: bool
    ) -> None:
        claim = self._end(pick, sign)
        drafts = [] if claim.message.callback_of else self._callbacks(claim.message, calls_back)
        births, now_ms = self.births, self.model.now_ms
        outcome = OK if isinstance(verdict, Delivered) else ERROR
        self.ask(
            "settle",
            lambda: self.store.settle(
                claim, verdict, outcome, callbacks=drafts, births=births, now_ms=now_ms
            ),
            lambda logged: self.model.settled(claim, verdict, drafts, logged),
            shared=shared,
        )

    def _callbacks(self, source: Message, calls_back: list[CallBack]) -> list[Draft]:
        return [
            a_callback(
                source,
                at_ms=self.model.now_ms,
                url=each.host,
                delay_ms=each.delay_ms,
                queue=each.queue,
                awaited_by=source.queue if each.queue is None else None,
                flow=None if each.key is None else FLOWS[each.key],
                report=Report(status=200, body=b"y", failure=each.failure),
            )
            for each in sorted(calls_back, key=lambda each: each.failure)
        ]

    def _end(self, pick: int, sign: Sign) -> Claim:
        """End an attempt, as this process sees it."""
        claim = self.model.in_flight.pop(pick % len(self.model.in_flight))
        lingers = self.model.known[claim.message.id].lingers
        give_back_place(self.places, claim, sign, lingers=lingers)
        self.lost.append(claim)
        return claim

    @in_flight
    @rule(pick=picks, shared=together)
    def release(self, pick: int, shared: bool) -> None:
        claim, now_ms = self._end(pick, Sign.NONE), self.model.now_ms
        self.ask(
            "release",
            lambda: self.store.release([claim], now_ms=now_ms),
            lambda _: self.model.released(claim),
            shared=shared,
        )

    @in_flight
    @rule(pick=picks)
    def linger(self, pick: int) -> None:
        claim = self.model.in_flight[pick % len(self.model.in_flight)]
        it = self.model.known[claim.message.id]
        it.lingers = it.lingers or self.places.linger(claim.host)

    @precondition(lambda self: bool(self.lost))
    @rule(pick=picks)
    def settle_what_was_lost(self, pick: int) -> None:
        claim = self.lost[-1 - pick % len(self.lost)]

        async def settle() -> None:
            with pytest.raises(StaleClaim):
                await self.store.settle(
                    claim, Delivered(), OK, births=self.births, now_ms=self.model.now_ms
                )
            await self.store.release([claim], now_ms=self.model.now_ms)

        self._now(settle())

    def _now(self, steps: Awaitable[None]) -> None:
        """Do something for itself, once all that was asked for is done."""

        async def take() -> None:
            await self._hear()
            await steps

        type(self).steps += 1
        self.run(take())

    # What users do with messages

    known = precondition(lambda self: bool(self.model.known))

    @known
    @rule(pick=picks, shared=together)
    def cancel(self, pick: int, shared: bool) -> None:
        it = list(self.model.known.values())[-1 - pick % len(self.model.known)]
        now_ms = self.model.now_ms
        self.ask(
            "cancel",
            lambda: self.store.cancel(it.tenant, it.id, now_ms=now_ms),
            lambda cancelled: self.model.cancelled(it.id, cancelled),
            shared=shared,
        )

    @known
    @rule(
        tenant=tenants,
        queues=st.frozensets(queues, max_size=1),
        urls=st.frozensets(st.sampled_from(HOSTS), max_size=2),
        flow_keys=st.frozensets(st.sampled_from(sorted(FLOWS)), max_size=1),
    )
    def cancel_many(
        self,
        tenant: str,
        queues: frozenset[str],
        urls: frozenset[str],
        flow_keys: frozenset[str],
    ) -> None:
        def means(it: Known) -> bool:
            message = it.draft.message
            return (
                (not queues or message.queue in queues)
                and (not urls or message.url in urls)
                and (not flow_keys or (message.flow is not None and message.flow.key in flow_keys))
            )

        async def cancel() -> None:
            where = Filter(queues=queues, urls=urls, flow_keys=flow_keys)
            found = await self.store.cancellable(tenant, where=where, cursor=None)
            assert found.cursor is None
            meant = [it.id for it in self.model.cancellable(tenant) if means(it)]
            assert found.ids == meant
            count = await self.store.cancel_many(tenant, meant, now_ms=self.model.now_ms)
            self.model.cancelled_many(meant, count)

        self._now(cancel())

    letters = precondition(lambda self: bool(self.letter_ids))

    @letters
    @rule(some=st.lists(picks, min_size=1, max_size=3, unique=True), shared=together)
    def retry_letters(self, some: list[int], shared: bool) -> None:
        tenant, letter_ids, message_ids = self._some_letters(some)
        now_ms, made = self.model.now_ms, {}

        def new_message(dead: Message) -> Draft:
            message = replace(
                dead, id=a_message(at_ms=now_ms).id, created_ms=now_ms, not_before_ms=now_ms
            )
            made[dead.id] = Draft(message=message, host=self.model.known[dead.id].draft.host)
            return made[dead.id]

        self.ask(
            "retry letters",
            lambda: self.store.retry_dead_letters(tenant, letter_ids, new_message, now_ms=now_ms),
            lambda new_ids: self.model.letters_retried(message_ids, made, new_ids),
            shared=shared,
        )

    @letters
    @rule(some=st.lists(picks, min_size=1, max_size=3, unique=True), shared=together)
    def delete_letters(self, some: list[int], shared: bool) -> None:
        tenant, letter_ids, message_ids = self._some_letters(some)
        self.ask(
            "delete letters",
            lambda: self.store.delete_dead_letters(tenant, letter_ids),
            lambda count: self.model.letters_deleted(message_ids, count),
            shared=shared,
        )

    def _some_letters(self, some: list[int]) -> tuple[str, list[str], list[str]]:
        """Dead letters of one tenant that there are, or were."""
        every = list(self.letter_ids.items())[::-1]
        picked = dict(every[pick % len(every)] for pick in some)
        tenant = self.model.known[next(iter(picked.values()))].tenant
        its = {
            letter: message
            for letter, message in picked.items()
            if self.model.known[message].tenant == tenant
        }
        return tenant, list(its), list(its.values())

    # Queues and flow-control keys

    queued = precondition(lambda self: bool(self.model.queues))

    @rule(
        tenant=tenants,
        name=queues,
        parallelism=st.integers(1, 3),
        paused=st.sampled_from((None, None, False, True)),
        shared=together,
    )
    def put_queue(
        self, tenant: str, name: str, parallelism: int, paused: bool | None, shared: bool
    ) -> None:
        now_ms = self.model.now_ms
        self.ask(
            "put queue",
            lambda: self.store.put_queue(
                tenant, name, parallelism=parallelism, paused=paused, now_ms=now_ms
            ),
            lambda _: self.model.queue_put((tenant, name), parallelism, paused=paused),
            shared=shared,
        )

    @queued
    @rule(pick=picks, paused=st.booleans(), shared=together)
    def pause_queue(self, pick: int, paused: bool, shared: bool) -> None:
        tenant, name = list(self.model.queues)[pick % len(self.model.queues)]
        now_ms = self.model.now_ms
        self.ask(
            "pause queue",
            lambda: self.store.pause_queue(tenant, name, paused=paused, now_ms=now_ms),
            lambda known: self.model.queue_paused((tenant, name), paused=paused, known=known),
            shared=shared,
        )

    @queued
    @rule(pick=picks)
    def empty_queue(self, pick: int) -> None:
        tenant, name = list(self.model.queues)[pick % len(self.model.queues)]

        async def empty() -> None:
            count, mark = 0, None
            while True:
                emptied = await self.store.empty_queue(
                    tenant, name, mark=mark, count_max=2, now_ms=self.model.now_ms
                )
                count, mark = count + emptied.cancelled, emptied.mark
                if mark is None:
                    break
            self.model.emptied((tenant, name), count)

        self._now(empty())

    @precondition(lambda self: bool(self.model.keys))
    @rule(pick=picks, change=st.sampled_from(sorted(CHANGES)), shared=together)
    def change_key(self, pick: int, change: str, shared: bool) -> None:
        tenant, name = list(self.model.keys)[pick % len(self.model.keys)]
        now_ms = self.model.now_ms

        def changed(key: FlowKey | None) -> FlowKey:
            assert key is not None
            return CHANGES[change](key, now_ms)

        self.ask(
            "change key",
            lambda: self.store.change_flow_key(tenant, name, changed, now_ms=now_ms),
            lambda _: self.model.keys[tenant, name].change(change, now_ms),
            shared=shared,
        )

    # Schedules

    @rule(
        tenant=tenants,
        cron=st.sampled_from(sorted(EVERY_MS)),
        body=st.sampled_from((b"", b"x")),
        shared=together,
    )
    def put_schedule(self, tenant: str, cron: str, body: bytes, shared: bool) -> None:
        now_ms = self.model.now_ms
        schedule = a_schedule(
            tenant=tenant, cron=cron, destination=HOSTS[0], created_ms=now_ms, updated_ms=now_ms
        )

        def put(before: Schedule | None) -> Schedule:
            return schedules.in_place_of(before, schedule, now_ms=now_ms)

        self.ask(
            "change schedule",
            lambda: self.store.change_schedule(tenant, "s", put, body=body),
            lambda _: self.model.schedule_put((tenant, "s"), EVERY_MS[cron], body),
            shared=shared,
        )

    scheduled = precondition(lambda self: bool(self.model.schedules))

    @scheduled
    @rule(tenant=tenants, change=st.sampled_from(("pause", "resume", "delete")), shared=together)
    def change_schedule(self, tenant: str, change: str, shared: bool) -> None:
        now_ms = self.model.now_ms

        def changed(schedule: Schedule | None) -> Schedule | None:
            if schedule is None or change == "delete":
                return None
            does = schedules.paused if change == "pause" else schedules.resumed
            return does(schedule, now_ms=now_ms)

        self.ask(
            "change schedule",
            lambda: self.store.change_schedule(tenant, "s", changed),
            lambda _: self.model.schedule_changed((tenant, "s"), change),
            shared=shared,
        )

    @scheduled
    @rule(by_ms=st.sampled_from((0, MINUTE)))
    def see_what_is_due(self, by_ms: int) -> None:
        async def see() -> None:
            self.model.now_ms += by_ms
            now_ms = self.model.now_ms
            found = await self.store.due_schedules(now_ms=now_ms, count_max=9, bytes_max=99)
            every = {(schedule.tenant, schedule.id): body for schedule, body in found.due}
            aims = {name: it for name, it in self.model.schedules.items() if it.next_ms is not None}
            due = {name: it.body for name, it in aims.items() if it.next_ms <= now_ms}
            assert every == due
            later = [it.next_ms for name, it in aims.items() if name not in due]
            assert found.next_ms == min(later, default=None)
            self.seen += [
                (schedule, body, self.model.schedules[schedule.tenant, schedule.id].version)
                for schedule, body in found.due
            ]

        self._now(see())

    @precondition(lambda self: bool(self.seen))
    @rule(pick=picks, wish=wishes, count=st.integers(0, 2), twice=st.booleans(), shared=together)
    def fire(self, pick: int, wish: Wish, count: int, twice: bool, shared: bool) -> None:
        """Fire a schedule as it was seen, lately or long ago."""
        if twice:
            self._fire(pick, wish, count, shared=True)
        self._fire(pick, wish, count, shared=shared)

    def _fire(self, pick: int, wish: Wish, count: int, *, shared: bool) -> None:
        before, body, version = self.seen[-1 - pick % len(self.seen)]
        births, now_ms = self.births, self.model.now_ms
        drafts = [
            replace(self._draft(before.tenant, wish, schedule=before.id), body=body, dedup_key=None)
            for _ in range(count)
        ]
        turn = schedules.turn(before, rule=ALL_MISFIRES, now_ms=now_ms)
        assert turn.fire_ms is not None
        run = [draft.message.id for draft in drafts]
        after = schedules.moved_on(before, turn, run=run, error=None, now_ms=now_ms)
        name, fire_ms = (before.tenant, before.id), turn.fire_ms
        self.ask(
            "fire",
            lambda: self.store.fire(before, after, drafts, births=births, now_ms=now_ms),
            lambda fired: self.model.fired(name, version, fire_ms, drafts, fired),
            shared=shared,
        )

    # Time

    @rule(by_ms=st.sampled_from((0, 1, 3, 10, 40, MINUTE)), claims=st.booleans())
    def time_passes(self, by_ms: int, claims: bool) -> None:
        async def pass_by() -> None:
            self.model.now_ms += by_ms
            if claims:
                await self._claim(12)

        self._now(pass_by())

    @rule(by_ms=st.sampled_from((7, 20)))
    def what_is_due_is_claimed(self, by_ms: int) -> None:
        self.time_passes(by_ms, claims=True)

    @precondition(lambda self: self.crashes)
    @rule()
    def crash(self) -> None:
        async def reopen() -> None:
            await self._close()
            self.lost += self.model.in_flight
            self.model.crashed()
            await self._open()

        self._now(reopen())

    @rule()
    def come_to_rest(self) -> None:
        self._now(self._come_to_rest())

    async def _come_to_rest(self) -> None:
        """Deliver all that is in flight, and then whatever is due, until nothing is."""
        model = self.model
        for _ in range(100):
            while model.in_flight:
                claim = self._end(0, Sign.WELL)
                births = Births(self.places, lambda _claim: None)
                settled = await self.store.settle(
                    claim, Delivered(), OK, births=births, now_ms=model.now_ms
                )
                model.settled(claim, Delivered(), (), settled)
            left = model.may_go()
            if not left:
                return
            claimed = await self._claim(self.places.free)
            assert claimed or model.next_due_ms is not None or self.places.any_open, left
        raise AssertionError(f"these never go: {model.may_go()[:3]}")

    async def _claim(self, count_max: int) -> list[Claim]:
        model = self.model
        claimed = await self.store.claim(
            count_max=count_max, places=self.places, now_ms=model.now_ms
        )
        model.claimed(claimed.claims)
        model.next_due_ms = claimed.next_due_ms
        return claimed.claims

    async def _come_to_an_end(self) -> None:
        """Let everything go on, and wait until everything has gone."""
        await self._hear()
        model = self.model
        for (tenant, name), queue in model.queues.items():
            await self.store.pause_queue(tenant, name, paused=False, now_ms=model.now_ms)
            queue.paused = False
        for (tenant, name), key in model.keys.items():
            await self.store.change_flow_key(tenant, name, _resumed, now_ms=model.now_ms)
            key.paused = False
        for _ in range(100):
            await self._come_to_rest()
            left = model.waiting()
            if not left:
                break
            assert not await self._claim(self.places.free)
            assert model.next_due_ms is not None, left
            assert model.next_due_ms <= max(model.now_ms, model.opens_next_ms()), left
            model.now_ms = max(model.now_ms, model.next_due_ms)
        assert not model.waiting()
        await self._check()

    # What there is to see

    @invariant()
    def nothing_else_is_seen(self) -> None:
        if not self.asked and self.sound:
            self.run(self._check())

    async def _check(self) -> None:
        for tenant in TENANTS:
            await self._check_tenant(tenant)
        await self._check_rows()

    async def _check_tenant(self, tenant: str) -> None:
        model, now_ms = self.model, self.model.now_ms
        alive = await self.store.cancellable(tenant, where=EVERYTHING, cursor=None)
        assert alive.ids == [it.id for it in model.cancellable(tenant)]
        assert {
            queue.name: (queue.parallelism, queue.paused, queue.lag)
            for queue in await self.store.queues(tenant)
        } == {
            name: (queue.parallelism, queue.paused, model.lag((of, name)))
            for (of, name), queue in model.queues.items()
            if of == tenant
        }
        assert {
            state.key.name: (
                *(state.key.parallelism, state.key.rate, state.key.period_ms),
                *(state.key.paused, state.key.parallelism_pinned, state.key.rate_pinned),
                *(state.key.count(now_ms), state.waiting, state.in_use),
            )
            for state in await self.store.flow_keys(tenant, now_ms=now_ms)
        } == {
            name: (
                *(key.parallelism, key.rate, key.period_ms),
                *(key.paused, key.parallelism_pinned, key.rate_pinned),
                key.begun_in_window(now_ms),
                sum(it.key == (tenant, name) for it in model.due()),
                model.in_use((tenant, name)),
            )
            for (of, name), key in model.keys.items()
            if of == tenant
        }
        page = await self.store.dead_letters(tenant, cursor=None, count_max=COUNT_MAX)
        assert page.cursor is None
        assert [(letter.message, letter.failed_ms, letter.why) for letter in page.dead_letters] == [
            (letter.it.draft.message, letter.failed_ms, letter.why)
            for letter in model.letters.values()
            if letter.it.tenant == tenant
        ]
        for letter in page.dead_letters:
            self.letter_ids[letter.id] = letter.message.id
            if letter.message.callback_of is None:
                assert letter.body == model.known[letter.message.id].draft.body
        assert {
            seen.schedule.id: (seen.schedule.next_ms, seen.schedule.paused, seen.body)
            for seen in await self.store.schedules(tenant, bytes_max=COUNT_MAX)
        } == {
            name: (it.next_ms, it.paused, it.body)
            for (of, name), it in model.schedules.items()
            if of == tenant
        }

    async def _check_rows(self) -> None:
        """What is kept is what the model knows, and no lane waits in vain."""
        model = self.model
        alive = {message_id for message_id, it in model.known.items() if it.alive}
        rows = await self._rows(
            "SELECT message_id, token, holding, due_ms, tenant, lane, number FROM delivery"
        )
        assert {row[0] for row in rows} == alive
        for message_id, token, holding, due_ms, *_ in rows:
            it = model.known[message_id]
            assert (token is not None) == (it.state == "in flight"), it
            assert bool(holding) == it.holds, it
            assert token is not None or due_ms == it.due_ms, it
        numbers = dict(await self._rows("SELECT id, number FROM message"))
        holds = {
            (it.queue[0], f"queue:{it.queue[1]}", numbers[it.id])
            for it in model.known.values()
            if it.queue is not None and it.holds
        }
        permits = {
            (it.key[0], f"key:{it.key[1]}", numbers[it.id])
            for it in model.known.values()
            if it.key is not None and it.state == "in flight"
        }
        assert set(await self._rows("SELECT * FROM hold")) == holds | permits
        waiting = [row for row in rows if row[1] is None]
        lanes = await self._rows("SELECT tenant, lane, turn_ms, blocked_on FROM lane")
        assert {(lane[0], lane[1]) for lane in lanes} == {(row[4], row[5]) for row in waiting}
        for tenant, lane, turn_ms, _ in lanes:
            its = [model.known[row[0]] for row in waiting if (row[4], row[5]) == (tenant, lane)]
            due_ms = min((it.due_ms for it in its if model.has_a_place(it)), default=None)
            if due_ms is not None and lane.startswith("key:"):
                opens_ms = model.opens_ms((tenant, lane.removeprefix("key:")))
                due_ms = None if opens_ms is None else max(due_ms, opens_ms)
            if due_ms is not None:
                assert turn_ms is not None, (tenant, lane)
                assert turn_ms <= max(due_ms, model.now_ms), (tenant, lane)
        kept = await self._rows("SELECT tenant, name, opens_ms FROM flow_key")
        looked_at = {f"key:{name} of {tenant}": (tenant, name, at) for tenant, name, at in kept}
        for resource in {lane[3] for lane in lanes if (lane[3] or "").startswith("key:")}:
            tenant, name, at_ms = looked_at[resource]
            opens_ms = model.opens_ms((tenant, name))
            if opens_ms is not None:
                assert at_ms is not None, resource
                assert at_ms <= max(opens_ms, model.now_ms), resource

    async def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        if isinstance(self.store, SqliteStore):
            return self.store.writer.db.execute(sql).fetchall()
        assert isinstance(self.store, PostgresStore)
        return list(map(tuple, await self.store._pool.fetch(sql)))


def _resumed(key: FlowKey | None) -> FlowKey:
    assert key is not None
    return replace(key, paused=False)


def _no_answer_breaks_a_promise(
    stores: Stores, engine: str, *, histories: int, alone: bool = False
) -> None:
    def machine() -> Machine:
        return Machine(
            stores,
            crashes=engine != IN_MEMORY,
            side_by_side=engine in DATABASES,
            alone=alone,
        )

    Machine.steps = 0
    run_state_machine_as_test(machine, settings=settings(HOW, max_examples=histories))


HOW = settings(
    stateful_step_count=50,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
"""A step takes 7 ms on SQLite, and 30 on PostgreSQL, most of it to look at everything anew."""


@pytest.mark.every_server
def test_no_history_breaks_a_promise_and_whatever_is_due_goes(stores: Stores, engine: str) -> None:
    histories = 4 if engine in DATABASES else 60
    _no_answer_breaks_a_promise(stores, engine, histories=histories)


@pytest.mark.prove
def test_five_thousand_steps_break_no_promise(stores: Stores, engine: str) -> None:
    """Side by side, calls end in an order of their own, and hypothesis gives up sooner or later
    where what was drawn once cannot be drawn again: there each is asked alone."""
    alone = engine in DATABASES
    _no_answer_breaks_a_promise(stores, engine, histories=150 if alone else 300, alone=alone)
    assert Machine.steps >= 5_000
