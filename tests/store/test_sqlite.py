"""What is true of the SQLite engine alone: its file, its lock, its schema, its plans."""

import asyncio
import hashlib
import os
from pathlib import Path

import apsw
import pytest

from tests.store.bench import Bench, queued
from tests.support.factory import HOUR, T0, a_draft, some_places
from waypost.domain.errors import Invalid, NotFound, StoreBroken, StoreFull, StoreUnavailable
from waypost.domain.signing import SigningKeys
from waypost.store.migrations import SchemaTooNew
from waypost.store.protocol import Tenant, Token
from waypost.store.sqlite import database, upkeep
from waypost.store.sqlite.database import MIGRATIONS, Locked
from waypost.store.sqlite.people import PeopleFile
from waypost.store.sqlite.store import MEMORY, SqliteStore

SCHEMA = Path(database.__file__).with_name("schema.sql")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "waypost.db")


def test_the_library_is_free_of_the_fault_that_loses_commits() -> None:
    """SQLite 3.7.0 to 3.51.2 can lose committed writes in WAL mode."""
    assert tuple(map(int, apsw.sqlite_lib_version().split("."))) >= (3, 51, 3)


def test_the_checked_in_schema_is_the_sum_of_the_migrations() -> None:
    db = apsw.Connection(":memory:")
    database.migrate(db)

    assert SCHEMA.read_text() == database.schema(db)


async def test_commits_are_synced_in_full(path: str) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    db = store.writer.db

    assert db.pragma("synchronous") == 2
    assert db.pragma("journal_mode") == "wal"
    assert db.pragma("auto_vacuum") == 2
    assert db.pragma("wal_autocheckpoint") == 0
    await store.close()


async def test_a_second_server_on_the_same_file_is_refused(path: str) -> None:
    """D32."""
    first = SqliteStore(path, free_bytes_min=0, now_ms=T0)

    with pytest.raises(Locked, match="another server"):
        SqliteStore(path, free_bytes_min=0, now_ms=T0)
    await first.close()

    await SqliteStore(path, free_bytes_min=0, now_ms=T0).close()


async def test_a_newer_schema_is_refused_and_the_file_is_untouched(path: str) -> None:
    await SqliteStore(path, free_bytes_min=0, now_ms=T0).close()
    db = apsw.Connection(path)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    before = hashlib.sha256(Path(path).read_bytes()).digest()

    with pytest.raises(SchemaTooNew, match="newer program"):
        SqliteStore(path, free_bytes_min=0, now_ms=T0)

    assert hashlib.sha256(Path(path).read_bytes()).digest() == before


async def test_the_command_line_writes_beside_a_server_and_the_server_notices(path: str) -> None:
    """D32."""
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    await store.changed()
    assert not await store.changed()

    people = PeopleFile(path)
    tenant = Tenant(id="acme", created_ms=T0, keys=SigningKeys("sig_a", "sig_b"))
    token = Token(id="tok", tenant="acme", sha256=b"x" * 32, read_only=True, created_ms=T0)
    await people.add_tenant(tenant)
    await people.add_token(token)

    assert await store.changed()
    assert not await store.changed()
    assert (await store.tenants(), await store.tokens()) == ([tenant], [token])
    with pytest.raises(Invalid):
        await people.add_tenant(tenant)
    assert await people.revoke_tenant("acme")
    assert not await people.revoke_token("tok")
    with pytest.raises(NotFound):
        await people.add_token(token)
    assert await store.changed()
    assert await store.tokens() == []
    people.close()
    await store.close()


async def test_what_the_server_writes_is_no_news_to_it(path: str) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    await store.changed()

    await Bench(store).add(a_draft())

    assert not await store.changed()
    await store.close()


async def test_a_backup_of_a_running_store_opens_and_holds_everything(
    path: str, tmp_path: Path
) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    await Bench(store).add(*[a_draft() for _ in range(10)])
    target = str(tmp_path / "copy.db")

    upkeep.backup(path, target)

    await store.close()
    assert Path(target).stat().st_mode & 0o777 == 0o600
    copy = SqliteStore(target, free_bytes_min=0, now_ms=T0)
    assert len(await Bench(copy).claim()) == 10
    await copy.close()
    with pytest.raises(Invalid):
        upkeep.backup(path, target)


async def test_a_full_disk_refuses_publishes_and_lets_settles_go_on(path: str) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    bench = Bench(store)
    await bench.add(*[a_draft() for _ in range(20)])
    [[pages]] = store.writer.db.execute("PRAGMA page_count").fetchall()
    store.writer.db.execute(f"PRAGMA max_page_count = {pages + 20}")

    big = [bench.add(a_draft(body=b"x" * 100_000)) for _ in range(3)]
    settled = [bench.deliver(claim) for claim in bench.born]
    answers = await asyncio.gather(*big, *settled, return_exceptions=True)

    assert [type(answer) for answer in answers[:3]] == [StoreFull] * 3
    assert answers[3:] == ["DELIVERED"] * 20
    store.writer.db.execute("PRAGMA max_page_count = 1000000")
    await bench.add(a_draft(body=b"x" * 100_000))
    await store.close()


