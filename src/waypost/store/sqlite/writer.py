"""The home of the one writer: calls that wait at the same moment share a transaction.

The SQL of a batch runs in the event loop, in a few statements; what waits for
the disk (the commit with its sync, and the checkpoint) runs in a thread.  The
measurements: docs/decisions/0002-the-writer-runs-in-the-loop.md.

    call ──┐                                 ┌─ result
    call ──┼─ BEGIN ─ SQL ─ COMMIT (thread) ─┼─ result
    call ──┘                                 └─ result

Patient calls, of which bulk work is made, have their turn when nobody else waits:
each in a transaction of its own, and many with one sync; see
docs/decisions/0015-bulk-calls-go-in-small-steps.md.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import apsw

from waypost.domain.errors import StoreBroken, StoreFull, StoreUnavailable
from waypost.domain.places import Places, Sign
from waypost.store.protocol import Claim, give_back_place, take_place
from waypost.store.sqlite.checkpoints import Checkpoints
from waypost.store.sqlite.database import BUSY_MS, query, sync

BATCH_CALLS_MAX = 256
BATCH_BYTES_MAX = 4 * 1024 * 1024
"""A batch is bounded; a larger call goes alone."""

BUSY_RETRY_MS = 5

UNSYNCED_MAX = 16
"""Patient calls that may wait for one sync."""

QUIET_S = 0.001
"""After a batch of others patient calls rest so long: those who were answered go on first."""

SYNC_REST_S = 0.02
"""How long they wait for the commit of somebody else, which would be their sync too."""

PASSED_OVER_MAX = 8
"""Batches that a patient call lets go first: then it has its turn, however many wait."""


class Numbers:
    """Numbers that only grow, across restarts too: the boot count, then a counter."""

    def __init__(self, boot: int) -> None:
        self._latest = boot << 40

    def next(self) -> int:
        self._latest += 1
        return self._latest


def boot(db: apsw.Connection) -> Numbers:
    """Count one more start; the numbers that this one may give."""
    [count] = query(db, "UPDATE boot SET count = count + 1 RETURNING count").fetchone()
    return Numbers(count)


class Batch:
    """One transaction's worth of calls: what operations need beside their arguments."""

    __slots__ = ("_data_version", "db", "next_turn_ms", "numbers", "on_commit", "on_rollback")

    def __init__(self, db: apsw.Connection, numbers: Numbers) -> None:
        self.db = db
        self.numbers = numbers
        self.on_commit: list[Callable[[], None]] = []
        self.on_rollback: list[Callable[[], None]] = []
        self.next_turn_ms: int | None = None
        self._data_version: int | None = None

    def changed_by_others(self) -> bool:
        """Whether another connection has written since this was last asked."""
        version = self.db.pragma("data_version")

        def asked() -> None:
            self._data_version = version

        self.on_commit.append(asked)  # a batch that fails has told nobody
        return bool(version != self._data_version)

    def take_place(self, places: Places, claim: Claim) -> None:
        """Take the claim's place, until it is given back or the transaction fails."""
        take_place(places, claim)
        self.on_rollback.append(lambda: give_back_place(places, claim, Sign.NONE))

    def someone_waits(self, turn_ms: int | None) -> None:
        """Note when a lane has its turn, if it has one."""
        if turn_ms is not None and (self.next_turn_ms is None or turn_ms < self.next_turn_ms):
            self.next_turn_ms = turn_ms


Operation = Callable[[Batch, list[Any]], Sequence[Any]]
"""Runs calls of one kind, given their arguments: a result each.  A result that is an
exception is raised to that caller alone; an exception that is raised undoes the batch."""


class _Call:
    __slots__ = ("arguments", "done", "operation", "size")

    def __init__(
        self, operation: Operation, arguments: Any, size: int, done: asyncio.Future[Any]
    ) -> None:
        self.operation = operation
        self.arguments = arguments
        self.size = size
        self.done = done

    def answer(self, result: Any) -> None:
        if self.done.done():
            return  # the caller has gone
        if isinstance(result, Exception):
            self.done.set_exception(result)
        else:
            self.done.set_result(result)


