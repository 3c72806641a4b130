"""The oracle itself: a history in which one law is broken is found guilty of that law alone."""

import pytest

from tests.support.history import Attempt, History, Kill
from tests.support.ledger import Told, Wish, Wishes

CALLED_BACK = Wishes(callback=Wish(retries=0))


def a_history(
    *keys: str, queue: str | None = "q", retries: int = 0, wishes: Wishes | None = None
) -> History:
    """Messages submitted and acknowledged one after the other, at 0, 1, 2 … seconds."""
    history = History()
    for at, key in enumerate(keys):
        history.submitted(key, key.encode(), at_s=at, queue=queue, retries=retries, wishes=wishes)
        accepted(history, key, at_s=at + 0.5)
    return history


def accepted(history: History, key: str, at_s: float, *, message_id: str = "") -> None:
    """A message is acknowledged, and the log says that it was made."""
    message_id = message_id or f"msg_{key}"
    history.acked(key, message_id, at_s=at_s)
    history.ledger.logged.add(message_id)


def sent(
    history: History,
    key: str,
    at_s: float,
    *,
    status: int | None = 200,
    body: bytes | None = None,
    retried: int = 0,
) -> Attempt:
    """One attempt that takes a tenth of a second, and that the log says has ended."""
    body = key.encode() if body is None else body
    attempt = history.began(key, f"msg_{key}", body, at_s=at_s, retried=retried)
    attempt.end_s, attempt.status = at_s + 0.1, status
    history.ledger.settled[f"msg_{key}"] += 1
    return attempt


def told(
    history: History,
    key: str,
    at_s: float,
    *,
    nth: int = 0,
    retried: int = 0,
    dlq_id: str | None = None,
    status: int | None = 200,
    says: int = 200,
    body: bytes | None = None,
) -> Attempt:
    """A callback, the `nth` of its message, and one attempt of it."""
    callback_id = f"msg_{key}_{'failure' if dlq_id else 'callback'}_{nth}"
    tells = Told(f"msg_{key}", retried, dlq_id is not None, dlq_id)
    history.ledger.told[callback_id] = tells
    body = key.encode() if body is None else body
    attempt = history.called_back(key, callback_id, tells, status=says, body=body, at_s=at_s)
    attempt.end_s, attempt.status = at_s + 0.1, status
    return attempt


def failed(history: History, key: str) -> None:
    """A message is a dead letter, of the id 7-`key`."""
    history.ledger.failed[f"msg_{key}"] = 1
    history.dead[f"msg_{key}"] = history.ledger.dead[f"msg_{key}"] = f"7-{key}"


def laws(history: History) -> list[str]:
    return list(history.judge().findings)


def test_a_history_in_order_breaks_no_law():
    history = a_history("a", "b")
    sent(history, "a", 10)
    sent(history, "b", 11)

    assert laws(history) == []


def test_an_acknowledged_message_that_was_only_seen_is_lost():
    history = a_history("a")
    sent(history, "a", 10, status=None)

    assert laws(history) == ["I1"]
    assert history.judge().lost == 1


def test_an_acknowledged_message_that_was_sent_and_never_on_disk_is_lost():
    history = a_history("a")
    sent(history, "a", 10)
    history.ledger.logged.clear()

    assert laws(history) == ["I1"]
    assert history.judge().lost == 1


def test_a_dead_letter_or_a_cancelled_message_is_not_lost():
    history = a_history("a", "b")
    sent(history, "a", 10, status=500)
    history.dead = {"msg_a": "1-1"}
    history.submits["b"].cancelled = True

    assert laws(history) == []


def test_a_publish_of_unknown_result_may_go_either_way():
    history = a_history("a")
    sent(history, "a", 10)
    history.submitted("b", b"b", at_s=20)
    history.submitted("c", b"c", at_s=21)
    sent(history, "c", 22)

    assert laws(history) == []


