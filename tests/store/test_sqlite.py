"""What is true of the SQLite engine alone: its file, its lock, its schema, its plans."""

import asyncio
import hashlib
import os
import re
import threading
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.store.bench import Bench, queued
from tests.support.factory import DAY, HOUR, OK, T0, a_callback, a_draft, a_schedule, some_places
from waypost.domain.attempt import Delivered
from waypost.domain.errors import Invalid, NotFound, StoreBroken, StoreFull, StoreUnavailable
from waypost.domain.filters import Filter
from waypost.domain.flow import Flow
from waypost.domain.message import Logged
from waypost.domain.places import Sign
from waypost.domain.signing import SigningKeys
from waypost.store import counts
from waypost.store.migrations import SchemaTooNew
from waypost.store.protocol import LogFilter, LogView, Retention, Tenant, Token, give_back_place
from waypost.store.sqlite import checkpoints, database, readers, upkeep, writer
from waypost.store.sqlite.database import MIGRATIONS, Locked, Unusable
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


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (apsw.BusyError, StoreUnavailable),
        (apsw.IOError, StoreUnavailable),
        (apsw.FullError, StoreFull),
        (apsw.ReadOnlyError, Unusable),
        (apsw.CorruptError, Unusable),
        (apsw.NotADBError, Unusable),
        (apsw.CantOpenError, Unusable),
    ],
)
def test_what_may_pass_is_told_from_what_does_not(
    fault: type[apsw.Error], problem: type[Exception]
) -> None:
    with pytest.raises(problem) as caught, database.as_problems("look"):
        raise fault("in SQLite's words")

    assert type(caught.value) is problem


def test_a_fault_that_has_undone_its_transaction_is_told_as_itself() -> None:
    db = apsw.Connection(MEMORY)

    def fail() -> None:
        with database.transaction(db):
            db.execute("ROLLBACK")
            raise apsw.IOError

    with pytest.raises(apsw.IOError):
        fail()


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


async def test_a_lane_that_a_failed_claim_was_to_reopen_is_reopened_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
    bench = Bench(store, some_places(host_count_max=2))
    await bench.add(a_draft(), a_draft(), a_draft())
    assert await bench.claim() == []
    for claim in bench.born:
        await bench.deliver(claim)

    def fail() -> None:
        raise apsw.FullError("database or disk is full")

    monkeypatch.setattr(store.writer, "commit_now", fail)
    with pytest.raises(StoreFull):
        await bench.claim()
    monkeypatch.undo()

    assert len(await bench.claim()) == 1
    await store.close()


async def test_news_is_told_also_when_the_batch_that_asked_for_it_failed(path: str) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    await store.changed()
    people = PeopleFile(path)
    await people.add_tenant(Tenant(id="acme", created_ms=T0, keys=SigningKeys("sig_a", "sig_b")))
    people.close()

    def guilty(_batch: writer.Batch, _calls: list[None]) -> list[None]:
        raise ValueError

    asked = store.changed(), store.writer.call(guilty, None)
    answers = await asyncio.gather(*asked, return_exceptions=True)

    assert answers[0] is True
    assert not await store.changed()
    await store.close()


async def test_the_event_loop_goes_on_while_another_process_writes(path: str) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    other = apsw.Connection(path)
    other.execute("BEGIN IMMEDIATE")

    adding = asyncio.ensure_future(Bench(store).add(a_draft()))
    for _ in range(1_000):
        await asyncio.sleep(0)
    assert not adding.done()  # had the loop stood still, the wait would be over by now
    other.execute("ROLLBACK")
    await adding
    other.close()
    await store.close()


async def test_a_database_that_stays_locked_is_unavailable_in_sqlites_words(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "BUSY_MS", 20)
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    other = apsw.Connection(path)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreUnavailable, match="database is locked"):
        await Bench(store).add(a_draft())

    other.close()
    await Bench(store).add(a_draft())
    await store.close()


