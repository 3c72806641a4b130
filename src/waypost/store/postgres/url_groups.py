"""The home of URL groups as they are kept: one row each, their facts one document."""

import msgspec

from waypost.domain.url_groups import UrlGroup
from waypost.store import quotas
from waypost.store.calls import GroupChange
from waypost.store.postgres.database import Connection, is_text
from waypost.store.postgres.writer import Batch, one_by_one

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(UrlGroup).decode


async def one(
    db: Connection, tenant: str, name_or_id: str, *, locked: bool = False
) -> UrlGroup | None:
    """The group of that name or id."""
    if not is_text(name_or_id):
        return None
    facts = await db.fetchval(
        "SELECT facts FROM url_group WHERE tenant = $1 AND (name = $2 OR id = $2)"
        f" ORDER BY name = $2 DESC LIMIT 1{' FOR UPDATE' if locked else ''}",
        tenant,
        name_or_id,
    )
    return None if facts is None else _decode(facts)


async def all_of(db: Connection, tenant: str) -> list[UrlGroup]:
    """All groups of a tenant, by name."""
    found = await db.fetch("SELECT facts FROM url_group WHERE tenant = $1 ORDER BY name", tenant)
    return [_decode(row[0]) for row in found]


async def change(batch: Batch, calls: list[GroupChange]) -> list[UrlGroup | Exception | None]:
    """Change groups; see `UrlGroups.change_url_group`."""
    return await one_by_one(batch, calls, lambda call: (call.tenant, call.name_or_id), _change)


async def _change(batch: Batch, call: GroupChange) -> UrlGroup | Exception | None:
    db, tenant = batch.db, call.tenant
    before = await one(db, tenant, call.name_or_id, locked=True)
    try:
        after = call.change(before)
    except Exception as fault:  # noqa: BLE001 -- the caller's, and raised to them
        return fault
    if after == before:
        return after
    if after is None:
        assert before is not None
        await db.execute("DELETE FROM url_group WHERE tenant = $1 AND id = $2", tenant, before.id)
    elif before is None:
        count = await db.fetchval("SELECT count(*) FROM url_group WHERE tenant = $1", tenant)
        if count >= call.count_max:
            return quotas.exceeded("maxTopics", call.count_max)
        await db.execute(
            "INSERT INTO url_group VALUES ($1, $2, $3, $4)",
            *(tenant, after.name, after.id, _encode(after)),
        )
    else:
        assert (after.name, after.id) == (before.name, before.id)
        await db.execute(
            "UPDATE url_group SET facts = $3 WHERE tenant = $1 AND id = $2",
            *(tenant, before.id, _encode(after)),
        )
    return after
