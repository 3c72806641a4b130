"""Schedules, over HTTP, to an assembled server (contract section 8)."""

import asyncio
import base64
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from msgspec.structs import replace

from tests.support.application import (
    HOUR,
    MINUTE,
    SECOND,
    SETTINGS,
    T0,
    Application,
    Reply,
    person,
    serving,
    until,
)
from waypost import assembly

URL = "https://example.com/hook"
NEXT_MINUTE = T0 - T0 % MINUTE + MINUTE


async def ask(
    server: Application,
    destination: str = URL,
    *,
    cron: str | None = "* * * * *",
    path: str = "/v2/schedules/",
    header: dict[str, str] | None = None,
    **more: Any,
) -> Reply:
    fields = {} if cron is None else {"Upstash-Cron": cron}
    return await server.ask("POST", path + destination, header=fields | (header or {}), **more)


async def made(server: Application, destination: str = URL, **more: Any) -> str:
    """Make a schedule; its id."""
    reply = await ask(server, destination, **more)
    assert reply.status == 200, reply
    assert list(reply.json) == ["scheduleId"]
    return str(reply.json["scheduleId"])


async def shown(server: Application, schedule_id: str, **more: Any) -> dict[str, Any]:
    reply = await server.ask("GET", f"/v2/schedules/{schedule_id}", **more)
    assert reply.status == 200, reply
    return dict(reply.json)


async def listed(server: Application, **more: Any) -> list[dict[str, Any]]:
    reply = await server.ask("GET", "/v2/schedules", **more)
    assert reply.status == 200, reply
    return list(reply.json)


async def fired(server: Application, schedule_id: str, at_ms: int) -> dict[str, Any]:
    """Wait until a schedule has fired at that time; the schedule."""

    async def there() -> dict[str, Any] | None:
        schedule = await shown(server, schedule_id)
        return schedule if schedule.get("lastScheduleTime") == at_ms else None

    return await until(there)


async def test_a_schedule_is_made_listed_and_got(server: Application) -> None:
    """W118, W119, W124, W128, W134: the cron is trimmed, the times are milliseconds."""
    schedule_id = await made(server, cron=" */10 * * * * ", body=b"hello")

    assert schedule_id.startswith("scd_")
    expected = {
        "scheduleId": schedule_id,
        "cron": "*/10 * * * *",
        "destination": URL,
        "method": "POST",
        "createdAt": T0,
        "retries": 3,
        "isPaused": False,
        "header": {},
        "timeout": 900,
        "body": "hello",
        "callerIP": "127.0.0.1",
        "callerIp": "127.0.0.1",
        "nextScheduleTime": T0 - T0 % (10 * MINUTE) + 10 * MINUTE,
    }
    assert await shown(server, schedule_id) == expected
    assert await listed(server) == [expected]


async def test_blanks_around_a_cron_of_the_query_are_not_kept(server: Application) -> None:
    """W119: those of a header field are none of its value."""
    schedule_id = await made(server, f"{URL}?upstash-cron=%20*/10%20*%20*%20*%20*%20", cron=None)

    assert (await shown(server, schedule_id))["cron"] == "*/10 * * * *"


@pytest.mark.parametrize(
    "destination", ["https://example.com", "https://example.com/", "https://example.com/a?b=c%20d"]
)
async def test_a_destination_is_shown_as_it_was_given(
    server: Application, destination: str
) -> None:
    """W118: in whatever case the path was written (W6), and without what configures."""
    asked = destination + ("&" if "?" in destination else "?") + "upstash-retries=5"
    schedule_id = await made(server, asked, path="/v2/Schedules/")

    schedule = await shown(server, schedule_id)
    assert (schedule["destination"], schedule["retries"]) == (destination, 5)


async def test_there_may_be_no_schedules(server: Application) -> None:
    """W126: a bare array."""
    for path in ("/v2/schedules", "/v2/schedules/"):
        reply = await server.ask("GET", path)
        assert (reply.status, reply.json) == (200, [])


async def test_every_value_of_a_header_is_kept_and_shown(server: Application) -> None:
    """W129: in their order."""
    header = [("Upstash-Cron", "* * * * *"), *(("Upstash-Forward-X", text) for text in "ba")]

    reply = await server.ask("POST", f"/v2/schedules/{URL}", header=header)

    assert (await shown(server, reply.json["scheduleId"]))["header"] == {"X": ["b", "a"]}