async def test_a_checkpoint_leaves_nothing_open_that_a_commit_would_trip_over(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_PAGES", 1)
    monkeypatch.setattr(checkpoints, "LOG_PAGES", 1)
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    loop = asyncio.get_running_loop()
    run = loop.run_in_executor
    kept: list[object] = []

    def run_and_keep(*arguments: Any) -> Any:
        async def keep() -> Any:
            kept.append(await run(*arguments))  # as a future does, for a moment
            return kept[-1]

        return asyncio.ensure_future(keep())

    monkeypatch.setattr(loop, "run_in_executor", run_and_keep)
    bench = Bench(store)
    for _ in range(5):
        await bench.add(a_draft())
    monkeypatch.undo()

    assert set(kept) == {None}
    await store.close()


async def test_a_reader_that_holds_a_snapshot_does_not_make_each_commit_a_checkpoint(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_PAGES", 50)
    monkeypatch.setattr(checkpoints, "LOG_PAGES", 50)
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    bench = Bench(store)
    await bench.add_waiting(a_draft())
    reader = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM message").fetchall()
    ends = []
    real = store.writer._checkpoints._move_to_the_end
    monkeypatch.setattr(store.writer._checkpoints, "_move_to_the_end", lambda: ends.append(real()))

    for _ in range(100):
        await bench.add_waiting(a_draft(body=b"x" * 10_000))

    assert 3 <= len(ends) <= 30
    reader.close()
    await store.close()


async def test_the_log_begins_anew_only_where_it_is_long(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_PAGES", 20)
    monkeypatch.setattr(checkpoints, "LOG_PAGES", 200)
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    bench = Bench(store)
    moved: list[int] = []
    real = checkpoints._move
    monkeypatch.setattr(
        checkpoints, "_move", lambda db: (moved.append(db is store.writer.db), real(db))
    )

    for _ in range(150):
        await bench.add_waiting(a_draft(body=b"x" * 10_000))

    assert moved.count(True) >= 2
    assert moved.count(False) >= 2 * moved.count(True)
    assert Path(f"{path}-wal").stat().st_size < 4 * 200 * 4096
    await store.close()


async def test_what_was_moved_is_on_disk_before_the_writer_stands_still(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    bench = Bench(store)
    await bench.add_waiting(a_draft())
    reader = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)  # so that no move is whole
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM message").fetchall()
    done: list[str] = []
    move, sync = checkpoints._move, checkpoints.sync

    def moved(db: apsw.Connection) -> None:
        move(db)
        done.append("to the end" if db is store.writer.db else "beside")

    def synced(file: int) -> None:
        assert os.path.samestat(os.fstat(file), Path(path).stat())
        sync(file)
        done.append("synced")

    monkeypatch.setattr(checkpoints, "_move", moved)
    monkeypatch.setattr(checkpoints, "sync", synced)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_PAGES", 20)
    monkeypatch.setattr(checkpoints, "LOG_PAGES", 20)
    for _ in range(200):
        await bench.add_waiting(a_draft(body=b"x" * 10_000))

    assert done[:6] == ["beside", "synced", "to the end"] * 2
    reader.close()
    await store.close()


async def test_a_file_whose_sync_fails_is_not_trusted_any_more(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_PAGES", 20)
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    bench = Bench(store)

    def fail(_file: int) -> None:
        raise OSError("planted")

    monkeypatch.setattr(checkpoints, "sync", fail)

    async def add_many() -> None:
        for _ in range(5_000):
            await bench.add_waiting(a_draft(body=b"x" * 10_000))

    with pytest.raises(StoreBroken, match="planted"):
        await add_many()
    await store.close()


async def test_a_store_that_is_closed_leaves_no_log(path: str) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    await Bench(store).add(a_draft())
    await store.close()

    assert not Path(f"{path}-wal").exists()


async def test_a_link_to_the_file_is_locked_with_it(path: str) -> None:
    """D32."""
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    Path(f"{path}.link").symlink_to(path)

    with pytest.raises(Locked):
        SqliteStore(f"{path}.link", free_bytes_min=0, now_ms=T0)

    await store.close()


async def test_a_writer_that_falls_over_says_so_to_everyone(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    bench = Bench(store)

    def fall_over(_turn_ms: int) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(store.writer, "on_waiting", fall_over)
    with pytest.raises(StoreBroken, match="planted"):
        await bench.add(a_draft(delay_ms=HOUR))
    with pytest.raises(StoreBroken):
        await bench.add(a_draft())
    with pytest.raises(StoreBroken):
        await store.pulse(now_ms=T0)
    await store.close()


async def test_lists_longer_than_a_statement_takes_are_asked_for_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database, "VARIABLES_MAX", 3)
    store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
    bench = Bench(store)
    await bench.add_waiting(*[a_draft() for _ in range(20)])

    claims = await bench.claim()
    await store.release(claims, now_ms=T0)
    for claim in claims:
        give_back_place(bench.places, claim, Sign.WELL)
    again = await bench.claim()
    await asyncio.gather(*[bench.deliver(claim) for claim in again])

    assert len(claims) == len(again) == 20
    assert await bench.claim() == []
    await store.close()


async def test_the_pages_of_what_was_removed_go_back_to_the_file_system(path: str) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    bench = Bench(store)
    await bench.add(*[a_draft(body=b"x" * 20_000) for _ in range(60)])
    for claim in bench.born:
        await bench.deliver(claim)
    before = store.writer.db.pragma("page_count")

    keep = Retention(log_ms=DAY, dead_letter_ms=DAY)
    await store.prune(retention=keep, now_ms=T0 + 2 * DAY)

    after = store.writer.db.pragma("page_count")
    assert before - after > 200
    await store.close()


async def test_the_dates_of_the_log_are_found_by_an_index() -> None:
    """W172: and what is before and after them is not looked at."""
    store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
    seen: set[str] = set()
    store.writer.db.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: seen.add(str(event["sql"])))
    of = Filter(from_ms=T0, to_ms=T0 + 1, labels=frozenset({"a"}))
    for by_message in (False, True):
        view = LogView(by_message=by_message)
        await store.log(
            "acme", where=LogFilter(of=of), view=view, cursor=None, count_max=5, bytes_max=1 << 20
        )
    store.writer.db.trace_v2(0)

    walks = [sql for sql in seen if "(e.time_ms, e.number)" in sql]
    assert len(walks) == 3
    for sql in walks:
        plan = list(store.writer.db.execute(f"EXPLAIN QUERY PLAN {sql}", [None] * sql.count("?")))
        by = "PRIMARY KEY (tenant=? AND (time_ms,number)>(?,?) AND (time_ms,number)<(?,?))"
        assert any(by in row[3] for row in plan), sql
        assert not [row for row in plan if "TEMP B-TREE" in row[3]], sql
    await store.close()


async def test_the_run_of_a_schedule_is_found_by_its_messages() -> None:
    """However much has been logged since: else each would be looked for from the log's end."""
    store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
    schedule = a_schedule(run=["msg_a"])
    await store.change_schedule("acme", schedule.id, lambda _: schedule, body=b"")
    seen: list[str] = []
    store.writer.db.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: seen.append(str(event["sql"])))
    assert await store.schedule("acme", schedule.id) is not None
    store.writer.db.trace_v2(0)

    [sql] = [sql for sql in seen if "FROM event" in sql]
    plan = store.writer.db.execute(f"EXPLAIN QUERY PLAN {sql}", [None] * sql.count("?"))
    assert any("event_message" in row[3] and "message_id=?" in row[3] for row in plan), sql
    await store.close()


async def test_who_waited_for_a_reader_rests_no_longer_for_that(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rested: list[float] = []
    rest = asyncio.sleep

    async def rests(rest_s: float) -> None:
        rested.append(rest_s)
        await rest(0)

    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    bench = Bench(store)
    gate = threading.Event()
    monkeypatch.setattr(readers, "LONG_S", -1)
    monkeypatch.setattr(asyncio, "sleep", rests)
    slow = [store._readers.look(lambda _: gate.wait()) for _ in range(readers.READERS)]
    looks = asyncio.gather(*slow, store._readers.look(lambda _: None))
    for _ in range(20):
        await bench.add_waiting(a_draft(delay_ms=HOUR))
    gate.set()

    await looks

    assert len(rested) == readers.READERS + 1
    assert 2 * min(rested) < max(rested)
    await store.close()


async def test_the_log_of_a_message_is_found_by_its_id() -> None:
    store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
    seen: set[str] = set()
    store.writer.db.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: seen.add(str(event["sql"])))
    for states in ([], [Logged.FAILED]):
        of = Filter(message_ids=frozenset({"a", "b"}))
        where = LogFilter(of=of, states=states)
        await store.log("acme", where=where, cursor=None, count_max=5, bytes_max=1 << 20)
    store.writer.db.trace_v2(0)

    for sql in seen:
        plan = store.writer.db.execute(f"EXPLAIN QUERY PLAN {sql}", [None] * sql.count("?"))
        assert any("event_message" in row[3] and "message_id=?" in row[3] for row in plan), sql
    assert len(seen) == 2
    await store.close()


async def test_a_large_store_is_not_counted_over_and_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counts, "COUNTED_QUICKLY_S", 0)
    monkeypatch.setattr(counts, "COUNTS_KEPT", 1_000_000)
    store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
    before = await store.pulse(now_ms=T0)
    await Bench(store).add_waiting(a_draft())

    after = await store.pulse(now_ms=T0)

    assert (before.waiting, after.waiting) == (0, 0)
    assert (before.oldest_due_ms, after.oldest_due_ms) == (None, T0)
    await store.close()


async def test_those_who_would_claim_are_told_of_turns_and_of_nothing_else() -> None:
    store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
    bench = Bench(store)
    hints: list[int] = []
    store.writer.on_waiting = hints.append

    await bench.add(*queued(count=1))
    await bench.deliver(bench.born[0])
    assert hints == []
    await bench.add(a_draft(delay_ms=HOUR), a_draft(delay_ms=2 * HOUR))
    assert hints == [T0 + HOUR]
    await store.close()


async def test_a_claim_that_can_do_nothing_writes_nothing(path: str) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    bench = Bench(store, some_places(bytes_max=1_000))
    await bench.add(a_draft(body=b"x" * 1_000))
    await Bench(store).add_waiting(a_draft(body=b"y"))
    before = Path(f"{path}-wal").stat().st_size

    for n in range(20):
        assert await bench.claim(now_ms=T0 + n) == []

    assert Path(f"{path}-wal").stat().st_size == before
    await store.close()


# What a claim costs: the steps of SQLite's machine, counted by SQLite itself.


async def _steps_of_a_claim(bench: Bench, store: SqliteStore, *, count: int = 10) -> int:
    """Steps of every statement that one claim of some messages ran."""
    steps = 0

    def note(event: dict[str, object]) -> None:
        nonlocal steps
        status = event["stmt_status"]
        assert isinstance(status, dict)
        steps += status["SQLITE_STMTSTATUS_VM_STEP"]

    store.writer.db.trace_v2(apsw.SQLITE_TRACE_PROFILE, note)
    claims = await bench.claim(10)
    store.writer.db.trace_v2(0)
    assert len(claims) == count
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


async def test_the_cost_of_a_freed_place_does_not_grow_with_the_lanes_that_wait_for_it() -> None:
    costs = {}
    for waiting in (20, 2_000):
        store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
        bench = Bench(store, some_places(host_count_max=1))
        await bench.add(a_draft())
        for start in range(0, waiting, 500):
            count = min(500, waiting - start)
            await Bench(store).add_waiting(
                *[draft for n in range(count) for draft in queued(f"q{start + n}", count=1)]
            )
        while await bench.next_due_ms() is not None:
            await bench.claim()
        await bench.deliver(bench.born[0])
        costs[waiting] = await _steps_of_a_claim(bench, store, count=1)
        await store.close()

    assert costs[2_000] <= costs[20] * 1.05, costs


async def test_the_cost_of_a_claim_does_not_grow_with_tenants_that_are_not_ready() -> None:
    costs = {}
    for tenants in (100, 5_000):
        store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
        bench = Bench(store)
        await bench.add(*[a_draft(tenant=f"t{n}", delay_ms=HOUR) for n in range(tenants)])
        await bench.add_waiting(*[a_draft(tenant="t77") for _ in range(10)])
        costs[tenants] = await _steps_of_a_claim(bench, store)
        await store.close()

    assert costs[5_000] <= costs[100] * 1.05, costs


@pytest.mark.parametrize("limits", [{"parallelism": 1}, {"rate": 1, "period_ms": HOUR}])
async def test_the_cost_of_a_claim_does_not_grow_with_what_waits_for_keys(
    limits: dict[str, int],
) -> None:
    """Neither with messages that have only a key, nor with queues, nor with keys."""
    costs = {}
    for waiting in (20, 2_000):
        store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
        bench = Bench(store)
        for start in range(0, waiting, 500):
            for n in range(start, min(start + 500, waiting)):
                drafts = [
                    a_draft(flow=Flow("k", **limits)),
                    a_draft(flow=Flow("k", **limits), queue=f"q{n}"),
                    *[a_draft(flow=Flow(f"k{n}", **limits)) for _ in range(2)],
                ]
                await Bench(store).add_waiting(*drafts)
        while await bench.next_due_ms() not in (None, T0 + HOUR):
            await bench.claim(1_000)
        await bench.add_waiting(*[a_draft(url=f"https://good{n}.example/") for n in range(40)])
        costs[waiting] = await _steps_of_a_claim(bench, store)
        await store.close()

    assert costs[2_000] <= costs[20] * 1.05, costs


async def test_the_cost_of_a_freed_permit_does_not_grow_with_what_waits_for_it() -> None:
    costs = {}
    for waiting in (20, 2_000):
        store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
        bench = Bench(store)
        flow = Flow("k", parallelism=1)
        await bench.add(a_draft(flow=flow))
        for start in range(0, waiting, 500):
            count = min(500, waiting - start)
            await bench.add(
                *[a_draft(flow=flow) for _ in range(count)],
                *[a_draft(flow=flow, queue=f"q{start + n}") for n in range(count)],
            )
        while await bench.next_due_ms() is not None:
            await bench.claim()
        await bench.deliver(bench.born[0])
        costs[waiting] = await _steps_of_a_claim(bench, store, count=1)
        await store.close()

    assert costs[2_000] <= costs[20] * 1.05, costs


async def test_no_statement_of_the_hot_path_scans_a_table() -> None:
    store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
    seen: set[str] = set()
    store.writer.db.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: seen.add(str(event["sql"])))
    bench = Bench(store)
    await bench.add_waiting(a_draft(url="https://other.example/"))
    await bench.add(a_draft(dedup_key="id:a"), *queued(count=3), a_draft(delay_ms=HOUR))
    [first, second] = bench.born
    await bench.retry(first, at_ms=T0 + 1)
    await bench.end(second, Delivered(), OK, callbacks=[a_callback(second.message)])
    await bench.deliver(bench.born[2])
    await bench.claim(now_ms=T0 + 1)
    await bench.store.cancel("acme", first.message.id, now_ms=T0)
    flow = Flow("k", parallelism=1)
    await bench.add(a_draft(flow=flow), a_draft(flow=flow), *queued(count=1, flow=flow))
    await bench.claim(now_ms=T0 + 1)
    await bench.deliver(bench.born[-1])
    await bench.claim(now_ms=T0 + 1)
    store.writer.db.trace_v2(0)

    plans = {}
    for sql in seen:
        if sql.split()[0] in {"SELECT", "UPDATE", "DELETE"}:
            numbered = set(re.findall(r"\?\d+", sql))
            rows = store.writer.db.execute(
                f"EXPLAIN QUERY PLAN {sql}", [None] * (len(numbered) or sql.count("?"))
            ).fetchall()
            plans[sql] = [str(row[3]) for row in rows]
    scans = {
        sql: steps
        for sql, steps in plans.items()
        if any(re.match(r"SCAN (?!CONSTANT ROW|\(subquery)(?!.* USING )", step) for step in steps)
    }
    await store.close()

    assert len(plans) >= 8
    assert scans == {}