def test_another_body_is_found():
    history = a_history("a")
    sent(history, "a", 10, body=b"b")

    assert laws(history) == ["I2"]


@pytest.mark.parametrize(
    "begins",
    [
        [("b", 10.0), ("a", 11.0)],
        [("a", 10.0), ("b", 10.05)],
    ],
    ids=["out of order", "overlapping"],
)
def test_an_order_that_is_not_kept_is_found(begins: list[tuple[str, float]]):
    history = a_history("a", "b")
    for key, at_s in begins:
        sent(history, key, at_s)

    assert laws(history) == ["I3"]


def test_a_repeat_that_is_not_adjacent_is_found():
    history = a_history("a", "b", retries=1)
    sent(history, "a", 10, status=500)
    sent(history, "b", 11)
    sent(history, "a", 12)

    assert laws(history) == ["I3"]


def test_publishes_that_overlapped_may_come_in_either_order():
    history = History()
    for key in "ab":
        history.submitted(key, key.encode(), at_s=0, queue="q")
    for key in "ab":
        accepted(history, key, at_s=1)
    sent(history, "b", 10)
    sent(history, "a", 11)

    assert laws(history) == []


def test_a_second_id_for_one_dedup_id_is_found():
    history = a_history("a")
    accepted(history, "a", at_s=2, message_id="msg_other")
    sent(history, "a", 10)
    history.dead = {"msg_other": "1-1"}

    assert laws(history) == ["I4"]


def test_a_duplicate_is_allowed_by_a_kill_that_found_it_claimed():
    history = a_history("a")
    sent(history, "a", 10)
    sent(history, "a", 20)
    assert laws(history) == ["I5"]

    history.kills.append(Kill(15, 16, frozenset({"msg_other"})))
    assert laws(history) == ["I5"]

    history.kills.append(Kill(15, 16, frozenset({"msg_a"})))
    assert laws(history) == []
    assert history.judge().duplicates == 1


def test_no_law_of_order_holds_what_was_read_when_its_sender_had_gone():
    history = a_history("a", "b", retries=1)
    late = sent(history, "a", 10.25, status=None)
    sent(history, "a", 10, retried=1)
    sent(history, "b", 10.2)
    assert laws(history) == ["I3"]

    late.late = True
    assert laws(history) == []


def test_a_repeat_that_was_read_late_is_no_repeat():
    history = a_history("a", retries=1)
    sent(history, "a", 10, retried=1)
    late = sent(history, "a", 11, status=None)
    assert laws(history) == ["I5"]

    late.late = True
    assert laws(history) == []


def test_more_attempts_than_retries_allow_are_found():
    history = a_history("a", retries=1)
    for at_s in (10, 11, 12):
        sent(history, "a", at_s, status=500)
    history.dead = {"msg_a": "1-1"}

    assert laws(history) == ["I5"]


def test_a_dead_letter_that_had_not_all_its_retries_is_found():
    history = a_history("a", retries=1)
    sent(history, "a", 10, status=500)
    history.dead = {"msg_a": "1-1"}

    assert laws(history) == ["I5"]


@pytest.mark.parametrize("there", ["acknowledged", "seen"])
def test_a_group_that_got_a_message_at_some_endpoints_only_is_found(there: str):
    history = History()
    for key in ("a@0", "a@1"):
        history.submitted(key, b"a", at_s=0, group="a")
    if there == "acknowledged":
        accepted(history, "a@0", at_s=1)
    sent(history, "a@0", 2, body=b"a")
    assert laws(history) == ["I4"]

    sent(history, "a@1", 2, body=b"a")
    assert laws(history) == []


def test_a_callback_for_every_attempt_breaks_no_law():
    history = a_history("a", "b", retries=1, wishes=CALLED_BACK)
    sent(history, "a", 10, status=500)
    sent(history, "a", 11, retried=1)
    told(history, "a", 12, says=500)
    told(history, "a", 13, nth=1, retried=1)
    sent(history, "b", 14)
    told(history, "b", 15)

    assert laws(history) == []
    assert history.judge().callbacks == 3


