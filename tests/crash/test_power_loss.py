"""Whatever was acknowledged is on disk when the power goes; with NORMAL it is not (P1, A3).

Nor does the power ever part an outcome and its callbacks, or the messages of a fan-out.
"""

import asyncio
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import DEVNULL

import apsw
import pytest
from msgspec import Struct

from tests.crash.harness import eventually
from tests.crash.load import ENDPOINTS, Load, Receiver
from tests.crash.power import IMAGES, calls, crashes, strace
from tests.support.history import History, digest
from tests.support.ledger import Ledger, read_ledger
from tests.support.process import WAYPOST, Process, clean_environ
from waypost.store.sqlite.store import SqliteStore

PLANTED = str(Path(__file__).with_name("planted.py"))
SEED = int(os.environ.get("CRASH_SEED", "2"))
FAST = Path("/dev/shm")

Say = Callable[[str], None]

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace is not installed: no system-call log to replay"
)


class Found(Struct):
    """What the images of one log came to."""

    points: int = 0
    images: int = 0
    writes: int = 0
    syncs: int = 0
    acked: int = 0
    callbacks: int = 0
    fan_outs: int = 0
    faults: list[str] = []
    lossy: Counter[str] = Counter()
    lost_max: int = 0

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {self.lossy[kind]}" for kind in IMAGES if self.lossy[kind])
        return (
            f"{self.points} crash points of {self.writes} writes and {self.syncs} syncs, "
            f"{self.images} images, up to {self.acked} acknowledged, "
            f"{self.fan_outs} fan-outs and {self.callbacks} callbacks due; "
            f"images with a loss: {sum(self.lossy.values())} ({kinds or 'none'}), "
            f"at most {self.lost_max} lost; unsound, apart or unopenable: {len(self.faults)}"
        )


