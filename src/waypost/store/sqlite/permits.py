"""The home of permits: what flow-control keys allow now, and what is taken of it (D26).

A permit of the parallelism is a hold, from the claim to the settle; what is in use is
the count of them.  What the rate allows is in the key itself.

| what waits for a key          | where              | until                               |
| ----------------------------- | ------------------ | ----------------------------------- |
| messages that have only a key | the lane of the key | its turn, which `lanes.refresh` sets |
| messages in a queue, suspects | their own lane     | `reopen`, being blocked on the key  |

Where both wait they take turns: the lane of the key goes before all the others, or behind
them.  Among themselves the others keep the turns that they had, and only who was served
stands back; so each of them comes first once, however many permits come back at a time.
"""

from collections.abc import Iterable

import apsw
import msgspec

from waypost.domain.flow import UNLIMITED, Flow, FlowKey
from waypost.domain.lanes import key_lane
from waypost.store.calls import KeyChange
from waypost.store.sqlite import flow_keys, lanes
from waypost.store.sqlite.database import insert, query
from waypost.store.sqlite.lanes import key_resource
from waypost.store.sqlite.writer import Batch

KEYS_OPENED_MAX = 64
"""Keys that one claim looks at, of those that may have room for lanes that wait for them."""


class _Use(msgspec.Struct):
    key: FlowKey
    in_use: int
    before: FlowKey
    others_wait: bool | None = None


class Permits:
    """The keys that a batch of calls uses.  What it takes is written by `write`."""

    def __init__(self, batch: Batch, *, now_ms: int) -> None:
        self._batch = batch
        self._db = batch.db
        self._now_ms = now_ms
        self._uses: dict[tuple[str, str], _Use] = {}
        self._holds: list[tuple[str, str, int]] = []

    def ask(self, tenant: str, flow: Flow) -> None:
        """A message names its key, and the limits that it shall have."""
        use = self._use(tenant, flow.key)
        if use is None:
            before = FlowKey(name=flow.key)
            use = _Use(before, flow_keys.in_use(self._db, tenant, flow.key), before)
            self._uses[tenant, flow.key] = use
        use.key = use.key.asked(flow, now_ms=self._now_ms)

    def room(self, tenant: str, name: str) -> int:
        """How many attempts of a key may begin now."""
        use = self._use(tenant, name)
        return UNLIMITED if use is None else use.key.room(use.in_use, now_ms=self._now_ms)

    def room_at_birth(self, tenant: str, name: str) -> int:
        """The same, for messages that come only now: nothing where others wait for their turn."""
        use = self._use(tenant, name)
        if use is not None and use.others_wait is None:
            use.others_wait = lanes.is_in_line(
                self._db, tenant, key_lane(name), now_ms=self._now_ms
            ) or lanes.is_blocked_on(self._db, key_resource(tenant, name))
        return 0 if use is not None and use.others_wait else self.room(tenant, name)

    def take(self, tenant: str, name: str, number: int, *, own: bool) -> int:
        """Take a permit for an attempt of the message of that number, which waits in the lane
        of the key (`own`) or in another.

        Since when the attempt counts as under way: not before the window that it is of.
        """
        self._holds.append((tenant, key_lane(name), number))
        use = self._use(tenant, name)
        if use is None:
            return self._now_ms
        use.in_use += 1
        use.key = use.key.after_one(own=own, now_ms=self._now_ms)
        return max(self._now_ms, use.key.window_ms)

    def wait(self, tenant: str, lane: str, name: str) -> None:
        """Let a lane that is not its own wait for a key that has no room."""
        lanes.block(self._db, tenant, lane, on=key_resource(tenant, name))
        use = self._use(tenant, name)
        assert use is not None, name
        self._look_again(tenant, name, use.key.opens_ms(use.in_use, now_ms=self._now_ms))

    def open(self, *, count_max: int) -> None:
        """Let lanes that wait for keys come back to the line, as many as these have room for
        now: behind the key's own lane where it is its turn, else before it.  No more than
        `count_max` of all keys, for what comes back has an old turn and is to go at once."""
        found = query(
            self._db,
            "SELECT tenant, name FROM flow_key INDEXED BY flow_key_opens"
            " WHERE opens_ms <= ? ORDER BY opens_ms LIMIT ?",
            (self._now_ms, KEYS_OPENED_MAX),
        )
        for tenant, name in found.fetchall():
            if count_max <= 0:
                break
            use = self._use(tenant, name)
            assert use is not None, name
            room = use.key.room(use.in_use, now_ms=self._now_ms)
            if not room:
                opens_ms = use.key.opens_ms(use.in_use, now_ms=self._now_ms)
                self._look_again(tenant, name, opens_ms)
                continue
            own, others = key_lane(name), key_resource(tenant, name)
            turn_ms_max = self._now_ms
            if not use.key.own_turn:
                lanes.stand_back(self._db, tenant, own, turn_ms=turn_ms_max)
                turn_ms_max -= 1
            elif (first_ms := lanes.first_turn_ms(self._db, others)) is not None:
                # Of equal turns the lane of a key comes first, by its name.
                lanes.come_forward(self._db, tenant, own, turn_ms=first_ms, now_ms=turn_ms_max)
            room = min(room, count_max)
            came = lanes.reopen(self._db, others, count_max=room, turn_ms_max=turn_ms_max)
            self._look_again(tenant, name, self._now_ms if came == room else None)
            count_max -= came

    def write(self) -> None:
        insert(self._db, "hold", self._holds)
        self._holds = []
        for (tenant, name), use in self._uses.items():
            if use.key == use.before:
                continue
            flow_keys.save(self._db, tenant, use.key)
            if not use.key.limited_as(use.before):
                changed(self._batch, tenant, name, now_ms=self._now_ms)
            use.before = use.key

    def _look_again(self, tenant: str, name: str, opens_ms: int | None) -> None:
        self._db.execute(
            "UPDATE flow_key SET opens_ms = ? WHERE tenant = ? AND name = ?",
            (opens_ms, tenant, name),
        )

    def _use(self, tenant: str, name: str) -> _Use | None:
        use = self._uses.get((tenant, name))
        if use is None:
            known = flow_keys.one(self._db, tenant, name)
            if known is None:
                return None
            use = _Use(known, flow_keys.in_use(self._db, tenant, name), known)
            self._uses[tenant, name] = use
        return use


