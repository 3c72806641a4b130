"""Tokens, read-only tokens, tenants, development users, and who may come near (D29, D30)."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
import pytest_asyncio
from msgspec import structs

from tests.support.application import MINUTE, SETTINGS, Application, person, serving
from waypost.api.app import ROUTES, Needs, Route
from waypost.domain.dev_users import DEV_USERS

DEV_TOKEN = DEV_USERS[0].token
DENIED = {"error": "unable to authenticate: invalid token"}
FORBIDDEN = {"error": "this token may only read"}

GUARDED = [route for route in ROUTES if route.needs is not Needs.NOTHING]
OPEN = [route for route in ROUTES if route.needs is Needs.NOTHING]


def path_of(pattern: str) -> str:
    """A path of a route, that finds nothing and publishes nothing."""
    return re.sub(r"\{\w+\}", "nothing", re.sub(r"\{\w+\.\.\.\}", "", pattern))


routes = pytest.mark.parametrize(
    "route", GUARDED, ids=[f"{route.method} {route.pattern}" for route in GUARDED]
)


@routes
async def test_every_route_but_health_wants_a_token(server: Application, route: Route) -> None:
    """W1, W3, T13: none, wrong and empty tokens are 401, and nothing is done."""
    path = path_of(route.pattern)
    for header in (
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {DEV_TOKEN}"},
        {"Authorization": DEV_TOKEN},
        {"Authorization": f"Bearer {DEV_TOKEN}x"},
        {"Authorization": f"Bearer {DEV_TOKEN[:-4]}"},
        {"Authorization": f"Bearer {DEV_TOKEN} {DEV_TOKEN}"},
    ):
        reply = await server.ask(route.method, path, header=header, token=None)
        assert (reply.status, reply.json) == (401, DENIED)


@routes
async def test_every_route_takes_a_bearer_token(server: Application, route: Route) -> None:
    """W1: whatever the case of the scheme."""
    path = path_of(route.pattern)
    for scheme in ("Bearer", "bearer", "BEARER"):
        reply = await server.ask(
            route.method, path, header={"Authorization": f"{scheme} {DEV_TOKEN}"}, token=None
        )
        assert reply.json not in (DENIED, FORBIDDEN)


@routes
async def test_every_route_takes_a_token_in_the_query(server: Application, route: Route) -> None:
    """W2: encoded or not."""
    path = path_of(route.pattern)
    for token in (DEV_TOKEN, quote(DEV_TOKEN, safe="")):
        reply = await server.ask(route.method, f"{path}?qstash_token={token}", token=None)
        assert reply.json not in (DENIED, FORBIDDEN)


@pytest.mark.parametrize("route", OPEN, ids=[route.pattern for route in OPEN])
async def test_health_and_metrics_want_no_token(server: Application, route: Route) -> None:
    """T13."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % route.pattern.encode()
    )
    assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
    writer.close()


async def test_a_token_in_the_query_is_not_passed_on(server: Application) -> None:
    """W2, W27."""
    reply = await server.publish(
        f"{server.receiver.url}?a=1&qstash_token={DEV_TOKEN}&b=2", token=None
    )

    assert reply.status == 200
    assert (await server.receiver.only()).target == "/hook?a=1&b=2"


async def test_a_webhook_may_bring_an_authorization_of_its_own(server: Application) -> None:
    """W2: its token in the query is ours."""
    reply = await server.publish(
        f"{server.receiver.url}?qstash_token={DEV_TOKEN}",
        header={"Authorization": "Bearer theirs"},
        token=None,
    )

    assert reply.status == 200


async def test_padding_makes_no_difference(server: Application) -> None:
    """W10."""
    assert DEV_TOKEN.endswith("=")
    for token in (DEV_TOKEN, DEV_TOKEN.rstrip("="), DEV_TOKEN + "="):
        assert (await server.publish(token=token)).status == 200
    unpadded = DEV_USERS[1].token
    assert not unpadded.endswith("=")
    for token in (unpadded, unpadded + "=="):
        assert (await server.publish(token=token)).status == 200


async def test_a_development_server_knows_four_users_and_their_keys(server: Application) -> None:
    """W215, W217, W220: so that the SDKs adopt it; as the contract has them (section 13)."""
    for token, current, following in (
        (
            "eyJVc2VySUQiOiJkZWZhdWx0VXNlciIsIlBhc3N3b3JkIjoiZGVmYXVsdFBhc3N3b3JkIn0=",
            "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r",
            "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs",
        ),
        (
            "eyJVc2VySUQiOiJ0ZXN0VXNlcjEiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCJ9",
            "sig_7GVPjvuwsfqF65iC8fSrs1dfYruM",
            "sig_5NoELc3EFnZn4DVS5bDs2Nk4b7Ua",
        ),
        (
            "eyJVc2VySUQiOiJ0ZXN0VXNlcjIiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCJ9",
            "sig_6jWGaWRxHsw4vMSPJprXadyvrybF",
            "sig_7qHbvhmahe5GwfePDiS5Lg3pi6Qx",
        ),
        (
            "eyJVc2VySUQiOiJ0ZXN0VXNlcjMiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCJ9",
            "sig_5T8FcSsynBjn9mMLBsXhpacRovJf",
            "sig_7GFR4YaDshFcqsxWRZpRB161jguD",
        ),
    ):
        reply = await server.ask("GET", "/v2/keys", token=token)
        assert (reply.status, reply.json) == (200, {"current": current, "next": following})


