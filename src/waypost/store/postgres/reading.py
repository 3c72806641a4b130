"""The home of reading what may be large: bodies, and the details of events and dead letters.

How large they are is asked first, and then they come in parts: who has enough asks for no
more, and no answer of the database has to fit into memory at once but the part.
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import NamedTuple

from waypost.domain.message import Message
from waypost.store.cursors import Place
from waypost.store.postgres.database import Connection
from waypost.store.postgres.messages import bodies_of

PART_BYTES = 4 * 1024 * 1024
"""A part ends before it is larger; what is larger by itself comes alone."""

TIME_OF = {"event": "time_ms", "dead_letter": "failed_ms"}


class Kept(NamedTuple):
    """An event or a dead letter: its place, its message and how large its detail is."""

    place: Place
    message: Message
    detail_bytes: int


async def in_parts(
    db: Connection, tenant: str, table: str, wanted: Sequence[Kept], *, bodies: bool
) -> AsyncGenerator[tuple[Kept, bytes | None, bytes]]:
    """The detail of each event or dead letter, and the body of its message; without `bodies`
    those are empty."""
    sizes = await _body_sizes(db, tenant, (kept.message for kept in wanted)) if bodies else {}
    part: list[Kept] = []
    left = PART_BYTES
    for kept in wanted:
        size = kept.detail_bytes + sum(sizes.get(named, 0) for named in _read_for(kept.message))
        if part and size > left:
            for each in await _part(db, tenant, table, part, bodies=bodies):
                yield each
            part, left = [], PART_BYTES
        part.append(kept)
        left -= size
    for each in await _part(db, tenant, table, part, bodies=bodies):
        yield each


async def _part(
    db: Connection, tenant: str, table: str, part: Sequence[Kept], *, bodies: bool
) -> list[tuple[Kept, bytes | None, bytes]]:
    details = await _details(db, tenant, table, [kept.place for kept in part if kept.detail_bytes])
    read = await bodies_of(db, {k.message.id: k.message for k in part}.values()) if bodies else {}
    return [
        (kept, details.get(kept.place), read[kept.message.id] if bodies else b"") for kept in part
    ]


async def _details(
    db: Connection, tenant: str, table: str, places: Sequence[Place]
) -> dict[Place, bytes]:
    if not places:
        return {}
    time = TIME_OF[table]
    rows = await db.fetch(
        f"SELECT p.time_ms, p.number, l.detail"
        " FROM unnest($2::bigint[], $3::bigint[]) p (time_ms, number)"
        f" CROSS JOIN LATERAL (SELECT detail FROM {table} WHERE tenant = $1"
        f"  AND {time} = p.time_ms AND number = p.number OFFSET 0) l",
        tenant,
        *zip(*places, strict=True),
    )
    return {(time_ms, number): detail for time_ms, number, detail in rows}


async def _body_sizes(db: Connection, tenant: str, messages: Iterable[Message]) -> dict[str, int]:
    """How large what is kept of bodies is, by the ids of messages; empty ones are left out."""
    ids = sorted({named for message in messages for named in _read_for(message)})
    rows = await db.fetch(
        "SELECT m.id, octet_length(b.bytes) FROM unnest($2::text[]) j (id)"
        " CROSS JOIN LATERAL (SELECT * FROM message WHERE tenant = $1 AND id = j.id OFFSET 0) m"
        " CROSS JOIN LATERAL"
        "  (SELECT * FROM body WHERE number = coalesce(m.body, m.number) OFFSET 0) b",
        tenant,
        ids,
    )
    return dict(map(tuple, rows))


def _read_for(message: Message) -> tuple[str, ...]:
    """Whose bodies are read for a message: its own, and that of what it tells of."""
    return (message.id,) if message.callback_of is None else (message.id, message.callback_of)
