"""The home of acceptance: drafts become messages, deliveries and log entries.

All calls that wait at one moment are gathered, and then written table by table.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import apsw
import msgspec

from waypost.domain import callbacks
from waypost.domain.errors import LimitReached
from waypost.domain.lanes import lane_of
from waypost.domain.message import Message
from waypost.store import quotas
from waypost.store.protocol import Accepted, Births, Claim, Draft
from waypost.store.sqlite import lanes, queues
from waypost.store.sqlite.database import insert, query
from waypost.store.sqlite.permits import Permits
from waypost.store.sqlite.writer import Batch

encode = msgspec.json.encode


class Add(msgspec.Struct, frozen=True):
    drafts: Sequence[Draft]
    births: Births
    queue_count_max: int
    now_ms: int


def add(batch: Batch, calls: list[Add]) -> list[list[Accepted] | LimitReached]:
    """Accept drafts; see `Deliveries.add`."""
    adding = Adding(batch, calls[0].births, now_ms=max(call.now_ms for call in calls))
    accepted = [
        adding.too_many_queues(call) or adding.accept_all(call.drafts, now_ms=call.now_ms)
        for call in calls
    ]
    adding.write()
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
        self.token = batch.numbers.next()
        self.quota = self.places.free
        if lanes.is_ready(self.db, now_ms=now_ms):
            self.quota //= 2
        self.open: dict[tuple[str, str], int] = {}
        self.accepted_ms: dict[tuple[str, str], int] = {}
        self.waiting: dict[tuple[str, str], int] = {}
        self.limited: set[tuple[str, str]] = set()
        self.permits = Permits(batch, now_ms=now_ms)
        self.messages: list[tuple[Any, ...]] = []
        self.bodies: list[tuple[Any, ...]] = []
        self.deliveries: list[tuple[Any, ...]] = []
        self.holds: list[tuple[Any, ...]] = []
        self.events: list[tuple[Any, ...]] = []

    def too_many_queues(self, call: Add) -> LimitReached | None:
        """Why a call is refused that would make a queue too many."""
        named = {
            (draft.message.tenant, draft.message.queue)
            for draft in call.drafts
            if draft.message.queue is not None
        }
        if not named:
            return None
        new = [queue for queue in named if not queues.is_there(self.db, *queue)]
        for tenant in {tenant for tenant, _ in new}:
            wanted = sum(each[0] == tenant for each in new)
            if queues.count(self.db, tenant) + wanted > call.queue_count_max:
                return quotas.exceeded("maxQueues", call.queue_count_max)
        return None

    def accept_all(self, drafts: Sequence[Draft], *, now_ms: int) -> list[Accepted]:
        """Accept the drafts of one call; those with one body share its row."""
        if len(drafts) == 1:
            return [self._accept(drafts[0], now_ms)]
        uses = Counter(id(draft.body) for draft in drafts if draft.body)
        shared: dict[int, int] = {}
        accepted = []
        for draft in drafts:
            of = id(draft.body)
            if uses[of] > 1:
                accepted.append(self._accept(draft, now_ms, shared_body=shared.get(of, 0)))
                if not accepted[-1].deduplicated:
                    shared.setdefault(of, self.messages[-1][2])
            else:
                accepted.append(self._accept(draft, now_ms))
        return accepted

    def accept_callback(self, draft: Draft, source: Claim, *, now_ms: int) -> None:
        """Accept a callback; `source` is the attempt that it tells of."""
        self._accept(draft, now_ms, source=source)

    def accept_again(self, draft: Draft, *, body: int, source: int | None, now_ms: int) -> None:
        """Accept a message with the body that is kept under the number `body` (D27); a callback
        tells of the message of the number `source`."""
        self._accept(draft, now_ms)
        self.messages[-1] = (*self.messages[-1][:4], body, source)

    def write(self) -> None:
        """Write what was accepted."""
        insert(self.db, "message", self.messages)
        insert(self.db, "body", self.bodies)
        insert(self.db, "delivery", self.deliveries)
        insert(self.db, "hold", self.holds)
        insert(self.db, "event", self.events)
        self.permits.write()
        lanes.join(self.batch, self.waiting, self.limited, now_ms=self.now_ms)

    def _accept(
        self,
        draft: Draft,
        now_ms: int,
        *,
        shared_body: int | None = None,
        source: Claim | None = None,
    ) -> Accepted:
        """Accept one draft.  `shared_body` is the number under which its body is kept for
        several messages, 0 where this is the first of them."""
        message = draft.message
        if draft.dedup_key is not None:
            first = _take_dedup_key(self.db, draft, now_ms=now_ms)
            if first is not None:
                return Accepted(message_id=first, deduplicated=True)
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
        holding = int(token is not None and message.queue is not None)
        self.deliveries.append(
            (number, tenant, message.id, lane, draft.host, due_ms, token, holding, 0, 0, 0, key)
        )
        self.events.append((tenant, now_ms, numbers.next(), message.id, "CREATED", None))
        if token is not None:
            if holding:
                self.holds.append((tenant, lane, number))
            active_ms = self.now_ms
            if key is not None:
                active_ms = self.permits.take(tenant, key, number, own=not holding)
            self.events.append((tenant, active_ms, numbers.next(), message.id, "ACTIVE", None))
            claim = Claim(number=number, token=token, message=message, body=body, host=draft.host)
            self.batch.take_place(self.places, claim)
            self.batch.on_commit.append(partial(self.births.hand_over, claim))
        elif message.queue is not None or key is not None:
            self.limited.add(place)
        else:
            self.waiting[place] = min(due_ms, self.waiting.get(place, due_ms))
        return Accepted(message_id=message.id)

    def _room(self, message: Message, place: tuple[str, str]) -> int:
        """How many messages may be claimed at birth in a lane, were they due."""
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
