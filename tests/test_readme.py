"""The README's examples do what they say.

Each block that is marked `<!-- test: name -->` runs as it is printed, against a
running server; only the two ports are replaced by free ones, so that the tests
disturb nobody.
"""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.program import (
    DEADLINE_S,
    accepts_connections,
    clean_environ,
    eventually,
    free_port,
    running,
)

README = Path(__file__).parent.parent / "README.md"

BLOCKS = dict(
    re.findall(
        r"^<!-- test: (\w+) -->\n```\w+\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL
    )
)

NPM_DEADLINE_S = 90


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def blocks(place: Path) -> Iterator[dict[str, str]]:
    """The examples, with a development server and the README's receiver running for them."""
    receiver_port = str(free_port())
    with running("dev", "--memory", "--port", "0", cwd=place) as server:
        server_port = server.url.rpartition(":")[2]
        blocks = {
            name: text.replace("8080", server_port).replace("9000", receiver_port)
            for name, text in BLOCKS.items()
        }
        with (place / "received").open("wb") as received:
            receiver = subprocess.Popen(
                ["/bin/sh", "-c", "exec " + blocks["receiver"]], stdout=received
            )
        eventually(lambda: accepts_connections(f"http://127.0.0.1:{receiver_port}"))
        yield blocks
        receiver.send_signal(signal.SIGKILL)
        receiver.wait(DEADLINE_S)


def message_id_of(
    command: list[str], cwd: Path, text: str | None = None, deadline_s: float = DEADLINE_S
) -> str:
    """Run an example; the message id that it prints."""
    ended = subprocess.run(
        command,
        input=text,
        cwd=cwd,
        env=clean_environ(),
        capture_output=True,
        text=True,
        timeout=deadline_s,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = re.search(r"msg_\w+", ended.stdout)
    assert found is not None, ended.stdout
    return found[0]


def received(place: Path, message_id: str, body: str) -> None:
    """Wait until the README's receiver has printed the message."""
    line = f"/hello {message_id} {body}\n"
    eventually(lambda: line in (place / "received").read_text())


def test_the_first_lines_say_what_it_is_what_it_promises_and_whose_it_is_not():
    opening = " ".join(README.read_text().split("\n## ")[0].split())

    assert "durable HTTP message queue" in opening
    assert "A 2xx means: on disk" in opening
    assert "not affiliated with" in opening


def test_the_two_commands_are_commands_of_the_makefile():
    makefile = README.with_name("Makefile").read_text()

    for command in ("dev", "test", "prove"):
        assert f"make {command}" in README.read_text()
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)


def test_the_curl_example_publishes_and_is_delivered(blocks: dict[str, str], place: Path):
    message_id = message_id_of(["/bin/sh", "-e"], place, blocks["curl"])

    received(place, message_id, "from curl")


def test_the_python_example_publishes_and_is_delivered(blocks: dict[str, str], place: Path):
    message_id = message_id_of([sys.executable, "-"], place, blocks["python"])

    received(place, message_id, "from Python")


@pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None, reason="needs node and npm"
)
def test_the_javascript_example_publishes_and_is_delivered(blocks: dict[str, str], place: Path):
    installed = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--prefer-offline", "@upstash/qstash"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=NPM_DEADLINE_S,
        check=False,
    )
    if installed.returncode:
        pytest.skip(f"npm cannot install @upstash/qstash here: {installed.stderr[-200:]}")
    (place / "publish.mjs").write_text(blocks["javascript"])

    message_id = message_id_of(["node", "publish.mjs"], place)

    received(place, message_id, "from JavaScript")
