"""`waypost copy`: a store moves from its file into PostgreSQL."""

import asyncio
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from tests.support.databases import Databases, connected
from tests.support.full_store import a_bare_database, fill
from tests.support.postgres import SHIPPED
from tests.support.program import DEADLINE_S, WAYPOST, clean_environ, eventually, running, waypost
from waypost.cli.faults import TRY_AGAIN
from waypost.store.copying import TABLES
from waypost.store.postgres.database import migrate

SOURCE = "sqlite:///full.db"

_names = count()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a store in which there is something of everything."""
    asyncio.run(fill(tmp_path / "full.db"))
    return tmp_path


@pytest.fixture
def target(databases: Callable[[str], Databases]) -> Iterator[str]:
    """A database in which there is nothing."""
    server = databases(SHIPPED).server
    with asyncio.Runner() as runner:
        bare = a_bare_database(server, f"cli_copy_{next(_names)}")
        yield runner.run(bare.__aenter__())
        runner.run(bare.__aexit__(None, None, None))


def ask(url: str, sql: str) -> object:
    async def run() -> object:
        async with connected(url) as db:
            return await db.fetchval(sql)

    return asyncio.run(run())


def test_it_tells_of_each_table_that_it_is_the_same_on_both_sides(place: Path, target: str):
    ended = waypost("copy", SOURCE, target, cwd=place)

    assert (ended.returncode, ended.stderr) == (0, "")
    heads, *lines, last = ended.stdout.splitlines()
    assert heads.split() == ["TABLE", "ROWS", "SHA-256"]
    row = re.compile(r"(\w+) +(\d+)  [0-9a-f]{16}  the same on both sides *")
    told = [row.fullmatch(line) for line in lines]
    assert [found and found[1] for found in told] == [table.name for table in TABLES]
    assert "a second time" in last
    for found in told:
        assert found is not None
        assert ask(target, f"SELECT count(*) FROM {found[1]}") == int(found[2])


def test_a_store_on_which_a_server_runs_is_refused(place: Path, target: str):
    with running("dev", "--port", "0", "--database", SOURCE, cwd=place) as server:
        assert server.url
        ended = waypost("copy", SOURCE, target, cwd=place)

    assert ended.returncode == TRY_AGAIN
    assert re.fullmatch(r"waypost: another server has \S+ open\n", ended.stderr)
    assert ask(target, "SELECT to_regclass('tenant')") is None


def test_a_target_that_is_not_empty_is_refused(place: Path, target: str):
    assert waypost("copy", SOURCE, target, cwd=place).returncode == 0

    ended = waypost("copy", SOURCE, target, cwd=place)

    assert ended.returncode == 2
    assert ended.stderr == (
        "waypost: the target is not empty: there are rows in its table tenant\n"
    )


@pytest.mark.parametrize(
    ("source", "target", "status", "says"),
    [
        ("full.db", "postgresql://x", 2, "a store in a file: sqlite:///path"),
        ("sqlite:///:memory:", "postgresql://x", 2, "a database in memory"),
        ("sqlite:///typo.db", "postgresql://x", 2, "typo.db"),
        (SOURCE, "sqlite:///other.db", 2, "into a database: postgresql://"),
        (SOURCE, "postgresql://me:secret@127.0.0.1:1/x", TRY_AGAIN, "cannot reach the database"),
        (SOURCE, "postgresql://me:secret@127.0.0.1:many/x", 2, "database: "),
    ],
)
def test_a_fault_is_one_line_on_stderr_and_its_status(
    source: str, target: str, status: int, says: str, place: Path
):
    ended = waypost("copy", source, target, cwd=place)

    assert ended.returncode == status
    assert says in ended.stderr
    assert "secret" not in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""
    assert not (place / "typo.db").exists()


def test_a_database_that_is_not_there_is_told_in_one_line(place: Path, target: str):
    ended = waypost("copy", SOURCE, re.sub(r"/cli_copy_\d+", "/none", target), cwd=place)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == 'waypost: database: database "none" does not exist\n'


@contextmanager
def half_way(place: Path, target: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command while it waits in the midst of its work, until the end of the block."""

    async def hold_up() -> None:
        async with connected(target) as db:
            await migrate(db)
            await db.execute(
                "CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql"
                " AS $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;"
                " CREATE TRIGGER holding_up BEFORE INSERT ON dead_letter"
                " FOR EACH STATEMENT EXECUTE FUNCTION hold_up()"
            )

    waiting = (
        "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
    )
    asyncio.run(hold_up())
    with asyncio.Runner() as runner:
        holder = connected(target)
        db = runner.run(holder.__aenter__())
        runner.run(db.execute("SELECT pg_advisory_lock(1)"))
        process = subprocess.Popen(
            [WAYPOST, "copy", SOURCE, target],
            cwd=place,
            env=clean_environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            eventually(lambda: runner.run(db.fetchval(waiting)))
            yield process
        finally:
            process.kill()
            process.communicate(timeout=DEADLINE_S)
            runner.run(holder.__aexit__(None, None, None))


def test_one_that_is_killed_half_way_leaves_nothing_and_can_be_run_again(place: Path, target: str):
    with half_way(place, target) as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait(DEADLINE_S) == -signal.SIGKILL
        for table in TABLES:
            assert ask(target, f"SELECT count(*) FROM {table.name}") == 0

    again = waypost("copy", SOURCE, target, cwd=place)

    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.count("the same on both sides") == len(TABLES)


def test_one_that_is_interrupted_from_the_keyboard_says_so_in_one_line(place: Path, target: str):
    with half_way(place, target) as process:
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=DEADLINE_S)

    assert (process.returncode, stdout) == (130, b"")
    assert stderr == b"waypost: interrupted: nothing was copied\n"
    assert ask(target, "SELECT count(*) FROM tenant") == 0
