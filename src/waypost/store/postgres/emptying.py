"""The home of the end of a queue: its messages are cancelled in chunks, and it goes with the
last of them (D28)."""

from waypost.domain.lanes import queue_lane
from waypost.domain.message import Message, State
from waypost.store.calls import Empty
from waypost.store.postgres import lanes, queues
from waypost.store.postgres.database import Connection, is_text
from waypost.store.postgres.messages import decode_message
from waypost.store.postgres.settling import Ending
from waypost.store.postgres.writer import Batch, one_by_one
from waypost.store.protocol import Emptied


async def empty(batch: Batch, calls: list[Empty]) -> list[Emptied]:
    """Cancel some of what is in queues; see `Queues.empty_queue`."""
    return await one_by_one(batch, calls, lambda call: (call.tenant, call.name), _empty)


async def _empty(batch: Batch, call: Empty) -> Emptied:
    if not is_text(call.name):
        return Emptied(cancelled=0, mark=None)
    place = (call.tenant, queue_lane(call.name))
    await batch.lock_rows("queue", "name", [(call.tenant, call.name)])
    found = await _found(batch.db, call)
    ending = Ending(batch, now_ms=call.now_ms)
    await ending.lock(found.values(), lanes=[place])
    # Numbers only grow: what is accepted from now on has a larger one.
    mark = batch.numbers.next() if call.mark is None else call.mark
    rows = await batch.db.fetch(
        "SELECT number, token FROM delivery WHERE number = ANY($1::bigint[]) AND NOT canceling"
        " ORDER BY number FOR UPDATE",
        list(found),
    )
    for number, token in rows:
        state = State.WAITING if token is None else State.CLAIMED
        ending.cancel(number, found[number], lane=place[1], state=state)
    await ending.write()
    if len(found) == call.count_max:
        return Emptied(cancelled=len(rows), mark=mark)
    await queues.end(batch.db, call.tenant, call.name, mark=mark, now_ms=call.now_ms)
    await lanes.refresh(batch, [place], now_ms=call.now_ms)
    return Emptied(cancelled=len(rows), mark=None)


async def _found(db: Connection, call: Empty) -> dict[int, Message]:
    """Messages of the queue that are to be cancelled, by their numbers: those in retry, then
    those that wait, then those in flight.  Without a mark all that are there came before it."""
    lane = queue_lane(call.name)
    rows = await db.fetch(
        "SELECT d.number, m.facts FROM ("
        " (SELECT number, message_id, 1 AS part, due_ms FROM delivery"
        "   WHERE tenant = $1 AND lane = $2 AND holding AND token IS NULL AND number < $3"
        "   ORDER BY due_ms, number LIMIT $4)"
        " UNION ALL (SELECT number, message_id, 2, due_ms FROM delivery"
        "   WHERE tenant = $1 AND lane = $2 AND NOT holding AND token IS NULL AND number < $3"
        "   ORDER BY due_ms, number LIMIT $4)"
        " UNION ALL (SELECT f.number, f.message_id, 3, f.due_ms FROM hold h"
        "   JOIN delivery f ON f.number = h.number"
        "   WHERE h.tenant = $1 AND h.resource = $2 AND h.number < $3 AND f.lane = h.resource"
        "    AND f.token IS NOT NULL AND NOT f.canceling LIMIT $4)"
        ") d JOIN message m ON m.tenant = $1 AND m.id = d.message_id"
        " ORDER BY d.part, d.due_ms, d.number LIMIT $4",
        *(call.tenant, lane, _LATER if call.mark is None else call.mark, call.count_max),
    )
    return {number: decode_message(facts) for number, facts in rows}


_LATER = (1 << 63) - 1
"""More than any number."""
