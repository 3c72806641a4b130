"""The home of a database with much in it, made by the store's own hand before a server starts."""

import random
import time
from pathlib import Path

from msgspec.structs import replace

from waypost.domain.destination import origin_of
from waypost.domain.dev_users import DEV_USERS
from waypost.domain.ids import message_id
from waypost.domain.message import Message
from waypost.domain.places import Places
from waypost.store.protocol import Births, Draft
from waypost.store.sqlite.store import SqliteStore

DAY_MS = 86_400_000
CALL = 1_000


async def delayed(path: Path, *, count: int, url: str, body: bytes) -> None:
    """Put delayed messages into a new database: due from a day on, all in one host's lane."""
    now_ms = time.time_ns() // 1_000_000
    store = SqliteStore(str(path), free_bytes_min=0, now_ms=now_ms)
    births = Births(Places(count_max=1, host_count_max=1, bytes_max=1), _never)
    entropy = random.Random(0).getrandbits
    host = origin_of(url).key
    model = Message(
        tenant=DEV_USERS[0].name,
        id="",
        created_ms=now_ms,
        not_before_ms=0,
        url=url,
        header={"Content-Type": ["application/json"]},
        timeout_ms=900_000,
        caller_ip="127.0.0.1",
    )
    try:
        for begin in range(0, count, CALL):
            drafts = [
                Draft(
                    message=replace(
                        model, id=message_id(now_ms, entropy(80)), not_before_ms=now_ms + DAY_MS + n
                    ),
                    body=body,
                    host=host,
                )
                for n in range(begin, min(begin + CALL, count))
            ]
            await store.add(drafts, births=births, now_ms=now_ms)
    finally:
        await store.close()


def _never(_claim: object) -> None:
    raise AssertionError("a delayed message was claimed")
