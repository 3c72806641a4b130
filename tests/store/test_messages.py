"""What `Deliveries` promises: added, claimed, settled, released, cancelled."""

import asyncio
from random import Random
from string import ascii_letters

import pytest

from tests.store.bench import Bench, id_of, ids, queued
from tests.store.conftest import Open
from tests.support.factory import ERROR, HOUR, MINUTE, OK, SECOND, T0, a_draft, some_places
from waypost.domain.attempt import Delivered, GiveUp, Outcome, TryAgain
from waypost.domain.deduplication import dedup_key, group_dedup_keys
from waypost.domain.destination import URL_BYTES_MAX
from waypost.domain.errors import StaleClaim, StoreFull
from waypost.domain.options import DEDUPLICATION_ID_CHARS_MAX, NAME_CHARS_MAX
from waypost.domain.places import INTERRUPTED_MAX, SUSPECT_AFTER, Sign
from waypost.store.protocol import LogFilter

# Acceptance


async def test_what_was_added_is_there_with_its_body_when_the_call_returns(bench: Bench) -> None:
    draft = a_draft(body=b"\x00\xff bytes", header={"X-A": ["1", "2"]}, labels=["a", "b"])

    [accepted] = await bench.add(draft)

    assert accepted.message_id == id_of(draft)
    assert not accepted.deduplicated
    assert await bench.store.message("acme", id_of(draft)) == (draft.message, b"\x00\xff bytes")


async def test_what_was_acknowledged_is_there_when_the_store_is_opened_again(
    open_store: Open, durable: None
) -> None:
    draft = a_draft()
    async with open_store() as store:
        await Bench(store).add_waiting(draft)

    async with open_store() as store:
        [claim] = await Bench(store).claim()

    assert (claim.message, claim.body) == (draft.message, draft.body)


async def test_a_message_that_is_due_is_claimed_at_birth_and_logged_as_active(
    bench: Bench,
) -> None:
    draft = a_draft()

    await bench.add(draft)

    [claim] = bench.born
    assert (claim.message, claim.body, claim.retried) == (draft.message, b"hello", 0)
    assert bench.places.in_flight == 1
    assert await bench.states(id_of(draft)) == ["CREATED", "ACTIVE"]
    assert await bench.claim() == []


async def test_a_delayed_message_waits_for_its_time(bench: Bench) -> None:
    draft = a_draft(delay_ms=MINUTE)
    await bench.add(draft)

    assert bench.born == []
    assert await bench.next_due_ms() == T0 + MINUTE
    assert await bench.claim(now_ms=T0 + MINUTE - 1) == []
    assert ids(await bench.claim(now_ms=T0 + MINUTE)) == [id_of(draft)]


async def test_nothing_is_claimed_at_birth_behind_what_waits_in_its_lane(bench: Bench) -> None:
    first, second = a_draft(), a_draft()
    await bench.add_waiting(first)

    await bench.add(second)

    assert bench.born == []
    assert ids(await bench.claim()) == [id_of(first), id_of(second)]


async def test_what_is_not_due_does_not_keep_others_from_being_claimed_at_birth(
    bench: Bench,
) -> None:
    await bench.add(a_draft(delay_ms=HOUR), *queued(count=1, delay_ms=HOUR))

    now = a_draft()
    queue_now = queued(count=1)
    await bench.add(now, *queue_now)

    assert ids(bench.born) == [id_of(now), id_of(queue_now[0])]


async def test_half_of_the_places_stay_for_lanes_that_are_ready(open_store: Open) -> None:
    async with open_store() as store:
        bench = Bench(store, some_places(count_max=10))
        await bench.add_waiting(a_draft(url="https://waiting.example/"))

        await bench.add(*[a_draft() for _ in range(10)])

        assert len(bench.born) == 5


async def test_a_host_takes_no_more_births_than_it_has_places(open_store: Open) -> None:
    async with open_store() as store:
        bench = Bench(store, some_places(host_count_max=2))

        drafts = [a_draft() for _ in range(3)]
        await bench.add(*drafts)

        assert ids(bench.born) == [id_of(draft) for draft in drafts[:2]]
        assert await bench.claim() == []
        await bench.deliver(bench.born[0])
        assert ids(await bench.claim()) == [id_of(drafts[2])]


