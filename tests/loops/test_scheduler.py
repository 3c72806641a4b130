"""The loop that fires schedules, by a clock that only the tests move."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from random import Random
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
from structlog.testing import capture_logs

from tests.store.bench import Bench
from tests.support.clock import SetClock
from tests.support.factory import DAY, HOUR, MINUTE, SECOND, T0
from waypost.domain import cron
from waypost.domain.errors import LimitReached, NotFound, StoreFull
from waypost.domain.message import Message
from waypost.domain.options import Limits
from waypost.domain.schedules import Rule, Schedule
from waypost.domain.url_groups import Endpoint, UrlGroup
from waypost.loops.scheduler import POLL_MS, Scheduler
from waypost.services import schedules as services
from waypost.services.publishing import Incoming, Publishing
from waypost.services.rates import Rates
from waypost.services.schedules import Schedules
from waypost.store.sqlite.store import MEMORY, SqliteStore
from waypost.telemetry import Telemetry

assert T0 % HOUR == 0
"""Tests begin at a full hour."""


class Rig:
    """A scheduler over a store in memory; its loop is stepped by hand."""

    def __init__(self, store: SqliteStore, *, rule: Rule, limits: Limits) -> None:
        self.store = store
        self.clock = SetClock()
        self.bench = Bench(store)
        self.telemetry = Telemetry()
        self.forbidden: set[str] = set()
        publishing = Publishing(
            store,
            store,
            self.clock,
            self.telemetry,
            limits=limits,
            births=self.bench.births,
            refusal_of_host=lambda host, _port, _tenant: (
                f"{host} is forbidden" if host in self.forbidden else None
            ),
            entropy=Random(0).getrandbits,
        )
        self.schedules = Schedules(
            store,
            store,
            publishing,
            self.clock,
            self.telemetry,
            limits=limits,
            rule=rule,
            births=self.bench.births,
            shown_bytes_max=1_000,
            entropy=Random(1).getrandbits,
        )
        self.scheduler = Scheduler(self.schedules, self.clock, self.telemetry)

    async def create(
        self,
        cron: str = "* * * * *",
        schedule_id: str = "s",
        *,
        destination: str = "https://example.com/hook",
        tenant: str = "acme",
        **fields: str,
    ) -> str:
        header = [
            (b"upstash-cron", cron.encode()),
            (b"upstash-schedule-id", schedule_id.encode()),
            *((f"upstash-{name.replace('_', '-')}".encode(), text.encode())
              for name, text in fields.items()),
        ]  # fmt: skip
        incoming = Incoming(
            destination=destination.encode(),
            query=b"",
            header=header,
            body=b"hello",
            caller_ip="192.0.2.7",
        )
        return await self.schedules.create(tenant, incoming)

    async def step(self, *, after_ms: int = 0) -> int:
        self.clock.go_on(after_ms)
        return await self.scheduler.step(self.clock.now_ms())

    async def steps(self, *, after_ms: int = 0) -> int:
        """Step until there is a rest; how many steps it took."""
        self.clock.go_on(after_ms)
        count = 1
        while await self.step() == 0:
            count += 1
            assert count < 200
        return count

    async def made(self, tenant: str = "acme") -> list[Message]:
        """Every message there is, the oldest first."""
        entries = await self.bench.log(tenant=tenant)
        return [entry.message for entry in entries if entry.state == "CREATED"]

    async def kept(self, schedule_id: str = "s") -> Schedule:
        return (await self.schedules.get("acme", schedule_id)).kept.schedule


@pytest.fixture
def rule() -> Rule:
    return Rule()


@pytest.fixture
async def rig(rule: Rule) -> AsyncIterator[Rig]:
    store = SqliteStore(MEMORY, free_bytes_min=0, now_ms=T0)
    yield Rig(store, rule=rule, limits=Limits(schedule_count_max=500))
    await store.close()


async def test_a_schedule_fires_at_each_of_its_times_and_once(rig: Rig) -> None:
    await rig.create("*/2 * * * *")

    assert await rig.step() == POLL_MS
    assert await rig.made() == []
    for _ in range(3):
        await rig.step(after_ms=MINUTE)
        await rig.step(after_ms=MINUTE - 1)
        await rig.step(after_ms=1)
        await rig.step()

    made = await rig.made()
    assert [message.created_ms for message in made] == [T0 + at * MINUTE for at in (2, 4, 6)]
    assert {message.schedule for message in made} == {"s"}
    assert {message.caller_ip for message in made} == {"192.0.2.7"}
    assert len(rig.bench.born) == 3
    assert rig.telemetry.firings == {"fired": 3, "failed": 0, "skipped": 0}
    assert rig.telemetry.messages_scheduled == 3


async def test_it_rests_until_the_next_fire_time(rig: Rig) -> None:
    await rig.create()

    assert await rig.step(after_ms=MINUTE - 7) == 7
    assert await rig.step(after_ms=7) == POLL_MS


async def test_a_new_schedule_is_live_at_once(rig: Rig) -> None:
    wake = rig.scheduler.loop.wake

    await rig.create()
    assert wake.is_set()
    wake.clear()
    await rig.schedules.pause("acme", "s")
    await rig.schedules.resume("acme", "s")
    assert wake.is_set()


async def test_a_timer_that_wakes_early_fires_nothing_twice(rig: Rig) -> None:
    await rig.create()
    jitter = Random(2)

    for at in range(1, 200):
        target_ms = T0 + at * MINUTE
        rig.clock.go_on(target_ms + jitter.choice([-2, -1]) - rig.clock.now_ms())
        await rig.step()
        rig.clock.go_on(target_ms + jitter.choice([0, 1, 2]) - rig.clock.now_ms())
        await rig.step()

    assert [one.created_ms // MINUTE for one in await rig.made()] == [
        T0 // MINUTE + at for at in range(1, 200)
    ]


async def test_a_clock_that_is_set_back_fires_nothing_again(rig: Rig) -> None:
    """Nor does a schedule that is overwritten meanwhile."""
    await rig.create()
    await rig.step(after_ms=MINUTE)

    rig.clock.go_on(-MINUTE - SECOND)
    await rig.create()
    assert (await rig.kept()).next_ms == T0 + 2 * MINUTE
    await rig.step(after_ms=MINUTE + SECOND)

    assert len(await rig.made()) == 1


async def test_two_that_fire_at_the_same_moment_fire_once(rig: Rig) -> None:
    await rig.create()
    rig.clock.go_on(MINUTE)

    await asyncio.gather(*(rig.step() for _ in range(5)))

    assert len(await rig.made()) == 1
    assert rig.telemetry.firings["fired"] == 1


@pytest.mark.parametrize(
    ("rule", "fired", "skipped"),
    [
        (Rule("none"), [60], 59),
        (Rule("latest"), [60], 59),
        (Rule("all", 10 * MINUTE), range(50, 61), 49),
        (Rule("all", HOUR), range(1, 61), 0),
    ],
)
async def test_after_downtime_the_rule_says_what_runs_and_the_rest_is_logged(
    rig: Rig, fired: list[int], skipped: int
) -> None:
    """P6 of reliability.md."""
    await rig.create()

    with capture_logs() as logs:
        await rig.steps(after_ms=HOUR)

    assert len(await rig.made()) == len(fired)
    assert (await rig.kept()).fired_ms == T0 + HOUR
    assert (await rig.kept()).next_ms == T0 + 61 * MINUTE
    assert rig.telemetry.firings == {"fired": len(fired), "failed": 0, "skipped": skipped}
    told = [(one["count"], one["first_ms"], one["last_ms"]) for one in logs]
    first_ms, last_ms = T0 + MINUTE, T0 + skipped * MINUTE
    assert told == ([(skipped, first_ms, last_ms)] if skipped else [])


async def test_what_is_too_late_is_skipped_and_logged(rig: Rig) -> None:
    await rig.create("@daily")
    next_ms = (await rig.kept()).next_ms
    assert next_ms is not None

    with capture_logs() as logs:
        await rig.steps(after_ms=next_ms - T0 + HOUR + 1)

    schedule = await rig.kept()
    assert [one["event"] for one in logs] == ["firings_skipped"]
    assert await rig.made() == []
    assert (schedule.fired_ms, schedule.next_ms) == (None, next_ms + DAY)
    assert rig.telemetry.firings == {"fired": 0, "failed": 0, "skipped": 1}


async def test_a_year_of_missed_minutes_is_counted_up_to_a_bound(rig: Rig) -> None:
    await rig.create()

    with capture_logs() as logs:
        assert await rig.steps(after_ms=365 * DAY) == 1

    assert [one["count"] for one in logs] == [services.COUNTED_MAX]
    assert len(await rig.made()) == 1


@pytest.mark.parametrize(
    ("zone", "cron", "day", "fired"),
    [
        ("America/New_York", "30 2 * * *", "2026-03-08", "03:00"),
        ("America/New_York", "30 1 * * *", "2026-11-01", "01:30"),
        ("Europe/Berlin", "30 2 * * *", "2026-03-29", "03:00"),
        ("Europe/Berlin", "30 2 * * *", "2026-10-25", "02:30"),
        ("Australia/Lord_Howe", "15 2 * * *", "2026-10-04", "02:30"),
        ("Australia/Lord_Howe", "45 1 * * *", "2026-04-05", "01:45"),
    ],
)
async def test_a_daily_schedule_fires_once_on_the_day_of_a_clock_change(
    rig: Rig, zone: str, cron: str, day: str, fired: str
) -> None:
    """W120: in spring right after the gap, in autumn the first time."""
    start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    rig.clock.go_on(int(start.timestamp() * 1000) - T0)
    await rig.create(f"CRON_TZ={zone} {cron}")

    for _ in range(24 * 4):
        await rig.step(after_ms=15 * MINUTE)

    made = await rig.made()
    times = [datetime.fromtimestamp(one.created_ms / 1000, ZoneInfo(zone)) for one in made]
    assert [(f"{one:%Y-%m-%d %H:%M}", one.fold) for one in times] == [(f"{day} {fired}", 0)]


async def test_a_paused_schedule_makes_nothing_and_its_next_time_goes_on(rig: Rig) -> None:
    """W125."""
    await rig.create()
    await rig.schedules.pause("acme", "s")

    for at in range(1, 4):
        await rig.step(after_ms=MINUTE)
        seen = await rig.schedules.get("acme", "s")
        assert seen.next_ms == T0 + (at + 1) * MINUTE
    await rig.schedules.resume("acme", "s")
    await rig.step(after_ms=MINUTE)

    assert [message.created_ms for message in await rig.made()] == [T0 + 4 * MINUTE]
    assert rig.telemetry.firings["skipped"] == 0


async def group(rig: Rig, *urls: str, header: dict[str, list[str]] | None = None) -> None:
    made = UrlGroup(
        id="tpc_1", name="g", created_ms=T0, updated_ms=T0,
        endpoints=[Endpoint(url) for url in urls], header=header or {},
    )  # fmt: skip
    await rig.store.change_url_group("acme", "g", lambda _: made if urls else None)


async def test_a_group_is_looked_up_at_each_run(rig: Rig) -> None:
    """W133."""
    await group(rig, "https://a.example")
    await rig.create(destination="g")

    await rig.step(after_ms=MINUTE)
    await group(rig, "https://b.example", "https://c.example")
    await rig.step(after_ms=MINUTE)

    made = await rig.made()
    assert [(one.url, one.group, one.schedule) for one in made] == [
        ("https://a.example", "g", "s"),
        ("https://b.example", "g", "s"),
        ("https://c.example", "g", "s"),
    ]
    assert (await rig.kept()).run == [one.id for one in made[1:]]


async def test_a_group_says_at_each_run_what_the_schedule_does_not(rig: Rig) -> None:
    """W143: and a default that deduplicates does not swallow a run."""
    await group(rig, "https://a.example")
    await rig.create(destination="g", label="mine", delay="10s")
    header = {
        "Upstash-Label": ["theirs"], "Upstash-Retries": ["9"], "Upstash-Delay": ["1h"],
        "Upstash-Deduplication-Id": ["one"],
    }  # fmt: skip
    await group(rig, "https://a.example", header=header)

    for _ in range(2):
        await rig.step(after_ms=MINUTE)

    first, second = await rig.made()
    assert (first.labels, first.retries_max) == (["mine"], 9)
    assert first.not_before_ms == T0 + MINUTE + 10 * SECOND
    assert second.created_ms == T0 + 2 * MINUTE


async def test_to_a_group_with_defaults_the_servers_defaults_of_the_day_count(rig: Rig) -> None:
    """As docs/schedules.md says: the request is read again, with the group's."""
    await group(rig, "https://a.example", header={"Upstash-Label": ["theirs"]})
    await rig.create(destination="g")
    rig.schedules._publishing._limits = Limits(retries_default=9)

    await rig.step(after_ms=MINUTE)

    [message] = await rig.made()
    assert (message.labels, message.retries_max) == (["theirs"], 9)


