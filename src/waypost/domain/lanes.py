"""The home of where a delivery waits: its queue, else its tenant and host.

Suspects (D18) that have no queue wait in a lane of their own, so that whoever
waits to be tried alone holds up nobody else.
"""

QUEUE = "queue:"
HOST = "host:"
SUSPECTS = "suspects"


def lane_of(queue: str | None, host: str, *, suspect: bool = False) -> str:
    """The lane's name within its tenant."""
    if queue is not None:
        return queue_lane(queue)
    return SUSPECTS if suspect else f"{HOST}{host}"


def queue_lane(queue: str) -> str:
    """The lane that a queue is."""
    return f"{QUEUE}{queue}"


def queue_of(lane: str) -> str | None:
    """The queue that a lane is, or None."""
    return lane[len(QUEUE) :] if lane.startswith(QUEUE) else None
