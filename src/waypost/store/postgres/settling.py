"""The home of ends as PostgreSQL writes them: attempts are settled, claims released, messages
cancelled.

What follows from each is gathered by `waypost.store.ends`, and written in one transaction;
whatever may end is locked before.
"""

from collections.abc import Iterable, Sequence

from waypost.domain.attempt import GiveUp, TryAgain
from waypost.domain.errors import StaleClaim
from waypost.domain.lanes import Place, key_lane, queue_lane
from waypost.domain.message import Logged, Message, State
from waypost.store.calls import Cancel, CancelMany, Release, Settle
from waypost.store.ends import Ends, is_of_failure, place_of
from waypost.store.postgres import lanes, permits
from waypost.store.postgres.adding import Adding
from waypost.store.postgres.database import columns, insert
from waypost.store.postgres.filters import sendable
from waypost.store.postgres.messages import decode_message, source_numbers
from waypost.store.postgres.writer import Batch, InTheWay
from waypost.store.protocol import Cancelled, Claim, Draft


async def settle(batch: Batch, calls: list[Settle]) -> list[Logged | StaleClaim]:
    """Record how attempts ended; see `Deliveries.settle`."""
    ending = Ending(batch, now_ms=max(call.now_ms for call in calls))
    drafts: list[tuple[Draft, Settle]] = []
    if any(call.callbacks for call in calls):
        # What they name is made and locked before it is known for certain that they are due.
        before = await ending.claimed_rows((call.claim for call in calls), lock=False)
        drafts = _due_callbacks(calls, before)
    await ending.lock(
        (call.claim.message for call in calls),
        lanes=(place_of(call.claim) for call in calls if isinstance(call.verdict, TryAgain)),
        callbacks=drafts,
    )
    out = await ending.claimed_rows(call.claim for call in calls)
    if drafts != _due_callbacks(calls, out):
        raise InTheWay
    results = [ending.settle(call, out.pop(call.claim.number, None)) for call in calls]
    await ending.write()
    return results


def _due_callbacks(
    calls: Sequence[Settle], rows: dict[int, tuple[int | None, bool]]
) -> list[tuple[Draft, Settle]]:
    """The callbacks that settles bring about, as the deliveries stand."""
    due = []
    for call in calls:
        token, canceling = rows.get(call.claim.number, (None, False))
        if token == call.claim.token:
            fails = isinstance(call.verdict, GiveUp) and not canceling
            due += [(draft, call) for draft in call.callbacks if fails or not is_of_failure(draft)]
    return due


class Ending(Ends):
    """What one batch of ends gathers, and then writes table by table.

    `lock` is called first, with whatever may end.
    """

    batch: Batch

    def __init__(self, batch: Batch, *, now_ms: int) -> None:
        super().__init__(batch, now_ms=now_ms)
        self.db = batch.db
        self.adding: Adding | None = None
        self.locked: set[Place] = set()

    async def lock(
        self,
        messages: Iterable[Message],
        *,
        lanes: Iterable[Place] = (),
        callbacks: Sequence[tuple[Draft, Settle]] = (),
    ) -> None:
        """Lock what messages hold and wait for, and the lanes that they are in."""
        places = set(lanes)
        for message in messages:
            tenant = message.tenant
            places |= {
                (tenant, queue_lane(queue))
                for queue in (message.queue, message.awaited_by)
                if queue is not None
            }
            if message.flow is not None:
                places.add((tenant, key_lane(message.flow.key)))
        if callbacks:
            self.adding = Adding(self.batch, callbacks[0][1].births, now_ms=self.now_ms)
            await self.adding.prepare([draft for draft, _ in callbacks], lock=places)
        else:
            self.locked = await self.batch.lock(places)

    async def claimed_rows(
        self, claims: Iterable[Claim], *, lock: bool = True
    ) -> dict[int, tuple[int | None, bool]]:
        """The token and the wish to cancel of each delivery that is still there."""
        rows = await self.db.fetch(
            "SELECT number, token, canceling FROM delivery WHERE number = ANY($1::bigint[])"
            f" ORDER BY number{' FOR UPDATE' if lock else ''}",
            [claim.number for claim in claims],
        )
        return {row[0]: (row[1], row[2]) for row in rows}

    def cancel(self, number: int, message: Message, *, lane: str, state: State) -> None:
        """Cancel a delivery: at once where it waits, else as soon as its attempt ends (D16)."""
        if state is State.WAITING and (message.tenant, lane) not in self.locked:
            raise InTheWay  # it came to wait there just before it was locked
        super().cancel(number, message, lane=lane, state=state)

    async def write(self) -> None:
        db = self.db
        if self.canceling:
            await db.execute(
                "UPDATE delivery SET canceling = true WHERE number = ANY($1::bigint[])",
                self.canceling,
            )
        if self.retries:
            await db.execute(
                "UPDATE delivery d SET token = NULL, node = NULL, due_ms = n.due_ms,"
                " retried = n.retried, interrupted = n.interrupted"
                " FROM unnest($1::bigint[], $2::bigint[], $3::integer[], $4::integer[])"
                "  n (number, due_ms, retried, interrupted) WHERE d.number = n.number",
                *zip(*self.retries, strict=True),
            )
        await insert(db, ended=self.ended, event=self.events, dead_letter=self.dead_letters)
        await permits.give_back(db, self.permits)
        if self.adding is not None:
            for draft, call in self.callbacks:
                self.adding.accept_one(draft, now_ms=call.now_ms, source=call.claim)
            self.adding.wait(self.waiting)  # all lanes are locked in one order
            self.waiting = {}
            await self.adding.write()
        self.free_awaited(await source_numbers(db, self.awaited))
        await lanes.free(db, self.holds)
        keys = {(tenant, key) for tenant, key, _ in self.permits}
        await permits.look_again(self.batch, keys, now_ms=self.now_ms)
        await lanes.join(self.batch, self.waiting, self.changed, now_ms=self.now_ms)


