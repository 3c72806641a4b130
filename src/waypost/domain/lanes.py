"""The home of where a delivery waits: its queue, else its flow-control key, else its host.

Suspects (D18) that have no queue wait in a lane of their own, one for each key
and one for those without, so that whoever waits to be tried alone holds up
nobody else, and a key that holds one of them holds no other.
"""

from waypost.domain.message import Message

QUEUE = "queue:"
KEY = "key:"
HOST = "host:"
SUSPECTS = "suspects"

Place = tuple[str, str]
"""A tenant and a lane of theirs."""


def lane_of(message: Message, host: str, *, suspect: bool = False) -> str:
    """The lane's name within its tenant."""
    if message.queue is not None:
        return queue_lane(message.queue)
    if suspect:
        return SUSPECTS if message.flow is None else f"{SUSPECTS}:{message.flow.key}"
    return f"{HOST}{host}" if message.flow is None else key_lane(message.flow.key)


def queue_lane(queue: str) -> str:
    """The lane that a queue is."""
    return f"{QUEUE}{queue}"


def key_lane(key: str) -> str:
    """The lane of a flow-control key."""
    return f"{KEY}{key}"


def key_of(lane: str) -> str | None:
    """The flow-control key whose lane it is, or None."""
    return lane[len(KEY) :] if lane.startswith(KEY) else None


def queue_of(lane: str) -> str | None:
    """The queue that a lane is, or None."""
    return lane[len(QUEUE) :] if lane.startswith(QUEUE) else None
