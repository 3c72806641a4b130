"""What goes out, byte for byte, and how an answer is read when the server behaves."""

import asyncio
import contextlib
import gzip

import pytest

from tests.support.rude_server import Peer, answering, answering_always, once_each, rude_server
from waypost.wire.http1 import JOIN_BYTES_MAX
from waypost.wire.protocol import NotBegun

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def test_the_request_is_sent_byte_for_byte(sender, a_request):
    async with rude_server(answering_always(OK)) as server:
        outcome = await sender.send(
            a_request(
                server.url("//a/%2f/b;c?x=1&&y=%7B?"),
                method="PATCH",
                header=[("X-One", "1"), ("x-two", ""), ("X-One", "caf\u00e9 \t2")],
                body=b"\x00\xff",
            )
        )
    assert outcome.delivered
    assert server.requests == [
        b"PATCH //a/%2f/b;c?x=1&&y=%7B? HTTP/1.1\r\n"
        b"Host: 127.0.0.1:" + str(server.port).encode() + b"\r\n"
        b"X-One: 1\r\nx-two: \r\nX-One: caf\xe9 \t2\r\n"
        b"Content-Length: 2\r\n\r\n\x00\xff"
    ]


@pytest.mark.parametrize("body", [b"hello", b"x" * (JOIN_BYTES_MAX + 1)], ids=["small", "large"])
async def test_nothing_goes_out_of_a_request_that_may_not_begin_any_more(sender, a_request, body):
    async with rude_server(answering_always(OK)) as server:
        for pooled in (False, True):
            asked = len(server.requests)
            with pytest.raises(NotBegun):
                await sender.send(a_request(server.url(), body=body, may_begin=lambda: False))
            assert len(server.requests) == asked
            if not pooled:
                assert (await sender.send(a_request(server.url()))).delivered


@pytest.mark.parametrize(
    ("path", "target"), [("", b"/"), ("?x=1", b"/?x=1"), ("/?", b"/?"), ("/\u00e9", b"/\xe9")]
)
async def test_an_empty_path_is_a_slash_and_a_query_is_kept(sender, a_request, path, target):
    async with rude_server(answering_always(OK)) as server:
        await sender.send(a_request(server.url(path)))
    assert server.requests[0].split(b" ")[1] == target


@pytest.mark.parametrize(
    ("method", "body", "length"),
    [
        ("GET", b"", None),
        ("DELETE", b"", None),
        ("GET", b"x", b"1"),
        ("POST", b"", b"0"),
        ("PUT", b"", b"0"),
        ("PATCH", b"", b"0"),
    ],
)
async def test_a_length_is_sent_with_a_body_and_where_one_is_usual(
    sender, a_request, method, body, length
):
    async with rude_server(answering_always(OK)) as server:
        await sender.send(a_request(server.url(), method=method, body=body))
    line = b"" if length is None else b"Content-Length: " + length + b"\r\n"
    assert server.requests[0].split(b"text/plain\r\n")[1] == line + b"\r\n" + body


async def test_userinfo_becomes_authorization_and_nothing_else(sender, a_request):
    async with rude_server(answering_always(OK)) as server:
        await sender.send(a_request(f"http://us%65r:p%40ss@127.0.0.1:{server.port}/"))
        await sender.send(
            a_request(
                f"http://user:pw@127.0.0.1:{server.port}/", header=[("authorization", "Bearer x")]
            )
        )
    first, second = server.requests
    assert b"Authorization: Basic dXNlcjpwQHNz\r\n" in first
    assert b"Host: 127.0.0.1:%d\r\n" % server.port in first
    assert b"Basic" not in second


async def test_a_large_body_arrives_whole(sender, a_request):
    body = bytes(range(256)) * 4_096
    async with rude_server(answering_always(OK)) as server:
        assert (await sender.send(a_request(server.url(), body=body))).delivered
    assert server.requests[0].endswith(b"\r\n\r\n" + body)


