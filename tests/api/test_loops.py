"""Messages that come back to us end, and say why (D22).

How a loop comes about: an endpoint that publishes what it gets and passes the
fields on; a URL group whose endpoint is our publish URL, or that of another
Waypost which leads here; a callback that publishes again.  `CDN-Loop` counts
the passages (RFC 8586), in every Waypost alike.  `serve` besides refuses to
deliver to where it listens.
"""

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientSession, web
from msgspec import structs

from tests.support.application import (
    SETTINGS,
    Application,
    Fields,
    person,
    serving,
    until,
)
from tests.support.dns_server import dns_server
from waypost.domain.dev_users import DEV_USERS
from waypost.domain.hops import HOPS_MAX

TOKEN = DEV_USERS[0].token
MESSAGES_MAX = 5 * HOPS_MAX
"""A loop that has made more messages than this was not stopped."""

WHY = f"a loop: the message has passed here {HOPS_MAX} times"


def base(server: Application) -> str:
    return f"http://127.0.0.1:{server.port}"


async def group(server: Application, name: str, *urls: str, **header: str) -> None:
    """Make a URL group with these endpoints and default header fields."""
    told = json.dumps({"endpoints": [{"url": url} for url in urls]}).encode()
    reply = await server.ask("POST", f"/v2/topics/{name}/endpoints", body=told)
    assert reply.status == 200, reply
    if header:
        told = json.dumps({"headers": {k.replace("_", "-"): v for k, v in header.items()}}).encode()
        reply = await server.ask("PATCH", f"/v2/topics/{name}", body=told)
        assert reply.status == 200, reply


async def ended(*servers: Application) -> Counter[str]:
    """Wait until nothing is under way; how many messages ended in which way."""
    last = [""]

    async def over() -> Counter[str] | None:
        logs = [await server.log() for server in servers]
        states = {
            entry["messageId"]: entry["state"] for log in logs for entry in reversed(log)
        }  # the last that is said of each
        before, last[0] = last[0], json.dumps(logs)
        assert len(states) <= MESSAGES_MAX, "it goes round and round"
        settled = set(states.values()) <= {"DELIVERED", "FAILED"}
        return Counter(states.values()) if settled and before == last[0] else None

    return await until(over)


async def dead(server: Application) -> list[str]:
    """Why messages are in the dead letter queue."""
    reply = await server.ask("GET", "/v2/dlq")
    return [letter["error"] for letter in reply.json["messages"]]


def explained(why: list[str], count: int) -> None:
    assert len(why) == count
    assert all(one.endswith(WHY) for one in why), why


async def failure_of(server: Application, message_id: str) -> str:
    """What the log says where a message failed."""
    [failed] = [one for one in await server.log(message_id) if one["state"] == "FAILED"]
    return str(failed["error"])


# An endpoint that publishes again.


class Again:
    """An endpoint that publishes whatever it gets to `url`, with the fields that it passes on."""

    def __init__(self, url: str, *, passes: bool) -> None:
        self.url = url
        self.hops: list[str] = []
        self.published_max = 3 * HOPS_MAX
        self._passes = passes

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.hops.append(request.headers["CDN-Loop"])
        if len(self.hops) > self.published_max:
            return web.Response()
        header = {"Authorization": f"Bearer {TOKEN}"}
        if self._passes:
            header["CDN-Loop"] = request.headers["CDN-Loop"]
        async with (
            ClientSession() as client,
            client.post(self.url + str(request.url), data=await request.read(), headers=header),
        ):
            return web.Response()


