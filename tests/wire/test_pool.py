"""Idle connections: which one is taken, how many are kept, how long; and who may close one."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from waypost.wire.http1 import Connection, Pool, Route

HERE = Route("192.0.2.1", 80, None)
THERE = Route("192.0.2.2", 80, None)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class ByHand:
    """A loop whose time is set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls: list[Timer] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, wait_s: float, call: Callable[[], None]) -> "Timer":
        timer = Timer(self, self.now_s + wait_s, call)
        self.calls.append(timer)
        return timer

    def until(self, now_s: float) -> None:
        while due := [timer for timer in self.calls if timer.at_s <= now_s]:
            first = min(due, key=lambda timer: timer.at_s)
            first.cancel()
            self.now_s = first.at_s
            first.call()
        self.now_s = now_s


class Timer:
    def __init__(self, loop: ByHand, at_s: float, call: Callable[[], None]) -> None:
        self.at_s = at_s
        self.call = call
        self._loop = loop

    def cancel(self) -> None:
        self._loop.calls.remove(self)


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def get_write_buffer_size(self) -> int:
        return 0


def a_connection(pool: Pool, route: Route = HERE, loop: Any = None) -> tuple[Connection, Transport]:
    connection = Connection(route=route, pool=pool, body_bytes_max=100, loop=loop)
    transport = Transport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    return connection, transport


@pytest.fixture
def loop() -> ByHand:
    return ByHand()


@pytest.fixture
def pool(loop: ByHand) -> Pool:
    return Pool(loop=loop, idle_s_max=10, idle_per_route_max=3, idle_max=4)  # type: ignore[arg-type]


def test_the_last_one_used_is_the_first_one_taken(pool):
    first, second = a_connection(pool)[0], a_connection(pool)[0]
    pool.put(first)
    pool.put(second)
    assert pool.take(THERE) is None
    assert pool.take(HERE) is second
    assert pool.take(HERE) is first
    assert pool.take(HERE) is None


def test_no_more_are_kept_to_one_place_than_allowed(pool):
    all_of_them = [a_connection(pool) for _ in range(5)]
    for connection, _ in all_of_them:
        pool.put(connection)
    assert [transport.aborted for _, transport in all_of_them] == [False] * 3 + [True] * 2
    assert len(pool) == 3


def test_no_more_are_kept_in_all_than_allowed_and_new_ones_win(pool):
    old = [a_connection(pool) for _ in range(3)]
    new = [a_connection(pool, THERE) for _ in range(2)]
    for connection, _ in old + new:
        pool.put(connection)
    assert [transport.aborted for _, transport in old] == [True, False, False]
    assert not any(transport.aborted for _, transport in new)
    assert len(pool) == 4


def test_room_is_made_in_routes_that_have_something(pool):
    taken = a_connection(pool)[0]
    pool.put(taken)
    pool.take(HERE)
    routes = [Route("192.0.2.9", port, None) for port in range(5)]
    for route in routes:
        pool.put(a_connection(pool, route)[0])
    assert pool.take(routes[0]) is None
    assert all(pool.take(route) is not None for route in routes[1:])


def test_idle_ones_are_closed_when_their_time_is_over(pool, loop):
    old, young = a_connection(pool), a_connection(pool)
    pool.put(old[0])
    loop.until(8)
    pool.put(young[0])
    loop.until(15)
    assert old[1].aborted
    assert not young[1].aborted
    loop.until(100)
    assert young[1].aborted
    assert len(pool) == 0
    assert loop.calls == []


def test_a_closed_pool_keeps_nothing(pool, loop):
    before, after = a_connection(pool), a_connection(pool, THERE)
    pool.put(before[0])
    pool.close()
    pool.put(after[0])
    assert before[1].aborted
    assert after[1].aborted
    assert len(pool) == 0
    assert loop.calls == []


async def test_one_who_gives_up_late_does_not_touch_the_next_exchange():
    loop = asyncio.get_running_loop()
    pool = Pool(loop=loop)
    connection, transport = a_connection(pool, loop=loop)
    first = connection.exchange(b"1", b"", head_only=False, wait_s=5)
    await asyncio.sleep(0)
    connection.data_received(OK)
    assert pool.take(HERE) is connection
    second = connection.exchange(b"2", b"", head_only=False, wait_s=5)
    connection.give_up(first)
    assert not transport.aborted
    await asyncio.sleep(0)
    connection.data_received(OK)
    assert (await first).body == (await second).body == b"ok"
    pool.close()


async def test_an_answer_that_came_before_the_request_left_is_nobodys():
    loop = asyncio.get_running_loop()
    pool = Pool(loop=loop)
    connection, transport = a_connection(pool, loop=loop)
    waiter = connection.exchange(b"1", b"", head_only=False, wait_s=5)
    connection.data_received(OK)

    outcome = await waiter
    assert not outcome.delivered
    assert connection.unanswered
    assert transport.aborted
    assert len(pool) == 0


async def test_an_answer_to_one_who_was_cancelled_closes_the_connection():
    loop = asyncio.get_running_loop()
    pool = Pool(loop=loop)
    connection, transport = a_connection(pool, loop=loop)
    waiter = connection.exchange(b"1", b"", head_only=False, wait_s=5)
    await asyncio.sleep(0)
    waiter.cancel()
    connection.data_received(OK)
    assert transport.aborted
    assert len(pool) == 0
    connection.give_up(waiter)


async def test_a_connection_already_closing_is_not_written_to():
    loop = asyncio.get_running_loop()
    pool = Pool(loop=loop)
    connection, transport = a_connection(pool, loop=loop)
    transport.aborted = True
    outcome = await connection.exchange(b"1", b"", head_only=False, wait_s=5)
    assert outcome.error is not None
    assert connection.unanswered
    assert transport.written == []
