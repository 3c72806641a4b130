"""Chat completions, passed through to the operator's model (contract section 13)."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from msgspec import structs

from tests.support.application import (
    SECOND,
    SETTINGS,
    Application,
    Reply,
    person,
    serving,
)
from tests.support.llm_server import COMPLETION, KEY, LlmServer, chunks, llm_server
from tests.support.rude_server import Peer, RudeServer, Script, free_port, rude_server
from waypost.api import server as server_module
from waypost.api.server import HttpServer
from waypost.domain.dev_users import DEV_USERS

PATH = "/llm/v1/chat/completions"
TOKEN = DEV_USERS[0].token
QUESTION = b'{ "model": "gpt-test", "messages": [{"role": "user", "content": "Hello?"}] }'
STREAMED = QUESTION.replace(b"{ ", b'{ "stream": true, ')
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


@pytest_asyncio.fixture
async def llm() -> AsyncIterator[LlmServer]:
    async with llm_server() as llm:
        yield llm


@asynccontextmanager
async def asking(
    llm: LlmServer | str, *, key: str = KEY, **more: Any
) -> AsyncIterator[Application]:
    url = llm if isinstance(llm, str) else llm.url
    async with serving(
        structs.replace(SETTINGS, llm_base_url=url, llm_api_key=key, **more)
    ) as server:
        yield server


@asynccontextmanager
async def asking_rude(script: Script, **more: Any) -> AsyncIterator[tuple[Application, RudeServer]]:
    async with rude_server(script) as rude, asking(rude.url("/v1"), **more) as server:
        yield server, rude


async def ask(server: Application, body: bytes = QUESTION, **fields: str) -> Reply:
    header = {name.replace("_", "-"): value for name, value in fields.items()}
    return await server.ask("POST", PATH, header=header, body=body)


class Raw:
    """A connection of a caller who can do what clients do not."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def ask(self, body: bytes = STREAMED, *, version: str = "1.1", more: str = "") -> None:
        head = (
            f"POST {PATH} HTTP/{version}\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"Content-Length: {len(body)}\r\n{more}\r\n"
        )
        self.writer.write(head.encode() + body)

    async def head(self) -> bytes:
        async with asyncio.timeout(5):
            return (await self.reader.readuntil(b"\r\n\r\n")).lower()

    async def chunk(self) -> bytes:
        """One chunk's bytes; the last one is empty."""
        async with asyncio.timeout(5):
            size = int(await self.reader.readline(), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def all(self) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.read()


@asynccontextmanager
async def connected(server: Application) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


async def test_a_question_is_answered_by_the_operators_model(llm: LlmServer) -> None:
    """W229: byte for byte, with the operator's key and never the caller's token."""
    async with asking(llm) as server:
        reply = await ask(server, Content_Type="application/json", X_Mine="1", Cookie="a=b")

        assert (reply.status, reply.json) == (200, COMPLETION)
        assert reply.header["Content-Type"].startswith("application/json")
        [asked] = llm.asked
        assert asked.body == QUESTION
        assert asked.header["authorization"] == f"Bearer {KEY}"
        assert asked.header["content-type"] == "application/json"
        assert not {"x-mine", "cookie"} & set(asked.header)
        assert TOKEN not in str(asked)
        assert KEY not in str(reply)


async def test_a_callers_token_does_not_go_out_where_the_operator_has_no_key(
    llm: LlmServer,
) -> None:
    """W229."""
    async with asking(llm, key="") as server:
        assert (await ask(server)).status == 502

    [asked] = llm.asked
    assert "authorization" not in asked.header


async def test_a_streamed_answer_comes_piece_by_piece() -> None:
    """W229: an event is there before the model has said the next."""
    heard = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(EVENTS + b"Transfer-Encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n")
        await heard.wait()
        await peer.send(b"8\r\ndata: 2\n\r\n0\r\n\r\n")

    async with asking_rude(script) as (server, _), connected(server) as caller:
        caller.ask()
        head = await caller.head()
        assert head.startswith(b"http/1.1 200 ")
        assert b"content-type: text/event-stream\r\n" in head
        assert b"transfer-encoding: chunked\r\n" in head
        assert await caller.chunk() == b"data: 1\n"
        heard.set()
        assert await caller.chunk() == b"data: 2\n"
        assert await caller.chunk() == b""


async def test_a_connection_goes_on_after_a_streamed_answer(llm: LlmServer) -> None:
    """W229: also where the next request came before its end."""
    async with asking(llm) as server, connected(server) as caller:
        caller.ask()
        caller.ask(more="Connection: close\r\n")
        answers = await caller.all()

    assert answers.lower().count(b"http/1.1 200 ") == 2
    assert answers.count(b"[DONE]") == 2
    assert answers.endswith(b"0\r\n\r\n")
    assert len(llm.asked) == 2


async def test_a_caller_of_http_1_0_gets_a_stream_without_chunks(llm: LlmServer) -> None:
    """W229: it ends with the connection."""
    async with asking(llm) as server, connected(server) as caller:
        caller.ask(version="1.0")
        head, _, body = (await caller.all()).partition(b"\r\n\r\n")

    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert body == chunks()


async def test_only_post_asks(llm: LlmServer) -> None:
    async with asking(llm) as server:
        for method in ("GET", "HEAD", "PUT"):
            reply = await server.ask(method, PATH)
            assert reply.status == 405
            assert reply.header["Allow"] == "OPTIONS, POST"
    assert llm.asked == []


async def test_an_exceeded_rate_is_told_as_the_model_tells_it(llm: LlmServer) -> None:
    """W229: status, body, and the fields that SDKs read."""
    rates = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-tokens": "6ms",
        "retry-after": "20",
    }
    llm.refusals = [(429, {**rates, "set-cookie": "a=b", "server": "model"})]
    async with asking(llm) as server:
        reply = await ask(server)

    assert (reply.status, reply.json) == (429, {"error": {"code": "try_again"}})
    assert {name: reply.header.get(name) for name in rates} == rates
    assert "set-cookie" not in reply.header
    assert "server" not in reply.header