def test_an_attempt_that_ended_without_a_callback_is_found():
    history = a_history("a", retries=1, wishes=CALLED_BACK)
    sent(history, "a", 10, status=500)
    told(history, "a", 11, says=500)
    sent(history, "a", 12, retried=1)

    assert laws(history) == ["I7"]
    assert history.judge().callbacks_missing == 1


def test_a_callback_that_nobody_answered_is_missing_unless_it_is_a_dead_letter():
    history = a_history("a", wishes=CALLED_BACK)
    sent(history, "a", 10)
    told(history, "a", 11, status=500)
    assert laws(history) == ["I7"]
    assert history.judge().callbacks_missing == 1

    history.dead["msg_a_callback_0"] = "7-c"
    assert laws(history) == []


def test_two_callbacks_for_one_attempt_are_found_and_one_that_repeats_is_not():
    history = a_history("a", wishes=CALLED_BACK)
    sent(history, "a", 10)
    told(history, "a", 11)
    told(history, "a", 15)
    history.kills.append(Kill(12, 13, frozenset({"msg_a_callback_0"})))
    assert laws(history) == []

    told(history, "a", 16, nth=1)
    assert laws(history) == ["I7"]
    assert history.judge().callbacks_missing == 0


@pytest.mark.parametrize("why", ["not ended", "not asked for", "before it came"])
def test_a_callback_that_should_not_be_is_found(why: str):
    history = a_history("a", wishes=None if why == "not asked for" else CALLED_BACK)
    sent(history, "a", 10)
    told(history, "a", 9 if why == "before it came" else 11)
    if why == "not ended":
        history.ledger.settled.clear()

    assert laws(history) == ["I7"]


@pytest.mark.parametrize("what", ["the body", "the key", "the outcome", "the attempt"])
def test_a_callback_that_tells_something_else_than_what_was_is_found(what: str):
    history = a_history("a", wishes=CALLED_BACK)
    sent(history, "a", 10, status=500)
    failed(history, "a")
    told(history, "a", 11, says=200 if what == "the outcome" else 500)
    callback = history.callbacks[0]
    match what:
        case "the body":
            callback.body = "another"
        case "the key":
            callback.key = "b"
        case "the attempt":
            callback.told = Told("msg_a", 1)

    assert laws(history) == ["I7"]


@pytest.mark.parametrize(
    ("names", "found"), [(["7-a"], []), ([], ["I7"]), (["7-b"], ["I7"]), (["7-a", "7-a"], ["I7"])]
)
def test_a_dead_letter_has_one_failure_callback_that_names_it(names: list[str], found: list[str]):
    history = a_history("a", wishes=Wishes(failure=Wish(retries=0)))
    sent(history, "a", 10, status=500)
    failed(history, "a")
    for nth, name in enumerate(names):
        told(history, "a", 11 + nth, nth=nth, dlq_id=name, says=500)

    assert laws(history) == found


@pytest.mark.parametrize(("own", "found"), [(None, ["I3"]), ("other", [])])
def test_in_a_queue_the_next_one_waits_for_callbacks_unless_they_name_a_queue(
    own: str | None, found: list[str]
):
    history = a_history("a", "b", wishes=Wishes(callback=Wish(retries=0, queue=own)))
    sent(history, "a", 10)
    sent(history, "b", 11)
    told(history, "a", 12)
    told(history, "b", 13)

    assert laws(history) == found


def test_callbacks_that_name_a_queue_are_sent_one_at_a_time_there():
    history = a_history("a", "b", queue=None, wishes=Wishes(callback=Wish(retries=0, queue="q")))
    sent(history, "a", 10)
    sent(history, "b", 10)
    told(history, "a", 12)
    told(history, "b", 12.05)

    assert laws(history) == ["I3"]
