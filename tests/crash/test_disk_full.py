"""A full disk stops publishes, says so, and loses and repeats nothing (B2).

The watermark leaves a reserve, so that settles go on.  Without one (free_bytes_min
= 0) the disk itself says no; then settles wait, and nothing is sent again meanwhile.
"""

import contextlib
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.crash.harness import eventually, left_over, soundness
from tests.crash.load import Caller, Receiver, gauges, now_s, publish
from tests.support.history import History
from tests.support.process import WAYPOST, DidNotStart, Process, process

PLANTED = str(Path(__file__).with_name("planted.py"))
MB = 1_000_000
BODY_BYTES = 40_000
TRIES_MAX = 1_000
NOT_AGAIN_S = 2.5
"""How long a full disk is watched for what is sent again: a settle is tried each second."""

Say = Callable[[str], None]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB, of which a ballast takes 10."""
    disk = tmp_path / "small"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "waypost-test", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        (disk / "ballast").write_bytes(bytes(10 * MB))
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


class Scene:
    """A server, a receiver that holds its answers back, and what was acknowledged."""

    def __init__(self, receiver: Receiver, history: History) -> None:
        self.receiver = receiver
        self.history = history
        self.acked: set[str] = set()

    async def publish(self, caller: Caller, size: int = BODY_BYTES) -> tuple[int, Any]:
        url = self.receiver.url("127.0.0.1", f"k{random.randrange(1 << 60)}")
        status, answer = await publish(caller, url, os.urandom(size), Upstash_Retries="0")
        if status == 200:
            self.acked.add(answer["messageId"])
        return status, answer

    async def fill(self, caller: Caller) -> tuple[int, Any, float]:
        """Publish until it is refused: the refusal, and how long that took."""
        for _ in range(TRIES_MAX):
            began_s = now_s()
            status, answer = await self.publish(caller)
            if status != 200:
                return status, answer, now_s() - began_s
        raise AssertionError(f"{TRIES_MAX} publishes, and there is still room")

    def answered(self) -> set[str]:
        return {each.message_id for each in self.history.attempts if each.delivered}

    def sent_most(self) -> int:
        """How often the message was sent that was sent most often."""
        return max(Counter(each.message_id for each in self.history.attempts).values())


@pytest_asyncio.fixture
async def scene() -> AsyncIterator[Scene]:
    history = History()
    receiver = Receiver(history, random.Random(1))
    receiver.faulty = False
    receiver.gate.clear()
    async with receiver.listening():
        yield Scene(receiver, history)
        receiver.gate.set()


async def idle(caller: Caller) -> bool:
    now = await gauges(caller)
    return not (now["waypost_messages_waiting"] or now["waypost_messages_claimed"])


async def resumes(scene: Scene, server: Process, caller: Caller) -> None:
    """There is room again: everything drains, and a new message goes all the way."""
    assert await eventually(lambda: accepts(scene, caller), within_s=10, pause_s=0.1)
    assert await eventually(lambda: idle(caller), within_s=20, pause_s=0.1)
    assert scene.acked <= scene.answered()
    caller.close()
    assert await server.stop() == 0, server.said()
    assert left_over(server.database) == []
    assert soundness(server.database) == []


async def accepts(scene: Scene, caller: Caller) -> bool:
    status, _ = await scene.publish(caller, 10)
    return status == 200


async def test_under_the_watermark_publishes_get_507_and_settles_go_on(
    small_disk: Path, scene: Scene, say: Say
):
    log = small_disk.with_name("server.log")
    async with process(small_disk / "queue.db", "--free-bytes-min", "6MB", log=log) as server:
        await server.start()
        caller = Caller(server)
        status, answer, took_s = await scene.fill(caller)
        say(f"{len(scene.acked)} accepted, then {status} {answer} in {took_s * 1000:.0f} ms")
        assert (status, list(answer)) == (507, ["error"])
        assert took_s < 1

        scene.receiver.gate.set()
        assert await eventually(lambda: idle(caller), within_s=20)
        assert scene.answered() == scene.acked
        assert scene.sent_most() == 1
        status, _ = await scene.publish(caller)
        assert status == 507
        assert (await caller.call("GET", "/readyz"))[0] == 200

        (small_disk / "ballast").unlink()
        await resumes(scene, server, caller)
        assert scene.sent_most() == 1


async def test_when_the_disk_itself_is_full_nothing_is_sent_again_and_service_resumes(
    small_disk: Path, scene: Scene, say: Say
):
    log = small_disk.with_name("server.log")
    async with process(small_disk / "queue.db", "--free-bytes-min", "0", log=log) as server:
        await server.start()
        caller = Caller(server)
        status, answer, took_s = await scene.fill(caller)
        (small_disk / "rest").write_bytes(b"")
        with contextlib.suppress(OSError), (small_disk / "rest").open("ab", 0) as rest:
            while rest.write(bytes(4_096)):
                pass
        assert (status, list(answer)) == (507, ["error"])
        assert took_s < 2

        scene.receiver.gate.set()
        for _ in range(3):
            status, answer = await scene.publish(caller)
            assert (status, list(answer)) == (507, ["error"])
        again = await eventually(lambda: scene.sent_most() > 1, within_s=NOT_AGAIN_S)
        assert not again
        assert server.running, server.said()
        say(
            f"{len(scene.acked)} accepted, then {status} {answer}; "
            f"{len(scene.answered())} answered while full"
        )

        (small_disk / "ballast").unlink()
        await resumes(scene, server, caller)
        assert scene.sent_most() == 1


async def test_on_a_full_disk_it_ends_and_starts_without_a_traceback_and_loses_nothing(
    small_disk: Path, scene: Scene, say: Say
):
    log = small_disk.with_name("server.log")
    async with process(small_disk / "queue.db", "--free-bytes-min", "0", log=log) as server:
        await server.start()
        caller = Caller(server)
        assert (await scene.fill(caller))[0] == 507
        with contextlib.suppress(OSError), (small_disk / "rest").open("ab", 0) as rest:
            while rest.write(bytes(4_096)):
                pass
        caller.close()
        code = await server.stop()
        said_at_end = server.said()
        said_at_start = ""
        try:
            await server.start()
            started = "started"
            await server.kill()
        except DidNotStart as refused:
            started = "did not start"
            said_at_start = str(refused)
        say(f"SIGTERM on a full disk: exit {code}; on a full disk it {started}")

        (small_disk / "ballast").unlink()
        scene.receiver.gate.set()
        await server.start()
        await resumes(scene, server, Caller(server))
        assert scene.sent_most() <= 3
    assert "Traceback" not in said_at_end
    assert "Traceback" not in said_at_start


async def test_a_file_that_cannot_grow_gets_507_and_loses_nothing(
    tmp_path: Path, scene: Scene, say: Say
):
    """SQLITE_FULL from the engine itself, which needs no file system of our own."""
    program = (sys.executable, PLANTED, "small_file")
    database = tmp_path / "queue.db"
    async with process(database, "--free-bytes-min", "0", program=program) as server:
        await server.start()
        caller = Caller(server)
        status, answer, took_s = await scene.fill(caller)
        assert (status, list(answer)) == (507, ["error"])
        assert took_s < 2

        scene.receiver.gate.set()
        assert not await eventually(lambda: scene.sent_most() > 1, within_s=NOT_AGAIN_S)
        assert server.running, server.said()
        say(f"{len(scene.acked)} accepted, then {status} {answer}")
        caller.close()
        await server.kill()
    async with process(database, "--free-bytes-min", "0", program=WAYPOST) as server:
        await server.start()
        await resumes(scene, server, Caller(server))
        assert scene.sent_most() <= 2


async def test_started_under_the_watermark_it_drains_and_accepts_nothing(
    tmp_path: Path, scene: Scene
):
    database = tmp_path / "queue.db"
    async with process(database) as server:
        await server.start()
        caller = Caller(server)
        for _ in range(20):
            assert (await scene.publish(caller, 100))[0] == 200
        caller.close()
        await server.kill()
    scene.receiver.gate.set()
    scene.receiver.ended.clear()
    async with process(database, "--free-bytes-min", "1000000GB") as server:
        await server.start()
        caller = Caller(server)
        status, answer = await scene.publish(caller, 100)
        assert (status, list(answer)) == (507, ["error"])
        assert await eventually(lambda: idle(caller), within_s=20)
        assert scene.acked <= scene.answered()
        caller.close()
        assert await server.stop() == 0


async def test_ids_of_refused_publishes_are_free(tmp_path: Path, scene: Scene):
    """A dedup id whose publish was refused is not taken: the next one is no duplicate."""
    scene.receiver.gate.set()
    database = tmp_path / "queue.db"
    url = scene.receiver.url("127.0.0.1", "once")
    async with process(database, "--free-bytes-min", "1000000GB") as server:
        await server.start()
        caller = Caller(server)
        assert (await publish(caller, url, b"x", Upstash_Deduplication_Id="d"))[0] == 507
        caller.close()
        assert await server.stop() == 0
    async with process(database) as server:
        await server.start()
        caller = Caller(server)
        assert (await publish(caller, url, b"x", Upstash_Deduplication_Id="d"))[0] == 200
        caller.close()
        assert await server.stop() == 0
