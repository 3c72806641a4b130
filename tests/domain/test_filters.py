"""What a filter means, field by field."""

from typing import Any

import pytest

from tests.support.factory import T0, a_message
from waypost.domain.filters import EVERYTHING, Filter, hosts_of, matches, paths_of
from waypost.domain.flow import Flow


def meant(message: Any, *, at_ms: int = T0, **fields: Any) -> bool:
    wanted = {
        name: frozenset(value) if isinstance(value, tuple) else value
        for name, value in fields.items()
    }
    return matches(Filter(**wanted), message, at_ms=at_ms)


def test_without_a_field_every_message_is_meant() -> None:
    assert matches(EVERYTHING, a_message(), at_ms=T0)


MESSAGE = a_message(
    url="https://Example.com:8443/a%20b?c=/d",
    queue="mail",
    labels=["red", "blue"],
    group="news",
    caller_ip="192.0.2.7",
    schedule="scd_1",
    flow=Flow("key", parallelism=1),
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("message_ids", MESSAGE.id),
        ("urls", MESSAGE.url),
        ("hosts", "example.com"),
        ("hosts", "example.com:8443"),
        ("paths", "/a%20b"),
        ("paths", "/a b"),
        ("queues", "mail"),
        ("labels", "red"),
        ("labels", "blue"),
        ("groups", "news"),
        ("caller_ips", "192.0.2.7"),
        ("schedules", "scd_1"),
        ("flow_keys", "key"),
    ],
)
def test_a_field_is_met_by_what_the_message_has(field: str, value: str) -> None:
    assert meant(MESSAGE, **{field: (value,)})
    assert meant(MESSAGE, **{field: ("other", value)})
    assert not meant(MESSAGE, **{field: ("other",)})
    assert not meant(a_message(url="https://else.test/"), **{field: (value,)})


def test_all_fields_must_be_met() -> None:
    assert meant(MESSAGE, labels=("red",), queues=("mail", "post"))
    assert not meant(MESSAGE, labels=("red",), queues=("post",))


def test_dates_include_both_their_ends() -> None:
    message = a_message()
    assert meant(message, from_ms=T0, to_ms=T0)
    assert not meant(message, from_ms=T0 + 1)
    assert not meant(message, to_ms=T0 - 1)
    assert meant(message, at_ms=T0 + 5, from_ms=T0 + 5)


def test_dead_letters_are_also_meant_by_their_answer_and_their_id() -> None:
    message = a_message()
    of_status = Filter(statuses=frozenset({404}))
    assert matches(of_status, message, at_ms=T0, status=404)
    assert not matches(of_status, message, at_ms=T0, status=0)
    of_id = Filter(dead_letter_ids=frozenset({"1-2"}))
    assert matches(of_id, message, at_ms=T0, dead_letter_id="1-2")
    assert not matches(of_id, message, at_ms=T0, dead_letter_id="1-3")


@pytest.mark.parametrize(
    ("url", "hosts", "paths"),
    [
        ("https://a.test", {"a.test"}, {"", "/"}),
        ("https://a.test/", {"a.test"}, {"/"}),
        ("https://a.test?b=c", {"a.test"}, {"", "/"}),
        ("http://me:secret@A.test:80/x/?y=/z", {"a.test", "a.test:80"}, {"/x/"}),
        ("http://[::1]:8080/x", {"::1", "[::1]", "[::1]:8080"}, {"/x"}),
        ("api/llm", set(), set()),
    ],
)
def test_a_url_has_a_host_and_a_path(url: str, hosts: set[str], paths: set[str]) -> None:
    assert set(hosts_of(url)) == hosts
    assert set(paths_of(url)) == paths
