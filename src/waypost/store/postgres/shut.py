"""The home of the lanes that this node has no places for.

Places of hosts are each node's own, and so is what waits for them: a lane that one node
cannot serve stays open to the others.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from itertools import count

from msgspec import Struct

from waypost.domain.lanes import Place

SHUT_MAX = 10_000
"""Lanes that are remembered; the others are looked at whenever their turn comes."""


class _Wait(Struct, frozen=True):
    on: str
    turn: tuple[int, int, Place]
    retry_ms: int | None


class Shut:
    """Lanes that wait for a resource of this node, each with the turn that it keeps meanwhile;
    of equal turns, those first that were refused first.

    `next_turn_ms` is when the next of the others has its turn, as the latest claim saw it.
    """

    def __init__(self) -> None:
        self.next_turn_ms: int | None = None
        self._lanes: dict[Place, _Wait] = {}
        self._waiting: dict[str, list[tuple[int, int, Place]]] = {}  # in order
        self._numbers = count()

    @property
    def full(self) -> bool:
        """Whether no more lanes can be left out."""
        return len(self._lanes) >= SHUT_MAX

    def shut(self, place: Place, *, on: str, turn_ms: int, retry_ms: int | None) -> None:
        """Leave a lane out until `open` of that resource, or until one that holds a place of
        the queue falls due."""
        self.reconsider([place])
        if not self.full:
            turn = (turn_ms, next(self._numbers), place)
            self._lanes[place] = _Wait(on, turn, retry_ms)
            insort(self._waiting.setdefault(on, []), turn)

    def open(self, resource: str, *, count_max: int) -> bool:
        """Let some lanes that wait for a resource be looked at again, those first that have
        waited longest; whether more wait."""
        first = self._waiting.get(resource, [])[:count_max]
        self.reconsider(place for *_, place in first)
        return resource in self._waiting

    def open_for_retries(self, *, now_ms: int) -> None:
        """Let lanes be looked at again in which one that holds a place has fallen due."""
        self.reconsider(
            [
                place
                for place, wait in self._lanes.items()
                if wait.retry_ms is not None and wait.retry_ms <= now_ms
            ]
        )

    def goes_on_waiting(self, place: Place, *, on: str | None, retry_ms: int | None) -> bool:
        """Whether a lane in which something has changed is still left out: if it waits for
        what its next message needs.  `on` is that, where the message may go by now."""
        wait = self._lanes.get(place)
        if wait is None or wait.on != on:
            self.reconsider([place])
            return False
        self._lanes[place] = _Wait(on, wait.turn, retry_ms)
        return True

    def reconsider(self, places: Iterable[Place]) -> None:
        """Let lanes be looked at again."""
        for place in places:
            wait = self._lanes.pop(place, None)
            if wait is not None:
                waiting = self._waiting[wait.on]
                del waiting[bisect_left(waiting, wait.turn)]
                if not waiting:
                    del self._waiting[wait.on]

    def next_retry_ms(self) -> int | None:
        """When the next lane is to be looked at for a retry."""
        times = (wait.retry_ms for wait in self._lanes.values())
        return min((retry_ms for retry_ms in times if retry_ms is not None), default=None)

    def names(self) -> list[str]:
        """The lanes, as `lanes.NAME` spells them."""
        return [f"{tenant} {lane}" for tenant, lane in self._lanes]