async def test_publishes_are_refused_below_the_watermark_and_settles_go_on(
    open_store: Open, watermark: None
) -> None:
    async with open_store() as store:
        await Bench(store).add_waiting(a_draft())

    async with open_store(free_bytes_min=1 << 62) as store:
        bench = Bench(store)
        with pytest.raises(StoreFull):
            await bench.add(a_draft())
        [claim] = await bench.claim()
        assert await bench.deliver(claim) == "DELIVERED"


# Deduplication


async def test_the_second_of_a_kind_is_answered_with_the_id_of_the_first(bench: Bench) -> None:
    first, second = a_draft(dedup_key="id:a"), a_draft(dedup_key="id:a")
    await bench.add(first)

    [accepted] = await bench.add(second)

    assert (accepted.message_id, accepted.deduplicated) == (id_of(first), True)
    assert await bench.store.message("acme", id_of(second)) is None
    assert len(bench.born) == 1


async def test_of_equal_keys_in_one_call_the_first_wins(bench: Bench) -> None:
    drafts = [a_draft(dedup_key="id:a") for _ in range(3)]

    accepted = await bench.add(*drafts)

    assert [a.message_id for a in accepted] == [id_of(drafts[0])] * 3
    assert [a.deduplicated for a in accepted] == [False, True, True]


async def test_of_equal_keys_at_the_same_moment_one_wins(bench: Bench) -> None:
    drafts = [a_draft(dedup_key="id:a") for _ in range(50)]

    answers = await asyncio.gather(*[bench.add(draft) for draft in drafts])

    assert len({accepted.message_id for [accepted] in answers}) == 1
    assert sum(not accepted.deduplicated for [accepted] in answers) == 1


async def test_a_key_is_free_again_when_its_window_ends(bench: Bench) -> None:
    await bench.add(a_draft(dedup_key="id:a", window_ms=MINUTE))

    [inside] = await bench.add(a_draft(dedup_key="id:a"), now_ms=T0 + MINUTE - 1)
    [after] = await bench.add(a_draft(dedup_key="id:a"), now_ms=T0 + MINUTE)

    assert inside.deduplicated
    assert not after.deduplicated


async def test_cancelling_does_not_free_a_key(bench: Bench) -> None:
    draft = a_draft(dedup_key="id:a", delay_ms=HOUR)
    await bench.add(draft)
    await bench.store.cancel("acme", id_of(draft), now_ms=T0)

    [accepted] = await bench.add(a_draft(dedup_key="id:a"))

    assert accepted.deduplicated


async def test_a_key_belongs_to_its_tenant(bench: Bench) -> None:
    await bench.add(a_draft(dedup_key="id:a"))

    [accepted] = await bench.add(a_draft(dedup_key="id:a", tenant="other"))

    assert not accepted.deduplicated


async def test_the_longest_id_and_the_longest_urls_make_keys_as_short_ones_do(
    bench: Bench,
) -> None:
    """Of characters that no index can compress."""
    random = Random(1)
    long_id = "".join(
        chr(random.randrange(0x1_0000, 0x1_F000)) for _ in range(DEDUPLICATION_ID_CHARS_MAX)
    )
    urls = [
        f"https://{name}.example/".ljust(40, "/") + "".join(random.choices(ascii_letters, k=8_152))
        for name in "ab"
    ]
    assert {len(url) for url in urls} == {URL_BYTES_MAX}
    keys = [
        dedup_key(deduplication_id=long_id, content_based=False, url=urls[0], header={}, body=b"")
    ]
    for deduplication_id in (long_id, None):
        keys += group_dedup_keys(
            deduplication_id=deduplication_id,
            content_based=True,
            group="g" * NAME_CHARS_MAX,
            urls=urls,
            header={},
            body=b"",
        )

    first = await bench.add(*[a_draft(url=urls[0], dedup_key=key) for key in keys])
    again = await bench.add(*[a_draft(url=urls[0], dedup_key=key) for key in keys])

    assert [one.deduplicated for one in first] == [False] * 5
    assert [one.deduplicated for one in again] == [True] * 5
    assert [one.message_id for one in again] == [one.message_id for one in first]


