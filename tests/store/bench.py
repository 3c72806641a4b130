"""A store on the test bench: short words for what tests do with it."""

from collections.abc import Sequence

from tests.support.factory import ERROR, OK, T0, a_draft, some_places
from waypost.domain.attempt import Delivered, GiveUp, Outcome, TryAgain, Verdict
from waypost.domain.filters import Filter
from waypost.domain.message import Logged
from waypost.domain.places import Places, Sign
from waypost.store.protocol import (
    Accepted,
    Births,
    Claim,
    Draft,
    LogEntry,
    LogFilter,
    Store,
    give_back_place,
)


class Bench:
    """`born` is what was handed over by adds; claims taken here give their places back
    when they are settled."""

    def __init__(self, store: Store, places: Places | None = None) -> None:
        self.store = store
        self.places = places or some_places()
        self.born: list[Claim] = []
        self.births = Births(self.places, self.born.append)

    async def add(self, *drafts: Draft, now_ms: int = T0) -> list[Accepted]:
        return await self.store.add(drafts, births=self.births, now_ms=now_ms)

    async def add_waiting(self, *drafts: Draft, now_ms: int = T0) -> list[Accepted]:
        """Add messages of which none is claimed at birth."""
        accepted = await self.store.add(
            drafts,
            births=Births(some_places(count_max=0), self.born.append),
            now_ms=now_ms,
        )
        assert not self.born
        return accepted

    async def claim(self, count_max: int = 100, *, now_ms: int = T0) -> list[Claim]:
        claimed = await self.store.claim(count_max=count_max, places=self.places, now_ms=now_ms)
        return claimed.claims

    async def next_due_ms(self, *, now_ms: int = T0) -> int | None:
        claimed = await self.store.claim(count_max=0, places=self.places, now_ms=now_ms)
        return claimed.next_due_ms

    async def end(
        self,
        claim: Claim,
        verdict: Verdict,
        outcome: Outcome = ERROR,
        *,
        now_ms: int = T0,
        sign: Sign = Sign.WELL,
        callbacks: Sequence[Draft] = (),
    ) -> Logged:
        give_back_place(self.places, claim, sign)
        return await self.store.settle(
            claim, verdict, outcome, callbacks=callbacks, births=self.births, now_ms=now_ms
        )

    async def deliver(self, claim: Claim, *, now_ms: int = T0) -> Logged:
        return await self.end(claim, Delivered(), OK, now_ms=now_ms)

    async def retry(self, claim: Claim, *, at_ms: int, now_ms: int = T0) -> Logged:
        return await self.end(claim, TryAgain(at_ms), now_ms=now_ms)

    async def fail(self, claim: Claim, *, now_ms: int = T0) -> Logged:
        return await self.end(claim, GiveUp("failed 4 times"), now_ms=now_ms)

    async def log(self, message_id: str | None = None, tenant: str = "acme") -> list[LogEntry]:
        """The whole log, oldest first."""
        ids = frozenset(() if message_id is None else (message_id,))
        page = await self.store.log(
            tenant,
            where=LogFilter(of=Filter(message_ids=ids)),
            cursor=None,
            count_max=10_000,
            bytes_max=1 << 30,
        )
        assert page.cursor is None
        return page.entries[::-1]

    async def states(self, message_id: str, tenant: str = "acme") -> list[str]:
        return [entry.state.value for entry in await self.log(message_id, tenant)]


def ids(claims: Sequence[Claim]) -> list[str]:
    return [claim.message.id for claim in claims]


def id_of(draft: Draft) -> str:
    return draft.message.id


def queued(name: str = "mail", count: int = 3, **facts: object) -> list[Draft]:
    return [a_draft(queue=name, **facts) for _ in range(count)]
