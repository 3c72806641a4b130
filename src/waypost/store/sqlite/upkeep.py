"""The home of what keeps the database small and well."""

import os
from pathlib import Path
from time import monotonic
from typing import Any

import apsw
import msgspec

from waypost.domain.errors import Invalid, Problem, StoreUnavailable
from waypost.domain.ids import created_ms_of, first_message_id
from waypost.store.calls import Prune
from waypost.store.counts import Counts, Kept
from waypost.store.protocol import Pruned, Pulse, Retention
from waypost.store.sqlite import flow_keys, lanes
from waypost.store.sqlite.database import as_problems, connect, query
from waypost.store.sqlite.writer import Batch

CHUNK = 500
"""Rows that one call looks at and removes, about: a call takes milliseconds."""

TENANT_ROWS = 4
"""What looking at a tenant costs of a chunk, be there something to remove or not."""

SHRINK_MESSAGES = 50
"""Messages that go before the size of the store is asked for again."""

SLICES = 32
"""A store that is too large loses the oldest of so many parts of its time first."""

VACUUM_PAGES = 500
"""Free pages that one call gives back to the file system."""

NOT_NEEDED = (
    " NOT EXISTS (SELECT 1 FROM delivery d WHERE d.number = message.number)"
    " AND NOT EXISTS (SELECT 1 FROM dead_letter l"
    "  WHERE l.tenant = message.tenant AND l.message_id = message.id)"
    " AND NOT EXISTS (SELECT 1 FROM message c WHERE c.source = message.number)"
)


class Pruner:
    """Removes history in small chunks; remembers how far it has come, as a hint."""

    def __init__(self) -> None:
        self._tenant = ""
        self._slice: _Slice | None = None

    def prune(self, batch: Batch, calls: list[Prune]) -> list[Pruned]:
        """Remove a chunk of what retention no longer covers; see `Upkeep.prune`."""
        return [self._prune(batch.db, call.retention, call.now_ms) for call in calls]

    def _prune(self, db: apsw.Connection, retention: Retention, now_ms: int) -> Pruned:
        removed = _remove_keys(db, now_ms=now_ms)
        more = removed == CHUNK
        if not more:
            gone, more = flow_keys.remove_unused(
                db, until_ms=now_ms - retention.log_ms, count_max=CHUNK, now_ms=now_ms
            )
            removed += gone
        if not more:
            gone, more = self._remove_old(db, retention, now_ms)
            removed += gone
        if not more and 0 < retention.store_bytes_max < used_bytes(db):
            gone, more = self._shrink(db, retention.store_bytes_max, now_ms)
            removed += gone
        elif not more:
            self._slice = None
        if removed:
            # One page goes with each step of this statement, so it is stepped to its end.
            db.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
        return Pruned(rows=removed, more=more)

    def _remove_old(
        self, db: apsw.Connection, retention: Retention, now_ms: int
    ) -> tuple[int, bool]:
        """Remove what is too old, tenant by tenant: how much, and whether there are more tenants.

        A message goes with the last of its log and its dead letter.
        """
        removed, left = 0, CHUNK
        while left > 0:
            tenant = _next_tenant(db, after=self._tenant)
            if tenant is None:
                self._tenant = ""
                return removed, False
            gone = 0
            for table, column, until_ms in (
                ("dead_letter", "failed_ms", now_ms - retention.dead_letter_ms),
                ("event", "time_ms", now_ms - retention.log_ms),
            ):
                gone += _remove_rows(
                    db, table, column, tenant=tenant, until_ms=until_ms, count_max=left - gone
                )
            removed += gone
            if gone < left:
                self._tenant = tenant
            left -= gone + TENANT_ROWS
        return removed, True

    def _shrink(self, db: apsw.Connection, bytes_max: int, now_ms: int) -> tuple[int, bool]:
        """Remove the oldest messages that have ended, and their log, until the store is small
        enough: how many, and whether there is more to look at."""
        if self._slice is None:
            oldest_ms = _oldest_ms(db)
            if oldest_ms is None:
                return 0, False
            span_ms = (now_ms - oldest_ms) // SLICES + 1
            self._slice = _Slice(span_ms=span_ms, until_ms=oldest_ms + span_ms)
        at = self._slice
        removed = looked_at = 0
        while looked_at < CHUNK and used_bytes(db) > bytes_max:
            if not at.tenant:
                at.tenant = _next_tenant(db, after=at.passed) or ""
                if not at.tenant:
                    if at.until_ms > now_ms:
                        self._slice = None
                        return removed, False
                    at.until_ms, at.passed = at.until_ms + at.span_ms, ""
                    looked_at += TENANT_ROWS
                    continue
            rows = query(
                db,
                "SELECT id FROM message WHERE tenant = ? AND id > ? AND id < ? ORDER BY id LIMIT ?",
                (
                    at.tenant,
                    at.id or first_message_id(at.until_ms - at.span_ms),
                    first_message_id(at.until_ms),
                    SHRINK_MESSAGES,
                ),
            ).fetchall()
            removed += remove_messages(db, at.tenant, [row[0] for row in rows], log_too=True)
            looked_at += len(rows) + TENANT_ROWS
            if len(rows) == SHRINK_MESSAGES:
                at.id = rows[-1][0]
            else:
                at.passed, at.tenant, at.id = at.tenant, "", ""
        return removed, used_bytes(db) > bytes_max


