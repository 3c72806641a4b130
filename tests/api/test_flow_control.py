"""Flow control, over HTTP, to an assembled server (contract section 12; D26)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientSession, web

from tests.support.application import (
    SECOND,
    SETTINGS,
    T0,
    Application,
    Reply,
    SettableClock,
    receiving,
    serving,
    until,
)
from waypost import assembly
from waypost.domain.dev_users import DEV_USERS

WRONG = (
    "Upstash-Flow-Control-Value should be either rate=X or parallelism=Y,"
    " or both as comma-separated values"
)


def limited(value: str, key: str = "k") -> dict[str, str]:
    return {"Upstash-Flow-Control-Key": key, "Upstash-Flow-Control-Value": value}


async def state(server: Application, key: str = "k") -> dict[str, Any]:
    reply = await server.ask("GET", f"/v2/flowControl/{key}")
    assert reply.status == 200, reply
    return dict(reply.json)


async def post(server: Application, path: str, key: str = "k") -> Reply:
    return await server.ask("POST", f"/v2/flowControl/{key}/{path}")


async def changed(server: Application, path: str, key: str = "k") -> dict[str, Any]:
    """Change a key; how it stands then."""
    reply = await post(server, path, key)
    assert (reply.status, reply.json) == (200, {})
    return await state(server, key)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("parallelism=5, rate=10, period=1m", {"parallelism": 5, "rate": 10, "period": 60}),
        ("period=1h30m3s,rate=10,parallelism=5", {"parallelism": 5, "rate": 10, "period": 5403}),
        ("rate=3", {"rate": 3, "period": 1}),
        ("parallelism=3", {"parallelism": 3, "period": 1}),
        ("rate=1,period=2", {"rate": 1, "period": 2}),
        ("rate=1,period=1d", {"rate": 1, "period": 86_400}),
    ],
)
async def test_a_message_is_shown_with_its_key_and_limits(
    server: Application, value: str, shown: dict[str, int]
) -> None:
    """W63, W65-W67: in messages, in the log and in dead letters."""
    server.receiver.answers(500)
    sent = await server.accepted(header=limited(value) | {"Upstash-Retries": "0"})
    dead_letter = await server.dead_letter(sent)

    for view in (await server.message(sent), *await server.log(sent), dead_letter):
        fields = ("flowControlKey", "parallelism", "rate", "period")
        assert {name: view[name] for name in fields if name in view} == {
            "flowControlKey": "k",
            **shown,
        }


async def test_query_parameters_say_the_same(server: Application) -> None:
    """W63: and a value is no part of the destination."""
    query = "?upstash-flow-control-key=k&upstash-flow-control-value=rate%3D2%2C%20period%3D5s&a=b"
    sent = await server.accepted(server.receiver.url + query)

    message = await server.message(sent)
    assert (message["url"], message["rate"], message["period"]) == (
        server.receiver.url + "?a=b",
        2,
        5,
    )


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (limited("period=1s"), WRONG),
        (limited("rate"), WRONG),
        (limited("rate=1,rate=2"), WRONG),
        (limited("rate=0"), "Upstash-Flow-Control-Value: rate must be a whole number from 1"),
        (limited("rate=1,period=8d"), "Upstash-Flow-Control-Value: period must be from 1 to"),
        (limited("rate=1", "a" * 256), "Upstash-Flow-Control-Key: the key is longer"),
        (
            {"Upstash-Flow-Control-Key": "k"},
            "Upstash-Flow-Control-Key needs Upstash-Flow-Control-Value beside it",
        ),
        (
            {"Upstash-Flow-Control-Value": "rate=1"},
            "Upstash-Flow-Control-Value needs Upstash-Flow-Control-Key beside it",
        ),
        (
            {
                "Upstash-Callback": "https://a.example",
                "Upstash-Callback-Flow-Control-Key": "k",
                "Upstash-Callback-Flow-Control-Value": "rate=no",
            },
            "Upstash-Callback-Flow-Control-Value: rate must be",
        ),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_kept(
    server: Application, header: dict[str, str], error: str
) -> None:
    """W64, W4: in the documented words where there is neither a rate nor a parallelism."""
    reply = await server.publish(header=header)

    assert reply.status == 400
    if error == WRONG:
        assert reply.json == {"error": WRONG}
    assert reply.json["error"].startswith(error)
    assert (await server.ask("GET", "/v2/flowControl")).json == []


async def test_a_key_is_there_right_after_the_publish_with_all_its_fields(
    server: Application,
) -> None:
    """W203, W204."""
    await server.accepted(header=limited("parallelism=3, rate=5, period=20"))

    reply = await state(server)

    assert reply == {
        "flowControlKey": "k",
        "waitListSize": 0,
        "parallelismMax": 3,
        "parallelismCount": reply["parallelismCount"],
        "rateMax": 5,
        "rateCount": 1,
        "ratePeriod": 20,
        "ratePeriodStart": T0 // 1000,
        "isPaused": False,
        "isPinnedParallelism": False,
        "isPinnedRate": False,
    }
    assert reply["parallelismCount"] in {0, 1}


async def test_a_limit_that_is_not_set_is_zero(server: Application) -> None:
    """W204: eleven fields, whatever was asked for."""
    await server.accepted(header=limited("parallelism=1"))
    await server.accepted(header=limited("rate=1", "other"))

    assert (await state(server))["rateMax"] == 0
    assert (await state(server, "other"))["parallelismMax"] == 0
    assert len(await state(server)) == len(await state(server, "other")) == 11


async def test_keys_are_listed_and_searched(server: Application) -> None:
    """W205: a bare array, by name; what is searched for is a part of it."""
    assert (await server.ask("GET", "/v2/flowControl/")).json == []
    for key in ("mail-b", "mail-a", "else"):
        await server.accepted(header=limited("rate=1", key))

    async def names(query: str) -> list[str]:
        reply = await server.ask("GET", f"/v2/flowControl{query}")
        assert reply.status == 200
        return [one["flowControlKey"] for one in reply.json]

    assert await names("") == ["else", "mail-a", "mail-b"]
    assert await names("/?search=mail") == ["mail-a", "mail-b"]
    assert await names("?search=nothing") == []
    reply = await server.ask("GET", "/v2/flowControl?find=mail")
    assert (reply.status, reply.json) == (400, {"error": "there is no query parameter find"})


async def test_the_list_says_of_a_key_what_it_says_by_itself(server: Application) -> None:
    """W203, W205: what is in flight, and what waits for a permit and not for its time."""
    server.receiver.hold()
    for _ in range(3):
        await server.accepted(header=limited("parallelism=1"))
    await server.accepted(header=limited("parallelism=1") | {"Upstash-Delay": "1h"})
    await server.receiver.first(1)

    [listed] = (await server.ask("GET", "/v2/flowControl")).json

    assert listed == await state(server)
    assert (listed["parallelismCount"], listed["waitListSize"]) == (1, 2)


@pytest.mark.parametrize("key", ["a-b_c.d~", "user:1@x,y;z=1+1!$&'()*", "U s e r/ä?#%"])
async def test_a_key_may_have_any_characters(server: Application, key: str) -> None:
    """W227: those that are safe in a URL also as they are."""
    header = [
        ("Upstash-Flow-Control-Key", key),
        ("Upstash-Flow-Control-Value", "rate=1"),
    ]
    await server.accepted(header=header)

    assert (await state(server, quote(key, safe="")))["flowControlKey"] == key
    if key.isascii() and " " not in key:
        assert (await state(server, key))["flowControlKey"] == key


async def test_a_key_that_is_not_there(server: Application) -> None:
    """W206."""
    reply = await server.ask("GET", "/v2/flowControl/nobody")
    assert (reply.status, reply.json) == (404, {"error": "flow control key nobody not found"})

    for action in ("pause", "resume", "pin?rate=1", "unpin?rate=true", "resetRate", "reset"):
        reply = await post(server, action, "nobody")
        assert (reply.status, reply.json) == (400, {"error": "flow control key nobody not found"})
    assert (await post(server, "else", "nobody")).status == 404


async def test_a_paused_key_holds_what_comes_and_lets_it_go_when_it_is_resumed(
    server: Application,
) -> None:
    """W207, W214: over restarts of the window too, and the log says CREATED alone (A38)."""
    await server.accepted(header=limited("parallelism=3"))
    await server.receiver.first(1)
    assert (await changed(server, "pause"))["isPaused"] is True
    sent = [await server.accepted(header=limited("parallelism=3")) for _ in range(2)]
    free = await server.accepted()
    await server.logged(free, "DELIVERED")
    server.clock.advance(5 * SECOND)

    assert [await server.states(one) for one in sent] == [["CREATED"]] * 2
    assert (await state(server))["waitListSize"] == 2
    assert (await changed(server, "resume"))["isPaused"] is False
    for one in sent:
        assert await server.logged(one, "DELIVERED") == ["CREATED", "ACTIVE", "DELIVERED"]


async def test_pins_hold_and_are_taken_out_one_by_one(server: Application) -> None:
    """W208, W209."""
    await server.accepted(header=limited("parallelism=1,rate=1"))
    pinned = await changed(server, "pin?parallelism=3&rate=20&period=120")
    expected = {
        "parallelismMax": 3,
        "rateMax": 20,
        "ratePeriod": 120,
        "isPinnedParallelism": True,
        "isPinnedRate": True,
    }
    assert {name: pinned[name] for name in expected} == expected

    await server.accepted(header=limited("parallelism=7,rate=8,period=9"))
    held = await state(server)
    assert {name: held[name] for name in expected} == expected

    freed = await changed(server, "unpin?parallelism=true")
    assert {name: freed[name] for name in expected} == expected | {"isPinnedParallelism": False}
    await server.accepted(header=limited("parallelism=7,rate=8,period=9"))
    half = await state(server)
    assert (half["parallelismMax"], half["rateMax"], half["ratePeriod"]) == (7, 20, 120)

    await changed(server, "unpin?rate=true")
    await server.accepted(header=limited("parallelism=7,rate=8,period=9"))
    both = await state(server)
    assert (both["rateMax"], both["ratePeriod"], both["isPinnedRate"]) == (8, 9, False)

    await changed(server, "pin?parallelism=3&rate=20")
    freed = await changed(server, "unpin?rate=true")
    assert (freed["isPinnedParallelism"], freed["isPinnedRate"]) == (True, False)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("pin", "there is nothing to pin"),
        ("pin?parallelism=0", "parallelism must be a whole number"),
        ("pin?rate=1.5", "rate must be a whole number"),
        ("pin?rate=1&period=0", "period must be"),
        ("pin?rate=1&period=604801", "period must be from 1 to 604800 seconds"),
        ("pin?parallelism=1&parallelism=2", "parallelism is given more than once"),
        ("pin?size=1", "there is no query parameter size"),
        ("unpin?rate=maybe", "rate is neither true nor false"),
        ("unpin?period=true", "there is no query parameter period"),
    ],
)
async def test_what_is_wrong_with_a_pin_is_named(server: Application, path: str, text: str) -> None:
    """W208, W4: and nothing is changed."""
    await server.accepted(header=limited("parallelism=5"))
    before = await state(server) | {"parallelismCount": 0}

    reply = await post(server, path)

    assert reply.status == 400
    assert text in reply.json["error"]
    assert await state(server) | {"parallelismCount": 0} == before


@pytest.mark.parametrize("action", ["resetRate", "reset"])
async def test_a_rate_that_is_reset_begins_a_window_at_once(
    server: Application, action: str
) -> None:
    """W210."""
    for _ in range(3):
        await server.accepted(header=limited("rate=2,period=1h"))
    await server.receiver.first(2)
    server.clock.advance(7 * SECOND)
    assert (await state(server))["rateCount"] == 2

    reply = await post(server, action)

    assert reply.status == 200
    await server.receiver.first(3)
    after = await state(server)
    assert (after["rateCount"], after["ratePeriodStart"]) == (1, T0 // 1000 + 7)
    assert (await changed(server, action))["rateCount"] == 0


async def test_the_parallelism_of_all_is_two_numbers(server: Application) -> None:
    """W211."""
    server.receiver.hold()
    await server.accepted()
    await server.receiver.first(1)

    reply = await server.ask("GET", "/v2/globalParallelism")

    assert (reply.status, reply.json) == (
        200,
        {"parallelismMax": SETTINGS.in_flight_max, "parallelismCount": 1},
    )


async def test_in_each_period_no_more_go_than_the_rate(server: Application) -> None:
    """W212: the period begins with the first; retries count."""
    server.receiver.answers_once(500)
    header = limited("rate=2,period=10s") | {"Upstash-Retry-Delay": "0"}
    sent = [await server.accepted(header=header) for _ in range(4)]
    bystander = await server.accepted()
    await server.logged(bystander, "DELIVERED")

    for count in (2, 4):
        await server.receiver.first(count + 1)
        assert (await state(server))["rateCount"] == 2
        server.clock.advance(10 * SECOND - 1)
        await server.logged(await server.accepted(), "DELIVERED")
        server.receiver.received.pop()
        assert len(server.receiver.received) == count + 1
        server.clock.advance(1)
    for one in sent:
        await server.logged(one, "DELIVERED")
    assert len(server.receiver.received) == 6


async def test_a_window_begins_with_its_first_and_not_with_its_last(server: Application) -> None:
    """W212: what goes in the middle of it does not put off its end."""
    header = limited("rate=2,period=10")
    await server.logged(await server.accepted(header=header), "DELIVERED")
    server.clock.advance(9 * SECOND)
    await server.logged(await server.accepted(header=header), "DELIVERED")
    third = await server.accepted(header=header)
    assert (await state(server))["ratePeriodStart"] == T0 // 1000
    assert await server.states(third) == ["CREATED"]

    server.clock.advance(SECOND)

    await server.logged(third, "DELIVERED")


async def test_a_message_in_flight_that_is_cancelled_keeps_its_permit_until_it_ends(
    server: Application,
) -> None:
    """W99, W213."""
    server.receiver.hold()
    first, second = [await server.accepted(header=limited("parallelism=1")) for _ in range(2)]
    await server.receiver.first(1)

    assert (await server.ask("DELETE", f"/v2/messages/{first}")).status == 200
    stands = await state(server)
    assert (stands["parallelismCount"], stands["waitListSize"]) == (1, 1)
    server.receiver.let_go()

    await server.logged(second, "DELIVERED")


async def test_with_a_queue_and_a_key_both_hold(server: Application) -> None:
    """W213: in the order of the queue, and as the key allows."""
    server.receiver.hold()
    alone = await server.accepted(header=limited("parallelism=1"))
    await server.receiver.first(1)
    header = limited("parallelism=1") | {"Upstash-Queue-Name": "q"}
    queued = [await server.accepted(header=header) for _ in range(3)]
    assert [await server.states(one) for one in queued] == [["CREATED"]] * 3

    server.receiver.let_go()

    for one in queued:
        await server.logged(one, "DELIVERED")
    received = [one.header["Upstash-Message-Id"] for one in server.receiver.received]
    assert received == [alone, *queued]


async def test_callbacks_have_a_key_of_their_own(server: Application) -> None:
    """W213, W200: and hold the message's own for nobody."""
    header = limited("parallelism=1") | {
        "Upstash-Callback": server.receiver.url + "/told",
        "Upstash-Callback-Flow-Control-Key": "told",
        "Upstash-Callback-Flow-Control-Value": "parallelism=2,rate=3",
    }
    sent = await server.accepted(header=header)
    await server.receiver.first(2)

    told = await state(server, "told")
    assert (told["parallelismMax"], told["rateMax"], told["rateCount"]) == (2, 3, 1)
    entries = [entry for entry in await server.log() if entry["messageId"] != sent]
    assert {entry["flowControlKey"] for entry in entries} == {"told"}


