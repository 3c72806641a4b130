"""Our client against aiohttp's: 1,000 random exchanges, and both read the same answers.

The server makes an answer from a number in the path, so both clients are sent
the same bytes; what the server read of each request is compared as well.
"""

import random
from typing import Any

import aiohttp
from msgspec import Struct

from tests.support.rude_server import Peer, rude_server
from waypost.wire.protocol import Request

EXCHANGES = 1_000
TOKEN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~"
TEXT = "".join(map(chr, (*range(0x21, 0x7F), *range(0xA1, 0x100)))) + " \t"


class Exchange(Struct, frozen=True):
    """A random well-formed request, and the bytes of a random well-formed answer."""

    request: Request
    answer: bytes
    closes: bool


def an_exchange(seed: int, url: str) -> Exchange:
    dice = random.Random(seed)
    method = dice.choice(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
    request = Request(
        method=method,
        url=f"{url}{seed}?{'x' * dice.randrange(100)}",
        header=[(f"X-{_of(dice, TOKEN, 12)}", _value(dice)) for _ in range(dice.randrange(12))],
        body=b"" if method in ("GET", "HEAD", "OPTIONS") else _bytes(dice),
        timeout_ms=10_000,
    )
    answer, closes = _answer(dice, method)
    return Exchange(request, answer, closes)


def _answer(dice: random.Random, method: str) -> tuple[bytes, bool]:
    status = dice.choice([200, 200, 201, 202, 204, 206, 301, 304, 400, 404, 410, 429, 500, 503])
    body = _bytes(dice)
    lines = [f"HTTP/1.1 {status} {dice.choice(['', 'OK', 'Some Reason'])}"]
    lines += [f"X-{_of(dice, TOKEN, 12)}: {_value(dice)}" for _ in range(dice.randrange(20))]
    lines += [f"Set-Cookie: {_of(dice, TOKEN, 9)}=1" for _ in range(dice.randrange(3))]
    framing = dice.choice(["length", "length", "chunked", "close"])
    closes = framing == "close" or dice.random() < 0.1
    if closes:
        lines.append("Connection: close")
    if status in (204, 304):
        framed = b""
    elif framing == "length":
        lines.append(f"{dice.choice(['Content-Length', 'content-length'])}: {len(body)}")
        framed = body
    elif framing == "chunked":
        lines.append(f"Transfer-Encoding: {dice.choice(['chunked', 'Chunked'])}")
        framed = _chunked(dice, body)
    else:
        framed = body
    dice.shuffle(rest := lines[1:])
    head = "\r\n".join([lines[0], *rest]) + "\r\n\r\n"
    before = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * dice.choice([0, 0, 0, 1, 3])
    return before + head.encode("latin-1") + (b"" if method == "HEAD" else framed), closes


def _chunked(dice: random.Random, body: bytes) -> bytes:
    chunks = []
    while body:
        size = dice.randint(1, len(body))
        extension = dice.choice([b"", b";a=b", b';c="d"'])
        chunks.append(b"%x%b\r\n%b\r\n" % (size, extension, body[:size]))
        body = body[size:]
    return b"".join(chunks) + b"0\r\n" + dice.choice([b"", b"X-Trailer: t\r\n"]) + b"\r\n"


def _of(dice: random.Random, alphabet: str, length_max: int) -> str:
    return "".join(dice.choices(alphabet, k=dice.randint(1, length_max)))


def _value(dice: random.Random) -> str:
    return _of(dice, TEXT, 40).strip(" \t")


def _bytes(dice: random.Random) -> bytes:
    return dice.randbytes(dice.choice([0, 0, 1, 10, 1_000, dice.randrange(65_000)]))


async def test_a_thousand_random_exchanges_read_the_same_as_by_aiohttp(sender):
    seen: dict[int, list[bytes]] = {}

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.read_request()
            seed = int(request.split(b" ", 2)[1][1:].partition(b"?")[0])
            seen.setdefault(seed, []).append(request)
            exchange = an_exchange(seed, "")
            cut = random.Random(seed).randrange(len(exchange.answer) + 1)
            await peer.send(exchange.answer[:cut])
            await peer.send(exchange.answer[cut:])
            if exchange.closes:
                peer.close()
                return

    async with rude_server(script) as server, aiohttp.ClientSession(auto_decompress=False) as other:
        for seed in range(EXCHANGES):
            request = an_exchange(seed, server.url()).request
            ours = await sender.send(request)
            theirs = await by_aiohttp(other, request)
            assert ours.error is None, (seed, ours)
            assert (ours.status, ours.header, ours.body) == theirs, seed
            mine, other_s = seen[seed]
            assert (
                mine.partition(b"\r\n\r\n")[2] == other_s.partition(b"\r\n\r\n")[2] == request.body
            )
            for name, value in request.header:
                assert f"\r\n{name}: {value}\r\n".encode("latin-1") in mine


async def by_aiohttp(session: aiohttp.ClientSession, request: Request) -> Any:
    async with session.request(
        request.method, request.url, data=request.body or None, allow_redirects=False
    ) as answer:
        header = [
            (name.lower().decode("latin-1"), value.decode("latin-1"))
            for name, value in answer.raw_headers
        ]
        return answer.status, header, await answer.read()
