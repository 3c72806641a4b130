"""The home of where a delivery waits: its queue, else its tenant and host."""

QUEUE = "queue:"
HOST = "host:"


def lane_of(queue: str | None, host: str) -> str:
    """The lane's name within its tenant."""
    return f"{HOST}{host}" if queue is None else f"{QUEUE}{queue}"


def queue_of(lane: str) -> str | None:
    """The queue that a lane is, or None."""
    return lane[len(QUEUE) :] if lane.startswith(QUEUE) else None
