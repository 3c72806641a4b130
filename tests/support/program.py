"""The home of the real `waypost` process in tests.  Every wait is for an event, with a deadline."""

import contextlib
import io
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from waypost.cli.main import main
from waypost.domain.dev_users import DEV_USERS

WAYPOST = str(Path(sys.executable).with_name("waypost"))
DEADLINE_S = 15
DEV_TOKEN = DEV_USERS[0].token


def clean_environ(**more: str) -> dict[str, str]:
    """This process's environment without what would configure a server."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WAYPOST_", "QSTASH_"))
    }
    return {**kept, **more}


class Ended(NamedTuple):
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


def waypost(*words: str, cwd: Path, environ: Mapping[str, str] | None = None) -> Ended:
    """Run a command to its end: in this process, which saves the start of one, unless it
    is one that serves."""
    environ = clean_environ(**(environ or {}))
    if {"dev", "serve"} & set(words) and "--help" not in words:
        ended = subprocess.run(
            [WAYPOST, *words],
            cwd=cwd,
            env=environ,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
        contextlib.chdir(cwd),
        mock.patch.dict(os.environ, environ, clear=True),
        mock.patch.object(sys, "argv", ["waypost", *words]),
        pytest.raises(SystemExit) as exited,
    ):
        main()
    return Ended(int(exited.value.code or 0), stdout.getvalue(), stderr.getvalue())


class Server:
    """A running `waypost dev` or `waypost serve`."""

    def __init__(
        self,
        *words: str,
        cwd: Path,
        environ: Mapping[str, str] | None = None,
        program: Sequence[str] = (WAYPOST,),
    ) -> None:
        self.stderr_path = cwd / "stderr.log"
        with self.stderr_path.open("ab") as stderr:
            self.process = subprocess.Popen(
                [*program, *words],
                cwd=cwd,
                env=clean_environ(**(environ or {})),
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        self.said = ""

    def until(self, pattern: str) -> re.Match[str]:
        """Read stdout until `pattern` is in it."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        end = time.monotonic() + DEADLINE_S
        while (found := re.search(pattern, self.said)) is None:
            readable, _, _ = select.select([fd], [], [], max(0, end - time.monotonic()))
            chunk = os.read(fd, 65_536) if readable else b""
            if not chunk:
                raise AssertionError(
                    f"{pattern!r} never came; stdout: {self.said!r}; "
                    f"stderr: {self.stderr_path.read_text()!r}"
                )
            self.said += chunk.decode()
        return found

    @property
    def url(self) -> str:
        return self.until(r"running at (http://\S+)\n")[1]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """How the process ended."""
        return self.process.wait(DEADLINE_S)

    def call(
        self, method: str, path: str, *, token: str = DEV_TOKEN, body: bytes = b"", **header: str
    ) -> tuple[int, bytes]:
        """One request; header names are written with `_` for `-`."""
        request = urllib.request.Request(
            self.url + path,
            data=body or None,
            method=method,
            headers={
                "Authorization": f"Bearer {token}",
                **{name.replace("_", "-"): value for name, value in header.items()},
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read()

    def states(self, message_id: str) -> list[str]:
        """What the log says of a message, newest first."""
        status, body = self.call("GET", f"/v2/events?messageId={message_id}")
        assert status == 200, body
        return [event["state"] for event in json.loads(body)["events"]]


@contextlib.contextmanager
def running(
    *words: str,
    cwd: Path,
    environ: Mapping[str, str] | None = None,
    program: Sequence[str] = (WAYPOST,),
) -> Iterator[Server]:
    """A server that is there for the length of the block, however that ends.

    `program` may wrap the real one, to plant a fault.
    """
    server = Server(*words, cwd=cwd, environ=environ, program=program)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.signal(signal.SIGKILL)
        server.process.communicate(timeout=DEADLINE_S)


class Receiver:
    """A destination that keeps what comes, and answers when it is told to."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(DEADLINE_S)
        self._open = [self._listening]
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self) -> "Receiver":
        return self

    def __exit__(self, *_fault: object) -> None:
        for each in self._open:
            each.close()

    def request(self) -> tuple[bytes, Callable[[], None]]:
        """The next request, and what answers it with 200.  It hangs until then."""
        connection, _ = self._listening.accept()
        self._open.append(connection)
        connection.settimeout(DEADLINE_S)
        received = b""
        while not _is_whole(received):
            chunk = connection.recv(65_536)
            assert chunk, received
            received += chunk

        def answer() -> None:
            with connection:
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )

        return received, answer


def _is_whole(received: bytes) -> bool:
    head, blank, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\ncontent-length: *(\d+)", head)
    return bool(blank) and len(body) >= int(length[1] if length else 0)


def eventually(claim: Callable[[], bool]) -> None:
    """Wait until `claim` holds."""
    pause = threading.Event()
    end = time.monotonic() + DEADLINE_S
    while not claim():
        assert time.monotonic() < end, "it never came to hold"
        pause.wait(0.01)


def accepts_connections(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
