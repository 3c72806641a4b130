"""The home of the kill -9 harness: load, kills at chosen moments, restarts, drain, verdict.

A kill is aimed.  Random moments almost never hit an attempt in flight, so most
wait for one of these and strike within milliseconds of it:

| aim     | strikes                                                         |
| ------- | --------------------------------------------------------------- |
| attempt | 0-20 ms after a request came to the receiver                     |
| outcome | 0-5 ms after it was answered: about when it is settled           |
| publish | 0-4 ms after a publish was written, so often before its answer   |
| ack     | 0-3 ms after an acknowledgement                                  |
| start   | while the server starts: it migrates, takes over, recovers       |
| random  | within half a second                                             |

After each kill the files are copied, and the copy says what was claimed and
unsettled (so many duplicates are allowed), whether it is sound (I11), and whether
an outcome and its callbacks are ever apart.
"""

import asyncio
import contextlib
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apsw
from msgspec import Struct

from tests.crash.load import (
    ENDPOINTS,
    Caller,
    Load,
    Receiver,
    Unknown,
    dead_letters,
    gauges,
    now_s,
)
from tests.support.history import History, Kill, Verdict
from tests.support.ledger import Ledger, read_ledger
from tests.support.process import WAYPOST, Process, Program

AIMS = (*["attempt"] * 4, *["outcome"] * 2, "publish", "ack", "start", "random")
CHANCE = {"attempt": 0.05, "outcome": 0.05, "publish": 0.05, "ack": 0.05}
QUIET_S_MAX = 0.6
MOMENT_S_MAX = 2.0
DRAIN_S_MAX = 40


class Run(Struct):
    """What a run came to: the oracle's verdict and what the files said (I9, I11)."""

    verdict: Verdict
    aims: dict[str, int]
    unsound: list[str]
    left: list[str]
    refused: list[tuple[int, Any]]
    first_delivery_s_max: float
    took_s: float

    @property
    def clean(self) -> bool:
        return not (self.verdict.findings or self.unsound or self.left or self.refused)

    def __str__(self) -> str:
        aims = ", ".join(f"{aim} {count}" for aim, count in self.aims.items())
        return (
            f"{self.verdict}; unsound or apart {len(self.unsound)}, left over {len(self.left)}; "
            f"aims: {aims}; first delivery <= {self.first_delivery_s_max:.2f} s after a start; "
            f"{self.took_s:.0f} s"
        )


async def outlast(seconds: float) -> None:
    """Let time pass, where that alone is what there is to wait for."""
    await asyncio.sleep(seconds)


async def eventually(holds: Callable[[], Any], *, within_s: float, pause_s: float = 0.02) -> bool:
    """Poll until `holds` (which may be a coroutine function) does; whether it came to hold."""
    end_s = now_s() + within_s
    while now_s() < end_s:
        found = holds()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return True
        await asyncio.sleep(pause_s)
    return False


class Killer:
    """Strikes the process at an aimed moment.  Told of moments by receiver and publishers."""

    def __init__(self, process: Program, rng: random.Random) -> None:
        self.struck = asyncio.Event()
        self.at_s = 0.0
        self._process = process
        self._rng = rng
        self._aim = ""

    def attempt(self) -> None:
        self._moment("attempt", within_s=0.02)

    def outcome(self) -> None:
        self._moment("outcome", within_s=0.005)

    def publish(self) -> None:
        self._moment("publish", within_s=0.004)

    def ack(self) -> None:
        self._moment("ack", within_s=0.003)

    def _moment(self, aim: str, *, within_s: float) -> None:
        if self._aim == aim and self._rng.random() < CHANCE[aim]:
            self._aim = ""
            asyncio.get_running_loop().call_later(self._rng.uniform(0, within_s), self._strike)

    def _strike(self) -> None:
        if not self.struck.is_set():
            self.at_s = now_s()
            self._process.strike()
            self.struck.set()

    async def kill(self, aim: str) -> None:
        """Wait for a moment of that kind, and strike; at the latest after `MOMENT_S_MAX`."""
        self.struck.clear()
        self._aim = aim
        latest_s = self._rng.uniform(0, 0.5) if aim == "random" else MOMENT_S_MAX
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(latest_s):
                await self.struck.wait()
        self._aim = ""
        self._strike()


