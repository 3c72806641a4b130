"""The home of permits: what flow-control keys allow now, and what is taken of it (D26).

A permit of the parallelism is a hold, from the claim to the settle; what is in use is
the count of them.  What the rate allows is in the key itself.
"""

from collections.abc import Iterable

import apsw
import msgspec

from waypost.domain.flow import UNLIMITED, Flow, FlowKey
from waypost.domain.lanes import key_lane
from waypost.store.sqlite.database import insert, query

decode_flow_key = msgspec.json.Decoder(FlowKey).decode
_encode = msgspec.json.encode


class _Use(msgspec.Struct):
    key: FlowKey
    in_use: int
    changed: bool = False


class Permits:
    """The keys that a batch of calls uses.  What it takes is written by `write`."""

    def __init__(self, db: apsw.Connection, *, now_ms: int) -> None:
        self._db = db
        self._now_ms = now_ms
        self._uses: dict[tuple[str, str], _Use] = {}
        self._holds: list[tuple[str, str, int]] = []

    def ask(self, tenant: str, flow: Flow) -> None:
        """A message names its key, and the limits that it shall have."""
        use = self._uses.get((tenant, flow.key))
        if use is None:
            known = flow_key(self._db, tenant, flow.key) or FlowKey(name=flow.key)
            use = _Use(known, in_use(self._db, tenant, flow.key))
            self._uses[tenant, flow.key] = use
        use.key = use.key.asked(flow, now_ms=self._now_ms)
        use.changed = True

    def room(self, tenant: str, name: str) -> int:
        """How many attempts of a key may begin now."""
        use = self._use(tenant, name)
        return UNLIMITED if use is None else use.key.room(use.in_use, now_ms=self._now_ms)

    def take(self, tenant: str, name: str, number: int) -> None:
        """Take a permit for an attempt of the message of that number."""
        self._holds.append((tenant, key_lane(name), number))
        use = self._use(tenant, name)
        if use is not None:
            use.in_use += 1
            use.key = use.key.after(1, now_ms=self._now_ms)
            use.changed = True

    def write(self) -> None:
        insert(self._db, "hold", self._holds)
        self._holds = []
        for (tenant, _), use in self._uses.items():
            if use.changed:
                save(self._db, tenant, use.key)
                use.changed = False

    def _use(self, tenant: str, name: str) -> _Use | None:
        use = self._uses.get((tenant, name))
        if use is None:
            known = flow_key(self._db, tenant, name)
            if known is None:
                return None
            use = self._uses[tenant, name] = _Use(known, in_use(self._db, tenant, name))
        return use


def flow_key(db: apsw.Connection, tenant: str, name: str) -> FlowKey | None:
    found = query(
        db, "SELECT facts FROM flow_key WHERE tenant = ? AND name = ?", (tenant, name)
    ).fetchone()
    return None if found is None else decode_flow_key(found[0])


def in_use(db: apsw.Connection, tenant: str, name: str) -> int:
    """How many attempts of a key are under way."""
    [held] = query(
        db,
        "SELECT count(*) FROM hold WHERE tenant = ? AND resource = ?",
        (tenant, key_lane(name)),
    ).fetchone()
    return int(held)


def opens_ms(db: apsw.Connection, tenant: str, name: str, *, now_ms: int) -> int | None:
    """When a key has room by the clock alone; None where something has to happen first."""
    key = flow_key(db, tenant, name)
    return now_ms if key is None else key.opens_ms(in_use(db, tenant, name), now_ms=now_ms)


def save(db: apsw.Connection, tenant: str, key: FlowKey) -> None:
    db.execute(
        "INSERT OR REPLACE INTO flow_key VALUES (?, ?, ?, ?)",
        (tenant, key.name, _encode(key), key.used_ms),
    )


def give_back(db: apsw.Connection, permits: Iterable[tuple[str, str, int]]) -> None:
    """Give back permits: tenant, key and number of the message of each."""
    db.executemany(
        "DELETE FROM hold WHERE tenant = ? AND resource = ? AND number = ?",
        ((tenant, key_lane(name), number) for tenant, name, number in permits),
    )


def give_back_all(db: apsw.Connection) -> None:
    """At start: no attempt is under way."""
    db.execute("DELETE FROM hold WHERE resource >= 'key:' AND resource < 'key;'")


def resource(tenant: str, name: str) -> str:
    """What lanes other than the key's own are blocked on: the key, whoever's it is."""
    return f"{key_lane(name)} of {tenant}"