async def test_after_an_io_error_nothing_is_taken_until_the_file_is_opened_again(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    bench = Bench(store)
    await bench.add(a_draft())

    def fail() -> None:
        raise apsw.IOError("disk I/O error")

    monkeypatch.setattr(store.writer, "commit_now", fail)
    with pytest.raises(StoreUnavailable):
        await bench.add(a_draft())
    monkeypatch.undo()

    with pytest.raises(StoreBroken):
        await bench.add(a_draft())
    with pytest.raises(StoreBroken):
        await store.pulse(now_ms=T0)
    await store.close()


async def test_a_store_in_memory_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
    await Bench(store).add(a_draft())
    await store.close()

    assert os.listdir(tmp_path) == []


# What a claim costs: the steps of SQLite's machine, counted by SQLite itself.


async def _steps_of_a_claim(bench: Bench, store: SqliteStore) -> int:
    """Steps of every statement that one claim of ten messages ran."""
    steps = 0

    def note(event: dict[str, object]) -> None:
        nonlocal steps
        status = event["stmt_status"]
        assert isinstance(status, dict)
        steps += status["SQLITE_STMTSTATUS_VM_STEP"]

    store.writer.db.trace_v2(apsw.SQLITE_TRACE_PROFILE, note)
    claims = await bench.claim(10)
    store.writer.db.trace_v2(0)
    assert len(claims) == 10
    return steps


async def _fill(store: SqliteStore, *, others: int) -> None:
    bench = Bench(store)
    await bench.add_waiting(*[a_draft(url="https://good.example/") for _ in range(50)])
    for start in range(0, others, 500):
        await bench.add_waiting(
            *[
                a_draft(url=f"https://late{n % 50}.example/", delay_ms=HOUR + n)
                for n in range(start, start + 250)
            ],
            *queued("blocked", count=250),
        )


async def test_the_cost_of_a_claim_does_not_grow_with_what_waits_or_is_blocked() -> None:
    costs = {}
    for others in (500, 20_000):
        store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
        await _fill(store, others=others)
        store.writer.db.execute("ANALYZE")
        bench = Bench(store)
        await bench.claim(1)
        costs[others] = await _steps_of_a_claim(bench, store)
        await store.close()

    assert costs[20_000] <= costs[500] * 1.05, costs


async def test_the_cost_of_a_claim_does_not_grow_with_hosts_that_have_no_place() -> None:
    costs = {}
    for hosts in (10, 1_000):
        store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
        bench = Bench(store, some_places(host_count_max=1, count_max=100_000))
        for start in range(0, hosts, 100):
            await bench.add_waiting(
                *[
                    a_draft(url=f"https://hanging{n}.example/")
                    for n in range(start, min(hosts, start + 100))
                    for _ in range(3)
                ]
            )
        while await bench.claim(1_000):
            pass
        await bench.add_waiting(*[a_draft(url=f"https://good{n}.example/") for n in range(40)])
        costs[hosts] = await _steps_of_a_claim(bench, store)
        await store.close()

    assert costs[1_000] <= costs[10] * 1.05, costs


async def test_no_statement_of_the_hot_path_scans_a_table() -> None:
    store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
    seen: set[str] = set()
    store.writer.db.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: seen.add(str(event["sql"])))
    bench = Bench(store)
    await bench.add_waiting(a_draft(url="https://other.example/"))
    await bench.add(a_draft(dedup_key="id:a"), *queued(count=3), a_draft(delay_ms=HOUR))
    [first, second] = bench.born
    await bench.retry(first, at_ms=T0 + 1)
    await bench.deliver(second)
    await bench.claim(now_ms=T0 + 1)
    await bench.store.cancel("acme", first.message.id, now_ms=T0)
    store.writer.db.trace_v2(0)

    plans = {}
    for sql in seen:
        if sql.split()[0] in {"SELECT", "UPDATE", "DELETE"}:
            rows = store.writer.db.execute(
                f"EXPLAIN QUERY PLAN {sql}",
                [None] * sql.count("?") if "?1" not in sql else ("", ""),
            ).fetchall()
            plans[sql] = [str(row[3]) for row in rows]
    scans = {
        sql: steps
        for sql, steps in plans.items()
        if any(step.startswith("SCAN") and "USING" not in step for step in steps)
    }
    await store.close()

    assert len(plans) >= 8
    assert scans == {}