async def test_who_guesses_tokens_is_told_to_wait_and_a_right_one_is_not(
    server: Application,
) -> None:
    """T12: after 20 wrong ones within a minute."""
    replies = [await server.ask("GET", "/v2/keys", token=f"wrong{n}") for n in range(30)]
    assert [reply.status for reply in replies] == [401] * 20 + [429] * 10
    assert replies[-1].header["Retry-After"] == "60"
    assert "error" in replies[-1].json

    assert (await server.ask("GET", "/v2/keys")).status == 200
    assert (await server.ask("GET", "/v2/keys", token=None)).status == 401
    server.clock.advance(MINUTE)
    assert (await server.ask("GET", "/v2/keys", token="wrong")).status == 401


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8080", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8080",
     "LOCALHOST", "app.localhost", "127.1"],
)  # fmt: skip
async def test_a_development_server_answers_to_names_of_this_machine(
    server: Application, host: str
) -> None:
    """D30."""
    assert (await server.publish(header={"Host": host})).status == 200


@pytest.mark.parametrize(
    "host",
    ["example.com", "localhost.example.com", "127.0.0.1.example.com", "10.0.0.1", "evil:127.0.0.1",
     "", "[::2]", "localhost@example.com", "0.0.0.0"],
)  # fmt: skip
async def test_a_development_server_does_not_answer_to_other_names(
    server: Application, host: str
) -> None:
    """D30, T11: DNS rebinding."""
    reply = await server.publish(header={"Host": host})

    assert reply.status == 403
    assert await server.log() == []


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://console.upstash.com", 200),
        ("http://console.upstash.com", 403),
        ("https://console.upstash.com.example.com", 403),
        ("http://localhost:3000", 403),
        ("null", 403),
        ("", 403),
    ],
)
async def test_a_development_server_does_not_answer_to_web_pages(
    server: Application, origin: str, status: int
) -> None:
    """D30."""
    assert (await server.publish(header={"Origin": origin})).status == status


class Served:
    """A server with a database of its own, two tenants, and a read-only token of the first."""

    def __init__(self, application: Application, *, mine: str, reading: str, other: str) -> None:
        self.application = application
        self.mine = mine
        self.reading = reading
        self.other = other


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    settings = structs.replace(SETTINGS, database=f"sqlite:///{tmp_path}/waypost.db")
    mine = await person(settings, "mine")
    reading = await person(settings, "mine", read_only=True, new=False)
    other = await person(settings, "other")
    async with serving(settings, dev=False, token=mine) as application:
        yield Served(application, mine=mine, reading=reading, other=other)


@routes
async def test_a_read_only_token_reads_and_does_nothing_else(served: Served, route: Route) -> None:
    """W11, T13: write and secret are 403 (D29)."""
    reply = await served.application.ask(route.method, path_of(route.pattern), token=served.reading)

    if route.needs is Needs.READ:
        assert reply.status in (200, 404)
    else:
        assert (reply.status, reply.json) == (403, FORBIDDEN)


async def test_a_read_only_token_sees_what_its_tenant_published(served: Served) -> None:
    """W11: and cannot publish."""
    server = served.application
    message_id = await server.accepted()

    reply = await server.ask("GET", f"/v2/messages/{message_id}", token=served.reading)
    assert reply.status == 200
    assert (await server.publish(token=served.reading)).status == 403
    assert len({entry["messageId"] for entry in await server.log()}) == 1


async def test_each_tenant_has_its_keys(served: Served) -> None:
    """W215, W216 of the contract."""
    for token, tenant in ((served.mine, "mine"), (served.other, "other")):
        reply = await served.application.ask("GET", "/v2/keys", token=token)
        assert reply.json == {"current": f"sig_{tenant}_1", "next": f"sig_{tenant}_2"}


async def test_a_real_server_refuses_the_tokens_everybody_knows(served: Served) -> None:
    """D30."""
    for user in DEV_USERS:
        reply = await served.application.ask("GET", "/v2/keys", token=user.token)
        assert (reply.status, reply.json) == (401, DENIED)


@pytest.mark.parametrize("host", ["example.com", "waypost.internal:8080", "[::2]"])
async def test_a_real_server_answers_to_any_name(served: Served, host: str) -> None:
    """T11: access hangs on the token and the route, never on the Host."""
    server = served.application

    assert (await server.ask("GET", "/v2/dlq", header={"Host": host})).status == 200
    denied = await server.ask("GET", "/v2/dlq", header={"Host": host}, token=None)
    assert denied.status == 401


async def test_the_callers_address_is_what_a_trusted_proxy_says(tmp_path: Path) -> None:
    """D12; W185 of the contract: nobody else is believed."""
    settings = structs.replace(SETTINGS, trusted_proxies=("127.0.0.0/8", "10.0.0.0/8"))
    forwarded = "6.6.6.6, 198.51.100.7, 10.1.1.1"
    for given, expected in (
        (settings, "198.51.100.7"),
        (SETTINGS, "127.0.0.1"),
    ):
        async with serving(given) as server:
            message_id = await server.accepted(header={"X-Forwarded-For": forwarded})
            assert (await server.message(message_id))["callerIP"] == expected
            received = await server.receiver.only()
            assert received.header["Upstash-Caller-Ip"] == expected


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [("", "127.0.0.1"), ("nonsense", "127.0.0.1"), ("1.2.3.4, x", "127.0.0.1"),
     ("10.0.0.1", "10.0.0.1"), ("::ffff:192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::1")],
)  # fmt: skip
async def test_what_is_no_address_is_not_believed_even_from_a_proxy(
    forwarded: str, expected: str
) -> None:
    """D12."""
    settings = structs.replace(SETTINGS, trusted_proxies=("127.0.0.1/32",))
    async with serving(settings) as server:
        message_id = await server.accepted(header={"X-Forwarded-For": forwarded})
        assert (await server.message(message_id))["callerIP"] == expected
