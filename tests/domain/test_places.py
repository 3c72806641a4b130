"""How many attempts may be under way: in all, at each host, and at hosts nobody trusts yet."""

import random

from waypost.domain.places import SUSPECT, Places, Sign


def places(**bounds: int) -> Places:
    return Places(**{"count_max": 100, "host_count_max": 10, "bytes_max": 1_000} | bounds)


def test_a_host_has_its_own_bound() -> None:
    mine = places()
    for _ in range(10):
        assert mine.room("a")
        mine.take("a")

    assert mine.room("a") == 0
    assert mine.room("b") == 10


def test_unproven_hosts_hold_half_of_the_places_and_no_more() -> None:
    mine = places()
    mine.take("good")
    mine.give_back("good", Sign.WELL)
    for n in range(50):
        mine.take(f"hanging{n}")

    assert mine.room("hanging50") == 0
    assert mine.room("good") == 10


def test_a_host_that_turns_slow_is_no_longer_trusted_and_one_that_answers_is_again() -> None:
    mine = places(count_max=4)
    for host in ("a", "b"):
        mine.take(host)
        mine.give_back(host, Sign.WELL)
    mine.take("a")
    mine.take("a")

    mine.doubt("a")
    assert mine.room("a") == 0
    assert mine.room("new") == 0
    assert mine.room("b") == 2

    mine.give_back("a", Sign.WELL)
    assert mine.room("a") == 3
    assert mine.room("new") == 2


def test_a_host_that_was_down_comes_back_one_by_one() -> None:
    mine = places()
    mine.take("a")
    mine.give_back("a", Sign.DOWN)

    assert mine.room("a") == 1
    mine.take("a")
    mine.give_back("a", Sign.WELL)
    assert mine.room("a") == 2


def test_what_was_refused_hears_when_there_is_room_again() -> None:
    mine = places(host_count_max=1)
    mine.take("a")
    assert mine.refuse("a") == "host:a"
    assert mine.freed() == []

    mine.give_back("a", Sign.WELL)

    assert mine.freed() == ["host:a"]
    assert mine.freed() == []


def test_those_refused_for_want_of_trust_hear_when_a_place_for_the_unproven_is_free() -> None:
    mine = places(count_max=4)
    mine.take("a")
    mine.take("b")
    assert mine.room("c") == 0
    mine.refuse("c")

    mine.give_back("a", Sign.DOWN)

    assert mine.freed() == ["host:c"]


def test_one_suspect_is_sent_at_a_time() -> None:
    mine = places()
    mine.take("a", suspect=True)
    assert not mine.suspect_may_go()

    mine.give_back("a", Sign.WELL, suspect=True)

    assert mine.suspect_may_go()
    assert mine.freed() == [SUSPECT]


def test_bodies_in_memory_are_bounded_and_a_large_one_goes_alone() -> None:
    mine = places()
    assert mine.room_for_body(5_000)
    mine.take("a", size=900)

    assert mine.room_for_body(100)
    assert not mine.room_for_body(101)


def test_nothing_begins_once_it_is_closed() -> None:
    mine = places()
    mine.close()

    assert mine.free == 0


def test_whatever_happens_every_place_comes_back_and_nobody_waits_in_vain() -> None:
    dice = random.Random(7)
    mine = places(count_max=20, host_count_max=3)
    taken: list[str] = []
    waiting: set[str] = set()
    for _ in range(20_000):
        host = f"h{dice.randrange(30)}"
        if dice.random() < 0.5:
            if mine.room(host):
                mine.take(host)
                taken.append(host)
            elif host not in waiting:
                mine.refuse(host)
                waiting.add(host)
        elif taken:
            mine.give_back(taken.pop(dice.randrange(len(taken))), dice.choice(list(Sign)))
        waiting -= {resource.removeprefix("host:") for resource in mine.freed()}
        assert len(taken) == mine.in_flight <= 20
        assert max([taken.count(h) for h in set(taken)], default=0) <= 3
    while taken:
        mine.give_back(taken.pop(), Sign.WELL)
        waiting -= {resource.removeprefix("host:") for resource in mine.freed()}

    assert mine.in_flight == 0
    assert mine.free == 20
    assert waiting == set()
