"""The home of what a database says of outcomes and callbacks, read from its tables.

An outcome and its callbacks are one transaction.  So in whatever a kill or a loss
of power leaves, each attempt that has ended has its callback, and no other has.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apsw
import asyncpg
import msgspec
from msgspec import Struct, field

from waypost.domain.ids import dead_letter_id


class Wish(Struct, frozen=True):
    """How somebody is to be told: the retries of a callback, and the queue it names."""

    retries: int
    queue: str | None = None


class Wishes(Struct, frozen=True):
    """Whom a message calls back: after each attempt, and when it has failed."""

    callback: Wish | None = None
    failure: Wish | None = None


class Told(Struct, frozen=True):
    """What a callback tells: attempt `retried` of a message has ended; or it was the last,
    and the message has failed."""

    source_id: str
    retried: int
    failure: bool = False
    dlq_id: str | None = None

    def __str__(self) -> str:
        return f"the {'failure' if self.failure else 'end'} of {self.source_id}/{self.retried}"


class Ledger(Struct):
    """What is in a database.

    `logged` are the messages that the log knows of.  `settled` counts the attempts of a
    message that have ended (ERROR or DELIVERED in the log), `failed` its FAILED entries;
    `dead` has the id of its dead letter.  `told` is by the id of the callback, `wished` by
    that of the message, as the database has it.
    """

    logged: set[str] = field(default_factory=set)
    settled: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    dead: dict[str, str] = field(default_factory=dict)
    told: dict[str, Told] = field(default_factory=dict)
    wished: dict[str, Wishes] = field(default_factory=dict)
    fan_outs: Counter[str] = field(default_factory=Counter)
    idle_holds: int = 0

    def owed(self, wished: Mapping[str, Wishes]) -> Counter[tuple[str, int, bool]]:
        """The callbacks that there must be, one of each: (message, retried, of a failure).

        Attempts of a message are settled one after the other, and each that failed
        counts as one retry more, so the nth that ended was retried n times.
        """
        owed: Counter[tuple[str, int, bool]] = Counter()
        for message_id, wishes in wished.items():
            settled = self.settled[message_id]
            if wishes.callback is not None:
                owed.update((message_id, retried, False) for retried in range(settled))
            if wishes.failure is not None and self.failed[message_id]:
                owed[message_id, settled - 1, True] += 1
        return owed

    def missing(self, wished: Mapping[str, Wishes]) -> list[str]:
        """The attempts that have ended and whose callback is not there."""
        there = self._there()
        return [
            f"no callback tells of {Told(*what)}" for what in self.owed(wished) if not there[what]
        ]

    def surplus(self, wished: Mapping[str, Wishes]) -> Iterator[str]:
        """Callbacks that should not be: of what has not ended, a second one, one that names
        another dead letter."""
        owed = self.owed(wished)
        for what, count in self._there().items():
            if count > owed[what]:
                yield f"{count} callbacks tell of {Told(*what)}, and {owed[what]} should"
        for callback_id, told in self.told.items():
            if told.dlq_id != (self.dead.get(told.source_id) if told.failure else None):
                yield f"{callback_id} names the dead letter {told.dlq_id} in {told}"

    def apart(self, *, fan_out: int) -> list[str]:
        """What a crash has torn apart: an outcome and its callbacks, the `fan_out` messages
        of one publish to a group, a place of a queue and all that could give it back."""
        faults = [*self.missing(self.wished), *self.surplus(self.wished)]
        faults += [
            f"{key} was accepted for {count} of {fan_out} endpoints"
            for key, count in self.fan_outs.items()
            if count != fan_out
        ]
        return faults + [f"{self.idle_holds} places of queues held by nobody"] * bool(
            self.idle_holds
        )

    def _there(self) -> Counter[tuple[str, int, bool]]:
        return Counter((each.source_id, each.retried, each.failure) for each in self.told.values())


class _Facts(Struct):
    """What we read of a message's facts."""

    callback: dict[str, Any] | None = None
    failure_callback: dict[str, Any] | None = None
    group: str | None = None
    header: dict[str, list[str]] = {}


class _Report(Struct):
    retried: int = 0
    failure: bool = False
    dlq_id: str | None = None


_facts = msgspec.json.Decoder(_Facts).decode
_report = msgspec.json.Decoder(_Report).decode


def _wish(kept: dict[str, Any] | None) -> Wish | None:
    return None if kept is None else Wish(kept["retries_max"], kept.get("queue"))


_OUTCOMES = (
    "SELECT message_id, sum(CASE WHEN state IN ('ERROR', 'DELIVERED') THEN 1 ELSE 0 END),"
    " sum(CASE WHEN state = 'FAILED' THEN 1 ELSE 0 END) FROM event GROUP BY message_id"
)
_DEAD_LETTERS = "SELECT message_id, failed_ms, number FROM dead_letter"
_MESSAGES = (
    "SELECT m.number, m.id, m.source, m.facts,"
    " CASE WHEN m.source IS NULL THEN NULL ELSE b.bytes END"
    " FROM message m LEFT JOIN body b ON b.number = m.number"
)
_IDLE_HOLDS = (
    "SELECT count(*) FROM hold h WHERE"
    " NOT EXISTS (SELECT 1 FROM delivery d WHERE d.number = h.number)"
    " AND NOT EXISTS (SELECT 1 FROM message m JOIN delivery d ON d.number = m.number"
    "  WHERE m.source = h.number AND substr(d.lane, 1, 6) <> 'queue:')"
)
_ALL = (_OUTCOMES, _DEAD_LETTERS, _MESSAGES, _IDLE_HOLDS)

_Rows = Iterable[Any]


def read_ledger(db: apsw.Connection) -> Ledger:
    """Read all of a file.  A database without tables has nothing in it."""
    if not db.pragma("user_version"):
        return Ledger()
    return _ledger(*(list(db.execute(sql)) for sql in _ALL))


async def read_shared_ledger(db: asyncpg.Connection) -> Ledger:
    """Read all of a database that nodes share."""
    async with db.transaction(isolation="repeatable_read", readonly=True):
        return _ledger(*[await db.fetch(sql) for sql in _ALL])


def _ledger(outcomes: _Rows, dead_letters: _Rows, messages: _Rows, idle_holds: _Rows) -> Ledger:
    ledger = Ledger()
    for message_id, settled, failed in outcomes:
        ledger.logged.add(message_id)
        ledger.settled[message_id] = settled
        ledger.failed[message_id] = failed
    for message_id, failed_ms, number in dead_letters:
        ledger.dead[message_id] = dead_letter_id(failed_ms, number)
    ids: dict[int, str] = {}
    callbacks: list[tuple[str, int, bytes]] = []
    for number, message_id, source, text, kept in messages:
        ids[number] = message_id
        if source is not None:
            callbacks.append((message_id, source, kept))
            continue
        facts = _facts(text)
        wishes = Wishes(_wish(facts.callback), _wish(facts.failure_callback))
        if wishes != Wishes():
            ledger.wished[message_id] = wishes
        if facts.group is not None:
            ledger.fan_outs[facts.header["Key"][0]] += 1
    for callback_id, source, kept in callbacks:
        report = _report(kept)
        source_id = ids.get(source, f"the missing {source}")
        ledger.told[callback_id] = Told(source_id, report.retried, report.failure, report.dlq_id)
    [(ledger.idle_holds,)] = idle_holds
    return ledger