@pytest.mark.parametrize(
    "framed",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\nX-Trailer: t\r\n\r\n",
        b"Connection: close\r\n\r\nhello",
    ],
)
async def test_each_framing_gives_the_same_answer(sender, a_request, framed):
    async with rude_server(answering(b"HTTP/1.1 201 Created\r\nX-A: b \t\r\n" + framed)) as server:
        outcome = await sender.send(a_request(server.url()))
    assert (outcome.status, outcome.body, outcome.error) == (201, b"hello", None)
    assert outcome.header[0] == ("x-a", "b")
    assert "x-trailer" not in dict(outcome.header)


async def test_an_answer_that_drips_in_is_the_same_answer(sender, a_request):
    answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 2\r\n\r\nok"

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.drip(answer, every_s=0)
        await peer.until_closed()

    async with rude_server(script) as server:
        outcome = await sender.send(a_request(server.url()))
    assert (outcome.status, outcome.body, outcome.error) == (200, b"ok", None)
    assert outcome.header == [("a", "b"), ("content-length", "2")]


async def test_a_connection_is_used_again_after_every_kind_of_kept_answer(sender, a_request):
    answers = (
        OK,
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        OK,
    )
    async with rude_server(answering(*answers)) as server:
        outcomes = [await sender.send(a_request(server.url())) for _ in answers]
    assert [outcome.status for outcome in outcomes] == [
        *(200, 204, 204, 304, 200, 200, 200, 302, 200)
    ]
    assert all(outcome.error is None and not outcome.redialled for outcome in outcomes)
    assert server.connections == 1


async def test_an_answer_to_head_has_no_body_and_the_connection_lives(sender, a_request):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    async with rude_server(answering(head, head, OK)) as server:
        for _ in range(2):
            outcome = await sender.send(a_request(server.url(), method="HEAD", body=b""))
            assert (outcome.status, outcome.body, outcome.error) == (200, b"", None)
        assert (await sender.send(a_request(server.url()))).body == b"ok"
    assert server.connections == 1


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(sender, a_request, code):
    async with rude_server(answering_always(OK)) as inside:
        moved = f"HTTP/1.1 {code} M\r\nLocation: {inside.url()}\r\nContent-Length: 0\r\n\r\n"
        async with rude_server(answering_always(moved.encode())) as server:
            outcome = await sender.send(a_request(server.url()))
    assert outcome.status == code
    assert not outcome.delivered
    assert inside.connections == 0


async def test_a_body_is_never_decompressed(sender, a_request):
    bomb = gzip.compress(bytes(30_000_000))
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    async with rude_server(answering(answer + bomb)) as server:
        outcome = await sender.send(a_request(server.url()))
    assert outcome.body == bomb[: len(outcome.body)]
    assert outcome.error is None


@pytest.mark.parametrize("over", [0, 1, 100_000])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_body_is_read_to_the_cap_and_no_further(a_sender, a_request, over, framing):
    sender = await a_sender(body_bytes_max=1_000)
    body = b"x" * (1_000 + over)
    framed = {
        "length": b"Content-Length: %d\r\n\r\n%b" % (len(body), body),
        "chunked": b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
        "close": b"\r\n" + body,
    }[framing]
    async with rude_server(answering(b"HTTP/1.1 200 OK\r\n" + framed)) as server:
        outcome = await sender.send(a_request(server.url()))
    assert outcome.delivered
    assert outcome.body == b"x" * 1_000
    assert outcome.truncated == (over > 0)


@pytest.mark.parametrize("after", [b"HTTP/1.1 200 OK\r\n", b"x", OK])
async def test_bytes_after_the_end_spoil_the_connection_and_not_the_answer(
    sender, a_request, after
):
    async with rude_server(once_each(answering(OK + after), answering_always(OK))) as server:
        for _ in range(2):
            outcome = await sender.send(a_request(server.url()))
            assert (outcome.status, outcome.body) == (200, b"ok")
            assert outcome.delivered
            assert not outcome.redialled
    assert server.connections == 2


async def test_a_204_with_a_body_is_delivered_and_the_connection_not_reused(sender, a_request):
    answer = b"HTTP/1.1 204 No Content\r\n\r\nsurprise"
    async with rude_server(answering_always(answer)) as server:
        for _ in range(2):
            outcome = await sender.send(a_request(server.url()))
            assert outcome.delivered
            assert outcome.body == b""
    assert server.connections == 2


