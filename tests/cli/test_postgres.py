"""The commands on a PostgreSQL database, and what they say of its password."""

import asyncio
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.databases import Databases, connected
from tests.support.postgres import SHIPPED, Server
from tests.support.program import Ended, eventually, running, waypost
from tests.support.receiver import Receiver
from waypost.cli.faults import TRY_AGAIN

PASSWORD = "canary"


def execute(url: str, *statements: str) -> None:
    async def run() -> None:
        async with connected(url) as db:
            for statement in statements:
                await db.execute(statement)

    asyncio.run(run())


@pytest.fixture
def postgres(databases: Callable[[str], Databases]) -> Server:
    return databases(SHIPPED).server


@pytest.fixture
def url(databases: Callable[[str], Databases]) -> Iterator[str]:
    """A database that is brought up to date.  The server trusts whoever comes, but its URL has
    a password."""
    with databases(SHIPPED).lending() as lend:
        yield asyncio.run(lend()).replace("waypost@", f"waypost:{PASSWORD}@")


@pytest.fixture
def empty(postgres: Server) -> str:
    """A database with nothing in it."""
    execute(
        postgres.url("postgres"),
        "DROP DATABASE IF EXISTS nothing WITH (FORCE)",
        "CREATE DATABASE nothing",
    )
    return postgres.url("nothing")


@pytest.fixture
def command(url: str, tmp_path: Path) -> Callable[..., Ended]:
    """Runs a command on the database, which never tells its password."""

    def run(*words: str) -> Ended:
        ended = waypost(*words, "--database", url, cwd=tmp_path)
        assert PASSWORD not in ended.stdout + ended.stderr
        return ended

    return run


def token_of(command: Callable[..., Ended]) -> str:
    assert command("tenant", "create", "acme").returncode == 0
    return command("token", "create", "acme").stdout.strip()


def one_line(ended: Ended, *, status: int = 2) -> str:
    assert ended.returncode == status, ended
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stdout == ""
    return ended.stderr


def test_two_nodes_are_one_service(url: str, command: Callable[..., Ended], tmp_path: Path):
    token = token_of(command)
    places = [tmp_path / name for name in ("one", "two")]
    words = ("serve", "--database", url, "--port", "0", "--egress-allow", "127.0.0.0/8")
    for place in places:
        place.mkdir()
    with (
        Receiver() as receiver,
        running(*words, "--node-name", "one", cwd=places[0]) as one,
        running(*words, "--node-name", "two", cwd=places[1]) as two,
    ):
        for node in (one, two, one):
            path = f"/v2/publish/{receiver.url}/x"
            assert node.call("POST", path, token=token, body=b"x")[0] == 200
        assert len({got.header["upstash-message-id"] for got in receiver.wait("/x", 3)}) == 3
        eventually(lambda: two.call("GET", "/v2/events", token=token)[1].count(b'"DELIVERED"') == 3)

        listed = command("nodes").stdout
        assert re.findall(r"(?m)^\d+ +(\w+) .* (\d+\.\d s) +0 *$", listed), listed
        assert sorted(line.split()[1] for line in listed.splitlines()[1:]) == ["one", "two"]
        assert "\x1b" not in listed

        for node in (one, two):
            node.signal(signal.SIGTERM)
            assert node.wait() == 0
        for place in places:
            assert PASSWORD not in (place / "stderr.log").read_text()
        assert PASSWORD not in one.said + two.said
        assert '"server_started"' in (places[0] / "stderr.log").read_text()


def test_dev_serves_on_it_and_shows_it_without_the_password(url: str, tmp_path: Path):
    with running("dev", "--database", url, "--port", "0", cwd=tmp_path) as server:
        server.until("due now: 0")

        assert f"Database: {url.replace(f':{PASSWORD}', '')}\n" in server.said