async def test_every_publish_header_is_kept_and_shown(server: Application) -> None:
    """W123, W129, W130: the delay in seconds, the header as a map of lists."""
    header = {
        "Content-Type": "application/json",
        "Upstash-Forward-Test-Header": "test-value",
        "Upstash-Forward-Bypass-Tunnel-Reminder": "client-test",
        "Upstash-Method": "PUT",
        "Upstash-Delay": "1m30s",
        "Upstash-Timeout": "90s",
        "Upstash-Retries": "5",
        "Upstash-Retry-Delay": "1000 * (1 + retried)",
        "Upstash-Callback": "https://me.example/done",
        "Upstash-Callback-Forward-X": "y",
        "Upstash-Failure-Callback": "https://me.example/failed",
        "Upstash-Queue-Name": "mail",
        "Upstash-Label": "one,two",
        "Upstash-Flow-Control-Key": "k",
        "Upstash-Flow-Control-Value": "parallelism=2, rate=5, period=1d",
        "Upstash-Schedule-Id": "_nightly-1",
    }

    assert await made(server, header=header, body=b"\xff\x00") == "_nightly-1"

    schedule = await shown(server, "_nightly-1")
    expected = {
        "header": {
            "Content-Type": ["application/json"],
            "Test-Header": ["test-value"],
            "Bypass-Tunnel-Reminder": ["client-test"],
        },
        "method": "PUT",
        "delay": 90,
        "timeout": 90,
        "retries": 5,
        "retryDelayExpression": "1000 * (1 + retried)",
        "callback": "https://me.example/done",
        "callbackHeader": {"X": ["y"]},
        "failureCallback": "https://me.example/failed",
        "queueName": "mail",
        "label": "one",
        "labels": ["one", "two"],
        "flowControlKey": "k",
        "parallelism": 2,
        "rate": 5,
        "period": 86_400,
        "bodyBase64": base64.b64encode(b"\xff\x00").decode(),
    }
    assert {name: schedule.get(name) for name in expected} == expected
    assert "body" not in schedule


async def test_parallelism_alone_has_a_period_and_no_rate(server: Application) -> None:
    """W130."""
    header = {"Upstash-Flow-Control-Key": "k", "Upstash-Flow-Control-Value": "parallelism=2"}

    schedule = await shown(server, await made(server, header=header))

    assert (schedule["parallelism"], schedule["period"], "rate" in schedule) == (2, 1, False)


async def test_what_is_redacted_is_hidden_and_still_delivered(server: Application) -> None:
    """W73."""
    header = {"Upstash-Redact-Fields": "body,header[X]", "Upstash-Forward-X": "secret"}
    schedule_id = await made(server, server.receiver.url, header=header, body=b"hidden")

    for schedule in (await shown(server, schedule_id), *await listed(server)):
        assert schedule["body"].startswith("REDACTED:")
        assert schedule["header"]["X"][0].startswith("REDACTED:")
    server.clock.advance(MINUTE)
    [received] = await server.receiver.first(1)
    assert (received.body, received.header["X"]) == (b"hidden", "secret")


async def test_an_id_that_is_there_is_overwritten_whole(server: Application) -> None:
    """W122: it keeps its age, and is not paused any more (A47)."""
    header = {"Upstash-Schedule-Id": "s"}
    full = header | {"Upstash-Delay": "10s", "Upstash-Label": "x", "Upstash-Queue-Name": "q"}
    await made(server, header=full, body=b"hello")
    await server.ask("PATCH", "/v2/schedules/s/pause")
    server.clock.advance(5 * SECOND)

    assert await made(server, "https://other.example", cron="@daily", header=header) == "s"

    [schedule] = await listed(server)
    assert schedule["destination"] == "https://other.example"
    assert (schedule["createdAt"], schedule["isPaused"]) == (T0, False)
    assert not {"body", "delay", "label", "labels", "queueName"} & set(schedule)


@pytest.mark.parametrize("method", ["PATCH", "POST"])
async def test_a_schedule_is_paused_and_resumed(server: Application, method: str) -> None:
    """W124, W125, W134: twice is as good as once, and the next time goes on meanwhile."""
    schedule_id = await made(server, server.receiver.url)

    for _ in range(2):
        reply = await server.ask(method, f"/v2/schedules/{schedule_id}/pause")
        assert reply.status == 200
        assert (await shown(server, schedule_id))["isPaused"] is True
    server.clock.advance(3 * MINUTE)
    schedule = await shown(server, schedule_id)
    assert schedule["nextScheduleTime"] == NEXT_MINUTE + 3 * MINUTE
    for _ in range(2):
        reply = await server.ask(method, f"/v2/schedules/{schedule_id}/resume")
        assert reply.status == 200
        assert (await shown(server, schedule_id))["isPaused"] is False
    server.clock.advance(MINUTE)

    schedule = await fired(server, schedule_id, NEXT_MINUTE + 3 * MINUTE)
    await server.receiver.first(1)
    assert len(await server.log()) <= 3  # of one message
    assert len(schedule["lastScheduleStates"]) == 1


