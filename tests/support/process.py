"""The home of a `waypost` process that a test starts, kills and starts again on what it left.

Loopback only.  Each start is a session of its own, so that whatever it started
(under strace: the server itself) goes with it; nothing else is ever signalled.
"""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from waypost.domain.dev_users import DEV_USERS

WAYPOST = (str(Path(sys.executable).with_name("waypost")),)
TOKEN = DEV_USERS[0].token
DEADLINE_S = 30


def clean_environ() -> dict[str, str]:
    """This process's environment without what would configure a server."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("WAYPOST_", "QSTASH_"))}


class DidNotStart(Exception):
    """The process ended, or said nothing, before it served."""


class Program:
    """A command that serves, and the token that it knows."""

    def __init__(self, *words: str, log: Path, token: str = TOKEN) -> None:
        self.port = 0
        self.token = token
        self._words = words
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def spawn(self) -> None:
        """Begin to start; `served` says when it does."""
        assert not self.running
        self.port = 0
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._words,
                env=clean_environ(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    async def served(self) -> None:
        """Wait until it serves.  Raises DidNotStart."""
        assert self._process is not None
        assert self._process.stdout is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE_S):
                async for line in self._process.stdout:
                    if found := re.search(rb"running at http://127\.0\.0\.1:(\d+)", line):
                        self.port = int(found[1])
                        return
        await self.kill()
        raise DidNotStart(f"exit {self._process.returncode}: {self.said()[-4_000:]}")

    async def start(self) -> None:
        await self.spawn()
        await self.served()

    def strike(self) -> None:
        """SIGKILL, this instant; the answer comes from `ended`."""
        self.port = 0
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def kill(self) -> None:
        self.strike()
        await self.ended()

    def signal(self, number: int) -> None:
        """Signal the server itself, which may be the child of what was started."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in children or [str(pid)]:
            os.kill(int(each), number)

    async def ended(self) -> int:
        """Wait for the end; the exit code."""
        assert self._process is not None
        async with asyncio.timeout(DEADLINE_S):
            code = await self._process.wait()
        # What is left in the pipe is read, so that its transport closes.
        assert self._process.stdout is not None
        await self._process.stdout.read()
        return code

    async def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended()

    def said(self) -> str:
        """What was written to stderr, by all that were started."""
        return self._log.read_text(errors="replace")


class Process(Program):
    """`waypost dev` on one file.  `program` may wrap it: a planted bug, strace."""

    def __init__(
        self, database: Path, *flags: str, program: Sequence[str] = WAYPOST, log: Path | None = None
    ) -> None:
        words = [*program, "dev", "--port", "0", "--database", f"sqlite:///{database}", *flags]
        super().__init__(*words, log=log or database.with_name("server.log"))
        self.database = database


@contextlib.asynccontextmanager
async def process(
    database: Path, *flags: str, program: Sequence[str] = WAYPOST, log: Path | None = None
) -> AsyncIterator[Process]:
    """A process that is not yet started, and is gone at the end of the block."""
    owned = Process(database, *flags, program=program, log=log)
    try:
        yield owned
    finally:
        if owned.running:
            await owned.kill()
