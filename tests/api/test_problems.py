"""How problems look to a caller, whatever raised them."""

from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest
import structlog

from waypost.api.app import create_app
from waypost.api.exchange import Limits, Request
from waypost.api.problems import RETRY_AFTER_S, STATUS
from waypost.clock import SystemClock
from waypost.domain.dev_users import DEV_USERS
from waypost.domain.errors import Invalid, Problem, StoreFull, StoreUnavailable
from waypost.services.access import Access


def every_problem(kind: type[Problem] = Problem) -> Iterator[type[Problem]]:
    for below in kind.__subclasses__():
        yield below
        yield from every_problem(below)


@pytest.mark.parametrize("kind", list(every_problem()), ids=lambda kind: kind.__name__)
def test_every_problem_has_a_status(kind: type[Problem]) -> None:
    assert 400 <= STATUS[kind.code] < 600


def test_no_status_is_for_a_problem_that_is_not() -> None:
    assert set(STATUS) == {kind.code for kind in every_problem()}
    assert set(RETRY_AFTER_S) <= set(STATUS)


class Failing:
    """Publishing that fails in the way it is told."""

    def __init__(self, fault: Exception) -> None:
        self.fault = fault

    async def publish(self, tenant: str, incoming: object) -> object:
        raise self.fault


async def publish(fault: Exception) -> tuple[int, dict[bytes, bytes], Any]:
    nothing = cast("Any", None)
    counted: list[tuple[str, int]] = []
    app = create_app(
        publishing=cast("Any", Failing(fault)),
        messages=nothing,
        dead_letters=nothing,
        groups=nothing,
        queues=nothing,
        keys_of_flow=nothing,
        schedules=nothing,
        chatting=nothing,
        rates=nothing,
        deliveries=nothing,
        reader=nothing,
        access=Access(nothing, fixed=DEV_USERS),
        health=nothing,
        metrics=nothing,
        answered=lambda route, status: counted.append((route, status)),
        clock=SystemClock(),
        limits=Limits(),
    )
    request = Request(
        method="POST",
        path=b"/v2/publish/http://example.com",
        query=b"",
        header=[(b"authorization", b"Bearer " + DEV_USERS[0].token.encode())],
        client="127.0.0.1",
        want_more=lambda: None,
    )
    request.arrive(b"secret body")
    request.finish()
    answer = await app(request)
    assert answer is not None
    assert counted == [("/v2/publish/{destination...}", answer.status)]
    return answer.status, dict(answer.header), msgspec.json.decode(answer.body)


async def test_a_problem_is_told_in_its_own_words() -> None:
    """W4."""
    status, header, answer = await publish(Invalid('it says "ä"\n'))

    assert (status, answer) == (400, {"error": 'it says "ä"\n'})
    assert header[b"content-type"] == b"application/json"


async def test_a_full_store_is_507_and_a_store_that_is_away_503() -> None:
    assert (await publish(StoreFull("no room")))[0] == 507
    status, header, answer = await publish(StoreUnavailable("no answer from 10.0.0.5"))
    assert (status, header[b"retry-after"]) == (503, b"1")
    assert answer == {"error": "the store cannot answer now, try again"}


async def test_what_nobody_expected_is_500_and_says_no_more_than_where_to_look() -> None:
    """T16: the entry of the log has the fault's id, and neither token nor body."""
    with structlog.testing.capture_logs() as logged:
        status, _, answer = await publish(RuntimeError("secret fault"))

    [entry] = logged
    assert status == 500
    assert answer == {"error": f"internal error, see log entry {entry['fault']}"}
    assert entry["event"] == "request_fault"
    assert entry["route"] == "/v2/publish/{destination...}"
    assert DEV_USERS[0].token not in str(entry)
    assert "secret body" not in str(entry)