def test_serve_wants_a_token_and_says_how_to_make_one(command: Callable[..., Ended]):
    said = one_line(command("serve", "--port", "0"))

    assert "has no token" in said
    assert "waypost token create NAME --database 'postgresql://waypost@/" in said


def test_tenants_and_tokens_are_made_listed_and_revoked(command: Callable[..., Ended]):
    token_of(command)
    assert "acme" in command("tenant", "list").stdout
    [token_id] = re.findall(r"tok_\w+", command("token", "list").stdout)

    assert command("token", "revoke", token_id).returncode == 0
    assert "there is no token" in one_line(command("token", "revoke", token_id))
    assert "there is a tenant acme" in one_line(command("tenant", "create", "acme"))
    assert command("tenant", "revoke", "acme").returncode == 0


def test_migrate_says_what_it_would_do_and_does_it(empty: str, tmp_path: Path):
    def migrate(*words: str) -> Ended:
        return waypost("migrate", *words, "--database", empty, cwd=tmp_path)

    would = migrate("--check")
    assert (would.returncode, "Would apply 0001_" in would.stdout) == (1, True)
    assert "waypost migrate" in one_line(waypost("nodes", "--database", empty, cwd=tmp_path))
    done = migrate()
    assert (done.returncode, "Applied 0001_" in done.stdout) == (0, True)
    for words in ((), ("--check",)):
        nothing = migrate(*words)
        assert (nothing.returncode, "nothing to do" in nothing.stdout) == (0, True)


def test_migrate_works_on_a_file_too_and_makes_none(tmp_path: Path):
    database = ("--database", "sqlite:///waypost.db")
    for words in (("migrate",), ("migrate", "--check")):
        assert "waypost.db" in one_line(waypost(*words, *database, cwd=tmp_path))
    (tmp_path / "waypost.db").touch()

    assert waypost("migrate", "--check", *database, cwd=tmp_path).returncode == 1
    assert (tmp_path / "waypost.db").stat().st_size == 0
    assert waypost("migrate", *database, cwd=tmp_path).returncode == 0
    assert waypost("migrate", "--check", *database, cwd=tmp_path).returncode == 0


def test_a_file_has_no_nodes(tmp_path: Path):
    (tmp_path / "waypost.db").touch()

    ended = waypost("nodes", "--database", "sqlite:///waypost.db", cwd=tmp_path)

    assert "has no nodes" in one_line(ended)


def test_a_backup_is_left_to_the_tools_of_postgresql(command: Callable[..., Ended], tmp_path: Path):
    assert "pg_dump" in one_line(command("backup", "copy.db"))
    assert list(tmp_path.iterdir()) == []


def test_fresh_removes_no_database_of_a_server(command: Callable[..., Ended]):
    assert "--fresh removes files only" in one_line(command("dev", "--fresh"))


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        (lambda url: url.replace("/test_", "/no_test_"), 2, "does not exist"),
        (lambda url: url.replace("waypost:", "nobody_of_ours:"), 2, "nobody_of_ours"),
        (
            lambda url: url.partition("?")[0] + "?host=/nowhere",
            TRY_AGAIN,
            "cannot reach the database",
        ),
        (lambda url: url.replace("@/", "@127.0.0.1:1/").partition("?")[0], TRY_AGAIN, "Connect"),
        (lambda url: url + "&sslmode=certainly", 2, "sslmode"),
        (lambda url: url + "&synchronous_commit=off", 2, "synchronous_commit is off"),
        (lambda url: url + "&no_such_setting=1", 2, "no_such_setting"),
    ],
    ids=["database", "user", "socket", "port", "sslmode", "unsafe", "setting"],
)
def test_a_database_that_cannot_be_used_stops_the_start(
    change: Callable[[str], str],
    status: int,
    says: str,
    url: str,
    command: Callable[..., Ended],
    tmp_path: Path,
):
    token_of(command)

    ended = waypost("serve", "--database", change(url), "--port", "0", cwd=tmp_path)

    said = one_line(ended, status=status)

    assert says in said
    assert PASSWORD not in said


