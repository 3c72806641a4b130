"""What a store promises of schedules: no change is lost, and no fire time runs twice."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.store.bench import Bench
from tests.store.conftest import DATABASES, IN_MEMORY, Open
from tests.support.databases import Databases
from tests.support.factory import MINUTE, T0, a_draft, a_schedule
from waypost.domain.errors import LimitReached, NotFound, StoreFull, Unauthenticated
from waypost.domain.message import Callback, Logged
from waypost.domain.schedules import Schedule
from waypost.domain.signing import SigningKeys
from waypost.store.postgres.people import PeopleDatabase
from waypost.store.postgres.store import open_postgres
from waypost.store.protocol import Draft, People, Store, Tenant
from waypost.store.sqlite.people import PeopleFile
from waypost.store.sqlite.store import SqliteStore


async def keep(store: Store, schedule: Schedule, body: bytes = b"hello") -> None:
    kept = await store.change_schedule(schedule.tenant, schedule.id, lambda _: schedule, body=body)
    assert kept == schedule


async def kept(store: Store, schedule_id: str = "s", tenant: str = "acme") -> Schedule | None:
    seen = await store.schedule(tenant, schedule_id)
    return None if seen is None else seen.schedule


async def due(store: Store, *, now_ms: int = T0, count_max: int = 10, bytes_max: int = 1_000):
    return await store.due_schedules(now_ms=now_ms, count_max=count_max, bytes_max=bytes_max)


async def fire(
    bench: Bench, schedule: Schedule, *drafts: Draft, after: Schedule | None = None
) -> bool:
    return await bench.store.fire(
        schedule, after or fired(schedule, drafts), drafts, births=bench.births, now_ms=T0
    )


def fired(schedule: Schedule, drafts: Sequence[Draft] = ()) -> Schedule:
    """The schedule after its run."""
    assert schedule.next_ms is not None
    return replace(
        schedule,
        next_ms=schedule.next_ms + MINUTE,
        fired_ms=schedule.next_ms,
        run=[draft.message.id for draft in drafts],
        updated_ms=schedule.updated_ms + 1,
    )


async def test_a_schedule_is_kept_whole_with_its_body(bench: Bench) -> None:
    asked = replace(
        a_schedule().asked,
        header={"X": ["\xe9", ""]},
        labels=["a", "b"],
        callback=Callback(url="https://me.test", retries_max=1, timeout_ms=5),
    )
    schedule = replace(
        a_schedule(next_ms=T0, fired_ms=T0 - MINUTE, run=["msg_1"], error="no", delay_ms=5),
        asked=asked,
        fields=[("upstash-label", "a,\xe9")],
        parameters={"upstash-retries": "3"},
    )

    await keep(bench.store, schedule, b"\x00\xff")

    seen = await bench.store.schedule("acme", "s")
    assert seen is not None
    assert (seen.schedule, seen.body, seen.run) == (schedule, b"\x00\xff", {})
    assert await kept(bench.store, "S") is None


async def test_schedules_are_listed_by_id_with_bodies_as_far_as_there_is_room(
    bench: Bench,
) -> None:
    for schedule_id, body in (("b", b"12345"), ("a", b"123"), ("c", b"12"), ("d", b"")):
        await keep(bench.store, a_schedule(schedule_id), body)
    await keep(bench.store, a_schedule("x", tenant="other"))

    seen = await bench.store.schedules("acme", bytes_max=6)

    assert [(one.schedule.id, one.body) for one in seen] == [
        ("a", b"123"),
        ("b", b""),
        ("c", b"12"),
        ("d", b""),
    ]


async def test_a_change_keeps_the_body_unless_it_brings_another(bench: Bench) -> None:
    store = bench.store
    await keep(store, a_schedule(), b"one")

    await store.change_schedule("acme", "s", lambda _: a_schedule(paused=True))
    [seen] = await store.schedules("acme", bytes_max=1_000)
    assert (seen.schedule.paused, seen.body) == (True, b"one")

    for body in (b"two", b""):
        await store.change_schedule("acme", "s", lambda _: a_schedule(), body=body)
        [seen] = await store.schedules("acme", bytes_max=1_000)
        assert (seen.schedule.paused, seen.body) == (False, body)


async def test_a_schedule_that_was_deleted_leaves_nothing_to_the_next_of_its_id(
    bench: Bench,
) -> None:
    store = bench.store
    await keep(store, a_schedule(next_ms=T0))
    await keep(store, a_schedule(tenant="other"))

    for _ in range(2):
        assert await store.change_schedule("acme", "s", lambda _: None) is None
    assert (await due(store)).due == []
    await store.change_schedule("acme", "s", lambda _: a_schedule())

    [seen] = await store.schedules("acme", bytes_max=1_000)
    assert seen.body == b""
    assert await kept(store, tenant="other") is not None


async def test_of_changes_at_the_same_moment_none_is_lost(bench: Bench) -> None:
    store = bench.store

    def more(schedule: Schedule | None) -> Schedule:
        run = [] if schedule is None else schedule.run
        return a_schedule(run=[*run, "msg"])

    await asyncio.gather(*(store.change_schedule("acme", "s", more) for _ in range(20)))

    schedule = await kept(store)
    assert schedule is not None
    assert len(schedule.run) == 20


async def test_what_a_change_raises_is_its_callers_and_changes_nothing(bench: Bench) -> None:
    store = bench.store

    def failing(schedule: Schedule | None) -> Schedule:
        raise NotFound("schedule s not found")

    results = await asyncio.gather(
        store.change_schedule("acme", "s", failing, body=b"x"),
        store.change_schedule("acme", "t", lambda _: a_schedule("t")),
        return_exceptions=True,
    )

    assert [type(result) for result in results] == [NotFound, Schedule]
    assert [one.schedule.id for one in await store.schedules("acme", bytes_max=9)] == ["t"]


async def test_a_tenant_has_so_many_schedules_and_may_still_change_them(bench: Bench) -> None:
    """W117's rule of queues holds for them too."""
    store = bench.store
    for schedule_id in ("a", "b"):
        await keep(store, a_schedule(schedule_id))

    with pytest.raises(LimitReached, match="maxSchedules exceeded, current limit: 2"):
        await store.change_schedule("acme", "c", lambda _: a_schedule("c"), count_max=2)
    changed = a_schedule("a", paused=True)
    assert await store.change_schedule("acme", "a", lambda _: changed, count_max=2) == changed
    other = a_schedule("c", tenant="other")
    assert await store.change_schedule("other", "c", lambda _: other, count_max=2) == other


