"""The home of acceptance: drafts become messages, deliveries and log entries.

All calls that wait at one moment are gathered, and then written table by table.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from waypost.domain import callbacks
from waypost.domain.errors import LimitReached
from waypost.domain.lanes import lane_of, queue_lane, queue_of
from waypost.domain.message import Message
from waypost.store import quotas
from waypost.store.postgres import flow_keys, lanes, queues
from waypost.store.postgres.database import Connection, columns, insert
from waypost.store.postgres.lanes import LaneState
from waypost.store.postgres.permits import Permits
from waypost.store.postgres.shut import Place
from waypost.store.postgres.writer import Batch
from waypost.store.protocol import Accepted, Births, Claim, Draft

encode = msgspec.json.encode


class Add(msgspec.Struct, frozen=True):
    drafts: Sequence[Draft]
    births: Births
    queue_count_max: int
    now_ms: int


async def add(batch: Batch, calls: list[Add]) -> list[list[Accepted] | LimitReached]:
    """Accept drafts; see `Deliveries.add`."""
    adding = Adding(batch, calls[0].births, now_ms=max(call.now_ms for call in calls))
    accepted = await adding.accept(calls)
    await adding.write()
    return accepted


class Adding:
    """What one batch of adds gathers, and then writes table by table.

    `now_ms` is the latest of its calls': what is due to one of them may not be
    overtaken by another that came a moment earlier.
    """

    def __init__(self, batch: Batch, births: Births, *, now_ms: int) -> None:
        self.batch = batch
        self.db = batch.db
        self.births = births
        self.places = births.places
        self.now_ms = now_ms
        self.token = 0
        self.quota = 0
        self.open: dict[Place, int] = {}
        self.accepted_ms: dict[Place, int] = {}
        self.waiting: dict[Place, int] = {}
        self.limited: set[Place] = set()
        self.permits = Permits(batch, now_ms=now_ms)
        self.states: dict[Place, LaneState] = {}
        self.messages: list[tuple[Any, ...]] = []
        self.bodies: list[tuple[Any, ...]] = []
        self.deliveries: list[tuple[Any, ...]] = []
        self.holds: list[tuple[Any, ...]] = []
        self.events: list[tuple[Any, ...]] = []

    async def accept(self, calls: Sequence[Add]) -> list[list[Accepted] | LimitReached]:
        """Accept the drafts of calls: those of each, or none."""
        refusals = await too_many_queues(self.db, calls)
        taken = [call for call, refusal in zip(calls, refusals, strict=True) if refusal is None]
        drafts = [draft for call in taken for draft in call.drafts]
        firsts = await _take_dedup_keys(self.db, drafts, now_ms=self.now_ms)
        await self.prepare(
            [draft for draft, first in zip(drafts, firsts, strict=True) if not first]
        )
        left = iter(firsts)
        return [
            refusal or self._accept_all(call.drafts, left, now_ms=call.now_ms)
            for call, refusal in zip(calls, refusals, strict=True)
        ]

    async def prepare(self, drafts: Sequence[Draft], *, lock: Iterable[Place] = ()) -> None:
        """Lock what the drafts name and the lanes of `lock`, and read how all of it stands.

        To be called once, with all drafts that are to be accepted.
        """
        named = {(d.message.tenant, d.message.queue) for d in drafts if d.message.queue is not None}
        keys = {(d.message.tenant, d.message.flow.key) for d in drafts if d.message.flow}
        limited = {
            (d.message.tenant, lane_of(d.message, d.host))
            for d in drafts
            if d.message.queue is not None or d.message.flow is not None
        }
        # Before the locks, as whoever takes over from a node looks at its row first.
        may_claim = self.places.free > 0 and await self.batch.may_claim()
        made = await queues.make(self.db, named, now_ms=self.now_ms)
        made |= await flow_keys.make(self.db, keys, now_ms=self.now_ms)
        await self.batch.lock({*limited, *lock}, keys=keys, made=made)
        self.token = self.batch.numbers.next()
        for tenant, name, accepted_ms in await queues.accept(self.db, named, now_ms=self.now_ms):
            self.accepted_ms[tenant, queue_lane(name)] = accepted_ms
        await self.permits.read(keys, births=True)
        self.quota = self.places.free if may_claim else 0
        if not self.quota:
            return
        places = {(d.message.tenant, lane_of(d.message, d.host)) for d in drafts}
        self.states = await lanes.states(self.db, places, now_ms=self.now_ms)
        turn_ms = await lanes.next_turn_ms(self.db, self.batch.shut.names())
        if turn_ms is not None and turn_ms <= self.now_ms:
            self.quota //= 2

    def _accept_all(
        self, drafts: Sequence[Draft], firsts: Iterable[str | None], *, now_ms: int
    ) -> list[Accepted]:
        """Accept the drafts of one call, but for those of which there is a first; those with
        one body share its row."""
        uses = Counter(id(draft.body) for draft in drafts if draft.body)
        shared: dict[int, int] = {}
        accepted = []
        for draft, first in zip(drafts, firsts, strict=False):
            if first is not None:
                accepted.append(Accepted(message_id=first, deduplicated=True))
                continue
            of = id(draft.body)
            if uses[of] > 1:
                self.accept_one(draft, now_ms=now_ms, shared_body=shared.get(of, 0))
                shared.setdefault(of, self.messages[-1][2])
            else:
                self.accept_one(draft, now_ms=now_ms)
            accepted.append(Accepted(message_id=draft.message.id))
        return accepted

    def accept_again(self, draft: Draft, *, body: int, source: int | None, now_ms: int) -> None:
        """Accept a message with the body that is kept under the number `body` (D27); a callback
        tells of the message of the number `source`."""
        self.accept_one(draft, now_ms=now_ms)
        self.messages[-1] = (*self.messages[-1][:4], body, source)

    def wait(self, waiting: Mapping[Place, int]) -> None:
        """Note what waits in lanes without places of their own, and until when at least."""
        for place, due_ms in waiting.items():
            self.waiting[place] = min(due_ms, self.waiting.get(place, due_ms))

    async def write(self) -> None:
        """Write what was accepted."""
        await insert(
            self.db,
            message=self.messages,
            body=self.bodies,
            delivery=self.deliveries,
            hold=self.holds,
            event=self.events,
        )
        limited = {*self.limited, *await self.permits.write()}
        await lanes.join(self.batch, self.waiting, limited, now_ms=self.now_ms)

    def accept_one(
        self,
        draft: Draft,
        *,
        now_ms: int,
        shared_body: int | None = None,
        source: Claim | None = None,
    ) -> None:
        """Accept one draft.  `shared_body` is the number under which its body is kept for
        several messages, 0 where this is the first of them; `source` is the attempt that a
        callback tells of."""
        message = draft.message
        numbers = self.batch.numbers
        number = numbers.next()
        tenant = message.tenant
        body = kept = draft.body
        if draft.report is not None:
            assert source is not None, message.id
            kept = encode(draft.report)
        lane = lane_of(message, draft.host)
        place = (tenant, lane)
        room = self.open.get(place)
        if room is None:
            room = self.open[place] = self._room(message, place)
        due_ms = message.not_before_ms
        if message.queue is not None:
            due_ms = max(due_ms, self.accepted_ms[place])
        token = None
        key = None
        if message.flow is not None:
            key = message.flow.key
            self.permits.ask(tenant, message.flow)
            if due_ms <= self.now_ms and room and not self.permits.room_at_birth(tenant, key):
                room = self.open[place] = 0
        if due_ms <= self.now_ms and room:
            if draft.report is not None and source is not None:
                body = callbacks.body(draft.report, source.message, source.body)
            if self.quota > 0 and not self.places.refusal(draft.host, size=len(body)):
                token = self.token
                self.quota -= 1
                self.open[place] = room - 1
            else:
                self.open[place] = 0
        if kept and not shared_body:
            self.bodies.append((number, kept))
        if shared_body is not None:
            shared_body = shared_body or number
        of = None if source is None else source.number
        self.messages.append((tenant, message.id, number, encode(message), shared_body, of))
        holding = token is not None and message.queue is not None
        node = None if token is None else self.batch.node
        self.deliveries.append(
            (
                *(number, tenant, message.id, lane, draft.host, due_ms, token, node),
                *(holding, 0, 0, False, key),
            )
        )
        self.events.append((tenant, now_ms, numbers.next(), message.id, "CREATED", None))
        if token is not None:
            if holding:
                self.holds.append((tenant, lane, number))
            active_ms = self.now_ms
            if key is not None:
                active_ms = self.permits.take(tenant, key, number, own=not holding)
            self.events.append((tenant, active_ms, numbers.next(), message.id, "ACTIVE", None))
            claim = Claim(
                number=number,
                token=token,
                message=message,
                body=body,
                host=draft.host,
                lease=self.batch.lease,
            )
            self.batch.take_place(self.places, claim)
            self.batch.on_commit.append(partial(self.births.hand_over, claim))
        elif message.queue is not None or key is not None:
            self.limited.add(place)
        else:
            self.wait({place: due_ms})

    def _room(self, message: Message, place: Place) -> int:
        """How many messages may be claimed at birth in a lane, were they due."""
        if not self.quota:
            return 0
        state = self.states[place]
        if message.queue is None and message.flow is None:
            return 0 if state.in_line else self.quota
        if state.waiting_ms is not None and state.waiting_ms <= self.now_ms:
            return 0
        if queue_of(place[1]) is None:
            return self.quota
        return 0 if state.paused else state.free


async def too_many_queues(db: Connection, calls: Sequence[Add]) -> list[LimitReached | None]:
    """Why each of the calls is refused that would make a queue too many."""
    named = {
        (draft.message.tenant, draft.message.queue)
        for call in calls
        for draft in call.drafts
        if draft.message.queue is not None
    }
    if not named:
        return [None] * len(calls)
    there = await queues.those_there(db, named)
    if there == named:
        return [None] * len(calls)
    counts = await queues.counts(db, {tenant for tenant, _ in named - there})
    refusals: list[LimitReached | None] = []
    for call in calls:
        new = {
            (draft.message.tenant, draft.message.queue)
            for draft in call.drafts
            if draft.message.queue is not None
        } - there
        wanted = Counter(tenant for tenant, _ in new)
        if any(counts[tenant] + wanted[tenant] > call.queue_count_max for tenant in wanted):
            refusals.append(quotas.exceeded("maxQueues", call.queue_count_max))
            continue
        refusals.append(None)
        there |= new
        counts.update(wanted)
    return refusals


async def _take_dedup_keys(
    db: Connection, drafts: Sequence[Draft], *, now_ms: int
) -> list[str | None]:
    """Take the keys of drafts for them; for each the id of the first message that has its
    key, or None: it is the first, or asks for no deduplication."""
    wanted: dict[Place, Draft] = {}
    for draft in drafts:
        if draft.dedup_key is not None:
            wanted.setdefault((draft.message.tenant, draft.dedup_key), draft)
    if not wanted:
        return [None] * len(drafts)
    rows = [
        (*name, wanted[name].message.id, wanted[name].dedup_until_ms) for name in sorted(wanted)
    ]
    await db.execute(
        "INSERT INTO dedup SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])"
        " ON CONFLICT (tenant, key) DO UPDATE"
        " SET message_id = excluded.message_id, until_ms = excluded.until_ms"
        " WHERE dedup.until_ms <= $5",
        *zip(*rows, strict=True),
        now_ms,
    )
    found = await db.fetch(
        "SELECT d.tenant, d.key, d.message_id FROM unnest($1::text[], $2::text[]) n (tenant, key)"
        " JOIN dedup d ON d.tenant = n.tenant AND d.key = n.key",
        *columns(wanted),
    )
    first = {(tenant, key): message_id for tenant, key, message_id in found}
    return [
        None
        if draft.dedup_key is None
        or (of := first[draft.message.tenant, draft.dedup_key]) == draft.message.id
        else of
        for draft in drafts
    ]
