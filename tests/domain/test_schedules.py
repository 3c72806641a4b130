"""Schedules: what a request says of them, and which of their firings run."""

import msgspec
import pytest

from tests.support.factory import HOUR, MINUTE, SECOND, T0, a_schedule
from waypost.domain import options
from waypost.domain.cron import read_cron
from waypost.domain.errors import Invalid
from waypost.domain.flow import Flow
from waypost.domain.message import Callback
from waypost.domain.redaction import Redaction
from waypost.domain.schedules import (
    SET_BACK_MS,
    Rule,
    Schedule,
    Turn,
    fields_of,
    in_place_of,
    moved_on,
    paused,
    read_request,
    resumed,
    turn,
    upcoming_ms,
)

HOUR_MS = T0 - T0 % HOUR + HOUR
"""A full hour, at which `0 * * * *` fires."""


def due(cron: str = "*/10 * * * *", **facts):
    return a_schedule(cron=cron, next_ms=HOUR_MS, **facts)


def test_a_firing_that_is_due_runs_and_the_next_is_after_it():
    assert turn(due(), rule=Rule(), now_ms=HOUR_MS + 3) == Turn(
        fire_ms=HOUR_MS, next_ms=HOUR_MS + 10 * MINUTE
    )


@pytest.mark.parametrize(
    ("rule", "late_ms", "fire_ms", "skipped_ms", "next_ms"),
    [
        # one firing, which is late
        (Rule("none"), MINUTE, 0, None, 10),
        (Rule("none"), MINUTE + 1, None, 0, 10),
        (Rule("latest"), 9 * MINUTE, 0, None, 10),
        (Rule("all"), 9 * MINUTE, 0, None, 10),
        (Rule("latest", 5 * MINUTE), 5 * MINUTE, 0, None, 10),
        (Rule("latest", 5 * MINUTE), 5 * MINUTE + 1, None, 0, 10),
        (Rule("all", 5 * MINUTE), 5 * MINUTE, 0, None, 10),
        (Rule("all", 5 * MINUTE), 5 * MINUTE + 1, None, 0, 10),
        # four, of which the last is on time
        (Rule("none"), 30 * MINUTE, 30, 0, 40),
        (Rule("latest"), 30 * MINUTE, 30, 0, 40),
        (Rule("all"), 30 * MINUTE, 0, None, 10),
        (Rule("all", 20 * MINUTE), 30 * MINUTE, 10, 0, 20),
        # four, of which the last is late
        (Rule("none"), 35 * MINUTE, None, 0, 40),
        (Rule("latest"), 35 * MINUTE, 30, 0, 40),
        (Rule("latest", 4 * MINUTE), 35 * MINUTE, None, 0, 40),
    ],
)
def test_the_rule_says_what_becomes_of_misfires(rule, late_ms, fire_ms, skipped_ms, next_ms):
    def at(minutes: int | None) -> int | None:
        return None if minutes is None else HOUR_MS + minutes * MINUTE

    assert turn(due(), rule=rule, now_ms=HOUR_MS + late_ms) == Turn(
        fire_ms=at(fire_ms), skipped_ms=at(skipped_ms), next_ms=at(next_ms)
    )


def test_with_all_each_firing_of_the_window_runs_once():
    rule, now_ms, schedule, ran = Rule("all", 30 * MINUTE), HOUR_MS + HOUR + SECOND, due(), []
    while schedule.next_ms is not None and schedule.next_ms <= now_ms:
        done = turn(schedule, rule=rule, now_ms=now_ms)
        ran.append(done.fire_ms)
        schedule = moved_on(schedule, done, run=[], error=None, now_ms=now_ms)

    assert ran == [HOUR_MS + at * MINUTE for at in (40, 50, 60)]
    assert schedule.next_ms == HOUR_MS + 70 * MINUTE


def test_a_run_is_remembered_and_so_is_why_one_could_not_be():
    schedule, now_ms = due(), HOUR_MS + 1
    done = turn(schedule, rule=Rule(), now_ms=now_ms)

    well = moved_on(schedule, done, run=["msg_1"], error=None, now_ms=now_ms)
    badly = moved_on(well, done, run=[], error="topic g not found", now_ms=now_ms)
    skipped = moved_on(badly, Turn(skipped_ms=1, next_ms=2), run=[], error=None, now_ms=now_ms)

    assert (well.fired_ms, well.run, well.error) == (HOUR_MS, ["msg_1"], None)
    assert (badly.run, badly.error) == ([], "topic g not found")
    assert (skipped.fired_ms, skipped.error, skipped.next_ms) == (HOUR_MS, badly.error, 2)
    assert schedule.updated_ms < well.updated_ms < badly.updated_ms < skipped.updated_ms


