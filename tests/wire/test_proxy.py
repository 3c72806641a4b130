"""The forward proxy: it is told addresses that were judged; its faults are told apart (D10)."""

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator
from ipaddress import ip_network

import pytest

from tests.support.dns_server import dns_server
from tests.support.rude_server import (
    Peer,
    answering,
    answering_always,
    free_port,
    once_each,
    rude_server,
)
from waypost.wire import sender as sender_module
from waypost.wire.egress import Egress
from waypost.wire.proxy import HEAD_BYTES_MAX, Proxy

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class ConnectProxy:
    """A proxy that behaves.  `asked` holds the head of every CONNECT."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.port = 0

    @property
    def places(self) -> list[str]:
        return [head.split(" ")[1] for head in self.asked]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
        self.asked.append(head)
        host, _, port = head.split(" ")[1].rpartition(":")
        try:
            there, thither = await asyncio.open_connection(host.strip("[]"), int(port))
        except OSError:
            writer.write(
                b"HTTP/1.1 502 Bad Gateway\r\n"
                b"Proxy-Status: test; error=connection_refused\r\nContent-Length: 0\r\n\r\n"
            )
            return
        writer.write(ESTABLISHED)
        ways = [
            asyncio.ensure_future(_carry(reader, thither)),
            asyncio.ensure_future(_carry(there, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            thither.transport.abort()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


@contextlib.asynccontextmanager
async def connect_proxy() -> AsyncIterator[ConnectProxy]:
    proxy = ConnectProxy()
    under_way: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        under_way.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await proxy.serve(reader, writer)
        under_way.discard(task)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.port = listener.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listener.close()
        ending = list(under_way)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


def at(port: int, *, userinfo: str = "") -> Proxy:
    return Proxy(f"http://{userinfo}127.0.0.1:{port}")


@pytest.fixture
def server_tls(authority):
    def build(*names: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*names).configure_cert(context)
        return context

    return build


async def test_the_proxy_is_told_the_address_that_was_judged_and_never_the_name(
    a_sender, a_request
):
    async with (
        connect_proxy() as proxy,
        rude_server(answering_always(OK)) as server,
        dns_server({"a.example": ["10.0.0.1", "127.0.0.1"]}) as names,
    ):
        sender = await a_sender(proxy=at(proxy.port), nameservers=[names.address])
        outcome = await sender.send(a_request(server.url("/x?y", host="a.example")))
    assert (outcome.status, outcome.body, outcome.error) == (200, b"ok", None)
    assert proxy.places == [f"127.0.0.1:{server.port}"]
    assert not any("a.example" in head for head in proxy.asked)
    assert server.requests[0].startswith(b"POST /x?y HTTP/1.1\r\nHost: a.example:")


async def test_a_forbidden_address_is_refused_before_the_proxy_hears_of_it(a_sender, a_request):
    async with connect_proxy() as proxy:
        sender = await a_sender(proxy=at(proxy.port), egress=Egress())
        outcome = await sender.send(a_request("http://127.0.0.1/"))
    assert outcome.refused
    assert not outcome.proxy_fault
    assert proxy.asked == []


async def test_an_ipv6_address_is_told_in_brackets(a_sender, a_request):
    async with connect_proxy() as proxy:
        sender = await a_sender(proxy=at(proxy.port))
        await sender.send(a_request(f"http://[::1]:{free_port()}/"))
    assert proxy.places[0].startswith("[::1]:")


async def test_tls_runs_inside_the_tunnel_and_names_the_real_host(a_sender, server_tls, a_request):
    asked = []
    context = server_tls("right.example")
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    async with (
        connect_proxy() as proxy,
        dns_server({"right.example": ["127.0.0.1"], "wrong.example": ["127.0.0.1"]}) as names,
        rude_server(answering_always(OK), tls=context) as server,
    ):
        sender = await a_sender(proxy=at(proxy.port), nameservers=[names.address])
        right = await sender.send(a_request(server.url(host="right.example")))
        again = await sender.send(a_request(server.url(host="right.example")))
        wrong = await sender.send(a_request(server.url(host="wrong.example")))
    assert right.delivered
    assert again.delivered
    assert "hostname mismatch" in (wrong.error or "")
    assert wrong.host_down
    assert not wrong.proxy_fault
    assert asked == ["right.example", "wrong.example"]
    assert len(server.requests) == 2
    assert len(proxy.asked) == 2  # the tunnel of the first was kept for the second


async def test_a_tunnel_is_kept_and_one_found_closed_is_dug_anew(a_sender, a_request):
    async def closes_on_the_second_request(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(OK)
        await peer.read_request()
        peer.close()

    script = once_each(closes_on_the_second_request, answering_always(OK))
    async with connect_proxy() as proxy, rude_server(script) as server:
        sender = await a_sender(proxy=at(proxy.port))
        first = await sender.send(a_request(server.url()))
        second = await sender.send(a_request(server.url()))
        third = await sender.send(a_request(server.url()))
    assert first.delivered
    assert second.delivered
    assert second.redialled
    assert third.delivered
    assert len(proxy.asked) == 2


async def test_the_password_goes_to_the_proxy_and_nowhere_else(a_sender, a_request):
    expected = base64.b64encode(b"user:p@ss:word").decode()
    async with connect_proxy() as proxy, rude_server(answering_always(OK)) as server:
        configured = at(proxy.port, userinfo="user:p%40ss:word@")
        sender = await a_sender(proxy=configured)
        assert (await sender.send(a_request(server.url()))).delivered
    assert f"\r\nProxy-Authorization: Basic {expected}\r\n" in proxy.asked[0]
    assert b"proxy-authorization" not in server.requests[0].lower()
    assert all("p%40ss" not in text for text in (str(configured), repr(configured)))


async def _hangs(peer: Peer) -> None:
    await peer.read_request()
    await peer.hang()


async def _closes(peer: Peer) -> None:
    await peer.read_request()
    peer.close()


async def _closes_at_once(peer: Peer) -> None:
    peer.close()


async def _resets(peer: Peer) -> None:
    await peer.read_request()
    peer.reset()


async def _never_ends_its_head(peer: Peer) -> None:
    await peer.read_request()
    await peer.send(b"HTTP/1.1 200 OK\r\n")
    await peer.flood(b"X-More: and more\r\n")


def _with(answer: bytes):
    return answering(answer + b"\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (_hangs, "timed out: the proxy did not answer"),
        (_closes, "the proxy closed the connection before it answered"),
        (_closes_at_once, "the proxy"),
        (_resets, "the proxy closed the connection before it answered"),
        (_never_ends_its_head, f"larger than {HEAD_BYTES_MAX} bytes"),
        (_with(b"HTTP/1.1 407 Proxy Authentication Required"), "407 to CONNECT: its user or pass"),
        (_with(b"HTTP/1.1 500 Oops"), "the proxy answered 500 to CONNECT"),
        (_with(b"HTTP/1.0 502 Bad Gateway"), "the proxy answered 502 to CONNECT"),
        (_with(b"HTTP/1.1 503"), "the proxy answered 503 to CONNECT"),
        (_with(b"SSH-2.0-OpenSSH_9.2"), "is not HTTP/1.1"),
        (_with(b"HTTP/1.1 2000 OK"), "is not HTTP/1.1"),
    ],
)
async def test_a_fault_of_the_proxy_is_told_as_one_and_the_host_is_not_blamed(
    a_sender, a_request, monkeypatch, script, says
):
    if script is _hangs:
        monkeypatch.setattr(sender_module, "DIAL_S_MAX", 0.1)
    async with rude_server(script) as rude:
        sender = await a_sender(proxy=at(rude.port, userinfo="user:secret@"))
        outcome = await sender.send(a_request("http://127.0.0.1:9/?token=secret"))
    assert says in (outcome.error or "")
    assert outcome.proxy_fault
    assert not outcome.host_down
    assert not outcome.refused
    assert outcome.status == 0
    assert "secret" not in (outcome.error or "")


async def test_a_message_with_little_time_still_tells_that_the_proxy_hung(a_sender, a_request):
    async with rude_server(_hangs) as rude:
        sender = await a_sender(proxy=at(rude.port))
        outcome = await sender.send(a_request("http://127.0.0.1:9/", timeout_ms=100))
    assert outcome.proxy_fault


async def test_a_proxy_that_is_not_there_is_a_fault_of_the_proxy(a_sender, a_request):
    sender = await a_sender(proxy=at(free_port()))
    outcome = await sender.send(a_request("http://127.0.0.1:9/"))
    assert outcome.error == "cannot connect to the proxy: Connection refused"
    assert outcome.proxy_fault


async def test_a_proxy_is_looked_up_by_name_and_one_without_address_is_at_fault(
    a_sender, a_request
):
    async with (
        connect_proxy() as proxy,
        rude_server(answering_always(OK)) as server,
        dns_server({"proxy.example": ["127.0.0.1"]}) as names,
    ):
        there = Proxy(f"http://Proxy.example:{proxy.port}")
        sender = await a_sender(proxy=there, nameservers=[names.address])
        assert (await sender.send(a_request(server.url()))).delivered
        nowhere = Proxy("http://nowhere.example:3128")
        sender = await a_sender(proxy=nowhere, nameservers=[names.address])
        outcome = await sender.send(a_request(server.url()))
    assert outcome.error == "the proxy's name not found: Domain name not found"
    assert outcome.proxy_fault


@pytest.mark.parametrize(
    ("answer", "host_down"),
    [
        (b"HTTP/1.1 403 Forbidden", False),
        (b"HTTP/1.1 400 Bad Request", False),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/", False),
        (b"HTTP/1.1 502 Bad Gateway\r\nProxy-Status: p; error=connection_timeout", True),
        (b"HTTP/1.1 503 No\r\nVia: x\r\nproxy-status: a, p; error=destination_unavailable", True),
        (b"HTTP/1.1 503 No\r\nX-Squid-Error: ERR_CONNECT_FAIL 111", True),
    ],
)
async def test_a_refusal_by_the_proxy_and_a_host_that_it_cannot_reach_use_up_a_retry(
    a_sender, a_request, answer, host_down
):
    async with rude_server(_with(answer)) as rude:
        sender = await a_sender(proxy=at(rude.port))
        outcome = await sender.send(a_request("http://127.0.0.1:9/"))
    assert outcome.error is not None
    assert outcome.status == 0
    assert not outcome.proxy_fault
    assert outcome.host_down == host_down


async def test_the_next_address_is_tried_where_the_proxy_cannot_connect_one(a_sender, a_request):
    egress = Egress(allow=[ip_network("127.0.0.0/8")])
    async with (
        connect_proxy() as proxy,
        rude_server(answering_always(OK)) as server,
        dns_server({"a.example": ["127.0.0.7", "127.0.0.1"]}) as names,
    ):
        sender = await a_sender(proxy=at(proxy.port), egress=egress, nameservers=[names.address])
        outcome = await sender.send(a_request(server.url(host="a.example")))
    assert outcome.delivered
    assert f"127.0.0.1:{server.port}" in proxy.places


async def test_a_destination_that_speaks_first_in_a_tunnel_is_not_believed(a_sender, a_request):
    async def speaks_first(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(ESTABLISHED + OK)
        await peer.until_closed()

    async with rude_server(speaks_first) as rude:
        sender = await a_sender(proxy=at(rude.port))
        outcome = await sender.send(a_request("http://127.0.0.1:9/"))
    assert outcome.error is not None
    assert not outcome.delivered
    assert not outcome.proxy_fault


async def test_a_tls_handshake_that_hangs_in_the_tunnel_is_the_hosts_fault(
    a_sender, a_request, monkeypatch
):
    monkeypatch.setattr(sender_module, "DIAL_S_MAX", 0.2)

    async def hang(peer: Peer) -> None:
        await peer.hang()

    async def close(peer: Peer) -> None:
        peer.close()

    for script in (hang, close):
        async with connect_proxy() as proxy, rude_server(script) as server:
            sender = await a_sender(proxy=at(proxy.port))
            url = server.url().replace("http:", "https:")
            outcome = await sender.send(a_request(url))
        assert outcome.error is not None
        assert outcome.host_down
        assert not outcome.proxy_fault


async def test_what_is_cancelled_on_the_way_leaves_no_connection_to_the_proxy(a_sender, a_request):
    reached, closed = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        reached.set()
        with contextlib.suppress(ConnectionError):
            await peer.until_closed()
        closed.set()

    async with rude_server(script) as rude:
        sender = await a_sender(proxy=at(rude.port))
        sending = asyncio.ensure_future(sender.send(a_request("http://127.0.0.1:9/")))
        async with asyncio.timeout(5):
            await reached.wait()
            sending.cancel()
            await closed.wait()
    assert sending.cancelled()


async def test_no_proxy_is_taken_from_the_environment(a_sender, a_request, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    async with rude_server(answering_always(OK)) as server:
        sender = await a_sender()
        assert (await sender.send(a_request(server.url()))).delivered


@pytest.mark.parametrize(
    "url",
    [
        "",
        "proxy:3128",
        "http://proxy",
        "https://proxy:3128",
        "socks5://proxy:1080",
        "http://proxy:0",
        "http://proxy:99999",
        "http://proxy:3128/path",
        "http://pro xy:3128",
        "http://-.:3128/?x",
        "http://user:se/cret@proxy:3128",
        "http://[::g]:3128",
    ],
)
def test_what_names_no_proxy_is_refused_without_being_quoted(url):
    with pytest.raises(ValueError, match=r"^(is not of the form|has a)") as caught:
        Proxy(url)
    assert "cret" not in str(caught.value)


def test_a_proxy_may_be_an_address_of_either_kind_and_is_shown_without_its_password():
    assert str(Proxy("http://user:secret@[::1]:3128/")) == "http://[::1]:3128"
    assert str(Proxy("HTTP://user@Proxy.Example:3128")) == "http://proxy.example:3128"
