"""The home of permits: what flow-control keys allow now, and what is taken of it (D26).

A permit of the parallelism is a hold, from the claim to the settle; what is in use is
the count of them.  What the rate allows is in the key itself.  Whoever takes or gives
back has locked the key (`Batch.lock`), on whatever node.

| what waits for a key          | where              | until                               |
| ----------------------------- | ------------------ | ----------------------------------- |
| messages that have only a key | the lane of the key | its turn, which `lanes.refresh` sets |
| messages in a queue, suspects | their own lane     | `open_keys`, being blocked on the key |

Where both wait they take turns: the lane of the key goes before all the others, or behind
them.  Among themselves the others keep the turns that they had, and only who was served
stands back; so each of them comes first once, however many permits come back at a time.
"""

from collections.abc import Iterable
from itertools import chain

import msgspec

from waypost.domain.flow import UNLIMITED, Flow, FlowKey
from waypost.domain.lanes import Place, key_lane
from waypost.store.calls import KeyChange
from waypost.store.postgres import flow_keys, lanes
from waypost.store.postgres.database import Connection, insert, is_text
from waypost.store.postgres.lanes import key_resource
from waypost.store.postgres.writer import Batch, InTheWay

KEYS_OPENED_MAX = 64
"""Keys that are opened at once, of those that may have room for lanes that wait for them."""


class _Use(msgspec.Struct):
    key: FlowKey
    in_use: int
    before: FlowKey
    others_wait: bool


class Permits:
    """The keys that a batch of calls uses.  `read` them first; what is taken is written by
    `write`."""

    def __init__(self, batch: Batch, *, now_ms: int) -> None:
        self._batch = batch
        self._now_ms = now_ms
        self._uses: dict[Place, _Use] = {}
        self._holds: list[tuple[str, str, int]] = []

    async def read(self, names: Iterable[Place], *, births: bool = False) -> None:
        """Read how keys stand that are locked; for `births`, also whether others wait."""
        names = set(names)
        if not names:
            return
        waiting: set[Place] = set()
        if births:
            waiting = await self._waited_for(names)
        states = await flow_keys.states(self._batch.db, names)
        if births and len(states) < len(names):
            raise InTheWay  # upkeep removed a key just before it was locked
        for name, (key, in_use) in states.items():
            self._uses[name] = _Use(key, in_use, key, name in waiting)

    async def _waited_for(self, names: set[Place]) -> set[Place]:
        """Those of the keys that messages wait for which came earlier."""
        db = self._batch.db
        by_lane = {(tenant, key_lane(key)): (tenant, key) for tenant, key in names}
        states = await lanes.states(db, by_lane, now_ms=self._now_ms)
        blocked = await lanes.blocked_on(db, [key_resource(*name) for name in names])
        return {by_lane[place] for place, state in states.items() if state.in_line} | {
            name for name in names if key_resource(*name) in blocked
        }

    def ask(self, tenant: str, flow: Flow) -> None:
        """A message names its key, and the limits that it shall have."""
        use = self._uses[tenant, flow.key]
        use.key = use.key.asked(flow, now_ms=self._now_ms)

    def knows(self, tenant: str, name: str) -> bool:
        """Whether a key was read, or was there to be read."""
        return (tenant, name) in self._uses

    def room(self, tenant: str, name: str) -> int:
        """How many attempts of a key may begin now."""
        use = self._uses.get((tenant, name))
        return UNLIMITED if use is None else use.key.room(use.in_use, now_ms=self._now_ms)

    def room_at_birth(self, tenant: str, name: str) -> int:
        """The same, for messages that come only now: nothing where others wait for their turn."""
        return 0 if self._uses[tenant, name].others_wait else self.room(tenant, name)

    def take(self, tenant: str, name: str, number: int, *, own: bool) -> int:
        """Take a permit for an attempt of the message of that number, which waits in the lane
        of the key (`own`) or in another.

        Since when the attempt counts as under way: not before the window that it is of.
        """
        self._holds.append((tenant, key_lane(name), number))
        use = self._uses.get((tenant, name))
        if use is None:
            return self._now_ms
        use.in_use += 1
        use.key = use.key.after_one(own=own, now_ms=self._now_ms)
        return max(self._now_ms, use.key.window_ms)

    def opens_ms(self, tenant: str, name: str) -> int | None:
        """When there is room by the clock alone; None where something has to happen first."""
        use = self._uses[tenant, name]
        return use.key.opens_ms(use.in_use, now_ms=self._now_ms)

    async def write(self) -> list[Place]:
        """Write what was taken and asked; the lanes of keys that have other limits now."""
        db = self._batch.db
        await insert(db, hold=self._holds)
        changed = {name: use for name, use in self._uses.items() if use.key != use.before}
        await flow_keys.save(db, [(tenant, use.key) for (tenant, _), use in changed.items()])
        limits = [name for name, use in changed.items() if not use.key.limited_as(use.before)]
        await look_again(self._batch, limits, now_ms=self._now_ms)
        return [(tenant, key_lane(key)) for tenant, key in limits]


async def look_again(batch: Batch, names: Iterable[Place], *, now_ms: int) -> None:
    """Let the next claim see whether keys have room for lanes that are blocked on them."""
    names = sorted(set(names))
    if not names:
        return
    blocked = await lanes.blocked_on(batch.db, [key_resource(*name) for name in names])
    turns = [(*name, now_ms) for name in names if key_resource(*name) in blocked]
    await set_opens(batch.db, turns)
    if turns:
        batch.someone_waits(now_ms)


