"""The durable rate while many delayed messages wait in the same lane, over that with none.

They are written by the store itself before the server starts; each run has its
own copy of that file.
"""

import asyncio
import os
import shutil
from pathlib import Path

from bench import figures, preload
from bench.figures import Bar, Figure
from bench.loader import BODY, post_for, publishing_to
from bench.plan import Plan
from bench.run import under
from bench.server import server
from bench.sink import sink

RATIO_MIN = 0.85


async def measure(plan: Plan) -> list[Figure]:
    model = plan.directory / "delayed.db"
    none: list[float] = []
    many: list[float] = []
    async with sink(plan.directory) as port:
        url = f"http://127.0.0.1:{port}/"
        await preload.delayed(model, count=plan.delayed, url=url, body=BODY.encode())
        for number in range(plan.pairs):
            sides = [(none, None), (many, model)]
            for rates, source in reversed(sides) if number % 2 else sides:
                rates.append(await _rate(plan, url, source))
    model.unlink()
    ratios = [with_ / without for with_, without in zip(many, none, strict=True)]
    bar = Bar(at_least=RATIO_MIN)
    waiting = f"with {plan.delayed:,} delayed"
    return [
        Figure(name="durable, with nothing waiting", samples=none, show=figures.rate),
        Figure(name=f"durable, {waiting}", samples=many, show=figures.rate),
        Figure(name="  over that with none", samples=ratios, show=figures.ratio, bar=bar),
    ]


async def _rate(plan: Plan, url: str, source: Path | None) -> float:
    database = None
    if source is not None:
        database = plan.directory / "copy.db"
        await asyncio.to_thread(copy, source, database)
    async with server(plan.directory, database=database) as waypost:
        load = post_for(plan.rate_s, waypost.url + publishing_to(url), directory=plan.directory)
        run = await under(load, waypost)
    waypost.remove()
    return run.rate


def copy(source: Path, target: Path) -> None:
    """Copy, and let the disk come to rest."""
    shutil.copyfile(source, target)
    fd = os.open(target, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
