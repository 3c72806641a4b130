"""Cron expressions: what they may say, and when they fire, through clock changes too."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim, CronSimError
from hypothesis import given, settings
from hypothesis import strategies as some

from waypost.domain.cron import ALIASES, CRON_CHARS_MAX, Cron, read_cron
from waypost.domain.errors import Invalid

MINUTE = timedelta(minutes=1)


def ms(text: str, zone: str = "UTC", *, fold: int = 0) -> int:
    """A local time, as `2026-03-08 02:30`."""
    local = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return int(local.timestamp() * 1000)


def firings(text: str, *, after_ms: int, count: int) -> list[str]:
    """When it fires, as the clocks of its zone read, with their offset."""
    cron = read_cron(text)
    found = []
    for _ in range(count):
        next_ms = cron.next_ms(after_ms)
        assert next_ms is not None
        found.append(datetime.fromtimestamp(next_ms / 1000, cron.zone).strftime("%d %H:%M %z"))
        after_ms = next_ms
    return found


def test_an_expression_is_in_utc_where_it_names_no_zone():
    assert firings("*/20 4 * * *", after_ms=ms("2026-05-01 04:00"), count=3) == [
        "01 04:20 +0000",
        "01 04:40 +0000",
        "02 04:00 +0000",
    ]


@pytest.mark.parametrize("prefix", ["CRON_TZ=", "TZ="])
def test_an_expression_is_in_the_zone_that_it_names(prefix):
    text = f"  {prefix}America/New_York  0 4 * * * "

    assert read_cron(text).next_ms(ms("2026-05-01 00:00")) == ms("2026-05-01 08:00")


@pytest.mark.parametrize(("alias", "fields"), ALIASES.items())
def test_an_alias_stands_for_its_fields(alias, fields):
    assert read_cron(alias) == read_cron(fields)
    assert read_cron(f"CRON_TZ=Asia/Tokyo {alias.upper()}") == read_cron(
        f"CRON_TZ=Asia/Tokyo {fields}"
    )


def test_a_fire_time_is_after_the_moment_that_is_asked_about():
    """A timer that wakes a hair early or late makes no difference."""
    cron = read_cron("* * * * *")
    minute_ms = ms("2026-05-01 12:00")

    assert cron.next_ms(minute_ms - 1) == minute_ms
    assert cron.next_ms(minute_ms) == minute_ms + 60_000
    assert cron.next_ms(minute_ms + 1) == minute_ms + 60_000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "0 fields and not 5"),
        ("* * * *", "4 fields and not 5"),
        ("* * * * * *", "6 fields and not 5"),
        ("60 * * * *", "Bad minute"),
        ("*/0 * * * *", "Bad minute"),
        ("0 25 * * *", "Bad hour"),
        ("0 0 0 * *", "Bad day-of-month"),
        ("0 0 30 2 *", "Bad day-of-month"),
        ("0 0 * 13 *", "Bad month"),
        ("0 0 * * 8", "Bad day-of-week"),
        ("5-1 * * * *", "Bad minute"),
        ("0 0 */18 * MON#5", "no month has a day"),
        ("0 0 */29 2 MON#5", "no month has a day"),
        ("0 0 */10 2 5L", "no month has a day"),
        ("0 0 LW * */6", "no month has a day"),
        ("a b c d e", "Bad minute"),
        ("1,,2 * * * *", "Bad minute"),
        ("\N{ARABIC-INDIC DIGIT ONE} * * * *", "a character that no field can"),
        ("0 0 * * \x00", "a character that no field can"),
        ("@every 5m", "@every is not supported"),
        ("@fortnightly", "no such alias"),
        ("CRON_TZ=Mars/Olympus 0 4 * * *", "no time zone 'Mars/Olympus'"),
        ("CRON_TZ=../../etc/passwd 0 4 * * *", "no time zone"),
        ("CRON_TZ=America 0 4 * * *", "no time zone"),
        ("CRON_TZ=UTC", "comes a blank"),
        ("CRON_TZ= 0 4 * * *", "comes a blank"),
        ("* " * CRON_CHARS_MAX + "x", f"longer than {CRON_CHARS_MAX}"),
    ],
)
def test_what_is_wrong_with_an_expression_is_said(text, why):
    with pytest.raises(Invalid, match=why):
        read_cron(text)


@settings(max_examples=200)
@given(
    days=some.sampled_from(["*", "*/18", "*/29", "*/30", "L", "LW", "29", "31", "1-3,29"]),
    months=some.sampled_from(["*", "2", "4", "2,4", "12"]),
    weekdays=some.sampled_from(["*", "*/6", "*/4", "MON#5", "MON#1", "5L", "6", "1-5", "*,5L"]),
)
def test_what_is_refused_is_what_no_search_finds(days, months, weekdays):
    """And what is not refused comes, and is found in no time."""
    fields = f"0 0 {days} {months} {weekdays}"
    try:
        found = next(CronSim(fields, datetime(2026, 1, 1)), None)  # noqa: DTZ001
    except CronSimError:
        return
    try:
        cron = read_cron(fields)
    except Invalid:
        assert found is None
    else:
        assert found is not None
        assert cron.next_ms(ms("2025-12-31 23:59")) is not None


def test_what_is_rare_is_found_and_the_end_of_time_is_none():
    assert read_cron("0 0 * 2 MON#5").next_ms(ms("2026-05-01 00:00")) == ms("2044-02-29 00:00")
    assert read_cron("0 0 * 2 MON#5").next_ms(ms("9899-05-01 00:00")) == ms("9904-02-29 00:00")
    assert read_cron("* * * * *").next_ms(ms("9900-01-01 00:00")) is None
    assert read_cron("* * * * *").next_ms(1 << 62) is None


ZONES = {
    "America/New_York": ("2026-03-08", "02:30", "03:00", "2026-11-01", "01:30"),
    "Europe/Berlin": ("2026-03-29", "02:30", "03:00", "2026-10-25", "02:30"),
    "Australia/Lord_Howe": ("2026-10-04", "02:15", "02:30", "2026-04-05", "01:45"),
}
"""The day of the spring change, a time in its gap and the end of that; the day of the autumn
change, and a time that comes twice.  Lord Howe's clocks change by half an hour."""


