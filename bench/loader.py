"""The home of the load: wrk, which publishes as fast as it is answered, or only so much."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.processes import process, program
from waypost.domain.dev_users import DEV_USERS

SCRIPT = Path(__file__).with_name("publish.lua")
CONNECTIONS = 64
BODY = '{"event":"user.created","id":"usr_2f9a1c"}'
AUTHORIZATION = f"Bearer {DEV_USERS[0].token}"

ACCEPTED = b"\nall were accepted\n"

ALL_S_MAX = 60
"""How long it may take to request each of a list of paths once."""


class Load(msgspec.Struct, frozen=True):
    """What wrk did: requests that were answered, in what time, and what went wrong."""

    requests: int
    took_us: int
    not_2xx: int
    broken: int

    @property
    def rate(self) -> float:
        """Requests answered each second."""
        return self.requests / self.took_us * 1e6


def publishing_to(destination: str) -> str:
    """The path that publishes to a URL."""
    return f"/v2/publish/{destination}"


def enqueueing_to(destination: str, *, queue: str) -> str:
    """The path that enqueues to a URL."""
    return f"/v2/enqueue/{queue}/{destination}"


async def post_for(
    seconds: float,
    url: str,
    *,
    directory: Path,
    callback: str | None = None,
    connections: int = CONNECTIONS,
) -> Load:
    """POST the same request over and over.  At the end some are cut off unanswered."""
    return await _wrk(seconds, url, directory, callback=callback, connections=connections)


async def post_to_all(seconds: float, urls: Sequence[str], *, directory: Path) -> Load:
    """The same, shared by several processes, which each have a URL and their part of the
    connections."""
    each = CONNECTIONS // len(urls)
    loads = await asyncio.gather(
        *(post_for(seconds, url, directory=directory, connections=each) for url in urls)
    )
    return Load(
        requests=sum(load.requests for load in loads),
        took_us=max(load.took_us for load in loads),
        not_2xx=sum(load.not_2xx for load in loads),
        broken=sum(load.broken for load in loads),
    )


async def post_each(paths: Sequence[str], url: str, *, directory: Path) -> Load:
    """POST to each path once.  All were accepted when this returns."""
    with tempfile.NamedTemporaryFile("w", dir=directory, suffix=".paths") as file:
        file.writelines(path + "\n" for path in paths)
        file.flush()
        return await _wrk(ALL_S_MAX, url, directory, paths=file.name)


async def _wrk(
    seconds: float,
    url: str,
    directory: Path,
    *,
    paths: str | None = None,
    callback: str | None = None,
    connections: int = CONNECTIONS,
) -> Load:
    environ = {**os.environ, "BODY": BODY, "AUTHORIZATION": AUTHORIZATION}
    if paths is not None:
        environ["PATHS"] = paths
    if callback is not None:
        environ["CALLBACK"] = callback
    words = (program("wrk"), "-t1", f"-c{connections}", f"-d{round(seconds)}s", "-s", str(SCRIPT))
    log = directory / "wrk.log"
    async with process(*words, url, log=log, environ=environ) as wrk:
        assert wrk.stdout is not None
        async with asyncio.timeout(seconds + 30):
            said = await _until_accepted(wrk) if paths is not None else b""
            said += await wrk.stdout.read()
    last = said.rstrip().rpartition(b"\n")[2]
    if wrk.returncode or not last.startswith(b"{"):
        raise RuntimeError(f"wrk failed: {said.decode()} {log.read_text()}")
    load = msgspec.json.decode(last, type=Load)
    if load.not_2xx or load.broken:
        raise RuntimeError(f"not every request was answered well: {load}")
    if paths is not None and ACCEPTED not in said:
        raise RuntimeError(f"not every path was accepted within {seconds} s: {load}")
    return load


async def _until_accepted(wrk: asyncio.subprocess.Process) -> bytes:
    """Wait until wrk has had all its answers, and end its sleep; what it said."""
    assert wrk.stdout is not None
    said = b""
    while ACCEPTED not in said:
        line = await wrk.stdout.readline()
        if not line:
            return said
        said += line
    wrk.send_signal(signal.SIGINT)
    return said
