"""The home of JavaScript in these tests: the npm SDK, installed once, and programs that use it."""

import fcntl
import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.program import DEADLINE_S, clean_environ

PROGRAMS = Path(__file__).with_name("js")
INSTALL_S = 180


def lacking() -> str:
    """What this machine lacks, or nothing."""
    return " and ".join(name for name in ("node", "npm") if shutil.which(name) is None)


def install() -> None:
    """Install exactly what the lockfile says, unless that is there already.

    Two test runs at the same time wait for each other.
    """
    with (PROGRAMS / "package-lock.json").open() as wanted:
        fcntl.flock(wanted, fcntl.LOCK_EX)
        stamp = PROGRAMS / "node_modules" / ".installed-from"
        lock = wanted.read()
        if stamp.exists() and stamp.read_text() == lock:
            return
        done = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=PROGRAMS,
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        stamp.write_text(lock)


def run(
    program: str,
    given: object,
    *,
    environ: Mapping[str, str],
    cwd: Path | None = None,
) -> tuple[Any, str]:
    """Run a program to its end: the value that it said, and all of its output before that."""
    done = subprocess.run(
        ["node", str(PROGRAMS / program), json.dumps(given)],
        cwd=cwd,
        env=clean_environ(**environ),
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    before, _, last = done.stdout.rstrip("\n").rpartition("\n")
    return json.loads(last), before + done.stderr


class Listening:
    """A program that says a line for each thing that happens to it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._lines: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(process,))
        self._thread.start()

    def next(self) -> Any:
        """What it says next."""
        return json.loads(self._lines.get(timeout=DEADLINE_S))

    def join(self) -> None:
        self._thread.join()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.put(line)


@contextmanager
def listening(program: str, *, environ: Mapping[str, str]) -> Iterator[Listening]:
    """A program that is there for the length of the block."""
    with subprocess.Popen(
        ["node", str(PROGRAMS / program)],
        env=clean_environ(**environ),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        heard = Listening(process)
        try:
            yield heard
        finally:
            process.kill()
            heard.join()