# Claiming


async def test_no_message_is_handed_out_twice(bench: Bench) -> None:
    drafts = [a_draft() for _ in range(40)]
    await bench.add_waiting(*drafts)

    claims = await asyncio.gather(*[bench.claim(7) for _ in range(8)])

    handed_out = [claim.message.id for some in claims for claim in some]
    assert sorted(handed_out) == sorted(map(id_of, drafts))


async def test_a_lane_is_claimed_in_order(bench: Bench) -> None:
    late = a_draft(at_ms=T0)
    early = a_draft(at_ms=T0 - SECOND)
    await bench.add_waiting(late, early)

    assert ids(await bench.claim(1)) == [id_of(early)]
    assert ids(await bench.claim(1)) == [id_of(late)]


async def test_a_claim_takes_turns_between_tenants_and_then_lanes(bench: Bench) -> None:
    crowd = [a_draft(url=f"https://h{n % 10}.example/", tenant="crowd") for n in range(200)]
    lonely = a_draft(tenant="lonely", at_ms=T0)
    await bench.add_waiting(*crowd, lonely)

    claims = await bench.claim(20)

    assert id_of(lonely) in ids(claims)
    hosts = [claim.host for claim in claims if claim.message.tenant == "crowd"]
    assert len(set(hosts)) == 10
    assert max(hosts.count(host) for host in hosts) <= 3


async def test_every_lane_has_its_turn_in_the_end(bench: Bench) -> None:
    drafts = [a_draft(url=f"https://h{n}.example/") for n in range(300) for _ in range(2)]
    await bench.add_waiting(*drafts)

    seen: set[str] = set()
    for n in range(300):
        for claim in await bench.claim(2, now_ms=T0 + n):
            seen.add(claim.host)
            await bench.deliver(claim, now_ms=T0 + n)

    assert len(seen) == 300


async def test_a_host_without_places_costs_the_others_nothing(open_store: Open) -> None:
    async with open_store() as store:
        bench = Bench(store, some_places(host_count_max=1))
        hanging = [a_draft(url="https://hanging.example/") for _ in range(50)]
        good = [a_draft(url=f"https://good{n}.example/") for n in range(5)]
        await bench.add_waiting(*hanging, *good)

        claims = await bench.claim()

        assert len(claims) == 6
        assert await bench.claim() == []
        assert await bench.next_due_ms() is None
        [stuck] = [claim for claim in claims if claim.host == "https://hanging.example:443"]
        await bench.deliver(stuck)
        assert len(await bench.claim()) == 1


async def test_a_large_body_goes_alone_and_others_wait_for_room(open_store: Open) -> None:
    async with open_store() as store:
        bench = Bench(store, some_places(bytes_max=1_000))
        large, small = a_draft(body=b"x" * 2_000), a_draft(body=b"y")
        await bench.add_waiting(large, small)

        [first] = await bench.claim()
        assert first.body == large.body
        assert await bench.claim() == []
        await bench.deliver(first)
        assert ids(await bench.claim()) == [id_of(small)]


async def test_nothing_is_claimed_when_there_are_no_places_asked_for(bench: Bench) -> None:
    await bench.add_waiting(a_draft())

    assert await bench.claim(0) == []
    assert len(await bench.claim()) == 1


async def test_a_tenant_that_is_ready_goes_though_many_others_have_lanes_that_are_not(
    bench: Bench,
) -> None:
    await bench.add(*[a_draft(tenant=f"a{n:03}", delay_ms=HOUR) for n in range(200)])
    lonely = a_draft(tenant="z")
    await bench.add_waiting(lonely)

    assert ids(await bench.claim()) == [id_of(lonely)]


async def test_tenants_with_few_lanes_go_beside_one_with_thousands(open_store: Open) -> None:
    async with open_store() as store:
        bench = Bench(store, some_places(count_max=4))
        crowd = [a_draft(url=f"https://h{n}.example/", tenant="crowd") for n in range(1_500)]
        await bench.add_waiting(*crowd)
        lonely = [a_draft(tenant=f"t{n:03}", at_ms=T0 + 1) for n in range(20)]
        await bench.add_waiting(*lonely, now_ms=T0 + 1)

        seen: set[str] = set()
        for n in range(30):
            for claim in await bench.claim(2, now_ms=T0 + 2 + n):
                seen.add(claim.message.tenant)
                await bench.deliver(claim, now_ms=T0 + 2 + n)

        assert len(seen) == 21