@pytest.mark.parametrize("status", [400, 403, 500, 503, 529])
async def test_what_the_model_refuses_is_passed_back(llm: LlmServer, status: int) -> None:
    """W229: also a status that has no name."""
    llm.refusals = [(status, {})]
    async with asking(llm) as server:
        reply = await ask(server)

        assert (reply.status, reply.json) == (status, {"error": {"code": "try_again"}})
        assert (await ask(server)).status == 200


async def test_a_wrong_key_is_the_operators_matter(llm: LlmServer) -> None:
    """W229: the caller's token was right, and the key is not told of."""
    async with asking(llm, key="sk-wrong") as server:
        reply = await ask(server)

    assert reply.status == 502
    assert reply.json == {
        "error": "the model at llm_base_url did not accept the operator's llm_api_key"
    }


async def test_where_no_model_is_configured_the_answer_names_the_setting() -> None:
    """W229, W4."""
    async with serving() as server:
        reply = await ask(server)

    assert reply.status == 404
    assert reply.json == {"error": "chat completions are not configured: set llm_base_url"}


async def test_a_read_only_token_asks_nothing(llm: LlmServer, tmp_path: Any) -> None:
    """W11: a question costs the operator money."""
    settings = structs.replace(
        SETTINGS, database=f"sqlite:///{tmp_path / 'w.db'}", llm_base_url=llm.url
    )
    token = await person(settings, "someone", read_only=True)
    async with serving(settings, dev=False, token=token) as server:
        assert (await ask(server)).status == 403
    assert llm.asked == []


@pytest.mark.parametrize(
    ("base", "body"),
    [
        ("http://127.0.0.1:{port}/v1", "cannot connect"),
        ("http://nobody.invalid/v1", "no address|not found|look-up"),
    ],
)
async def test_a_model_that_cannot_be_reached_is_502(base: str, body: str) -> None:
    """W229: without the address, which is the operator's."""
    async with asking(base.format(port=free_port()), timeout_ms_default=5 * SECOND) as server:
        reply = await ask(server)

    assert reply.status == 502
    assert reply.json["error"].startswith("the model at llm_base_url did not answer: ")
    assert "127.0.0.1" not in str(reply.json)


async def test_a_model_that_says_nothing_is_given_up_in_time() -> None:
    """W229."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.until_closed()

    async with asking_rude(script, timeout_ms_default=SECOND) as (server, _):
        reply = await ask(server)

    assert reply.status == 502
    assert reply.json["error"].endswith("timed out: no answer")


async def test_a_stream_that_never_ends_is_cut_in_time() -> None:
    """W229: the caller sees that it was cut."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(EVENTS + b"Transfer-Encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n")
        await peer.until_closed()

    async with (
        asking_rude(script, timeout_ms_default=SECOND) as (server, _),
        connected(server) as caller,
    ):
        caller.ask()
        _, _, body = (await caller.all()).partition(b"\r\n\r\n")

    assert body == b"8\r\ndata: 1\n\r\n"


