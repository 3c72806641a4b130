"""A PostgreSQL with a synchronous standby that takes its place: nothing that was acknowledged
is lost, and what is not on the standby is not acknowledged."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from msgspec import Struct

from tests.crash.cluster import DURABLE, NODES, Cluster, claimed, cluster
from tests.crash.harness import eventually
from tests.crash.load import Caller, now_s, publish
from tests.support.databases import connected
from tests.support.history import Kill
from tests.support.postgres import SHIPPED, USER, Server, running, standing_by
from tests.support.process import WAYPOST

SEED = int(os.environ.get("CRASH_SEED", "2"))
PLANTED = (sys.executable, str(Path(__file__).with_name("planted_nodes.py")))
DATABASE = "waypost"
PROMOTED_S_MAX = 30

Say = Callable[[str], None]


class Pair(Struct, frozen=True):
    """Two servers, of which the one waits for the other with every commit."""

    primary: Server
    standby: Server

    @property
    def url(self) -> str:
        """Leads to whichever of them takes writes."""
        hosts = f"{self.primary.directory},{self.standby.directory}"
        return f"postgresql://{USER}@/{DATABASE}?host={hosts}&target_session_attrs=read-write"

    async def in_step(self) -> None:
        """Wait until the primary waits for the standby."""
        async with connected(self.primary.url("postgres")) as db:

            async def is_sync() -> bool:
                state = await db.fetchval("SELECT sync_state FROM pg_stat_replication")
                return bool(state == "sync")

            assert await eventually(is_sync, within_s=PROMOTED_S_MAX)


@contextmanager
def a_pair() -> Iterator[Pair]:
    with running(SHIPPED, DURABLE) as primary, standing_by(primary) as standby:
        yield Pair(primary, standby)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """One for all, until the standby is promoted."""
    with a_pair() as made:
        yield made


@pytest.fixture
def pair_of_its_own() -> Iterator[Pair]:
    with a_pair() as made:
        yield made


@asynccontextmanager
async def in_step(
    pair: Pair, place: Path, *, count: int, seed: int = SEED, program: Sequence[str] = WAYPOST
) -> AsyncIterator[Cluster]:
    """Nodes on both."""
    async with connected(pair.primary.url("postgres")) as db:
        await db.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        await db.execute("SELECT pg_reload_conf()")
    await pair.in_step()
    async with cluster(
        pair.primary,
        place,
        seed=seed,
        name=DATABASE,
        count=count,
        url=pair.url,
        program=program,
    ) as nodes:
        yield nodes


async def promote(pair: Pair, nodes: Cluster) -> None:
    """End the primary as a crash would, and let the standby take its place."""
    at_s = now_s()
    await asyncio.to_thread(pair.primary.stop)
    async with connected(pair.standby.url("postgres")) as db:
        assert await db.fetchval("SELECT pg_promote(true, $1)", PROMOTED_S_MAX)
    nodes.url = pair.standby.url(DATABASE)
    nodes.history.kills.append(Kill(at_s, now_s(), await nodes.ask(claimed)))


async def survives(pair: Pair, place: Path, *, seed: int, count: int, acks: int, say: Say) -> None:
    async with in_step(pair, place, count=count, seed=seed) as nodes:
        nodes.start_load()
        assert await nodes.acks(acks)
        await promote(pair, nodes)
        assert await nodes.acks(acks, within_s=PROMOTED_S_MAX), "nothing goes on"
        await nodes.end()
    verdict = nodes.history.judge()
    say(f"seed {seed}: {len(nodes.refused)} calls refused; {verdict}")
    assert verdict.findings == {}
    assert verdict.duplicates <= verdict.claimed_at_kills
    assert nodes.limited.excesses() == []
    assert nodes.left == []
    assert {status for status, _ in nodes.refused} <= {503}


async def cancelled_commit(nodes: Cluster, pair: Pair) -> int:
    """What a publisher is answered whose commit was cancelled while it waited for the standby."""
    await asyncio.to_thread(pair.standby.stop)
    caller = Caller(nodes)
    call = asyncio.create_task(publish(caller, nodes.receiver.url("127.0.0.1", "lonely"), b"x"))

    async def answered() -> bool:
        await nodes.ask(
            lambda db: db.fetch(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
                " WHERE wait_event = 'SyncRep' AND query ILIKE 'commit%'"
            )
        )
        return call.done()

    assert await eventually(answered, within_s=10, pause_s=0.1)
    caller.close()
    return call.result()[0]


async def test_a_commit_whose_wait_for_the_standby_was_cancelled_is_answered_503(
    pair: Pair, tmp_path: Path
):
    async with in_step(pair, tmp_path, count=1) as nodes:
        status = await cancelled_commit(nodes, pair)
        await asyncio.to_thread(pair.standby.start)
        await pair.in_step()
        caller = Caller(nodes)

        async def is_accepted() -> bool:
            url = nodes.receiver.url("127.0.0.1", "later")
            return (await publish(caller, url, b"y"))[0] == 200

        accepted = await eventually(is_accepted, within_s=10, pause_s=0.5)
        caller.close()
    assert status == 503
    assert accepted


@pytest.mark.prove
async def test_the_harness_finds_a_commit_that_is_acknowledged_without_its_standby(
    pair_of_its_own: Pair, tmp_path: Path
):
    program = (*PLANTED, "deaf")
    async with in_step(pair_of_its_own, tmp_path, count=1, program=program) as nodes:
        assert await cancelled_commit(nodes, pair_of_its_own) == 200


async def test_a_standby_that_is_promoted_under_load_has_all_that_was_acknowledged(
    pair: Pair, tmp_path: Path, say: Say
):
    await survives(pair, tmp_path, seed=SEED, count=2, acks=20, say=say)


@pytest.mark.prove
@pytest.mark.parametrize("seed", [SEED + 100, SEED + 101, SEED + 102])
async def test_four_nodes_go_over_to_the_standby_that_is_promoted(
    seed: int, pair_of_its_own: Pair, tmp_path: Path, say: Say
):
    await survives(pair_of_its_own, tmp_path, seed=seed, count=NODES, acks=100, say=say)
