"""The home of filters in SQL: what is told of a message by its facts, before it is read.

A hint.  It leaves nothing out that `domain.filters.matches` would let through,
and that has the last word.  SQLite goes through thousands of messages without
holding up the rest of the process, which Python would.
"""

import msgspec

from waypost.domain.filters import Filter
from waypost.store.filters import FIELDS

AMONG = "IN (SELECT value FROM json_each(?))"


def prefilter(wanted: Filter, *, facts: str) -> tuple[str, list[str]]:
    """Conditions on the column `facts`, to be put behind others, and their values."""
    sql, values = "", []
    for field, keys in FIELDS.items():
        if allowed := getattr(wanted, field):
            path = ".".join(("$", *keys))
            sql += f" AND {facts} ->> '{path}' {AMONG}"
            values.append(as_list(allowed))
    if wanted.labels:
        sql += f" AND EXISTS (SELECT 1 FROM json_each({facts}, '$.labels') WHERE value {AMONG})"
        values.append(as_list(wanted.labels))
    url = f"{facts} ->> '$.url'"
    if wanted.hosts:
        sql += f" AND EXISTS (SELECT 1 FROM json_each(?) WHERE instr(lower({url}), value))"
        values.append(as_list(wanted.hosts))
    if wanted.paths:  # a path may be asked for as it reads once it is decoded
        sql += (
            f" AND (instr({url}, '%')"
            f" OR EXISTS (SELECT 1 FROM json_each(?) WHERE instr({url}, value)))"
        )
        values.append(as_list(wanted.paths))
    return sql, values


def as_list(values: frozenset[str]) -> str:
    """Values for `AMONG`: one statement, however many there are."""
    return msgspec.json.encode(sorted(values)).decode()
