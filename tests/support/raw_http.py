"""Raw bytes to a server and back: for requests that no client would send."""

import asyncio
import json
from typing import Any

from msgspec import Struct


class RawAnswer(Struct):
    status: int
    header: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def exchange(port: int, *pieces: bytes, shut: bool = False) -> list[RawAnswer]:
    """Send the pieces, each as a packet of its own, and read answers until the server hangs up.

    `shut` closes our half after the last piece.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if shut:
            writer.write_eof()
        async with asyncio.timeout(5):
            return answers(await reader.read())
    finally:
        writer.close()


def answers(data: bytes) -> list[RawAnswer]:
    """Every answer in what a server sent, those of 100 left out."""
    found = []
    while data:
        head, blank, data = data.partition(b"\r\n\r\n")
        assert blank, f"an answer without an end: {head!r}"
        status_line, *lines = head.decode("latin-1").split("\r\n")
        header = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        status = int(status_line.split()[1])
        if status == 100:
            continue
        length = int(header["content-length"])
        assert len(data) >= length, f"an answer cut short: {data!r}"
        found.append(RawAnswer(status, header, data[:length]))
        data = data[length:]
    return found