@pytest.mark.parametrize("zone", ZONES)
def test_what_spring_skips_fires_once_right_after_the_gap(zone):
    """W120: as vixie cron does."""
    day, skipped, end, _, _ = ZONES[zone]
    hour, minute = map(int, skipped.split(":"))
    before_ms = ms(f"{day} 00:00", zone)

    found = firings(f"CRON_TZ={zone} {minute} {hour} * * *", after_ms=before_ms, count=2)

    tomorrow = int(day[-2:]) + 1
    assert [one[:8] for one in found] == [f"{day[-2:]} {end}", f"{tomorrow:02} {skipped}"]


@pytest.mark.parametrize("zone", ZONES)
def test_what_autumn_repeats_fires_the_first_time_only(zone):
    """W120."""
    day, repeated = ZONES[zone][3:]
    hour, minute = map(int, repeated.split(":"))
    text = f"CRON_TZ={zone} {minute} {hour} * * *"
    first_ms, second_ms = (ms(f"{day} {repeated}", zone, fold=fold) for fold in (0, 1))
    assert second_ms > first_ms

    assert read_cron(text).next_ms(ms(f"{day} 00:00", zone)) == first_ms
    for after_ms in (first_ms, second_ms - 60_000, second_ms):
        [found] = firings(text, after_ms=after_ms, count=1)
        assert found.startswith(f"{int(day[-2:]) + 1:02} {repeated}")


@pytest.mark.parametrize("zone", ZONES)
def test_one_that_follows_the_clock_fires_in_both_of_what_autumn_repeats(zone):
    """W120."""
    day, repeated = ZONES[zone][3:]
    minute = int(repeated.split(":")[1])
    text = f"CRON_TZ={zone} {minute} * * * *"
    first_ms, second_ms = (ms(f"{day} {repeated}", zone, fold=fold) for fold in (0, 1))

    assert read_cron(text).next_ms(first_ms - 1) == first_ms
    assert read_cron(text).next_ms(first_ms) == second_ms


@pytest.mark.parametrize("zone", ZONES)
def test_one_that_follows_the_clock_never_fires_in_the_gap(zone):
    """W120."""
    day, skipped, end, _, _ = ZONES[zone]
    before_ms = ms(f"{day} {end}", zone) - 60_000

    found = firings(f"CRON_TZ={zone} * * * * *", after_ms=before_ms, count=1)

    assert found[0][:8] == f"{day[-2:]} {end}"
    assert not found[0].startswith(f"{day[-2:]} {skipped}")


