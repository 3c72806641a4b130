"""The home of places in the log and among dead letters, and of the cursors that name them.

A place is (time, number): an engine's numbers tell apart what came in one millisecond.
"""

from collections.abc import Iterable

from waypost.domain.errors import Invalid
from waypost.domain.filters import Filter
from waypost.domain.ids import dead_letter_id

Place = tuple[int, int]

PLACE_MAX = 1 << 62
BEFORE_ALL: Place = (0, -1)
AFTER_ALL: Place = (PLACE_MAX, PLACE_MAX)


def span(of: Filter) -> tuple[Place, Place]:
    """Between which places, neither of them included, the dates of a filter are."""
    low = BEFORE_ALL if of.from_ms is None else (of.from_ms, -1)
    high = AFTER_ALL if of.to_ms is None else (of.to_ms + 1, -1)
    return low, high


def left_of(
    between: tuple[Place, Place], *, after: Place, latest_first: bool
) -> tuple[Place, Place]:
    """What is left of a span for whoever has come by the place `after`."""
    low, high = between
    if latest_first:
        return low, min(high, after)
    return max(low, after), high


def cursor_of(*numbers: int) -> str:
    return "-".join(map(str, numbers))


def read_cursor(cursor: str) -> Place:
    """The place that a cursor names.  Raises Invalid."""
    time_ms, number = read_numbers(cursor, count=2)
    return time_ms, number


def read_numbers(cursor: str, *, count: int, more: bool = False) -> list[int]:
    """So many numbers of which a cursor is made, or `more`.  Raises Invalid."""
    parts = cursor.split("-")
    if len(parts) < count or (len(parts) > count and not more) or not all(map(_is_number, parts)):
        raise Invalid("cursor: not one that this server gave")
    return list(map(int, parts))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def places_of(letter_ids: Iterable[str]) -> list[Place]:
    """The places that the ids of dead letters name; what is no id of ours names none."""
    places = []
    for letter_id in letter_ids:
        try:
            place = read_cursor(letter_id)
        except Invalid:
            continue
        if dead_letter_id(*place) == letter_id:  # and not with a leading zero
            places.append(place)
    return sorted(places)