@asynccontextmanager
async def publishing_again(
    server: Application, *, passes: bool
) -> AsyncIterator[tuple[str, Again]]:
    """An endpoint that publishes to the server what it gets from it, and its URL."""
    again = Again(f"{base(server)}/v2/publish/", passes=passes)
    runner = web.ServerRunner(web.Server(again.handle), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/again", again
    finally:
        await runner.cleanup()


async def test_an_endpoint_that_publishes_again_what_it_gets_is_stopped(
    server: Application,
) -> None:
    """D22: endless by itself; after ten passages the message is a dead letter that says why."""
    async with publishing_again(server, passes=True) as (url, again):
        await server.accepted(url, header={"Upstash-Retries": "100"})
        ends = await ended(server)

    assert ends == {"DELIVERED": HOPS_MAX, "FAILED": 1}
    assert again.hops == [f"waypost; hops={n}" for n in range(1, HOPS_MAX + 1)]
    explained(await dead(server), 1)


async def test_a_loop_that_hides_its_passages_is_not_seen_as_one(server: Application) -> None:
    """D22: an endpoint that drops CDN-Loop makes a new message each time; we cannot tell."""
    async with publishing_again(server, passes=False) as (url, again):
        await server.accepted(url)
        ends = await ended(server)

    assert ends == {"DELIVERED": 3 * HOPS_MAX + 1}
    assert set(again.hops) == {"waypost; hops=1"}


@pytest.mark.parametrize(
    "passed",
    [
        "waypost; hops=10",
        "waypost;hops=10",
        "WAYPOST; hops=10",
        "other; x=1, waypost; hops=10",
        "waypost; hops=10, other",
        "waypost; hops=3, waypost; hops=10",
        "waypost; hops=9999999",
    ],
)
async def test_a_message_that_has_passed_ten_times_is_not_sent_and_its_log_says_why(
    server: Application, passed: str
) -> None:
    """D22: whatever else its CDN-Loop says, and however many retries it has."""
    message_id = await server.accepted(header={"CDN-Loop": passed, "Upstash-Retries": "100"})

    states = await server.logged(message_id, "FAILED")

    assert states == ["CREATED", "ACTIVE", "ERROR", "FAILED"]
    assert "a loop: the message has passed here" in await failure_of(server, message_id)
    assert (await server.dead_letter(message_id))["messageId"] == message_id
    assert server.receiver.received == []


@pytest.mark.parametrize(
    "fields",
    [["other; x=1"], ["other", "another"], ["waypost; hops=2"]],
    ids=["behind another", "behind two others", "behind an older one of ours"],
)
async def test_the_passages_are_read_from_every_cdn_loop_field(
    server: Application, fields: list[str]
) -> None:
    """D22: a list may come in several fields (RFC 9110), and a CDN between us adds its own."""
    message_id = await server.accepted(
        header=[*(("CDN-Loop", field) for field in fields), ("CDN-Loop", "waypost; hops=10")]
    )

    assert await ended(server) == {"FAILED": 1}
    assert (await failure_of(server, message_id)).endswith(WHY)


@pytest.mark.parametrize(
    ("passed", "next_hops"),
    [
        ("waypost; hops=9", 10),
        ("waypost", 2),
        ("other; hops=10", 1),
        ("", 1),
        ("waypostal; hops=10", 1),
        ("waypost; hops=-1", 2),
    ],
)
async def test_a_message_that_has_passed_less_often_is_sent_and_counted(
    server: Application, passed: str, next_hops: int
) -> None:
    """D22: others' names are no passages through us."""
    await server.accepted(header={"CDN-Loop": passed})

    received = await server.receiver.only()
    assert received.header.getall("CDN-Loop") == [f"waypost; hops={next_hops}"]


@pytest.mark.parametrize(("own", "forwarded"), [(4, 0), (0, 4), (4, 4)])
async def test_nobody_can_lower_the_count_of_a_delivery(
    server: Application, own: int, forwarded: int
) -> None:
    """D22, W20: not by forwarding one, nor by passing all fields on; the larger one holds."""
    header = {
        "CDN-Loop": f"waypost; hops={own}",
        "Upstash-Forward-CDN-Loop": f"waypost; hops={forwarded}",
        "Upstash-Header-Forward": "true",
    }
    await server.accepted(header=header)

    received = await server.receiver.only()
    assert received.header.getall("CDN-Loop") == ["waypost; hops=5"]


async def test_a_count_that_can_only_be_forwarded_is_counted(server: Application) -> None:
    """D22: the SDKs send each header field of a message as one to forward."""
    header = {"Upstash-Forward-CDN-Loop": f"waypost; hops={HOPS_MAX}"}
    message_id = await server.accepted(header=header)

    assert (await server.dead_letter(message_id))["error"].endswith(WHY)
    assert server.receiver.received == []


# From one Waypost to another, and back.


async def test_a_message_that_is_sent_from_one_server_to_the_other_and_back_is_stopped() -> None:
    """D22: each leg's URL is in that of the one before, and so is its token; fourteen legs."""
    async with serving() as a, serving() as b:
        legs = 14
        url = a.receiver.url
        for nth in range(legs):
            url = f"{base(b if nth % 2 else a)}/v2/publish/{url}"
        header = {
            "Upstash-Forward-" * nth + "Authorization": f"Bearer {TOKEN}" for nth in range(1, legs)
        }
        # The first is published to by hand: each further leg is a passage.
        path = url.partition("/v2/")[2]
        first = b if legs % 2 == 0 else a
        reply = await first.ask("POST", f"/v2/{path}", header=header, body=b"hello")
        assert reply.status == 200, reply

        ends = await ended(a, b)

        assert ends == {"DELIVERED": HOPS_MAX, "FAILED": 1}
        explained(await dead(a) + await dead(b), 1)
        assert a.receiver.received == []


async def test_two_servers_whose_groups_lead_to_each_other_are_stopped() -> None:
    """D22: endless by itself, for a group is asked for its endpoints anew each time."""
    async with serving() as a, serving() as b:
        for here, there in ((a, b), (b, a)):
            await group(here, "g", f"{base(there)}/v2/publish/g?qstash_token={quote(TOKEN)}")
        reply = await a.ask("POST", "/v2/publish/g", body=b"round and round")
        assert reply.status == 200, reply

        ends = await ended(a, b)

        assert ends == {"DELIVERED": HOPS_MAX, "FAILED": 1}
        explained(await dead(a), 1)
        assert await dead(b) == []


async def test_servers_that_pass_all_fields_on_to_each_other_are_stopped() -> None:
    """D22, W24: what came in as CDN-Loop is counted, and not passed on beside our count of it."""
    async with serving() as a, serving() as b:
        query = f"upstash-header-forward=true&qstash_token={quote(TOKEN)}"
        for here, there in ((a, b), (b, a)):
            await group(here, "g", f"{base(there)}/v2/publish/g?{query}")
        reply = await a.ask("POST", "/v2/publish/g", body=b"round and round")
        assert reply.status == 200, reply

        ends = await ended(a, b)

        assert ends == {"DELIVERED": HOPS_MAX, "FAILED": 1}
        explained(await dead(a), 1)


async def test_a_group_that_leads_to_itself_and_to_others_is_stopped(server: Application) -> None:
    """D22: and its other endpoint has every one of them."""
    itself = f"{base(server)}/v2/publish/g?qstash_token={quote(TOKEN)}"
    await group(server, "g", itself, server.receiver.url)
    reply = await server.ask("POST", "/v2/publish/g", body=b"hello")
    assert reply.status == 200, reply

    ends = await ended(server)

    # The first and ten more publishes, each to two; of the last both are refused.
    assert ends == {"DELIVERED": 2 * HOPS_MAX, "FAILED": 2}
    assert len(server.receiver.received) == HOPS_MAX
    explained(await dead(server), 2)


# Callbacks that publish again.


@pytest.mark.parametrize(
    ("kind", "status"), [("Upstash_Callback", 200), ("Upstash_Failure_Callback", 500)]
)
async def test_a_callback_that_publishes_to_the_group_that_calls_back_is_stopped(
    server: Application, kind: str, status: int
) -> None:
    """D22, W195: endless by itself, for every message of the group has the callback; a failure
    callback for every one that fails."""
    server.receiver.answers(status)
    itself = f"{base(server)}/v2/publish/g?qstash_token={quote(TOKEN)}"
    await group(server, "g", server.receiver.url, **{kind: itself}, Upstash_Retries="0")
    reply = await server.ask("POST", "/v2/publish/g", body=b"hello")
    assert reply.status == 200, reply

    ends = await ended(server)

    assert len(server.receiver.received) == HOPS_MAX
    why = await dead(server)
    loops = [one for one in why if one.endswith(WHY)]
    # The message that has gone round too often, and the callback that would tell of it.
    assert len(loops) == 2
    assert ends["FAILED"] == len(why) == (2 if status == 200 else HOPS_MAX + 2)
    assert ends["DELIVERED"] == (2 * HOPS_MAX if status == 200 else HOPS_MAX)


async def test_a_callback_that_asks_for_a_callback_at_our_own_door_is_stopped_by_its_end(
    server: Application,
) -> None:
    """W195: D25.  A callback has none of its own; what it publishes has what it was told to
    forward, and so it ends where that does."""
    again = f"{base(server)}/v2/publish/{server.receiver.url}"
    forwarded = {
        "Upstash-Callback": again,
        "Upstash-Callback-Forward-Authorization": f"Bearer {TOKEN}",
        "Upstash-Callback-Forward-Upstash-Callback": again,
        "Upstash-Callback-Forward-Upstash-Callback-Forward-Authorization": f"Bearer {TOKEN}",
    }
    await server.accepted(header=forwarded)

    ends = await ended(server)

    # The message, its callback, what that published, its callback, and what that published.
    assert ends == {"DELIVERED": 5}
    hops = [one.header["CDN-Loop"] for one in server.receiver.received]
    assert hops == [f"waypost; hops={n}" for n in (1, 2, 3)]


# `serve` does not deliver to itself.


@asynccontextmanager
async def in_earnest(tmp_path: Path, **given: Any) -> AsyncIterator[Application]:
    """`waypost serve`, which may deliver to loopback, as a sidecar may."""
    settings = structs.replace(SETTINGS, database=f"sqlite:///{tmp_path}/waypost.db", **given)
    token = await person(settings, "acme")
    async with serving(settings, dev=False, token=token) as server:
        yield server


HERE = (
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f.1",
    "[::ffff:127.0.0.1]",
    "localhost",
    "LOCALHOST.",
)


@pytest.mark.parametrize("host", HERE)
@pytest.mark.parametrize("field", [None, "Upstash-Callback", "Upstash-Failure-Callback"])
async def test_serve_refuses_its_own_address_as_a_destination_and_as_a_callback(
    host: str, field: str | None, tmp_path: Path
) -> None:
    """D22, W195: in every spelling, by name, and before anything is stored."""
    async with in_earnest(tmp_path) as server:
        own = f"http://{host}:{server.port}/v2/publish/https://example.com/"
        header: Fields = {} if field is None else {field: own}
        reply = await server.publish(own if field is None else None, header=header)

        assert reply.status == 400
        assert "this server's own address may not be reached" in reply.json["error"]
        assert reply.json["error"].startswith(field or "invalid destination url")
        assert await server.log() == []


async def test_serve_refuses_its_own_address_as_an_endpoint_of_a_group(tmp_path: Path) -> None:
    """D22, W137: when it is added, or at the latest when it is published to."""
    async with in_earnest(tmp_path) as server:
        told = json.dumps({"endpoints": [{"url": f"{base(server)}/v2/publish/g"}]}).encode()
        reply = await server.ask("POST", "/v2/topics/g/endpoints", body=told)

        assert reply.status == 400
        assert "this server's own address may not be reached" in reply.json["error"]


@pytest.mark.parametrize("listen_host", ["127.0.0.1", "0.0.0.0"])
async def test_serve_does_not_deliver_to_a_name_that_turns_out_to_be_its_own(
    listen_host: str, tmp_path: Path
) -> None:
    """D22: a name is accepted, and judged when it is connected to; then there is no retry."""
    async with (
        dns_server({"queue.example": ["127.0.0.1"]}) as names,
        in_earnest(tmp_path, nameservers=(names.address,), listen_host=listen_host) as server,
    ):
        own = f"http://queue.example:{server.port}/v2/publish/https://example.com/"
        message_id = await server.accepted(own, header={"Upstash-Retries": "100"})
        await server.accepted(header={"Upstash-Callback": own})

        assert await ended(server) == {"DELIVERED": 1, "FAILED": 2}
        states = await server.states(message_id)
        why = await dead(server)

    assert states == ["CREATED", "ACTIVE", "ERROR", "FAILED"]
    assert len(why) == 2
    assert all("this server's own address may not be reached" in one for one in why)


async def test_serve_delivers_to_its_neighbours_on_the_same_machine(tmp_path: Path) -> None:
    """D22: the same address at another port is somebody else, also another Waypost."""
    async with in_earnest(tmp_path) as server, serving() as neighbour:
        url = f"{base(neighbour)}/v2/publish/{neighbour.receiver.url}"
        header = {"Upstash-Forward-Authorization": f"Bearer {TOKEN}"}
        await server.accepted(url, header=header)

        received = await neighbour.receiver.only()
        assert received.header["CDN-Loop"] == "waypost; hops=2"
