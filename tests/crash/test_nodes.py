"""Four nodes on one PostgreSQL, of which any may die or be frozen past its lease at any moment:
what was acknowledged arrives, in order, within limits, and those that wake change nothing."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.crash.cluster import DURABLE, Cluster, Freeze, cluster, cut_short
from tests.crash.harness import AIMS, eventually, outlast
from tests.crash.load import Caller, now_s, publish
from tests.support.history import Verdict
from tests.support.postgres import SHIPPED, Server, running
from tests.support.process import WAYPOST

SEED = int(os.environ.get("CRASH_SEED", "2"))
REST_S_MAX = 2.0
"""How long a node stays dead at most, so that some are back before their lease was over."""

PLANTED = (sys.executable, str(Path(__file__).with_name("planted_nodes.py")))

Say = Callable[[str], None]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with running(SHIPPED, DURABLE) as server:
        yield server


async def rounds(nodes: Cluster, count: int) -> None:
    """Kill and freeze random nodes under load, one after the other; of three rounds two are
    kills."""
    rng = nodes.rng
    aims: list[str] = []
    for nth in range(count):
        node = await nodes.any_node()
        assert await nodes.acks(10), [each.said()[-2_000:] for each in nodes.nodes]
        if nth % 3 == 1:
            await nodes.freeze(node)
            continue
        aims = aims or rng.sample(AIMS, len(AIMS))
        aim = aims.pop()
        await nodes.kill(node, aim)
        if aim == "start":
            await nodes.kill(node, aim)
        nodes.start_again(node, after_s=rng.uniform(0, REST_S_MAX))


async def survives(
    postgres: Server, place: Path, *, seed: int, count: int, say: Say, name: str
) -> None:
    async with cluster(postgres, place, seed=seed, name=name) as nodes:
        nodes.start_load()
        await rounds(nodes, count)
        await nodes.end()
    faults = cut_short(nodes)
    verdict = nodes.history.judge()
    stale = sum(each.stale for each in nodes.freezes)
    in_flight = sum(len(each.claimed) for each in nodes.freezes)
    say(
        f"seed {seed}: {verdict}; {len(nodes.freezes)} freezes with {in_flight} in flight, "
        f"{stale} stale settles refused; {len(nodes.refused)} calls refused"
    )
    assert verdict.findings == {}
    assert faults == []
    assert nodes.limited.excesses() == []
    assert nodes.left == []
    assert {status for status, _ in nodes.refused} <= {503}
    assert verdict.duplicates <= verdict.claimed_at_kills
    assert verdict.kills >= count
    assert 0 < stale <= in_flight


async def test_four_nodes_that_die_and_freeze_lose_nothing_and_keep_every_limit(
    postgres: Server, tmp_path: Path, say: Say
):
    await survives(postgres, tmp_path, seed=SEED, count=4, say=say, name="short")


@pytest.mark.prove
async def test_thirty_rounds_of_death_and_frost_lose_nothing_and_keep_every_limit(
    postgres: Server, tmp_path: Path, say: Say
):
    await survives(postgres, tmp_path, seed=SEED + 100, count=30, say=say, name="long")


async def woken_too_late(
    postgres: Server, place: Path, *, program: Sequence[str] = WAYPOST
) -> tuple[Freeze, Verdict]:
    """A node is frozen over the first of two messages in a queue.  When it wakes, another has
    sent that again, and is not answered yet; then the receiver answers the one that woke."""
    async with cluster(postgres, place, seed=SEED, name="late", count=2, program=program) as nodes:
        receiver, history = nodes.receiver, nodes.history
        receiver.faulty = False
        names = {node.name for node in nodes.nodes}
        receiver.unanswered |= names
        caller = Caller(nodes)
        for key in ("first", "second"):
            history.submitted(key, key.encode(), at_s=now_s(), queue="q")
            url = receiver.url("127.0.0.1", key)
            _, answer = await publish(caller, url, key.encode(), queue="q", Upstash_Retries="0")
            history.acked(key, answer["messageId"], at_s=now_s())
        caller.close()
        assert await eventually(lambda: history.attempts, within_s=5)
        [frozen] = [node for node in nodes.nodes if node.name == history.attempts[0].node]

        async def sent_again() -> None:
            assert await eventually(lambda: len(history.attempts) == 2, within_s=10)

        freeze = await nodes.freeze(frozen, meanwhile=sent_again)
        await eventually(lambda: len(history.attempts) > 2, within_s=0.5)
        receiver.unanswered -= names
        await nodes.end()
    assert nodes.left == []
    assert cut_short(nodes) == []
    return freeze, history.judge()


@pytest.mark.prove
async def test_a_node_that_wakes_after_its_lease_settles_nothing(postgres: Server, tmp_path: Path):
    freeze, verdict = await woken_too_late(postgres, tmp_path)

    assert verdict.findings == {}
    assert (verdict.delivered, verdict.duplicates, freeze.stale) == (2, 1, 1)


@pytest.mark.prove
async def test_the_harness_finds_a_settle_that_does_not_ask_for_its_token(
    postgres: Server, tmp_path: Path
):
    freeze, verdict = await woken_too_late(postgres, tmp_path, program=(*PLANTED, "unguarded"))

    assert freeze.stale == 0
    assert any("second began before first had ended" in each for each in verdict.findings["I3"])


async def asked_while_dead(
    postgres: Server, place: Path, *, program: Sequence[str] = WAYPOST
) -> Verdict:
    """A node that was taken over wakes with calls to answer, and then is killed."""
    async with cluster(postgres, place, seed=SEED, name="asked", count=2, program=program) as nodes:
        receiver, history = nodes.receiver, nodes.history
        receiver.faulty = False
        receiver.gate.clear()
        frozen = nodes.nodes[0]
        calls: list[asyncio.Task[None]] = []

        async def call(key: str) -> None:
            history.submitted(key, key.encode(), at_s=now_s(), retries=3)
            caller = Caller(frozen)
            _, answer = await publish(caller, receiver.url("127.0.0.1", key), key.encode())
            history.acked(key, answer["messageId"], at_s=now_s())
            caller.close()

        async def ask() -> None:
            calls.extend(asyncio.create_task(call(f"k{nth}")) for nth in range(5))
            await outlast(0.1)

        await nodes.freeze(frozen, meanwhile=ask)
        await asyncio.gather(*calls)
        await nodes.kill(frozen, "random")
        receiver.gate.set()
        await nodes.end(drain_s_max=6)
    return history.judge()


@pytest.mark.prove
async def test_what_a_node_accepts_that_was_taken_over_is_delivered_by_others(
    postgres: Server, tmp_path: Path
):
    verdict = await asked_while_dead(postgres, tmp_path)

    assert verdict.findings == {}
    assert (verdict.acked, verdict.delivered) == (5, 5)


@pytest.mark.prove
async def test_the_harness_finds_a_node_that_claims_without_a_lease(
    postgres: Server, tmp_path: Path
):
    verdict = await asked_while_dead(postgres, tmp_path, program=(*PLANTED, "immortal"))

    assert verdict.lost > 0
