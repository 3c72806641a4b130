"""How many attempts may be under way: in all, at each host, and at hosts nobody trusts yet."""

import random
from time import perf_counter

from waypost.domain.places import BODIES, NODE, SUSPECT, Places, Sign


def places(**bounds: int) -> Places:
    return Places(**{"count_max": 100, "host_count_max": 10, "bytes_max": 1_000} | bounds)


def test_a_host_has_its_own_bound() -> None:
    mine = places()
    for _ in range(10):
        assert mine.room("a")
        mine.take("a")

    assert mine.room("a") == 0
    assert mine.room("b") == 10


def prove(mine: Places, *hosts: str) -> None:
    for host in hosts:
        mine.take(host)
        mine.give_back(host, Sign.WELL)


def opened(mine: Places) -> list[str]:
    return [resource.removeprefix("host:") for resource, _ in mine.openings()]


def test_unproven_hosts_hold_half_of_the_places_and_no_more() -> None:
    mine = places()
    prove(mine, "good")
    for n in range(50):
        mine.take(f"hanging{n}")

    assert mine.room("hanging50") == 0
    assert mine.refusal("hanging50") == "host:hanging50"
    assert mine.room("good") == 10


def test_an_attempt_that_lingers_leaves_its_place_to_others() -> None:
    mine = places(count_max=4)
    mine.take("a")
    mine.take("a")
    assert mine.room("new") == 0

    assert mine.linger("a")

    assert (mine.free, mine.in_flight, mine.lingering) == (3, 2, 1)
    assert mine.room("new") == 1
    mine.give_back("a", Sign.SLOW, lingers=True)
    mine.give_back("a", Sign.SLOW)
    assert (mine.free, mine.in_flight, mine.lingering) == (4, 0, 0)


def test_what_lingers_is_bounded_and_holds_its_place_beyond_that() -> None:
    mine = places(count_max=10, host_count_max=100)
    for n in range(40):
        mine.take(f"h{n}")
        assert mine.linger(f"h{n}")
    prove(mine, "good")
    mine.take("good")

    assert not mine.linger("good")
    assert (mine.free, mine.lingering) == (9, 40)


def test_a_thousand_hanging_hosts_cannot_keep_a_new_host_from_its_first_attempt() -> None:
    mine = places(count_max=100, host_count_max=64)
    hanging = [f"hanging{n}" for n in range(100)]
    for _ in range(20):  # all they can get, for as long as it takes
        young = []
        for host in hanging * 2:
            if mine.room(host):
                mine.take(host)
                young.append(host)
        for host in young:
            assert mine.linger(host)

    assert mine.lingering > 200
    assert mine.free == 100
    assert mine.room("new") == 1
    prove(mine, "new")
    assert mine.room("new") == 64


def test_a_host_gets_its_first_attempt_before_others_get_more() -> None:
    mine = places(count_max=4)
    mine.take("busy")
    mine.take("other")
    for host in ("busy", "new"):
        resource = mine.refusal(host)
        assert resource is not None
        mine.wait_for(resource)

    mine.give_back("other", Sign.SLOW)

    assert opened(mine) == ["new"]


def test_a_host_that_turns_slow_is_no_longer_trusted_and_one_that_answers_is_again() -> None:
    mine = places(count_max=4)
    prove(mine, "a", "b")
    for _ in range(3):
        mine.take("a")

    mine.linger("a")
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


def test_what_was_refused_hears_when_there_is_room_again_and_how_much() -> None:
    mine = places(host_count_max=2)
    mine.take("a")
    mine.take("a")
    assert mine.refusal("a") == "host:a"
    mine.wait_for("host:a")
    assert not mine.any_open
    assert mine.openings() == []

    mine.give_back("a", Sign.WELL)

    assert mine.any_open
    assert mine.openings() == [("host:a", 1)]
    assert mine.openings() == []


def test_hosts_that_are_full_themselves_do_not_stand_in_the_way_of_others() -> None:
    mine = places(count_max=20, host_count_max=20)
    down = [f"down{n}" for n in range(10)]
    for host in down:
        mine.take(host)
        mine.give_back(host, Sign.DOWN)
    for host in down:
        mine.take(host)
    for host in [*down[:9], "new"]:
        mine.wait_for(f"host:{host}")

    mine.give_back("down9", Sign.SLOW)

    assert opened(mine) == ["new"]