async def record(
    place: Path, *, acks: int, seed: int, program: Sequence[str] = WAYPOST
) -> tuple[Path, dict[str, str]]:
    """Log a server under load: fresh, ended by SIGTERM, started again, ended by SIGKILL.

    The log, and the digest of the body of each message.
    """
    log = place / "calls.log"
    data = place / "data"
    data.mkdir(mode=0o700)
    history = History()
    process = Process(data / "queue.db", program=[*strace(log), *program], log=place / "server.log")
    try:
        async with Receiver(history, random.Random(seed)).listening() as receiver:
            for nth in (1, 2):
                rng = random.Random(seed + nth)
                load = Load(process, receiver, history, rng, name=f"run{nth}-")
                await process.start()
                load.serving(True)
                load.start()

                def enough(least: int = nth * acks // 2) -> bool:
                    return sum(len(each.ids) for each in history.submits.values()) >= least

                assert await eventually(enough, within_s=60)
                await load.stop()
                assert load.refused == []
                if nth == 1:
                    assert await process.stop() == 0, process.said()
            process.signal(9)
            await process.ended()
    finally:
        if process.running:
            await process.kill()
    return log, {each: s.body for s in history.submits.values() for each in s.ids}


async def examine(
    log: Path, bodies: dict[str, str], place: Path, *, points: int, seed: int
) -> Found:
    """Open the images of `points` crashes with the server's own store."""
    found = Found(faults=[], lossy=Counter())
    rng = random.Random(seed)
    disk = (FAST if FAST.is_dir() else place) / f"waypost-image-{os.getpid()}"
    for crash in crashes(log, place / "data", count=points, rng=rng):
        found.points += 1
        found.acked, found.writes, found.syncs = len(crash.acked), crash.writes, crash.syncs
        for kind, files in crash.images:
            found.images += 1
            disk.mkdir()
            try:
                for name, content in files.items():
                    (disk / name).write_bytes(content)
                lost, ledger, faults = await opened(disk / "queue.db", crash.acked, bodies)
            finally:
                shutil.rmtree(disk)
            found.faults += [f"line {crash.place}, {kind}: {fault}" for fault in faults]
            found.fan_outs = max(found.fan_outs, len(ledger.fan_outs))
            found.callbacks = max(found.callbacks, ledger.owed(ledger.wished).total())
            found.lossy[kind] += bool(lost)
            found.lost_max = max(found.lost_max, len(lost))
    return found


async def opened(
    database: Path, acked: Sequence[str], bodies: dict[str, str]
) -> tuple[set[str], Ledger, list[str]]:
    """Start the store on an image: which acknowledged messages are gone, what there is of
    callbacks, and what is unsound."""
    try:
        store = SqliteStore(str(database), free_bytes_min=0, now_ms=time.time_ns() // 1_000_000)
    except Exception as fault:  # noqa: BLE001 -- whatever keeps it from opening is the finding
        return set(), Ledger(), [f"it does not open: {type(fault).__name__}: {fault}"]
    try:
        db = store.writer.db
        checked = [str(row[0]) for row in db.execute("PRAGMA integrity_check")]
        kept = {
            message_id: digest(body or b"")
            for message_id, body in db.execute(
                "SELECT m.id, b.bytes FROM message m LEFT JOIN body b"
                " ON b.number = coalesce(m.body, m.number) WHERE"
                " EXISTS (SELECT 1 FROM delivery d WHERE d.number = m.number)"
                " OR EXISTS (SELECT 1 FROM dead_letter l"
                "   WHERE l.tenant = m.tenant AND l.message_id = m.id)"
                " OR m.id IN (SELECT message_id FROM event"
                "   WHERE state IN ('DELIVERED', 'FAILED', 'CANCELED'))"
            )
        }
        ledger = read_ledger(db)
    except apsw.Error as fault:
        return set(), Ledger(), [f"it cannot be read: {type(fault).__name__}: {fault}"]
    finally:
        await store.close()
    faults = [] if checked == ["ok"] else checked
    faults += [
        f"{each} has another body"
        for each in kept.keys() & bodies.keys()
        if kept[each] != bodies[each]
    ]
    faults += ledger.apart(fan_out=ENDPOINTS)
    return set(acked) - kept.keys(), ledger, faults


async def test_a_backup_is_on_disk_once_it_is_said_to_be_written(tmp_path: Path):
    """Its content is synced before its name is made, and the directory after that."""
    database, log = tmp_path / "queue.db", tmp_path / "calls.log"
    server = Process(database)
    await server.start()
    assert await server.stop() == 0
    command = [*WAYPOST, "backup", str(tmp_path / "copy.db"), "--database", f"sqlite:///{database}"]
    backup = await asyncio.create_subprocess_exec(
        *strace(log), *command, stdout=DEVNULL, env=clean_environ()
    )
    async with asyncio.timeout(20):
        assert await backup.wait() == 0

    names = [call.name for call in calls(log)]
    [renamed] = [nth for nth, name in enumerate(names) if name.startswith("rename")]
    assert {"fsync", "fdatasync"} & set(names[:renamed])
    assert {"fsync", "fdatasync"} & set(names[renamed:]), "the directory is not synced"


async def survives(place: Path, *, acks: int, points: int, say: Say) -> None:
    began_s = time.monotonic()
    log, bodies = await record(place, acks=acks, seed=SEED)
    took_s = time.monotonic() - began_s

    found = await examine(log, bodies, place, points=points, seed=SEED)

    say(f"seed {SEED}, synchronous = FULL: {found}; recorded in {took_s:.0f} s")
    assert found.faults == []
    assert not found.lossy.total()
    assert (found.points, found.images) == (points, points * len(IMAGES))
    assert found.fan_outs > acks // 20
    assert found.callbacks > acks // 8


async def test_no_acknowledged_message_is_lost_when_the_power_goes(tmp_path: Path, say: Say):
    await survives(tmp_path, acks=300, points=60, say=say)


@pytest.mark.prove
async def test_no_acknowledged_message_is_lost_at_three_hundred_moments(tmp_path: Path, say: Say):
    await survives(tmp_path, acks=600, points=300, say=say)


async def test_with_synchronous_normal_the_same_test_finds_losses(tmp_path: Path, say: Say):
    program = (sys.executable, PLANTED, "sync_normal")
    log, bodies = await record(tmp_path, acks=100, seed=SEED, program=program)

    found = await examine(log, bodies, tmp_path, points=20, seed=SEED)

    say(f"seed {SEED}, synchronous = NORMAL: {found}")
    assert found.lossy.total() > 0


async def test_an_outcome_whose_callback_is_written_later_is_found_apart(tmp_path: Path, say: Say):
    program = (sys.executable, PLANTED, "callback_later")
    log, bodies = await record(tmp_path, acks=100, seed=SEED, program=program)

    found = await examine(log, bodies, tmp_path, points=20, seed=SEED)

    say(f"seed {SEED}, planted callback_later: {found}")
    assert any("no callback tells of" in fault for fault in found.faults)
