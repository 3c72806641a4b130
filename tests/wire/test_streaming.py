"""Answers that are passed on as they come."""

import asyncio
import ssl

import pytest
import trustme

from tests.support.rude_server import Peer, answering, answering_always, rude_server
from waypost.wire.protocol import BrokenOff, Request
from waypost.wire.sender import HttpSender
from waypost.wire.streaming import HELD_BYTES_MAX

HEAD = b"HTTP/1.1 200 OK\r\nX-Model: gpt\r\n"


def request(url: str, *, timeout_ms: int = 5_000, body: bytes = b"{}") -> Request:
    return Request(
        method="POST", url=url, header=[], body=body, timeout_ms=timeout_ms, trusted=True
    )


async def all_of(sender: HttpSender, asked: Request) -> bytes:
    answer = await sender.stream(asked)
    try:
        return b"".join([piece async for piece in answer.pieces()])
    finally:
        answer.close()


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: 5\r\n\r\nhello",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        HEAD + b"Connection: close\r\n\r\nhello",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" + HEAD + b"Content-Length: 5\r\n\r\nhello",
    ],
)
async def test_a_body_is_passed_on_whatever_its_framing(sender: HttpSender, answer: bytes) -> None:
    async with rude_server(answering(answer)) as server:
        found = await sender.stream(request(server.url()))
        assert (found.outcome.status, found.outcome.error) == (200, None)
        assert ("x-model", "gpt") in found.outcome.header
        assert b"".join([piece async for piece in found.pieces()]) == b"hello"
        found.close()
        assert await all_of(sender, request(server.url())) == b"hello"
        assert server.connections == 2


async def test_it_is_passed_on_over_tls_and_a_large_question_goes_out(
    sender: HttpSender, authority: trustme.CA
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    length = 1_000_000
    answer = HEAD + b"Content-Length: %d\r\n\r\n" % length + b"a" * length
    async with rude_server(answering_always(answer), tls=tls) as server:
        asked = request(server.url(), body=b"x" * 200_000)
        assert await all_of(sender, asked) == b"a" * length
        assert server.requests[0].endswith(b"x" * 200_000)


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 9\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n9\r\n"]
)
@pytest.mark.parametrize("how", ["reset", "close"])
async def test_what_came_before_the_end_is_passed_on_and_then_the_fault(
    sender: HttpSender, framing: bytes, how: str
) -> None:
    passed_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(HEAD + framing + b"hello")
        await passed_on.wait()
        peer.reset() if how == "reset" else peer.close()

    async with rude_server(script) as server:
        answer = await sender.stream(request(server.url()))
        pieces = answer.pieces()
        assert await anext(pieces) == b"hello"
        passed_on.set()
        with pytest.raises(BrokenOff, match="in the middle of the answer's body"):
            await anext(pieces)
        answer.close()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "the connection was closed before any answer"),
        (b"HTTP/1.1 200 OK\r\nX: ", "the connection was closed in the middle of the answer's head"),
        (b"SSH-2.0-OpenSSH\r\n", "invalid HTTP: the answer does not begin with HTTP/"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "the answer is 101"),
        (b"HTTP/1.1 999 What\r\n\r\n", "invalid HTTP: status 999"),
        (HEAD + b"X: " + b"x" * 70_000 + b"\r\n\r\n", "the answer's head is larger"),
    ],
)
async def test_what_is_no_answer_has_no_status(
    sender: HttpSender, answer: bytes, error: str
) -> None:
    async with rude_server(answering(answer)) as server:
        found = await sender.stream(request(server.url()))
        assert found.outcome.error is not None
        assert found.outcome.error.startswith(error)
        found.close()


async def test_the_deadline_covers_the_body(sender: HttpSender) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(HEAD + b"\r\n")
        await peer.drip(b"hello" * 1_000, every_s=0.01)

    async with rude_server(script) as server:
        with pytest.raises(BrokenOff, match="timed out: the answer's body was not finished"):
            await all_of(sender, request(server.url(), timeout_ms=200))


async def test_what_nobody_asks_for_is_not_read(sender: HttpSender) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(HEAD + b"\r\n")
        await peer.flood(b"x" * 1_000)

    async with rude_server(script) as server:
        answer = await sender.stream(request(server.url()))
        pieces = answer.pieces()
        await anext(pieces)
        for _ in range(200):  # as often as data could come
            await asyncio.sleep(0)
        assert answer._held_bytes <= HELD_BYTES_MAX + 262_144  # type: ignore[attr-defined]
        for _ in range(20):
            assert await anext(pieces)
        answer.close()


async def test_to_give_up_waiting_ends_the_exchange(sender: HttpSender) -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        asked.set()
        try:
            await peer.until_closed()
        finally:
            ended.set()

    async with rude_server(script) as server:
        waiting = asyncio.create_task(sender.stream(request(server.url())))
        await asked.wait()
        waiting.cancel()
        async with asyncio.timeout(5):
            await ended.wait()
        with pytest.raises(asyncio.CancelledError):
            await waiting
