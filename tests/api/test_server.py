"""What a connection may do before a request reaches the application.

The application here records what it gets, so that each test can say how many
requests there were in what was sent (T10).
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

import pytest
import pytest_asyncio

from tests.support.application import until
from tests.support.raw_http import RawAnswer, exchange
from waypost.api import server as server_module
from waypost.api.answer import Answer, json_answer
from waypost.api.exchange import Api, Gone, Limits, Request
from waypost.api.server import HttpServer

HEAD = b"POST /p HTTP/1.1\r\nHost: a\r\n"
GET = b"GET /g HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
HANG_UP = b"Connection: close\r\n"


class Recorder:
    """Answers every request with its number; `gate` holds answers back."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes, bytes, list[tuple[bytes, bytes]]]] = []
        self.answer: str | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()
        self.api = cast("Api", SimpleNamespace(limits=Limits(), received_bytes=0))

    async def __call__(self, request: Request) -> Answer | None:
        body = b""
        if request.path != b"/unread":
            try:
                body = await request.body(self.api)
            except Gone:
                return None
        self.requests.append((request.method, request.path, body, request.header))
        self.waiting.set()
        await self.gate.wait()
        return json_answer(self.answer or len(self.requests))


@pytest.fixture
def app() -> Recorder:
    return Recorder()


class Running:
    def __init__(self, server: HttpServer, port: int) -> None:
        self.server = server
        self.port = port

    async def send(self, *pieces: bytes, shut: bool = False) -> list[RawAnswer]:
        return await exchange(self.port, *pieces, shut=shut)


@pytest_asyncio.fixture
async def server(app: Recorder) -> AsyncIterator[Running]:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    server = HttpServer(app, head_bytes_max=4_000, connections_max=8)
    await server.start(listening)
    yield Running(server, port)
    app.gate.set()
    await server.close()


