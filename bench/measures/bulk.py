"""How much longer publishes take while much is cancelled, retried and listed, over a quiet server.

Each side publishes at a steady rate to its own receiver, on a copy of one
database: half of what the operation is about has the label that is asked for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import quantiles

from bench import figures, preload
from bench.figures import Bar, Figure
from bench.loader import BODY
from bench.measures.delayed import copy
from bench.open_loop import open_loop
from bench.plan import Plan
from bench.server import Server, server

RATE = 200
RATIO_MAX = 3.0
LABEL = "wanted"
PAGE = 100
WARM_S = 1
"""The first second opens connections."""

WORK_S_MAX = 300

Work = Callable[[Server], Awaitable[int]]


async def measure(plan: Plan) -> list[Figure]:
    model = plan.directory / "bulk.db"
    url = "http://127.0.0.1:9/"
    half = plan.bulk // 2
    for labels in ([LABEL], ["other"]):
        await preload.delayed(model, count=half, url=url, body=BODY.encode(), labels=labels)
        await preload.dead(model, count=half, url=url, body=BODY.encode(), labels=labels)
    works: dict[str, Work] = {
        "cancel by label": _cancel,
        "retry dead letters by label": _retry,
        "list dead letters by label, page by page": _list,
    }
    rest_ms: dict[str, list[float]] = {name: [] for name in works}
    during_ms: dict[str, list[float]] = {name: [] for name in works}
    took_s: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(plan.pairs):
        for name, work in works.items():
            at_rest, during, seconds = await _p99s_ms(plan, model, work, half)
            rest_ms[name].append(at_rest)
            during_ms[name].append(during)
            took_s[name].append(seconds)
    model.unlink()
    every_ms = [each for samples in rest_ms.values() for each in samples]
    found = [Figure(name=f"publish to receive at {RATE}/s, p99", samples=every_ms, show=figures.ms)]
    for name, samples in during_ms.items():
        ratios = [during / rest for during, rest in zip(samples, rest_ms[name], strict=True)]
        rates = [half / seconds for seconds in took_s[name]]
        bar = Bar(at_most=RATIO_MAX)
        found += [
            Figure(name=f"  {name}: p99", samples=samples, show=figures.ms),
            Figure(name="    over that at rest", samples=ratios, show=figures.ratio, bar=bar),
            Figure(name=f"    of {half:,} among {plan.bulk:,}", samples=rates, show=figures.rate),
        ]
    return found


async def _p99s_ms(plan: Plan, model: Path, work: Work, count: int) -> tuple[float, float, float]:
    """How long the slowest hundredth of the publishes took at rest, which is just before and just
    after `work`, and during it; and how long that took (s)."""
    database = plan.directory / "copy.db"
    await asyncio.to_thread(copy, model, database)
    async with open_loop() as steady, server(plan.directory, database=database) as waypost:
        async with asyncio.TaskGroup() as both:
            started_s = time.monotonic()
            publishing = both.create_task(
                steady.publish(waypost.url, rate=RATE, seconds=WORK_S_MAX)
            )
            await asyncio.sleep(WARM_S + plan.latency_s)
            began_s = time.monotonic()
            done = await work(waypost)
            ended_s = time.monotonic()
            await asyncio.sleep(plan.latency_s)
            steady.stop()
        if done != count:
            raise RuntimeError(f"{done:,} were found of {count:,}")
        sent_ms = publishing.result()
    waypost.remove()
    first, last = (int((at_s - started_s) * RATE) for at_s in (began_s, ended_s))
    at_rest = sent_ms[WARM_S * RATE : first] + sent_ms[last:]
    return _p99(at_rest), _p99(sent_ms[first:last]), ended_s - began_s


async def _cancel(waypost: Server) -> int:
    answer = await waypost.ask("DELETE", f"/v2/messages?label={LABEL}")
    return int(answer["cancelled"])


async def _retry(waypost: Server) -> int:
    """The new messages are delayed, so that there are no deliveries but those of the publisher."""

    async def page(cursor: str) -> tuple[int, str | None]:
        answer = await waypost.ask(
            "POST",
            f"/v2/dlq/retry?label={LABEL}&count={PAGE}{cursor}",
            header={"Upstash-Delay": "1d"},
        )
        return len(answer["responses"]), answer.get("cursor")

    return await _pages(page)


async def _list(waypost: Server) -> int:
    async def page(cursor: str) -> tuple[int, str | None]:
        answer = await waypost.ask("GET", f"/v2/dlq?label={LABEL}&count={PAGE}{cursor}")
        return len(answer["messages"]), answer.get("cursor")

    return await _pages(page)


async def _pages(page: Callable[[str], Awaitable[tuple[int, str | None]]]) -> int:
    """All pages, one after the other: how many rows they had."""
    rows, more = await page("")
    while more is not None:
        count, more = await page(f"&cursor={more}")
        rows += count
    return rows


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]
