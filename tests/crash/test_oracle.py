"""The oracle itself: a history in which one law is broken is found guilty of that law alone."""

import pytest

from tests.support.history import Attempt, History, Kill


def a_history(*keys: str, queue: str | None = "q", retries: int = 0) -> History:
    """Messages submitted and acknowledged one after the other, at 0, 1, 2 … seconds."""
    history = History()
    for at, key in enumerate(keys):
        history.submitted(key, key.encode(), at_s=at, queue=queue, retries=retries)
        history.acked(key, f"msg_{key}", at_s=at + 0.5)
    return history


def sent(
    history: History, key: str, at_s: float, *, status: int | None = 200, body: bytes | None = None
) -> Attempt:
    """One attempt that takes a tenth of a second."""
    attempt = history.began(key, f"msg_{key}", key.encode() if body is None else body, at_s=at_s)
    attempt.end_s, attempt.status = at_s + 0.1, status
    return attempt


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


def test_a_dead_letter_or_a_cancelled_message_is_not_lost():
    history = a_history("a", "b")
    sent(history, "a", 10, status=500)
    history.dead = {"msg_a"}
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
        history.acked(key, f"msg_{key}", at_s=1)
    sent(history, "b", 10)
    sent(history, "a", 11)

    assert laws(history) == []


def test_a_second_id_for_one_dedup_id_is_found():
    history = a_history("a")
    history.acked("a", "msg_other", at_s=2)
    sent(history, "a", 10)
    history.dead = {"msg_other"}

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


def test_more_attempts_than_retries_allow_are_found():
    history = a_history("a", retries=1)
    for at_s in (10, 11, 12):
        sent(history, "a", at_s, status=500)
    history.dead = {"msg_a"}

    assert laws(history) == ["I5"]


def test_a_dead_letter_that_had_not_all_its_retries_is_found():
    history = a_history("a", retries=1)
    sent(history, "a", 10, status=500)
    history.dead = {"msg_a"}

    assert laws(history) == ["I5"]
