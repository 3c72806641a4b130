"""The home of URL groups as they are kept: one row each, their facts one document."""

import apsw
import msgspec

from waypost.domain.errors import StoreFull
from waypost.domain.url_groups import UrlGroup
from waypost.store import quotas
from waypost.store.calls import GroupChange
from waypost.store.sqlite.database import query
from waypost.store.sqlite.writer import Batch

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(UrlGroup).decode


def one(db: apsw.Connection, tenant: str, name_or_id: str) -> UrlGroup | None:
    """The group of that name or id."""
    found = query(
        db,
        # An OR would read all groups of the tenant.
        "SELECT facts FROM url_group WHERE tenant = ?1 AND name = ?2"
        " UNION ALL SELECT facts FROM url_group WHERE tenant = ?1 AND id = ?2",
        (tenant, name_or_id),
    ).fetchone()
    return None if found is None else _decode(found[0])


def all_of(db: apsw.Connection, tenant: str) -> list[UrlGroup]:
    """All groups of a tenant, by name."""
    found = query(db, "SELECT facts FROM url_group WHERE tenant = ? ORDER BY name", (tenant,))
    return [_decode(facts) for (facts,) in found]


def _count(db: apsw.Connection, tenant: str) -> int:
    [found] = query(db, "SELECT count(*) FROM url_group WHERE tenant = ?", (tenant,)).fetchone()
    return int(found)


def change(
    batch: Batch, calls: list[GroupChange], *, refusing: str | None
) -> list[UrlGroup | Exception | None]:
    """Change groups; see `UrlGroups.change_url_group`.  `refusing`: why none may grow, or None."""
    return [_change(batch.db, call, refusing) for call in calls]


def _change(
    db: apsw.Connection, call: GroupChange, refusing: str | None
) -> UrlGroup | Exception | None:
    before = one(db, call.tenant, call.name_or_id)
    try:
        after = call.change(before)
    except Exception as fault:  # noqa: BLE001 -- the caller's, and raised to them
        return fault
    if after == before:
        return after
    if after is None:
        assert before is not None
        db.execute("DELETE FROM url_group WHERE tenant = ? AND id = ?", (call.tenant, before.id))
        return None
    facts = _encode(after)
    if refusing is not None and (before is None or len(facts) > len(_encode(before))):
        return StoreFull(refusing)
    if before is None:
        if _count(db, call.tenant) >= call.count_max:
            return quotas.exceeded("maxTopics", call.count_max)
        row = (call.tenant, after.name, after.id, facts)
        db.execute("INSERT INTO url_group VALUES (?, ?, ?, ?)", row)
    else:
        assert (after.name, after.id) == (before.name, before.id)
        db.execute(
            "UPDATE url_group SET facts = ? WHERE tenant = ? AND id = ?",
            (facts, call.tenant, before.id),
        )
    return after
