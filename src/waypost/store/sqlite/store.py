"""The SQLite engine, assembled: `Store` as the protocol promises it."""

from collections.abc import Sequence
from contextlib import ExitStack

from waypost.domain.attempt import Outcome, Verdict
from waypost.domain.errors import LimitReached, Problem, StoreBroken, StoreFull
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
from waypost.store.sqlite import (
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
from waypost.store.sqlite.database import FileLock, as_problems, connect, migrate, transaction
from waypost.store.sqlite.readers import Readers
from waypost.store.sqlite.writer import Batch, Writer, boot

MEMORY = ":memory:"

FACTS_BYTES = 1_000
"""About what a message takes beside its body."""


class SqliteStore:
    """One file, or memory.  Open it with `open_store`."""

    def __init__(self, path: str, *, free_bytes_min: int, now_ms: int) -> None:
        """Take the server's lock, bring the schema up to date, and take over what was claimed.

        Raises Locked, SchemaTooNew, StoreFull and StoreUnavailable; then nothing was
        changed.
        """
        self._path = path
        self._in_memory = path == MEMORY
        self._free_bytes_min = free_bytes_min
        self._claim = claiming.Claims().claim
        self._prune = upkeep.Pruner().prune
        self._counts = Kept()
        with ExitStack() as opened:
            if not self._in_memory:
                opened.callback(FileLock(path).close)
            db = connect(path)
            opened.callback(db.close)
            migrate(db)
            with as_problems("take over the database"), transaction(db):
                batch = Batch(db, boot(db))
                self.interrupted = settling.take_over(batch, now_ms=now_ms)
            self._opened = opened.pop_all()
        self.writer = Writer(
            batch,
            order=[settling.settle, settling.release, settling.cancel, self._add],
            growing=self._add,
            in_memory=self._in_memory,
        )
        self._readers = Readers(path, shared=db if self._in_memory else None)

    def vital(self) -> str | None:
        return None

    async def close(self) -> None:
        """Finish what was asked and let go of the file."""
        self._readers.close()
        await self.writer.close()
        self._opened.close()

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
        accepted: list[Accepted] = await self.writer.call(self._add, call, size=size)
        return accepted

    def _add(self, batch: Batch, calls: list[Add]) -> Sequence[list[Accepted] | Problem]:
        refusing = self._refusing()
        if refusing is not None:
            return [StoreFull(refusing) for _ in calls]
        return adding.add(batch, calls)

    def _refusing(self) -> str | None:
        """Why publishes are refused, or None."""
        if self._in_memory or upkeep.free_bytes(self._path) >= self._free_bytes_min:
            return None
        return "the disk is nearly full: no new messages until there is room"

    async def claim(self, *, count_max: int, places: Places, now_ms: int) -> Claimed:
        ask = Ask(count_max, places, now_ms)
        claimed: Claimed = await self.writer.call(self._claim, ask)
        return claimed

    def may_begin(self, claim: Claim) -> bool:
        return True

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
        logged: Logged = await self.writer.call(settling.settle, call, size=size)
        return logged

    async def release(self, claims: Sequence[Claim], *, now_ms: int) -> None:
        await self.writer.call(settling.release, Release(claims, now_ms))

    async def cancel(self, tenant: str, message_id: str, *, now_ms: int) -> Cancelled:
        call = Cancel(tenant, message_id, now_ms)
        cancelled: Cancelled = await self.writer.call(settling.cancel, call)
        return cancelled

    async def cancel_many(self, tenant: str, message_ids: Sequence[str], *, now_ms: int) -> int:
        call = CancelMany(tenant, message_ids, now_ms)
        cancelled: int = await self.writer.call(
            settling.cancel_many, call, patient=len(message_ids) > 1
        )
        return cancelled

    # Reader

    async def message(self, tenant: str, message_id: str) -> tuple[Message, bytes] | None:
        return await self._readers.look(lambda db: messages.one(db, tenant, message_id))

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
        return await self._readers.look(
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
        return await self._readers.look(
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
        return await self._readers.look(
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
        return await self._readers.look(
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
        return await self._readers.look(lambda db: dead_letters.one(db, tenant, dead_letter_id))

    async def queue(self, tenant: str, name: str) -> Queue | None:
        return await self._readers.look(lambda db: queues.one(db, tenant, name))

    async def queues(self, tenant: str) -> list[Queue]:
        return await self._readers.look(lambda db: queues.all_of(db, tenant))

    async def url_group(self, tenant: str, name_or_id: str) -> UrlGroup | None:
        return await self._readers.look(lambda db: url_groups.one(db, tenant, name_or_id))

    async def url_groups(self, tenant: str) -> list[UrlGroup]:
        return await self._readers.look(lambda db: url_groups.all_of(db, tenant))

    async def schedule(self, tenant: str, schedule_id: str) -> ScheduleSeen | None:
        return await self._readers.look(lambda db: schedules.one(db, tenant, schedule_id))

    async def schedules(self, tenant: str, *, bytes_max: int) -> list[ScheduleSeen]:
        return await self._readers.look(
            lambda db: schedules.all_of(db, tenant, bytes_max=bytes_max)
        )

    async def due_schedules(self, *, now_ms: int, count_max: int, bytes_max: int) -> DueSchedules:
        return await self._readers.look(
            lambda db: schedules.due(db, now_ms=now_ms, count_max=count_max, bytes_max=bytes_max)
        )

    async def flow_key(self, tenant: str, name: str, *, now_ms: int) -> FlowKeyState | None:
        return await self._readers.look(lambda db: flow_keys.seen(db, tenant, name, now_ms=now_ms))

    async def flow_keys(self, tenant: str, *, search: str = "", now_ms: int) -> list[FlowKeyState]:
        return await self._readers.look(
            lambda db: flow_keys.all_seen(db, tenant, search=search, now_ms=now_ms)
        )

    async def tenants(self) -> list[Tenant]:
        return await self._readers.look(people.tenants)

    async def tokens(self) -> list[Token]:
        return await self._readers.look(people.tokens)

    async def changed(self) -> bool:
        changed: bool = await self.writer.call(_changed, None)
        return changed

    async def pulse(self, *, now_ms: int) -> Pulse:
        if self.writer.broken is not None:
            raise StoreBroken(self.writer.broken)
        free = 0 if self._in_memory else upkeep.free_bytes(self._path)
        return await self._readers.look(
            lambda db: upkeep.pulse(
                db, self._counts, free=free, refusing=self._refusing(), now_ms=now_ms
            )
        )

    # DeadLetters

    async def delete_dead_letters(self, tenant: str, ids: Sequence[str]) -> int:
        call = Delete(tenant, ids)
        deleted: int = await self.writer.call(dead_letters.delete, call, patient=len(ids) > 1)
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
            self._retry, call, size=FACTS_BYTES * len(ids), patient=len(ids) > 1
        )
        return new_ids

    def _retry(self, batch: Batch, calls: list[Retry]) -> Sequence[list[str | None] | Problem]:
        return dead_letters.retry(batch, calls, refusing=self._refusing())

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
        kept: UrlGroup | None = await self.writer.call(self._change_url_groups, call)
        return kept

    def _change_url_groups(
        self, batch: Batch, calls: list[GroupChange]
    ) -> Sequence[UrlGroup | Exception | None]:
        return url_groups.change(batch, calls, refusing=self._refusing())

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
            self._change_schedules, call, size=len(body or b"")
        )
        return kept

    def _change_schedules(
        self, batch: Batch, calls: list[ScheduleChange]
    ) -> Sequence[Schedule | Exception | None]:
        return schedules.change(batch, calls, refusing=self._refusing())

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
        fired: bool = await self.writer.call(self._fire, call, size=size)
        return fired

    def _fire(self, batch: Batch, calls: list[Firing]) -> Sequence[bool | StoreFull | LimitReached]:
        return schedules.fire(batch, calls, refusing=self._refusing())

    async def put_off_schedule(
        self, tenant: str, schedule_id: str, *, until_ms: int, now_ms: int
    ) -> None:
        call = PutOff(tenant, schedule_id, until_ms, now_ms)
        await self.writer.call(schedules.put_off, call)

    # Upkeep

    async def prune(self, *, retention: Retention, now_ms: int) -> Pruned:
        pruned: Pruned = await self.writer.call(self._prune, Prune(retention, now_ms))
        return pruned


def _changed(batch: Batch, calls: list[None]) -> list[bool]:
    return [batch.changed_by_others() for _ in calls]
