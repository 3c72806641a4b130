"""The home of a backlog on PostgreSQL: many messages that wait, written by COPY.

| share    | waits                                                          |
| -------- | -------------------------------------------------------------- |
| a quarter | in one queue, which is paused                                 |
| an eighth | for a flow-control key of which another node has all permits  |
| an eighth | for that key too, in queues                                   |
| half      | until tomorrow, at many hosts                                 |
"""

import random
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from bench.loader import BODY
from bench.postgres import connected
from bench.preload import DAY_MS, model_of
from waypost.domain.flow import Flow, FlowKey
from waypost.domain.ids import message_id
from waypost.domain.lanes import key_lane, lane_of, queue_lane
from waypost.domain.message import Message
from waypost.store.postgres.lanes import key_resource
from waypost.store.postgres.writer import BLOCK_BITS

HOSTS = 1_000
QUEUES = 1_000
PAUSED = "paused"
FLOW = Flow(key="saturated", parallelism=1)
NODE = 1_000_000
"""Another node, which lives for as long as this takes."""

CHUNK = 50_000

encode = msgspec.json.encode


def host(nth: int) -> str:
    return f"http://host-{nth % HOSTS}.bench:80"


async def load(url: str, *, count: int) -> None:
    """Let `count` messages wait in a database that is up to date and has none."""
    now_ms = time.time_ns() // 1_000_000
    model = model_of("http://host.bench/", created_ms=now_ms)
    entropy = random.Random(0).getrandbits
    async with connected(url) as db:
        await db.execute(
            "SELECT setval('number_block', greatest(nextval('number_block'), $1))",
            (count >> BLOCK_BITS) + 1,
        )
        await db.execute(
            "INSERT INTO node OVERRIDING SYSTEM VALUE VALUES ($1, 'another', $2, $3)",
            *(NODE, now_ms, now_ms + DAY_MS),
        )
        for table, rows in _limits(model, now_ms=now_ms).items():
            await db.copy_records_to_table(table, records=rows)
        for begin in range(0, count, CHUNK):
            messages = [
                (n, _waiting(model, n, message_id(now_ms, entropy(80)), due_ms=now_ms + DAY_MS + n))
                for n in range(begin, min(begin + CHUNK, count))
            ]
            for table, records in _rows(messages).items():
                await db.copy_records_to_table(table, records=records)


def _waiting(model: Message, n: int, name: str, *, due_ms: int) -> Message:
    share = n % 8
    if share < 4:
        return replace(model, id=name, not_before_ms=due_ms)
    now_ms = model.created_ms
    if share < 6:
        return replace(model, id=name, not_before_ms=now_ms, queue=PAUSED)
    queue = f"queue-{n // 8 % QUEUES}" if share == 7 else None
    return replace(model, id=name, not_before_ms=now_ms, flow=FLOW, queue=queue)


def _rows(messages: list[tuple[int, Message]]) -> dict[str, Iterator[tuple[Any, ...]]]:
    """The rows of messages, by table.  One of them is claimed: the key's first."""
    body = BODY.encode()
    return {
        "message": ((m.tenant, m.id, n, encode(m), None, None) for n, m in messages),
        "body": ((n, body) for n, _ in messages),
        "event": ((m.tenant, m.created_ms, n, m.id, "CREATED", None) for n, m in messages),
        "delivery": (
            (
                *(n, m.tenant, m.id, lane_of(m, host(n)), host(n), m.not_before_ms),
                *((n, NODE) if n == FIRST_OF_KEY else (None, None)),
                *(False, 0, 0, False, None if m.flow is None else m.flow.key),
            )
            for n, m in messages
        ),
    }


FIRST_OF_KEY = 6


def _limits(model: Message, *, now_ms: int) -> Mapping[str, list[tuple[Any, ...]]]:
    """The rows of queues, keys, and of all lanes."""
    tenant = model.tenant
    names = [f"queue-{n}" for n in range(QUEUES)]
    key = FlowKey(name=FLOW.key, parallelism=FLOW.parallelism, used_ms=now_ms)
    on = key_resource(tenant, FLOW.key)
    return {
        "queue": [
            *(
                (tenant, name, 1, name == PAUSED, now_ms, now_ms, now_ms)
                for name in [PAUSED, *names]
            )
        ],
        "flow_key": [(tenant, key.name, encode(key), now_ms, None)],
        "hold": [(tenant, key_lane(key.name), FIRST_OF_KEY)],
        "lane": [
            (tenant, queue_lane(PAUSED), None, None, None),
            (tenant, key_lane(key.name), None, None, None),
            *((tenant, queue_lane(name), now_ms, on, None) for name in names),
            *(
                (tenant, lane_of(model, host(n)), now_ms + DAY_MS + n, None, None)
                for n in range(HOSTS)
            ),
        ],
    }
