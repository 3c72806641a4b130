"""The home of the end of a queue: its messages are cancelled in chunks, and it goes with the
last of them (D28)."""

from waypost.domain.lanes import queue_lane
from waypost.domain.message import State
from waypost.store.calls import Empty
from waypost.store.protocol import Emptied
from waypost.store.sqlite import lanes, queues
from waypost.store.sqlite.database import query
from waypost.store.sqlite.messages import decode_message
from waypost.store.sqlite.settling import Ending
from waypost.store.sqlite.writer import Batch


def empty(batch: Batch, calls: list[Empty]) -> list[Emptied]:
    """Cancel some of what is in queues; see `Queues.empty_queue`."""
    return [_empty(batch, call) for call in calls]


def _empty(batch: Batch, call: Empty) -> Emptied:
    # Numbers only grow: what is accepted from now on has a larger one.
    mark = batch.numbers.next() if call.mark is None else call.mark
    lane = queue_lane(call.name)
    ending = Ending(batch, now_ms=call.now_ms)
    left = call.count_max
    for holding in (1, 0):
        waiting = query(
            batch.db,
            "SELECT d.number, m.facts FROM delivery d"
            " CROSS JOIN message m ON m.tenant = d.tenant AND m.id = d.message_id"
            " WHERE d.tenant = ? AND d.lane = ? AND d.holding = ? AND d.token IS NULL"
            "  AND d.number < ? ORDER BY d.due_ms, d.number LIMIT ?",
            (call.tenant, lane, holding, mark, left),
        ).fetchall()
        for number, facts in waiting:
            ending.cancel(number, decode_message(facts), lane=lane, state=State.WAITING)
        left -= len(waiting)
    in_flight = query(
        batch.db,
        "SELECT d.number, m.facts FROM hold h CROSS JOIN delivery d ON d.number = h.number"
        " CROSS JOIN message m ON m.tenant = d.tenant AND m.id = d.message_id"
        " WHERE h.tenant = ? AND h.resource = ? AND h.number < ? AND d.lane = h.resource"
        "  AND d.token IS NOT NULL AND d.canceling = 0 LIMIT ?",
        (call.tenant, lane, mark, left),
    ).fetchall()
    for number, facts in in_flight:
        ending.cancel(number, decode_message(facts), lane=lane, state=State.CLAIMED)
    left -= len(in_flight)
    ending.write()
    if not left:
        return Emptied(cancelled=call.count_max, mark=mark)
    queues.end(batch.db, call.tenant, call.name, mark=mark, now_ms=call.now_ms)
    batch.someone_waits(lanes.refresh(batch.db, call.tenant, lane, now_ms=call.now_ms))
    return Emptied(cancelled=call.count_max - left, mark=None)
