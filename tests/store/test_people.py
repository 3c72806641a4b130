"""Tenants and tokens in PostgreSQL, which the command line changes beside running nodes (D32)."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from msgspec.structs import replace

from tests.support.databases import Databases
from tests.support.factory import T0, a_schedule
from tests.support.postgres import SHIPPED
from waypost.domain.errors import Invalid, NotFound, StoreUnavailable
from waypost.domain.signing import SigningKeys
from waypost.store.postgres.people import PeopleDatabase
from waypost.store.postgres.store import open_postgres
from waypost.store.protocol import Tenant, Token

TENANT = Tenant(id="acme", created_ms=T0, keys=SigningKeys("sig_a", "sig_b"))
TOKEN = Token(id="tok", tenant="acme", sha256=b"x" * 32, read_only=True, created_ms=T0)


@pytest.fixture
async def url(databases: Callable[[str], Databases]) -> AsyncIterator[str]:
    with databases(SHIPPED).lending() as lend:
        yield await lend()


async def test_the_command_line_writes_beside_a_node_and_the_node_notices(url: str) -> None:
    store = await open_postgres(url, now_ms=T0)
    people = PeopleDatabase(url)
    await store.changed()
    assert not await store.changed()

    await people.add_tenant(TENANT)
    await people.add_token(TOKEN)

    assert await store.changed()
    assert not await store.changed()
    assert (await store.tenants(), await store.tokens()) == ([TENANT], [TOKEN])
    assert (await people.tenants(), await people.tokens()) == ([TENANT], [TOKEN])
    with pytest.raises(Invalid):
        await people.add_tenant(TENANT)
    assert await people.revoke_tenant("acme")
    assert not await people.revoke_token("tok")
    with pytest.raises(NotFound):
        await people.add_token(TOKEN)
    assert await store.changed()
    assert await store.tokens() == []
    await store.close()


async def test_a_node_notices_the_keys_that_another_has_rotated(url: str) -> None:
    people = PeopleDatabase(url)
    await people.add_tenant(TENANT)
    one, other = [await open_postgres(url, now_ms=T0) for _ in range(2)]
    await other.changed()

    keys = await one.rotate_keys("acme", new_key="sig_c")

    assert keys == SigningKeys("sig_b", "sig_c")
    assert await other.changed()
    assert [tenant.keys for tenant in await other.tenants()] == [keys]
    assert await one.rotate_keys("nobody", new_key="sig_d") is None
    await one.close()
    await other.close()


async def test_a_schedule_of_a_tenant_who_is_revoked_fires_no_more(url: str) -> None:
    people = PeopleDatabase(url)
    await people.add_tenant(TENANT)
    store = await open_postgres(url, now_ms=T0)
    schedule = a_schedule(next_ms=T0)
    await store.change_schedule("acme", schedule.id, lambda _: schedule)

    await people.revoke_tenant("acme")

    assert (await store.due_schedules(now_ms=T0, count_max=10, bytes_max=1_000)).due == []
    await store.close()


async def test_no_token_outlives_its_tenant_however_the_two_meet(url: str) -> None:
    people = PeopleDatabase(url)
    for n in range(5):
        tenant = Tenant(id=f"t{n}", created_ms=T0, keys=TENANT.keys)
        await people.add_tenant(tenant)
        token = Token(
            id=f"k{n}", tenant=tenant.id, sha256=bytes([n]) * 32, read_only=False, created_ms=T0
        )
        await asyncio.gather(
            people.add_token(token), people.revoke_tenant(tenant.id), return_exceptions=True
        )

    assert await people.tokens() == []


async def test_names_that_no_row_can_have_are_nobody_s(url: str) -> None:
    people = PeopleDatabase(url)

    assert not await people.revoke_tenant("a\0")
    assert not await people.revoke_token("a\0")
    with pytest.raises(NotFound):
        await people.add_token(replace(TOKEN, tenant="a\0"))


async def test_a_database_that_is_not_there_is_told_as_such(url: str) -> None:
    gone = PeopleDatabase(url.replace("?host=", "?host=/no/such"))
    unnamed = PeopleDatabase(url.replace("/test_", "/no_such_"))

    with pytest.raises(StoreUnavailable):
        await gone.tenants()
    with pytest.raises(Invalid):
        await unnamed.tenants()