@pytest.mark.parametrize("how", ["reset", "close", "break the rules"])
async def test_a_stream_that_breaks_off_is_seen_to_break_off(how: str) -> None:
    """W229: what came goes on to the caller, without an end."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(EVENTS + b"Transfer-Encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n")
        await heard.wait()
        if how == "reset":
            peer.reset()
        elif how == "break the rules":
            await peer.send(b"no chunk\r\n")
        else:
            peer.close()

    heard = asyncio.Event()
    async with asking_rude(script) as (server, _), connected(server) as caller:
        caller.ask()
        await caller.head()
        assert await caller.chunk() == b"data: 1\n"
        heard.set()
        assert await caller.all() == b""


@pytest.mark.parametrize("when", ["before an answer", "in the middle of it"])
@pytest.mark.parametrize("how", ["reset", "close", "shut down"])
async def test_a_caller_who_goes_away_ends_the_question(when: str, how: str) -> None:
    """W229: tokens that nobody reads are not paid for."""
    asked, ended = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        if when == "in the middle of it":
            await peer.send(EVENTS + b"Transfer-Encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n")
        asked.set()
        try:
            await peer.until_closed()
        finally:
            ended.set()

    async with asking_rude(script) as (server, _):
        async with connected(server) as caller:
            caller.ask()
            async with asyncio.timeout(5):
                await asked.wait()
            if when == "in the middle of it":
                await caller.head()
                await caller.chunk()
            if how == "shut down":
                caller.writer.write_eof()
            elif how == "close":
                caller.writer.close()
            else:
                caller.writer.transport.abort()
            async with asyncio.timeout(5):
                await ended.wait()
        assert (await server.ask("GET", "/v2/queues")).status == 200


async def test_a_model_is_read_no_faster_than_its_caller_reads() -> None:
    """W229: a caller who reads nothing makes the model wait, and is given all when he does."""
    block = b"x" * 65_536
    count = 512
    sent = 0
    stalled, reads = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.read_request()
        await peer.send(EVENTS + b"Content-Length: %d\r\n\r\n" % (len(block) * count))
        for _ in range(count):
            sent += 1
            try:
                async with asyncio.timeout(0.2):
                    await peer.send(block)
            except TimeoutError:  # it has been written, and waits to leave
                stalled.set()
                await reads.wait()
        await peer.hang()  # what it has written leaves first

    async with asking_rude(script) as (server, _), connected(server) as caller:
        caller.ask(more="Connection: close\r\n")
        await caller.head()
        async with asyncio.timeout(5):
            await stalled.wait()
        assert sent < count

        reads.set()
        assert len(await caller.all()) == len(block) * count


async def test_a_caller_who_reads_nothing_for_long_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """W229: and the question ends with him."""
    monkeypatch.setattr(server_module, "WRITE_S_MAX", 0.1)
    monkeypatch.setattr(server_module, "SWEEP_S", 0.05)
    ended = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(EVENTS + b"\r\n")
        try:
            await peer.flood(b"data: 1\n\n")
        finally:
            ended.set()

    async with asking_rude(script) as (server, _), connected(server) as caller:
        caller.ask()
        async with asyncio.timeout(5):
            await ended.wait()


async def test_a_body_of_known_length_keeps_it() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await peer.until_closed()

    async with asking_rude(script) as (server, _), connected(server) as caller:
        caller.ask()
        head = await caller.head()
        assert b"content-length: 2\r\n" in head
        assert b"transfer-encoding" not in head
        assert await caller.reader.readexactly(2) == b"{}"


async def test_an_answer_without_a_body_has_no_chunks() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        await peer.until_closed()

    async with asking_rude(script) as (server, _), connected(server) as caller:
        caller.ask()
        assert b"transfer-encoding" not in await caller.head()
        caller.ask(more="Connection: close\r\n")
        assert (await caller.all()).startswith(b"HTTP/1.1 204 ")


async def test_a_server_that_stops_ends_what_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """The door waits its few seconds, and no longer."""
    monkeypatch.setitem(HttpServer.close.__kwdefaults__, "drain_s_max", 0.1)
    ended = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(EVENTS + b"Transfer-Encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n")
        try:
            await peer.until_closed()
        finally:
            ended.set()

    async with rude_server(script) as rude:
        async with asking(rude.url("/v1")) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            caller = Raw(reader, writer)
            caller.ask()
            await caller.head()
        async with asyncio.timeout(5):
            await ended.wait()
        assert not (await reader.read()).endswith(b"0\r\n\r\n")
        writer.close()


@pytest.mark.parametrize(
    ("said", "goes_out"),
    [
        ({"provider": {"baseUrl": "https://x", "owner": "upstash"}, "system": "s"}, set()),
        ({"provider": {"order": ["groq"]}}, {"provider"}),
        ({"provider": {"order": ['"owner":"upstash"']}}, {"provider"}),
    ],
)
async def test_what_the_sdk_says_to_itself_does_not_go_out(
    llm: LlmServer, said: dict[str, Any], goes_out: set[str]
) -> None:
    """W229: OpenAI refuses fields that it does not know; OpenRouter knows a `provider`."""
    question = {"model": "gpt-test", "messages": [], **said}
    body = json.dumps(question, separators=(",", ":")).encode()
    async with asking(llm) as server:
        assert (await ask(server, body)).status == 200

    [asked] = llm.asked
    assert set(json.loads(asked.body)) == {"model", "messages", *goes_out}