async def test_what_is_due_is_found_the_longest_due_first_and_when_the_next_is(
    bench: Bench,
) -> None:
    store = bench.store
    assert await due(store) == await due(store, now_ms=1 << 60)
    later = {"a": T0, "b": T0 - 5, "c": T0 + 1, "d": None}
    for schedule_id, next_ms in later.items():
        await keep(store, a_schedule(schedule_id, next_ms=next_ms), b"12345")
    await keep(store, a_schedule("e", tenant="other", next_ms=T0 - 9), b"12345")

    def ids(found: list[tuple[Schedule, bytes]]) -> list[str]:
        assert all(body == b"12345" for _, body in found)
        return [schedule.id for schedule, _ in found]

    all_due = await due(store)
    assert (ids(all_due.due), all_due.next_ms) == (["e", "b", "a"], T0 + 1)
    some = await due(store, count_max=2)
    assert (ids(some.due), some.next_ms) == (["e", "b"], T0)
    for bytes_max in (0, 9):
        small = await due(store, bytes_max=bytes_max)
        assert (ids(small.due), small.next_ms) == (["e"], T0 - 5)
    none = await due(store, now_ms=T0 - 10)
    assert (ids(none.due), none.next_ms) == ([], T0 - 9)


async def test_a_firing_makes_its_messages_and_moves_the_schedule_on(bench: Bench) -> None:
    schedule = a_schedule(next_ms=T0)
    await keep(bench.store, schedule)
    drafts = [a_draft(schedule="s"), a_draft(schedule="s", delay_ms=MINUTE)]

    assert await fire(bench, schedule, *drafts)

    assert await kept(bench.store) == fired(schedule, drafts)
    assert (await due(bench.store)).due == []
    for draft in drafts:
        found = await bench.store.message("acme", draft.message.id)
        assert found == (draft.message, draft.body)
    assert [claim.message.id for claim in bench.born] == [drafts[0].message.id]
    seen = await bench.store.schedule("acme", "s")
    assert seen is not None
    assert seen.run == {drafts[0].message.id: Logged.ACTIVE, drafts[1].message.id: Logged.CREATED}


