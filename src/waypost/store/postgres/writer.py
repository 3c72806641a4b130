"""The home of writing: calls of one kind that wait at the same moment share a transaction.

Each kind of call has a line of its own, so that adds, claims and settles go on side by
side, on this node as between nodes.  What they have in common are rows, and these are
locked in one order by everyone; see `Batch.lock`.

    call ──┐                                          ┌─ result
    call ──┼─ BEGIN ─ locks ─ arrays of rows ─ COMMIT ─┼─ result
    call ──┘                                          └─ result
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import asyncpg

from waypost.domain.errors import StoreUnavailable
from waypost.domain.lanes import Place, key_of, queue_of
from waypost.domain.places import Places, Sign
from waypost.store.postgres.database import LOST, Connection, columns, lent, problem_of
from waypost.store.postgres.shut import Shut
from waypost.store.protocol import Claim, give_back_place, take_place

BATCH_CALLS_MAX = 256
BATCH_BYTES_MAX = 4 * 1024 * 1024
"""A batch is bounded; a larger call goes alone."""

BLOCK_BITS = 20
"""A transaction takes a block of so many numbers at once."""

NAMES = 1024
"""So many names of rows that are not there are told apart by locks."""

TRIES_MAX = 5
"""How often a transaction is run again that another one got in the way of."""

NOW_MS = "(SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint)"
"""The database's clock, which leases go by, as a table of one row."""

_BLOCK = "nextval('number_block')"
_WITH_AN_ID = " FROM pg_current_xact_id()"


class InTheWay(Exception):
    """Something has changed between two looks at it: the transaction is run again."""


_IN_THE_WAY = (
    InTheWay,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.UniqueViolationError,
    asyncpg.CheckViolationError,  # the log got a part for the day just as it was written to
)


class Numbers:
    """Numbers that only grow, on all nodes together: a block for each transaction."""

    def __init__(self, block: int) -> None:
        self._latest = block << BLOCK_BITS
        self._end = (block + 1) << BLOCK_BITS

    def next(self) -> int:
        self._latest += 1
        assert self._latest < self._end
        return self._latest