async def test_each_message_of_a_group_has_the_key(server: Application) -> None:
    """W213, W91."""
    url = server.receiver.url
    told = b'{"endpoints": [{"url": "%b/a"}, {"url": "%b/b"}]}' % (url.encode(), url.encode())
    await server.ask("POST", "/v2/topics/g/endpoints", body=told)
    server.receiver.hold()

    reply = await server.publish("g", header=limited("parallelism=1"))
    await server.receiver.first(1)

    assert len(reply.json) == 2
    stands = await state(server)
    assert (stands["parallelismCount"], stands["waitListSize"]) == (1, 1)


async def test_keys_of_another_tenant_are_out_of_reach(server: Application) -> None:
    """W11."""
    await server.accepted(header=limited("rate=1"))
    other = DEV_USERS[1].token

    assert (await server.ask("GET", "/v2/flowControl", token=other)).json == []
    for method, path, status in (("GET", "", 404), ("POST", "/pause", 400)):
        reply = await server.ask(method, f"/v2/flowControl/k{path}", token=other)
        assert reply.status == status
    assert (await state(server))["isPaused"] is False


# At the receiver, in real time.

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def in_real_time(handle: Handle) -> AsyncIterator[tuple[Application, str]]:
    """A server whose clock is the system's, and the URL of a destination."""
    runner = web.ServerRunner(web.Server(handle), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        async with (
            receiving() as receiver,
            ClientSession() as client,
            assembly.running(SETTINGS, dev=True) as server,
        ):
            yield (
                Application(
                    server=server,
                    client=client,
                    receiver=receiver,
                    clock=SettableClock(),
                    token=DEV_USERS[0].token,
                ),
                f"http://{host}:{port}/",
            )
    finally:
        await runner.cleanup()


async def all_delivered(server: Application, sent: list[str]) -> None:
    for one in sent:
        await server.logged(one, "DELIVERED")


async def test_a_receiver_under_load_never_has_more_at_once_than_the_parallelism() -> None:
    """W213: and it always has as many while there are more; failures and retries included."""
    count, inside, most, arrived = 60, 0, 0, 0
    full = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal inside, most, arrived
        inside, arrived = inside + 1, arrived + 1
        most = max(most, inside)
        if inside == 3:
            full.set()
        if arrived < count:
            await full.wait()  # for three to be here: what is allowed is also used
            for _ in range(20):
                await asyncio.sleep(0)
        inside -= 1
        if inside < 2:
            full.clear()
        retried = request.headers["Upstash-Retried"] != "0"
        return web.Response(status=200 if retried or arrived % 5 else 500)

    async with in_real_time(handle) as (server, url):
        header = limited("parallelism=3") | {"Upstash-Retry-Delay": "0"}
        sent = await asyncio.gather(*[server.accepted(url, header=header) for _ in range(count)])
        await all_delivered(server, sent)
        assert (await state(server))["parallelismCount"] == 0

    assert arrived > count
    assert most == 3


async def test_a_receiver_under_load_gets_no_more_than_the_rate_allows() -> None:
    """W212: in any second at most twice the rate, and by the log no more than it (D26)."""
    count, rate = 60, 20
    loop = asyncio.get_running_loop()
    arrived_s: list[float] = []

    async def handle(_request: web.BaseRequest) -> web.StreamResponse:
        arrived_s.append(loop.time())
        return web.Response()

    async with in_real_time(handle) as (server, url):
        header = limited(f"rate={rate}, period=1")
        sent = await asyncio.gather(*[server.accepted(url, header=header) for _ in range(count)])
        await all_delivered(server, sent)
        log = [entry for one in sent for entry in await server.log(one)]

    for at_s in arrived_s:
        assert sum(at_s <= other_s < at_s + 1 for other_s in arrived_s) <= 2 * rate
    active_ms = sorted(entry["time"] for entry in log if entry["state"] == "ACTIVE")
    windows = []
    while active_ms:
        window = [at_ms for at_ms in active_ms if at_ms < active_ms[0] + SECOND]
        windows.append(len(window))
        active_ms = active_ms[len(window) :]
    assert windows == [rate] * (count // rate)


async def test_a_window_that_ends_lets_the_next_go_without_anything_happening() -> None:
    """W212: nobody has to ask."""
    async with serving() as server:
        sent = [await server.accepted(header=limited("rate=1,period=5")) for _ in range(2)]
        await server.logged(sent[0], "DELIVERED")
        server.clock.advance(5 * SECOND)

        async def there() -> bool | None:
            return len(server.receiver.received) == 2 or None

        assert await until(there)
