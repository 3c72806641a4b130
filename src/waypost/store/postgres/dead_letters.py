"""The home of dead letters: messages that ended without success, and how they are begun anew."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple

from msgspec.structs import replace

from waypost.domain.errors import LimitReached
from waypost.domain.filters import EVERYTHING, NOTHING, Filter, matches
from waypost.domain.ids import dead_letter_id
from waypost.store.adds import NO_BIRTHS
from waypost.store.calls import Add, Delete, Retry
from waypost.store.cursors import Place, left_of, places_of, read_cursor, span
from waypost.store.details import dead_letter
from waypost.store.postgres.adding import Adding, too_many_queues
from waypost.store.postgres.database import Connection
from waypost.store.postgres.filters import Values
from waypost.store.postgres.messages import decode_message, message_of, remove_messages
from waypost.store.postgres.reading import Kept, in_parts
from waypost.store.postgres.writer import Batch
from waypost.store.protocol import DeadLetter, DeadLetterPage, Draft, Found

LOOKED_AT_MAX = 5_000
"""Dead letters that a call looks at for those that are wanted: then it ends, with a cursor."""

CHUNK = 500
"""Dead letters that are read with one statement, without what may be large of them."""

_OF_PLACES = (
    "unnest({times}::bigint[], {numbers}::bigint[]) p (failed_ms, number)"
    " CROSS JOIN LATERAL (SELECT * FROM dead_letter WHERE tenant = {tenant}"
    "  AND failed_ms = p.failed_ms AND number = p.number OFFSET 0) l"
)


async def page(
    db: Connection,
    tenant: str,
    *,
    where: Filter,
    latest_first: bool,
    cursor: str | None,
    count_max: int,
    bytes_max: int,
    bodies: bool,
) -> DeadLetterPage:
    """A page of dead letters; see `Reader.dead_letters`."""
    places, end = await _walk(
        db, tenant, where, latest_first=latest_first, cursor=cursor, count_max=count_max
    )
    letters: list[DeadLetter] = []
    read = 0
    async with aclosing(_letters(db, tenant, places, bodies=bodies)) as found:
        async for letter, size in found:
            if letters and read + size > bytes_max:
                return DeadLetterPage(letters, letters[-1].id, read, full=True)
            letters.append(letter)
            read += size
    return DeadLetterPage(letters, end, read, full=len(letters) == count_max)


async def ids(
    db: Connection,
    tenant: str,
    *,
    where: Filter,
    latest_first: bool,
    cursor: str | None,
    count_max: int,
) -> Found:
    """The ids of dead letters; see `Reader.dead_letter_ids`."""
    places, end = await _walk(
        db, tenant, where, latest_first=latest_first, cursor=cursor, count_max=count_max
    )
    return Found([dead_letter_id(*place) for place in places], end)


async def one(db: Connection, tenant: str, letter_id: str) -> DeadLetter | None:
    """The dead letter of that id."""
    async with aclosing(_letters(db, tenant, places_of([letter_id]), bodies=True)) as found:
        async for letter, _ in found:
            return letter
    return None


async def _letters(
    db: Connection, tenant: str, places: Sequence[Place], *, bodies: bool
) -> AsyncGenerator[tuple[DeadLetter, int]]:
    """The dead letters at these places, in their order, and about how many bytes each has.

    They are read in parts: who has enough asks for no more.
    """
    for at in range(0, len(places), CHUNK):
        values = Values()
        rows = await db.fetch(
            "SELECT l.failed_ms, l.number, octet_length(l.detail), m.facts"
            f" FROM {_at(places[at : at + CHUNK], tenant, values)}{message_of('l')}",
            *values,
        )
        facts = {(row[0], row[1]): row[3] for row in rows}
        wanted = [Kept((row[0], row[1]), decode_message(row[3]), row[2]) for row in rows]
        async with aclosing(in_parts(db, tenant, "dead_letter", wanted, bodies=bodies)) as read:
            async for kept, raw, body in read:
                assert raw is not None, kept.place
                letter, size = dead_letter(*kept.place, raw, kept.message, body, bodies=bodies)
                yield letter, size + len(facts[kept.place])


def _at(places: Sequence[Place], tenant: str, values: Values) -> str:
    """Dead letters `l` that stand at these places, in their order."""
    return _OF_PLACES.format(
        times=values.add([failed_ms for failed_ms, _ in places]),
        numbers=values.add([number for _, number in places]),
        tenant=values.add(tenant),
    )


async def _walk(
    db: Connection,
    tenant: str,
    where: Filter,
    *,
    latest_first: bool,
    cursor: str | None,
    count_max: int,
) -> tuple[list[Place], str | None]:
    """The places of some dead letters that `where` means, and from where to go on."""
    left = span(where)
    if cursor is not None:
        left = left_of(left, after=read_cursor(cursor), latest_first=latest_first)
    told = replace(where, message_ids=NOTHING, dead_letter_ids=NOTHING, from_ms=None, to_ms=None)
    end = None
    if told != EVERYTHING and not where.message_ids and not where.dead_letter_ids:
        end = await _last_looked_at(db, tenant, left, latest_first=latest_first)
        if end is not None:
            low, high = left
            past = (end[0], end[1] - 1) if latest_first else (end[0], end[1] + 1)
            left = (past, high) if latest_first else (low, past)
    told = replace(told, statuses=frozenset())
    places: list[Place] = []
    limit = min(count_max + 1, CHUNK)
    while True:
        rows = await _some(
            db, tenant, where, told, left, latest_first=latest_first, count_max=limit
        )
        for failed_ms, number, facts in rows:
            if facts is None or matches(told, decode_message(facts), at_ms=failed_ms):
                if len(places) == count_max:
                    return places, dead_letter_id(*places[-1])
                places.append((failed_ms, number))
        if len(rows) < limit:
            return places, None if end is None else dead_letter_id(*end)
        left = left_of(left, after=(rows[-1][0], rows[-1][1]), latest_first=latest_first)
        limit = CHUNK


async def _some(
    db: Connection,
    tenant: str,
    where: Filter,
    told: Filter,
    left: tuple[Place, Place],
    *,
    latest_first: bool,
    count_max: int,
) -> Sequence[tuple[int, int, bytes | None]]:
    """The places of the next dead letters, and the facts of their messages where those have to
    be asked what is `told` of them."""
    values = Values()
    if where.dead_letter_ids:
        letters = _at(places_of(where.dead_letter_ids), tenant, values)
    elif where.message_ids:  # an index has these by themselves
        letters = (
            f"(SELECT * FROM dead_letter WHERE tenant = {values.add(tenant)}"
            f" AND message_id {values.among(where.message_ids)} OFFSET 0) l"
        )
    else:
        letters = "dead_letter l"
    sql = f"SELECT l.failed_ms, l.number, {'NULL' if told == EVERYTHING else 'm.facts'}"
    sql += f" FROM {letters}"
    if told != EVERYTHING:
        sql += message_of("l")
    sql += f" WHERE {_between(tenant, left, values)}"
    if where.message_ids:
        sql += f" AND l.message_id {values.among(where.message_ids)}"
    if where.statuses:
        # As the detail has it, which spares reading it as JSON: nothing else in it reads so.
        any_of = "|".join(map(str, sorted(where.statuses)))
        pattern = values.add(f'[{{,]"status":({any_of})[,}}]')
        sql += f" AND convert_from(l.detail, 'UTF8') ~ {pattern}"
    sql += values.prefilter(told, facts="m.facts")
    sql += f" ORDER BY {_order(latest_first=latest_first)} LIMIT {values.add(count_max)}"
    return [(row[0], row[1], row[2]) for row in await db.fetch(sql, *values)]


async def _last_looked_at(
    db: Connection, tenant: str, left: tuple[Place, Place], *, latest_first: bool
) -> Place | None:
    """The place at which a page ends whatever it has found, or None: they end before."""
    values = Values()
    found = await db.fetchrow(
        f"SELECT l.failed_ms, l.number FROM dead_letter l WHERE {_between(tenant, left, values)}"
        f" ORDER BY {_order(latest_first=latest_first)}"
        f" LIMIT 1 OFFSET {values.add(LOOKED_AT_MAX - 1)}",
        *values,
    )
    return None if found is None else (found[0], found[1])


def _between(tenant: str, left: tuple[Place, Place], values: Values) -> str:
    after, until = (f"({values.add(time_ms)}, {values.add(number)})" for time_ms, number in left)
    place = "(l.failed_ms, l.number)"
    return f"l.tenant = {values.add(tenant)} AND {place} > {after} AND {place} < {until}"


def _order(*, latest_first: bool) -> str:
    way = "DESC" if latest_first else "ASC"
    return f"l.failed_ms {way}, l.number {way}"


async def delete(batch: Batch, calls: list[Delete]) -> list[int]:
    """Remove dead letters; see `DeadLetters.delete_dead_letters`."""
    counts = []
    for call in calls:
        gone = await _take(batch.db, call.tenant, places_of(call.ids))
        await remove_messages(batch.db, call.tenant, list(gone.values()))
        counts.append(len(gone))
    return counts


async def _take(db: Connection, tenant: str, places: Sequence[Place]) -> dict[str, str]:
    """Remove those dead letters that are still there: the ids of their messages, by theirs.
    Those were perhaps kept for them alone, their log being over."""
    values = Values()
    times, numbers = zip(*places, strict=True) if places else ((), ())
    gone = await db.fetch(
        "WITH taken AS MATERIALIZED (SELECT l.failed_ms, l.number"
        f" FROM unnest({values.add(times)}::bigint[], {values.add(numbers)}::bigint[])"
        "  p (failed_ms, number) JOIN dead_letter l"
        f" ON l.tenant = {values.add(tenant)}"
        "  AND l.failed_ms = p.failed_ms AND l.number = p.number"
        " ORDER BY l.failed_ms, l.number FOR UPDATE OF l)"
        " DELETE FROM dead_letter l USING taken t"
        " WHERE l.tenant = $3 AND l.failed_ms = t.failed_ms AND l.number = t.number"
        " RETURNING l.failed_ms, l.number, l.message_id",
        *values,
    )
    return {dead_letter_id(row[0], row[1]): row[2] for row in gone}


async def retry(batch: Batch, calls: list[Retry]) -> Sequence[list[str | None] | LimitReached]:
    """Publish anew what dead letters speak of; see `DeadLetters.retry_dead_letters`."""
    adding = Adding(batch, NO_BIRTHS, now_ms=max(call.now_ms for call in calls))
    found = [await _found(batch.db, call) for call in calls]
    adds = [
        Add([each.draft for each in dead.values()], NO_BIRTHS, call.queue_count_max, call.now_ms)
        for call, dead in zip(calls, found, strict=True)
    ]
    refusals = await too_many_queues(batch.db, adds)
    await adding.prepare(
        [
            draft
            for add, refusal in zip(adds, refusals, strict=True)
            if refusal is None
            for draft in add.drafts
        ]
    )
    retried: list[list[str | None] | LimitReached] = []
    gone: list[tuple[str, list[str]]] = []
    for call, dead, refusal in zip(calls, found, refusals, strict=True):
        if refusal is not None:
            retried.append(refusal)
            continue
        taken = await _take(batch.db, call.tenant, places_of(dead))
        retried.append(
            await _retry(adding, call, {letter_id: dead[letter_id] for letter_id in taken})
        )
        gone.append((call.tenant, list(taken.values())))
    await adding.write()
    for tenant, message_ids in gone:  # only now, for the new messages need their bodies
        await remove_messages(batch.db, tenant, message_ids)
    return retried


class _Dead(NamedTuple):
    """The new message, the id of the dead one, and the numbers of its body and its source."""

    draft: Draft
    message_id: str
    body: int
    source: int | None


async def _found(db: Connection, call: Retry) -> dict[str, _Dead]:
    """What is dead, by the ids of the dead letters; it may be gone before it is locked."""
    values = Values()
    rows = await db.fetch(
        "SELECT l.failed_ms, l.number, m.facts, m.id, coalesce(m.body, m.number), m.source"
        f" FROM {_at(places_of(call.ids), call.tenant, values)}{message_of('l')}",
        *values,
    )
    return {
        dead_letter_id(failed_ms, number): _Dead(call.new_message(decode_message(facts)), *dead)
        for failed_ms, number, facts, *dead in rows
    }


async def _retry(adding: Adding, call: Retry, taken: dict[str, _Dead]) -> list[str | None]:
    """Accept a new message for each dead letter that was taken."""
    # The two share the body from now on, which the removal of either must know.
    await adding.db.execute(
        "UPDATE message SET body = number"
        " WHERE tenant = $1 AND id = ANY($2::text[]) AND body IS NULL",
        call.tenant,
        [dead.message_id for dead in taken.values()],
    )
    new_ids: list[str | None] = []
    for letter_id in call.ids:
        dead = taken.pop(letter_id, None)
        if dead is not None:
            adding.accept_again(dead.draft, body=dead.body, source=dead.source, now_ms=call.now_ms)
        new_ids.append(None if dead is None else dead.draft.message.id)
    return new_ids
