"""The home of a message: its immutable facts, its states, and every transition there is.

A message is accepted once and never changes.  While it is alive a *delivery*
moves through the states below; what happened is logged in `Logged` states,
which are the words users read (contract section 11.4).
"""

from enum import StrEnum

from msgspec import Struct

from waypost.domain.flow import Flow
from waypost.domain.redaction import Redaction


class Callback(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who is told of an attempt, or of the failure of a message, and how (contract section 5)."""

    url: str
    method: str = "POST"
    header: dict[str, list[str]] = {}
    retries_max: int
    retry_delay: str | None = None
    timeout_ms: int
    delay_ms: int = 0
    not_before_ms: int = 0
    queue: str | None = None
    labels: list[str] = []
    redaction: Redaction | None = None
    flow: Flow | None = None


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The facts of one message, fixed at acceptance.  The body is kept beside it.

    `header` maps canonical names to values: what is forwarded to the
    destination, and what `GET /v2/messages/{id}` shows (W21, W22).  `group` and
    `endpoint` are names: the URL group that it was published to, and which of
    its endpoints this is.  `api` is the name of a built-in API, whose address
    is the operator's (D9); `url` then reads `api/llm`.  `schedule` is the id of the
    schedule that made it.

    A callback tells of an attempt of the message `callback_of`.  `awaited_by` is
    the queue that keeps that message's place until this callback has ended (D24).
    """

    tenant: str
    id: str
    created_ms: int
    not_before_ms: int
    url: str
    method: str = "POST"
    header: dict[str, list[str]] = {}
    retries_max: int = 3
    retry_delay: str | None = None
    timeout_ms: int
    queue: str | None = None
    labels: list[str] = []
    caller_ip: str | None = None
    hops: int = 0
    group: str | None = None
    endpoint: str | None = None
    api: str | None = None
    callback: Callback | None = None
    failure_callback: Callback | None = None
    callback_of: str | None = None
    awaited_by: str | None = None
    flow: Flow | None = None
    schedule: str | None = None
    redaction: Redaction | None = None


class State(StrEnum):
    """Where a delivery stands."""

    WAITING = "waiting"
    CLAIMED = "claimed"
    CANCELING = "canceling"
    DELIVERED = "delivered"
    FAILED = "failed"
    CANCELED = "canceled"


class Event(StrEnum):
    """What may happen to a delivery."""

    CLAIM = "claim"
    DELIVER = "deliver"
    RETRY = "retry"
    GIVE_UP = "give up"
    CANCEL = "cancel"
    RELEASE = "release"
    LOSE_LEASE = "lose lease"


NEXT: dict[State, dict[Event, State]] = {
    State.WAITING: {
        Event.CLAIM: State.CLAIMED,
        Event.CANCEL: State.CANCELED,
        Event.GIVE_UP: State.FAILED,
    },
    State.CLAIMED: {
        Event.DELIVER: State.DELIVERED,
        Event.RETRY: State.WAITING,
        Event.GIVE_UP: State.FAILED,
        Event.CANCEL: State.CANCELING,
        Event.RELEASE: State.WAITING,
        Event.LOSE_LEASE: State.WAITING,
    },
    State.CANCELING: {
        Event.DELIVER: State.DELIVERED,
        Event.RETRY: State.CANCELED,
        Event.GIVE_UP: State.CANCELED,
        Event.CANCEL: State.CANCELING,
        Event.RELEASE: State.CANCELED,
        Event.LOSE_LEASE: State.CANCELED,
    },
    State.DELIVERED: {},
    State.FAILED: {},
    State.CANCELED: {},
}
"""Every transition there is.  The diagram in docs/lifecycle.md is drawn from this table."""


class Logged(StrEnum):
    """The states of the log, as the SDKs spell them (W169: CANCELED has one L)."""

    CREATED = "CREATED"
    ACTIVE = "ACTIVE"
    RETRY = "RETRY"
    ERROR = "ERROR"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"
    CANCEL_REQUESTED = "CANCEL_REQUESTED"
    CANCELED = "CANCELED"


IN_PROGRESS = (Logged.ACTIVE, Logged.RETRY, Logged.ERROR)
"""What the log filter `IN_PROGRESS` stands for (contract section 11.2)."""