async def test_a_run_that_cannot_be_made_is_told_of_and_the_next_goes_on(rig: Rig) -> None:
    await group(rig, "https://a.example")
    await rig.create(destination="g")
    await rig.create(schedule_id="t")

    await group(rig)
    rig.forbidden.add("example.com")
    with capture_logs() as logs:
        await rig.step(after_ms=MINUTE)
    for schedule_id, why in (("s", "topic g not found"), ("t", "example.com is forbidden")):
        schedule = await rig.kept(schedule_id)
        assert why in str(schedule.error)
        assert (schedule.fired_ms, schedule.run) == (T0 + MINUTE, [])
        assert schedule.next_ms == T0 + 2 * MINUTE
    assert sorted(one["schedule_id"] for one in logs) == ["s", "t"]
    assert rig.telemetry.firings == {"fired": 0, "failed": 2, "skipped": 0}

    await group(rig, "https://a.example")
    rig.forbidden.clear()
    await rig.step(after_ms=MINUTE)
    assert len(await rig.made()) == 2
    assert [(await rig.kept(one)).error for one in "st"] == [None, None]


async def test_a_schedule_whose_zone_is_gone_says_so_and_runs_when_it_is_there_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an update of the time zones, or on another machine."""
    await rig.create("CRON_TZ=Europe/Berlin * * * * *")
    await rig.create("@yearly", schedule_id="t")

    def gone(key: str) -> ZoneInfo:
        raise ZoneInfoNotFoundError(key)

    with monkeypatch.context() as patch:
        patch.setattr(cron, "ZoneInfo", gone)
        cron.read_cron.cache_clear()
        for _ in range(3):
            await rig.steps(after_ms=MINUTE)
        assert "no time zone" in str((await rig.kept()).error)
        assert rig.telemetry.firings == {"fired": 0, "failed": 1, "skipped": 0}
    cron.read_cron.cache_clear()
    await rig.steps(after_ms=services.PUT_OFF_MS - 2 * MINUTE)

    schedule = await rig.kept()
    assert [message.created_ms for message in await rig.made()] == [T0 + 61 * MINUTE]
    assert (schedule.fired_ms, schedule.error) == (T0 + 61 * MINUTE, None)
    await rig.steps(after_ms=MINUTE)
    assert len(await rig.made()) == 2


async def test_a_schedule_that_cannot_be_read_holds_up_no_other(rig: Rig) -> None:
    """It is passed over, and may be overwritten or deleted."""
    for schedule_id in ("bad", "good", "worse"):
        await rig.create(schedule_id=schedule_id)
    for schedule_id, facts in (("bad", b'{"tenant":1}'), ("worse", b'{"tenant":"\xff"}')):
        rig.store.writer.db.execute(
            "UPDATE schedule SET facts = ? WHERE id = ?", (facts, schedule_id)
        )

    with capture_logs() as logs:
        assert await rig.steps(after_ms=MINUTE) == 1
        assert await rig.steps(after_ms=MINUTE) == 1

    assert [one.schedule for one in await rig.made()] == ["good", "good"]
    told = [one["schedule_id"] for one in logs if one["event"] == "schedule_unreadable"]
    assert sorted(told) == ["bad", "worse"]
    assert [one.kept.schedule.id for one in await rig.schedules.all("acme")] == ["good"]
    for call in (rig.schedules.get, rig.schedules.pause, rig.schedules.resume):
        with pytest.raises(NotFound):
            await call("acme", "bad")
    await rig.create(schedule_id="bad")
    await rig.schedules.delete("acme", "worse")
    await rig.steps(after_ms=MINUTE)
    assert sorted(str(one.schedule) for one in await rig.made()) == ["bad", *["good"] * 3]


async def test_a_schedule_that_can_be_read_again_runs_within_the_hour(rig: Rig) -> None:
    await rig.create()
    db = rig.store.writer.db
    [[facts]] = db.execute("SELECT facts FROM schedule")
    db.execute("UPDATE schedule SET facts = x'7b'")
    await rig.steps(after_ms=MINUTE)
    db.execute("UPDATE schedule SET facts = ?", (facts,))

    await rig.steps(after_ms=services.PUT_OFF_MS)

    assert len(await rig.made()) == 1


async def test_a_schedule_that_is_put_again_when_it_is_due_runs(rig: Rig) -> None:
    await rig.create("@daily")
    next_ms = (await rig.kept()).next_ms
    assert next_ms is not None
    rig.clock.go_on(next_ms + 5 - T0)

    await rig.create("@daily")
    await rig.steps()
    await rig.create("@daily")
    await rig.steps()

    assert len(await rig.made()) == 1
    assert (await rig.kept()).next_ms == next_ms + DAY


async def test_a_clock_that_was_far_ahead_does_not_silence_what_is_put_again(rig: Rig) -> None:
    await rig.create()
    await rig.create(schedule_id="t")
    await rig.steps(after_ms=365 * DAY)
    rig.clock.go_on(-365 * DAY)

    await rig.create()
    await rig.schedules.pause("acme", "t")
    await rig.schedules.resume("acme", "t")
    await rig.steps(after_ms=MINUTE)

    assert len(await rig.made()) == 4
    assert (await rig.kept()).next_ms == T0 + 2 * MINUTE


@pytest.mark.parametrize("what", ["maxqueues", "messages a day"])
async def test_a_run_that_is_over_a_limit_fails_and_the_next_goes_on(rig: Rig, what: str) -> None:
    if what == "maxqueues":
        rig.schedules._limits = Limits(queue_count_max=1)
    else:
        rig.schedules._rates = Rates(rig.clock, messages_per_day_max=1)
    await rig.create("* * * * *", "a", queue_name="one")
    await rig.step(after_ms=MINUTE)
    await rig.schedules.delete("acme", "a")
    await rig.create(queue_name="two")

    with capture_logs() as logs:
        await rig.steps(after_ms=MINUTE)

    schedule = await rig.kept()
    [told] = logs
    assert (told["event"], told["why"]) == ("firing_failed", schedule.error)
    assert what in str(schedule.error).lower()
    assert (schedule.fired_ms, schedule.run) == (T0 + 2 * MINUTE, [])
    assert rig.telemetry.firings == {"fired": 1, "failed": 1, "skipped": 0}
    rig.schedules._limits = Limits()
    await rig.steps(after_ms=DAY)
    assert [one.queue for one in await rig.made()] == ["one", "two"]


async def test_runs_that_the_store_has_no_room_for_do_not_count_as_messages(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = rig.schedules._rates = Rates(rig.clock, messages_per_day_max=1)
    await rig.create()

    rig.clock.go_on(MINUTE)
    monkeypatch.setattr(rig.store, "_refusing", lambda: "the disk is full")
    for _ in range(3):
        with pytest.raises(StoreFull):
            await rig.step()

    rates.messages("acme", 1)


async def test_many_that_are_due_at_once_fire_in_chunks(rig: Rig) -> None:
    count = 3 * services.FIRED_AT_ONCE - 1
    for at in range(count):
        await rig.create(schedule_id=f"s{at}")

    assert await rig.steps(after_ms=MINUTE) == 3

    assert len({message.schedule for message in await rig.made()}) == count


async def test_a_tenant_cannot_have_more_schedules_than_the_limit(rig: Rig) -> None:
    rig.schedules._limits = Limits(schedule_count_max=1)
    await rig.create()
    await rig.create()

    with pytest.raises(LimitReached):
        await rig.create(schedule_id="t")


async def test_a_delay_is_of_each_run(rig: Rig) -> None:
    """W123."""
    await rig.create(delay="90s")

    await rig.step(after_ms=MINUTE + 5)

    [message] = await rig.made()
    assert message.not_before_ms == T0 + MINUTE + 5 + 90 * SECOND
    assert rig.bench.born == []


async def test_what_was_asked_for_stays_as_it_was_read(rig: Rig) -> None:
    """Another default, or a lower limit, changes no schedule that is there."""
    await rig.create(retries="7", flow_control_key="k", flow_control_value="rate=5, period=1m")
    rig.schedules._limits = Limits(retries_default=0, retries_max=1)

    await rig.step(after_ms=MINUTE)

    [message] = await rig.made()
    assert message.retries_max == 7
    assert message.flow is not None
    assert (message.flow.key, message.flow.rate, message.flow.period_ms) == ("k", 5, MINUTE)
