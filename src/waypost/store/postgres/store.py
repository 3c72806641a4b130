"""The PostgreSQL engine, assembled: `Store` as the protocol promises it."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import asyncpg

from waypost.domain.attempt import Outcome, Verdict
from waypost.domain.errors import StaleClaim, StoreUnavailable
from waypost.domain.filters import EVERYTHING, Filter
from waypost.domain.flow import FlowKey
from waypost.domain.message import Logged, Message
from waypost.domain.places import Places
from waypost.domain.schedules import Schedule
from waypost.domain.signing import SigningKeys
from waypost.domain.url_groups import UrlGroup
from waypost.store.calls import (
    Add,
    Ask,
    Cancel,
    CancelMany,
    Delete,
    Empty,
    Firing,
    GroupChange,
    KeyChange,
    Pause,
    Prune,
    Put,
    PutOff,
    Release,
    Retry,
    Rotate,
    ScheduleChange,
    Settle,
)
from waypost.store.counts import Kept
from waypost.store.postgres import (
    adding,
    claiming,
    dead_letters,
    emptying,
    flow_keys,
    log,
    messages,
    people,
    permits,
    queues,
    schedules,
    settling,
    upkeep,
    url_groups,
)
from waypost.store.postgres.database import (
    Connection,
    as_problems,
    check,
    connect,
    connection,
    lent,
    migrate,
    snapshot,
)
from waypost.store.postgres.life import Life
from waypost.store.postgres.permits import Opening
from waypost.store.postgres.writer import Writer
from waypost.store.protocol import (
    BYTES_MAX,
    COUNT_MAX,
    LATEST_FIRST,
    Accepted,
    Births,
    Cancelled,
    ChangeOfFlowKey,
    ChangeOfGroup,
    ChangeOfSchedule,
    Claim,
    Claimed,
    DeadLetter,
    DeadLetterPage,
    Draft,
    DueSchedules,
    Emptied,
    FlowKeyState,
    Found,
    LogFilter,
    LogPage,
    LogView,
    NewMessage,
    Pruned,
    Pulse,
    Queue,
    Retention,
    ScheduleSeen,
    Tenant,
    Token,
)

FACTS_BYTES = 1_000
"""About what a message takes beside its body."""

LEASE_MS = 10_000
"""How long a node lives of which nothing is heard."""

CONNECTIONS_MAX = 10
STATEMENTS_CACHED = 256
STATEMENT_S_MAX = 30.0

LOOKS_MAX = 2
"""So many connections are lent at most to callers who look, however many they are, and as many to
the node itself, which looks for schedules that are due, for the URL group that a publish names, and
how the store is.  Of the 9 beside the heart's (`CONNECTIONS_MAX`) that leaves 5 to the lines of the
writer: to adds, claims, settles and two more kinds at one moment."""

LOOKS_SHARE = 4
"""Where there are fewer connections, each of the two has this part of them, and at least one."""

CLOSE_S = 5.0
"""How long connections may take to close."""

T = TypeVar("T")


def _ignore(_now_ms: int, _asked_s: float) -> None:
    """Nobody asked what time it is."""


async def open_postgres(
    url: str,
    *,
    now_ms: int | None = None,
    on_time: Callable[[int, float], None] = _ignore,
    name: str = "",
    lease_ms: int = LEASE_MS,
    connections_max: int = CONNECTIONS_MAX,
    statements_cached: int = STATEMENTS_CACHED,
    statement_s_max: float = STATEMENT_S_MAX,
) -> "PostgresStore":
    """Join the nodes of a database, whose schema is brought up to date.

    A `now_ms` of None is what the database's clock says; `on_time` is told of that now and
    then (`Life`).  `name` is what people call this node.  `statements_cached` is 0 behind a
    pooler that knows no prepared statements.  Raises SchemaTooNew, StoreUnavailable, and
    Invalid for a URL that leads to no database and for one that does not keep its promises;
    then nothing was changed.
    """
    async with connection(url) as db:
        await check(db)
        await migrate(db)
    open_pool = partial(
        connect,
        url,
        statements_cached=statements_cached,
        statement_s_max=statement_s_max,
        silence_s_max=lease_ms / 1000,
    )
    async with AsyncExitStack() as opened:
        pools = []
        for count in (connections_max - 1, 1):
            pools.append(await open_pool(connections_max=count))
            opened.callback(pools[-1].terminate)
        pool, own = pools
        life = Life(
            own,
            Writer(pool),
            name=name or socket.gethostname(),
            lease_ms=lease_ms,
            on_time=on_time,
        )
        interrupted = await life.begin(now_ms=now_ms)
        return PostgresStore(pool, life, opened.pop_all(), interrupted=interrupted)


class PostgresStore:
    """One node of a database.  Open it with `open_postgres`."""

    def __init__(
        self,
        pool: "asyncpg.Pool[Any]",
        life: Life,
        opened: AsyncExitStack,
        *,
        interrupted: int,
    ) -> None:
        self._pool = pool
        self._life = life
        self._opened = opened
        self._claim = claiming.Claims().claim
        self._counts = Kept()
        self._people_version: int | None = None
        looks_max = max(1, min(LOOKS_MAX, pool.get_max_size() // LOOKS_SHARE))
        self._callers = asyncio.Semaphore(looks_max)
        self._own = asyncio.Semaphore(looks_max)
        self.interrupted = interrupted
        self.writer = life.writer

    async def close(self) -> None:
        """Finish what was asked, end the lease and let go of the database."""
        await self._life.end()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._pool.close()
        await self._opened.aclose()

    def vital(self) -> str | None:
        return self._life.vital()

    # Deliveries

    async def add(
        self,
        drafts: Sequence[Draft],
        *,
        births: Births,
        queue_count_max: int = COUNT_MAX,
        now_ms: int,
    ) -> list[Accepted]:
        size = sum([len(draft.body) for draft in drafts]) + FACTS_BYTES * len(drafts)
        call = Add(drafts, births, queue_count_max, now_ms)
        accepted: list[Accepted] = await self.writer.call(adding.add, call, size=size)
        return accepted

    async def claim(self, *, count_max: int, places: Places, now_ms: int) -> Claimed:
        if not self._life.is_alive():  # what would be claimed could not begin
            raise StoreUnavailable("this node's lease is over")
        with as_problems("look for keys that are due"):
            async with lent(self._pool) as db:
                due = await permits.is_due(db, now_ms=now_ms)
        if due and (room := min(count_max, places.free)) > 0:
            await self.writer.call(permits.open_keys, Opening(room, now_ms))
        ask = Ask(count_max, places, now_ms)
        claimed: Claimed = await self.writer.call(self._claim, ask)
        return claimed

    def may_begin(self, claim: Claim) -> bool:
        return self._life.may_begin(claim)

    async def settle(
        self,
        claim: Claim,
        verdict: Verdict,
        outcome: Outcome,
        *,
        callbacks: Sequence[Draft] = (),
        births: Births,
        now_ms: int,
    ) -> Logged:
        call = Settle(claim, verdict, outcome, callbacks, births, now_ms)
        size = len(outcome.body) * (1 + len(callbacks)) + FACTS_BYTES * len(callbacks)
        with self._putting_down(claim):
            logged: Logged = await self.writer.call(settling.settle, call, size=size)
        return logged

    async def release(self, claims: Sequence[Claim], *, now_ms: int) -> None:
        with self._putting_down(*claims):
            await self.writer.call(settling.release, Release(claims, now_ms))
        if not claims:  # whoever gives claims back does not wait for what others do
            await self.writer.catch_up()  # it has overtaken what goes in other lines

    @contextmanager
    def _putting_down(self, *claims: Claim) -> Iterator[None]:
        """Claims are no longer in hand, unless they could not be given back."""
        try:
            yield
        except StaleClaim:
            self.writer.in_hand.difference_update((each.number, each.token) for each in claims)
            raise
        self.writer.in_hand.difference_update((each.number, each.token) for each in claims)

    async def cancel(self, tenant: str, message_id: str, *, now_ms: int) -> Cancelled:
        call = Cancel(tenant, message_id, now_ms)
        cancelled: Cancelled = await self.writer.call(settling.cancel, call)
        return cancelled

    async def cancel_many(self, tenant: str, message_ids: Sequence[str], *, now_ms: int) -> int:
        call = CancelMany(tenant, message_ids, now_ms)
        cancelled: int = await self.writer.call(settling.cancel_many, call)
        return cancelled

    # Reader

    async def message(self, tenant: str, message_id: str) -> tuple[Message, bytes] | None:
        return await self._look(lambda db: messages.one(db, tenant, message_id))

    async def log(
        self,
        tenant: str,
        *,
        where: LogFilter,
        view: LogView = LATEST_FIRST,
        cursor: str | None,
        count_max: int,
        bytes_max: int,
    ) -> LogPage:
        return await self._look(
            lambda db: log.page(
                db,
                tenant,
                where=where,
                view=view,
                cursor=cursor,
                count_max=count_max,
                bytes_max=bytes_max,
            )
        )

    async def cancellable(self, tenant: str, *, where: Filter, cursor: str | None) -> Found:
        return await self._look(
            lambda db: messages.cancellable(db, tenant, where=where, cursor=cursor)
        )

    async def dead_letters(
        self,
        tenant: str,
        *,
        where: Filter = EVERYTHING,
        latest_first: bool = False,
        cursor: str | None,
        count_max: int,
        bytes_max: int = BYTES_MAX,
        bodies: bool = True,
    ) -> DeadLetterPage:
        return await self._look(
            lambda db: dead_letters.page(
                db,
                tenant,
                where=where,
                latest_first=latest_first,
                cursor=cursor,
                count_max=count_max,
                bytes_max=bytes_max,
                bodies=bodies,
            )
        )

    async def dead_letter_ids(
        self,
        tenant: str,
        *,
        where: Filter,
        latest_first: bool = False,
        cursor: str | None,
        count_max: int,
    ) -> Found:
        return await self._look(
            lambda db: dead_letters.ids(
                db,
                tenant,
                where=where,
                latest_first=latest_first,
                cursor=cursor,
                count_max=count_max,
            )
        )

    async def dead_letter(self, tenant: str, dead_letter_id: str) -> DeadLetter | None:
        return await self._look(lambda db: dead_letters.one(db, tenant, dead_letter_id))

    async def queue(self, tenant: str, name: str) -> Queue | None:
        return await self._look(lambda db: queues.one(db, tenant, name))

    async def queues(self, tenant: str) -> list[Queue]:
        return await self._look(lambda db: queues.all_of(db, tenant))

    async def url_group(self, tenant: str, name_or_id: str) -> UrlGroup | None:
        return await self._look(lambda db: url_groups.one(db, tenant, name_or_id), own=True)

    async def url_groups(self, tenant: str) -> list[UrlGroup]:
        return await self._look(lambda db: url_groups.all_of(db, tenant))

    async def schedule(self, tenant: str, schedule_id: str) -> ScheduleSeen | None:
        return await self._look(lambda db: schedules.one(db, tenant, schedule_id))

    async def schedules(self, tenant: str, *, bytes_max: int) -> list[ScheduleSeen]:
        return await self._look(lambda db: schedules.all_of(db, tenant, bytes_max=bytes_max))

    async def due_schedules(self, *, now_ms: int, count_max: int, bytes_max: int) -> DueSchedules:
        return await self._look(
            lambda db: schedules.due(db, now_ms=now_ms, count_max=count_max, bytes_max=bytes_max),
            own=True,
        )

    async def flow_key(self, tenant: str, name: str, *, now_ms: int) -> FlowKeyState | None:
        return await self._look(lambda db: flow_keys.seen(db, tenant, name, now_ms=now_ms))

    async def flow_keys(self, tenant: str, *, search: str = "", now_ms: int) -> list[FlowKeyState]:
        return await self._look(
            lambda db: flow_keys.all_seen(db, tenant, search=search, now_ms=now_ms)
        )

    async def tenants(self) -> list[Tenant]:
        return await self._look(people.tenants, own=True)

    async def tokens(self) -> list[Token]:
        return await self._look(people.tokens, own=True)

    async def changed(self) -> bool:
        version = await self._look(people.version, own=True)
        changed, self._people_version = version != self._people_version, version
        return changed

    async def pulse(self, *, now_ms: int) -> Pulse:
        shut = self.writer.shut.names()
        return await self._look(
            lambda db: upkeep.pulse(db, self._counts, shut=shut, now_ms=now_ms), own=True
        )

    async def _look(self, look: Callable[[Connection], Awaitable[T]], *, own: bool = False) -> T:
        """Run `look` on a snapshot, in its turn: the node's `own` wait for no caller's.

        Raises StoreUnavailable when the database is away.
        """
        async with (
            self._own if own else self._callers,
            snapshot(self._pool, "read the database") as db,
        ):
            return await look(db)

    # DeadLetters

    async def delete_dead_letters(self, tenant: str, ids: Sequence[str]) -> int:
        call = Delete(tenant, ids)
        deleted: int = await self.writer.call(dead_letters.delete, call)
        return deleted

    async def retry_dead_letters(
        self,
        tenant: str,
        ids: Sequence[str],
        new_message: NewMessage,
        *,
        queue_count_max: int = COUNT_MAX,
        now_ms: int,
    ) -> list[str | None]:
        call = Retry(tenant, ids, new_message, queue_count_max, now_ms)
        new_ids: list[str | None] = await self.writer.call(
            dead_letters.retry, call, size=FACTS_BYTES * len(ids)
        )
        return new_ids

    # UrlGroups

    async def change_url_group(
        self,
        tenant: str,
        name_or_id: str,
        change: ChangeOfGroup,
        *,
        count_max: int = COUNT_MAX,
    ) -> UrlGroup | None:
        call = GroupChange(tenant, name_or_id, change, count_max)
        kept: UrlGroup | None = await self.writer.call(url_groups.change, call)
        return kept

    # FlowKeys

    async def change_flow_key(
        self, tenant: str, name: str, change: ChangeOfFlowKey, *, now_ms: int
    ) -> FlowKey | None:
        call = KeyChange(tenant, name, change, now_ms)
        kept: FlowKey | None = await self.writer.call(permits.change, call)
        return kept

    # Queues

    async def put_queue(
        self,
        tenant: str,
        name: str,
        *,
        parallelism: int,
        paused: bool | None,
        count_max: int = COUNT_MAX,
        now_ms: int,
    ) -> None:
        call = Put(tenant, name, parallelism, paused, count_max, now_ms)
        await self.writer.call(queues.put, call)

    async def pause_queue(self, tenant: str, name: str, *, paused: bool, now_ms: int) -> bool:
        call = Pause(tenant, name, paused, now_ms)
        known: bool = await self.writer.call(queues.pause, call)
        return known

    async def empty_queue(
        self, tenant: str, name: str, *, mark: int | None, count_max: int, now_ms: int
    ) -> Emptied:
        call = Empty(tenant, name, mark, count_max, now_ms)
        emptied: Emptied = await self.writer.call(emptying.empty, call)
        return emptied

    # Keys

    async def rotate_keys(self, tenant_id: str, *, new_key: str) -> SigningKeys | None:
        call = Rotate(tenant_id, new_key)
        keys: SigningKeys | None = await self.writer.call(people.rotate_keys, call)
        return keys

    # Schedules

    async def change_schedule(
        self,
        tenant: str,
        schedule_id: str,
        change: ChangeOfSchedule,
        *,
        body: bytes | None = None,
        count_max: int = COUNT_MAX,
    ) -> Schedule | None:
        call = ScheduleChange(tenant, schedule_id, change, body, count_max)
        kept: Schedule | None = await self.writer.call(
            schedules.change, call, size=len(body or b"")
        )
        return kept

    async def fire(
        self,
        before: Schedule,
        after: Schedule,
        drafts: Sequence[Draft],
        *,
        births: Births,
        queue_count_max: int = COUNT_MAX,
        now_ms: int,
    ) -> bool:
        call = Firing(before, after, drafts, births, queue_count_max, now_ms)
        size = sum(len(draft.body) for draft in drafts) + FACTS_BYTES * len(drafts)
        fired: bool = await self.writer.call(schedules.fire, call, size=size)
        return fired

    async def put_off_schedule(
        self, tenant: str, schedule_id: str, *, until_ms: int, now_ms: int
    ) -> None:
        call = PutOff(tenant, schedule_id, until_ms, now_ms)
        await self.writer.call(schedules.put_off, call)

    # Upkeep

    async def prune(self, *, retention: Retention, now_ms: int) -> Pruned:
        pruned: Pruned = await self.writer.call(upkeep.prune, Prune(retention, now_ms))
        return pruned