async def set_opens(db: Connection, turns: Iterable[tuple[str, str, int | None]]) -> None:
    """Set when keys are to be looked at for lanes that are blocked on them."""
    if rows := sorted(turns, key=lambda turn: turn[:2]):
        await db.execute(
            "UPDATE flow_key k SET opens_ms = n.opens_ms"
            " FROM unnest($1::text[], $2::text[], $3::bigint[]) n (tenant, name, opens_ms)"
            " WHERE k.tenant = n.tenant AND k.name = n.name",
            *zip(*rows, strict=True),
        )


async def give_back(db: Connection, permits: Iterable[tuple[str, str, int]]) -> None:
    """Give back permits: tenant, key and number of the message of each."""
    rows = sorted((tenant, key_lane(name), number) for tenant, name, number in permits)
    if rows:
        await db.execute(
            "DELETE FROM hold h USING unnest($1::text[], $2::text[], $3::bigint[])"
            "  n (tenant, resource, number)"
            " WHERE h.tenant = n.tenant AND h.resource = n.resource AND h.number = n.number",
            *zip(*rows, strict=True),
        )


class Opening(msgspec.Struct, frozen=True):
    count_max: int
    now_ms: int


async def is_due(db: Connection, *, now_ms: int) -> bool:
    """Whether there are lanes for `open_keys` to look at."""
    due: bool = await db.fetchval(
        "SELECT EXISTS (SELECT 1 FROM flow_key WHERE opens_ms <= $1)"
        " OR EXISTS (SELECT 1 FROM lane WHERE blocked_on IS NOT NULL AND retry_ms <= $1)",
        now_ms,
    )
    return due


async def open_keys(batch: Batch, calls: list[Opening]) -> list[None]:
    """Let lanes that wait for keys come back to the line, as many as these have room for now:
    behind a key's own lane where it is its turn, else before it; and those in which a retry
    has fallen due that has its place in the queue.  No more than `count_max` of all keys, for
    what comes back has an old turn and is to go at once."""
    db, now_ms = batch.db, max(call.now_ms for call in calls)
    left = max(call.count_max for call in calls)
    found = await db.fetch(
        "SELECT tenant, name FROM flow_key WHERE opens_ms <= $1 ORDER BY opens_ms LIMIT $2",
        now_ms,
        KEYS_OPENED_MAX,
    )
    names = [(row[0], row[1]) for row in found]
    await batch.lock_rows("flow_key", "name", names)
    rooms: dict[Place, int] = {}
    opens: dict[Place, int | None] = {}
    others_first: set[Place] = set()
    for name, (key, in_use) in (await flow_keys.states(db, names)).items():
        room = min(key.room(in_use, now_ms=now_ms), left)
        if room:
            rooms[name] = room
        else:
            opens[name] = key.opens_ms(in_use, now_ms=now_ms)
        if room and not key.own_turn:
            others_first.add(name)
    blocked = await lanes.first_blocked(db, {key_resource(*name): rooms[name] for name in rooms})
    due = await lanes.due_retries(db, count_max=KEYS_OPENED_MAX, now_ms=now_ms)
    ahead: list[tuple[str, str, int]] = []
    behind: list[Place] = []
    coming = dict.fromkeys(due, now_ms)
    for name in names:
        room = min(rooms.get(name, 0), left)
        if not room:
            continue
        waiting = blocked.get(key_resource(*name), [])[:room]
        opens[name] = now_ms if len(waiting) == room else None
        left -= len(waiting)
        own = (name[0], key_lane(name[1]))
        if name in others_first:
            behind.append(own)
        elif waiting:  # of equal turns the lane of a key comes first, by its name
            ahead.append((*own, waiting[0][2]))
        coming |= {turn[:2]: now_ms - (name in others_first) for turn in waiting}
    own_lanes = {*behind, *(turn[:2] for turn in ahead)}
    await batch.lock_rows("lane", "lane", coming.keys() | own_lanes)
    await lanes.come_forward(db, ahead, now_ms=now_ms)
    await lanes.stand_back(db, behind, turn_ms=now_ms)
    await lanes.reopen(db, [(*place, turn_ms) for place, turn_ms in coming.items()])
    await set_opens(db, ((*name, opens_ms) for name, opens_ms in opens.items()))
    return [None] * len(calls)


async def change(batch: Batch, calls: list[KeyChange]) -> list[FlowKey | Exception | None]:
    """Change keys; see `FlowKeys.change_flow_key`."""
    await batch.lock((call.tenant, key_lane(call.name)) for call in calls if is_text(call.name))
    return [await _change(batch, call) for call in calls]


async def _change(batch: Batch, call: KeyChange) -> FlowKey | Exception | None:
    db, tenant, name = batch.db, call.tenant, call.name
    before = await flow_keys.one(db, tenant, name)
    try:
        after = call.change(before)
    except Exception as fault:  # noqa: BLE001 -- the caller's, and raised to them
        return fault
    if after == before:
        return after
    if after is None:
        await flow_keys.remove(db, tenant, name)
        waiting = await lanes.first_blocked(db, {key_resource(tenant, name): UNLIMITED})
        coming = list(chain(*waiting.values()))
        await batch.lock_rows("lane", "lane", [turn[:2] for turn in coming])
        await lanes.reopen(db, coming)
        batch.someone_waits(call.now_ms)
    else:
        assert after.name == name
        if before is None:
            await flow_keys.make(db, [(tenant, name)], now_ms=call.now_ms)
        await flow_keys.save(db, [(tenant, after)])
        await look_again(batch, [(tenant, name)], now_ms=call.now_ms)
    await lanes.refresh(batch, [(tenant, key_lane(name))], now_ms=call.now_ms)
    return after
