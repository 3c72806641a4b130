"""How a server ends, and what another one finds: signals, locks, schemas, backups, a bad disk."""

import asyncio
import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import apsw
import pytest
import pytest_asyncio

from tests.crash.harness import eventually, examine, ledger_of, left_over, soundness
from tests.crash.load import Caller, Load, Receiver, dead_letters, gauges, now_s, publish
from tests.support.history import History, Kill
from tests.support.process import WAYPOST, DidNotStart, Process, clean_environ, process
from waypost.domain.message import Logged

SEED = int(os.environ.get("CRASH_SEED", "2"))
ACKS = 150

Say = Callable[[str], None]


class Scene:
    """A history, its receiver, and a server with load on it."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.history = History()
        self.receiver = Receiver(self.history, random.Random(SEED))
        self.receiver.faulty = False

    def load(self, server: Process, name: str = "") -> Load:
        return Load(server, self.receiver, self.history, random.Random(SEED), name=name)

    def acked(self) -> set[str]:
        return set().union(*(each.ids for each in self.history.submits.values()))

    async def under_load(self, server: Process, load: Load, *, acks: int = ACKS) -> None:
        """Start the load, and wait until so many more messages are acknowledged."""
        least = len(self.acked()) + acks
        load.serving(True)
        load.start()
        assert await eventually(lambda: len(self.acked()) >= least, within_s=20)

    async def drained(self, server: Process) -> None:
        """Everything ends, and the history holds what became of it."""
        caller = Caller(server)

        async def idle() -> bool:
            now = await gauges(caller)
            return not (now["waypost_messages_waiting"] or now["waypost_messages_claimed"])

        assert await eventually(idle, within_s=30, pause_s=0.1)
        self.history.dead = await dead_letters(caller)
        caller.close()
        assert await server.stop() == 0, server.said()
        assert left_over(server.database) == []
        assert soundness(server.database) == []
        self.history.ledger = ledger_of(server.database)


@pytest_asyncio.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(tmp_path / "queue.db")
    async with made.receiver.listening():
        yield made


def sums(database: Path) -> dict[str, str]:
    """What every file of a database hashes to; `-shm` is memory, and empty files say nothing."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in database.parent.glob(f"{database.name}*")
        if not file.name.endswith("-shm") and file.stat().st_size
    }


async def test_sigterm_under_load_loses_nothing_and_repeats_nothing(scene: Scene, say: Say):
    """P9, three times over, with destinations that answer in time."""
    async with process(scene.database) as server:
        took_s = []
        for nth in range(3):
            await server.start()
            load = scene.load(server, name=f"run{nth}-")
            await scene.under_load(server, load)
            began_s = now_s()
            assert await server.stop() == 0, server.said()
            took_s.append(now_s() - began_s)
            load.serving(False)
            await load.stop()
        await server.start()
        await scene.drained(server)

    verdict = scene.history.judge()
    say(f"{verdict}; drained in {', '.join(f'{each:.2f} s' for each in took_s)}")
    assert verdict.findings == {}
    assert verdict.duplicates == 0


async def test_a_second_sigterm_stops_at_once_and_nothing_is_lost(scene: Scene, say: Say):
    async with process(scene.database, "--drain-ms", "1h") as server:
        await server.start()
        load = scene.load(server)
        await scene.under_load(server, load)
        scene.receiver.gate.clear()
        await load_is_held(scene)
        server.signal(signal.SIGTERM)
        assert await eventually(lambda: refuses(server), within_s=5)
        began_s = now_s()
        server.signal(signal.SIGTERM)
        code = await server.ended()
        took_s = now_s() - began_s
        load.serving(False)
        await load.stop()
        kill, faults = examine(scene.database, scene.database.parent / "copy", at_s=began_s)
        # Those that were cut short may be sent once more; no other may.  Which they are only the
        # file says: callbacks are among them, and attempts that came here after the signals.
        scene.history.kills.append(Kill(began_s, now_s(), under_way(scene.database)))
        scene.receiver.gate.set()
        await server.start()
        await scene.drained(server)

    verdict = scene.history.judge()
    say(f"exit {code} in {took_s:.2f} s, {len(kill.claimed)} left claimed; {verdict}")
    assert took_s < 3
    assert faults == []
    assert kill.claimed == frozenset()
    assert verdict.findings == {}
    assert verdict.duplicates == 0


async def load_is_held(scene: Scene) -> None:
    """Wait until attempts are under way that nobody answers, and those answered are settled."""

    def held() -> bool:
        history = scene.history
        callbacks = [callback.attempt for callback in history.callbacks]
        latest = {each.message_id: each for each in (*history.attempts, *callbacks)}
        answered = {each.message_id for each in latest.values() if each.status is not None}
        unanswered = sum(each.end_s is None for each in history.attempts)
        return unanswered >= 8 and not answered & under_way(scene.database)

    assert await eventually(held, within_s=10)


def under_way(database: Path) -> frozenset[str]:
    """The messages of which a file's log says that an attempt began, and nothing after that."""
    db = apsw.Connection(str(database))
    try:
        rows = db.execute("SELECT message_id, state, max(number) FROM event GROUP BY message_id")
        return frozenset(str(row[0]) for row in rows if row[1] == Logged.ACTIVE)
    finally:
        db.close()


async def refuses(server: Process) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    except OSError:
        return True
    writer.transport.abort()
    return False


