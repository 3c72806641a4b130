"""How many dead rows PostgreSQL has while messages come and go at a steady rate.

A third of them is in queues, and a third has a flow-control key.  Autovacuum keeps up where no
table of which rows change has more dead rows in the last third of the time than in the first.
"""

import asyncio
from statistics import quantiles
from typing import Any

import asyncpg

from bench import figures
from bench.figures import Bar, Figure
from bench.open_loop import Way, open_loop
from bench.plan import Plan
from bench.postgres import connected, postgres
from bench.server import server

RATE = 300
QUEUES = 100
KEYS = 10
WAYS = [
    way
    for n in range(QUEUES)
    for way in (
        Way(),
        Way(queue=f"queue-{n}"),
        Way(key=f"key-{n % KEYS}", limits="parallelism=10"),
    )
]
"""A queue delivers one after the other, and has a message a second."""

EVERY_S = 1.0

GROWTH_MAX = 1.5
FEW = 5_000
"""Fewer dead rows than these are none: tables are not cleaned before they have some."""

TABLES = ("delivery", "lane", "hold", "queue", "flow_key", "node", "event")

_DEAD = """
SELECT coalesce(sum(n_dead_tup), 0)::bigint
  FROM pg_stat_user_tables s LEFT JOIN pg_inherits i ON i.inhrelid = s.relid
 WHERE coalesce(i.inhparent, s.relid) = $1::regclass
"""


async def measure(plan: Plan) -> list[Figure]:
    dead: dict[str, list[int]] = {table: [] for table in TABLES}
    with postgres(plan.directory) as running:
        async with (
            running.database() as url,
            open_loop() as steady,
            server(plan.directory, postgres=url) as waypost,
            connected(url) as db,
            asyncio.TaskGroup() as both,
        ):
            looking = both.create_task(_look(db, dead))
            took_ms = await steady.publish(waypost.url, rate=RATE, seconds=plan.steady_s, ways=WAYS)
            looking.cancel()
    found = [
        Figure(name=f"publish to receive at {RATE}/s", samples=took_ms, show=figures.ms),
        Figure(name="  p99", samples=[quantiles(took_ms, n=100)[98]], show=figures.ms),
    ]
    for table, seen in dead.items():
        first, last = seen[: len(seen) // 3], seen[-(len(seen) // 3) :]
        growth = max(FEW, *last) / max(FEW, *first)
        bar = Bar(at_most=GROWTH_MAX)
        found += [
            Figure(
                name=f"dead rows of {table}",
                samples=seen,
                show=figures.count,
            ),
            Figure(
                name="  peak of the last third over that of the first",
                samples=[growth],
                show=figures.ratio,
                bar=bar,
            ),
        ]
    return found


async def _look(db: "asyncpg.Connection[Any]", dead: dict[str, list[int]]) -> None:
    while True:
        for table, seen in dead.items():
            seen.append(await db.fetchval(_DEAD, table))
        await asyncio.sleep(EVERY_S)
