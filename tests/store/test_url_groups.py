"""What a store promises of URL groups: that no change is lost, and that none is made by halves."""

import asyncio

import pytest

from tests.store.bench import Bench
from tests.store.conftest import Open
from tests.support.factory import T0
from waypost.domain.errors import NotFound, StoreFull
from waypost.domain.url_groups import Endpoint, UrlGroup
from waypost.store.protocol import Store


def a_group(
    name: str = "g", *, group_id: str = "tpc_1", urls: tuple[str, ...] = ("https://a.example",)
) -> UrlGroup:
    return UrlGroup(
        id=group_id,
        name=name,
        created_ms=T0,
        updated_ms=T0,
        endpoints=[Endpoint(url) for url in urls],
    )


async def keep(store: Store, group: UrlGroup, tenant: str = "acme") -> None:
    assert await store.change_url_group(tenant, group.name, lambda _: group) == group


async def test_a_group_is_found_by_its_name_and_by_its_id(bench: Bench) -> None:
    """D8."""
    store = bench.store
    group = UrlGroup(
        id="tpc_1",
        name="g",
        created_ms=T0,
        updated_ms=T0 + 1,
        endpoints=[Endpoint("https://b.example", "First endpoint"), Endpoint("https://a.example")],
        header={"Upstash-Retries": ["3"], "Upstash-Forward-X": ["\xe9", ""]},
    )

    await keep(store, group)

    assert await store.url_group("acme", "g") == group
    assert await store.url_group("acme", "tpc_1") == group
    assert await store.url_group("acme", "G") is None
    assert await store.url_group("acme", "tpc_2") is None


async def test_groups_are_listed_by_name(bench: Bench) -> None:
    groups = [a_group(name, group_id=f"tpc_{name}") for name in ("b", "_", "a", "B")]
    for group in groups:
        await keep(bench.store, group)

    listed = await bench.store.url_groups("acme")

    assert listed == sorted(groups, key=lambda group: group.name)


async def test_a_group_is_its_tenants_alone(bench: Bench) -> None:
    ours, theirs = a_group(), a_group(urls=("https://b.example",))
    await keep(bench.store, ours)
    await keep(bench.store, theirs, tenant="other")

    await bench.store.change_url_group("acme", "g", lambda _: None)

    assert await bench.store.url_groups("acme") == []
    assert await bench.store.url_groups("other") == [theirs]
    assert await bench.store.url_group("acme", "tpc_1") is None


async def test_a_change_is_given_the_group_by_either_and_answers_what_is_kept(
    bench: Bench,
) -> None:
    store = bench.store
    seen: list[UrlGroup | None] = []
    before, after = a_group(), a_group(urls=("https://b.example",))

    def change(group: UrlGroup | None) -> UrlGroup:
        seen.append(group)
        return before if group is None else after

    assert await store.change_url_group("acme", "g", change) == before
    assert await store.change_url_group("acme", "tpc_1", change) == after

    assert seen == [None, before]
    assert await store.url_groups("acme") == [after]


async def test_a_group_ends_by_a_change_to_none_and_its_name_is_free(bench: Bench) -> None:
    store = bench.store
    await keep(store, a_group())

    assert await store.change_url_group("acme", "tpc_1", lambda _: None) is None
    assert await store.change_url_group("acme", "g", lambda _: None) is None
    again = a_group(group_id="tpc_2")
    await keep(store, again)

    assert await store.url_group("acme", "g") == again
    assert await store.url_group("acme", "tpc_1") is None


async def test_of_changes_at_the_same_moment_none_is_lost(bench: Bench) -> None:
    store = bench.store

    def adding(url: str, name_or_id: str) -> asyncio.Future[UrlGroup | None]:
        def change(group: UrlGroup | None) -> UrlGroup:
            group = group or a_group(urls=())
            return a_group(urls=(*(one.url for one in group.endpoints), url))

        return asyncio.ensure_future(store.change_url_group("acme", name_or_id, change))

    urls = [f"https://{number}.example" for number in range(20)]
    first = await adding(urls[0], "g")
    assert first is not None
    await asyncio.gather(
        *(adding(url, "tpc_1" if at % 2 else "g") for at, url in enumerate(urls[1:]))
    )

    group = await store.url_group("acme", "g")
    assert group is not None
    assert sorted(one.url for one in group.endpoints) == sorted(urls)


async def test_what_a_change_raises_is_its_callers_and_changes_nothing(bench: Bench) -> None:
    store = bench.store
    await keep(store, a_group())
    changed = a_group(urls=("https://b.example",))

    def failing(group: UrlGroup | None) -> UrlGroup:
        raise NotFound("topic g not found") if group else KeyError("h")

    results = await asyncio.gather(
        store.change_url_group("acme", "g", failing),
        store.change_url_group("acme", "h", failing),
        store.change_url_group("acme", "g", lambda _: changed),
        return_exceptions=True,
    )

    assert [type(result) for result in results] == [NotFound, KeyError, UrlGroup]
    assert await store.url_groups("acme") == [changed]


async def test_groups_outlast_a_restart(open_store: Open, durable: None) -> None:
    async with open_store() as store:
        await keep(store, a_group())
        await keep(store, a_group("h", group_id="tpc_2"))
        await store.change_url_group("acme", "h", lambda _: None)

    async with open_store() as store:
        assert await store.url_groups("acme") == [a_group()]


async def test_below_the_watermark_groups_shrink_and_end_but_do_not_grow(
    open_store: Open, watermark: None
) -> None:
    large, small = a_group(urls=("https://a.example", "https://b.example")), a_group()
    async with open_store() as store:
        await keep(store, large)

    async with open_store(free_bytes_min=1 << 62) as store:
        with pytest.raises(StoreFull):
            await keep(store, a_group("h", group_id="tpc_2"))
        await keep(store, small)
        with pytest.raises(StoreFull):
            await keep(store, large)
        assert await store.url_groups("acme") == [small]
        await store.change_url_group("acme", "g", lambda _: None)
        assert await store.url_groups("acme") == []


@pytest.mark.parametrize("name_or_id", ["", "g\x00", "%", "'"])
async def test_any_text_may_be_looked_for(bench: Bench, name_or_id: str) -> None:
    await keep(bench.store, a_group())

    assert await bench.store.url_group("acme", name_or_id) is None
