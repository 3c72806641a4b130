"""A store against a model of it: random histories, in which every claim must be one that the
model allows, and whatever is due goes in the end.

The seeds are fixed.  A history that fails is told by its seed and its step, and comes again.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import apsw
import msgspec
import pytest
from msgspec.structs import replace

from tests.store.conftest import Open
from tests.support.factory import ERROR, OK, T0, a_callback, a_draft
from waypost.domain.attempt import Delivered, GiveUp, TryAgain, Verdict
from waypost.domain.callbacks import Report
from waypost.domain.callbacks import body as callbacks_body
from waypost.domain.flow import Flow, FlowKey
from waypost.domain.message import Logged, Message
from waypost.domain.places import SUSPECT_AFTER, Places, Sign
from waypost.store.protocol import (
    Accepted,
    Births,
    Cancelled,
    Claim,
    Claimed,
    Draft,
    Store,
    give_back_place,
)
from waypost.store.sqlite.store import SqliteStore

STEPS = 250

TENANTS = ("a", "b", "c")
HOSTS = tuple(f"https://h{n}.example/" for n in range(6))
QUEUES = (None, "q0", "q1", "q2", "q3")
FLOWS = {
    "k0": Flow("k0", parallelism=1),
    "k1": Flow("k1", rate=3, period_ms=40),
    "k2": Flow("k2", parallelism=2, rate=5, period_ms=60),
}
KEYS = (None, None, None, *FLOWS)
SIGNS = (Sign.WELL, Sign.WELL, Sign.DOWN, Sign.SLOW)


@dataclass
class Known:
    """What the model knows of a message.  It `holds` a place in its queue from its first
    claim on; `callbacks` are those that its queue waits for."""

    draft: Draft
    order: tuple[int, int]
    due_ms: int
    state: str = "waiting"  # or "in flight", "ended"
    holds: bool = False
    callbacks: list["Known"] = field(default_factory=list)
    retried: int = 0
    interrupted: int = 0
    canceling: bool = False
    lingers: bool = False

    @property
    def key(self) -> tuple[str, str] | None:
        message = self.draft.message
        return None if message.flow is None else (message.tenant, message.flow.key)

    @property
    def waits_for_key_alone(self) -> bool:
        """Whether it is in the lane of its key."""
        keyed = self.key is not None and self.queue is None
        return keyed and self.interrupted < SUSPECT_AFTER

    @property
    def queue(self) -> tuple[str, str] | None:
        message = self.draft.message
        return None if message.queue is None else (message.tenant, message.queue)

    @property
    def needs_its_place(self) -> bool:
        its = (self, *self.callbacks)
        return self.holds and any(each.state != "ended" for each in its)


@dataclass
class Model:
    now_ms: int = T0
    known: dict[str, Known] = field(default_factory=dict)
    keys: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    in_flight: list[Claim] = field(default_factory=list)
    flow_keys: dict[tuple[str, str], FlowKey] = field(default_factory=dict)

    def added(self, drafts: Sequence[Draft], accepted: Sequence[Accepted]) -> None:
        for draft, answer in zip(drafts, accepted, strict=True):
            message = draft.message
            if draft.dedup_key is not None:
                key = (message.tenant, draft.dedup_key)
                first, until_ms = self.keys.get(key, ("", 0))
                if until_ms > self.now_ms:
                    assert (answer.deduplicated, answer.message_id) == (True, first)
                    continue
                self.keys[key] = (message.id, draft.dedup_until_ms)
            assert not answer.deduplicated
            self.accepted(draft)

    def accepted(self, draft: Draft) -> Known:
        due_ms = max(draft.message.not_before_ms, self.now_ms)
        it = self.known[draft.message.id] = Known(draft, (due_ms, len(self.known)), due_ms)
        if it.key is not None and draft.message.flow is not None:
            key = self.flow_keys.get(it.key, FlowKey(name=it.key[1]))
            self.flow_keys[it.key] = key.asked(draft.message.flow, now_ms=self.now_ms)
        return it

    def in_use(self, key: tuple[str, str]) -> int:
        """How many attempts of a flow-control key are under way."""
        return sum(self.known[claim.message.id].key == key for claim in self.in_flight)

    def room(self, it: Known) -> int:
        """How many attempts of the message's flow-control key may begin."""
        if it.key is None:
            return 1
        return self.flow_keys[it.key].room(self.in_use(it.key), now_ms=self.now_ms)

    def called_back(self, source: Claim, callbacks: Sequence[Draft], logged: Logged) -> list[str]:
        """The callbacks that a settle has made: of a failure only where the message failed."""
        made = []
        for draft in callbacks:
            assert draft.report is not None
            if logged is Logged.FAILED or not draft.report.failure:
                body = callbacks_body(draft.report, source.message, source.body)
                it = self.accepted(replace(draft, body=body))
                if draft.message.awaited_by is not None:
                    self.known[source.message.id].callbacks.append(it)
                made.append(draft.message.id)
        return made

    def claimed(self, claim: Claim) -> None:
        it = self.known[claim.message.id]
        assert it.state == "waiting", it
        assert it.due_ms <= self.now_ms, it
        assert (claim.message, claim.host) == (it.draft.message, it.draft.host)
        if it.draft.report is not None and it.draft.report.failure:
            assert b'"dlqId":"' in claim.body
        else:
            assert claim.body == it.draft.body
        assert (claim.retried, claim.interrupted) == (it.retried, it.interrupted)
        if it.queue is not None and not it.holds:
            its_queue = [other for other in self.known.values() if other.queue == it.queue]
            assert not [o for o in its_queue if o.needs_its_place], "a queue of one has two"
            older = [o for o in its_queue if o.state == "waiting" and o.order < it.order]
            assert not older, (it, older)
            it.holds = True
        if it.key is not None:
            assert self.room(it), (it, self.flow_keys[it.key])
            key = self.flow_keys[it.key]
            self.flow_keys[it.key] = key.after_one(own=True, now_ms=self.now_ms)
            if it.waits_for_key_alone:
                older = [
                    other
                    for other in self.known.values()
                    if (other.key, other.state) == (it.key, "waiting")
                    and other.waits_for_key_alone
                    and (other.due_ms, other.order[1]) < (it.due_ms, it.order[1])
                ]
                assert not older, (it, older)
        it.state, it.lingers = "in flight", False
        self.in_flight.append(claim)
        suspects = [c for c in self.in_flight if c.interrupted >= SUSPECT_AFTER]
        assert len(suspects) <= 1, suspects

    def settled(self, claim: Claim, verdict: Verdict, logged: Logged) -> None:
        it = self.known[claim.message.id]
        if isinstance(verdict, TryAgain) and not it.canceling:
            assert logged is Logged.RETRY
            it.state, it.due_ms, it.retried = "waiting", verdict.at_ms, it.retried + 1
            return
        if isinstance(verdict, Delivered):
            assert logged is Logged.DELIVERED
        else:
            assert logged is (Logged.CANCELED if it.canceling else Logged.FAILED)
        it.state = "ended"

    def released(self, claim: Claim) -> None:
        it = self.known[claim.message.id]
        if it.canceling:
            it.state = "ended"
        else:
            it.state, it.due_ms = "waiting", self.now_ms

    def cancelled(self, message_id: str, answer: Cancelled) -> None:
        it = self.known[message_id]
        assert (answer.known, answer.count) == (True, int(it.state != "ended"))
        if it.state == "waiting":
            it.state = "ended"
        elif it.state == "in flight":
            it.canceling = True

    def may_go(self) -> list[Known]:
        """What is due and held up by nothing but places, when nothing is in flight."""
        held = {it.queue for it in self.known.values() if it.needs_its_place}
        due = [
            it for it in self.known.values() if it.state == "waiting" and it.due_ms <= self.now_ms
        ]
        stuck = [it for it in due if it.queue is not None and not self.room(it)]
        return [
            it
            for it in due
            if self.room(it)
            and (it.queue is None or it.holds or it.queue not in held)
            and not any(o.queue == it.queue and o.order < it.order for o in stuck)
        ]


