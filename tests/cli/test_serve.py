"""`waypost serve`, and the people who may use it."""

import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from tests.support.program import DEV_TOKEN, Receiver, eventually, running, waypost
from waypost.cli.faults import TRY_AGAIN
from waypost.store.sqlite import database

DATABASE = "--database=sqlite:///waypost.db"
SERVE = ("serve", DATABASE, "--port", "0")


def token_of(tenant: str, cwd: Path, *more: str) -> str:
    made = waypost("token", "create", tenant, DATABASE, *more, cwd=cwd)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a database that has one tenant, acme."""
    made = waypost("tenant", "create", "acme", DATABASE, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    return tmp_path


def test_it_refuses_to_start_without_a_token_and_says_what_makes_one(place: Path):
    ended = waypost(*SERVE, cwd=place)

    assert ended.returncode == 2
    assert "waypost token create" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_token_opens_it_and_the_development_servers_does_not(place: Path):
    token = token_of("acme", place)

    with running(*SERVE, cwd=place) as server:
        assert server.call("GET", "/v2/keys", token=token)[0] == 200
        assert server.call("GET", "/v2/keys", token=DEV_TOKEN)[0] == 401

        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_a_read_only_token_may_look_and_not_change(place: Path):
    token = token_of("acme", place, "--read-only")

    with running(*SERVE, cwd=place) as server:
        assert server.call("GET", "/v2/events", token=token)[0] == 200
        assert server.call("GET", "/v2/keys", token=token)[0] == 403
        status, _ = server.call("POST", "/v2/publish/http://example.com/", token=token, body=b"x")
        assert status == 403


def test_tokens_that_are_made_and_revoked_while_it_runs_are_noticed(place: Path):
    first = token_of("acme", place)

    with running(*SERVE, cwd=place) as server:
        assert server.call("GET", "/v2/events", token=first)[0] == 200

        second = token_of("acme", place)
        eventually(lambda: server.call("GET", "/v2/events", token=second)[0] == 200)

        listed = waypost("token", "list", DATABASE, cwd=place).stdout
        ids = [word for word in listed.split() if word.startswith("tok_")]
        assert len(ids) == 2
        for token_id in ids:
            assert waypost("token", "revoke", token_id, DATABASE, cwd=place).returncode == 0
        eventually(lambda: server.call("GET", "/v2/events", token=second)[0] in (401, 429))


def test_the_keys_of_a_tenant_are_those_that_were_printed(place: Path):
    made = waypost("tenant", "create", "umbrella", DATABASE, cwd=place)
    current, next_ = (line.partition("=")[2] for line in made.stdout.splitlines())
    token = token_of("umbrella", place)

    with running(*SERVE, cwd=place) as server:
        _, body = server.call("GET", "/v2/keys", token=token)

    assert current.startswith("sig_")
    assert next_.startswith("sig_")
    assert current.encode() in body
    assert next_.encode() in body


def test_a_second_server_on_the_same_database_is_refused(place: Path):
    token_of("acme", place)

    with running(*SERVE, cwd=place) as server:
        server.until("running at")
        ended = waypost(*SERVE, cwd=place)

    assert ended.returncode == TRY_AGAIN
    assert ended.stderr.count("\n") == 1
    assert "another server" in ended.stderr


def test_a_database_of_a_newer_program_is_refused_and_left_alone(place: Path):
    token_of("acme", place)
    kept = place / "waypost.db"
    with sqlite3.connect(kept) as db:
        db.execute("PRAGMA user_version = 9999")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    before = kept.read_bytes()

    for words in (SERVE, ("token", "list", DATABASE)):
        ended = waypost(*words, cwd=place)

        assert ended.returncode == 2
        assert "newer" in ended.stderr
        assert ended.stderr.count("\n") == 1
    assert kept.read_bytes() == before


def sql(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as db, db:
        for statement in statements:
            db.execute(statement)


def behind(place: Path) -> Path:
    """The database of `place` as a release before made it."""
    kept = place / "waypost.db"
    kept.unlink()
    with closing(sqlite3.connect(kept)) as db:
        for migration in database.MIGRATIONS[:2]:
            db.executescript(migration.sql)
        db.execute(f"PRAGMA application_id = {database.APPLICATION_ID}")
        db.execute("PRAGMA user_version = 2")
        db.execute("PRAGMA journal_mode = WAL")
    return kept


@pytest.mark.parametrize(
    "words", [("tenant", "list"), ("tenant", "create", "umbrella"), ("token", "create", "acme")]
)
def test_to_look_at_people_is_no_upgrade(words: tuple[str, ...], place: Path):
    kept = behind(place)
    before = kept.read_bytes()

    ended = waypost(*words, DATABASE, cwd=place)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert "version 2" in ended.stderr
    assert "run `waypost migrate`" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert kept.read_bytes() == before


def test_a_server_brings_the_schema_up_to_date_before_it_looks_for_people(place: Path):
    behind(place)

    assert "has no token" in waypost(*SERVE, cwd=place).stderr

    assert waypost("migrate", "--check", DATABASE, cwd=place).returncode == 0


EVERY_COMMAND = [
    SERVE,
    ("dev", DATABASE, "--port", "0"),
    ("tenant", "create", "umbrella", DATABASE),
    ("token", "list", DATABASE),
    ("migrate", DATABASE),
    ("migrate", "--check", DATABASE),
    ("backup", "copy.db", DATABASE),
    ("copy", "sqlite:///waypost.db", "postgresql://127.0.0.1:1/none"),
]


@pytest.mark.parametrize("words", EVERY_COMMAND, ids=" ".join)
def test_another_programs_database_is_refused_and_left_alone(
    words: tuple[str, ...], tmp_path: Path
):
    theirs = tmp_path / "waypost.db"
    sql(theirs, "CREATE TABLE note (text)", "INSERT INTO note VALUES ('precious')")
    before = theirs.read_bytes()

    ended = waypost(*words, cwd=tmp_path)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert "waypost.db is another program's database" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert theirs.read_bytes() == before
    assert not (tmp_path / "copy.db").exists()


@pytest.mark.parametrize("words", EVERY_COMMAND, ids=" ".join)
def test_a_file_that_is_no_database_is_refused_and_left_alone(
    words: tuple[str, ...], tmp_path: Path
):
    text = tmp_path / "waypost.db"
    text.write_text("Dear diary,\n" * 1_000)

    ended = waypost(*words, cwd=tmp_path)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert "file is not a database" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert text.read_text() == "Dear diary,\n" * 1_000


@pytest.mark.parametrize(
    "words", [SERVE, ("token", "list", DATABASE), ("token", "create", "acme", DATABASE)]
)
def test_a_database_that_is_damaged_is_told_in_one_line(words: tuple[str, ...], place: Path):
    kept = place / "waypost.db"
    whole = kept.read_bytes()
    kept.write_bytes(whole[:4_096] + b"\xff" * (len(whole) - 4_096))

    ended = waypost(*words, cwd=place)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert "malformed; the file is damaged" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words", [SERVE, ("token", "list", DATABASE), ("token", "create", "acme", DATABASE)]
)
def test_a_database_that_another_process_has_locked_may_be_free_later(
    words: tuple[str, ...], place: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(database, "BUSY_MS", 1)
    with closing(apsw.Connection(str(place / "waypost.db"))) as db:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")

        ended = waypost(*words, cwd=place)

    assert (ended.returncode, ended.stdout) == (TRY_AGAIN, "")
    assert "database is locked; another process has it locked" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_a_fault_of_one_line(place: Path):
    token_of("acme", place)

    with running("dev", "--memory", "--port", "0", cwd=place) as other:
        port = other.url.rpartition(":")[2]
        ended = waypost("serve", DATABASE, "--port", port, cwd=place)

    assert ended.returncode == TRY_AGAIN
    assert "ddress already in use" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_an_address_that_is_not_there_yet_may_be_there_later(place: Path):
    token_of("acme", place)

    ended = waypost(*SERVE, "--listen-host", "192.0.2.1", cwd=place)

    assert ended.returncode == TRY_AGAIN
    assert "ssign requested address" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_token_is_shown_once_and_kept_nowhere(place: Path):
    token = token_of("acme", place)

    kept = b"".join(file.read_bytes() for file in place.iterdir())

    assert token.encode() not in kept
    assert token not in waypost("token", "list", DATABASE, cwd=place).stdout


def test_what_is_listed_names_tenants_and_tokens_and_no_secret(place: Path):
    token_of("acme", place, "--read-only")
    token_of("acme", place)

    tenants = waypost("tenant", "list", DATABASE, cwd=place).stdout
    assert re.search(r"(?m)^acme +\d{4}-\d\d-\d\d \d\d:\d\d +live *$", tenants)
    tokens = waypost("token", "list", DATABASE, cwd=place).stdout.splitlines()

    assert "acme" in tenants
    assert "sig_" not in tenants
    assert sorted(line.split()[2] for line in tokens[1:]) == ["all", "read"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("tenant", "create", "acme"), "acme"),
        (("tenant", "create", "no such name"), "cannot be a tenant"),
        (("tenant", "revoke", "nobody"), "there is no tenant nobody"),
        (("token", "create", "nobody"), "nobody"),
        (("token", "revoke", "tok_none"), "there is no token tok_none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_said_in_one_line(words: tuple[str, ...], says: str, place: Path):
    ended = waypost(*words, DATABASE, cwd=place)

    assert ended.returncode == 2
    assert says in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_revoking_a_tenant_ends_its_tokens(place: Path):
    token_of("acme", place)

    assert waypost("tenant", "revoke", "acme", DATABASE, cwd=place).returncode == 0

    assert "tok_" not in waypost("token", "list", DATABASE, cwd=place).stdout
    assert waypost("token", "create", "acme", DATABASE, cwd=place).returncode == 2


def test_a_tenant_who_is_revoked_is_listed_as_such_and_the_name_stays_taken(place: Path):
    waypost("tenant", "revoke", "acme", DATABASE, cwd=place)

    [_, line] = waypost("tenant", "list", DATABASE, cwd=place).stdout.splitlines()
    again = waypost("tenant", "create", "acme", DATABASE, cwd=place)

    assert (line.split()[0], line.split()[-1]) == ("acme", "revoked")
    assert (again.returncode, "there is a tenant acme" in again.stderr) == (2, True)


def test_what_a_revoked_tenant_has_published_is_still_delivered(place: Path):
    token = token_of("acme", place)
    words = (*SERVE, "--egress-allow", "127.0.0.0/8")
    with Receiver() as receiver, running(*words, cwd=place) as server:
        path = f"/v2/publish/{receiver.url}/"
        assert server.call("POST", path, token=token, body=b"x", Upstash_Delay="1s")[0] == 200
        waypost("tenant", "revoke", "acme", DATABASE, cwd=place)

        _, answer = receiver.request()
        answer()

        eventually(lambda: server.call("GET", "/v2/keys", token=token)[0] in (401, 429))


def test_a_backup_is_made_while_it_runs_and_serves_as_a_database(place: Path):
    token = token_of("acme", place)

    with running(*SERVE, cwd=place) as server:
        server.call(
            "POST", "/v2/publish/http://example.com/", token=token, body=b"x", Upstash_Delay="1h"
        )
        assert waypost("backup", "copy.db", DATABASE, cwd=place).returncode == 0
        again = waypost("backup", "copy.db", DATABASE, cwd=place)
        assert (again.returncode, again.stderr.count("\n")) == (2, 1)

    with running("serve", "--database=sqlite:///copy.db", "--port", "0", cwd=place) as server:
        _, body = server.call("GET", "/v2/events", token=token)

    assert b"http://example.com/" in body


def test_only_its_owner_may_read_the_database(place: Path):
    assert (place / "waypost.db").stat().st_mode & 0o077 == 0
