"""The home of acceptance as SQLite writes it.

What drafts become is gathered by `waypost.store.adds`, and written table by table.
"""

import apsw

from waypost.domain.errors import LimitReached
from waypost.domain.lanes import Place
from waypost.domain.message import Message
from waypost.store import quotas
from waypost.store.adds import Adds, queues_named
from waypost.store.calls import Add
from waypost.store.protocol import Accepted, Births, Draft
from waypost.store.sqlite import lanes, queues
from waypost.store.sqlite.database import insert, query
from waypost.store.sqlite.permits import Permits
from waypost.store.sqlite.writer import Batch


def add(batch: Batch, calls: list[Add]) -> list[list[Accepted] | LimitReached]:
    """Accept drafts; see `Deliveries.add`."""
    adding = Adding(batch, calls[0].births, now_ms=max(call.now_ms for call in calls))
    accepted = [adding.accept(call) for call in calls]
    adding.write()
    return accepted


class Adding(Adds):
    """What one batch of adds gathers, and then writes table by table."""

    batch: Batch
    permits: Permits

    def __init__(self, batch: Batch, births: Births, *, now_ms: int) -> None:
        super().__init__(batch, births, now_ms=now_ms)
        self.db = batch.db
        self.permits = Permits(batch, now_ms=now_ms)
        self.token = batch.numbers.next()
        self.quota = self.places.free
        if lanes.is_ready(self.db, now_ms=now_ms):
            self.quota //= 2

    def accept(self, call: Add) -> list[Accepted] | LimitReached:
        """Accept the drafts of a call, or none of them."""
        refusal = self.too_many_queues(call)
        if refusal is not None:
            return refusal
        firsts = [
            None if draft.dedup_key is None else _first(self.db, draft, now_ms=call.now_ms)
            for draft in call.drafts
        ]
        return self.accept_all(call.drafts, firsts, now_ms=call.now_ms)

    def too_many_queues(self, call: Add) -> LimitReached | None:
        """Why a call is refused that would make a queue too many."""
        named = queues_named(call.drafts)
        if not named:
            return None
        new = [queue for queue in named if not queues.is_there(self.db, *queue)]
        for tenant in {tenant for tenant, _ in new}:
            wanted = sum(each[0] == tenant for each in new)
            if queues.count(self.db, tenant) + wanted > call.queue_count_max:
                return quotas.exceeded("maxQueues", call.queue_count_max)
        return None

    def write(self) -> None:
        """Write what was accepted."""
        insert(self.db, "message", self.messages)
        insert(self.db, "body", self.bodies)
        insert(self.db, "delivery", self.deliveries)
        insert(self.db, "hold", self.holds)
        insert(self.db, "event", self.events)
        self.permits.write()
        lanes.join(self.batch, self.waiting, self.limited, now_ms=self.now_ms)

    def _claimed_under(self, token: int | None) -> tuple[int | None, ...]:
        return (token,)

    def _room(self, message: Message, place: Place) -> int:
        (tenant, lane), now_ms = place, self.now_ms
        if message.queue is None and message.flow is not None:
            older_ms = lanes.head_due_ms(self.db, tenant, lane, holding=0)
            return 0 if older_ms is not None and older_ms <= now_ms else self.quota
        if message.queue is None:
            older = lanes.is_in_line(self.db, tenant, lane, now_ms=now_ms)
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


def _first(db: apsw.Connection, draft: Draft, *, now_ms: int) -> str | None:
    """The id of the first message that has a draft's key; or None: it is the first, and takes
    the key."""
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
