"""The home of reading query parameters of lists: what is known, what comes later, what is wrong.

A parameter that is not known is an error and not ignored: a filter that is
misspelled would otherwise answer with everything (contract section 10.1).
"""

from collections.abc import Collection, Mapping, Sequence

from waypost.domain.errors import Invalid

IGNORED = frozenset({"api"})
"""Sent by some clients and meant for others (contract sections 10.1 and 11.2)."""


def check_names(
    given: Mapping[str, Sequence[str]], *, known: Collection[str], later: Collection[str]
) -> None:
    """Raise Invalid for the first parameter that is not `known`, or comes only `later` (D5)."""
    for name in given:
        if name in later:
            raise Invalid(f"the query parameter {name} is not supported yet")
        if name not in known and name not in IGNORED:
            raise Invalid(f"there is no query parameter {name}")


def all_of(given: Mapping[str, Sequence[str]], name: str) -> list[str]:
    """Every value of a parameter, whether repeated or separated by commas (W107)."""
    return [
        text for value in given.get(name, ()) for part in value.split(",") if (text := part.strip())
    ]


def one_of(given: Mapping[str, Sequence[str]], name: str) -> str | None:
    """The value of a parameter that may be given once."""
    values = given.get(name, ())
    if len(values) > 1:
        raise Invalid(f"{name} is given more than once")
    return values[0] if values else None


def count_of(given: Mapping[str, Sequence[str]], *, most: int) -> int:
    """How many rows are asked for; `most` where nothing is said."""
    text = one_of(given, "count")
    if text is None:
        return most
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise Invalid(f"count must be a whole number from 1 to {most}")
    return int(text)
