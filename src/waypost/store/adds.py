"""The home of what acceptance brings about: drafts become messages, deliveries and log entries.

It is gathered for all calls that wait at one moment.  An engine reads how the lanes, queues and
keys stand that the drafts name, and writes what was gathered table by table.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from waypost.domain import callbacks
from waypost.domain.flow import Flow
from waypost.domain.lanes import Place, lane_of
from waypost.domain.message import Message
from waypost.domain.places import Places
from waypost.store.calls import Batch
from waypost.store.protocol import Accepted, Births, Claim, Draft

encode = msgspec.json.encode


class Permits(Protocol):
    """What flow-control keys allow now, and what a batch takes of it."""

    def ask(self, tenant: str, flow: Flow) -> None:
        """A message names its key, and the limits that it shall have."""
        ...

    def room_at_birth(self, tenant: str, name: str) -> int:
        """How many attempts of a key may begin now: none where others wait for their turn."""
        ...

    def take(self, tenant: str, name: str, number: int, *, own: bool) -> int:
        """Take a permit for an attempt of the message of that number, which waits in the lane
        of the key (`own`) or in another.  Since when the attempt counts as under way."""
        ...


class Adds(ABC):
    """What one batch of adds gathers.

    `now_ms` is the latest of its calls': what is due to one of them may not be
    overtaken by another that came a moment earlier.  An engine says under which `token` messages
    are born claimed, how many may be (`quota`), and when the queues' latest messages were
    accepted (`accepted_ms`).
    """

    batch: Batch
    permits: Permits

    def __init__(self, batch: Batch, births: Births, *, lease: int = 0, now_ms: int) -> None:
        self.batch = batch
        self.births = births
        self.places = births.places
        self.lease = lease
        self.now_ms = now_ms
        self.token = 0
        self.quota = 0
        self.open: dict[Place, int] = {}
        self.accepted_ms: dict[Place, int] = {}
        self.waiting: dict[Place, int] = {}  # in lanes without places of their own
        self.limited: set[Place] = set()
        self.messages: list[tuple[Any, ...]] = []
        self.bodies: list[tuple[Any, ...]] = []
        self.deliveries: list[tuple[Any, ...]] = []
        self.holds: list[tuple[Any, ...]] = []
        self.events: list[tuple[Any, ...]] = []

    @abstractmethod
    def _room(self, message: Message, place: Place) -> int:
        """How many messages may be claimed at birth in a lane, were they due."""

    @abstractmethod
    def _claimed_under(self, token: int | None) -> tuple[int | None, ...]:
        """What the row of a delivery says of its claim, if it has one."""

    def accept_all(
        self, drafts: Sequence[Draft], firsts: Iterable[str | None], *, now_ms: int
    ) -> list[Accepted]:
        """Accept the drafts of one call, but for those of which there is a first, whose id
        `firsts` has; those with one body share its row."""
        uses = None
        if len(drafts) > 1:
            uses = Counter(id(draft.body) for draft in drafts if draft.body)
        shared: dict[int, int] = {}
        accepted = []
        for draft, first in zip(drafts, firsts, strict=False):
            if first is not None:
                accepted.append(Accepted(message_id=first, deduplicated=True))
                continue
            if uses is not None and uses[of := id(draft.body)] > 1:
                self.accept_one(draft, now_ms=now_ms, shared_body=shared.get(of, 0))
                shared.setdefault(of, self.messages[-1][2])
            else:
                self.accept_one(draft, now_ms=now_ms)
            accepted.append(Accepted(message_id=draft.message.id))
        return accepted

    def accept_again(self, draft: Draft, *, body: int, source: int | None, now_ms: int) -> None:
        """Accept a message with the body that is kept under the number `body` (D27); a callback
        tells of the message of the number `source`."""
        self.accept_one(draft, now_ms=now_ms)
        self.messages[-1] = (*self.messages[-1][:4], body, source)

    def accept_one(
        self,
        draft: Draft,
        *,
        now_ms: int,
        shared_body: int | None = None,
        source: Claim | None = None,
    ) -> None:
        """Accept one draft.  `shared_body` is the number under which its body is kept for
        several messages, 0 where this is the first of them; `source` is the attempt that a
        callback tells of."""
        message = draft.message
        numbers = self.batch.numbers
        number = numbers.next()
        tenant = message.tenant
        body = kept = draft.body
        if draft.report is not None:
            assert source is not None, message.id
            kept = encode(draft.report)
        lane = lane_of(message, draft.host)
        place = (tenant, lane)
        room = self.open.get(place)
        if room is None:
            room = self.open[place] = self._room(message, place)
        due_ms = message.not_before_ms
        if message.queue is not None:
            due_ms = max(due_ms, self.accepted_ms[place])
        token = None
        key = None
        if message.flow is not None:
            key = message.flow.key
            self.permits.ask(tenant, message.flow)
            if due_ms <= self.now_ms and room and not self.permits.room_at_birth(tenant, key):
                room = self.open[place] = 0
        if due_ms <= self.now_ms and room:
            if draft.report is not None and source is not None:
                body = callbacks.body(draft.report, source.message, source.body)
            if self.quota > 0 and not self.places.refusal(draft.host, size=len(body)):
                token = self.token
                self.quota -= 1
                self.open[place] = room - 1
            else:
                self.open[place] = 0
        if kept and not shared_body:
            self.bodies.append((number, kept))
        if shared_body is not None:
            shared_body = shared_body or number
        of = None if source is None else source.number
        self.messages.append((tenant, message.id, number, encode(message), shared_body, of))
        holding = token is not None and message.queue is not None
        by = self._claimed_under(token)
        row = (number, tenant, message.id, lane, draft.host, due_ms, *by, holding, 0, 0, False, key)
        self.deliveries.append(row)
        self.events.append((tenant, now_ms, numbers.next(), message.id, "CREATED", None))
        if token is not None:
            if holding:
                self.holds.append((tenant, lane, number))
            active_ms = self.now_ms
            if key is not None:
                active_ms = self.permits.take(tenant, key, number, own=not holding)
            self.events.append((tenant, active_ms, numbers.next(), message.id, "ACTIVE", None))
            claim = Claim(
                number=number,
                token=token,
                message=message,
                body=body,
                host=draft.host,
                lease=self.lease,
            )
            self.batch.take_place(self.places, claim)
            self.batch.on_commit.append(partial(self.births.hand_over, claim))
        elif message.queue is not None or key is not None:
            self.limited.add(place)
        else:
            self.waiting[place] = min(due_ms, self.waiting.get(place, due_ms))


def queues_named(drafts: Iterable[Draft]) -> set[tuple[str, str]]:
    """The queues that drafts name, each by its tenant and name."""
    return {
        (draft.message.tenant, draft.message.queue)
        for draft in drafts
        if draft.message.queue is not None
    }


def _nobody(claim: Claim) -> None:
    raise AssertionError(claim.message.id)


NO_BIRTHS = Births(Places(count_max=0, host_count_max=0, bytes_max=0), _nobody)
"""For messages that wait for their turn in any case."""
