"""The home of what keeps the database small and well."""

import os
from pathlib import Path

import apsw
import msgspec

from waypost.domain.errors import Invalid, Problem, StoreUnavailable
from waypost.domain.ids import first_message_id
from waypost.store.protocol import Pruned, Pulse, Retention
from waypost.store.sqlite import lanes
from waypost.store.sqlite.database import Batch, as_problems, connect, query

CHUNK = 500
"""Rows that one call removes at most, of each kind."""

BEGINNING = ("", "")
"""Before every tenant and message id."""

VACUUM_PAGES = 500
"""Free pages that one call gives back to the file system."""

HEADS_LOOKED_AT = 100
"""Lanes whose heads are asked how long they have been due."""


class Prune(msgspec.Struct, frozen=True):
    retention: Retention
    now_ms: int


class Pruner:
    """Removes history in small chunks; remembers how far it has come, as a hint."""

    def __init__(self) -> None:
        self._after = BEGINNING

    def prune(self, batch: Batch, calls: list[Prune]) -> list[Pruned]:
        """Remove a chunk of what retention no longer covers; see `Upkeep.prune`."""
        return [self._prune(batch.db, call.retention, call.now_ms) for call in calls]

    def _prune(self, db: apsw.Connection, retention: Retention, now_ms: int) -> Pruned:
        log_until_ms = now_ms - retention.log_ms
        if retention.store_bytes_max and used_bytes(db) > retention.store_bytes_max:
            log_until_ms = now_ms  # too large: the oldest history goes, whatever its age
        removed = _remove(db, "dedup", "until_ms <= ?", now_ms)
        removed += _remove(
            db, "dead_letter", "failed_ms <= ?", now_ms - retention.dead_letter_ms, a_tenant=True
        )
        removed += _remove(db, "event", "time_ms <= ?", log_until_ms, a_tenant=True)
        more = removed > 0
        if not more:  # a message goes after its log, so the walk waits for that
            removed = self._remove_messages(db, first_message_id(log_until_ms + 1))
            more = self._after != BEGINNING
        if removed:
            db.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
        return Pruned(rows=removed, more=more)

    def _remove_messages(self, db: apsw.Connection, before_id: str) -> int:
        """Messages of which nothing is left: no delivery, no dead letter, no log entry.

        Walks on from where it was, so that messages which stay are passed once a
        round and not each time.
        """
        looked_at = query(
            db,
            "SELECT tenant, id, number FROM message WHERE (tenant, id) > (?, ?) AND id < ?"
            " ORDER BY tenant, id LIMIT ?",
            (*self._after, before_id, CHUNK),
        ).fetchall()
        self._after = looked_at[-1][:2] if len(looked_at) == CHUNK else BEGINNING
        gone = [row for row in looked_at if not _is_needed(db, *row)]
        db.executemany("DELETE FROM message WHERE tenant = ? AND id = ?", [row[:2] for row in gone])
        db.executemany("DELETE FROM body WHERE number = ?", [row[2:] for row in gone])
        return len(gone)


def _is_needed(db: apsw.Connection, tenant: str, message_id: str, number: int) -> bool:
    return (
        query(
            db,
            "SELECT 1 FROM delivery WHERE number = ?3"
            " UNION ALL SELECT 1 FROM dead_letter WHERE tenant = ?1 AND message_id = ?2"
            " UNION ALL SELECT 1 FROM event WHERE tenant = ?1 AND message_id = ?2 LIMIT 1",
            (tenant, message_id, number),
        ).fetchone()
        is not None
    )


def _remove(
    db: apsw.Connection, table: str, over: str, until_ms: int, *, a_tenant: bool = False
) -> int:
    """Remove up to `CHUNK` rows that are over, tenant by tenant where the key begins so."""
    keys = {"dedup": "tenant, key", "dead_letter": "tenant, failed_ms, number"}
    key = keys.get(table, "tenant, time_ms, number")
    removed = 0
    for tenant in _tenants(db, table) if a_tenant else [None]:
        whose = "" if tenant is None else "tenant = ? AND "
        values = (until_ms,) if tenant is None else (tenant, until_ms)
        db.execute(
            f"DELETE FROM {table} WHERE ({key}) IN"
            f" (SELECT {key} FROM {table} WHERE {whose}{over} LIMIT {CHUNK})",
            values,
        )
        removed += db.changes()
    return removed


def _tenants(db: apsw.Connection, table: str) -> list[str]:
    """The tenants that a table knows, one step of the index each."""
    return [
        tenant
        for (tenant,) in query(
            db,
            "WITH RECURSIVE found(tenant) AS ("
            f" SELECT min(tenant) FROM {table}"
            f" UNION ALL SELECT (SELECT min(tenant) FROM {table} WHERE tenant > found.tenant)"
            " FROM found WHERE found.tenant IS NOT NULL)"
            " SELECT tenant FROM found WHERE tenant IS NOT NULL",
        )
    ]


def used_bytes(db: apsw.Connection) -> int:
    """The pages in use; those that are free will be used again."""
    return int(db.pragma("page_size")) * (
        int(db.pragma("page_count")) - int(db.pragma("freelist_count"))
    )


def free_bytes(path: str) -> int:
    """What the file system has left for us."""
    try:
        of = os.statvfs(path)
    except OSError as fault:
        raise StoreUnavailable(f"cannot look at the file system: {fault}") from fault
    return of.f_bavail * of.f_frsize


def pulse(db: apsw.Connection, *, free: int, refusing: str | None, now_ms: int) -> Pulse:
    """How the store is; see `Reader.pulse`."""
    [alive, claimed, due] = query(
        db,
        "SELECT count(*), total(token IS NOT NULL), total(token IS NULL AND due_ms <= ?)"
        " FROM delivery",
        (now_ms,),
    ).fetchone()
    [dead] = query(db, "SELECT count(*) FROM dead_letter").fetchone()
    return Pulse(
        waiting=alive - int(claimed),
        due=int(due),
        claimed=int(claimed),
        dead_letters=dead,
        oldest_due_ms=_oldest_due_ms(db, now_ms=now_ms),
        store_bytes=used_bytes(db),
        free_bytes=free,
        refusing=refusing,
    )


def _oldest_due_ms(db: apsw.Connection, *, now_ms: int) -> int | None:
    """When the oldest message that may go fell due, of the lanes that have waited longest."""
    heads = [
        lanes.head_due_ms(db, tenant, lane, holding=holding)
        for tenant, lane in query(
            db,
            "SELECT tenant, lane FROM lane INDEXED BY lane_due"
            " WHERE blocked_on IS NULL AND turn_ms <= ? ORDER BY turn_ms LIMIT ?",
            (now_ms, HEADS_LOOKED_AT),
        ).fetchall()
        for holding in (0, 1)
    ]
    return min((due_ms for due_ms in heads if due_ms is not None), default=None)


def backup(source: str, target: str) -> None:
    """Write a whole, consistent copy of a database, synced, readable by its owner only.

    Raises Invalid where `target` exists.
    """
    if Path(target).exists():
        raise Invalid(f"{target} exists already")
    part = f"{target}.part"
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with as_problems(f"copy {source}"):
            db = connect(source, read_only=True)
            db.execute("VACUUM INTO ?", (part,))
            db.close()
        os.fsync(fd)
    except Problem:
        Path(part).unlink()
        raise
    finally:
        os.close(fd)
    Path(part).rename(target)
    folder = os.open(Path(target).parent, os.O_RDONLY)
    os.fsync(folder)  # the name, too, must be on disk
    os.close(folder)
