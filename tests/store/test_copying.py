"""A store that was copied from a file into PostgreSQL: all of it is there, or nothing."""

import asyncio
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import apsw
import asyncpg
import pytest
from msgspec.structs import replace

from tests.store.bench import Bench, id_of, ids
from tests.support.databases import Databases, connected
from tests.support.factory import DAY, HOUR, MINUTE, SECOND, T0, a_draft, a_message
from tests.support.full_store import DEDUP_KEY, FIRST_DAY, LAST_MS, a_bare_database, fill
from tests.support.postgres import SHIPPED
from waypost.domain.attempt import Delivered
from waypost.domain.errors import Invalid, StaleClaim, StoreUnavailable
from waypost.domain.filters import EVERYTHING
from waypost.domain.flow import FlowKey
from waypost.domain.lanes import lane_of
from waypost.domain.message import Message
from waypost.store import copying
from waypost.store.copying import CHUNK_BYTES, CHUNK_ROWS, TABLES, Copied, Differs, chunks
from waypost.store.postgres import database, parts
from waypost.store.postgres.copying import OWN, PostgresTarget, open_target
from waypost.store.postgres.database import migrate
from waypost.store.postgres.store import open_postgres
from waypost.store.protocol import BYTES_MAX, Draft, LogFilter, LogView, Retention, Store
from waypost.store.sqlite.copying import SqliteSource, open_source
from waypost.store.sqlite.database import Locked
from waypost.store.sqlite.store import SqliteStore

NOW_MS = LAST_MS + SECOND
"""When a server is started on the copy."""

AFTER_MS = T0 + 3 * DAY
"""By then everything that waits has come to be due."""

_names = count()


@pytest.fixture
async def url(databases: Callable[[str], Databases]) -> AsyncIterator[str]:
    """A database in which there is nothing."""
    server = databases(SHIPPED).server
    async with a_bare_database(server, f"copy_{next(_names)}") as bare:
        yield bare


@pytest.fixture
async def full(tmp_path: Path) -> tuple[Path, Draft]:
    """A store with something of everything in it, and the draft that has `DEDUP_KEY`."""
    path = tmp_path / "full.db"
    return path, await fill(path)


@pytest.fixture
def path(full: tuple[Path, Draft]) -> Path:
    return full[0]


async def copy(path: Path, url: str) -> list[Copied]:
    async with (
        open_source(str(path), now_ms=LAST_MS) as source,
        open_target(url, number_max=source.number_max) as target,
    ):
        return await copying.copy(source, target, watch=lambda *_: None)


@asynccontextmanager
async def in_file(path: Path) -> AsyncIterator[Bench]:
    """The store that was copied, as it would have gone on."""
    store = SqliteStore(str(path), free_bytes_min=0, now_ms=NOW_MS)
    try:
        yield Bench(store)
    finally:
        await store.close()


@asynccontextmanager
async def in_database(url: str) -> AsyncIterator[Bench]:
    store = await open_postgres(url, now_ms=NOW_MS)
    try:
        yield Bench(store)
    finally:
        await store.close()


async def is_untouched(url: str) -> bool:
    async with connected(url) as db:
        count = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        return await db.fetchval(count) == 0


async def pages(store: Store, tenant: str, view: LogView) -> list[object]:
    """The log in small pages, with the cursors between them."""
    seen: list[object] = []
    cursor = None
    while True:
        page = await store.log(
            tenant,
            where=LogFilter(),
            view=view,
            cursor=cursor,
            count_max=7,
            bytes_max=BYTES_MAX,
        )
        seen.append(page)
        cursor = page.cursor
        if cursor is None:
            return seen


async def shown(store: Store) -> dict[str, object]:
    """All that there is to see."""
    seen: dict[str, object] = {"tenants": await store.tenants(), "tokens": await store.tokens()}
    for tenant in ("acme", "beta", "gone"):
        alive = await store.cancellable(tenant, where=EVERYTHING, cursor=None)
        assert alive.cursor is None
        for view in (LogView(), LogView(latest_first=False), LogView(by_message=True)):
            seen[f"log of {tenant} {view}"] = await pages(store, tenant, view)
        seen |= {
            f"alive of {tenant}": alive.ids,
            f"messages of {tenant}": [await store.message(tenant, each) for each in alive.ids],
            f"letters of {tenant}": await store.dead_letters(tenant, cursor=None, count_max=100),
            f"queues of {tenant}": await store.queues(tenant),
            f"groups of {tenant}": await store.url_groups(tenant),
            f"schedules of {tenant}": await store.schedules(tenant, bytes_max=BYTES_MAX),
            f"keys of {tenant}": await store.flow_keys(tenant, now_ms=NOW_MS),
        }
    return seen


