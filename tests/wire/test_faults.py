"""What a destination may do wrong, and that it ends as an outcome, in time, with nothing left open.

The rows D1 to D9 of the fault programme.
"""

import asyncio
import gc
import random
import time
from pathlib import Path

import pytest

from tests.support.rude_server import (
    Peer,
    RudeServer,
    Script,
    answering,
    answering_always,
    free_port,
    once_each,
    rude_server,
)
from waypost.wire.http1 import FIELDS_MAX, INFORMATIONAL_MAX

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SHORT_MS = 250


def saying(data: bytes, *, then: str) -> Script:
    """Read a request, send `data`, and then close, reset or hang."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(data)
        if then == "hang":
            await peer.hang()
        elif then == "reset":
            peer.reset()
        else:
            peer.close()

    return script


def flooding(head: bytes, unit: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(head)
        await peer.flood(unit)

    return script


def dripping(data: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.drip(data, every_s=0.05)

    return script


async def hang_up(peer: Peer) -> None:
    peer.close()


async def hang(peer: Peer) -> None:
    await peer.hang()


async def test_a_refused_connection_says_so(sender, a_request):
    outcome = await sender.send(a_request(f"http://127.0.0.1:{free_port()}/"))
    assert outcome.error == "cannot connect: Connection refused"
    assert outcome.host_down
    assert not outcome.refused


async def test_a_connection_that_is_closed_without_an_answer_is_a_fault_of_the_host(
    sender, a_request
):
    async with rude_server(hang_up) as server:
        outcome = await sender.send(a_request(server.url()))
    assert outcome.status == 0
    assert outcome.error is not None
    assert "before any answer" in outcome.error
    assert outcome.host_down
    assert not outcome.redialled


@pytest.mark.parametrize(
    ("script", "status", "where"),
    [
        (hang, 0, "no answer"),
        (dripping(OK), 0, "head was not finished"),
        (dripping(b"HTTP/1.1 100 Continue\r\n\r\n" * 99), 0, "head was not finished"),
        (saying(b"HTTP/1.1 200 OK\r\n", then="hang"), 0, "head was not finished"),
        (saying(OK[:-1], then="hang"), 200, "body was not finished"),
        (
            saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok", then="hang"),
            200,
            "body was not finished",
        ),
        (saying(b"HTTP/1.1 200 OK\r\n\r\nok", then="hang"), 200, "body was not finished"),
    ],
)
async def test_a_slow_answer_ends_at_the_deadline(sender, a_request, script, status, where):
    async with rude_server(script) as server:
        start_s = time.monotonic()
        outcome = await sender.send(a_request(server.url(), timeout_ms=SHORT_MS))
        took_s = time.monotonic() - start_s
    assert outcome.status == status
    assert outcome.error is not None
    assert outcome.error.startswith("timed out")
    assert where in outcome.error
    assert outcome.host_down
    assert took_s < SHORT_MS / 1000 + 1


async def test_a_body_that_nobody_reads_ends_at_the_deadline(sender, a_request):
    async with rude_server(hang) as server:
        request = a_request(server.url(), body=bytes(10_000_000), timeout_ms=SHORT_MS)
        assert (await sender.send(request)).error == "timed out: no answer"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    ("said", "status", "where"),
    [
        (b"HTTP/1.1 200", 0, "head"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", 0, "head"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", 0, "head"),
        (OK[:-2], 200, "body"),
        (OK[:-1], 200, "body"),
        (CHUNKED, 200, "body"),
        (CHUNKED + b"2\r\nok\r\n", 200, "body"),
        (CHUNKED + b"2\r\nok\r\n0\r\n", 200, "body"),
    ],
)
async def test_an_answer_that_breaks_off_is_not_delivered(
    sender, a_request, said, status, where, how
):
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(said)
        if how == "reset":
            await arrived.wait()
            peer.reset()
        else:
            peer.close()

    arrived = asyncio.Event()
    async with rude_server(script) as server:
        task = asyncio.ensure_future(sender.send(a_request(server.url())))
        await has_read(sender)
        arrived.set()
        outcome = await task
    assert outcome.status == status
    assert outcome.error is not None
    assert outcome.error.endswith(f"in the middle of the answer's {where}")
    assert outcome.host_down == (status == 0)
    assert not outcome.delivered


async def has_read(sender: object) -> None:
    """Give the loop enough turns for what was sent on loopback to be read."""
    for _ in range(200):
        await asyncio.sleep(0)


async def test_a_reset_ends_a_body_that_would_end_by_closing(sender, a_request):
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nok")
        await has_read(sender)
        peer.reset()

    async with rude_server(script) as server:
        outcome = await sender.send(a_request(server.url()))
    assert outcome.status == 200
    assert outcome.error is not None
    assert "reset" in outcome.error


INVALID = {
    "garbage": b"\x00\x01\x02garbage\r\n\r\n",
    "http 0.9": b"hello world\n",
    "version 0.9": b"HTTP/0.9 200 OK\r\n\r\n",
    "version 2.0": b"HTTP/2.0 200 OK\r\n\r\n",
    "version 1.2": b"HTTP/1.2 200 OK\r\n\r\n",
    "http 2 settings": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "tls alert": b"\x15\x03\x03\x00\x02\x02\x46",
    "rtsp": b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "ice": b"ICE/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "lower case": b"http/1.1 200 OK\r\n\r\n",
    "status 0": b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    "status 20": b"HTTP/1.1 20 OK\r\n\r\n",
    "status 2000": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status -20": b"HTTP/1.1 -20 OK\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "101 upgraded": b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n\x00\x01",
    "1xx with a body": b"HTTP/1.1 103 E\r\nContent-Length: 2\r\n\r\nok" + OK,
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
    "no length": b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok",
    "huge length": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok",
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + CHUNKED[17:] + b"0\r\n\r\n",
    "chunked and length": CHUNKED[:-2] + b"Content-Length: 2\r\n\r\n0\r\n\r\n",
    "nul in a value": b"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n",
    "bare lf": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "bare cr": b"HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n",
    "folded": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
    "blank before colon": b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
    "no colon": b"HTTP/1.1 200 OK\r\nA\r\n\r\n",
    "no name": b"HTTP/1.1 200 OK\r\n: a\r\n\r\n",
    "name of bytes": b"HTTP/1.1 200 OK\r\n\xff: a\r\n\r\n",
    "many fields": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (FIELDS_MAX + 1) + b"\r\n",
    "many, many fields": b"HTTP/1.1 200 OK\r\n" + b"A:\r\n" * 200_000 + b"\r\n",
    "long line": b"HTTP/1.1 200 OK\r\nA: " + b"x" * 1_000_000 + b"\r\n\r\n",
    "long head": b"HTTP/1.1 200 OK\r\n" + (b"A: " + b"x" * 1_000 + b"\r\n") * 70 + b"\r\n",
    "long reason": b"HTTP/1.1 200 " + b"x" * 1_000_000,
    "many 1xx": b"HTTP/1.1 100 Continue\r\n\r\n" * (INFORMATIONAL_MAX + 1) + OK,
}
INVALID_BODY = {
    "chunk of letters": b"zz\r\n",
    "negative chunk": b"-1\r\n",
    "overflowing chunk": b"FFFFFFFFFFFFFFFFF\r\n",
    "chunk with bare lf": b"2\nok\r\n",
    "chunk too long": b"2\r\nokX\r\n",
    "chunk with 0x": b"0x2\r\nok",
    "chunk of nothing": b"\r\n",
    "bad trailer": b"0\r\nA\x00: b\r\n\r\n",
    "many trailers": b"0\r\n" + b"A: b\r\n" * 1_000 + b"\r\n",
}


@pytest.mark.parametrize("answer", INVALID.values(), ids=INVALID.keys())
async def test_an_invalid_head_is_an_error_and_ends_the_connection(sender, a_request, answer):
    async with rude_server(answering_always(answer)) as server:
        for _ in range(2):
            outcome = await sender.send(a_request(server.url()))
            assert outcome.status == 0
            assert outcome.error is not None
            assert "timed out" not in outcome.error
            assert not outcome.delivered
            assert not outcome.redialled
    assert server.connections == 2


@pytest.mark.parametrize("status", [99, 600, 999])
async def test_a_status_that_does_not_exist_is_an_error(sender, a_request, status):
    answer = b"HTTP/1.1 %03d X\r\nContent-Length: 0\r\n\r\n" % status
    async with rude_server(answering_always(answer)) as server:
        outcome = await sender.send(a_request(server.url()))
    assert outcome.status == status
    assert outcome.error == f"invalid HTTP: status {status:03}"


@pytest.mark.parametrize("body", INVALID_BODY.values(), ids=INVALID_BODY.keys())
async def test_an_invalid_body_is_an_error_that_keeps_the_status(sender, a_request, body):
    async with rude_server(answering_always(CHUNKED + body)) as server:
        for _ in range(2):
            outcome = await sender.send(a_request(server.url()))
            assert outcome.status == 200
            assert outcome.error is not None
            assert not outcome.delivered
    assert server.connections == 2


@pytest.mark.parametrize(
    "script",
    [
        flooding(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
        flooding(b"HTTP/1.1 200 OK\r\nA: ", b"x" * 1_000),
        flooding(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        flooding(b"", b"HTTP/1.1 103 E\r\nA: " + b"x" * 1_000 + b"\r\n\r\n"),
        flooding(b"", b"\r\n"),
        flooding(b"HTTP/1.1 200 ", b"x" * 1_000),
        flooding(CHUNKED + b"2;", b"x" * 1_000),
        flooding(CHUNKED + b"0\r\n", b"A: b\r\n"),
        flooding(CHUNKED + b"0\r\nA: ", b"x" * 1_000),
        flooding(CHUNKED, b"1;" + b"x" * 1_000 + b"\r\nx\r\n"),
    ],
)
async def test_endless_heads_and_framing_are_cut_off_before_the_deadline(sender, a_request, script):
    async with rude_server(script) as server:
        outcome = await sender.send(a_request(server.url()))
    assert outcome.error is not None
    assert "timed out" not in outcome.error
    assert not outcome.host_down


@pytest.mark.parametrize(
    "script",
    [
        flooding(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1_000),
        flooding(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n", b"x" * 1_000),
        flooding(CHUNKED, b"1\r\nx\r\n"),
    ],
)
async def test_an_endless_body_is_cut_at_the_cap(sender, a_request, script):
    async with rude_server(script) as server:
        outcome = await sender.send(a_request(server.url()))
    assert outcome.truncated
    assert outcome.delivered
    assert outcome.body == b"x" * 65_536


async def test_a_pooled_connection_found_closed_is_redialled_once(sender, a_request):
    async def closes_on_the_second_request(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(OK)
        await peer.read_request()
        peer.close()

    async with rude_server(once_each(closes_on_the_second_request, answering_always(OK))) as server:
        first = await sender.send(a_request(server.url()))
        second = await sender.send(a_request(server.url()))
        third = await sender.send(a_request(server.url()))
    assert first.delivered
    assert second.delivered
    assert third.delivered
    assert (first.redialled, second.redialled, third.redialled) == (False, True, False)
    assert server.connections == 2


async def test_a_pooled_connection_found_closed_is_not_redialled_twice(sender, a_request):
    async def closes_on_the_second_request(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(OK)
        await peer.read_request()
        peer.close()

    async with rude_server(once_each(closes_on_the_second_request, hang_up)) as server:
        await sender.send(a_request(server.url()))
        outcome = await sender.send(a_request(server.url()))
    assert outcome.error is not None
    assert "before any answer" in outcome.error
    assert outcome.redialled
    assert server.connections == 2


@pytest.mark.parametrize("said", [b"H", b"HTTP/1.1 200 OK\r\n", OK[:-1]])
async def test_a_pooled_connection_that_broke_off_its_answer_is_not_redialled(
    sender, a_request, said
):
    async def breaks_off(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(OK)
        await peer.read_request()
        await peer.send(said)
        peer.close()

    async with rude_server(once_each(breaks_off, answering_always(OK))) as server:
        await sender.send(a_request(server.url()))
        outcome = await sender.send(a_request(server.url()))
    assert outcome.error is not None
    assert not outcome.redialled
    assert server.connections == 1


async def test_a_pooled_connection_that_hangs_is_not_redialled(sender, a_request):
    async def hangs_on_the_second_request(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(OK)
        await peer.hang()

    async with rude_server(hangs_on_the_second_request) as server:
        await sender.send(a_request(server.url()))
        outcome = await sender.send(a_request(server.url(), timeout_ms=SHORT_MS))
    assert outcome.error == "timed out: no answer"
    assert not outcome.redialled
    assert server.connections == 1


@pytest.mark.parametrize("stray", [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b""])
async def test_what_arrives_on_an_idle_connection_is_no_answer(sender, a_request, stray):
    go, gone = asyncio.Event(), asyncio.Event()

    async def speaks_unasked(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(OK)
        await go.wait()
        if stray:
            await peer.send(stray)
            await peer.until_closed()
        else:
            peer.close()
        gone.set()

    async with rude_server(once_each(speaks_unasked, answering_always(OK))) as server:
        await sender.send(a_request(server.url()))
        go.set()
        await gone.wait()
        await has_read(sender)
        outcome = await sender.send(a_request(server.url()))
    assert outcome.body == b"ok"
    assert not outcome.redialled
    assert server.connections == 2


async def test_a_thousand_random_faults_leave_no_connection_open(a_sender, a_request, caplog):
    scripts: list[Script] = [
        answering_always(OK),
        answering(OK),
        hang_up,
        hang,
        dripping(OK),
        saying(OK[:-1], then="close"),
        saying(OK[:-1], then="reset"),
        saying(b"HTTP/1.1 2", then="reset"),
        saying(b"nonsense", then="hang"),
        flooding(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1_000),
        flooding(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
    ]
    dice = random.Random(7)

    async def any_of_them(peer: Peer) -> None:
        await dice.choice(scripts)(peer)

    sender = await a_sender()
    gc.collect()
    base = open_files()
    async with rude_server(any_of_them) as server:

        async def some(count: int) -> None:
            for _ in range(count):
                await sender.send(a_request(server.url(), timeout_ms=100))

        await asyncio.gather(*[some(20) for _ in range(50)])
        await sender.__aexit__(None, None, None)
    await has_read(sender)
    gc.collect()
    assert open_files() <= base
    assert not caplog.records


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_the_deadline_of_one_destination_does_not_touch_another(sender, a_request):
    def slow(server: RudeServer) -> asyncio.Future[object]:
        return asyncio.ensure_future(sender.send(a_request(server.url(), timeout_ms=SHORT_MS)))

    async with rude_server(hang) as hanging, rude_server(answering_always(OK)) as quick:
        hung = [slow(hanging) for _ in range(100)]
        for _ in range(50):
            assert (await sender.send(a_request(quick.url()))).delivered
        await asyncio.gather(*hung)