async def test_a_schedule_is_deleted_and_what_it_made_stays(server: Application) -> None:
    """W127, W135: it is no fault that there is none."""
    header = {"Upstash-Delay": "1h"}
    schedule_id = await made(server, server.receiver.url, header=header)
    server.clock.advance(MINUTE)
    [message_id] = (await fired(server, schedule_id, NEXT_MINUTE))["lastScheduleStates"]

    for _ in range(2):
        assert (await server.ask("DELETE", f"/v2/schedules/{schedule_id}")).status == 200

    assert await listed(server) == []
    reply = await server.ask("GET", f"/v2/schedules/{schedule_id}")
    assert (reply.status, reply.json) == (404, {"error": f"schedule {schedule_id} not found"})
    assert (await server.message(message_id))["scheduleId"] == schedule_id
    server.clock.advance(HOUR)
    assert (await server.receiver.first(1))[0].header["Upstash-Message-Id"] == message_id


async def test_many_are_deleted_at_once(server: Application) -> None:
    """W127, W226."""
    ids = await asyncio.gather(*(made(server) for _ in range(20)))

    replies = await asyncio.gather(
        *(server.ask("DELETE", f"/v2/schedules/{schedule_id}") for schedule_id in ids * 2)
    )

    assert {reply.status for reply in replies} == {200}
    assert await listed(server) == []


@pytest.mark.parametrize("action", ["pause", "resume"])
async def test_an_unknown_schedule_cannot_be_changed(server: Application, action: str) -> None:
    """W125."""
    for method in ("PATCH", "POST"):
        reply = await server.ask(method, f"/v2/schedules/none/{action}")
        assert (reply.status, reply.json) == (404, {"error": "schedule none not found"})


async def test_a_run_is_delivered_with_the_schedules_id(server: Application) -> None:
    """W132, W134: and its message, its log, and its callback name the schedule."""
    header = {
        "Upstash-Schedule-Id": "s",
        "Upstash-Forward-Upstash-Schedule-Id": "forged",
        "Upstash-Callback": server.receiver.url + "/told",
        "Content-Type": "text/plain",
    }
    await made(server, server.receiver.url + "/run", header=header, body=b"hello")
    server.receiver.hold()

    server.clock.advance(MINUTE)
    schedule = await fired(server, "s", NEXT_MINUTE)
    [(message_id, state)] = schedule["lastScheduleStates"].items()
    assert state == "IN_PROGRESS"
    assert schedule["nextScheduleTime"] == NEXT_MINUTE + MINUTE
    server.receiver.let_go()

    run, told = await server.receiver.first(2)
    assert (run.target, run.body) == ("/hook/run", b"hello")
    assert run.header.getall("Upstash-Schedule-Id") == ["s"]
    assert run.header["Upstash-Message-Id"] == message_id
    assert run.header["Upstash-Caller-Ip"] == "127.0.0.1"
    assert run.header["Content-Type"] == "text/plain"
    assert b'"scheduleId":"s"' in told.body
    assert (await server.message(message_id))["scheduleId"] == "s"
    await server.logged(message_id, "DELIVERED")
    assert {entry["scheduleId"] for entry in await server.log(message_id)} == {"s"}
    assert (await shown(server, "s"))["lastScheduleStates"] == {message_id: "SUCCESS"}


async def test_a_run_that_fails_is_in_the_dead_letters_with_the_schedules_id(
    server: Application,
) -> None:
    """W134."""
    server.receiver.answers(500)
    header = {"Upstash-Schedule-Id": "s", "Upstash-Retries": "0"}
    await made(server, server.receiver.url, header=header)

    server.clock.advance(MINUTE)
    [message_id] = (await fired(server, "s", NEXT_MINUTE))["lastScheduleStates"]

    assert (await server.dead_letter(message_id))["scheduleId"] == "s"
    assert (await shown(server, "s"))["lastScheduleStates"] == {message_id: "FAIL"}


