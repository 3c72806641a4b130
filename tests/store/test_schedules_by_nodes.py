"""Schedules in PostgreSQL, changed at the moment at which their tenant is revoked elsewhere."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.support.databases import Databases, connected
from tests.support.factory import T0, a_schedule
from tests.support.postgres import SHIPPED
from tests.support.waiting import until
from waypost.domain.errors import Unauthenticated
from waypost.domain.signing import SigningKeys
from waypost.store.postgres.database import Connection
from waypost.store.postgres.people import PeopleDatabase
from waypost.store.postgres.store import open_postgres
from waypost.store.protocol import Tenant


@pytest.fixture
async def url(databases: Callable[[str], Databases]) -> AsyncIterator[str]:
    with databases(SHIPPED).lending() as lend:
        yield await lend()


async def test_a_schedule_waits_for_a_revocation_that_is_under_way_and_is_refused(
    url: str,
) -> None:
    people = PeopleDatabase(url)
    await people.add_tenant(Tenant(id="acme", created_ms=T0, keys=SigningKeys("a", "b")))
    store = await open_postgres(url, now_ms=T0)
    schedule = a_schedule(next_ms=T0)

    async with connected(url) as watch, connected(url) as db:
        # The last of all that a revocation writes: it has seen to the schedules before.
        last = db.transaction()
        await last.start()
        await db.execute("SELECT 1 FROM people_version FOR UPDATE")
        revoking = asyncio.create_task(people.revoke_tenant("acme"))
        await until(lambda: _stand(watch, 1))
        making = asyncio.create_task(store.change_schedule("acme", "s", lambda _: schedule))
        await until(lambda: _stand(watch, 2, unless=making))
        await last.rollback()

        assert await revoking
        with pytest.raises(Unauthenticated):
            await making

    assert (await store.due_schedules(now_ms=T0, count_max=10, bytes_max=1_000)).due == []
    await store.close()


async def _stand(db: Connection, count: int, *, unless: asyncio.Task[Any] | None = None) -> bool:
    """Whether so many wait for a lock, or what should wait is over."""
    standing = await db.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return standing >= count or (unless is not None and unless.done())