async def test_a_lane_has_its_turn_though_busy_queues_have_older_messages(
    open_store: Open,
) -> None:
    async with open_store() as store:
        bench = Bench(store, some_places(count_max=10))
        await bench.add_waiting(*[draft for n in range(20) for draft in queued(f"q{n}", count=30)])
        plain = a_draft(at_ms=T0 + MINUTE)
        await bench.add_waiting(plain, now_ms=T0 + MINUTE)

        seen: list[str] = []
        for n in range(5):
            now_ms = T0 + MINUTE + n
            claims = await bench.claim(10, now_ms=now_ms)
            seen += ids(claims)
            for claim in claims:
                await bench.deliver(claim, now_ms=now_ms)

        assert id_of(plain) in seen


async def test_a_lane_keeps_its_turn_while_more_is_added_to_it(open_store: Open) -> None:
    async with open_store() as store:
        bench = Bench(store, some_places(count_max=2))
        [first] = queued("patient", count=1)
        await bench.add_waiting(first)

        for n in range(20):
            now_ms = T0 + n
            await bench.add_waiting(*queued("patient", count=1), now_ms=now_ms)
            await bench.add_waiting(a_draft(url=f"https://h{n}.example/"), now_ms=now_ms)
            for claim in await bench.claim(1, now_ms=now_ms):
                if claim.message.queue == "patient":
                    assert claim.message.id == id_of(first)
                    return
                await bench.deliver(claim, now_ms=now_ms)
        raise AssertionError("it never had its turn")


async def test_a_full_node_keeps_no_lane_out_of_the_turns(open_store: Open) -> None:
    async with open_store() as store:
        places = some_places(count_max=20, host_count_max=20)
        bench = Bench(store, places)
        a, b = a_draft(url="https://a.example/").host, a_draft(url="https://b.example/").host
        for host in (a, b):
            places.take(host)
            places.give_back(host, Sign.WELL)
        for n in range(10):
            places.take(f"hanging{n}")
        for _ in range(6):
            places.take(a)
        await bench.add_waiting(a_draft(url="https://b.example/", delay_ms=1))
        births = [a_draft(url="https://a.example/") for _ in range(4)]

        # Births of the same moment take places that the claim had asked for.
        _, claimed = await asyncio.gather(bench.add(*births), bench.claim(4, now_ms=T0 + 1))
        for _ in range(6):
            places.give_back(a, Sign.WELL)

        assert len(bench.born) + len(claimed) == 4
        assert len(await bench.claim(now_ms=T0 + 1)) == 1


async def test_large_bodies_for_a_host_that_hangs_keep_nobody_from_being_sent(
    open_store: Open,
) -> None:
    async with open_store() as store:
        bench = Bench(store, some_places(bytes_max=10_000))
        await bench.add(a_draft(url="https://good.example/"))
        await bench.deliver(bench.born.pop())
        await bench.add(
            *[a_draft(url="https://hanging.example/", body=b"x" * 2_000) for _ in range(20)]
        )
        assert len(bench.born) == 2

        good = a_draft(url="https://good.example/", body=b"y" * 5_000)
        bench.born.clear()
        await bench.add_waiting(good)

        assert ids(await bench.claim()) == [id_of(good)]


async def test_a_message_whose_body_found_no_room_goes_when_there_is_some(
    open_store: Open,
) -> None:
    async with open_store() as store:
        bench = Bench(store, some_places(bytes_max=10_000))
        first = a_draft(url="https://a.example/", body=b"x" * 4_000)
        second = a_draft(url="https://b.example/", body=b"x" * 4_000)
        await bench.add_waiting(first, second)
        [claim] = await bench.claim()
        assert await bench.claim() == []

        await bench.end(claim, TryAgain(T0 + HOUR), sign=Sign.DOWN)

        assert len(await bench.claim()) == 1


# Settling