class Writer:
    """Merges the calls that wait at the same moment into one transaction.

    Calls of one operation run together; the operations named in `order` run
    first, in that order.  Of these, `growing` are refused when the disk is
    full, so that the others can go on.
    """

    def __init__(
        self, batch: Batch, *, order: Sequence[Operation], growing: Operation, in_memory: bool
    ) -> None:
        self.db = batch.db
        self.batch = batch
        self._order = {operation: place for place, operation in enumerate(order)}
        self._growing = growing
        self._in_memory = in_memory
        self._syncing = True
        self._waiting: list[_Call] = []
        self._patient: deque[_Call] = deque()
        self._unsynced: list[tuple[_Call, Any]] = []
        self._in_hand: list[_Call] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._log_synced = True
        self.db.set_busy_timeout(0)  # the event loop must not stand still; see `_begin`
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="waypost-sync")
        self._checkpoints: Checkpoints | None = None
        if not in_memory:
            self._checkpoints = Checkpoints(self.db, self._threads, self._wake.set)
            self.db.set_wal_hook(self._logged)
        self._task = self._loop.create_task(self._run(), name="store writer")
        self._task.add_done_callback(self._ended)
        self.broken: str | None = None
        self.on_batch: Callable[[int], None] = _ignore
        self.on_sync: Callable[[float], None] = _ignore
        self.on_waiting: Callable[[int], None] = _ignore

    def call(
        self, operation: Operation, arguments: Any, *, size: int = 0, patient: bool = False
    ) -> asyncio.Future[Any]:
        """Ask for `operation`; the answer comes when it is durable.

        `size` is about how many bytes the call adds to the batch.  A `patient` call lets
        all others go first.
        """
        done: asyncio.Future[Any] = self._loop.create_future()
        if self.broken is not None:
            done.set_exception(StoreBroken(self.broken))
        elif self._closing:
            done.set_exception(StoreUnavailable("the store is closed"))
        elif patient:
            self._patient.append(_Call(operation, arguments, size, done))
            if not self._unsynced:
                self._wake.set()
        else:
            self._waiting.append(_Call(operation, arguments, size, done))
            self._wake.set()
        return done

    async def close(self) -> None:
        """Finish what was asked, move the log into the database, and let go of the file."""
        self._closing = True
        self._wake.set()
        await asyncio.wait([self._task])
        self._threads.shutdown()
        self.db.close()
        if self._checkpoints is not None:
            self._checkpoints.close(whole=self.broken is None)

    async def _run(self) -> None:
        passed_over = 0
        while True:
            if self._patient and (not self._waiting or passed_over == PASSED_OVER_MAX):
                passed_over = 0
                await self._serve_patient()
            elif self._waiting:
                passed_over += bool(self._patient)
                calls = self._in_hand = self._take()
                self.on_batch(len(calls))
                await self._transact(calls)
                self._in_hand = []
                if self._patient:
                    await self._rest(QUIET_S)
            elif self._unsynced:  # whose sync was to be that of a batch, which has failed
                await self._sync()
            elif self._closing:
                return
            else:
                self._wake.clear()
                await self._wake.wait()
            await self._checkpoint()

    async def _serve_patient(self) -> None:
        """Run one patient call, and rest as long as it took, unless somebody calls meanwhile.

        It is synced with those before it, or with whatever is committed next.
        """
        began_s = self._loop.time()
        calls = self._in_hand = [self._patient.popleft()]
        await self._transact(calls, synced=self._in_memory)
        self._in_hand = []
        to_sync = self._unsynced and (not self._patient or len(self._unsynced) >= UNSYNCED_MAX)
        await self._rest(SYNC_REST_S if to_sync else self._loop.time() - began_s)
        if to_sync and not self._waiting:
            await self._sync()

    async def _rest(self, rest_s: float) -> None:
        """Rest, unless somebody calls that is not patient."""
        if self._waiting:
            return
        self._wake.clear()
        timer = self._loop.call_later(rest_s, self._wake.set)
        await self._wake.wait()
        timer.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A writer that fell over answers nobody any more, and says so."""
        fault = None if task.cancelled() else task.exception()
        if fault is not None and self.broken is None:
            self._break(f"the writer failed: {fault!r}", self._in_hand)

    def _break(self, why: str, calls: list[_Call]) -> None:
        self.broken = why
        unsynced = [call for call, _ in self._unsynced]
        for call in [*calls, *self._waiting, *unsynced, *self._patient]:
            call.answer(StoreBroken(why))
        self._waiting = []
        self._unsynced = []
        self._patient.clear()

    def _take(self) -> list[_Call]:
        size, taken = 0, 0
        for call in self._waiting:
            size += call.size
            if taken == BATCH_CALLS_MAX or (taken and size > BATCH_BYTES_MAX):
                break
            taken += 1
        calls, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return calls

    async def _transact(self, calls: list[_Call], *, synced: bool = True) -> None:
        batch = self.batch
        try:
            await self._begin(synced=synced)
            results = self._apply(calls)
            await self._commit(synced=synced)
        except Exception as fault:  # noqa: BLE001 -- each call is told; nothing is swallowed
            if self.db.in_transaction:
                with suppress(apsw.Error):  # the fault that is reported is the first one
                    self.db.execute("ROLLBACK")
            for undo in batch.on_rollback:
                undo()
            self._forget()
            await self._blame(calls, fault)
            return
        for follow in batch.on_commit:
            follow()
        if batch.next_turn_ms is not None:
            self.on_waiting(batch.next_turn_ms)
        self._forget()
        self._unsynced += results
        if self._log_synced:
            self._answer()
        elif synced:  # it wrote nothing, so that its COMMIT has synced nothing
            await self._sync()

    def _answer(self) -> None:
        """Tell the callers whose changes are on disk."""
        results, self._unsynced = self._unsynced, []
        for call, result in results:
            call.answer(result)

    def _forget(self) -> None:
        self.batch.on_commit = []
        self.batch.on_rollback = []
        self.batch.next_turn_ms = None

    async def _begin(self, *, synced: bool) -> None:
        """Take the write lock, which the command line may have for a moment."""
        if synced != self._syncing:
            self.db.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
            self._syncing = synced
        until_s = self._loop.time() + BUSY_MS / 1000
        while True:
            try:
                self.db.execute("BEGIN IMMEDIATE")
            except apsw.BusyError:
                if self._loop.time() >= until_s:
                    raise
            else:
                return
            await asyncio.sleep(BUSY_RETRY_MS / 1000)

    def _apply(self, calls: list[_Call]) -> list[tuple[_Call, Any]]:
        kinds: dict[Operation, list[_Call]] = {}
        for call in calls:
            kinds.setdefault(call.operation, []).append(call)
        results: list[tuple[_Call, Any]] = []
        for operation in sorted(kinds, key=lambda kind: self._order.get(kind, len(self._order))):
            same = kinds[operation]
            results += zip(
                same, operation(self.batch, [call.arguments for call in same]), strict=True
            )
        return results

    async def _commit(self, *, synced: bool) -> None:
        if self._in_memory or not synced:
            self.commit_now()
            return
        started_s = self._loop.time()
        await self._loop.run_in_executor(self._threads, self.commit_now)
        self.on_sync(self._loop.time() - started_s)

    def commit_now(self) -> None:
        """Commit, and wait for the disk where `synchronous` is FULL."""
        self.db.execute("COMMIT").close()

    async def _sync(self) -> None:
        """Bring to the disk what was committed without."""
        try:
            await self._loop.run_in_executor(self._threads, self._sync_now)
        except OSError as fault:
            self._break(f"the database failed: {fault}", [])
        else:
            self._log_synced = True
            self._answer()

    def _sync_now(self) -> None:
        log = os.open(self.db.filename_wal, os.O_RDONLY)
        try:
            sync(log)
        finally:
            os.close(log)

    async def _blame(self, calls: list[_Call], fault: Exception) -> None:
        """Tell everyone of a fault that is nobody's; else find whose it is."""
        if isinstance(fault, apsw.FullError):
            full = StoreFull("the disk is full")
            rest = [call for call in calls if call.operation != self._growing]
            for call in calls:
                if call.operation == self._growing or len(rest) == len(calls):
                    call.answer(full)
            if rest and len(rest) < len(calls):
                await self._transact(rest)
        elif isinstance(fault, apsw.BusyError):
            for call in calls:
                call.answer(StoreUnavailable(f"the database is busy: {fault}"))
        elif isinstance(fault, _DISK_FAULTS):
            # After a failed sync nobody can tell what is on disk: only opening it again can.
            self._break(f"the database failed: {type(fault).__name__}: {fault}", calls)
        elif len(calls) == 1:
            calls[0].answer(fault)
        else:
            for call in calls:
                await self._transact([call])

    async def _checkpoint(self) -> None:
        if self._checkpoints is None:
            return
        try:
            await self._checkpoints.go_on()
        except apsw.FullError:
            pass  # the log goes on growing from the reserve; the next commit will tell
        except apsw.Error as fault:
            await self._blame([], fault)
        except OSError as fault:
            self._break(f"the database failed: {fault}", [])

    def _logged(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        assert self._checkpoints is not None
        self._checkpoints.logged(pages)
        self._log_synced = self._syncing
        return int(apsw.SQLITE_OK)


_DISK_FAULTS = (apsw.IOError, apsw.CorruptError, apsw.NotADBError, apsw.CantOpenError)


def _ignore(_figure: float) -> None:
    """What nobody asked to be told."""