async def test_a_run_to_a_group_reaches_each_of_its_endpoints(server: Application) -> None:
    """W133: as they are then."""
    for path in ("/a", "/b"):
        body = b'{"endpoints":[{"url":"%b"}]}' % (server.receiver.url + path).encode()
        await server.ask("POST", "/v2/topics/g/endpoints", body=body)
        if path == "/a":
            schedule_id = await made(server, "g")

    server.clock.advance(MINUTE)

    received = await server.receiver.first(2)
    assert {one.target for one in received} == {"/hook/a", "/hook/b"}
    assert {one.header["Upstash-Topic-Name"] for one in received} == {"g"}
    assert {one.header["Upstash-Schedule-Id"] for one in received} == {schedule_id}
    schedule = await fired(server, schedule_id, NEXT_MINUTE)
    assert schedule["destination"] == "g"
    assert len(schedule["lastScheduleStates"]) == 2


async def test_a_run_that_cannot_be_made_says_why(server: Application) -> None:
    body = b'{"endpoints":[{"url":"https://a.example"}]}'
    await server.ask("POST", "/v2/topics/g/endpoints", body=body)
    schedule_id = await made(server, "g")
    await server.ask("DELETE", "/v2/topics/g")

    server.clock.advance(MINUTE)

    schedule = await fired(server, schedule_id, NEXT_MINUTE)
    assert schedule["error"] == "topic g not found"
    assert schedule["nextScheduleTime"] == NEXT_MINUTE + MINUTE
    assert "lastScheduleStates" not in schedule


async def test_runs_count_as_messages_of_the_day_and_one_that_is_over_fails() -> None:
    settings = replace(SETTINGS, messages_per_day_max=2)
    async with serving(settings) as server:
        schedule_id = await made(server, server.receiver.url)
        for at in range(2):
            server.clock.advance(MINUTE)
            await fired(server, schedule_id, NEXT_MINUTE + at * MINUTE)
        over = await server.publish()
        server.clock.advance(MINUTE)
        schedule = await fired(server, schedule_id, NEXT_MINUTE + 2 * MINUTE)
        messages = {entry["messageId"] for entry in await server.log()}

    assert over.status == 429
    assert schedule["error"] == "more than 2 messages a day"
    assert len(messages) == 2


async def test_a_run_joins_its_queue_and_leaves_it_as_it_is(server: Application) -> None:
    """W131."""
    told = b'{"queueName":"mail","parallelism":5}'
    assert (await server.ask("POST", "/v2/queues", body=told)).status == 200
    await made(server, server.receiver.url, header={"Upstash-Queue-Name": "mail"})

    server.clock.advance(MINUTE)

    await server.receiver.first(1)
    [entry, *_] = await server.log()
    assert entry["queueName"] == "mail"
    assert (await server.ask("GET", "/v2/queues/mail")).json["parallelism"] == 5


async def test_a_schedule_speaks_of_its_zone_through_clock_changes() -> None:
    """W120: four in the morning is four in the morning."""
    zone = ZoneInfo("America/New_York")
    start = datetime(2026, 3, 7, 12, tzinfo=zone)  # the clocks go ahead that night
    async with serving(now_ms=int(start.timestamp() * 1000)) as server:
        text = "CRON_TZ=America/New_York 0 4 * * *"
        schedule = await shown(server, await made(server, cron=text))

    assert schedule["cron"] == text
    after = datetime.fromtimestamp(schedule["nextScheduleTime"] / 1000, zone)
    assert after.isoformat() == "2026-03-08T04:00:00-04:00"
    assert schedule["nextScheduleTime"] - int(start.timestamp() * 1000) == 15 * HOUR


@pytest.mark.parametrize(
    ("now", "cron", "then"),
    [
        ("2026-03-08T01:00:00-05:00", "30 2 * * *", "2026-03-08T03:00:00-04:00"),  # skipped
        ("2026-03-08T01:00:00-05:00", "*/30 * * * *", "2026-03-08T01:30:00-05:00"),
        ("2026-11-01T01:00:00-04:00", "30 1 * * *", "2026-11-01T01:30:00-04:00"),  # comes twice
        ("2026-11-01T01:30:00-04:00", "30 1 * * *", "2026-11-02T01:30:00-05:00"),
        ("2026-11-01T01:30:00-04:00", "30 * * * *", "2026-11-01T01:30:00-05:00"),
    ],
)
async def test_a_time_that_is_skipped_or_comes_twice_fires_once(
    now: str, cron: str, then: str
) -> None:
    """W120: as vixie cron has it; what follows the clock on the wall fires whenever it reads so."""
    async with serving(now_ms=int(datetime.fromisoformat(now).timestamp() * 1000)) as server:
        schedule_id = await made(server, cron=f"CRON_TZ=America/New_York {cron}")
        next_ms = (await shown(server, schedule_id))["nextScheduleTime"]

    zone = ZoneInfo("America/New_York")
    assert datetime.fromtimestamp(next_ms / 1000, zone).isoformat() == then