async def release(batch: Batch, calls: list[Release]) -> list[None]:
    """Give claims back undelivered; see `Deliveries.release`."""
    claims = [claim for call in calls for claim in call.claims]
    ending = Ending(batch, now_ms=max(call.now_ms for call in calls))
    await ending.lock((claim.message for claim in claims), lanes=map(place_of, claims))
    out = await ending.claimed_rows(claims)
    for claim in claims:
        token, canceling = out.pop(claim.number, (None, False))
        if token == claim.token:
            ending.release(claim, canceling=canceling)
    await ending.write()
    return [None] * len(calls)


async def cancel(batch: Batch, calls: list[Cancel]) -> list[Cancelled]:
    """Cancel messages; see `Deliveries.cancel`."""
    now_ms = max(call.now_ms for call in calls)
    names = dict.fromkeys((call.tenant, call.message_id) for call in calls)
    known, reached = await _cancel(batch, list(names), again=True, now_ms=now_ms)
    return [
        Cancelled(
            count=int((call.tenant, call.message_id) in reached),
            known=(call.tenant, call.message_id) in known,
        )
        for call in calls
    ]


async def cancel_many(batch: Batch, calls: list[CancelMany]) -> list[int]:
    """Cancel messages; see `Deliveries.cancel_many`."""
    now_ms = max(call.now_ms for call in calls)
    names: list[tuple[str, str]] = []
    for call in calls:
        names += ((call.tenant, message_id) for message_id in sorted(set(call.message_ids)))
    _, reached = await _cancel(batch, list(dict.fromkeys(names)), again=False, now_ms=now_ms)
    counts = []
    for call in calls:  # what two of them ask for counts for the first
        its = {(call.tenant, message_id) for message_id in call.message_ids} & reached
        reached -= its
        counts.append(len(its))
    return counts


async def _cancel(
    batch: Batch, names: list[tuple[str, str]], *, again: bool, now_ms: int
) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Cancel messages by tenant and id: those that are known, and those that a cancel reached.
    Those that were asked before are reached `again`, or not."""
    found = [
        (decode_message(facts), number, lane)
        for facts, number, lane in await batch.db.fetch(
            "SELECT m.facts, d.number, d.lane"
            " FROM unnest($1::text[], $2::text[]) n (tenant, id)"
            " JOIN message m ON m.tenant = n.tenant AND m.id = n.id"
            " LEFT JOIN delivery d ON d.number = m.number",
            *columns(name for name in names if sendable([name[1]])),
        )
    ]
    alive = [(message, number, lane) for message, number, lane in found if number is not None]
    ending = Ending(batch, now_ms=now_ms)
    await ending.lock(
        (message for message, *_ in alive),
        lanes=((message.tenant, lane) for message, _, lane in alive),
    )
    rows = await batch.db.fetch(
        "SELECT number, lane, token, canceling FROM delivery WHERE number = ANY($1::bigint[])"
        " ORDER BY number FOR UPDATE",
        [number for _, number, _ in alive],
    )
    now_are = {row[0]: tuple(row)[1:] for row in rows}
    reached = set()
    for message, number, _ in alive:
        if number not in now_are:
            continue  # it has ended meanwhile
        lane, token, canceling = now_are[number]
        if canceling and not again:
            continue
        state = State.WAITING
        if token is not None:
            state = State.CANCELING if canceling else State.CLAIMED
        ending.cancel(number, message, lane=lane, state=state)
        reached.add((message.tenant, message.id))
    await ending.write()
    return {(message.tenant, message.id) for message, *_ in found}, reached