class Batch:
    """One transaction's worth of calls: what operations need beside their arguments."""

    __slots__ = (
        *("_in_hand", "db", "lease", "next_turn_ms", "node", "numbers"),
        *("on_commit", "on_rollback", "shut"),
    )

    def __init__(
        self, db: Connection, *, node: int, lease: int, shut: Shut, in_hand: set[tuple[int, int]]
    ) -> None:
        self.db = db
        self.node = node
        self.lease = lease
        self.shut = shut
        self._in_hand = in_hand
        self.numbers: Numbers
        self.on_commit: list[Callable[[], None]] = []
        self.on_rollback: list[Callable[[], None]] = []
        self.next_turn_ms: int | None = None

    async def lock(
        self,
        places: Iterable[Place] = (),
        *,
        keys: Iterable[Place] = (),
        made: Iterable[Place] = (),
    ) -> set[Place]:
        """Keep others from what these lanes are made of until this transaction ends, and
        take numbers, which are larger than those of whoever had the same lanes before.

        Answers those of the lanes in which something waits.  One that joins the others later
        is not locked.

        Everyone locks rows in one order, so that nobody waits in a circle: dedup keys, queues,
        flow-control keys, lanes, each by name, and deliveries by number.  `keys` are by
        their names, and `made` the queues and keys that this transaction has made.  To be
        called once, before what they are made of is read.
        """
        places, made = set(places), set(made)
        queues = {(tenant, queue) for tenant, lane in places if (queue := queue_of(lane))}
        named = {(tenant, key) for tenant, lane in places if (key := key_of(lane))} | set(keys)
        await self._lock_named("queue", queues, made)
        await self._lock_named("flow_key", named, made)
        locked = await self.lock_rows("lane", "lane", places)
        await self.take_numbers()
        return locked

    async def _lock_named(self, table: str, names: set[Place], made: set[Place]) -> None:
        """Lock rows; and where there are none the names, so that nobody makes them meanwhile or
        has made them already, unseen.

        Those who make them share the lock, for of these one waits for the other in any case.
        """
        there = await self.lock_rows(table, "name", names)
        if names & made:
            await self._lock_names(table, names & made, how="pg_advisory_xact_lock_shared")
        if missing := names - there:
            await self._lock_names(table, missing, how="pg_advisory_xact_lock")
            await self.lock_rows(table, "name", missing)

    async def _lock_names(self, table: str, names: set[Place], *, how: str) -> None:
        await self.db.execute(
            f"SELECT {how}(hashtext($3), nth) FROM (SELECT DISTINCT"
            f" hashtext(tenant || ' ' || name) & {NAMES - 1} AS nth"
            " FROM unnest($1::text[], $2::text[]) n (tenant, name) ORDER BY nth) o",
            *columns(names),
            table,
        )

    async def lock_rows(self, table: str, column: str, names: Iterable[Place]) -> set[Place]:
        """Lock the rows of these names that are there, in order; their names."""
        names = list(names)
        if not names:
            return set()
        rows = await self.db.fetch(
            f"SELECT r.tenant, r.{column} FROM {table} r"
            " JOIN unnest($1::text[], $2::text[]) n (tenant, name)"
            f" ON r.tenant = n.tenant AND r.{column} = n.name"
            f" ORDER BY r.tenant, r.{column} FOR UPDATE OF r",
            *columns(names),
        )
        return {(row[0], row[1]) for row in rows}

    async def take_numbers(self) -> None:
        """Take numbers: after the locks, so that they grow as lanes pass from hand to hand.

        The transaction has its id before: to whoever sees a number that is larger than one of
        these, it is one of those that are under way, or over.
        """
        self.numbers = Numbers(await self.db.fetchval(f"SELECT {_BLOCK}{_WITH_AN_ID}"))

    async def may_claim(self, *, with_numbers: bool = False) -> bool:
        """Whether the node's lease goes on.  Until this transaction ends nobody takes over what
        it claims.  One that has nothing to lock takes its numbers in the same look."""
        row = await self.db.fetchrow(
            f"SELECT {_BLOCK if with_numbers else 'NULL'}, (SELECT until_ms > n.now_ms"
            f"  FROM node, {NOW_MS} n (now_ms) WHERE id = $1 FOR KEY SHARE OF node){_WITH_AN_ID}",
            self.node,
        )
        assert row is not None
        if with_numbers:
            self.numbers = Numbers(row[0])
        return bool(row[1])

    def take_place(self, places: Places, claim: Claim) -> None:
        """Take the claim's place, until it is given back or the transaction fails."""
        take_place(places, claim)
        self.on_rollback.append(lambda: give_back_place(places, claim, Sign.NONE))
        name = claim.number, claim.token
        self._in_hand.add(name)
        self.on_rollback.append(lambda: self._in_hand.discard(name))

    def someone_waits(self, turn_ms: int | None) -> None:
        """Note when a lane has its turn, if it has one."""
        if turn_ms is not None and (self.next_turn_ms is None or turn_ms < self.next_turn_ms):
            self.next_turn_ms = turn_ms


C = TypeVar("C")
R = TypeVar("R")

Operation = Callable[[Batch, list[Any]], Awaitable[Sequence[Any]]]
"""Runs calls of one kind, given their arguments: a result each.  A result that is an
exception is raised to that caller alone; an exception that is raised undoes the batch."""


async def one_by_one(
    batch: Batch,
    calls: Sequence[C],
    about: Callable[[C], Place],
    run: Callable[[Batch, C], Awaitable[R]],
) -> list[R]:
    """Run calls by the names of what they are `about`, for that is the order of locks; their
    results in the order of the calls."""
    order = sorted(range(len(calls)), key=lambda n: about(calls[n]))
    results = {n: await run(batch, calls[n]) for n in order}
    return [results[n] for n in range(len(calls))]


class _Call:
    __slots__ = ("arguments", "done", "size")

    def __init__(self, arguments: Any, size: int, done: asyncio.Future[Any]) -> None:
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


class Line:
    """The calls of one kind, which wait for their turn to be one transaction."""

    def __init__(self, writer: "Writer", operation: Operation) -> None:
        self._writer = writer
        self._operation = operation
        self._waiting: list[_Call] = []
        self._wake = asyncio.Event()
        self.asked = 0
        self._ran = 0
        self._batch_ended = asyncio.Event()
        self.task = asyncio.create_task(self._run(), name=f"store {operation.__name__}")

    def call(self, call: _Call) -> None:
        self._waiting.append(call)
        self.asked += 1
        self._wake.set()

    async def have_run(self, count: int) -> None:
        """Wait until so many calls have been run, be their callers still there or not."""
        while self._ran < count:
            await self._batch_ended.wait()

    async def _run(self) -> None:
        while True:
            if self._waiting:
                calls = self._take()
                await self._writer.transact(self._operation, calls)
                self._ran += len(calls)
                self._batch_ended.set()  # wakes those who wait now
                self._batch_ended.clear()
            elif self._writer.closing:
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    def stop(self) -> None:
        """End, once nothing waits any more."""
        self._wake.set()

    def _take(self) -> list[_Call]:
        size, taken = 0, 0
        for call in self._waiting:
            size += call.size
            if taken == BATCH_CALLS_MAX or (taken and size > BATCH_BYTES_MAX):
                break
            taken += 1
        calls, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return calls


