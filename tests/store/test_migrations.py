"""Schemas that are brought up to date, and programs that are older than they are."""

import asyncio
from collections.abc import Callable, Iterator

import pytest

from tests.store.bench import Bench
from tests.support.databases import Databases, connected
from tests.support.factory import a_draft
from tests.support.postgres import SHIPPED
from waypost.domain.errors import Invalid
from waypost.store.migrations import Lag, Migration, SchemaTooNew, missing
from waypost.store.postgres.database import MIGRATIONS, lag, make, migrate
from waypost.store.postgres.store import open_postgres

NEXT = len(MIGRATIONS) + 1

ADDITIVE = f"""
-- works with: {NEXT - 1}
ALTER TABLE delivery ADD COLUMN priority integer NOT NULL DEFAULT 0;
ALTER TABLE message ADD COLUMN note text;
ALTER TABLE event ADD COLUMN region text NOT NULL DEFAULT '';
CREATE TABLE label (tenant text NOT NULL, label text NOT NULL);
"""


def a_migration(sql: str, number: int = NEXT) -> Migration:
    return Migration(number, f"{number:04}_next.sql", sql)


@pytest.fixture
def url(databases: Callable[[str], Databases]) -> Iterator[str]:
    """A database that a program of this version has made."""
    with databases(SHIPPED).lending(once=True) as lend:
        yield asyncio.run(lend())


def test_a_migration_says_the_oldest_version_that_works_with_it_or_it_is_its_own():
    assert a_migration("-- Why.\n-- works with: 3\nSELECT 1", 5).works_with == 3
    assert a_migration("-- It works with: 3\nSELECT 1", 5).works_with == 5


def test_a_store_that_is_newer_is_refused_unless_it_says_that_it_works_with_us():
    known = [a_migration("", 1), a_migration("", 2)]

    assert missing(known, 1) == known[1:]
    assert list(missing(known, 4, works_with=2)) == []
    for works_with in (None, 3):
        with pytest.raises(SchemaTooNew, match="version 4 and this program knows up to 2"):
            missing(known, 4, works_with=works_with)


async def test_a_program_that_knows_one_version_less_works_on_a_schema_with_additions(
    url: str,
) -> None:
    async with connected(url) as db:
        await migrate(db, known=[*MIGRATIONS, a_migration(ADDITIVE)])
        assert await lag(db) == Lag(NEXT, [])

    store = await open_postgres(url)
    try:
        bench = Bench(store)
        await bench.add_waiting(a_draft(), a_draft(queue="mail"))
        claims = await bench.claim()
        assert [await bench.deliver(claim) for claim in claims] == ["DELIVERED"] * 2
    finally:
        await store.close()


async def test_a_program_that_is_too_old_is_refused_and_changes_nothing(url: str) -> None:
    async with connected(url) as db:
        await migrate(db, known=[*MIGRATIONS, a_migration("ALTER TABLE event DROP COLUMN detail")])

        with pytest.raises(SchemaTooNew):
            await open_postgres(url)
        assert await db.fetchval("SELECT count(*) FROM node") == 0


async def test_of_many_who_bring_it_up_to_date_one_does(url: str) -> None:
    known = [*MIGRATIONS, a_migration("CREATE TABLE once (n integer)")]

    async def one() -> None:
        async with connected(url) as db:
            await migrate(db, known=known)

    await asyncio.gather(*[one() for _ in range(4)])

    async with connected(url) as db:
        assert await db.fetchval("SELECT count(*) FROM schema_version WHERE number = $1", NEXT) == 1


async def test_people_are_made_in_an_empty_database_and_not_in_one_that_is_behind(url: str) -> None:
    known = [*MIGRATIONS, a_migration("CREATE TABLE more (n integer)")]

    async with connected(url) as db:
        with pytest.raises(Invalid, match=r"version \d+ and this program's \d+: run `waypost migr"):
            await make(db, known=known)
        assert (await lag(db, known=known)).missing == known[-1:]

        await db.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        await make(db, known=known)
        assert (await lag(db, known=known)).missing == []


async def test_a_migration_that_fails_leaves_the_schema_as_it_was(url: str) -> None:
    known = [
        *MIGRATIONS,
        a_migration("CREATE TABLE first_half (n integer)"),
        a_migration("SELECT no_such_column", NEXT + 1),
    ]

    async with connected(url) as db:
        with pytest.raises(Exception, match="no_such_column"):
            await migrate(db, known=known)

        assert (await lag(db)).version == len(MIGRATIONS)
        assert await db.fetchval("SELECT to_regclass('first_half')") is None


async def test_many_who_begin_with_an_empty_database_make_one_schema(
    databases: Callable[[str], Databases],
) -> None:
    server = databases(SHIPPED).server
    async with connected(server.url("postgres")) as db:
        await db.execute("DROP DATABASE IF EXISTS empty_at_first")
        await db.execute("CREATE DATABASE empty_at_first")

    async def one() -> None:
        async with connected(server.url("empty_at_first")) as db:
            await migrate(db)

    await asyncio.gather(*[one() for _ in range(4)])

    async with connected(server.url("empty_at_first")) as db:
        assert await lag(db) == Lag(len(MIGRATIONS), [])
