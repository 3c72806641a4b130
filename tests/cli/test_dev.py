"""`waypost dev`: what it prints, what it keeps, and how it stops."""

import contextlib
import re
import signal
import socket
import sqlite3
import stat

import pytest

from tests.support.program import (
    Receiver,
    Server,
    accepts_connections,
    eventually,
    free_port,
    running,
    waypost,
)
from waypost.cli.faults import TRY_AGAIN, WRONG
from waypost.domain.dev_users import DEV_USERS
from waypost.settings import Settings


def message_of(server: Server, destination: str, *, queue: str | None = None) -> str:
    """Publish to `destination`; the id."""
    path = f"/v2/enqueue/{queue}/{destination}" if queue else f"/v2/publish/{destination}"
    status, body = server.call("POST", path, body=b"hello")
    assert status == 200, body
    found = re.search(rb'"messageId":"(msg_\w+)"', body)
    assert found is not None
    return found[1].decode()


def test_it_prints_all_that_a_client_needs_also_into_a_pipe(tmp_path):
    user = DEV_USERS[0]

    with running("dev", "--port", "0", cwd=tmp_path) as server:
        server.until("due now: 0")

        assert re.search(r"runn+ing( at|\.)", server.said)  # what the JS SDK waits for
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.url)
        assert f"QSTASH_URL={server.url}\n" in server.said
        assert f"QSTASH_TOKEN={user.token}\n" in server.said
        assert f"QSTASH_CURRENT_SIGNING_KEY={user.current}\n" in server.said
        assert f"QSTASH_NEXT_SIGNING_KEY={user.next}\n" in server.said
        assert f"Database: {tmp_path / '.waypost' / 'dev.db'}\n" in server.said
        assert "\x1b" not in server.said


def test_its_database_is_its_owners_alone(tmp_path):
    with running("dev", "--port", "0", cwd=tmp_path) as server:
        server.until("running at")
        message_of(server, "http://127.0.0.1:9/")

        kept = tmp_path / ".waypost"
        assert stat.S_IMODE(kept.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in kept.iterdir()} == {0o600}


def test_the_port_may_be_said_as_the_qstash_dev_server_takes_it(tmp_path):
    for words, environ in (
        (("-port", str(port := free_port())), {}),
        ((f"-port={port}",), {}),
        ((), {"QSTASH_DEV_PORT": str(port)}),
    ):
        with running("dev", "--memory", *words, cwd=tmp_path, environ=environ) as server:
            assert server.url == f"http://127.0.0.1:{port}"


def test_it_is_where_the_sdks_look_unless_it_is_told_otherwise():
    """W218: as its settings have it, for on this machine the port may be somebody else's."""
    assert (Settings().listen_host, Settings().listen_port) == ("127.0.0.1", 8080)


def test_the_logs_are_on_a_port_of_their_own(tmp_path):
    """W221: the one after the server's, unless another is asked for."""
    port, other = free_ports()
    for words, environ, expected in (
        ((), {}, port + 1),
        (("-log-port", str(other)), {}, other),
        ((f"--log-port={other}",), {}, other),
        ((), {"QSTASH_DEV_LOG_PORT": str(other)}, other),
    ):
        arguments = ("dev", "--memory", "--port", str(port), *words)
        with running(*arguments, cwd=tmp_path, environ=environ) as server:
            server.until("due now: 0")
            assert f"Logs: http://127.0.0.1:{expected}\n" in server.said
            assert accepts_connections(f"http://127.0.0.1:{expected}")


def test_the_port_after_its_own_may_be_taken(tmp_path):
    """W221: the SDKs need the server's own port only; one that is asked for must be had."""
    port, _ = free_ports()
    with socket.create_server(("127.0.0.1", port + 1)):
        with running("dev", "--memory", "--port", str(port), cwd=tmp_path) as server:
            server.until("due now: 0")
            assert "Logs:" not in server.said
            assert "no_log_port" in server.stderr_path.read_text()
            assert accepts_connections(server.url)
        asked = ("--log-port", str(port + 1))
        ended = waypost("dev", "--memory", "--port", str(port), *asked, cwd=tmp_path)
        assert ended.returncode == TRY_AGAIN
        assert "ddress already in use" in ended.stderr


def free_ports() -> tuple[int, int]:
    """A port such that the one after it is free too, and another one."""
    while True:
        port, other = free_port(), free_port()
        try:
            socket.create_server(("127.0.0.1", port + 1)).close()
        except (OSError, OverflowError):
            continue
        if other not in (port, port + 1):
            return port, other


