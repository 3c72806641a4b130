"""The home of how many there are, as far as it need not be counted each time."""

from time import monotonic

from msgspec import Struct

COUNTED_QUICKLY_S = 0.005
COUNTS_KEPT = 100
"""Counts that took longer than that are kept for so many times as long as they took: a
large store is not counted over and over."""


class Counts(Struct, frozen=True, kw_only=True):
    waiting: int
    due: int
    claimed: int
    dead_letters: int


class Kept:
    """The latest counts."""

    def __init__(self) -> None:
        self._latest: Counts | None = None
        self._until_s = 0.0

    def get(self) -> Counts | None:
        """The counts; None where they are to be counted anew."""
        return self._latest if monotonic() < self._until_s else None

    def keep(self, latest: Counts, *, began_s: float) -> None:
        """Keep what has just been counted, since `began_s` by the monotonic clock."""
        took_s = monotonic() - began_s
        self._latest = latest
        self._until_s = 0.0 if took_s < COUNTED_QUICKLY_S else began_s + COUNTS_KEPT * took_s