async def prune(store: Store, *, keep_ms: int) -> None:
    """Remove the log from before."""
    retention = Retention(log_ms=keep_ms, dead_letter_ms=40 * DAY)
    while (await store.prune(retention=retention, now_ms=NOW_MS)).more:
        pass


async def let_go(bench: Bench) -> None:
    """Resume what is paused."""

    def resumed(key: FlowKey | None) -> FlowKey:
        assert key is not None
        return replace(key, paused=False)

    await bench.store.change_flow_key("acme", "stopped", resumed, now_ms=NOW_MS)
    await bench.store.pause_queue("acme", "paused", paused=False, now_ms=NOW_MS)


async def deliveries(bench: Bench) -> dict[tuple[str, str], list[tuple[object, ...]]]:
    """Deliver whatever becomes due, step by step in time: how each was handed out, by what
    keeps it in order."""
    went = defaultdict(list)
    for now_ms in range(NOW_MS, AFTER_MS, HOUR // 2):
        while claims := await bench.claim(now_ms=now_ms):
            for claim in claims:
                message = claim.message
                place = (message.tenant, lane_of(message, claim.host))
                how = (message.id, claim.body, claim.retried, claim.interrupted, now_ms)
                went[place].append(how)
                await bench.deliver(claim, now_ms=now_ms)
    return dict(went)


async def test_a_copy_shows_what_the_store_shows(path: Path, url: str) -> None:
    await copy(path, url)

    async with in_database(url) as copied, in_file(path) as kept:
        assert await shown(copied.store) == await shown(kept.store)


async def test_what_waits_is_delivered_in_the_order_and_at_the_times_of_the_store(
    path: Path, url: str
) -> None:
    await copy(path, url)

    async with in_database(url) as bench:
        alive = (await bench.store.pulse(now_ms=NOW_MS)).waiting
        await let_go(bench)
        copied = await deliveries(bench)
    async with in_file(path) as bench:
        await let_go(bench)
        kept = await deliveries(bench)

    assert copied == kept
    assert len(copied) == 19
    assert sum(map(len, copied.values())) == alive


async def test_nothing_is_held_when_all_has_ended(path: Path, url: str) -> None:
    await copy(path, url)
    async with in_database(url) as bench:
        await let_go(bench)

        await deliveries(bench)

        assert all(queue.lag == 0 for queue in await bench.store.queues("acme"))
        keys = await bench.store.flow_keys("acme", now_ms=AFTER_MS)
        assert [(key.in_use, key.waiting) for key in keys] == [(0, 0)] * len(keys)
    async with connected(url) as db:
        for table in ("hold", "lane", "delivery"):
            assert await db.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_what_was_under_way_waits_again_as_after_a_restart(path: Path, url: str) -> None:
    await copy(path, url)

    async with in_database(url) as bench:
        states = await bench.store.flow_keys("acme", now_ms=NOW_MS)
        assert {state.key.name: state.in_use for state in states} == dict.fromkeys(
            ("cut", "deadly", "pinned", "rate", "stopped"), 0
        )
        claims = await bench.claim(now_ms=NOW_MS)
        interrupted = {claim.body: claim.interrupted for claim in claims}
        assert interrupted[b"cut short"] == interrupted[b"first"] == 1
        assert b"second" not in interrupted


async def test_a_claim_from_before_is_stale(path: Path, url: str) -> None:
    async with in_file(path) as kept:
        claims = await kept.claim(now_ms=NOW_MS)
    assert claims
    await copy(path, url)

    async with in_database(url) as bench:
        again = await bench.claim(now_ms=NOW_MS)
        for before in claims:
            with pytest.raises(StaleClaim):
                await bench.end(before, Delivered(), now_ms=NOW_MS)
        tokens = {claim.number: claim.token for claim in claims}
        assert all(claim.token > tokens.get(claim.number, 0) for claim in again)


async def test_a_key_that_was_taken_still_answers_with_the_first(
    full: tuple[Path, Draft], url: str
) -> None:
    path, once = full
    await copy(path, url)

    async with in_database(url) as bench:
        [accepted] = await bench.add(a_draft(dedup_key=DEDUP_KEY), now_ms=NOW_MS)

    assert accepted.message_id == id_of(once)
    assert accepted.deduplicated


async def test_a_dead_letter_is_retried_with_its_body(path: Path, url: str) -> None:
    def again(dead: Message) -> Draft:
        new = a_message(at_ms=NOW_MS)
        message = replace(
            dead, id=new.id, created_ms=new.created_ms, not_before_ms=new.not_before_ms
        )
        return Draft(message=message, host="https://example.com:443")

    await copy(path, url)

    async with in_database(url) as bench:
        letters = (await bench.store.dead_letters("acme", cursor=None, count_max=100)).dead_letters
        assert len(letters) == 3
        retried = await bench.store.retry_dead_letters(
            "acme", [letters[0].id], again, now_ms=NOW_MS
        )
        claims = {claim.message.id: claim for claim in await bench.claim(now_ms=NOW_MS)}
        assert claims[str(retried[0])].body == letters[0].body == b"x"


async def test_what_comes_after_the_copy_comes_after_what_was_copied(path: Path, url: str) -> None:
    await copy(path, url)

    async with in_database(url) as bench:
        latest = a_draft(queue="cut", at_ms=NOW_MS)
        await bench.add_waiting(latest, now_ms=NOW_MS)
        await let_go(bench)
        went = await deliveries(bench)
        log = await bench.log(latest.message.id)

    assert [body for _, body, *_ in went["acme", "queue:cut"]][:2] == [b"first", b"second"]
    assert went["acme", "queue:cut"][-1][0] == latest.message.id
    assert [entry.state.value for entry in log] == ["CREATED", "ACTIVE", "DELIVERED"]
    async with connected(url) as db:
        old, new = await db.fetchrow(
            "SELECT max(number) FILTER (WHERE time_ms <= $1),"
            " min(number) FILTER (WHERE time_ms > $1) FROM event",
            LAST_MS,
        )
        assert old < new


async def test_schedules_fire_from_the_copy(path: Path, url: str) -> None:
    await copy(path, url)

    async with in_database(url) as bench:
        due = await bench.store.due_schedules(now_ms=T0 + MINUTE, count_max=10, bytes_max=BYTES_MAX)

    assert [(schedule.id, body) for schedule, body in due.due] == [("due", b"tick")]


async def test_each_day_of_the_log_can_be_dropped_whole(path: Path, url: str) -> None:
    await copy(path, url)

    async with connected(url) as db:
        days = [day_ms - day_ms % DAY for day_ms in range(FIRST_DAY, T0 + 1, DAY)]
        assert await parts.days(db) == days
        assert await db.fetchval(f"SELECT count(*) FROM {parts.OTHER_TIMES}") == 0
        async with in_database(url) as bench:
            await prune(bench.store, keep_ms=DAY)
        assert (await parts.days(db))[0] == days[2]


# What it refuses


async def test_a_store_that_a_server_has_open_is_not_copied(path: Path, url: str) -> None:
    async with in_file(path):
        with pytest.raises(Locked):
            await copy(path, url)

    assert await is_untouched(url)


async def test_no_server_starts_on_a_store_while_it_is_copied(path: Path) -> None:
    async with open_source(str(path), now_ms=LAST_MS):
        with pytest.raises(Locked):
            SqliteStore(str(path), free_bytes_min=0, now_ms=NOW_MS)


@pytest.mark.parametrize("made", [False, True], ids=["nothing in it", "empty tables in it"])
async def test_a_server_that_starts_on_the_target_meanwhile_gives_up(
    path: Path, url: str, made: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "STATEMENT_S_MAX", 0.2)
    if made:
        async with connected(url) as db:
            await migrate(db)
    async with (
        open_source(str(path), now_ms=LAST_MS) as source,
        open_target(url, number_max=source.number_max) as target,
    ):
        await copying.copy(source, target, watch=lambda *_: None)
        with pytest.raises(StoreUnavailable):
            await open_postgres(url, now_ms=NOW_MS, statement_s_max=0.2)

    async with in_database(url) as bench:
        assert len(await bench.store.tenants()) == 3


async def test_a_target_with_a_table_that_is_not_ours_is_refused(path: Path, url: str) -> None:
    async with connected(url) as db:
        await db.execute("CREATE SCHEMA theirs; CREATE TABLE theirs.thing ()")

    with pytest.raises(Invalid, match=r"not empty: it has a table theirs\.thing"):
        await copy(path, url)


async def test_a_target_that_holds_anything_is_refused_and_stays_as_it_is(
    path: Path, url: str
) -> None:
    await copy(path, url)
    async with in_database(url) as bench:
        before = await shown(bench.store)
    async with connected(url) as db:
        await db.execute("DELETE FROM node")

    with pytest.raises(Invalid, match="not empty: there are rows in its table tenant"):
        await copy(path, url)

    async with in_database(url) as bench:
        assert await shown(bench.store) == before


async def test_a_target_on_which_a_server_runs_is_refused(path: Path, url: str) -> None:
    async with in_database(url):
        with pytest.raises(Invalid, match="a server runs on it"):
            await copy(path, url)


async def test_a_target_on_which_a_server_has_run_and_left_nothing_is_empty(
    path: Path, url: str
) -> None:
    async with in_database(url) as bench:
        await prune(bench.store, keep_ms=0)

    await copy(path, url)

    async with in_database(url) as copied, in_file(path) as kept:
        assert await shown(copied.store) == await shown(kept.store)
        await prune(copied.store, keep_ms=30 * DAY)
        assert await shown(copied.store) == await shown(kept.store)


async def test_two_copies_do_not_mix(path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waypost.store.postgres.copying.LOCK_S", 1)
    other = path.with_name("other.db")
    shutil.copy(path, other)
    async with open_target(url, number_max=1):
        with pytest.raises(Invalid, match="in use"):
            await copy(other, url)


# What interrupts it, and what it finds


@pytest.mark.parametrize("table", ["tenant", "message", "event", "url_group"])
async def test_a_copy_that_is_interrupted_leaves_nothing_and_can_be_run_again(
    path: Path, url: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = PostgresTarget.write

    async def interrupted(target, of, rows):  # type: ignore[no-untyped-def]
        await write(target, of, rows)
        if of.name == table:
            raise asyncio.CancelledError

    monkeypatch.setattr(PostgresTarget, "write", interrupted)
    with pytest.raises(asyncio.CancelledError):
        await copy(path, url)
    assert await is_untouched(url)
    monkeypatch.undo()

    await copy(path, url)

    async with in_database(url) as copied, in_file(path) as kept:
        assert await shown(copied.store) == await shown(kept.store)


async def test_a_connection_that_is_lost_leaves_nothing(
    path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = PostgresTarget.write

    async def cut_off(target, of, rows):  # type: ignore[no-untyped-def]
        if of.name == "event":
            async with connected(url) as db:
                await db.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
        await write(target, of, rows)

    monkeypatch.setattr(PostgresTarget, "write", cut_off)
    with pytest.raises(StoreUnavailable):
        await copy(path, url)
    assert await is_untouched(url)


ALTERED = {
    "message": "NEW.facts := NEW.facts || ' '::bytea; RETURN NEW",
    "body": "NEW.bytes := overlay(NEW.bytes PLACING 'y'::bytea FROM 1); RETURN NEW",
    "delivery": "NEW.due_ms := NEW.due_ms + 1; RETURN NEW",
    "event": "IF NEW.state = 'CANCELED' THEN RETURN NULL; END IF; RETURN NEW",
    "schedule": "NEW.body := ''; RETURN NEW",
    "token": "NEW.read_only := true; RETURN NEW",
}
"""What may go wrong with a table, as a trigger does it."""


@pytest.mark.parametrize("table", ALTERED)
async def test_what_is_not_there_as_it_was_is_found_and_nothing_is_kept(
    path: Path, url: str, table: str
) -> None:
    async with in_database(url):
        pass
    async with connected(url) as db:
        await db.execute(
            f"CREATE FUNCTION alter_it() RETURNS trigger LANGUAGE plpgsql"
            f" AS $$ BEGIN {ALTERED[table]}; END $$;"
            f" CREATE TRIGGER altering BEFORE INSERT ON {table}"
            f" FOR EACH ROW EXECUTE FUNCTION alter_it()"
        )

        with pytest.raises(Differs, match=f"the table {table} was not copied as it is"):
            await copy(path, url)

        assert await db.fetchval("SELECT count(*) FROM tenant") == 0
        await db.execute(f"DROP TRIGGER altering ON {table}")
    await copy(path, url)


# What is copied


async def columns_in_file(path: Path) -> dict[str, set[str]]:
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    rows = db.execute(
        "SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c"
        " WHERE t.type = 'table'"
    ).fetchall()
    db.close()
    return by_table(rows)


async def columns_in_database(url: str) -> dict[str, set[str]]:
    async with connected(url) as db:
        rows: list[asyncpg.Record] = await db.fetch(
            "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0"
            " AND c.relnamespace = 'public'::regnamespace"
        )
    return by_table([(row[0], row[1]) for row in rows])


def by_table(rows: list[tuple[str, str]]) -> dict[str, set[str]]:
    tables: dict[str, set[str]] = {}
    for table, column in rows:
        tables.setdefault(table, set()).add(column)
    return tables


def left_out(tables: dict[str, set[str]]) -> dict[str, set[str]]:
    """The columns that are not copied."""
    copied = {table.name: set(table.columns) for table in TABLES}
    left = {name: columns - copied.get(name, set()) for name, columns in tables.items()}
    return {name: columns for name, columns in left.items() if columns}


OF_CLAIMS = {"lane": {"blocked_on", "retry_ms"}, "flow_key": {"opens_ms"}}
"""What is worked out anew by the next claim."""


async def test_every_column_is_copied_or_known_to_be_of_one_engine(path: Path, url: str) -> None:
    await copy(path, url)

    assert left_out(await columns_in_file(path)) == {
        "boot": {"count"},
        "delivery": {"token"},
        "schedule_body": {"tenant", "id", "bytes"},
        **OF_CLAIMS,
    }
    left = left_out(await columns_in_database(url))
    assert {name: left.pop(name) for name in OWN}.keys() == set(OWN)
    assert left == {"delivery": {"token", "node"}, **OF_CLAIMS}


async def test_the_summary_tells_what_is_there(path: Path, url: str) -> None:
    copied = await copy(path, url)

    assert [each.table for each in copied] == [table.name for table in TABLES]
    assert all(each.rows for each in copied), "there is something in each table"
    async with connected(url) as db:
        for each in copied:
            assert await db.fetchval(f"SELECT count(*) FROM {each.table}") == each.rows


async def test_an_empty_store_is_copied_too(tmp_path: Path, url: str) -> None:
    copied = await copy(tmp_path / "new.db", url)

    assert {each.rows for each in copied} == {0}
    async with in_database(url) as bench:
        draft = a_draft()
        await bench.add(draft)
        assert ids(bench.born) == [id_of(draft)]


async def test_hashes_tell_rows_columns_and_kinds_apart(path: Path) -> None:
    def sum_of(*rows: tuple[object, ...]) -> str:
        tally = copying.Tally()
        for row in rows:
            tally.add(copying.hashed(row))
        return tally.sha256

    sums = [
        sum_of(),
        sum_of(("a", "b")),
        sum_of(("ab", "")),
        sum_of(("a",), ("b",)),
        sum_of(("b",), ("a",)),
        sum_of(("1",)),
        sum_of((1,)),
        sum_of((True,)),
        sum_of((None,)),
        sum_of((b"1",)),
        sum_of((b"",)),
    ]
    assert len(set(sums)) == len(sums)


def test_rows_are_taken_in_chunks_of_bounded_size_and_not_read_ahead() -> None:
    taken = 0

    def rows(size: int):  # type: ignore[no-untyped-def]
        nonlocal taken
        for taken in range(1, 10 * CHUNK_ROWS + 2):
            yield (taken, bytes(size))

    assert [len(chunk) for chunk in chunks(rows(0))] == [CHUNK_ROWS] * 10 + [1]
    for chunk in chunks(rows(CHUNK_BYTES // 4)):
        assert len(chunk) == 4
        assert taken == chunk[-1][0]
        if taken > 100:
            break


async def test_a_source_is_read_in_the_order_of_the_target(path: Path, url: str) -> None:
    """The order of bytes, whatever people write: it is what makes the hashes comparable."""
    async with open_source(str(path), now_ms=LAST_MS) as source:
        assert isinstance(source, SqliteSource)
        groups = next(table for table in TABLES if table.name == "url_group")
        names = [row[1] for row in source.rows(groups) if row[0] == "acme"]
    assert names == sorted(names, key=str.encode) == ["Ünïcode", "～", "😀"]