def test_the_next_time_goes_on_while_a_schedule_is_paused():
    """W125."""
    still = paused(due(), now_ms=HOUR_MS - MINUTE)

    assert still.next_ms is None
    assert paused(still, now_ms=HOUR_MS) == still
    for now_ms in (HOUR_MS - MINUTE, HOUR_MS, HOUR_MS + HOUR):
        assert upcoming_ms(still, now_ms=now_ms) == read_cron(still.cron).next_ms(now_ms)
    assert upcoming_ms(due(paused=True, cron="TZ=No/Where @daily"), now_ms=HOUR_MS) is None
    again = resumed(still, now_ms=HOUR_MS + HOUR)
    assert again.next_ms == HOUR_MS + HOUR + 10 * MINUTE
    assert resumed(again, now_ms=HOUR_MS + 2 * HOUR) == again


def test_what_takes_the_place_of_another_keeps_its_age_and_its_latest_run_only():
    before = due(
        paused=True, created_ms=T0 - 5, updated_ms=T0 + HOUR, fired_ms=HOUR_MS, run=["msg_1"],
        error="no", caller_ip="1.2.3.4", delay_ms=5, parameters={"upstash-retries": "3"},
    )  # fmt: skip

    # The clock was set back, to before the latest firing.
    after = in_place_of(before, a_schedule(cron="@hourly"), now_ms=HOUR_MS - HOUR - MINUTE)

    assert after == a_schedule(
        cron="@hourly",
        created_ms=T0 - 5,
        updated_ms=T0 + HOUR + 1,
        fired_ms=HOUR_MS,
        run=["msg_1"],
        next_ms=HOUR_MS + HOUR,
    )


def test_a_request_is_parted_into_what_is_the_schedules_and_what_is_the_messages():
    said = read_request(
        [
            (b"authorization", b"Bearer t"),
            (b"upstash-cron", b"  */5 * * * *  "),
            (b"upstash-retries", b"3"),
            (b"cdn-loop", b"waypost"),
        ],
        {"upstash-schedule-id": "nightly", "upstash-delay": "10s"},
    )

    assert (said.cron, said.id) == ("*/5 * * * *", "nightly")
    assert said.fields == [(b"upstash-retries", b"3")]
    assert said.parameters == {"upstash-delay": "10s"}