def test_a_day_that_a_zone_skipped_is_fired_at_its_end():
    """Apia had no 30 December 2011."""
    text = "CRON_TZ=Pacific/Apia 0 12 * * *"

    assert firings(text, after_ms=ms("2011-12-29 00:00", "Pacific/Apia"), count=3) == [
        "29 12:00 -1000",
        "31 00:00 +1400",
        "31 12:00 +1400",
    ]


def brute(cron: Cron, start: datetime, minutes: int) -> list[int]:
    """Every firing, found by looking at each minute."""
    fields = cron.fields.split()
    minute_set, hour_set = (
        {
            at
            for at in range(high)
            for item in field.split(",")
            if item == "*" or (item.startswith("*/") and at % int(item[2:]) == 0) or item == str(at)
        }
        for field, high in zip(fields[:2], (60, 24), strict=True)
    )
    found = []
    earlier = (start - MINUTE).astimezone(cron.zone).replace(tzinfo=None)
    for at in range(minutes):
        moment = (start + at * MINUTE).astimezone(cron.zone)
        local = moment.replace(tzinfo=None, fold=0)
        if cron.names_times:
            read = [local] if moment.fold == 0 else []
            skipped = earlier + MINUTE
            while skipped < local:
                read.append(skipped)
                skipped += MINUTE
        else:
            read = [local]
        if any(one.minute in minute_set and one.hour in hour_set for one in read):
            found.append(int(moment.timestamp()) * 1000)
        earlier = local
    return found


CHANGES = [
    (zone, datetime.fromisoformat(day).replace(tzinfo=UTC))
    for zone, day in [
        *((zone, days[0]) for zone, days in ZONES.items()),
        *((zone, days[3]) for zone, days in ZONES.items()),
        ("America/Sao_Paulo", "2018-11-04"),  # at midnight
        ("America/Sao_Paulo", "2018-02-18"),
        ("Pacific/Apia", "2011-12-30"),  # by a day
        ("Europe/Dublin", "2026-10-25"),
        ("Africa/Casablanca", "2026-02-15"),
        ("Asia/Kathmandu", "2026-05-01"),  # none
    ]
]


@settings(max_examples=60)
@given(data=some.data())
def test_it_fires_whenever_a_walk_through_all_minutes_finds_it(data):
    zone, day = data.draw(some.sampled_from(CHANGES))
    at = some.integers
    minute = data.draw(
        some.one_of(
            some.sampled_from(["*", "*/7", "*/30", "0"]),
            at(0, 59).map(str),
            some.tuples(at(0, 59), at(0, 59)).map(lambda two: f"{two[0]},{two[1]}"),
        )
    )
    hour = data.draw(
        some.one_of(
            some.sampled_from(["*", "*/2", "0,1,2,3"]),
            at(0, 4).map(str),
            some.tuples(at(0, 23), at(0, 4)).map(lambda two: f"{two[0]},{two[1]}"),
        )
    )
    cron = read_cron(f"CRON_TZ={zone} {minute} {hour} * * *")
    start = day - timedelta(days=1, minutes=data.draw(at(0, 900)))
    minutes = 3 * 1440

    found = []
    next_ms = cron.next_ms(int(start.timestamp()) * 1000 - 1)
    while next_ms is not None and next_ms < int((start + minutes * MINUTE).timestamp()) * 1000:
        found.append(next_ms)
        next_ms = cron.next_ms(next_ms)

    assert found == brute(cron, start, minutes)


@given(since=some.integers(0, 10_000), minutes=some.integers(0, 10_000), step=some.integers(2, 59))
def test_the_latest_firing_is_the_last_that_a_walk_comes_to(since, minutes, step):
    cron = read_cron(f"*/{step} 3-11 * * *")
    first = cron.next_ms(ms("2026-05-01 00:00") + since * 60_000)
    assert first is not None
    until_ms = first + minutes * 60_000

    last = first
    while (following := cron.next_ms(last)) is not None and following <= until_ms:
        last = following

    assert cron.latest_ms(since_ms=first, until_ms=until_ms) == last


def test_a_year_of_minutes_is_looked_through_in_a_few_steps(monkeypatch):
    cron = read_cron("* * * * *")
    asked = 0
    whole = Cron.next_ms

    def counting(self: Cron, after_ms: int) -> int | None:
        nonlocal asked
        asked += 1
        return whole(self, after_ms)

    monkeypatch.setattr(Cron, "next_ms", counting)
    since_ms = ms("2026-01-01 00:00")

    assert cron.latest_ms(since_ms=since_ms, until_ms=ms("2027-01-01 00:00")) == ms(
        "2027-01-01 00:00"
    )
    assert asked < 100