@pytest.mark.parametrize("head", [b"204 No Content", b"304 Not Modified"])
@pytest.mark.parametrize("framing", [b"Content-Length: 2", b"Transfer-Encoding: chunked"])
async def test_a_body_that_should_not_be_and_comes_late_answers_no_other_request(
    sender, a_request, head, framing
):
    """What a receiver announces it may send, when the next request is on its way already."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 %b\r\n%b\r\n\r\n" % (head, framing))
        with contextlib.suppress(OSError):
            await peer.read_request()
            await peer.send(OK)

    bad = b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"
    async with rude_server(once_each(script, answering_always(bad))) as server:
        outcomes = [await sender.send(a_request(server.url())) for _ in range(2)]
    assert [outcome.status for outcome in outcomes] == [int(head[:3]), 500]
    assert server.connections == 2


async def test_an_answer_before_the_request_was_read_is_taken(sender, a_request):
    async def script(peer: Peer) -> None:
        await peer.send(OK)
        await peer.hang()

    async with rude_server(script) as server:
        for _ in range(2):
            assert (await sender.send(a_request(server.url(), body=bytes(10_000_000)))).delivered
    assert server.connections == 2


async def test_what_http_cannot_carry_is_refused_before_a_connection(sender, a_request):
    async with rude_server(answering_always(OK)) as server:
        bad = [
            a_request(server.url("/a b")),
            a_request(server.url("/a\r\nX: y")),
            a_request(server.url("/\u2028")),
            a_request(server.url("/#x")),
            a_request(server.url(), method="GET /x HTTP/1.1\r\nA:"),
            a_request(server.url(), method=""),
            a_request(server.url(), header=[("A\r\nB", "c")]),
            a_request(server.url(), header=[("A", "b\r\nC: d")]),
            a_request(server.url(), header=[("A", "b\nC: d")]),
            a_request(server.url(), header=[("A", "b\x00")]),
            a_request(server.url(), header=[("A", "\u2764")]),
            a_request(server.url(), header=[("", "b")]),
            a_request(server.url(), header=[("A:", "b")]),
            a_request(server.url(), header=[("content-length", "0")]),
            a_request(server.url(), header=[("Transfer-Encoding", "chunked")]),
            a_request(server.url(), header=[("Host", "x")]),
        ]
        for request in bad:
            outcome = await sender.send(request)
            assert (outcome.status, outcome.host_down, outcome.refused) == (0, False, False)
            assert outcome.error is not None
            assert outcome.error.startswith("cannot be sent")
    assert server.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://127.0.0.1/",
        "http:/127.0.0.1/",
        "http:///x",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:65536/",
        "http://127.0.0.1:999999/",
        "http://127.0.0.1:-1/",
        "http://[::1/",
        "http://a@b@127.0.0.1/",
        "http://127.0.0.1\\@x/",
        "http://%/",
        "http://a%41.example/",
        "http://a..example/",
        "http://\u00fc.example/",
        "http://a\tb.example/",
        f"http://{'a' * 64}.example/",
        f"http://{'a.' * 130}example/",
    ],
)
async def test_a_malformed_url_is_an_outcome(sender, a_request, url):
    outcome = await sender.send(a_request(url))
    assert outcome.error is not None
    assert outcome.error.startswith("cannot be sent")


async def test_a_cancelled_send_closes_its_connection(sender, a_request):
    arrived, closed = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        arrived.set()
        await peer.until_closed()
        closed.set()

    async with rude_server(script) as server:
        task = asyncio.ensure_future(sender.send(a_request(server.url())))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(closed.wait(), 2)


async def test_the_proxies_of_the_environment_are_ignored(a_sender, a_request, monkeypatch):
    async with rude_server(answering_always(OK)) as proxy, rude_server(answering(OK)) as server:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url())
        sender = await a_sender()
        assert (await sender.send(a_request(server.url()))).delivered
    assert proxy.connections == 0