async def _waiting_ids(bench: Bench, count: int) -> list[str]:
    accepted = await bench.add_waiting(*[a_draft(delay_ms=HOUR) for _ in range(count)])
    return [each.message_id for each in accepted]


def _cancels(store: SqliteStore, ids: list[str]) -> list[asyncio.Task[int]]:
    """Bulk calls of two messages each."""
    return [
        asyncio.ensure_future(store.cancel_many("acme", ids[at : at + 2], now_ms=T0))
        for at in range(0, len(ids), 2)
    ]


def _syncs(
    store: SqliteStore, cancels: list[asyncio.Task[int]], monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """How many of the calls were answered before each sync."""
    synced: list[int] = []
    sync = store.writer._sync_now

    def noted() -> None:
        synced.append(sum(cancel.done() for cancel in cancels))
        sync()

    monkeypatch.setattr(store.writer, "_sync_now", noted)
    return synced


async def test_bulk_calls_share_a_sync_and_none_is_answered_before_it(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    cancels = _cancels(store, await _waiting_ids(Bench(store), 40))
    synced = _syncs(store, cancels, monkeypatch)

    assert await asyncio.gather(*cancels) == [2] * 20
    assert synced == [0, writer.UNSYNCED_MAX]
    await store.close()


async def _unsynced(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> list[asyncio.Task[int]]:
    """Two bulk calls that are done, and wait for a sync that does not come by itself."""
    resting = asyncio.Event()
    rest = store.writer._rest

    async def rests(rest_s: float) -> None:
        if rest_s == writer.SYNC_REST_S:
            resting.set()
        await rest(rest_s)

    monkeypatch.setattr(writer, "SYNC_REST_S", 3600)
    monkeypatch.setattr(store.writer, "_rest", rests)
    cancels = _cancels(store, await _waiting_ids(Bench(store), 4))
    await resting.wait()
    return cancels


async def test_a_batch_that_writes_nothing_answers_no_bulk_call_before_its_sync(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its COMMIT syncs nothing: there is nothing of its own to sync."""
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    cancels = await _unsynced(store, monkeypatch)
    synced = _syncs(store, cancels, monkeypatch)

    assert await store.changed()

    assert await asyncio.gather(*cancels) == [2, 2]
    assert synced == [0]
    await store.close()


async def test_a_batch_that_fails_leaves_no_bulk_call_without_an_answer(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    cancels = await _unsynced(store, monkeypatch)

    with pytest.raises(TypeError):
        await store.cancel("acme", object(), now_ms=T0)  # type: ignore[arg-type]

    assert await asyncio.gather(*cancels) == [2, 2]
    await store.close()


async def test_whoever_publishes_goes_before_bulk_calls(path: str) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    bench = Bench(store)
    cancels = _cancels(store, await _waiting_ids(bench, 200))
    await asyncio.sleep(0)

    await bench.add(a_draft(delay_ms=HOUR))

    assert sum(cancel.done() for cancel in cancels) < 50
    await asyncio.gather(*cancels)
    await store.close()


async def test_what_follows_a_publish_goes_before_bulk_calls(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "QUIET_S", 3600)
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    bench = Bench(store)
    ids = await _waiting_ids(bench, 10)
    first = asyncio.ensure_future(bench.add(a_draft(delay_ms=HOUR)))
    await asyncio.sleep(0)
    cancels = _cancels(store, ids)

    await first
    await bench.add(a_draft(delay_ms=HOUR))

    assert len(store.writer._patient) == len(cancels)
    await store.close()
    assert await asyncio.gather(*cancels) == [2] * 5


async def test_bulk_calls_have_their_turns_however_many_publish(path: str) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    bench = Bench(store)
    cancels = _cancels(store, await _waiting_ids(bench, 10))
    published = 0

    async def publish() -> None:
        nonlocal published
        while not all(cancel.done() for cancel in cancels):
            await bench.add(a_draft(delay_ms=HOUR))
            published += 1

    await asyncio.gather(publish(), publish())

    assert published < 200
    await store.close()


async def test_a_sync_that_fails_leaves_bulk_calls_unanswered_and_the_store_broken(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    bench = Bench(store)
    cancels = _cancels(store, await _waiting_ids(bench, 10))

    def fail() -> None:
        raise OSError("planted")

    monkeypatch.setattr(store.writer, "_sync_now", fail)
    answers = await asyncio.gather(*cancels, return_exceptions=True)

    assert [type(answer) for answer in answers] == [StoreBroken] * 5
    with pytest.raises(StoreBroken, match="planted"):
        await bench.add(a_draft())
    await store.close()


async def test_a_bulk_call_that_fails_keeps_the_others_from_nothing(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
    ids = await _waiting_ids(Bench(store), 10)
    bad = asyncio.ensure_future(store.cancel_many("acme", [ids[0], object()], now_ms=T0))  # type: ignore[list-item]
    cancels = _cancels(store, ids)
    last = asyncio.ensure_future(store.cancel_many("acme", [ids[0], object()], now_ms=T0))  # type: ignore[list-item]

    answers = await asyncio.gather(*cancels)

    assert answers == [2] * 5
    for failed in (bad, last):
        with pytest.raises(TypeError):
            await failed
    await store.close()