BROKEN_FRAMING = {
    "Content-Length and Transfer-Encoding": (
        HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "Transfer-Encoding and Content-Length": (
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"
    ),
    "two Content-Lengths": HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "two equal Content-Lengths": HEAD + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of Content-Lengths": HEAD + b"Content-Length: 3, 3\r\n\r\nabc",
    "a signed Content-Length": HEAD + b"Content-Length: +5\r\n\r\nabcde",
    "a negative Content-Length": HEAD + b"Content-Length: -1\r\n\r\n",
    "a hexadecimal Content-Length": HEAD + b"Content-Length: 0x5\r\n\r\nabcde",
    "an empty Content-Length": HEAD + b"Content-Length:\r\n\r\n",
    "a huge Content-Length": HEAD + b"Content-Length: 99999999999999999999999999\r\n\r\n",
    "chunked, identity": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "identity, chunked": HEAD + b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    "gzip, chunked": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity": HEAD + b"Transfer-Encoding: identity\r\n\r\nabc",
    "xchunked": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "two Transfer-Encodings": (
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "a chunk size that overflows": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"F" * 17,
    "a chunk size that is none": HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "a signed chunk size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
    "a blank after a chunk size": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
    "a chunk longer than it says": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    "bare line feeds in chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n",
    "bare line feeds": b"POST /p HTTP/1.1\nHost: a\n\n",
    "a bare line feed after a field": b"POST /p HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    "a bare carriage return": b"POST /p HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
    "a folded line": b"POST /p HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
    "a folded first line": b"POST /p HTTP/1.1\r\n Host: a\r\n\r\n",
    "a blank before the colon": b"POST /p HTTP/1.1\r\nHost : a\r\n\r\n",
    "a field without a colon": HEAD + b"nothing\r\n\r\n",
    "a field without a name": HEAD + b": a\r\n\r\n",
    "NUL in a name": HEAD + b"X\x00: a\r\n\r\n",
    "NUL in a value": HEAD + b"X: a\x00\r\n\r\n",
    "DEL in a value": HEAD + b"X: a\x7f\r\n\r\n",
    "no Host": b"POST /p HTTP/1.1\r\n\r\n",
    "two Hosts": HEAD + b"Host: b\r\n\r\n",
    "HTTP/0.9": b"GET /p\r\n\r\n",
    "HTTP/0.9, said": b"GET /p HTTP/0.9\r\n\r\n",
    "HTTP/1.2": b"GET /p HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/2.0": b"GET /p HTTP/2.0\r\nHost: a\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a TLS hello": bytes.fromhex("16030100a5010000a10303"),
    "a blank in the target": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tabulator in the target": b"GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n",
    "a byte that is not ASCII in the target": b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a control character in the target": b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target that is no path": b"GET p HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target of another scheme": b"GET ftp://a/p HTTP/1.1\r\nHost: a\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tunnel": b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tunnel to a path": b"CONNECT /p HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "a method in lower case": b"get /p HTTP/1.1\r\nHost: a\r\n\r\n",
    "an unknown method": b"FROB /p HTTP/1.1\r\nHost: a\r\n\r\n",
    "noise": b"\x00\xff\x00\xff",
}


@pytest.mark.parametrize("broken", BROKEN_FRAMING.values(), ids=BROKEN_FRAMING.keys())
async def test_broken_framing_is_answered_400_and_reaches_nobody(
    server: Running, app: Recorder, broken: bytes
) -> None:
    [answer] = await server.send(broken)

    assert answer.status == 400
    assert answer.header["connection"] == "close"
    assert answer.json()["error"].startswith("malformed request: ")
    assert app.requests == []


@pytest.mark.parametrize("path", ["http://its.app/raw path", "http://its.app/r\u00e9"])
async def test_a_raw_url_in_the_path_is_told_what_must_be_encoded(
    server: Running, path: str
) -> None:
    [answer] = await server.send(f"POST /v2/publish/{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    assert answer.status == 400
    assert "must be percent-encoded" in answer.json()["error"]


@pytest.mark.parametrize("broken", BROKEN_FRAMING.values(), ids=BROKEN_FRAMING.keys())
async def test_broken_framing_byte_by_byte_reaches_nobody_either(
    server: Running, app: Recorder, broken: bytes
) -> None:
    [answer] = await server.send(*(broken[at : at + 1] for at in range(len(broken))))

    assert answer.status == 400
    assert app.requests == []


OVERSIZED_HEADS = {
    "one long field": HEAD + b"X: " + b"a" * 5_000 + b"\r\n\r\n",
    "one field that never ends": HEAD + b"X: " + b"a" * 5_000,
    "a name that never ends": HEAD + b"a" * 5_000,
    "a long target": b"GET /" + b"a" * 5_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target that never ends": b"GET /" + b"a" * 5_000,
    "many fields": HEAD + b"X: a\r\n" * 300 + b"\r\n",
    "many empty fields": HEAD + b"X:\r\n" * 300 + b"\r\n",
    "a chunk extension that never ends": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n3;" + b"x" * 5_000
    ),
    "a trailer that never ends": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 5_000
    ),
}


@pytest.mark.parametrize("oversized", OVERSIZED_HEADS.values(), ids=OVERSIZED_HEADS.keys())
async def test_an_oversized_head_is_answered_431(
    server: Running, app: Recorder, oversized: bytes
) -> None:
    first, rest = oversized[:200], oversized[200:]
    [answer] = await server.send(first, rest)

    assert answer.status == 431
    assert "error" in answer.json()
    assert app.requests == []


async def test_a_head_just_under_the_limit_is_read(server: Running, app: Recorder) -> None:
    [answer] = await server.send(HEAD + HANG_UP + b"X: " + b"a" * 3_900 + b"\r\n\r\n")

    assert answer.status == 200
    assert len(app.requests) == 1


async def test_requests_in_one_packet_are_answered_in_order(server: Running, app: Recorder) -> None:
    found = await server.send(GET * 100 + LAST)

    assert [answer.json() for answer in found] == list(range(1, 102))


async def test_what_follows_a_broken_request_is_not_read(server: Running, app: Recorder) -> None:
    found = await server.send(GET + b"nonsense\r\n\r\n" + GET)

    assert [answer.status for answer in found] == [200, 400]
    assert len(app.requests) == 1


async def test_a_broken_body_behind_other_requests_is_answered_after_them(
    server: Running, app: Recorder
) -> None:
    app.gate.clear()
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    talk = asyncio.create_task(server.send(GET + chunked + b"3\r\nabcd"))
    await app.waiting.wait()
    app.gate.set()

    assert [answer.status for answer in await talk] == [200, 400]
    assert len(app.requests) == 1


async def test_a_broken_body_reaches_nobody_though_it_began_well(
    server: Running, app: Recorder
) -> None:
    [answer] = await server.send(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n", b"zz\r\n"
    )

    assert answer.status == 400
    assert app.requests == []


async def test_what_follows_connection_close_is_not_read(server: Running, app: Recorder) -> None:
    found = await server.send(LAST + GET)

    assert len(found) == len(app.requests) == 1


async def test_a_body_hidden_behind_a_body_is_read_as_the_length_says(
    server: Running, app: Recorder
) -> None:
    inner = b"DELETE /inner HTTP/1.1\r\nHost: a\r\n\r\n"
    length = b"Content-Length: %d\r\n\r\n" % len(inner)
    await server.send(HEAD + HANG_UP + length + inner)

    assert [(method, body) for method, _, body, _ in app.requests] == [("POST", inner)]


async def test_trailers_are_not_taken_for_header_fields(server: Running, app: Recorder) -> None:
    await server.send(
        HEAD
        + HANG_UP
        + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nAuthorization: x\r\n\r\n"
    )

    [(_, _, body, header)] = app.requests
    assert body == b"abc"
    assert b"authorization" not in dict(header)


async def test_an_offer_to_upgrade_is_ignored_and_the_body_is_kept(
    server: Running, app: Recorder
) -> None:
    offer = (
        b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n"
    )
    [answer] = await server.send(HEAD + offer + b"Content-Length: 6\r\n\r\nabc", b"def")

    assert answer.status == 200
    assert [body for _, _, body, _ in app.requests] == [b"abcdef"]


async def test_blanks_around_a_value_are_not_part_of_it(server: Running, app: Recorder) -> None:
    await server.send(HEAD + HANG_UP + b"X: \t a b \t\r\nY:\r\nZ: 1\r\n\r\n")

    [(_, _, _, header)] = app.requests
    assert header[-3:] == [(b"x", b"a b"), (b"y", b""), (b"z", b"1")]


async def test_a_target_in_absolute_form_is_its_path(server: Running, app: Recorder) -> None:
    await server.send(b"GET http://a.example/p?q HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")

    assert app.requests[0][1] == b"/p"


async def test_slashes_dots_escapes_and_fragments_in_the_path_are_left_alone(
    server: Running, app: Recorder
) -> None:
    await server.send(b"GET /a//b/./../c%2Fd%zz#e HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")

    assert app.requests[0][1] == b"/a//b/./../c%2Fd%zz#e"


async def test_who_shuts_his_half_gets_his_answers(server: Running, app: Recorder) -> None:
    found = await server.send(GET + GET, shut=True)

    assert [answer.json() for answer in found] == [1, 2]


async def test_a_body_cut_short_reaches_nobody(server: Running, app: Recorder) -> None:
    found = await server.send(HEAD + b"Content-Length: 10\r\n\r\nabc", shut=True)

    assert found == []
    assert app.requests == []


async def test_who_expects_100_gets_it_before_the_body_is_sent(
    server: Running, app: Recorder
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HEAD + HANG_UP + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
    writer.close()

    assert [body for _, _, body, _ in app.requests] == [b"abc"]


async def test_who_is_answered_before_his_body_is_read_gets_to_read_the_answer(
    server: Running, app: Recorder
) -> None:
    size = 3_000_000
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
    writer.write(b"x" * size)
    await writer.drain()
    answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close" in answer


async def test_one_connection_too_many_is_answered_503(server: Running, app: Recorder) -> None:
    open_ones = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(8)]
    for reader, writer in open_ones:
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n1" if writer is open_ones[0][1] else b"\r\n\r\n")

    [answer] = await server.send(GET)

    assert answer.status == 503
    assert answer.header["retry-after"] == "1"
    assert "error" in answer.json()
    for _, writer in open_ones:
        writer.close()


async def test_while_draining_what_is_under_way_ends_and_what_comes_is_refused(
    server: Running, app: Recorder
) -> None:
    app.gate.clear()
    talk = asyncio.create_task(server.send(GET + GET))
    await app.waiting.wait()
    server.server.stop_accepting()
    app.gate.set()
    found = await talk

    assert found[0].status == 200
    assert found[0].header["connection"] == "close"
    with pytest.raises(ConnectionRefusedError):
        await server.send(GET)


async def test_a_connection_on_which_nothing_comes_is_closed(
    server: Running, app: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HEAD_S_MAX", -1)
    monkeypatch.setattr(server_module, "SWEEP_S", 0.01)
    server.server.look_after()

    assert await server.send(b"") == []
    assert await server.send(b"GET /slow HTTP/1.1\r\nX: ") == []
    assert app.requests == []


@pytest.mark.parametrize("after", [b"no HTTP\r\n", b"GET /y HTTP/1.1\r\nHo st: a\r\n\r\n"])
async def test_what_cannot_be_read_takes_nothing_from_the_answer_to_what_came_before(
    server: Running, app: Recorder, monkeypatch: pytest.MonkeyPatch, after: bytes
) -> None:
    """D34: however long that takes."""
    monkeypatch.setattr(server_module, "HEAD_S_MAX", -1)
    monkeypatch.setattr(server_module, "SWEEP_S", 0.01)
    app.gate.clear()
    answers = asyncio.ensure_future(server.send(GET + after))
    await app.waiting.wait()
    [connection] = server.server.connections
    assert connection.deadline_s < asyncio.get_running_loop().time()
    server.server.look_after()

    async def looked_after() -> bool | None:
        return True if connection.deadline_s > asyncio.get_running_loop().time() else None

    await until(looked_after)
    app.gate.set()

    assert [answer.status for answer in await answers] == [200, 400]


@pytest.mark.parametrize("size", [10_000, 70_000, 400_000])
async def test_who_hangs_up_while_an_answer_is_made_is_noticed_however_much_he_sent(
    server: Running, app: Recorder, size: int
) -> None:
    """As with a chat question, which costs money."""
    gone = asyncio.Event()

    async def answer(request: Request) -> Answer | None:
        await request.body(app.api)
        app.waiting.set()
        try:
            with request.while_there():
                await app.gate.wait()
        except Gone:
            gone.set()
        return None

    server.server.app = answer
    app.gate.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
    await app.waiting.wait()
    writer.transport.abort()

    async with asyncio.timeout(5):
        await gone.wait()


async def test_a_connection_that_is_kept_open_is_closed_in_the_end(
    server: Running, app: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "IDLE_S_MAX", -1)
    monkeypatch.setattr(server_module, "SWEEP_S", 0.01)
    server.server.look_after()

    [answer] = await server.send(GET)

    assert answer.status == 200


async def test_a_caller_who_reads_no_answers_is_dropped(
    server: Running, app: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "WRITE_S_MAX", -1)
    monkeypatch.setattr(server_module, "SWEEP_S", 0.01)
    server.server.look_after()
    app.answer = "x" * 3_000_000
    _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
    writer.write(GET * 20)
    await app.waiting.wait()

    async def dropped() -> bool | None:
        return True if not server.server.connections else None

    await until(dropped)
    assert len(app.requests) < 20
    writer.transport.abort()


OFFER = b"GET /u HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"


async def test_a_faulty_request_that_offers_an_upgrade_is_told_its_fault(server: Running) -> None:
    [answer] = await server.send(OFFER.replace(b"Host: a\r\n", b""))

    assert answer.status == 400
    assert "Host" in answer.json()["error"]


async def test_a_thousand_offers_to_upgrade_in_one_read_are_ignored(
    server: Running, app: Recorder
) -> None:
    found = await server.send(OFFER * 1_000 + LAST)

    assert [answer.status for answer in found] == [200] * 1_001


async def test_a_long_body_before_the_next_request_does_not_count_as_its_head(
    server: Running, app: Recorder
) -> None:
    """The limit on heads is 4,000 bytes here; the rest of the second head comes later."""
    post = HEAD + b"Content-Length: 9000\r\n\r\n" + b"x" * 9_000

    found = await server.send(post + LAST[:10], LAST[10:])

    assert [answer.status for answer in found] == [200, 200]


async def test_a_caller_who_pipelines_is_not_read_ahead_of_his_answers(
    server: Running, app: Recorder
) -> None:
    app.gate.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    post = HEAD + b"Content-Length: 3000\r\n\r\n" + b"x" * 3_000
    writer.write(post * 2_000)
    await app.waiting.wait()
    [connection] = server.server.connections
    ahead = len(connection._pipeline)

    for _ in range(20):
        app.waiting.clear()
        app.gate.set()
        await app.waiting.wait()
        app.gate.clear()

    assert len(connection._pipeline) <= ahead < 200
    writer.transport.abort()


async def test_a_body_is_let_go_once_it_was_answered(server: Running, app: Recorder) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HEAD + b"Content-Length: 3\r\n\r\nabc")
    await reader.readuntil(b"\r\n\r\n")
    [connection] = server.server.connections
    assert connection._exchange is not None
    request = connection._exchange.request

    request.release(app.api)

    assert await request.body(app.api) == b""
    writer.close()


async def test_a_body_in_small_chunks_is_put_together(server: Running, app: Recorder) -> None:
    chunked = HEAD + HANG_UP + b"Transfer-Encoding: chunked\r\n\r\n"

    [answer] = await server.send(chunked + b"1\r\nx\r\n" * 5_000 + b"0\r\n\r\n")

    assert answer.status == 200
    assert app.requests[0][2] == b"x" * 5_000


async def test_a_caller_who_reads_slowly_gets_his_whole_answer(
    server: Running, app: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "WRITE_S_MAX", 0.2)
    monkeypatch.setattr(server_module, "CLOSE_S_MAX", 0.2)
    monkeypatch.setattr(server_module, "SWEEP_S", 0.02)
    server.server.look_after()
    app.answer = "x" * 12_000_000
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=65_536)
    writer.write(LAST)
    read = 0
    began_s = asyncio.get_running_loop().time()

    while data := await reader.read(400_000):
        read += len(data)
        await paced(began_s + read / 12_000_000)

    assert read > 12_000_000
    writer.close()


async def paced(until_s: float) -> None:
    """Let the loop go on until then, as a caller on a slow line would."""
    loop = asyncio.get_running_loop()
    passed = loop.create_future()
    loop.call_at(until_s, passed.set_result, None)
    await passed


async def test_answers_that_were_given_are_delivered_before_the_server_closes(
    server: Running, app: Recorder
) -> None:
    app.answer = "x" * 12_000_000
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=65_536)
    writer.write(GET)
    await app.waiting.wait()

    closing = asyncio.ensure_future(server.server.close())
    data = await reader.read(-1)
    await closing

    assert len(data) > 12_000_000
    writer.close()