class Writer:
    """Runs operations in transactions.

    `node` is who claims are written down for, and `lease` says which of its leases it is.
    `in_hand` are the claims that it knows of, by number and token.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self.node = 0
        self.lease = 0
        self.in_hand: set[tuple[int, int]] = set()
        self.shut = Shut()
        self.closing = False
        self._lines: dict[Operation, Line] = {}
        self.on_batch: Callable[[int], None] = _ignore
        self.on_sync: Callable[[float], None] = _ignore
        self.on_waiting: Callable[[int], None] = _ignore

    def call(self, operation: Operation, arguments: Any, *, size: int = 0) -> asyncio.Future[Any]:
        """Ask for `operation`; the answer comes when it is durable.

        `size` is about how many bytes the call adds to the batch.
        """
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.closing:
            done.set_exception(StoreUnavailable("the store is closed"))
            return done
        line = self._lines.get(operation)
        if line is None:
            line = self._lines[operation] = Line(self, operation)
        line.call(_Call(arguments, size, done))
        return done

    async def catch_up(self) -> None:
        """Return once what was asked before has been run, in all lines."""
        for line, asked in [(line, line.asked) for line in self._lines.values()]:
            await line.have_run(asked)

    async def close(self) -> None:
        """Finish what was asked."""
        self.closing = True
        for line in self._lines.values():
            line.stop()
        await asyncio.gather(*(line.task for line in self._lines.values()))

    async def transact(self, operation: Operation, calls: list[_Call]) -> None:
        """Run calls in one transaction; where it fails, singly, so that only the guilty fails."""
        self.on_batch(len(calls))
        for again in range(TRIES_MAX, -1, -1):
            try:
                results = await self._try(operation, calls)
            except Exception as fault:  # noqa: BLE001 -- each call is told; nothing is swallowed
                if again and isinstance(fault, _IN_THE_WAY):
                    continue
                await self._blame(operation, calls, fault)
            else:
                for call, result in zip(calls, results, strict=True):
                    call.answer(result)
            return

    async def _try(self, operation: Operation, calls: list[_Call]) -> Sequence[Any]:
        batch: Batch | None = None
        loop = asyncio.get_running_loop()
        try:
            async with lent(self._pool) as db:
                unsure: list[str] = []
                listener = _listener(unsure)
                batch = Batch(
                    db, node=self.node, lease=self.lease, shut=self.shut, in_hand=self.in_hand
                )
                transaction = db.transaction()
                await transaction.start()
                try:
                    results = await operation(batch, [call.arguments for call in calls])
                except BaseException:
                    with suppress(*LOST):  # then it is rolled back already
                        await transaction.rollback()
                    raise
                db.add_log_listener(listener)
                began_s = loop.time()
                await transaction.commit()
                self.on_sync(loop.time() - began_s)
                with suppress(*LOST):
                    db.remove_log_listener(listener)
                if unsure:
                    raise StoreUnavailable(f"the commit may be lost: {unsure[0]}")
        except BaseException:
            if batch is not None:
                for undo in batch.on_rollback:
                    undo()
            raise
        for follow in batch.on_commit:
            follow()
        if batch.next_turn_ms is not None:
            self.on_waiting(batch.next_turn_ms)
        return results

    async def _blame(self, operation: Operation, calls: list[_Call], fault: Exception) -> None:
        """Tell everyone of a fault that is nobody's; else find whose it is."""
        problem = fault if isinstance(fault, StoreUnavailable) else problem_of(fault, "write")
        if problem is not None or len(calls) == 1:
            for call in calls:
                call.answer(problem or fault)
        else:
            for call in calls:
                await self.transact(operation, [call])


def _listener(unsure: list[str]) -> Callable[[Any, Any], None]:
    """Notes that a commit no longer waits for the standby that it should be on (01000)."""

    def listen(_db: Any, message: Any) -> None:
        if message.sqlstate == "01000":
            unsure.append(str(message))

    return listen


def _ignore(_figure: float) -> None:
    """What nobody asked to be told."""
