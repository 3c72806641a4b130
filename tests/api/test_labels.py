"""Labels, in every place that shows a message and in every filter that finds one."""

import pytest

from tests.support.application import MINUTE, Application

LABELS = {"Upstash-Label": "first, second"}
SHOWN = ("first", ["first", "second"])


def labels_of(shown: dict[str, object]) -> tuple[object, object]:
    return shown["label"], shown["labels"]


async def test_labels_are_shown_wherever_a_message_is(server: Application) -> None:
    """W57, W58, W149, W167: `label` is the first, `labels` are all."""
    server.receiver.answers(500)
    message_id = await server.accepted(header=LABELS | {"Upstash-Retries": "0"})
    letter = await server.dead_letter(message_id)

    assert labels_of(await server.message(message_id)) == SHOWN
    assert labels_of(letter) == SHOWN
    assert labels_of((await server.ask("GET", f"/v2/dlq/{letter['dlqId']}")).json) == SHOWN
    for entry in await server.log(message_id):
        assert labels_of(entry) == SHOWN
    [group] = (await server.ask("GET", "/v2/logs?groupBy=messageId")).json["messages"]
    assert labels_of(group) == SHOWN


async def test_labels_of_a_schedule_are_those_of_its_runs(server: Application) -> None:
    """W57, W58."""
    reply = await server.ask(
        "POST",
        f"/v2/schedules/{server.receiver.url}",
        header=LABELS | {"Upstash-Cron": "* * * * *"},
    )
    schedule = await server.ask("GET", f"/v2/schedules/{reply.json['scheduleId']}")
    assert labels_of(schedule.json) == SHOWN

    server.clock.advance(MINUTE)

    run_id = (await server.receiver.only()).header["Upstash-Message-Id"]
    assert labels_of(await server.message(run_id)) == SHOWN


@pytest.mark.parametrize(
    ("query", "found"),
    [("first", True), ("second", True), ("none,second", True), ("none", False), ("fir", False)],
)
async def test_any_label_of_a_message_finds_it(
    server: Application, query: str, found: bool
) -> None:
    """W58, W105, W149, W171: in the log, the dead letter queue, and what is to be cancelled."""
    server.receiver.answers(500)
    failed_id = await server.accepted(header=LABELS | {"Upstash-Retries": "0"})
    await server.dead_letter(failed_id)
    waiting_id = await server.accepted(header=LABELS | {"Upstash-Delay": "1h"})
    await server.accepted(header={"Upstash-Delay": "1h", "Upstash-Label": "other"})

    events = (await server.ask("GET", f"/v2/events?label={query}")).json["events"]
    letters = (await server.ask("GET", f"/v2/dlq?label={query}")).json["messages"]
    cancelled = (await server.ask("DELETE", f"/v2/messages?label={query}")).json["cancelled"]

    assert {one["messageId"] for one in events} == ({failed_id, waiting_id} if found else set())
    assert [one["messageId"] for one in letters] == ([failed_id] if found else [])
    assert cancelled == int(found)