async def run_kills(
    place: Path,
    *,
    seed: int,
    kills: int,
    program: Sequence[str] = WAYPOST,
    aims: Sequence[str] = AIMS,
    until: Callable[[History], bool] | None = None,
) -> Run:
    """One run on one file.  `until` ends the kills early."""
    began_s = now_s()
    rng = random.Random(seed)
    history = History()
    database = place / "queue.db"
    process = Process(database, program=program)
    killer = Killer(process, rng)
    receiver = Receiver(history, random.Random(rng.random()))
    load = Load(process, receiver, history, rng)
    receiver.on_begin, receiver.on_answered = killer.attempt, killer.outcome
    load.on_written, load.on_acked = killer.publish, killer.ack
    deck: list[str] = []
    struck: dict[str, int] = {}
    unsound: list[str] = []
    waits_s = [0.0]
    try:
        async with receiver.listening():
            await process.start()
            load.serving(True)
            load.start()
            for nth in range(kills):
                deck = deck or rng.sample(aims, len(aims))
                aim = deck.pop()
                struck[aim] = struck.get(aim, 0) + 1
                if aim == "start" and not process.running:
                    await process.spawn()
                    await killer.kill("random")
                else:
                    if not process.running:
                        await process.start()
                    started_s, begun = now_s(), len(history.attempts)
                    load.serving(True)
                    quiet_s = rng.uniform(0, QUIET_S_MAX)
                    await eventually(lambda: False, within_s=quiet_s)
                    await killer.kill("random" if aim == "start" else aim)
                    first = [each.begin_s for each in history.attempts[begun : begun + 1]]
                    waits_s += [each - started_s for each in first]
                load.serving(False)
                await process.ended()
                kill, faults = examine(database, place / f"killed-{nth}", at_s=killer.at_s)
                history.kills.append(kill)
                unsound += faults
                if until is not None and until(history):
                    break
            receiver.faulty = False
            await process.start()
            load.serving(True)
            await load.stop()
            caller = Caller(process)

            async def idle() -> bool:
                now = await gauges(caller)
                return not (now["waypost_messages_waiting"] or now["waypost_messages_claimed"])

            drained = await eventually(idle, within_s=DRAIN_S_MAX, pause_s=0.1)
            history.dead = await dead_letters(caller)
            caller.close()
            code = await process.stop()
            left = [] if drained else [f"not drained in {DRAIN_S_MAX} s"]
            left += [] if code == 0 else [f"SIGTERM ended in {code}: {process.said()}"]
            left += left_over(database)
            unsound += soundness(database)
            history.ledger = ledger_of(database)
    finally:
        await process.kill() if process.running else None
    return Run(
        history.judge(),
        struck,
        unsound,
        left,
        load.refused,
        max(waits_s),
        now_s() - began_s,
    )


def examine(database: Path, copy: Path, *, at_s: float) -> tuple[Kill, list[str]]:
    """Look at a copy of what a kill left: what was claimed, and what is wrong with it."""
    copy.mkdir()
    for suffix in ("", "-wal"):
        file = database.with_name(database.name + suffix)
        if file.exists():
            shutil.copy(file, copy / file.name)
    db = apsw.Connection(str(copy / database.name))
    try:
        claimed = frozenset[str]()
        if db.pragma("user_version"):
            rows = db.execute("SELECT message_id FROM delivery WHERE token IS NOT NULL")
            claimed = frozenset(str(message_id) for (message_id,) in rows)
    finally:
        db.close()
    faults = soundness(copy / database.name)
    faults += ledger_of(copy / database.name).apart(fan_out=ENDPOINTS)
    if not faults:
        shutil.rmtree(copy)
    return Kill(at_s, now_s(), claimed), faults


def soundness(database: Path) -> list[str]:
    """What SQLite finds wrong with a file (I11); nothing, where all is well."""
    db = apsw.Connection(str(database))
    try:
        found = [str(row[0]) for row in db.execute("PRAGMA integrity_check")]
        found = [] if found == ["ok"] else found
        return found + [str(row) for row in db.execute("PRAGMA foreign_key_check")]
    finally:
        db.close()


def ledger_of(database: Path) -> Ledger:
    """What a file says of outcomes and callbacks."""
    db = apsw.Connection(str(database))
    try:
        return read_ledger(db)
    finally:
        db.close()


def left_over(database: Path) -> list[str]:
    """Rows that nobody should have left when nothing waits (I9)."""
    db = apsw.Connection(str(database))
    try:
        return [
            f"{count} rows in {table}"
            for table in ("delivery", "hold", "lane")
            for (count,) in db.execute(f"SELECT count(*) FROM {table}")
            if count
        ]
    finally:
        db.close()


__all__ = ["AIMS", "Run", "Unknown", "eventually", "run_kills"]
