"""From publish to receive at a steady 300 messages a second, beside what a sync takes.

The sync is measured by a process that runs concurrently (`bench.disk`).
"""

import asyncio
import sys
from statistics import median, quantiles

import msgspec

from bench import figures
from bench.figures import Bar, Figure
from bench.machine import Others
from bench.open_loop import open_loop
from bench.plan import Plan
from bench.processes import process
from bench.server import server

RATE = 300
P99_MS_MAX = 25
SYNCS_MAX = 6


async def measure(plan: Plan) -> list[Figure]:
    half_ms: list[float] = []
    p99_ms: list[float] = []
    sync_ms: list[float] = []
    others: list[float] = []
    for _ in range(plan.pairs):
        async with open_loop() as steady, server(plan.directory) as waypost:
            beside = Others()
            async with asyncio.TaskGroup() as both:
                syncs = both.create_task(_sync_ms(plan))
                took = both.create_task(
                    steady.publish(waypost.url, rate=RATE, seconds=plan.latency_s)
                )
            others.append(beside.cores())
        warm = took.result()[RATE:]  # the first second opens connections
        half_ms.append(median(warm))
        p99_ms.append(_p99(warm))
        sync_ms.append(_p99(syncs.result()))
    bar = Bar(at_most=max(P99_MS_MAX, SYNCS_MAX * median(sync_ms)))
    return [
        Figure(name=f"publish to receive at {RATE}/s, p50", samples=half_ms, show=figures.ms),
        Figure(name="  p99", samples=p99_ms, show=figures.ms, bar=bar),
        Figure(name="  fdatasync p99, at the same time", samples=sync_ms, show=figures.ms),
        Figure(name="  cores busy with other work", samples=others, show=figures.ratio),
    ]


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]


async def _sync_ms(plan: Plan) -> list[float]:
    file = plan.directory / "sync.bin"
    words = (sys.executable, "-m", "bench.disk", str(file), str(plan.latency_s))
    async with process(*words, log=plan.directory / "sync.log") as syncing:
        said, _ = await syncing.communicate()
    return msgspec.json.decode(said, type=list[float])
