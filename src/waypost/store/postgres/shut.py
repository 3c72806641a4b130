"""The home of the lanes that this node has no places for.

Places of hosts are each node's own, and so is what waits for them: a lane that one node
cannot serve stays open to the others.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable

from waypost.domain.lanes import Place

SHUT_MAX = 10_000
"""Lanes that are remembered; those that are forgotten are looked at once more."""


class Shut:
    """Lanes that wait for a resource of this node, those first that were refused first.

    `next_turn_ms` is when the next of the others has its turn, as the latest claim saw it.
    """

    def __init__(self) -> None:
        self.next_turn_ms: int | None = None
        self._lanes: OrderedDict[Place, tuple[str, int | None]] = OrderedDict()
        self._waiting: dict[str, deque[Place]] = {}

    def shut(self, place: Place, *, on: str, retry_ms: int | None) -> None:
        """Leave a lane out until `open` of that resource, or until one that holds a place of
        the queue falls due."""
        if len(self._lanes) == SHUT_MAX:
            self._lanes.popitem(last=False)
        if self._lanes.get(place, ("", None))[0] != on:
            self._waiting.setdefault(on, deque()).append(place)
        self._lanes[place] = (on, retry_ms)

    def open(self, resource: str, *, count_max: int) -> bool:
        """Let some lanes that wait for a resource be looked at again; whether more may wait."""
        waiting = self._waiting.get(resource)
        while waiting and count_max:
            place = waiting.popleft()
            if self._lanes.get(place, ("", None))[0] == resource:
                del self._lanes[place]
                count_max -= 1
        if not waiting:
            self._waiting.pop(resource, None)
        return not count_max

    def open_for_retries(self, *, now_ms: int) -> None:
        """Let lanes be looked at again in which one that holds a place has fallen due."""
        due = [place for place, (_, at_ms) in self._lanes.items() if at_ms and at_ms <= now_ms]
        self.reconsider(due)

    def reconsider(self, places: Iterable[Place]) -> None:
        """Something has changed in these lanes."""
        for place in places:
            self._lanes.pop(place, None)

    def next_retry_ms(self) -> int | None:
        """When the next lane is to be looked at for a retry."""
        return min((at_ms for _, at_ms in self._lanes.values() if at_ms), default=None)

    def names(self) -> list[str]:
        """The lanes, as `lanes.NAME` spells them."""
        return [f"{tenant} {lane}" for tenant, lane in self._lanes]