def changed(batch: Batch, tenant: str, name: str, *, now_ms: int) -> None:
    """Let whatever waits for a key see how it stands now."""
    lane = key_lane(name)
    batch.someone_waits(lanes.refresh(batch.db, tenant, lane, now_ms=now_ms))
    look_again(batch, tenant, name, now_ms=now_ms)


def look_again(batch: Batch, tenant: str, name: str, *, now_ms: int) -> None:
    """Let the next claim see whether a key has room for lanes that are blocked on it."""
    if lanes.is_blocked_on(batch.db, key_resource(tenant, name)):
        batch.db.execute(
            "UPDATE flow_key SET opens_ms = ? WHERE tenant = ? AND name = ?",
            (now_ms, tenant, name),
        )
        batch.someone_waits(now_ms)


def give_back(db: apsw.Connection, permits: Iterable[tuple[str, str, int]]) -> None:
    """Give back permits: tenant, key and number of the message of each."""
    db.executemany(
        "DELETE FROM hold WHERE tenant = ? AND resource = ? AND number = ?",
        ((tenant, key_lane(name), number) for tenant, name, number in permits),
    )


def give_back_all(db: apsw.Connection) -> None:
    """At start: no attempt is under way."""
    db.execute("DELETE FROM hold WHERE resource >= 'key:' AND resource < 'key;'")


def change(batch: Batch, calls: list[KeyChange]) -> list[FlowKey | Exception | None]:
    """Change keys; see `FlowKeys.change_flow_key`."""
    return [_change(batch, call) for call in calls]


def _change(batch: Batch, call: KeyChange) -> FlowKey | Exception | None:
    before = flow_keys.one(batch.db, call.tenant, call.name)
    try:
        after = call.change(before)
    except Exception as fault:  # noqa: BLE001 -- the caller's, and raised to them
        return fault
    if after == before:
        return after
    if after is None:
        flow_keys.remove(batch.db, call.tenant, call.name)
        lanes.reopen(batch.db, key_resource(call.tenant, call.name), count_max=UNLIMITED)
        batch.someone_waits(call.now_ms)
    else:
        assert after.name == call.name
        flow_keys.save(batch.db, call.tenant, after)
    changed(batch, call.tenant, call.name, now_ms=call.now_ms)
    return after