async def test_the_run_is_shown_with_what_became_of_its_messages(bench: Bench) -> None:
    """W134."""
    schedule = a_schedule(next_ms=T0)
    await keep(bench.store, schedule)
    drafts = [a_draft(schedule="s") for _ in range(3)]
    await fire(bench, schedule, *drafts)

    well, badly, again = bench.born
    await bench.deliver(well)
    await bench.fail(badly)
    await bench.retry(again, at_ms=T0 + MINUTE)

    seen = await bench.store.schedule("acme", "s")
    assert seen is not None
    assert list(seen.run.values()) == [Logged.DELIVERED, Logged.FAILED, Logged.RETRY]


async def test_of_all_who_fire_one_time_at_once_one_does(bench: Bench) -> None:
    schedule = a_schedule(next_ms=T0)
    await keep(bench.store, schedule)
    drafts = [a_draft(schedule="s") for _ in range(10)]

    results = await asyncio.gather(*(fire(bench, schedule, draft) for draft in drafts))

    assert sorted(results) == [False] * 9 + [True]
    made = [one for one in drafts if await bench.store.message("acme", one.message.id)]
    assert made == [drafts[results.index(True)]]
    assert len(bench.born) == 1
    assert not await fire(bench, schedule, a_draft())


@pytest.mark.parametrize("what", ["changed", "paused", "deleted", "another body"])
async def test_a_schedule_that_was_changed_meanwhile_is_not_fired(bench: Bench, what: str) -> None:
    store, schedule = bench.store, a_schedule(next_ms=T0)
    await keep(store, schedule)
    later = replace(schedule, updated_ms=schedule.updated_ms + 1)
    changed = {
        "changed": replace(later, cron="@daily"),
        "paused": replace(later, paused=True, next_ms=None),
        "deleted": None,
        "another body": later,
    }[what]
    await store.change_schedule("acme", "s", lambda _: changed, body=b"other")
    draft = a_draft()

    assert not await fire(bench, schedule, draft)

    assert await kept(store) == changed
    assert await store.message("acme", draft.message.id) is None
    assert bench.born == []


async def test_a_firing_may_make_nothing_and_a_schedule_may_end_with_it(bench: Bench) -> None:
    schedule = a_schedule(next_ms=T0)
    await keep(bench.store, schedule)
    after = replace(schedule, next_ms=None, error="topic g not found", updated_ms=T0 + 1)

    assert await fire(bench, schedule, after=after)

    assert await kept(bench.store) == after
    assert await due(bench.store, now_ms=1 << 60) == await due(bench.store)
    assert (await due(bench.store)).next_ms is None


async def test_firings_and_publishes_share_queues_and_their_order(bench: Bench) -> None:
    """W131: and a queue keeps its parallelism."""
    first = a_draft(queue="mail")
    await bench.add(first)
    schedule = a_schedule(next_ms=T0)
    await keep(bench.store, schedule)
    second = a_draft(queue="mail", schedule="s")

    await fire(bench, schedule, second)

    queue = await bench.store.queue("acme", "mail")
    assert queue is not None
    assert (queue.parallelism, queue.lag) == (1, 2)
    assert [claim.message.id for claim in bench.born] == [first.message.id]


