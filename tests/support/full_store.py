"""The home of a store in a file with something of everything in it, left by a server that died,
and of databases with nothing in them at all."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.store.bench import Bench, id_of
from tests.support.databases import connected
from tests.support.factory import (
    DAY,
    ERROR,
    HOUR,
    OK,
    SECOND,
    T0,
    a_callback,
    a_draft,
    a_schedule,
)
from tests.support.postgres import Server
from waypost.domain.attempt import Delivered, GiveUp, TryAgain
from waypost.domain.callbacks import Report
from waypost.domain.flow import Flow, FlowKey
from waypost.domain.places import SUSPECT_AFTER
from waypost.domain.signing import SigningKeys
from waypost.domain.url_groups import Endpoint, UrlGroup
from waypost.store.protocol import Claim, Draft, Tenant, Token
from waypost.store.sqlite.people import PeopleFile
from waypost.store.sqlite.store import SqliteStore

FIRST_DAY = T0 - 3 * DAY

DEDUP_KEY = "id:once"

LAST_MS = T0 + 2 * SECOND
"""When the last server died."""


async def fill(path: Path) -> Draft:
    """Let servers work on a new store, and die: the draft that has `DEDUP_KEY`."""
    await _add_people(path)
    await _become_suspects(path)
    store = SqliteStore(str(path), free_bytes_min=0, now_ms=FIRST_DAY)
    bench = Bench(store)
    try:
        await _set(bench)
        await _end_some(bench)
        await _let_some_wait(bench)
        once = a_draft(dedup_key=DEDUP_KEY, window_ms=DAY, at_ms=T0, delay_ms=HOUR)
        await bench.add_waiting(once)
        await _leave_some_under_way(bench)
    finally:
        await store.close()
    return once


async def _add_people(path: Path) -> None:
    people = PeopleFile(str(path))
    for name in ("acme", "beta", "gone"):
        keys = SigningKeys(f"sig_{name}_1", f"sig_{name}_2")
        await people.add_tenant(Tenant(id=name, created_ms=FIRST_DAY, keys=keys))
        for read_only in (False, True):
            await people.add_token(
                Token(
                    id=f"tok_{name}_{read_only:d}",
                    tenant=name,
                    sha256=f"{name}{read_only:d}".encode().ljust(32, b"\0"),
                    read_only=read_only,
                    created_ms=FIRST_DAY,
                )
            )
    await people.revoke_tenant("gone")
    people.close()


async def _become_suspects(path: Path) -> None:
    """Messages that were under way each time that a server died."""
    for _ in range(SUSPECT_AFTER):
        store = SqliteStore(str(path), free_bytes_min=0, now_ms=FIRST_DAY)
        bench = Bench(store)
        if not await bench.claim(now_ms=FIRST_DAY):
            suspect = a_draft(at_ms=FIRST_DAY, url="https://deadly.test/")
            keyed = a_draft(at_ms=FIRST_DAY, flow=Flow("deadly", parallelism=1))
            await bench.add(suspect, keyed, now_ms=FIRST_DAY)
        await store.close()


async def _set(bench: Bench) -> None:
    """What owners have set: groups, schedules, queues and keys."""
    store = bench.store
    for tenant, name in (("acme", "Ünïcode"), ("acme", "～"), ("acme", "😀"), ("beta", "g")):
        group = UrlGroup(
            id=f"tpc_{name}",
            name=name,
            created_ms=FIRST_DAY,
            updated_ms=FIRST_DAY,
            endpoints=[Endpoint("https://b.test", "b"), Endpoint("https://a.test")],
            header={"Upstash-Forward-X": ["\xe9", ""]},
        )
        await store.change_url_group(tenant, name, lambda _, group=group: group)
    for name, body, next_ms in (("due", b"tick", T0 + SECOND), ("paused", b"", None)):
        schedule = a_schedule(name, next_ms=next_ms)
        await store.change_schedule("acme", name, lambda _, kept=schedule: kept, body=body)
    await store.put_queue("acme", "wide", parallelism=3, paused=False, now_ms=FIRST_DAY)
    await store.put_queue("acme", "paused", parallelism=1, paused=True, now_ms=FIRST_DAY)
    pinned = FlowKey(name="pinned").pinned(parallelism=2, rate=5, period_ms=HOUR, now_ms=T0)
    stopped = FlowKey(name="stopped", paused=True, used_ms=T0)
    for key in (pinned, stopped):
        await store.change_flow_key("acme", key.name, lambda _, key=key: key, now_ms=T0)


async def _end_some(bench: Bench) -> None:
    """Messages of several days that have ended, in all ways there are."""
    for day_ms in range(FIRST_DAY, T0, DAY):
        delivered, cancelled, dead, asked = [a_draft(at_ms=day_ms, body=b"x") for _ in range(4)]
        await bench.add(delivered, now_ms=day_ms)
        await bench.deliver(bench.born.pop(), now_ms=day_ms + SECOND)
        await bench.add_waiting(cancelled, now_ms=day_ms)
        await bench.store.cancel("acme", id_of(cancelled), now_ms=day_ms)
        await bench.add(asked, now_ms=day_ms)
        await bench.store.cancel("acme", id_of(asked), now_ms=day_ms)
        await bench.end(bench.born.pop(), GiveUp("failed"), now_ms=day_ms)
        await bench.add(dead, now_ms=day_ms)
        report = Report(status=500, failure=True)
        told = a_callback(dead.message, report=report, at_ms=day_ms, delay_ms=3 * DAY + HOUR)
        await bench.end(
            bench.born.pop(), GiveUp("failed 4 times"), ERROR, callbacks=[told], now_ms=day_ms
        )


async def _let_some_wait(bench: Bench) -> None:
    """Messages that wait: to be tried again, for their time, for a queue, for a key."""
    shared = b"for everyone"
    await bench.add_waiting(
        *[a_draft(url=f"https://h{n}.test/", body=shared, delay_ms=HOUR) for n in range(3)],
        a_draft(tenant="beta", delay_ms=DAY, body=b""),
        a_draft(tenant="gone", delay_ms=DAY),
        *[a_draft(queue="paused", body=b"%d" % n) for n in range(3)],
        *[a_draft(queue="wide", flow=Flow("stopped"), body=b"%d" % n) for n in range(3)],
        *[a_draft(flow=Flow("stopped"), body=b"%d" % n) for n in range(3)],
        *[a_draft(flow=Flow("rate", rate=2, period_ms=HOUR), body=b"%d" % n) for n in range(6)],
    )
    # The first of a queue is tried again, and that of another is told of: both hold a place.
    for queue in ("retrying", "telling"):
        first, *rest = [a_draft(queue=queue, body=b"%d" % n) for n in range(3)]
        [claim] = await _begin(bench, first)
        callback = a_callback(claim.message, delay_ms=HOUR)
        if queue == "retrying":
            await bench.end(claim, TryAgain(T0 + HOUR), callbacks=[callback])
        else:
            await bench.end(claim, Delivered(), OK, callbacks=[callback])
        await bench.add_waiting(*rest)
    [claim] = await _begin(bench, a_draft(url="https://again.test/"))
    await bench.retry(claim, at_ms=T0 + HOUR)


async def _leave_some_under_way(bench: Bench) -> None:
    """Attempts of which nobody will ever hear."""
    await _begin(bench, a_draft(url="https://cut.test/", body=b"cut short"))
    await _begin(bench, a_draft(queue="cut", body=b"first"))
    await bench.add_waiting(a_draft(queue="cut", body=b"second"))
    keyed = [a_draft(flow=Flow("cut", parallelism=2), body=b"%d" % n) for n in range(4)]
    await _begin(bench, *keyed[:2])
    await bench.add_waiting(*keyed[2:])
    [asked] = await _begin(bench, a_draft(url="https://asked.test/"))
    await bench.store.cancel("acme", asked.message.id, now_ms=LAST_MS)


async def _begin(bench: Bench, *drafts: Draft) -> list[Claim]:
    """Claims on new messages, of which each goes at once."""
    assert not bench.born
    await bench.add(*drafts, now_ms=T0)
    claims, bench.born[:] = list(bench.born), []
    claims += await bench.claim(len(drafts) - len(claims)) if len(claims) < len(drafts) else []
    assert {claim.message.id for claim in claims} == set(map(id_of, drafts))
    return claims


@asynccontextmanager
async def a_bare_database(server: Server, name: str) -> AsyncIterator[str]:
    """The URL of a database in which there is nothing, until the end of the block."""
    async with connected(server.url("postgres")) as db:
        await db.execute(f"CREATE DATABASE {name}")
        try:
            yield server.url(name)
        finally:
            await db.execute(f"DROP DATABASE {name} WITH (FORCE)")
