"""The home of flow-control keys as they are kept and seen.  What they let go: `permits`."""

from collections.abc import Iterable

import msgspec

from waypost.domain.flow import FlowKey
from waypost.domain.lanes import KEY, Place, key_lane
from waypost.store.postgres.database import Connection, columns, is_text
from waypost.store.protocol import FlowKeyState

_decode = msgspec.json.Decoder(FlowKey).decode
_encode = msgspec.json.encode

_IN_USE = (
    f"(SELECT count(*) FROM hold h WHERE h.tenant = k.tenant AND h.resource = '{KEY}' || k.name)"
)
_WAITING = "token IS NULL AND due_ms <= "


async def one(db: Connection, tenant: str, name: str) -> FlowKey | None:
    if not is_text(name):
        return None
    facts = await db.fetchval(
        "SELECT facts FROM flow_key WHERE tenant = $1 AND name = $2", tenant, name
    )
    return None if facts is None else _decode(facts)


async def states(db: Connection, names: Iterable[Place]) -> dict[Place, tuple[FlowKey, int]]:
    """Those of the keys that are there, each with how many of its attempts are under way."""
    names = list(names)
    if not names:
        return {}
    rows = await db.fetch(
        f"SELECT k.tenant, k.name, k.facts, {_IN_USE}"
        " FROM unnest($1::text[], $2::text[]) n (tenant, name)"
        " JOIN flow_key k ON k.tenant = n.tenant AND k.name = n.name",
        *columns(names),
    )
    return {(tenant, name): (_decode(facts), held) for tenant, name, facts, held in rows}


async def in_use(db: Connection, tenant: str, name: str) -> int:
    """How many attempts of a key are under way, be the key there or not."""
    held: int = await db.fetchval(
        "SELECT count(*) FROM hold WHERE tenant = $1 AND resource = $2", tenant, key_lane(name)
    )
    return held


async def next_opens_ms(db: Connection) -> int | None:
    """When the next key is to be looked at, for lanes that wait for it."""
    earliest_ms: int | None = await db.fetchval(
        "SELECT min(opens_ms) FROM flow_key WHERE opens_ms IS NOT NULL"
    )
    return earliest_ms


async def make(db: Connection, names: Iterable[Place], *, now_ms: int) -> set[Place]:
    """Make those of the keys that are not there, without limits: which."""
    new = [
        (tenant, name, _encode(FlowKey(name=name, used_ms=now_ms)))
        for tenant, name in sorted(names)
    ]
    if not new:
        return set()
    rows = await db.fetch(
        "INSERT INTO flow_key SELECT tenant, name, facts, $4::bigint, NULL"
        " FROM unnest($1::text[], $2::text[], $3::bytea[]) n (tenant, name, facts)"
        " ON CONFLICT DO NOTHING RETURNING tenant, name",
        *zip(*new, strict=True),
        now_ms,
    )
    return {(row[0], row[1]) for row in rows}


async def save(db: Connection, keys: Iterable[tuple[str, FlowKey]]) -> None:
    """Keep keys of tenants, which are there, as they are now."""
    rows = sorted((tenant, key.name, _encode(key), key.used_ms) for tenant, key in keys)
    if rows:
        await db.execute(
            "UPDATE flow_key k SET facts = n.facts, used_ms = n.used_ms FROM"
            " unnest($1::text[], $2::text[], $3::bytea[], $4::bigint[])"
            "  n (tenant, name, facts, used_ms)"
            " WHERE k.tenant = n.tenant AND k.name = n.name",
            *zip(*rows, strict=True),
        )


async def remove(db: Connection, tenant: str, name: str) -> None:
    await db.execute("DELETE FROM flow_key WHERE tenant = $1 AND name = $2", tenant, name)


async def remove_unused(
    db: Connection, *, until_ms: int, count_max: int, now_ms: int
) -> tuple[int, bool]:
    """Remove keys that nothing has used since then and that nothing needs: how many, and
    whether there is more to look at.  Those that stay are looked at again after as long.

    Keys that somebody has locked are in use, and are passed over.
    """
    rows = await db.fetch(
        "SELECT tenant, name, facts FROM flow_key k WHERE used_ms <= $1"
        " ORDER BY used_ms LIMIT $2 FOR UPDATE SKIP LOCKED",
        until_ms,
        count_max,
    )
    if not rows:
        return 0, False
    idle = [(row["tenant"], row["name"]) for row in rows if _is_idle(row["facts"], now_ms)]
    gone = await db.fetch(
        "DELETE FROM flow_key k USING unnest($1::text[], $2::text[]) n (tenant, name)"
        " WHERE k.tenant = n.tenant AND k.name = n.name AND NOT EXISTS"
        "  (SELECT 1 FROM delivery d WHERE d.tenant = k.tenant AND d.key = k.name)"
        " RETURNING k.tenant, k.name",
        *columns(idle),
    )
    await db.execute(
        "UPDATE flow_key k SET used_ms = $3 FROM unnest($1::text[], $2::text[]) n (tenant, name)"
        " WHERE k.tenant = n.tenant AND k.name = n.name",
        *columns((row["tenant"], row["name"]) for row in rows),
        now_ms,
    )
    return len(gone), len(rows) == count_max


def _is_idle(facts: bytes, now_ms: int) -> bool:
    return _decode(facts).is_idle(now_ms=now_ms)


async def seen(db: Connection, tenant: str, name: str, *, now_ms: int) -> FlowKeyState | None:
    """A key with what waits for it; see `Reader.flow_key`."""
    key = await one(db, tenant, name)
    if key is None:
        return None
    waiting = await db.fetchval(
        f"SELECT count(*) FROM delivery WHERE tenant = $1 AND key = $2 AND {_WAITING} $3",
        tenant,
        name,
        now_ms,
    )
    return FlowKeyState(key=key, waiting=waiting, in_use=await in_use(db, tenant, name))


async def all_seen(db: Connection, tenant: str, *, search: str, now_ms: int) -> list[FlowKeyState]:
    """Keys by name; see `Reader.flow_keys`."""
    if not is_text(search):
        return []
    waiting = await db.fetch(
        "SELECT key, count(*) FROM delivery"
        f" WHERE tenant = $1 AND key IS NOT NULL AND {_WAITING} $2 GROUP BY key",
        tenant,
        now_ms,
    )
    held = await db.fetch(
        "SELECT resource, count(*) FROM hold"
        " WHERE tenant = $1 AND resource >= 'key:' AND resource < 'key;' GROUP BY resource",
        tenant,
    )
    found = await db.fetch(
        "SELECT name, facts FROM flow_key WHERE tenant = $1 AND strpos(name, $2) > 0 ORDER BY name",
        tenant,
        search,
    )
    waits, holds = dict(map(tuple, waiting)), dict(map(tuple, held))
    return [
        FlowKeyState(
            key=_decode(facts), waiting=waits.get(name, 0), in_use=holds.get(key_lane(name), 0)
        )
        for name, facts in found
    ]