async def test_schedules_and_their_firings_outlast_a_restart(
    open_store: Open, durable: None
) -> None:
    """A process that ends between two steps leaves either nothing done or all of it."""
    schedule = a_schedule(next_ms=T0)
    async with open_store() as store:
        await keep(store, schedule)
    async with open_store() as store:
        [(read, body)] = (await due(store)).due
        assert (read, body) == (schedule, b"hello")
        draft = a_draft(schedule="s")
        assert await fire(Bench(store), read, draft)
    async with open_store() as store:
        assert (await due(store)).due == []
        assert not await fire(Bench(store), schedule, a_draft())
        seen = await store.schedule("acme", "s")
        assert seen is not None
        assert (seen.schedule, seen.body) == (fired(schedule, [draft]), b"hello")
        assert await store.message("acme", draft.message.id) is not None


async def test_a_store_opened_again_after_a_crash_before_the_commit_fires_exactly_once(
    open_store: Open, durable: None
) -> None:
    """What was due had been read, and its messages were drafted."""
    schedule = a_schedule(next_ms=T0)
    lost, made = a_draft(schedule="s"), a_draft(schedule="s")
    async with open_store() as store:
        await keep(store, schedule)
        [(before, _)] = (await due(store)).due

    async with open_store() as store:
        [(read, _)] = (await due(store)).due
        assert read == before
        bench = Bench(store)
        assert await fire(bench, read, made)
        assert not await fire(bench, before, lost)
        assert await store.message("acme", made.message.id) is not None
        assert await store.message("acme", lost.message.id) is None
        assert (await due(store)).due == []


async def test_a_schedule_that_is_put_off_is_due_later_and_else_as_it_was(bench: Bench) -> None:
    store, schedule = bench.store, a_schedule(next_ms=T0)
    await keep(store, schedule)

    await store.put_off_schedule("acme", "s", until_ms=T0 + MINUTE, now_ms=T0)
    await store.put_off_schedule("acme", "none", until_ms=T0 + MINUTE, now_ms=T0)

    assert await kept(store) == schedule
    assert await due(store) == await due(store, now_ms=T0 + MINUTE - 1)
    assert (await due(store)).next_ms == T0 + MINUTE
    [(read, _)] = (await due(store, now_ms=T0 + MINUTE)).due
    assert read == schedule
    assert await fire(bench, read, a_draft(schedule="s"))


async def test_a_schedule_that_is_not_due_is_not_put_off(bench: Bench) -> None:
    """One that is paused, or whose tenant was revoked, would be due again; one that was
    overwritten meanwhile would be late."""
    await keep(bench.store, a_schedule(paused=True))
    await keep(bench.store, a_schedule("t", next_ms=T0 + 1))

    for schedule_id in "st":
        await bench.store.put_off_schedule("acme", schedule_id, until_ms=T0 + MINUTE, now_ms=T0)

    [(only, _)] = (await due(bench.store, now_ms=T0 + 1)).due
    assert only.id == "t"
    assert (await due(bench.store)).next_ms == T0 + 1


async def test_a_run_that_would_make_a_queue_too_many_changes_nothing(bench: Bench) -> None:
    store, schedule = bench.store, a_schedule(next_ms=T0)
    await keep(store, schedule)
    await bench.add(a_draft(queue="one"))
    draft = a_draft(queue="two", schedule="s")

    with pytest.raises(LimitReached):
        await store.fire(
            schedule, fired(schedule), [draft], births=bench.births, queue_count_max=1, now_ms=T0
        )

    assert await kept(store) == schedule
    assert await store.message("acme", draft.message.id) is None
    assert await store.queue("acme", "two") is None
    await store.fire(
        schedule,
        fired(schedule),
        [a_draft(queue="one", schedule="s")],
        births=bench.births,
        queue_count_max=1,
        now_ms=T0,
    )


