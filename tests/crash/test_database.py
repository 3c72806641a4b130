"""PostgreSQL crashes and comes back under nodes and their load: nothing that was
acknowledged is lost, publishers are told, and what was in flight is all that is sent twice."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import asyncpg
import pytest

from tests.crash.cluster import LEASE_S, NODES, Cluster, claimed, cluster
from tests.crash.harness import eventually, outlast
from tests.crash.load import now_s
from tests.support.history import Kill, Verdict
from tests.support.postgres import Server
from tests.support.process import WAYPOST

SEED = int(os.environ.get("CRASH_SEED", "2"))
PLANTED = (sys.executable, str(Path(__file__).with_name("planted_nodes.py")))
BACK_S_MAX = 30

Say = Callable[[str], None]


async def crash(nodes: Cluster, postgres: Server, *, away_s: float) -> None:
    """End all of its processes at once, right after an acknowledgement, for one that came too
    early is not on disk then; and start it again after a while."""
    await nodes.an_ack()
    at_s = now_s()
    await asyncio.to_thread(postgres.stop)
    await outlast(away_s)
    await asyncio.to_thread(postgres.start)
    await is_back(nodes, at_s)


async def kill_one(nodes: Cluster) -> None:
    """Kill one process of it with -9, so that it ends all others and recovers by itself."""
    pid = await nodes.ask(
        lambda db: db.fetchval(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND datname = current_database() AND pid <> pg_backend_pid() LIMIT 1"
        )
    )
    at_s = now_s()
    os.kill(pid, signal.SIGKILL)
    await is_back(nodes, at_s)


async def is_back(nodes: Cluster, at_s: float) -> None:
    """Wait until it answers, and see what was claimed when it died."""
    left: list[frozenset[str]] = []

    async def answers() -> bool:
        try:
            left.append(await nodes.ask(claimed))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return True

    assert await eventually(answers, within_s=BACK_S_MAX)
    nodes.history.kills.append(Kill(at_s, now_s(), left[-1]))


async def outages(
    postgres: Server,
    place: Path,
    away_s: Sequence[float],
    *,
    say: Say,
    count: int = NODES,
    program: Sequence[str] = WAYPOST,
) -> tuple[Cluster, Verdict]:
    """A run with an outage of each length; 0 is one from which it recovers by itself."""
    async with cluster(postgres, place, seed=SEED, count=count, program=program) as nodes:
        nodes.start_load()
        for each_s in away_s:
            assert await nodes.acks(10, within_s=BACK_S_MAX), "nothing goes on"
            if each_s:
                await crash(nodes, postgres, away_s=each_s)
            else:
                await kill_one(nodes)
        assert await nodes.acks(10, within_s=BACK_S_MAX), "nothing goes on"
        await nodes.end()
    verdict = nodes.history.judge()
    say(
        f"seed {SEED}: {len(away_s)} outages, the longest of {max(away_s):.0f} s, which is "
        f"{max(away_s) / LEASE_S:.0f} leases; {len(nodes.refused)} calls refused; {verdict}"
    )
    return nodes, verdict


def held(nodes: Cluster, verdict: Verdict) -> None:
    assert verdict.findings == {}
    assert verdict.duplicates <= verdict.claimed_at_kills
    assert nodes.limited.excesses() == []
    assert nodes.left == []
    assert {status for status, _ in nodes.refused} == {503}


async def test_a_database_that_crashes_and_is_back_loses_nothing(
    postgres: Server, tmp_path: Path, say: Say
):
    held(*await outages(postgres, tmp_path, (0, 0.2), count=2, say=say))


@pytest.mark.prove
async def test_ten_crashes_lose_nothing_and_bring_no_mass_resend(
    postgres: Server, tmp_path: Path, say: Say
):
    away_s = (0, 0.2, 1, 0, LEASE_S, 0, 2 * LEASE_S, 0.2, 0, 0.2)
    held(*await outages(postgres, tmp_path, away_s, say=say))


@pytest.mark.prove
async def test_the_harness_finds_a_node_that_answers_before_it_has_committed(
    postgres: Server, tmp_path: Path, say: Say
):
    program = (*PLANTED, "ack_first")
    _, verdict = await outages(postgres, tmp_path, (0.2, 0.2, 0.2), say=say, program=program)

    assert verdict.lost > 0
