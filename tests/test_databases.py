"""What tests on PostgreSQL lean on: an empty database is empty, and no server outlives them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.databases import Databases, connected
from tests.support.postgres import SHIPPED, running
from tests.support.waiting import until

ROOT = Path(__file__).parent.parent

A_SERVER = """
import time
from tests.support.postgres import SHIPPED, running
with running(SHIPPED) as server:
    print(server.pid, server.directory, flush=True)
    time.sleep(600)
"""


async def test_a_database_that_was_used_is_as_one_that_is_new() -> None:
    async def everything(url: str) -> dict[str, list[tuple[object, ...]]]:
        async with connected(url) as db:
            tables = await db.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            found = {
                table: [tuple(row) for row in await db.fetch(f"SELECT * FROM {table}")]
                for [table] in tables
            }
            return found | {"next number": [(await db.fetchval("SELECT nextval('number_block')"),)]}

    with running(SHIPPED) as server:
        databases = Databases(server)
        with databases.lending() as lend:
            url = await lend()
            new = await everything(url)
            async with connected(url) as db:
                await db.execute("INSERT INTO tenant VALUES ('a', 1, '', '')")
                await db.execute("INSERT INTO token VALUES ('t', 'a', '', false, 1)")
                await db.execute("UPDATE people_version SET count = 7")
                await db.execute("CREATE TABLE part PARTITION OF event FOR VALUES FROM (1) TO (2)")
                await db.execute("INSERT INTO event VALUES ('a', 1, 1, '', '')")
                await db.execute("INSERT INTO body SELECT n, 'x' FROM generate_series(1, 9000) n")

        with databases.lending() as lend:
            again = await lend()
            assert again == url
            assert await everything(again) == new


async def test_no_two_have_one_database_at_a_time(
    databases: Callable[[str], Databases],
) -> None:
    with databases(SHIPPED).lending() as lend, databases(SHIPPED).lending() as lend_too:
        urls = [await lend(), await lend_too(), await lend()]

    assert len(set(urls)) == 3


def _started_and_left() -> tuple[int, Path]:
    """A server, and where it keeps what it has; whoever started it was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", A_SERVER], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        pid, directory = starter.stdout.readline().split()
        assert Path(directory).exists()
        starter.send_signal(signal.SIGKILL)
    return int(pid), Path(directory)


async def test_a_server_ends_with_whoever_started_it_however_that_ends() -> None:
    pid, directory = _started_and_left()

    async def gone() -> bool:
        return not directory.exists()

    await until(gone)
    assert not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
