"""The home of a database with much in it, made by the store's own hand before a server starts."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec.structs import replace

from waypost.domain.attempt import GiveUp, Outcome
from waypost.domain.destination import origin_of
from waypost.domain.dev_users import DEV_USERS
from waypost.domain.ids import message_id
from waypost.domain.message import Message
from waypost.domain.places import Places, Sign
from waypost.store.protocol import Births, Draft, give_back_place
from waypost.store.sqlite.store import SqliteStore

DAY_MS = 86_400_000
CALL = 1_000


async def delayed(
    path: Path, *, count: int, url: str, body: bytes, labels: Sequence[str] = ()
) -> None:
    """Put delayed messages into a database: due from a day on, all in one host's lane."""
    now_ms = time.time_ns() // 1_000_000
    async with _store(path, now_ms) as store:
        for chunk in _drafts(count, url, body, labels, until_ms=now_ms, due_ms=now_ms + DAY_MS):
            await store.add(chunk, births=NOBODY, now_ms=now_ms)


async def dead(path: Path, *, count: int, url: str, body: bytes, labels: Sequence[str]) -> None:
    """Put messages that have failed into a database."""
    now_ms = time.time_ns() // 1_000_000
    places = Places(count_max=CALL, host_count_max=CALL, bytes_max=1 << 40)
    async with _store(path, now_ms) as store:
        for chunk in _drafts(count, url, body, labels, until_ms=now_ms, due_ms=now_ms):
            await store.add(chunk, births=NOBODY, now_ms=now_ms)
            left = len(chunk)
            while left:
                claimed = await store.claim(count_max=left, places=places, now_ms=now_ms)
                assert claimed.claims, left
                left -= len(claimed.claims)
                for claim in claimed.claims:
                    give_back_place(places, claim, Sign.WELL)
                settles = [
                    store.settle(claim, GiveUp("failed"), FAILED, births=NOBODY, now_ms=now_ms)
                    for claim in claimed.claims
                ]
                await asyncio.gather(*settles)


@asynccontextmanager
async def _store(path: Path, now_ms: int) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(str(path), free_bytes_min=0, now_ms=now_ms)
    try:
        yield store
    finally:
        await store.close()


def _drafts(
    count: int, url: str, body: bytes, labels: Sequence[str], *, until_ms: int, due_ms: int
) -> Iterator[list[Draft]]:
    """Drafts in chunks, one made each millisecond until then; each is due a millisecond after the
    one before, unless all are due at once.

    Ids begin with the moment: those of messages that were all made in one lie in an index as no
    publisher's do, each on a page of its own.
    """
    moments = range(until_ms - count, until_ms)
    entropy = random.Random(0).getrandbits
    host = origin_of(url).key
    step = int(due_ms > until_ms)
    model = model_of(url, created_ms=until_ms, labels=labels)
    for begin in range(0, count, CALL):
        yield [
            Draft(
                message=replace(
                    model,
                    id=message_id(moments[n], entropy(80)),
                    created_ms=moments[n],
                    not_before_ms=due_ms + n * step,
                ),
                body=body,
                host=host,
            )
            for n in range(begin, min(begin + CALL, count))
        ]


def model_of(url: str, *, created_ms: int, labels: Sequence[str] = ()) -> Message:
    """A message as people publish it, without an id."""
    return Message(
        tenant=DEV_USERS[0].name,
        id="",
        created_ms=created_ms,
        not_before_ms=0,
        url=url,
        header={"Content-Type": ["application/json"]},
        timeout_ms=900_000,
        caller_ip="127.0.0.1",
        labels=list(labels),
    )


def _never(_claim: object) -> None:
    raise AssertionError("a delayed message was claimed")


NOBODY = Births(Places(count_max=0, host_count_max=0, bytes_max=0), _never)
FAILED = Outcome(status=500, body=b"no")