async def test_a_success_ends_the_message_and_is_logged_once(bench: Bench) -> None:
    draft = a_draft()
    await bench.add(draft)

    assert await bench.deliver(bench.born[0], now_ms=T0 + 5) == "DELIVERED"

    assert await bench.states(id_of(draft)) == ["CREATED", "ACTIVE", "DELIVERED"]
    assert await bench.claim(now_ms=T0 + HOUR) == []
    assert await bench.store.message("acme", id_of(draft)) is not None


async def test_a_failure_is_due_again_when_the_verdict_says_and_keeps_its_answer(
    bench: Bench,
) -> None:
    draft = a_draft()
    await bench.add(draft)

    assert await bench.retry(bench.born[0], at_ms=T0 + 7 * SECOND, now_ms=T0 + 1) == "RETRY"

    assert await bench.next_due_ms() == T0 + 7 * SECOND
    assert await bench.claim(now_ms=T0 + 7 * SECOND - 1) == []
    [again] = await bench.claim(now_ms=T0 + 7 * SECOND)
    assert again.retried == 1
    _, _, error, retry, _ = await bench.log(id_of(draft))
    assert (error.state, error.response_status, error.response_body) == ("ERROR", 500, b"no")
    assert error.response_header == {"Content-Type": ["text/plain"]}
    assert (retry.state, retry.next_delivery_ms) == ("RETRY", T0 + 7 * SECOND)


async def test_a_message_that_is_given_up_becomes_a_dead_letter_with_its_last_answer(
    bench: Bench,
) -> None:
    draft = a_draft()
    await bench.add(draft)

    assert await bench.fail(bench.born[0], now_ms=T0 + 9) == "FAILED"

    assert await bench.states(id_of(draft)) == ["CREATED", "ACTIVE", "ERROR", "FAILED"]
    page = await bench.store.dead_letters("acme", cursor=None, count_max=10)
    [letter] = page.dead_letters
    assert (letter.message, letter.body, letter.failed_ms) == (draft.message, b"hello", T0 + 9)
    assert (letter.response_status, letter.response_body) == (500, b"no")
    assert letter.why == "failed 4 times"
    assert await bench.store.dead_letter("acme", letter.id) == letter
    assert await bench.claim(now_ms=T0 + HOUR) == []


async def test_a_network_fault_is_logged_with_its_reason(bench: Bench) -> None:
    draft = a_draft()
    await bench.add(draft)

    refused = Outcome(error="connection refused", host_down=True)
    await bench.end(bench.born[0], TryAgain(T0 + 1), refused)

    error = (await bench.log(id_of(draft)))[2]
    assert (error.response_status, error.error) == (0, "connection refused")


async def test_a_settle_after_the_claim_was_lost_changes_nothing(bench: Bench) -> None:
    draft = a_draft()
    await bench.add(draft)
    [stale] = bench.born
    await bench.store.release([stale], now_ms=T0)
    [live] = await bench.claim()
    before = await bench.states(id_of(draft))

    for verdict in (Delivered(), TryAgain(T0), GiveUp("why")):
        with pytest.raises(StaleClaim):
            await bench.store.settle(stale, verdict, ERROR, births=bench.births, now_ms=T0 + 1)

    assert await bench.states(id_of(draft)) == before
    assert await bench.deliver(live) == "DELIVERED"


async def test_a_retry_that_does_not_count_uses_up_none(bench: Bench) -> None:
    await bench.add(a_draft())
    [claim] = bench.born

    await bench.end(claim, TryAgain(T0, counts=False))

    [again] = await bench.claim()
    assert again.retried == claim.retried


async def test_a_claim_settles_once(bench: Bench) -> None:
    await bench.add(a_draft())
    [claim] = bench.born
    await bench.deliver(claim)

    with pytest.raises(StaleClaim):
        await bench.store.settle(claim, Delivered(), OK, births=bench.births, now_ms=T0)