def test_giving_back_costs_the_same_however_many_wait() -> None:
    def took_s(waiting: int) -> float:
        mine = places(count_max=1_024)
        for n in range(512):
            mine.take(f"u{n}")
        for n in range(waiting):
            mine.wait_for(f"host:w{n}")
        began_s = perf_counter()
        for n in range(500):
            mine.give_back(f"u{n}", Sign.SLOW)
            assert mine.any_open or not waiting
            mine.take(f"u{n}")
        return perf_counter() - began_s

    few = min(took_s(10) for _ in range(5))
    many = min(took_s(20_000) for _ in range(5))
    assert many < 10 * few


def test_when_the_node_is_full_nobody_waits_for_a_host() -> None:
    mine = places(count_max=2)
    prove(mine, "a")
    mine.take("a")
    mine.take("a")

    assert mine.refusal("a") == mine.refusal("b") == NODE
    mine.wait_for(NODE)
    assert mine.full
    mine.give_back("a", Sign.WELL)
    assert not mine.full
    assert mine.openings() == []


def test_one_suspect_is_sent_at_a_time() -> None:
    mine = places()
    mine.take("a", suspect=True)
    assert mine.refusal("b", suspect=True) == SUSPECT
    assert mine.refusal("b") is None
    mine.wait_for(SUSPECT)

    mine.give_back("a", Sign.WELL, suspect=True)

    assert mine.refusal("b", suspect=True) is None
    assert mine.openings() == [(SUSPECT, 1)]


def test_bodies_in_memory_are_bounded_and_a_large_one_goes_alone() -> None:
    mine = places()
    prove(mine, "a")
    assert mine.refusal("a", size=5_000) is None
    mine.take("a", size=900)

    assert mine.refusal("a", size=100) is None
    assert mine.refusal("a", size=101) == NODE


def test_unproven_hosts_hold_half_of_the_bodies() -> None:
    mine = places()
    prove(mine, "good")
    mine.take("hanging", size=600)

    assert mine.refusal("hanging", size=1) == mine.refusal("new", size=1) == BODIES
    assert mine.refusal("new") is None
    assert mine.refusal("good", size=400) is None
    mine.wait_for(BODIES)
    assert not mine.any_open
    mine.give_back("hanging", Sign.WELL, size=600)
    assert [resource for resource, _ in mine.openings()] == [BODIES]


def test_of_the_hosts_that_are_known_the_one_longest_idle_is_forgotten() -> None:
    mine = places(hosts_known_max=3)
    for host in ("a", "b", "c"):
        mine.take(host)
        mine.give_back(host, Sign.DOWN)
    prove(mine, "a")
    mine.take("d")
    mine.give_back("d", Sign.DOWN)

    assert mine.room("d") == 1
    assert mine.room("a") == 2
    assert mine.room("b") == 10


def test_nothing_begins_once_it_is_closed() -> None:
    mine = places()
    mine.close()

    assert mine.free == 0
    assert mine.refusal("a") == NODE


def test_whatever_happens_every_place_comes_back_and_nobody_waits_in_vain() -> None:
    dice = random.Random(7)
    mine = places(count_max=20, host_count_max=3, hosts_known_max=5)
    taken: list[tuple[str, bool]] = []
    waiting: set[str] = set()
    for _ in range(20_000):
        host = f"h{dice.randrange(30)}"
        chance = dice.random()
        if chance < 0.5:
            refusal = mine.refusal(host)
            if refusal is None:
                assert mine.room(host)
                mine.take(host)
                taken.append((host, False))
            elif refusal != NODE:
                mine.wait_for(refusal)
                waiting.add(host)
        elif chance < 0.6 and taken:
            at = dice.randrange(len(taken))
            if not taken[at][1]:
                taken[at] = (taken[at][0], mine.linger(taken[at][0]))
        elif taken:
            host, lingers = taken.pop(dice.randrange(len(taken)))
            mine.give_back(host, dice.choice(list(Sign)), lingers=lingers)
        if dice.random() < 0.5:
            waiting -= set(opened(mine))
        assert mine.in_flight == len(taken)
        assert mine.lingering == sum(lingers for _, lingers in taken) <= 80
        assert 20 - mine.free == len(taken) - mine.lingering <= 20
        hosts = [host for host, _ in taken]
        assert max([hosts.count(h) for h in set(hosts)], default=0) <= 3
        if mine.free:
            assert all(mine.any_open or not mine.room(host) for host in waiting)
    while taken:
        host, lingers = taken.pop()
        mine.give_back(host, Sign.WELL, lingers=lingers)
    while mine.any_open:
        waiting -= set(opened(mine))

    assert (mine.in_flight, mine.lingering, mine.free) == (0, 0, 20)
    assert waiting == set()
