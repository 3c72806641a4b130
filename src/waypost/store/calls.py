"""The home of calls as they wait for a transaction: what each was asked.

What they mean and what they answer says `waypost.store.protocol`.  An engine runs those of
one kind that wait at the same moment together, as one `Batch`.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from waypost.domain.attempt import Outcome, Verdict
from waypost.domain.places import Places
from waypost.domain.schedules import Schedule
from waypost.store.protocol import (
    Births,
    ChangeOfFlowKey,
    ChangeOfGroup,
    ChangeOfSchedule,
    Claim,
    Draft,
    NewMessage,
    Retention,
)


class Numbers(Protocol):
    """Numbers that only grow."""

    def next(self) -> int: ...


class Batch(Protocol):
    """One transaction's worth of calls, as far as engines have it in common."""

    @property
    def numbers(self) -> Numbers: ...

    @property
    def on_commit(self) -> list[Callable[[], None]]: ...

    def take_place(self, places: Places, claim: Claim) -> None:
        """Take the claim's place, until it is given back or the transaction fails."""
        ...


# Deliveries


class Add(Struct, frozen=True):
    drafts: Sequence[Draft]
    births: Births
    queue_count_max: int
    now_ms: int


class Ask(Struct, frozen=True):
    count_max: int
    places: Places
    now_ms: int


class Settle(Struct, frozen=True):
    claim: Claim
    verdict: Verdict
    outcome: Outcome
    callbacks: Sequence[Draft]
    births: Births
    now_ms: int


class Release(Struct, frozen=True):
    claims: Sequence[Claim]
    now_ms: int


class Cancel(Struct, frozen=True):
    tenant: str
    message_id: str
    now_ms: int


class CancelMany(Struct, frozen=True):
    tenant: str
    message_ids: Sequence[str]
    now_ms: int


# DeadLetters


class Delete(Struct, frozen=True):
    tenant: str
    ids: Sequence[str]


class Retry(Struct, frozen=True):
    tenant: str
    ids: Sequence[str]
    new_message: NewMessage
    queue_count_max: int
    now_ms: int


# UrlGroups


class GroupChange(Struct, frozen=True):
    tenant: str
    name_or_id: str
    change: ChangeOfGroup
    count_max: int


# FlowKeys


class KeyChange(Struct, frozen=True):
    tenant: str
    name: str
    change: ChangeOfFlowKey
    now_ms: int


# Queues


class Put(Struct, frozen=True):
    tenant: str
    name: str
    parallelism: int
    paused: bool | None
    count_max: int
    now_ms: int


class Pause(Struct, frozen=True):
    tenant: str
    name: str
    paused: bool
    now_ms: int


class Empty(Struct, frozen=True):
    tenant: str
    name: str
    mark: int | None
    count_max: int
    now_ms: int


# Keys


class Rotate(Struct, frozen=True):
    tenant_id: str
    new_key: str


# Schedules


class ScheduleChange(Struct, frozen=True):
    tenant: str
    id: str
    change: ChangeOfSchedule
    body: bytes | None
    count_max: int


class Firing(Struct, frozen=True):
    before: Schedule
    after: Schedule
    drafts: Sequence[Draft]
    births: Births
    queue_count_max: int
    now_ms: int


class PutOff(Struct, frozen=True):
    tenant: str
    id: str
    until_ms: int
    now_ms: int


# Upkeep


class Prune(Struct, frozen=True):
    retention: Retention
    now_ms: int
