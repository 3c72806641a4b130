"""What time it is for nodes that share a database."""

import pytest

from tests.support.factory import HOUR, SECOND, T0
from waypost.clock import DatabaseClock


class Machine:
    """A machine's monotonic clock (s), and its wall clock, which is of no use."""

    def __init__(self) -> None:
        self.s = 1_000.0

    def now_ms(self) -> int:
        return 7


class Rig:
    """A clock that has heard the database say T0."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.clock = DatabaseClock(monotonic_s=lambda: self.machine.s, system=self.machine)
        self.hear(T0)

    def go_on(self, span_ms: int) -> None:
        self.machine.s += span_ms / 1000

    def hear(self, heard_ms: int, *, took_ms: int = 0) -> None:
        asked_s = self.machine.s
        self.go_on(took_ms)
        self.clock.on_time(heard_ms, asked_s)

    def now(self) -> int:
        """Relative to T0."""
        return self.clock.now_ms() - T0


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_before_anything_was_heard_it_is_the_systems():
    assert DatabaseClock(system=Machine()).now_ms() == 7


def test_it_is_carried_on_by_the_machines_own_clock(rig: Rig):
    assert rig.now() == 0
    rig.go_on(2_500)
    assert rig.now() == 2_500


def test_a_slow_answer_that_fits_changes_nothing(rig: Rig):
    rig.go_on(SECOND)
    rig.hear(T0 + SECOND + 100, took_ms=3_000)
    assert rig.now() == 4_000


def test_the_first_answer_is_taken_to_be_true_half_way():
    machine = Machine()
    clock = DatabaseClock(monotonic_s=lambda: machine.s, system=machine)
    machine.s += 0.1
    clock.on_time(T0, machine.s - 0.1)
    assert clock.now_ms() == T0 + 50


def test_a_clock_that_drifts_is_led_back_by_small_steps(rig: Rig):
    for _ in range(10):
        rig.go_on(SECOND)
        rig.hear(T0 + rig.now() - 1, took_ms=0)  # ours gains a millisecond each second
        assert rig.now() >= 0
    rig.go_on(SECOND)
    assert rig.now() == 11 * SECOND - 10


def test_it_never_goes_back_and_goes_on_once_that_time_has_come_again(rig: Rig):
    rig.go_on(HOUR)
    assert rig.now() == HOUR
    rig.hear(T0 + HOUR - SECOND)
    assert rig.now() == HOUR
    rig.go_on(999)
    assert rig.now() == HOUR
    rig.go_on(2)
    assert rig.now() == HOUR + 1


def test_a_database_that_is_set_ahead_is_followed_at_once(rig: Rig):
    rig.hear(T0 + HOUR)
    assert rig.now() == HOUR
