"""TLS: nothing is sent to whom the certificate does not name; every fault is an outcome (D7)."""

import datetime
import ssl
from collections.abc import Callable

import pytest
import trustme

from tests.support.dns_server import dns_server
from tests.support.rude_server import Peer, answering, answering_always, once_each, rude_server

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def server_tls(authority) -> Callable[..., ssl.SSLContext]:
    def build(*names: str, by: trustme.CA = authority, expired: bool = False) -> ssl.SSLContext:
        until = datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC) if expired else None
        since = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC) if expired else None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        by.issue_cert(*names, not_before=since, not_after=until).configure_cert(context)
        return context

    return build


async def test_an_exchange_over_tls_is_an_exchange_and_its_connection_is_kept(
    sender, server_tls, a_request
):
    async with rude_server(answering(OK, OK), tls=server_tls("127.0.0.1")) as server:
        for _ in range(2):
            outcome = await sender.send(a_request(server.url()))
            assert (outcome.status, outcome.body, outcome.error) == (200, b"ok", None)
    assert server.connections == 1


async def test_a_name_is_asked_for_and_checked_though_an_address_is_connected(
    a_sender, server_tls, a_request
):
    asked = []
    context = server_tls("right.example")
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    async with (
        dns_server({"right.example": ["127.0.0.1"], "wrong.example": ["127.0.0.1"]}) as names,
        rude_server(answering_always(OK), tls=context) as server,
    ):
        sender = await a_sender(nameservers=[names.address])
        right = await sender.send(a_request(server.url(host="Right.Example.")))
        wrong = await sender.send(a_request(server.url(host="wrong.example")))
    assert right.delivered
    assert wrong.error is not None
    assert "hostname mismatch" in wrong.error
    assert wrong.host_down
    assert asked[0].lower() == "right.example"
    assert len(server.requests) == 1


async def test_connections_of_two_names_at_one_address_are_not_mixed(
    a_sender, server_tls, a_request
):
    async with (
        dns_server({"a.example": ["127.0.0.1"], "b.example": ["127.0.0.1"]}) as names,
        rude_server(answering_always(OK), tls=server_tls("a.example", "b.example")) as server,
    ):
        sender = await a_sender(nameservers=[names.address])
        for host in ("a.example", "b.example", "a.example"):
            assert (await sender.send(a_request(server.url(host=host)))).delivered
    assert server.connections == 2


async def test_a_certificate_that_does_not_hold_is_refused_before_a_byte_is_sent(
    sender, server_tls, a_request
):
    contexts = [
        server_tls("127.0.0.2"),
        server_tls("localhost"),
        server_tls("127.0.0.1", expired=True),
        server_tls("127.0.0.1", by=trustme.CA()),
    ]
    for context in contexts:
        async with rude_server(answering_always(OK), tls=context) as server:
            outcome = await sender.send(a_request(server.url()))
        assert outcome.error is not None
        assert outcome.error.startswith("TLS: the certificate was not accepted")
        assert outcome.host_down
        assert server.requests == []


async def test_the_systems_authorities_are_the_default(a_sender, server_tls, a_request):
    sender = await a_sender(ca_file=None)
    async with rude_server(answering_always(OK), tls=server_tls("127.0.0.1")) as server:
        outcome = await sender.send(a_request(server.url()))
    assert not outcome.delivered
    assert server.requests == []


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_tls_1_1_is_refused(sender, server_tls, a_request):
    context = server_tls("127.0.0.1")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with rude_server(answering_always(OK), tls=context) as server:
        outcome = await sender.send(a_request(server.url()))
    assert outcome.error is not None
    assert outcome.error.startswith("TLS: ")
    assert outcome.host_down


async def test_plain_text_on_a_tls_port_and_tls_on_a_plain_one_are_faults(
    sender, server_tls, a_request
):
    async def speaks_first(peer: Peer) -> None:
        await peer.send(b"220 smtp.example ESMTP\r\n")
        await peer.until_closed()

    async with rude_server(speaks_first) as server:
        outcome = await sender.send(a_request(server.url().replace("http:", "https:")))
        assert outcome.error is not None
        assert outcome.error.startswith("TLS: ")
        assert outcome.host_down
    async with rude_server(answering_always(OK), tls=server_tls("127.0.0.1")) as server:
        outcome = await sender.send(a_request(server.url().replace("https:", "http:")))
        assert outcome.status == 0
        assert outcome.error is not None


async def test_a_handshake_that_hangs_or_breaks_off_is_a_fault_of_the_host(sender, a_request):
    async def hang(peer: Peer) -> None:
        await peer.hang()

    async def close(peer: Peer) -> None:
        peer.close()

    async def reset(peer: Peer) -> None:
        peer.reset()

    for script, timeout_ms in ((hang, 200), (close, 5_000), (reset, 5_000)):
        async with rude_server(script) as server:
            url = server.url().replace("http:", "https:")
            outcome = await sender.send(a_request(url, timeout_ms=timeout_ms))
        assert outcome.status == 0
        assert outcome.error is not None
        assert outcome.host_down


async def test_a_pooled_tls_connection_found_closed_is_redialled(sender, server_tls, a_request):
    async def closes_on_the_second_request(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(OK)
        await peer.read_request()
        peer.close()

    script = once_each(closes_on_the_second_request, answering_always(OK))
    async with rude_server(script, tls=server_tls("127.0.0.1")) as server:
        await sender.send(a_request(server.url()))
        outcome = await sender.send(a_request(server.url()))
    assert outcome.delivered
    assert outcome.redialled


async def test_a_body_that_ends_by_closing_ends_over_tls_too(sender, server_tls, a_request):
    answer = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 50_000
    async with rude_server(answering(answer), tls=server_tls("127.0.0.1")) as server:
        outcome = await sender.send(a_request(server.url()))
    assert outcome.delivered
    assert len(outcome.body) == 50_000
