"""A message that kills the node ends as a dead letter, and takes nobody with it (D18).

Most of this is in one process (`tests/support/mortal.py`), and as mean as it can
be: whatever is in flight beside the poison is cut short with it, and newcomers
come in every life.  The last test is a real process that dies of its message.
"""

import contextlib
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from msgspec import Struct, field

from tests.crash.harness import eventually, left_over, soundness
from tests.crash.load import Caller, Receiver, Unknown, publish
from tests.store.bench import id_of
from tests.support.factory import SECOND, T0, a_draft
from tests.support.history import History
from tests.support.mortal import DEADLY, living
from tests.support.process import Process, process
from waypost.domain.places import INTERRUPTED_MAX, SUSPECT_AFTER
from waypost.store.protocol import Draft

PLANTED = str(Path(__file__).with_name("planted.py"))
DEADLY_INTERRUPTED_MAX = 5
"""As `planted.py deadly` has it: it saves starting a process fifteen times."""

Say = Callable[[str], None]

HOST = "https://shared.example"


class Lives(Struct):
    """What came of the lives of a node that poison messages end.

    `cut_short` counts the attempts that got no answer, by message.
    """

    deaths: int = 0
    delivered: Counter[str] = field(default_factory=Counter)
    cut_short: Counter[str] = field(default_factory=Counter)
    dead: dict[str, str] = field(default_factory=dict)
    log: dict[str, list[str]] = field(default_factory=dict)


def bystanders(count: int, *, at_ms: int = T0) -> list[Draft]:
    """To the host of the poison and to others, a third of them in its queue, and a third in
    one of their own."""
    return [
        a_draft(
            url=f"{HOST}/{n}" if n % 2 else f"https://other{n}.example/",
            queue=("mail", "other", None)[n % 3],
            at_ms=at_ms,
        )
        for n in range(count)
    ]


async def live_and_die(
    path: Path, *drafts: Draft, deadly: set[str], newcomers: int, lives_max: int
) -> Lives:
    """Publish all, meet the poison, die and start again, until nothing waits.

    In the first half of the lives there are `newcomers` too.
    """
    seen = Lives()
    innocent: set[str] = set()
    coming = list(drafts)
    for number in range(lives_max):
        now_ms = T0 + number * SECOND
        file, next_file = (path / f"life-{nth}.db" for nth in (number, number + 1))
        async with living(file, now_ms=now_ms, next_database=next_file) as life:
            await life.bench.add_waiting(*coming, now_ms=now_ms)
            innocent |= {id_of(draft) for draft in coming} - deadly
            more = number < lives_max // 2
            coming = bystanders(newcomers, at_ms=now_ms + SECOND) if more else []
            died = await life.end()
            seen.deaths += died
            seen.delivered += life.sender.answered
            seen.cut_short += life.sender.sent - life.sender.answered
            if not died:
                seen.dead = {letter.message.id: letter.why for letter in await life.dead_letters()}
                seen.log = {key: await life.bench.states(key) for key in deadly}
        if not died and not coming:
            assert set(seen.delivered) == innocent
            assert left_over(file) == soundness(file) == []
            return seen
        if not died:
            file.rename(path / f"life-{number + 1}.db")
    raise AssertionError(f"there is no end after {lives_max} lives: {seen}")


def only_the_poison_is_dead(seen: Lives, deadly: set[str]) -> str:
    """What was seen, in a line."""
    said = f"interrupted: {INTERRUPTED_MAX} attempts were cut short by a crash"
    assert seen.dead.keys() == deadly
    assert all(why.endswith(said) for why in seen.dead.values())
    assert {seen.cut_short[key] for key in deadly} == {INTERRUPTED_MAX}
    worst = max((seen.cut_short[key] for key in seen.delivered), default=0)
    assert worst <= SUSPECT_AFTER
    for states in seen.log.values():
        assert states[-1] == "FAILED"
        assert "RETRY" not in states
    return (
        f"{seen.deaths} crashes, {len(seen.dead)} dead, {len(seen.delivered)} bystanders "
        f"delivered, cut short at most {worst} times"
    )


@pytest.mark.parametrize("queue", [None, "mail"], ids=["without a queue", "in a queue"])
@pytest.mark.parametrize("place", ["first", "last"])
async def test_a_poison_message_is_dead_after_twenty_crashes_and_its_bystanders_are_delivered(
    queue: str | None, place: str, tmp_path: Path, say: Say
) -> None:
    """D18: whether it was published before the thirty or after them."""
    poison = a_draft(url=f"{HOST}{DEADLY}", queue=queue)
    innocent = bystanders(30)
    drafts = [poison, *innocent] if place == "first" else [*innocent, poison]
    deadly = {id_of(poison)}

    seen = await live_and_die(tmp_path, *drafts, deadly=deadly, newcomers=0, lives_max=25)

    say(only_the_poison_is_dead(seen, deadly))
    assert seen.deaths == INTERRUPTED_MAX