class _Slice(msgspec.Struct):
    """The part of the time that a store which is too large loses now: messages made before
    `until_ms`, of the tenants after `passed`."""

    span_ms: int
    until_ms: int
    passed: str = ""
    tenant: str = ""
    id: str = ""


def _remove_keys(db: apsw.Connection, *, now_ms: int) -> int:
    db.execute(
        "DELETE FROM dedup WHERE (tenant, key) IN"
        " (SELECT tenant, key FROM dedup WHERE until_ms <= ? LIMIT ?)",
        (now_ms, CHUNK),
    )
    return db.changes()


def _remove_rows(
    db: apsw.Connection, table: str, column: str, *, tenant: str, until_ms: int, count_max: int
) -> int:
    """Remove a tenant's oldest events or dead letters, and the messages that nothing needs now."""
    if count_max <= 0:
        return 0
    rows = query(
        db,
        f"SELECT {column}, number, message_id FROM {table} WHERE tenant = ? AND {column} <= ?"
        f" ORDER BY {column}, number LIMIT ?",
        (tenant, until_ms, count_max),
    ).fetchall()
    if rows:
        db.execute(
            f"DELETE FROM {table} WHERE tenant = ? AND ({column}, number) <= (?, ?)",
            (tenant, *rows[-1][:2]),
        )
        remove_messages(db, tenant, list({row[2] for row in rows}))
    return len(rows)


def remove_messages(
    db: apsw.Connection, tenant: str, ids: list[str], *, log_too: bool = False
) -> int:
    """Remove those of the messages that have neither a delivery nor a dead letter, nor a log:
    with `log_too` that goes with them.  How many went."""
    needed = NOT_NEEDED
    if not log_too:
        needed += (
            " AND NOT EXISTS (SELECT 1 FROM event e"
            "  WHERE e.tenant = message.tenant AND e.message_id = message.id)"
        )
    gone = query(
        db,
        "DELETE FROM message WHERE tenant = ? AND id IN (SELECT value FROM json_each(?))"
        f" AND {needed} RETURNING id, coalesce(body, number), facts ->> '$.callback_of'",
        (tenant, _json(ids)),
    ).fetchall()
    if gone and log_too:
        db.execute(
            "DELETE FROM event INDEXED BY event_message"
            " WHERE tenant = ? AND message_id IN (SELECT value FROM json_each(?))",
            (tenant, _json([message_id for message_id, _, _ in gone])),
        )
    if gone:
        db.execute(
            "DELETE FROM body WHERE number IN (SELECT value FROM json_each(?))"
            " AND NOT EXISTS (SELECT 1 FROM message m WHERE m.body = body.number)",
            (_json([number for _, number, _ in gone]),),
        )
    sources = list({source for _, _, source in gone if source is not None})
    if sources:
        return len(gone) + remove_messages(db, tenant, sources, log_too=log_too)
    return len(gone)


def _json(values: list[Any]) -> str:
    return msgspec.json.encode(values).decode()


def _next_tenant(db: apsw.Connection, *, after: str) -> str | None:
    """The next tenant with messages: one step of the index."""
    found = query(
        db, "SELECT tenant FROM message WHERE tenant > ? ORDER BY tenant LIMIT 1", (after,)
    ).fetchone()
    return None if found is None else str(found[0])


def _oldest_ms(db: apsw.Connection) -> int | None:
    """When the oldest message was made, asked of each tenant."""
    tenant, oldest_id = _next_tenant(db, after=""), None
    while tenant is not None:
        [first] = query(db, "SELECT min(id) FROM message WHERE tenant = ?", (tenant,)).fetchone()
        oldest_id = first if oldest_id is None else min(oldest_id, first)
        tenant = _next_tenant(db, after=tenant)
    return None if oldest_id is None else created_ms_of(oldest_id)


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


def _counts(db: apsw.Connection, kept: Kept, *, now_ms: int) -> Counts:
    """Count what is there; where that takes long, not each time."""
    counts = kept.get()
    if counts is None:
        began_s = monotonic()
        [alive, claimed, due] = query(
            db,
            "SELECT count(*), total(token IS NOT NULL), total(token IS NULL AND due_ms <= ?)"
            " FROM delivery",
            (now_ms,),
        ).fetchone()
        [dead] = query(db, "SELECT count(*) FROM dead_letter").fetchone()
        counts = Counts(
            waiting=alive - int(claimed), due=int(due), claimed=int(claimed), dead_letters=dead
        )
        kept.keep(counts, began_s=began_s)
    return counts


def pulse(
    db: apsw.Connection, kept: Kept, *, free: int, refusing: str | None, now_ms: int
) -> Pulse:
    """How the store is; see `Reader.pulse`."""
    counts = _counts(db, kept, now_ms=now_ms)
    turn_ms = lanes.next_turn_ms(db)
    return Pulse(
        waiting=counts.waiting,
        due=counts.due,
        claimed=counts.claimed,
        dead_letters=counts.dead_letters,
        oldest_due_ms=turn_ms if turn_ms is not None and turn_ms <= now_ms else None,
        store_bytes=used_bytes(db),
        free_bytes=free,
        refusing=refusing,
    )


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