def test_in_memory_nothing_is_written(tmp_path):
    with running("dev", "--memory", "--port", "0", cwd=tmp_path) as server:
        server.until("Database: in memory")
        message_of(server, "http://127.0.0.1:9/")

    assert [file.name for file in tmp_path.iterdir()] == ["stderr.log"]


def test_a_quota_sets_the_caps_of_the_hosted_service(tmp_path):
    with running("dev", "--memory", "--port", "0", "--quota", "payg", cwd=tmp_path) as server:
        status, body = server.call(
            "POST", "/v2/publish/http://127.0.0.1:9/", body=b"x", Upstash_Retries="6"
        )

    assert (status, b"maxRetries" in body) == (400, True)


def test_sigterm_lets_the_attempt_under_way_end_and_exits_0(tmp_path):
    with (
        Receiver() as receiver,
        running("dev", "--port", "0", "--drain-ms", "10s", cwd=tmp_path) as server,
    ):
        message_id = message_of(server, receiver.url)
        _, answer = receiver.request()

        server.signal(signal.SIGTERM)
        eventually(lambda: not accepts_connections(server.url))
        answer()

        assert server.wait() == 0

    with running("dev", "--port", "0", cwd=tmp_path) as server:
        server.until("due now: 0")
        assert server.states(message_id)[0] == "DELIVERED"


def test_a_second_sigterm_stops_at_once_and_nothing_is_lost(tmp_path):
    """W235: the next server has both."""
    with (
        Receiver() as receiver,
        running("dev", "--port", "0", "--drain-ms", "1h", cwd=tmp_path) as server,
    ):
        first = message_of(server, receiver.url, queue="one-by-one")
        second = message_of(server, receiver.url, queue="one-by-one")
        receiver.request()

        server.signal(signal.SIGTERM)
        eventually(lambda: not accepts_connections(server.url))
        server.signal(signal.SIGTERM)
        server.wait()

        with running("dev", "--port", "0", cwd=tmp_path) as server:
            server.until("due now: 2")
            for message_id in (first, second):
                _, answer = receiver.request()
                answer()
                eventually(lambda sent=message_id: server.states(sent)[0] == "DELIVERED")


def test_fresh_begins_without_what_was_there(tmp_path):
    with Receiver() as receiver, running("dev", "--port", "0", cwd=tmp_path) as server:
        message_of(server, receiver.url)
        receiver.request()
        server.signal(signal.SIGKILL)
        server.wait()

    with running("dev", "--port", "0", "--fresh", cwd=tmp_path) as server:
        server.until("due now: 0")


@pytest.mark.parametrize("there", ["a text", "a database of another program"])
def test_fresh_removes_no_file_of_others(tmp_path, there: str):
    path = tmp_path / "precious.db"
    if there == "a text":
        path.write_text("my notes " * 100)
    else:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()

    ended = waypost("dev", "--fresh", "--database", "sqlite:///precious.db", cwd=tmp_path)

    assert ended.returncode == WRONG
    assert re.fullmatch(r"waypost: .*precious\.db.*\n", ended.stderr), ended.stderr
    assert path.read_bytes() == before


def test_fresh_begins_at_the_other_end_of_a_link(tmp_path):
    (tmp_path / "link.db").symlink_to(tmp_path / "real.db")
    words = ("dev", "--port", "0", "--database", "sqlite:///link.db")
    with Receiver() as receiver, running(*words, cwd=tmp_path) as server:
        message_of(server, receiver.url)
        receiver.request()
        with running(*words, "--fresh", cwd=tmp_path) as second:
            assert second.wait() == TRY_AGAIN
        server.signal(signal.SIGKILL)
        server.wait()

    with running(*words, "--fresh", cwd=tmp_path) as server:
        server.until("due now: 0")
    assert (tmp_path / "link.db").is_symlink()


def test_fresh_does_not_pull_a_database_from_under_a_server(tmp_path):
    with running("dev", "--port", "0", cwd=tmp_path) as server:
        server.until("running at")
        with running("dev", "--port", "0", "--fresh", cwd=tmp_path) as second:
            assert second.wait() == TRY_AGAIN

        assert "another server has" in server.stderr_path.read_text()
        assert server.call("GET", "/v2/keys")[0] == 200