@pytest.mark.parametrize(
    ("cron", "why"),
    [
        (None, "Upstash-Cron: a schedule needs one"),
        ("", "Upstash-Cron: a schedule needs one"),
        ("* * * *", "Upstash-Cron: there are 4 fields and not 5"),
        ("* * * * * *", "Upstash-Cron: there are 6 fields and not 5"),
        ("61 * * * *", "Upstash-Cron: Bad minute"),
        ("0 0 31 2 *", "Upstash-Cron: Bad day-of-month"),
        ("@every 5m", "Upstash-Cron: @every is not supported"),
        ("CRON_TZ=No/Where 0 4 * * *", "Upstash-Cron: there is no time zone 'No/Where'"),
    ],
)
async def test_a_wrong_cron_is_refused_by_name(
    server: Application, cron: str | None, why: str
) -> None:
    """W121."""
    reply = await ask(server, cron=cron)

    assert reply.status == 400
    assert reply.json["error"].startswith(why)
    assert await listed(server) == []


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"Upstash-Deduplication-Id": "x"}, "Upstash-Deduplication-Id: a schedule has none"),
        (
            {"Upstash-Content-Based-Deduplication": "true"},
            "Upstash-Content-Based-Deduplication: a schedule has none",
        ),
        ({"Upstash-Not-Before": "1700000000"}, "Upstash-Not-Before: a schedule has none"),
        ({"Upstash-Schedule-Id": "a/b"}, "Upstash-Schedule-Id: a name has"),
        ({"Upstash-Retries": "x"}, "Upstash-Retries: not a whole number"),
        ({"Upstash-Delay": "400d"}, "quota maxDelay exceeded"),
        ({"Upstash-Callback": "ftp://x"}, "Upstash-Callback: "),
    ],
)
async def test_what_a_run_could_not_have_is_refused_by_name(
    server: Application, header: dict[str, str], why: str
) -> None:
    """W118: D2."""
    reply = await ask(server, header=header)

    assert reply.status == 400
    assert reply.json["error"].startswith(why)
    assert await listed(server) == []


@pytest.mark.parametrize(
    ("destination", "status", "why"),
    [
        ("", 400, "a non-empty destination must be provided"),
        ("none", 404, "topic none not found"),
        ("example.com", 400, "invalid destination url: endpoint has invalid scheme"),
        ("http://10.0.0.1/", 400, "invalid destination url: "),
        ("api/llm", 400, "api/llm is not configured"),
        ("api/none", 400, "there is no API named api/none"),
    ],
)
async def test_a_destination_that_no_run_could_have_is_refused(
    server: Application, destination: str, status: int, why: str
) -> None:
    """W118."""
    reply = await ask(server, destination)

    assert reply.status == status
    assert reply.json["error"].startswith(why)


@pytest.mark.parametrize("queue", [None, "mail"])
async def test_a_publish_with_a_cron_makes_a_schedule(
    server: Application, queue: str | None
) -> None:
    """W136: and so does an enqueue, by header or by parameter."""
    path = "/v2/publish/" if queue is None else f"/v2/enqueue/{queue}/"

    first = await made(server, path=path, body=b"hello")
    second = await made(server, URL + "?upstash-cron=@daily&a=b", cron=None, path=path)

    schedule = await shown(server, first)
    assert (schedule["body"], schedule.get("queueName")) == ("hello", queue)
    schedule = await shown(server, second)
    assert (schedule["cron"], schedule["destination"]) == ("@daily", URL + "?a=b")
    assert await server.log() == []
    reply = await server.publish(URL, header={"Upstash-Schedule-Id": "s"})
    assert (reply.status, reply.json["error"][:13]) == (400, "Upstash-Cron:")