def test_a_wrong_password_stops_the_start(postgres: Server, tmp_path: Path):
    rules = postgres.directory / "data" / "pg_hba.conf"
    rules.write_text("local all guarded scram-sha-256\n" + rules.read_text())
    execute(
        postgres.url("postgres"),
        "DROP ROLE IF EXISTS guarded",
        "CREATE ROLE guarded LOGIN PASSWORD 'right'",
        "SELECT pg_reload_conf()",
    )
    url = postgres.url("postgres").replace("waypost@", f"guarded:{PASSWORD}@")

    for words in (("serve", "--port", "0"), ("token", "list"), ("migrate",), ("nodes",)):
        said = one_line(waypost(*words, "--database", url, cwd=tmp_path))
        assert 'password authentication failed for user "guarded"' in said
        assert PASSWORD not in said


def test_a_schema_that_is_too_new_stops_the_start(url: str, command: Callable[..., Ended]):
    token_of(command)
    execute(url, "INSERT INTO schema_version VALUES (9999, 9999)")

    for words in (("serve", "--port", "0"), ("token", "list"), ("migrate", "--check")):
        assert "use the newer program" in one_line(command(*words))


def test_people_are_made_in_a_database_with_nothing_in_it(empty: str, tmp_path: Path):
    made = waypost("tenant", "create", "acme", "--database", empty, cwd=tmp_path)

    assert made.returncode == 0, made.stderr
    assert waypost("migrate", "--check", "--database", empty, cwd=tmp_path).returncode == 0


@pytest.fixture
def stranger(postgres: Server) -> Callable[[str], str]:
    """The URL of a database for a role that may enter it and has no right there."""
    execute(
        postgres.url("postgres"),
        "DO $$ BEGIN CREATE ROLE stranger LOGIN; EXCEPTION WHEN duplicate_object THEN END $$",
    )
    return lambda url: re.sub(r"//waypost(:\w+)?@", "//stranger@", url)


def test_a_role_that_may_not_create_is_told_which_right_it_lacks(
    empty: str, stranger: Callable[[str], str], tmp_path: Path
):
    for words in (("migrate",), ("tenant", "create", "acme"), ("serve", "--port", "0")):
        said = one_line(waypost(*words, "--database", stranger(empty), cwd=tmp_path))
        assert "permission denied for schema public: the URL's role must" in said


def test_a_role_that_may_not_see_the_schema_is_told_which_right_it_lacks(
    empty: str, stranger: Callable[[str], str], tmp_path: Path
):
    execute(empty, "REVOKE USAGE ON SCHEMA public FROM public")

    said = one_line(waypost("migrate", "--database", stranger(empty), cwd=tmp_path))

    assert "the URL's role must own Waypost's tables and have USAGE" in said


def test_a_role_that_may_not_read_is_told_which_right_it_lacks(
    url: str, command: Callable[..., Ended], stranger: Callable[[str], str], tmp_path: Path
):
    token_of(command)
    for words in (
        ("serve", "--port", "0"),
        ("dev", "--port", "0"),
        ("nodes",),
        ("token", "list"),
        ("token", "create", "acme"),
        ("migrate", "--check"),
    ):
        said = one_line(waypost(*words, "--database", stranger(url), cwd=tmp_path))
        assert "permission denied for table" in said


def test_a_role_that_may_read_and_not_write_is_told_which_right_it_lacks(
    empty: str, stranger: Callable[[str], str], tmp_path: Path
):
    for words in (("tenant", "create", "acme"), ("token", "create", "acme")):
        assert waypost(*words, "--database", empty, cwd=tmp_path).returncode == 0
    execute(empty, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO stranger")

    for words in (("serve", "--port", "0"), ("token", "create", "acme")):
        said = one_line(waypost(*words, "--database", stranger(empty), cwd=tmp_path))
        assert "permission denied for" in said