@pytest.mark.parametrize("queue", [None, "mail"], ids=["without a queue", "in a queue"])
async def test_those_who_come_while_the_poison_is_there_are_delivered_too(
    queue: str | None, tmp_path: Path, say: Say
) -> None:
    """D18: five in every life, that meet it in flight three times at most."""
    poison = a_draft(url=f"{HOST}{DEADLY}", queue=queue)
    deadly = {id_of(poison)}

    seen = await live_and_die(
        tmp_path,
        *(poison, *bystanders(30)),
        deadly=deadly,
        newcomers=5,
        lives_max=44,
    )

    say(only_the_poison_is_dead(seen, deadly))
    assert seen.deaths == INTERRUPTED_MAX
    assert len(seen.delivered) == 30 + 5 * 22


async def test_three_poison_messages_take_nobody_with_them_either(tmp_path: Path, say: Say) -> None:
    """D18: they share their first crashes, and are then tried one by one."""
    poison = [
        a_draft(url=f"{HOST}{DEADLY}"),
        a_draft(url=f"https://elsewhere.example{DEADLY}"),
        a_draft(url=f"{HOST}{DEADLY}", queue="mail"),
    ]
    deadly = {id_of(draft) for draft in poison}

    seen = await live_and_die(
        tmp_path,
        *(*poison, *bystanders(30)),
        deadly=deadly,
        newcomers=0,
        lives_max=3 * INTERRUPTED_MAX,
    )

    say(only_the_poison_is_dead(seen, deadly))
    assert seen.deaths == SUSPECT_AFTER + 3 * (INTERRUPTED_MAX - SUSPECT_AFTER)


async def outlived(server: Process) -> bool:
    """Wait until a life ends; whether it ended because nothing was left to do.

    The file is asked: the counts that the server tells may be some seconds old.
    """

    def over() -> bool:
        if not server.running:
            return True
        db = apsw.Connection(str(server.database), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            return not db.execute("SELECT 1 FROM delivery LIMIT 1").fetchall()
        except apsw.BusyError:
            return False
        finally:
            db.close()

    assert await eventually(over, within_s=20)
    return server.running


async def test_a_message_that_kills_the_process_is_given_up_and_all_others_arrive(
    tmp_path: Path, say: Say
) -> None:
    """D18, with a real server that dies of it (exit 137) while others are in flight: their
    receivers answer nobody until they are suspects.  Five crashes are the limit here."""
    database = tmp_path / "queue.db"
    history = History()
    receiver = Receiver(history, random.Random(2))
    receiver.faulty = False
    receiver.gate.clear()
    ids: dict[str, str] = {}
    codes: list[int] = []
    async with (
        receiver.listening(),
        process(database, program=(sys.executable, PLANTED, "deadly")) as server,
    ):
        caller = Caller(server)
        hosts = list(receiver.ports)
        wanted: dict[str, tuple[str, str | None]] = {
            "poison": (receiver.url(hosts[0], "deadly"), None)
        }
        for n in range(30):
            wanted[f"b{n}"] = (receiver.url(hosts[n % 3], f"b{n}"), ("q", None)[n % 2])
        for _ in range(3 * DEADLY_INTERRUPTED_MAX):
            if len(codes) == SUSPECT_AFTER:
                receiver.gate.set()
            await server.start()
            with contextlib.suppress(Unknown):  # it may die while it is asked
                for key in wanted.keys() - ids.keys():
                    url, queue = wanted[key]
                    status, answer = await publish(
                        caller, url, key.encode(), queue=queue, Upstash_Deduplication_Id=key
                    )
                    assert status in (200, 202), answer
                    ids[key] = answer["messageId"]
            if await outlived(server):
                break
            codes.append(await server.ended())
        letters = (await caller.call("GET", "/v2/dlq"))[1]["messages"]
        caller.close()
        assert await server.stop() == 0, server.said()

    delivered = {attempt.key for attempt in history.attempts if attempt.delivered}
    cut_short = Counter(attempt.key for attempt in history.attempts if not attempt.delivered)
    say(
        f"exits {codes}; {len(delivered)} of 30 bystanders delivered, cut short at most "
        f"{max(cut_short.values())} times; dead: {[letter['error'] for letter in letters]}"
    )
    assert codes == [137] * DEADLY_INTERRUPTED_MAX
    assert delivered == {f"b{n}" for n in range(30)}
    assert cut_short.total() > 30, "hardly anybody was in flight when it died"
    assert max(cut_short.values()) <= SUSPECT_AFTER
    assert [letter["messageId"] for letter in letters] == [ids["poison"]]
    assert "interrupted: 5 attempts" in letters[0]["error"]
    assert left_over(database) == soundness(database) == []
