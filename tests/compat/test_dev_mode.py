"""The development mode of the npm SDK: `devMode: true` takes `waypost dev` for its server.

It asks `GET /v2/keys` with the default user's token, and takes a server whose
keys are exactly that user's for its own.  Otherwise it would download a
program, start it as `<program> dev --port N`, and wait until it says
`/runn+ing( at|\\.)/i` on stdout.
"""

import os
import re
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest

from tests.compat import node
from tests.compat.history import history
from tests.support.program import WAYPOST, accepts_connections, eventually, free_port, running

SPOKEN = re.compile(r"runn+ing( at|\.)", re.IGNORECASE)
"""As in the SDK, src/dev-server/process.ts; it looks at one line at a time."""


def sdk_source() -> str:
    folder = node.PROGRAMS / "node_modules" / "@upstash" / "qstash"
    return "\n".join(file.read_text() for file in folder.glob("chunk-*.mjs"))


def with_program(home: Path) -> dict[str, str]:
    """A home where the SDK finds Waypost as the program that it downloaded before."""
    caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
    folder = home / caches / "upstash" / "qstash-dev"
    folder.mkdir(parents=True)
    program = folder / "qstash"
    # `exec`, for the SDK stops the process that it started.
    program.write_text(f'#!/bin/sh\necho $$ > "$HOME/pid"\nexec "{WAYPOST}" "$@"\n')
    program.chmod(0o755)
    return {"HOME": str(home)}


@pytest.mark.parametrize("by_environment", [False, True], ids=["devMode", "QSTASH_DEV"])
@pytest.mark.usefixtures("_npm_sdk")
def test_a_running_waypost_is_adopted_and_nothing_is_downloaded(server, tmp_path, by_environment):
    """W179, W217-W219."""
    port = server.url.rpartition(":")[2]
    environ = {"HOME": str(tmp_path), "QSTASH_DEV_PORT": port}
    if by_environment:
        environ["QSTASH_DEV"] = "1"

    said, output = node.run("dev_mode.mjs", {"byEnvironment": by_environment}, environ=environ)

    assert said["lookedFor"] == []
    assert list(tmp_path.iterdir()) == []
    assert f"Server already running at http://127.0.0.1:{port}" in output
    message_id = said["sent"]["messageId"]
    assert said["received"] == {"body": '{"dev":true}', "verified": True, "messageId": message_id}
    assert said["message"]["messageId"] == message_id
    assert history(server, message_id) == ["CREATED", "ACTIVE", "DELIVERED"]


@pytest.mark.usefixtures("_npm_sdk")
def test_waypost_stands_in_for_the_program_that_the_sdk_starts(tmp_path):
    """W217-W219: started, understood, used and stopped by the SDK.

    This shows too that the test above would see a look at the internet.
    """
    port = free_port()
    environ = {**with_program(tmp_path), "QSTASH_DEV_PORT": str(port)}

    try:
        said, output = node.run(
            "dev_mode.mjs", {"byEnvironment": False}, environ=environ, cwd=tmp_path
        )
        eventually(lambda: not accepts_connections(f"http://127.0.0.1:{port}"))
    finally:
        if accepts_connections(f"http://127.0.0.1:{port}"):
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    assert len(said["lookedFor"]) == 1
    assert "artifacts.upstash.com" in said["lookedFor"][0]
    assert "Offline, using local" in output
    assert re.search(rf"Waypost .* is running at http://127\.0\.0\.1:{port}\n", output)
    assert said["received"]["verified"] is True


@pytest.mark.usefixtures("_npm_sdk")
def test_the_sdk_understands_that_the_port_is_taken(tmp_path):
    """The SDK looks for "address already in use" in what a program said that would not start."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        hang_up_on_all(taken)
        port = taken.getsockname()[1]
        environ = {**with_program(tmp_path), "QSTASH_DEV_PORT": str(port)}

        with pytest.raises(AssertionError, match="Port already in use"):
            node.run("dev_mode.mjs", {"byEnvironment": False}, environ=environ, cwd=tmp_path)


def hang_up_on_all(listening: socket.socket) -> None:
    """Be there, and say nothing: whoever connects is hung up on."""

    def hang_up() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            connection.close()

    threading.Thread(target=hang_up, daemon=True).start()


@pytest.mark.usefixtures("_npm_sdk")
def test_what_we_look_for_is_what_the_sdk_looks_for():
    """When a new SDK waits for other words, this is where it shows."""
    source = sdk_source()

    assert r"/runn+ing( at|\.)/i.test(line)" in source
    assert "/address already in use/i.test(cleaned)" in source
    assert '["dev", "--port", String(port)]' in source
    assert "`${baseUrl}/v2/keys`" in source


def test_the_first_line_says_that_it_is_running(tmp_path):
    """W219: on stdout, at once, into a pipe, and only when it can be reached."""
    with running("dev", "--memory", "--port", "0", cwd=tmp_path) as server:
        server.until("\n")

        first = server.said.partition("\n")[0]
        assert SPOKEN.search(first)
        assert "127.0.0.1" in first
        assert accepts_connections(server.url)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
