"""What the hosted console's local mode finds: a page in a browser that asks this machine."""

import pytest
from aiohttp import ClientSession
from msgspec import structs

from tests.support.application import SETTINGS, Application, SettableClock, serving
from waypost import assembly
from waypost.domain.dev_users import DEV_USERS

CONSOLE = "https://console.upstash.com"
ALLOWED = "Access-Control-Allow-Origin"


@pytest.mark.parametrize("path", ["/v2/keys", "/v2/queues", "/v2/publish/https://example.com"])
async def test_a_preflight_of_the_console_is_answered_without_a_token(
    server: Application, path: str
) -> None:
    """W232: also where browsers ask whether a public page may speak to this machine."""
    header = {
        "Origin": CONSOLE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,upstash-retries",
        "Access-Control-Request-Private-Network": "true",
    }

    reply = await server.ask("OPTIONS", path, header=header, token=None)

    assert reply.status == 200
    assert reply.header[ALLOWED] == CONSOLE
    assert "POST" in reply.header["Access-Control-Allow-Methods"]
    assert reply.header["Access-Control-Allow-Headers"] == "authorization,upstash-retries"
    assert reply.header["Access-Control-Allow-Private-Network"] == "true"
    assert reply.header["Vary"] == "Origin"


async def test_the_console_may_read_answers_and_refusals(server: Application) -> None:
    """W232."""
    header = {"Origin": CONSOLE}
    for reply, status in (
        (await server.publish(header=header), 200),
        (await server.ask("GET", "/v2/events", header=header), 200),
        (await server.ask("GET", "/v2/nothing", header=header), 404),
        (await server.ask("GET", "/v2/events", header=header, token="wrong"), 401),
    ):
        assert reply.status == status
        assert reply.header.getall(ALLOWED) == [CONSOLE]
        assert reply.header["Access-Control-Expose-Headers"] == "*"


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "https://example.com", CONSOLE + ".example", "null"]
)
async def test_other_pages_are_refused_before_and_after_a_preflight(
    server: Application, origin: str
) -> None:
    """D30, W232."""
    header = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    for method in ("OPTIONS", "GET"):
        reply = await server.ask(method, "/v2/events", header=header)
        assert reply.status == 403
        assert ALLOWED not in reply.header


async def test_without_an_origin_nothing_is_said_of_origins(server: Application) -> None:
    assert ALLOWED not in (await server.ask("GET", "/v2/events")).header


async def test_a_real_server_lets_no_page_read_its_answers() -> None:
    """W232 is of development servers only."""
    async with serving(dev=False) as server:
        reply = await server.ask("GET", "/v2/events", header={"Origin": CONSOLE})

        assert reply.status == 401
        assert ALLOWED not in reply.header


async def test_the_log_port_shows_what_there_is_and_takes_nothing() -> None:
    """W221, D37."""
    user = DEV_USERS[0]
    header = {"Authorization": f"Bearer {user.token}", "Origin": CONSOLE}
    async with (
        assembly.running(SETTINGS, dev=True, clock=SettableClock()) as server,
        ClientSession(headers=header) as client,
    ):
        api, logs = server.announcement.address, server.announcement.log_address
        assert logs is not None
        body = b'{"queueName": "q"}'
        async with client.post(f"{api}/v2/queues", data=body) as reply:
            assert reply.status == 200

        for path in ("/v2/queues", "/v2/events", "/v2/logs", "/v2/dlq", "/v2/keys"):
            async with client.get(api + path) as there, client.get(logs + path) as here:
                assert (here.status, here.headers[ALLOWED]) == (200, CONSOLE)
                assert await here.json() == await there.json()
        async with client.post(f"{logs}/v2/queues", data=body) as reply:
            assert reply.status == 405
            assert reply.headers["Allow"] == "GET, HEAD, OPTIONS"
        async with client.post(f"{logs}/v2/publish/https://example.com") as reply:
            assert reply.status == 404
        async with client.get(f"{logs}/v2/logs", headers={"Authorization": "Bearer x"}) as reply:
            assert reply.status == 401


async def test_a_real_server_has_no_log_port() -> None:
    """W221."""
    async with assembly.running(SETTINGS, dev=False, clock=SettableClock()) as server:
        assert server.announcement.log_address is None


async def test_a_log_port_that_was_asked_for_and_is_taken_stops_the_start() -> None:
    """W221: nothing else is left behind."""
    async with assembly.running(SETTINGS, dev=True, clock=SettableClock()) as first:
        taken = structs.replace(SETTINGS, log_port=first.port)
        with pytest.raises(OSError, match="Address already in use"):
            async with assembly.running(taken, dev=True, clock=SettableClock()):
                pass
