"""The home of flow-control keys as they are kept and seen.  What they let go: `permits`."""

import apsw
import msgspec

from waypost.domain.flow import FlowKey
from waypost.domain.lanes import key_lane
from waypost.store.protocol import FlowKeyState
from waypost.store.sqlite.database import query

_decode = msgspec.json.Decoder(FlowKey).decode
_encode = msgspec.json.encode


def one(db: apsw.Connection, tenant: str, name: str) -> FlowKey | None:
    found = query(
        db, "SELECT facts FROM flow_key WHERE tenant = ? AND name = ?", (tenant, name)
    ).fetchone()
    return None if found is None else _decode(found[0])


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
    key = one(db, tenant, name)
    return now_ms if key is None else key.opens_ms(in_use(db, tenant, name), now_ms=now_ms)


def next_opens_ms(db: apsw.Connection) -> int | None:
    """When the next key is to be looked at, for lanes that wait for it."""
    [earliest_ms] = query(
        db,
        "SELECT min(opens_ms) FROM flow_key INDEXED BY flow_key_opens WHERE opens_ms IS NOT NULL",
    ).fetchone()
    return None if earliest_ms is None else int(earliest_ms)


def save(db: apsw.Connection, tenant: str, key: FlowKey) -> None:
    db.execute(
        "INSERT INTO flow_key VALUES (?, ?, ?, ?, NULL) ON CONFLICT (tenant, name)"
        " DO UPDATE SET facts = excluded.facts, used_ms = excluded.used_ms",
        (tenant, key.name, _encode(key), key.used_ms),
    )


def remove(db: apsw.Connection, tenant: str, name: str) -> None:
    db.execute("DELETE FROM flow_key WHERE tenant = ? AND name = ?", (tenant, name))


def remove_unused(
    db: apsw.Connection, *, until_ms: int, count_max: int, now_ms: int
) -> tuple[int, bool]:
    """Remove keys that nothing has used since then and that nothing needs: how many, and
    whether there is more to look at.  Those that stay are looked at again after as long."""
    rows = query(
        db,
        "SELECT tenant, name, facts FROM flow_key INDEXED BY flow_key_used"
        " WHERE used_ms <= ? ORDER BY used_ms LIMIT ?",
        (until_ms, count_max),
    ).fetchall()
    gone = 0
    for tenant, name, facts in rows:
        needed = query(
            db, "SELECT 1 FROM delivery WHERE tenant = ? AND key = ? LIMIT 1", (tenant, name)
        ).fetchone()
        if needed or not _decode(facts).is_idle(now_ms=now_ms):
            db.execute(
                "UPDATE flow_key SET used_ms = ? WHERE tenant = ? AND name = ?",
                (now_ms, tenant, name),
            )
        else:
            remove(db, tenant, name)
            gone += 1
    return gone, len(rows) == count_max


def seen(db: apsw.Connection, tenant: str, name: str, *, now_ms: int) -> FlowKeyState | None:
    """A key with what waits for it; see `Reader.flow_key`."""
    key = one(db, tenant, name)
    if key is None:
        return None
    [waiting] = query(
        db,
        "SELECT count(*) FROM delivery"
        " WHERE tenant = ? AND key = ? AND token IS NULL AND due_ms <= ?",
        (tenant, name, now_ms),
    ).fetchone()
    return FlowKeyState(key=key, waiting=waiting, in_use=in_use(db, tenant, name))


def all_seen(db: apsw.Connection, tenant: str, *, search: str, now_ms: int) -> list[FlowKeyState]:
    """Keys by name; see `Reader.flow_keys`."""
    waiting = dict(
        query(
            db,
            "SELECT key, count(*) FROM delivery"
            " WHERE tenant = ? AND key IS NOT NULL AND token IS NULL AND due_ms <= ? GROUP BY key",
            (tenant, now_ms),
        ).fetchall()
    )
    held = dict(
        query(
            db,
            "SELECT resource, count(*) FROM hold"
            " WHERE tenant = ? AND resource >= 'key:' AND resource < 'key;' GROUP BY resource",
            (tenant,),
        ).fetchall()
    )
    return [
        FlowKeyState(
            key=_decode(facts), waiting=waiting.get(name, 0), in_use=held.get(key_lane(name), 0)
        )
        for name, facts in query(
            db,
            "SELECT name, facts FROM flow_key WHERE tenant = ? AND instr(name, ?) ORDER BY name",
            (tenant, search),
        )
    ]