def test_a_header_beats_a_parameter_unless_it_is_blank():
    """W13."""
    parameters = {"upstash-cron": "@daily"}

    assert read_request([(b"upstash-cron", b"@hourly")], parameters).cron == "@hourly"
    assert read_request([(b"upstash-cron", b" ")], parameters).cron == "@daily"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "Upstash-Cron: a schedule needs one"),
        ({"upstash-cron": " "}, "Upstash-Cron: a schedule needs one"),
        ({"upstash-cron": "61 * * * *"}, "Upstash-Cron: Bad minute"),
        ({"upstash-cron": "@every 1h"}, "Upstash-Cron: @every"),
        ({"upstash-cron": "\udcff * * * *"}, "Upstash-Cron: "),
        ({"upstash-cron": "@daily", "upstash-schedule-id": "a/b"}, "Upstash-Schedule-Id: "),
        ({"upstash-cron": "@daily", "upstash-schedule-id": ".."}, "Upstash-Schedule-Id: "),
        ({"upstash-cron": "@daily", "upstash-schedule-id": "x" * 256}, "Upstash-Schedule-Id: "),
        ({"upstash-cron": "@daily", "upstash-not-before": "5"}, "Upstash-Not-Before: "),
    ],
)
def test_what_is_wrong_is_named(fields, why):
    given = [
        (name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in fields.items()
    ]

    with pytest.raises(Invalid, match=why):
        read_request(given, {})


KEPT = b"""{"tenant":"acme","id":"s","cron":"@daily","destination":"g","asked":{"method":"PUT",
"header":{"X":["y"]},"timeout_ms":90000,"retries":5,"retry_delay":"1000","not_before_ms":0,
"deduplication_id":null,"content_based_deduplication":false,"labels":["a"],"queue":"q",
"callback":{"url":"https://me.example","retries_max":5,"timeout_ms":90000,"delay_ms":1000},
"flow":{"key":"k","rate":5,"period_ms":60000},"redaction":{"body":true}},"delay_ms":10000,
"fields":[["upstash-label","a"]],"parameters":{"upstash-retries":"5"},"caller_ip":"192.0.2.7",
"created_ms":1,"updated_ms":2,"next_ms":3,"fired_ms":4,"run":["msg_1"],"error":"no"}"""
"""A schedule as the first version wrote it."""


KEPT_WHOLE = b"""{"tenant":"acme","id":"s","cron":"CRON_TZ=Europe/Berlin 0 4 * * *",
"destination":"g","asked":{"method":"PATCH","header":{"X":["y"]},"timeout_ms":30000,"retries":7,
"retry_delay":"1000*retried","not_before_ms":0,"deduplication_id":null,
"content_based_deduplication":false,"labels":["a","b"],"queue":"q",
"redaction":{"body":true,"fields":["Authorization"]},
"flow":{"key":"k","parallelism":2,"rate":5,"period_ms":60000},
"callback":{"url":"https://me.example/done","method":"PUT","header":{"Y":["z"]},"retries_max":2,
"timeout_ms":900000,"delay_ms":1000,"queue":"cq","labels":["c"]},
"failure_callback":{"url":"https://me.example/failed","retries_max":7,"timeout_ms":900000}},
"delay_ms":10000,"fields":[["upstash-label","a,b"]],"parameters":{"upstash-retries":"7"},
"caller_ip":"192.0.2.7","created_ms":1,"updated_ms":2,"next_ms":3,"fired_ms":4,"run":["msg_1"],
"error":"no"}"""
"""A schedule that says all it can, as it was written when all of these could be asked for."""


def test_a_schedule_that_says_all_it_can_stays_readable_and_is_written_as_it_was():
    """Never change this literal: such rows are on disks, and their schedules have to run."""
    schedule = msgspec.json.decode(KEPT_WHOLE, type=Schedule)

    asked = options.parse(
        [
            (f"upstash-{name}".encode(), text.encode())
            for name, text in {
                "method": "PATCH", "forward-x": "y", "retries": "7", "timeout": "30s",
                "retry-delay": "1000*retried", "label": "a,b", "queue-name": "q",
                "redact-fields": "body,header[Authorization]", "flow-control-key": "k",
                "flow-control-value": "parallelism=2, rate=5, period=1m",
                "callback": "https://me.example/done", "callback-method": "PUT",
                "callback-forward-y": "z", "callback-retries": "2", "callback-delay": "1s",
                "callback-label": "c", "callback-queue-name": "cq",
                "failure-callback": "https://me.example/failed",
            }.items()
        ],
        {},
        limits=options.Limits(),
        now_ms=0,
    )  # fmt: skip
    assert schedule == Schedule(
        tenant="acme", id="s", cron="CRON_TZ=Europe/Berlin 0 4 * * *", destination="g",
        asked=asked, delay_ms=10_000, fields=[("upstash-label", "a,b")],
        parameters={"upstash-retries": "7"}, caller_ip="192.0.2.7", created_ms=1, updated_ms=2,
        next_ms=3, fired_ms=4, run=["msg_1"], error="no",
    )  # fmt: skip
    assert msgspec.json.encode(schedule) == KEPT_WHOLE.replace(b"\n", b"")


def test_what_takes_the_place_of_one_that_is_due_keeps_the_firing_if_the_times_are_the_same():
    now_ms, later_ms = HOUR_MS + 5, HOUR_MS + HOUR
    before = due("@hourly")

    assert in_place_of(before, a_schedule(cron="@hourly"), now_ms=now_ms).next_ms == HOUR_MS
    for cron, facts in (
        ("0 * * * *", {}),
        ("@hourly", {"paused": True, "next_ms": None}),
        ("@hourly", {"next_ms": later_ms}),
    ):
        changed = msgspec.structs.replace(before, **facts)
        after = in_place_of(changed, a_schedule(cron=cron), now_ms=now_ms)
        assert after.next_ms == later_ms


def test_a_fire_time_that_is_far_ahead_holds_up_nothing():
    """A clock was wrong when it ran; one within a day may have been right, and now be set back."""
    for ahead_ms, next_ms in ((SET_BACK_MS, HOUR_MS + SET_BACK_MS), (SET_BACK_MS + 1, HOUR_MS)):
        still = due("@hourly", paused=True, fired_ms=HOUR_MS + ahead_ms - 10 * MINUTE)

        assert upcoming_ms(still, now_ms=HOUR_MS - 10 * MINUTE) == next_ms
        assert resumed(still, now_ms=HOUR_MS - 10 * MINUTE).next_ms == next_ms


def test_a_schedule_is_read_as_the_first_version_wrote_it():
    schedule = msgspec.json.decode(KEPT, type=Schedule)

    asked = schedule.asked
    assert (asked.method, asked.header, asked.timeout_ms) == ("PUT", {"X": ["y"]}, 90_000)
    assert (asked.retries, asked.retry_delay, asked.labels, asked.queue) == (5, "1000", ["a"], "q")
    assert asked.callback == Callback(
        url="https://me.example", retries_max=5, timeout_ms=90_000, delay_ms=1_000
    )
    assert asked.failure_callback is None
    assert asked.flow == Flow("k", rate=5, period_ms=60_000)
    assert asked.redaction == Redaction(body=True)
    assert (schedule.delay_ms, schedule.paused, schedule.next_ms) == (10_000, False, 3)
    assert (schedule.fired_ms, schedule.run, schedule.error) == (4, ["msg_1"], "no")
    assert fields_of(schedule) == [(b"upstash-label", b"a")]
    assert msgspec.json.decode(msgspec.json.encode(schedule), type=Schedule) == schedule