async def test_schedules_are_their_tenants_alone(tmp_path: Any) -> None:
    """W11."""
    settings = replace(SETTINGS, database=f"sqlite:///{tmp_path}/waypost.db")
    async with serving(settings) as server:
        other = await person(settings, "other")
        reader = await person(settings, "other", read_only=True, new=False)
        header = {"Upstash-Schedule-Id": "s"}
        await made(server, header=header)

        async def known() -> bool | None:
            reply = await server.ask("GET", "/v2/schedules", token=reader)
            return True if reply.status == 200 else None

        await until(known)
        assert await listed(server, token=other) == []
        assert (await server.ask("GET", "/v2/schedules/s", token=other)).status == 404
        assert (await server.ask("POST", "/v2/schedules/s/pause", token=other)).status == 404
        await made(server, "https://other.example", header=header, token=other)
        assert (await server.ask("DELETE", "/v2/schedules/s", token=other)).status == 200
        assert (await shown(server, "s"))["destination"] == URL
        for method, path in (
            ("POST", f"/v2/schedules/{URL}"),
            ("DELETE", "/v2/schedules/s"),
            ("PATCH", "/v2/schedules/s/pause"),
            ("POST", "/v2/schedules/s/resume"),
        ):
            reply = await server.ask(method, path, token=reader)
            assert reply.status == 403


async def test_schedules_go_on_after_a_restart_and_the_latest_missed_run_is_made(
    tmp_path: Any,
) -> None:
    """W118, W134: with the misfire rule that is the default."""
    settings = replace(SETTINGS, database=f"sqlite:///{tmp_path}/waypost.db")
    async with serving(settings) as server:
        header = {"Upstash-Schedule-Id": "s", "Upstash-Delay": "1h"}
        await made(server, server.receiver.url, header=header, body=b"hello")
        await made(server, header={"Upstash-Schedule-Id": "t"})
        await server.ask("PATCH", "/v2/schedules/t/pause")

    async with serving(settings, now_ms=T0 + 10 * MINUTE) as server:
        schedule = await fired(server, "s", NEXT_MINUTE + 9 * MINUTE)
        assert len(schedule["lastScheduleStates"]) == 1
        assert len(await server.log()) == 1
        assert (await shown(server, "t"))["isPaused"] is True
        assert "lastScheduleTime" not in await shown(server, "t")


async def test_the_schedules_of_a_tenant_who_was_revoked_fire_no_more(tmp_path: Any) -> None:
    settings = replace(SETTINGS, database=f"sqlite:///{tmp_path}/waypost.db")
    async with serving(settings) as server:
        token = await person(settings, "other")

        async def known() -> bool | None:
            reply = await server.ask("GET", "/v2/schedules", token=token)
            return True if reply.status == 200 else None

        await until(known)
        await made(server, server.receiver.url, token=token)
        ours = await made(server, server.receiver.url)
        async with assembly.open_people(settings) as people:
            await people.revoke_tenant("other")

        server.clock.advance(MINUTE)
        await fired(server, ours, NEXT_MINUTE)

        server.clock.advance(MINUTE)
        await fired(server, ours, NEXT_MINUTE + MINUTE)
        received = await server.receiver.first(2)
        assert {one.header["Upstash-Schedule-Id"] for one in received} == {ours}


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/v2/schedules/s", "DELETE, GET, HEAD, OPTIONS, POST"),
        ("DELETE", "/v2/schedules", "GET, HEAD, OPTIONS, POST"),
        ("GET", "/v2/schedules/s/pause", "OPTIONS, PATCH, POST"),
        ("PATCH", "/v2/schedules/https://example.com/a", "OPTIONS, POST"),
    ],
)
async def test_each_path_of_schedules_says_what_it_takes(
    server: Application, method: str, path: str, allow: str
) -> None:
    """W118: a destination is a path of its own."""
    reply = await server.ask(method, path)

    assert (reply.status, reply.header["Allow"]) == (405, allow)


async def test_a_destination_may_look_like_a_path_of_schedules(server: Application) -> None:
    """W118."""
    for path in ("/a/pause", "/resume", "/pause?x=/v2/schedules/s/pause"):
        schedule = await shown(server, await made(server, "https://example.com" + path))
        assert schedule["destination"] == "https://example.com" + path


async def test_there_are_only_so_many_schedules() -> None:
    """W118: and one that is there may still be overwritten."""
    async with serving(replace(SETTINGS, schedule_count_max=1)) as server:
        header = {"Upstash-Schedule-Id": "s"}
        await made(server, header=header)
        await made(server, header=header)

        reply = await ask(server)

        assert reply.status == 412
        assert reply.json == {"error": "quota maxSchedules exceeded, current limit: 1"}