async def test_a_second_server_on_the_same_file_is_refused(tmp_path: Path):
    async with process(tmp_path / "queue.db") as first:
        await first.start()
        second = Process(tmp_path / "queue.db", log=tmp_path / "second.log")
        with pytest.raises(DidNotStart, match=r"(?s)^exit [1-9].*another server") as refused:
            await second.start()
        assert "Traceback" not in str(refused.value)
        assert second.said().count("\n") == 1

        caller = Caller(first)
        assert (await caller.call("GET", "/v2/keys"))[0] == 200
        caller.close()
        assert await first.stop() == 0


@pytest.mark.parametrize("end", ["sigterm", "kill"])
async def test_a_newer_schema_is_refused_and_the_file_is_untouched(end: str, tmp_path: Path):
    """A file that a newer program left in order, and one that it left with a log beside it."""
    database = tmp_path / "queue.db"
    async with process(database) as server:
        await server.start()
        caller = Caller(server)
        for _ in range(3):
            assert (await publish(caller, "http://127.0.0.1:9/", b"x"))[0] == 200
        caller.close()
        await (server.stop() if end == "sigterm" else server.kill())
        make_newer(database, tmp_path / "newer", keep_log=end == "kill")
        before = sums(database)

        for _ in range(2):
            with pytest.raises(DidNotStart, match=r"(?s)^exit [1-9].*newer program"):
                await server.start()
            assert sums(database) == before
        assert "Traceback" not in server.said()


def make_newer(database: Path, place: Path, *, keep_log: bool) -> None:
    """Let a file be of version 9999; with the log that says so still beside it."""
    db = apsw.Connection(str(database))
    db.execute("PRAGMA user_version = 9999")
    if keep_log:
        place.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(f"{database}{suffix}", place / f"{database.name}{suffix}")
    db.close()
    if keep_log:
        for suffix in ("", "-wal"):
            shutil.copy(place / f"{database.name}{suffix}", f"{database}{suffix}")


async def test_a_backup_taken_under_load_holds_what_was_acknowledged_before(scene: Scene, say: Say):
    copy = scene.database.with_name("copy.db")
    async with process(scene.database) as server:
        await server.start()
        load = scene.load(server)
        await scene.under_load(server, load)
        before = scene.acked()
        answered = {each.message_id for each in scene.history.attempts if each.delivered}
        command = [*WAYPOST, "backup", str(copy), "--database", f"sqlite:///{scene.database}"]
        backup = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.DEVNULL, env=clean_environ()
        )
        async with asyncio.timeout(20):
            assert await backup.wait() == 0
        await load.stop()
        await server.kill()
    assert soundness(copy) == []

    restored = Scene(copy)
    async with restored.receiver.listening(), process(copy) as server:
        # The destinations of the first run still listen: what is delivered again, they see.
        begun = len(scene.history.attempts)
        await server.start()
        kept = ids_in(copy)
        await scene.drained(server)

    again = {each.message_id for each in scene.history.attempts[begun:]}
    delivered = {each.message_id for each in scene.history.attempts if each.delivered}
    cancelled = {i for s in scene.history.submits.values() if s.cancelled for i in s.ids}
    say(
        f"{len(before)} acknowledged before, {len(before - kept)} missing in the copy; "
        f"{len(again & answered)} sent again though answered before it began"
    )
    assert before <= kept
    assert before <= delivered | scene.history.dead.keys() | cancelled
    # Answered but not yet settled when the copy was taken: no more than were in flight.
    assert len(again & answered) <= 16


def ids_in(database: Path) -> set[str]:
    db = apsw.Connection(str(database))
    try:
        return {str(row[0]) for row in db.execute("SELECT id FROM message")}
    finally:
        db.close()


def injecting(fault: str, log: Path) -> list[str]:
    """strace that makes system calls of the server fail; `log` says which did."""
    name = fault.partition(":")[0]
    return [
        *("strace", "-f", "--seccomp-bpf", "-y", "-e", "signal=none"),
        *("-e", f"trace={name}", "-e", f"inject={fault}", "-o", str(log)),
    ]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: no faults")
@pytest.mark.parametrize(
    "fault",
    [
        "fdatasync:error=EIO:when=5",
        "fdatasync:error=EIO:when=40",
        "pwrite64:error=EIO:when=150",
    ],
)
async def test_a_failed_commit_is_never_acknowledged_and_ends_the_server(
    fault: str, scene: Scene, say: Say
):
    """B1.  Nobody can tell what is on disk after a failed sync: only starting again can."""
    log = scene.database.with_name("faults.log")
    program = [*injecting(fault, log), *WAYPOST]
    async with process(scene.database, program=program) as server:
        load = scene.load(server)
        with contextlib.suppress(DidNotStart):
            await server.start()
            load.serving(True)
            load.start()
        began_s = now_s()
        code = await server.ended()
        took_s = now_s() - began_s
        load.serving(False)
        await load.stop()
    injected = log.read_text(errors="replace").count("(INJECTED)")
    refused = {status for status, _ in load.refused}
    said = re.sub(r"\s+", " ", server.said())[-160:]
    kill, faults = examine(scene.database, scene.database.parent / "copy", at_s=now_s())
    scene.history.kills.append(kill)

    async with process(scene.database) as server:
        await server.start()
        await scene.drained(server)
    verdict = scene.history.judge()
    say(
        f"{injected} injected, exit {code} after {took_s:.1f} s, refused with {refused}, "
        f"{verdict}; it said …{said}"
    )
    assert injected >= 1
    assert code != 0
    assert faults == []
    assert refused <= {503}
    assert verdict.findings == {}
