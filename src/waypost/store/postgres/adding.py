"""The home of acceptance as PostgreSQL writes it.

What drafts become is gathered by `waypost.store.adds`, and written table by table; what they
name is locked and read before.
"""

from collections.abc import Iterable, Mapping, Sequence

from waypost.domain.errors import LimitReached
from waypost.domain.lanes import Place, lane_of, queue_lane, queue_of
from waypost.domain.message import Message
from waypost.store.adds import Adds, queues_named
from waypost.store.calls import Add
from waypost.store.postgres import flow_keys, lanes, queues
from waypost.store.postgres.database import Connection, columns, insert
from waypost.store.postgres.lanes import LaneState
from waypost.store.postgres.permits import Permits
from waypost.store.postgres.writer import Batch
from waypost.store.protocol import Accepted, Births, Draft


async def add(batch: Batch, calls: list[Add]) -> list[list[Accepted] | LimitReached]:
    """Accept drafts; see `Deliveries.add`."""
    adding = Adding(batch, calls[0].births, now_ms=max(call.now_ms for call in calls))
    accepted = await adding.accept(calls)
    await adding.write()
    return accepted


class Adding(Adds):
    """What one batch of adds gathers, and then writes table by table."""

    batch: Batch
    permits: Permits

    def __init__(self, batch: Batch, births: Births, *, now_ms: int) -> None:
        super().__init__(batch, births, lease=batch.lease, now_ms=now_ms)
        self.db = batch.db
        self.permits = Permits(batch, now_ms=now_ms)
        self.states: dict[Place, LaneState] = {}

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
            refusal or self.accept_all(call.drafts, left, now_ms=call.now_ms)
            for call, refusal in zip(calls, refusals, strict=True)
        ]

    async def prepare(self, drafts: Sequence[Draft], *, lock: Iterable[Place] = ()) -> None:
        """Lock what the drafts name and the lanes of `lock`, and read how all of it stands.

        To be called once, with all drafts that are to be accepted.
        """
        named = queues_named(drafts)
        keys = {(d.message.tenant, d.message.flow.key) for d in drafts if d.message.flow}
        limited = {
            (d.message.tenant, lane_of(d.message, d.host))
            for d in drafts
            if d.message.queue is not None or d.message.flow is not None
        }
        places = {*limited, *lock}
        free = self.places.free > 0
        # Before the locks, as whoever takes over from a node looks at its row first.
        may_claim = free and await self.batch.may_claim(with_numbers=not places)
        if places or not free:
            made = await queues.make(self.db, named, now_ms=self.now_ms)
            made |= await flow_keys.make(self.db, keys, now_ms=self.now_ms)
            await self.batch.lock(places, keys=keys, made=made)
        self.token = self.batch.numbers.next()
        for tenant, name, accepted_ms in await queues.accept(self.db, named, now_ms=self.now_ms):
            self.accepted_ms[tenant, queue_lane(name)] = accepted_ms
        await self.permits.read(keys, births=True)
        self.quota = self.places.free if may_claim else 0
        if not self.quota:
            return
        places = {(d.message.tenant, lane_of(d.message, d.host)) for d in drafts}
        self.states = await lanes.states(self.db, places, now_ms=self.now_ms)
        turn_ms = self.batch.shut.next_turn_ms
        if turn_ms is not None and turn_ms <= self.now_ms:
            self.quota //= 2

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

    def _claimed_under(self, token: int | None) -> tuple[int | None, ...]:
        return token, None if token is None else self.batch.node

    def _room(self, message: Message, place: Place) -> int:
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
    return await queues.too_many(
        db, [(queues_named(call.drafts), call.queue_count_max) for call in calls]
    )


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
