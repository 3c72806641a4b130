"""The home of the server under test: a real `waypost dev` on a file of its own, or one of the
nodes of a PostgreSQL database."""

import asyncio
import contextlib
import os
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw
import msgspec
from msgspec import Struct

from bench.loader import AUTHORIZATION
from bench.machine import cpu_s_of
from bench.processes import process

WAYPOST = str(Path(sys.executable).with_name("waypost"))
START_S_MAX = 15
DRAIN_S_MAX = 20
POLL_S = 0.02
NO_HEADER: Mapping[str, str] = {}


class Counts(Struct, frozen=True, kw_only=True):
    """Messages that the server counted."""

    accepted: int
    delivered: int


class Service:
    """What messages are published to and delivered by."""

    def cpu_us(self) -> float:
        """User and system time that it has used, in microseconds."""
        raise NotImplementedError

    async def counts(self) -> Counts:
        """How many messages were accepted and delivered since it started."""
        raise NotImplementedError

    async def drained(self, *, since: Counts, callbacks: bool = False) -> tuple[int, float]:
        """Wait until all that was accepted since then is delivered: how many, and when (s).

        With `callbacks`, each has one, which is counted as delivered too.  What takes too
        long is not waited for: what is left counts as not delivered.
        """
        began_s, ended_s, before = time.monotonic(), 0.0, -1
        while True:
            now = await self.counts()
            accepted, delivered = now.accepted - since.accepted, now.delivered - since.delivered
            accepted += accepted if callbacks else 0
            if delivered < accepted and time.monotonic() - began_s > DRAIN_S_MAX:
                sys.stderr.write(f"{accepted - delivered:,} not delivered in {DRAIN_S_MAX} s … ")
                return delivered, time.monotonic()
            if delivered == accepted:
                if before == accepted:  # twice, for one may have been on its way in
                    return delivered, ended_s
                ended_s = time.monotonic()
                before = accepted
            await asyncio.sleep(POLL_S)


class Server(Service):
    """A running server."""

    def __init__(self, url: str, pid: int, database: Path) -> None:
        self.url = url
        self.pid = pid
        self.database = database

    def cpu_us(self) -> float:
        return cpu_s_of(self.pid) * 1e6

    def remove(self) -> None:
        """Remove the database of a server that has stopped."""
        for file in self.database.parent.glob(self.database.name + "*"):
            file.unlink()

    async def counts(self) -> Counts:
        text = await self._get("/metrics")
        return Counts(
            accepted=_sample(text, "waypost_messages_accepted_total"),
            delivered=_sample(text, 'waypost_messages_settled_total{state="delivered"}'),
        )

    async def group(self, name: str, urls: Sequence[str]) -> None:
        """Make a URL group."""
        endpoints = {"endpoints": [{"url": url} for url in urls]}
        await self.ask("POST", f"/v2/topics/{name}/endpoints", endpoints)

    async def ask(
        self, method: str, path: str, body: object = None, *, header: Mapping[str, str] = NO_HEADER
    ) -> Any:
        """What the API answers, which must be a success."""
        request = urllib.request.Request(
            self.url + path,
            None if body is None else msgspec.json.encode(body),
            {"Authorization": AUTHORIZATION, "Content-Type": "application/json", **header},
            method=method,
        )
        return msgspec.json.decode(await asyncio.to_thread(_read, request))

    async def _get(self, path: str) -> str:
        host, _, port = self.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer.decode()


class Nodes(Service):
    """Servers that are one service: one may deliver what another has accepted."""

    def __init__(self, nodes: Sequence[Server]) -> None:
        self._nodes = nodes

    def cpu_us(self) -> float:
        return sum(node.cpu_us() for node in self._nodes)

    async def counts(self) -> Counts:
        counts = [await node.counts() for node in self._nodes]
        return Counts(
            accepted=sum(each.accepted for each in counts),
            delivered=sum(each.delivered for each in counts),
        )


def _read(request: urllib.request.Request) -> bytes:
    with urllib.request.urlopen(request) as answer:
        body: bytes = answer.read()
        return body


def _sample(text: str, name: str) -> int:
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return int(float(found[1]))


@contextlib.asynccontextmanager
async def server(
    directory: Path,
    *,
    database: Path | None = None,
    postgres: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[Server]:
    """A server on a new file, on the one given, or on the PostgreSQL database of that URL.
    `settings` go by their names."""
    own = Path(tempfile.mkdtemp(prefix="server-", dir=directory))
    database = database or own / "waypost.db"
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WAYPOST_", "QSTASH_"))
    }
    for name, value in (settings or {}).items():
        environ[f"WAYPOST_{name.upper()}"] = value
    words = (WAYPOST, "dev", "--port", "0", "--database", postgres or f"sqlite:///{database}")
    log = own / "stderr.log"
    async with process(*words, log=log, environ=environ) as waypost:
        assert waypost.stdout is not None
        try:
            async with asyncio.timeout(START_S_MAX):
                line = await waypost.stdout.readline()
        except TimeoutError:
            line = b""
        found = re.search(rb"running at (http://\S+)", line)
        if found is None:
            raise RuntimeError(f"waypost did not start: {line!r} {log.read_text()}")
        yield Server(found[1].decode(), waypost.pid, database)
    said = log.read_text()
    if said:
        sys.stderr.write(said)


def logged_whole(database: Path) -> int:
    """How many messages have CREATED, ACTIVE and DELIVERED in the log of a stopped server."""
    db = apsw.Connection(str(database))
    try:
        rows = db.execute(
            "SELECT count(*) FROM (SELECT 1 FROM event"
            " WHERE state IN ('CREATED', 'ACTIVE', 'DELIVERED')"
            " GROUP BY tenant, message_id HAVING count(DISTINCT state) = 3)"
        )
        return sum(count for (count,) in rows)
    finally:
        db.close()