class History:
    """One random history, step by step."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.dice = random.Random(seed)
        self.model = Model()
        self.open()

    def open(self) -> None:
        self.places = Places(count_max=12, host_count_max=4, bytes_max=3_000, hosts_known_max=3)

    async def step(self) -> None:
        """Ask for some things at the same moment, and hold the answers against the model."""
        dice, model, now_ms = self.dice, self.model, self.model.now_ms
        if model.flow_keys and dice.random() < 0.08:
            await self.change_flow_key()
        born: list[Claim] = []
        calls: list[tuple[int, Any, Awaitable[Any]]] = []
        for _ in range(dice.choice((1, 1, 2, 4))):
            chance = dice.random()
            if chance < 0.33:
                drafts = self.drafts(dice.choice((1, 1, 1, 3)))
                births = Births(self.places, born.append)
                add = self.store.add(drafts, births=births, now_ms=now_ms)
                calls.append((3, drafts, add))
            elif chance < 0.6 and not any(order == 4 for order, _, _ in calls):
                calls.append((4, None, self.claim(dice.choice((1, 3, 12)))))
            elif chance < 0.85 and model.in_flight:
                claim = self.end(dice.choice(SIGNS))
                at_ms = now_ms + dice.choice((0, 7, 40))
                verdict: Verdict = dice.choice((Delivered(), TryAgain(at_ms), GiveUp("why")))
                outcome = OK if isinstance(verdict, Delivered) else ERROR
                births = Births(self.places, born.append)
                callbacks = self.callbacks(claim.message)
                settle = self.store.settle(
                    claim, verdict, outcome, callbacks=callbacks, births=births, now_ms=now_ms
                )
                calls.append((0, (claim, verdict, callbacks), settle))
            elif chance < 0.9 and model.in_flight:
                claim = self.end(Sign.NONE)
                calls.append((1, claim, self.store.release([claim], now_ms=now_ms)))
            elif chance < 0.96 and model.known:
                message_id = dice.choice(list(model.known)[-60:])
                tenant = model.known[message_id].draft.message.tenant
                calls.append((2, message_id, self.store.cancel(tenant, message_id, now_ms=now_ms)))
            elif model.in_flight:
                self.linger()
        answers = await asyncio.gather(*[call for _, _, call in calls])
        # The order in which an engine does them where they share a transaction.
        for (order, about, _), answer in sorted(
            zip(calls, answers, strict=True), key=lambda pair: pair[0][0]
        ):
            made: Collection[str] = ()
            if order == 0:
                claim, verdict, callbacks = about
                model.settled(claim, verdict, answer)
                made = model.called_back(claim, callbacks, answer)
            elif order == 1:
                model.released(about)
            elif order == 2:
                model.cancelled(about, answer)
            elif order == 3:
                model.added(about, answer)
                made = {draft.message.id for draft in about}
            else:
                for claim in answer.claims:
                    model.claimed(claim)
            for claim in [claim for claim in born if claim.message.id in made]:
                model.claimed(claim)
                born.remove(claim)
        assert not born
        assert self.places.in_flight == len(model.in_flight)

    async def change_flow_key(self) -> None:
        """Pause, resume, pin, unpin or reset a flow-control key."""
        dice, now_ms = self.dice, self.model.now_ms
        tenant, name = dice.choice(list(self.model.flow_keys))
        limit = dice.choice((1, 2, 6))
        changes: tuple[Callable[[FlowKey], FlowKey], ...] = (
            lambda key: replace(key, paused=True),
            lambda key: replace(key, paused=False),
            lambda key: replace(key, paused=False),
            lambda key: key.rate_reset(now_ms=now_ms),
            lambda key: key.unpinned(parallelism=True, rate=True),
            lambda key: key.pinned(parallelism=limit, rate=None, period_ms=None, now_ms=now_ms),
            lambda key: key.pinned(parallelism=None, rate=limit, period_ms=30, now_ms=now_ms),
        )
        change = dice.choice(changes)

        def changed(key: FlowKey | None) -> FlowKey:
            assert key is not None
            return change(key)

        await self.store.change_flow_key(tenant, name, changed, now_ms=now_ms)
        self.model.flow_keys[tenant, name] = change(self.model.flow_keys[tenant, name])

    async def come_to_rest(self) -> None:
        """Deliver all that is in flight, and then whatever is due, until nothing is."""
        model = self.model
        for _ in range(1_000):
            while model.in_flight:
                claim = self.end(Sign.WELL)
                births = Births(self.places, lambda _claim: None)
                settled = await self.store.settle(
                    claim, Delivered(), OK, births=births, now_ms=model.now_ms
                )
                model.settled(claim, Delivered(), settled)
            left = model.may_go()
            if not left:
                return
            claimed = await self.claim(self.places.free)
            for claim in claimed.claims:
                model.claimed(claim)
            assert claimed.claims or self.places.any_open or claimed.next_due_ms is not None, left
        raise AssertionError(f"these never go: {model.may_go()[:3]}")

    def crash(self, store: Store) -> None:
        """The store was opened again while attempts were in flight."""
        self.store = store
        for claim in self.model.in_flight:
            self.model.released(claim)
            self.model.known[claim.message.id].interrupted += 1
        self.model.in_flight.clear()
        self.open()

    def drafts(self, count: int) -> list[Draft]:
        """Those of one call may share a body."""
        drafts = [self.draft() for _ in range(count)]
        if self.dice.random() < 0.5:
            drafts = [replace(draft, body=drafts[0].body) for draft in drafts]
        return drafts

    def callbacks(self, source: Message) -> list[Draft]:
        if source.callback_of is not None:
            return []
        dice = self.dice
        callbacks = []
        for failure in dice.choice(((), (), (False,), (True,), (False, True))):
            queue = dice.choice((None, None, None, "q0"))
            key = dice.choice(KEYS)
            callbacks.append(
                a_callback(
                    source,
                    at_ms=self.model.now_ms,
                    url=dice.choice(HOSTS),
                    delay_ms=dice.choice((0, 0, 20)),
                    queue=queue,
                    awaited_by=source.queue if queue is None else None,
                    flow=None if key is None else FLOWS[key],
                    report=Report(status=200, body=b"y" * dice.choice((0, 300)), failure=failure),
                )
            )
        return callbacks

    def draft(self) -> Draft:
        dice = self.dice
        key = dice.choice(KEYS)
        return a_draft(
            at_ms=self.model.now_ms,
            tenant=dice.choice(TENANTS),
            url=dice.choice(HOSTS),
            queue=dice.choice(QUEUES),
            flow=None if key is None else FLOWS[key],
            delay_ms=dice.choice((0, 0, 0, 5, 50)),
            body=b"x" * dice.choice((0, 10, 1_000)),
            dedup_key=dice.choice((None, None, f"id:{dice.randrange(8)}")),
            window_ms=100,
        )

    def claim(self, count_max: int) -> Awaitable[Claimed]:
        return self.store.claim(count_max=count_max, places=self.places, now_ms=self.model.now_ms)

    def end(self, sign: Sign) -> Claim:
        claim = self.model.in_flight.pop(self.dice.randrange(len(self.model.in_flight)))
        lingers = self.model.known[claim.message.id].lingers
        give_back_place(self.places, claim, sign, lingers=lingers)
        return claim

    def linger(self) -> None:
        claim = self.dice.choice(self.model.in_flight)
        it = self.model.known[claim.message.id]
        it.lingers = it.lingers or self.places.linger(claim.host)

    def check_rows(self) -> None:
        """What SQLite keeps is what the model knows, and no lane waits in vain."""
        if not isinstance(self.store, SqliteStore):
            return
        db, model = self.store.writer.db, self.model
        alive = {message_id for message_id, it in model.known.items() if it.state != "ended"}
        rows = db.execute(
            "SELECT message_id, token, holding, due_ms, tenant, lane, number FROM delivery"
        ).fetchall()
        assert {row[0] for row in rows} == alive
        for message_id, token, holding, due_ms, *_ in rows:
            it = model.known[message_id]
            assert (token is not None) == (it.state == "in flight"), it
            assert bool(holding) == (it.holds and it.queue is not None), it
            assert token is not None or due_ms == it.due_ms, it
        numbers = dict(db.execute("SELECT id, number FROM message").fetchall())
        holds = {
            (it.queue[0], f"queue:{it.queue[1]}", numbers[message_id])
            for message_id, it in model.known.items()
            if it.queue is not None and it.needs_its_place
        }
        permits = {
            (it.key[0], f"key:{it.key[1]}", numbers[message_id])
            for message_id, it in model.known.items()
            if it.key is not None and it.state == "in flight"
        }
        assert set(db.execute("SELECT * FROM hold").fetchall()) == holds | permits
        waiting = [row for row in rows if row[1] is None]
        lanes = db.execute("SELECT tenant, lane, turn_ms FROM lane").fetchall()
        assert {(lane[0], lane[1]) for lane in lanes} == {(row[4], row[5]) for row in waiting}
        for tenant, lane, turn_ms in lanes:
            its = [row for row in waiting if (row[4], row[5]) == (tenant, lane)]
            full = any(hold[:2] == (tenant, lane) for hold in holds)
            due_ms = min((row[3] for row in its if row[2] or not full), default=None)
            if due_ms is not None and lane.startswith("key:"):
                name = lane.removeprefix("key:")
                opens_ms = self.opens_ms(tenant, name)
                due_ms = None if opens_ms is None else max(due_ms, opens_ms)
            if due_ms is not None:
                assert turn_ms is not None, (tenant, lane)
                assert turn_ms <= max(due_ms, model.now_ms), (tenant, lane)

        self.check_flow_keys(db)

    def check_flow_keys(self, db: apsw.Connection) -> None:
        """Keys are as the model has them, and what waits for one will be let in."""
        model = self.model
        rows = db.execute("SELECT tenant, name, facts, opens_ms FROM flow_key").fetchall()
        kept = {
            (tenant, name): replace(msgspec.json.decode(facts, type=FlowKey), own_turn=True)
            for tenant, name, facts, _ in rows
        }
        assert kept == {key: replace(it, own_turn=True) for key, it in model.flow_keys.items()}
        looked_at = {f"key:{name} of {tenant}": (tenant, name, at) for tenant, name, _, at in rows}
        blocked = db.execute("SELECT DISTINCT blocked_on FROM lane WHERE blocked_on GLOB 'key:*'")
        for (resource,) in blocked.fetchall():
            tenant, name, at_ms = looked_at[resource]
            opens_ms = self.opens_ms(tenant, name)
            if opens_ms is not None:
                assert at_ms is not None, resource
                assert at_ms <= max(opens_ms, model.now_ms), resource

    def opens_ms(self, tenant: str, name: str) -> int | None:
        in_use = self.model.in_use((tenant, name))
        return self.model.flow_keys[tenant, name].opens_ms(in_use, now_ms=self.model.now_ms)


@pytest.mark.parametrize("seed", range(1, 5))
async def test_no_history_breaks_a_promise_and_whatever_is_due_goes(
    open_store: Open, seed: int, engine: str
) -> None:
    opened = open_store()
    history = History(await opened.__aenter__(), seed)
    for step in range(STEPS):
        print(f"seed {seed}, step {step}")  # noqa: T201 -- pytest shows it when this fails
        await history.step()
        history.check_rows()
        history.model.now_ms += history.dice.choice((0, 0, 1, 3, 10))
        if engine != "sqlite memory" and history.dice.random() < 0.02:
            await opened.__aexit__(None, None, None)
            opened = open_store(now_ms=history.model.now_ms)
            history.crash(await opened.__aenter__())
            history.check_rows()
        if history.dice.random() < 0.02:
            await history.come_to_rest()
            history.check_rows()
    await history.come_to_rest()
    assert history.places.in_flight == 0
    await opened.__aexit__(None, None, None)