async def test_of_two_settles_of_one_claim_at_the_same_moment_one_wins(bench: Bench) -> None:
    draft = a_draft()
    await bench.add(draft)
    [claim] = bench.born

    answers = await asyncio.gather(
        *[
            bench.store.settle(claim, Delivered(), OK, births=bench.births, now_ms=T0)
            for _ in range(2)
        ],
        return_exceptions=True,
    )

    assert sorted(type(answer).__name__ for answer in answers) == ["Logged", "StaleClaim"]
    assert (await bench.states(id_of(draft))).count("DELIVERED") == 1


async def test_tokens_grow_across_restarts(open_store: Open, durable: None) -> None:
    async with open_store() as store:
        await Bench(store).add_waiting(a_draft())
    tokens = []
    for _ in range(3):
        async with open_store() as store:
            [claim] = await Bench(store).claim()
            tokens.append(claim.token)

    assert tokens == sorted(set(tokens))


# Releasing, and starting again


async def test_a_released_message_is_due_at_once_and_was_not_interrupted(bench: Bench) -> None:
    await bench.add(a_draft())

    await bench.store.release(bench.born, now_ms=T0)

    [claim] = await bench.claim()
    assert (claim.retried, claim.interrupted) == (0, 0)


async def test_an_attempt_cut_short_by_a_crash_uses_up_no_retry(
    open_store: Open, durable: None
) -> None:
    async with open_store() as store:
        bench = Bench(store)
        await bench.add(a_draft())
        await bench.retry(bench.born[0], at_ms=T0)
        assert len(await bench.claim()) == 1

    async with open_store() as store:
        [claim] = await Bench(store).claim()

    assert (claim.retried, claim.interrupted) == (1, 1)


async def test_suspects_are_sent_one_at_a_time(open_store: Open, durable: None) -> None:
    drafts = [a_draft(url=f"https://h{n}.example/") for n in range(4)]
    async with open_store() as store:
        await Bench(store).add_waiting(*drafts)
    for _ in range(SUSPECT_AFTER):
        async with open_store() as store:
            assert len(await Bench(store).claim()) == 4

    async with open_store() as store:
        bench = Bench(store)
        bystander = a_draft(url="https://bystander.example/")
        await bench.add(bystander)
        assert ids(bench.born) == [id_of(bystander)]
        for _ in drafts:
            [suspect] = await bench.claim()
            assert await bench.claim() == []
            await bench.deliver(suspect)
        assert await bench.claim() == []


async def test_a_suspect_that_hangs_holds_up_no_innocent_message(
    open_store: Open, durable: None
) -> None:
    urls = ("https://x.example/", "https://y.example/")
    async with open_store() as store:
        await Bench(store).add_waiting(*[a_draft(url=url) for url in urls])
    for _ in range(SUSPECT_AFTER):
        async with open_store() as store:
            assert len(await Bench(store).claim()) == 2

    async with open_store() as store:
        bench = Bench(store)
        [hanging] = await bench.claim()
        innocent = [a_draft(url=url) for url in urls for _ in range(10)]
        await bench.add(*innocent)

        claims = bench.born + await bench.claim()
        assert sorted(ids(claims)) == sorted(map(id_of, innocent))
        await bench.retry(hanging, at_ms=T0 + MINUTE)
        [other] = await bench.claim()
        await bench.deliver(other)
        assert ids(await bench.claim(now_ms=T0 + MINUTE)) == ids([hanging])


async def test_each_interruption_is_counted(open_store: Open, durable: None) -> None:
    """What is done with a message that has too many of them is the domain's to say."""
    draft = a_draft()
    async with open_store() as store:
        await Bench(store).add_waiting(draft)
    for number in range(INTERRUPTED_MAX + 1):
        async with open_store() as store:
            [claim] = await Bench(store).claim()
            assert (claim.message.id, claim.interrupted) == (id_of(draft), number)


# Cancelling


async def test_a_waiting_message_is_cancelled_at_once(bench: Bench) -> None:
    draft = a_draft(delay_ms=HOUR)
    await bench.add(draft)

    answer = await bench.store.cancel("acme", id_of(draft), now_ms=T0)

    assert (answer.count, answer.known) == (1, True)
    assert await bench.states(id_of(draft)) == ["CREATED", "CANCEL_REQUESTED", "CANCELED"]
    assert await bench.claim(now_ms=T0 + HOUR) == []
    assert await bench.next_due_ms() is None


