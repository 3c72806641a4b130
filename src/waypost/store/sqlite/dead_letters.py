"""The home of dead letters: messages that ended without success, and how they are begun anew."""

from collections.abc import Iterator, Sequence

import apsw
import msgspec
from msgspec.structs import replace

from waypost.domain.errors import LimitReached, Problem, StoreFull
from waypost.domain.filters import EVERYTHING, NOTHING, Filter, matches
from waypost.domain.ids import dead_letter_id
from waypost.store.adds import NO_BIRTHS
from waypost.store.calls import Add, Delete, Retry
from waypost.store.cursors import Place, places_of, read_cursor
from waypost.store.details import dead_letter
from waypost.store.protocol import DeadLetter, DeadLetterPage, Draft, Found
from waypost.store.sqlite.adding import Adding
from waypost.store.sqlite.database import query
from waypost.store.sqlite.filters import AMONG, as_list, prefilter
from waypost.store.sqlite.messages import FACTS_AND_BODY, decode_message, whole
from waypost.store.sqlite.upkeep import remove_messages
from waypost.store.sqlite.writer import Batch

LOOKED_AT_MAX = 5_000
"""Dead letters that a call looks at for those that are wanted: then it ends, with a cursor."""

_encode = msgspec.json.encode


def page(
    db: apsw.Connection,
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
    places, end = _walk(
        db, tenant, where, latest_first=latest_first, cursor=cursor, count_max=count_max
    )
    letters: list[DeadLetter] = []
    read = 0
    for letter, size in _letters(db, tenant, places, bodies=bodies):
        if letters and read + size > bytes_max:
            return DeadLetterPage(letters, letters[-1].id, read, full=True)
        letters.append(letter)
        read += size
    return DeadLetterPage(letters, end, read, full=len(letters) == count_max)


def ids(
    db: apsw.Connection,
    tenant: str,
    *,
    where: Filter,
    latest_first: bool,
    cursor: str | None,
    count_max: int,
) -> Found:
    """The ids of dead letters; see `Reader.dead_letter_ids`."""
    places, end = _walk(
        db, tenant, where, latest_first=latest_first, cursor=cursor, count_max=count_max
    )
    return Found([dead_letter_id(*place) for place in places], end)


def one(db: apsw.Connection, tenant: str, letter_id: str) -> DeadLetter | None:
    """The dead letter of that id."""
    for letter, _ in _letters(db, tenant, places_of([letter_id]), bodies=True):
        return letter
    return None


def _letters(
    db: apsw.Connection, tenant: str, places: Sequence[Place], *, bodies: bool
) -> Iterator[tuple[DeadLetter, int]]:
    """The dead letters at these places, in their order, and about how many bytes each has.

    They are read one by one: who has enough asks for no more.
    """
    columns = FACTS_AND_BODY if bodies else "m.facts, NULL"
    for failed_ms, number, raw, facts, kept in query(
        db,
        f"SELECT l.failed_ms, l.number, l.detail, {columns} FROM json_each(?) j"
        " CROSS JOIN dead_letter l ON l.tenant = ? AND l.failed_ms = j.value ->> 0"
        "  AND l.number = j.value ->> 1"
        " CROSS JOIN message m ON m.tenant = l.tenant AND m.id = l.message_id",
        (_json(places), tenant),
    ):
        message, body = whole(db, facts, kept) if bodies else (decode_message(facts), b"")
        letter, size = dead_letter(failed_ms, number, raw, message, body, bodies=bodies)
        yield letter, size + len(facts)


def _walk(
    db: apsw.Connection,
    tenant: str,
    where: Filter,
    *,
    latest_first: bool,
    cursor: str | None,
    count_max: int,
) -> tuple[list[Place], str | None]:
    """The places of some dead letters that `where` means, and from where to go on."""
    place = "(l.failed_ms, l.number)"
    down = " DESC" if latest_first else ""
    order = f" ORDER BY l.failed_ms{down}, l.number{down}"
    bounds, values = _bounds(where, latest_first=latest_first, cursor=cursor)
    values.insert(0, tenant)
    told = replace(where, message_ids=NOTHING, dead_letter_ids=NOTHING, from_ms=None, to_ms=None)
    index, looked_at_max = "", -1
    if where.dead_letter_ids:
        bounds += f" AND {place} IN (SELECT value ->> 0, value ->> 1 FROM json_each(?))"
        values.append(_json(places_of(where.dead_letter_ids)))
    if where.message_ids:
        if not where.dead_letter_ids:
            index = " INDEXED BY dead_letter_message"
        bounds += f" AND l.message_id {AMONG}"
        values.append(as_list(where.message_ids))
    elif told != EVERYTHING and not where.dead_letter_ids:
        looked_at_max = LOOKED_AT_MAX
    among = f"FROM dead_letter l{index} WHERE l.tenant = ? AND {bounds}{order}"
    likely, of_facts = prefilter(told, facts="m.facts")
    if where.statuses:
        likely += f" AND l.detail ->> '$.status' {AMONG}"
        of_facts.append(_json(sorted(where.statuses)))
    told = replace(told, statuses=frozenset())
    facts = "NULL" if told == EVERYTHING else "m.facts"
    places: list[Place] = []
    for failed_ms, number, raw in query(
        db,
        f"SELECT l.failed_ms, l.number, {facts} FROM (SELECT l.* {among} LIMIT ?) l"
        " CROSS JOIN message m ON m.tenant = l.tenant AND m.id = l.message_id"
        f" WHERE true{likely}{order}",
        (*values, looked_at_max, *of_facts),
    ):
        if raw is None or matches(told, decode_message(raw), at_ms=failed_ms):
            if len(places) == count_max:
                return places, dead_letter_id(*places[-1])
            places.append((failed_ms, number))
    if looked_at_max < 0:
        return places, None
    end = query(
        db,
        f"SELECT l.failed_ms, l.number {among} LIMIT 1 OFFSET ?",
        (*values, looked_at_max - 1),
    ).fetchone()
    return places, None if end is None else dead_letter_id(*end)


def _bounds(
    where: Filter, *, latest_first: bool, cursor: str | None
) -> tuple[str, list[int | str]]:
    """Between which places to look: the index is entered where the cursor and the dates say."""
    at = None if cursor is None else read_cursor(cursor)
    first = 0 if where.from_ms is None else where.from_ms
    last = _LATEST_MS if where.to_ms is None else where.to_ms
    if latest_first:
        before = (last + 1, 0) if at is None else min(at, (last + 1, 0))
        return "(l.failed_ms, l.number) < (?, ?) AND l.failed_ms >= ?", [*before, first]
    after = (first - 1, _LATEST_MS) if at is None else max(at, (first - 1, _LATEST_MS))
    return "(l.failed_ms, l.number) > (?, ?) AND l.failed_ms <= ?", [*after, last]


_LATEST_MS = 1 << 62


def _json(values: Sequence[object]) -> str:
    return _encode(values).decode()


def delete(batch: Batch, calls: list[Delete]) -> list[int]:
    """Remove dead letters; see `DeadLetters.delete_dead_letters`."""
    return [_delete(batch.db, call) for call in calls]


def _delete(db: apsw.Connection, call: Delete) -> int:
    gone = _take(db, call.tenant, call.ids)
    remove_messages(db, call.tenant, gone)
    return len(gone)


def _take(db: apsw.Connection, tenant: str, letter_ids: Sequence[str]) -> list[str]:
    """Remove dead letters: the ids of their messages.  Those were perhaps kept for them alone,
    their log being over."""
    gone = query(
        db,
        "DELETE FROM dead_letter WHERE tenant = ? AND (failed_ms, number) IN"
        " (SELECT value ->> 0, value ->> 1 FROM json_each(?)) RETURNING message_id",
        (tenant, _json(places_of(letter_ids))),
    ).fetchall()
    return [message_id for (message_id,) in gone]


def retry(
    batch: Batch, calls: list[Retry], *, refusing: str | None
) -> Sequence[list[str | None] | Problem]:
    """Publish anew what dead letters speak of; see `DeadLetters.retry_dead_letters`.

    `refusing` is why nothing new is taken, or None.
    """
    if refusing is not None:
        return [StoreFull(refusing) for _ in calls]
    adding = Adding(batch, NO_BIRTHS, now_ms=max(call.now_ms for call in calls))
    retried: list[list[str | None] | LimitReached] = []
    gone: list[tuple[str, list[str]]] = []
    for call in calls:
        retried.append(_retry(batch.db, adding, call))
        if isinstance(retried[-1], list):
            gone.append((call.tenant, _take(batch.db, call.tenant, call.ids)))
    adding.write()
    for tenant, message_ids in gone:  # only now, for the new messages need their bodies
        remove_messages(batch.db, tenant, message_ids)
    return retried


def _retry(db: apsw.Connection, adding: Adding, call: Retry) -> list[str | None] | LimitReached:
    """Accept a new message for each dead letter that is there."""
    found: dict[str, tuple[Draft, str, int, int | None]] = {
        dead_letter_id(failed_ms, number): (call.new_message(decode_message(facts)), *dead)
        for failed_ms, number, facts, *dead in query(
            db,
            "SELECT l.failed_ms, l.number, m.facts, m.id, coalesce(m.body, m.number), m.source"
            " FROM dead_letter l"
            " CROSS JOIN message m ON m.tenant = l.tenant AND m.id = l.message_id"
            " WHERE l.tenant = ? AND (l.failed_ms, l.number) IN"
            "  (SELECT value ->> 0, value ->> 1 FROM json_each(?))",
            (call.tenant, _json(places_of(call.ids))),
        )
    }
    drafts = [draft for draft, *_ in found.values()]
    add = Add(drafts, NO_BIRTHS, call.queue_count_max, call.now_ms)
    if (refusal := adding.too_many_queues(add)) is not None:
        return refusal
    new_ids: list[str | None] = []
    for letter_id in call.ids:
        dead = found.pop(letter_id, None)
        if dead is None:
            new_ids.append(None)
            continue
        draft, message_id, body, source = dead
        # The two share the body from now on, which the removal of either must know.
        db.execute(
            "UPDATE message SET body = number WHERE tenant = ? AND id = ? AND body IS NULL",
            (call.tenant, message_id),
        )
        adding.accept_again(draft, body=body, source=source, now_ms=call.now_ms)
        new_ids.append(draft.message.id)
    return new_ids