async def test_below_the_watermark_nothing_is_made_and_what_is_there_may_be_changed(
    open_store: Open, watermark: None
) -> None:
    schedule = a_schedule(next_ms=T0)
    async with open_store() as store:
        await keep(store, schedule)

    async with open_store(free_bytes_min=1 << 62) as store:
        with pytest.raises(StoreFull):
            await fire(Bench(store), schedule, a_draft())
        for other, body in ((a_schedule("t"), None), (schedule, b"new")):
            with pytest.raises(StoreFull):
                await store.change_schedule("acme", other.id, lambda _, it=other: it, body=body)
        assert await kept(store) == schedule
        assert await fire(Bench(store), schedule)
        assert await store.change_schedule("acme", "s", lambda _: None) is None


@pytest.fixture
async def with_people(
    engine: str, tmp_path: Path, databases: Callable[[str], Databases]
) -> AsyncIterator[tuple[Store, People]]:
    """A store, and its people as the command line changes them beside the server."""
    if engine == IN_MEMORY:
        pytest.skip("no command line comes to a store in memory")
    async with AsyncExitStack() as stack:
        store: Store
        people: PeopleFile | PeopleDatabase
        if engine in DATABASES:
            url = await stack.enter_context(databases(engine).lending())()
            store, people = await open_postgres(url, now_ms=T0), PeopleDatabase(url)
        else:
            path = str(tmp_path / "waypost.db")
            store = SqliteStore(path, free_bytes_min=0, now_ms=T0)
            people = PeopleFile(path)
        stack.push_async_callback(store.close)
        stack.callback(people.close)
        yield store, people


def a_tenant(tenant_id: str = "acme") -> Tenant:
    return Tenant(id=tenant_id, created_ms=T0, keys=SigningKeys("sig_a", "sig_b"))


async def test_a_tenant_who_was_revoked_changes_no_schedule_and_others_do(
    with_people: tuple[Store, People],
) -> None:
    """Requests that were let in before may still be on their way.  That there is no such
    tenant at all is how development users are."""
    store, people = with_people
    paused, live = a_schedule(paused=True), a_schedule(next_ms=T0)
    new = a_schedule("new", next_ms=T0)
    for tenant in ("acme", "other"):
        await people.add_tenant(a_tenant(tenant))
    await keep(store, paused)
    await people.revoke_tenant("acme")

    for schedule_id, after in (("s", live), ("s", None), ("new", new)):
        with pytest.raises(Unauthenticated):
            await store.change_schedule("acme", schedule_id, lambda _, it=after: it, body=b"new")
    for tenant in ("other", "nobody"):
        await keep(store, a_schedule(tenant=tenant, next_ms=T0))

    [seen] = await store.schedules("acme", bytes_max=1_000)
    assert (seen.schedule, seen.body) == (paused, b"hello")
    assert {schedule.tenant for schedule, _ in (await due(store)).due} == {"other", "nobody"}


async def test_no_schedule_outlives_its_tenant_however_the_two_meet(
    with_people: tuple[Store, People],
) -> None:
    store, people = with_people

    async def make_until_refused(tenant: str) -> None:
        for n in range(1_000):
            schedule = a_schedule(f"s{n}", tenant=tenant, next_ms=T0)
            try:
                await keep(store, schedule)
            except Unauthenticated:
                return

    for n in range(3):
        await people.add_tenant(a_tenant(f"t{n}"))
        async with asyncio.TaskGroup() as both:
            both.create_task(make_until_refused(f"t{n}"))
            both.create_task(people.revoke_tenant(f"t{n}"))

    assert (await due(store)).due == []


@pytest.mark.parametrize("schedule_id", ["", "s\x00", "%", "'"])
async def test_any_text_may_be_looked_for(bench: Bench, schedule_id: str) -> None:
    await keep(bench.store, a_schedule())

    assert await kept(bench.store, schedule_id) is None