@pytest.mark.parametrize(
    ("verdict", "outcome", "words"),
    [
        (Delivered(), OK, ["DELIVERED"]),
        (TryAgain(T0 + 1), ERROR, ["ERROR", "CANCELED"]),
        (GiveUp("why"), ERROR, ["ERROR", "CANCELED"]),
    ],
)
async def test_a_cancel_in_flight_takes_effect_when_the_attempt_ends(
    bench: Bench, verdict: Delivered | TryAgain | GiveUp, outcome: Outcome, words: list[str]
) -> None:
    draft = a_draft()
    await bench.add(draft)
    answer = await bench.store.cancel("acme", id_of(draft), now_ms=T0)
    assert answer.count == 1

    await bench.end(bench.born[0], verdict, outcome)

    begun = ["CREATED", "ACTIVE", "CANCEL_REQUESTED"]
    assert await bench.states(id_of(draft)) == begun + words
    assert await bench.claim(now_ms=T0 + HOUR) == []
    page = await bench.store.dead_letters("acme", cursor=None, count_max=10)
    assert page.dead_letters == []


async def test_a_cancel_asked_twice_is_logged_once(bench: Bench) -> None:
    draft = a_draft()
    await bench.add(draft)

    for _ in range(2):
        await bench.store.cancel("acme", id_of(draft), now_ms=T0)

    assert await bench.states(id_of(draft)) == ["CREATED", "ACTIVE", "CANCEL_REQUESTED"]


async def test_a_message_that_has_ended_or_is_not_ours_is_not_cancelled(bench: Bench) -> None:
    draft = a_draft()
    await bench.add(draft)
    await bench.deliver(bench.born[0])

    ended = await bench.store.cancel("acme", id_of(draft), now_ms=T0)
    foreign = await bench.store.cancel("other", id_of(draft), now_ms=T0)

    assert (ended.count, ended.known) == (0, True)
    assert (foreign.count, foreign.known) == (0, False)


async def test_a_cancelled_message_that_was_released_does_not_come_back(bench: Bench) -> None:
    draft = a_draft()
    await bench.add(draft)
    await bench.store.cancel("acme", id_of(draft), now_ms=T0)

    await bench.store.release(bench.born, now_ms=T0)

    assert await bench.claim() == []
    assert (await bench.states(id_of(draft)))[-1] == "CANCELED"


# One fault, one culprit


async def test_a_call_that_fails_takes_no_other_with_it(bench: Bench) -> None:
    good = [a_draft() for _ in range(3)]
    twice = a_draft()
    await bench.add_waiting(twice)

    answers = await asyncio.gather(
        *[bench.add_waiting(draft) for draft in (good[0], twice, good[1], good[2])],
        return_exceptions=True,
    )

    assert [isinstance(answer, Exception) for answer in answers] == [False, True, False, False]
    assert len(await bench.claim()) == 4


async def test_a_call_that_fails_gives_its_places_back(bench: Bench) -> None:
    twice = a_draft()
    await bench.add(twice)

    with pytest.raises(Exception):  # noqa: B017, PT011 -- whatever the engine says of equal ids
        await bench.add(a_draft(), twice)

    assert bench.places.in_flight == 1
    assert len(bench.born) == 1


# Hosts that come back


async def test_a_host_that_comes_back_is_ramped_up_from_one(open_store: Open) -> None:
    async with open_store() as store:
        bench = Bench(store, some_places(host_count_max=4))
        await bench.add_waiting(*[a_draft() for _ in range(20)])
        for claim in await bench.claim():
            await bench.end(claim, TryAgain(T0), sign=Sign.DOWN)

        sizes = []
        for _ in range(4):
            claims = await bench.claim()
            sizes.append(len(claims))
            for claim in claims:
                await bench.deliver(claim)

        assert sizes == [1, 2, 4, 4]


async def test_messages_of_one_tenant_are_not_seen_by_another(bench: Bench) -> None:
    draft = a_draft()
    await bench.add(draft)

    assert await bench.store.message("other", id_of(draft)) is None
    page = await bench.store.log(
        "other", where=LogFilter(), cursor=None, count_max=10, bytes_max=1_000
    )
    assert page.entries == []
