"""The durable rate on PostgreSQL, over that on SQLite; and that of two nodes, over that of one.

Nodes share the same load, which two processes make also where there is one node.
"""

from contextlib import AsyncExitStack

from bench import figures
from bench.figures import Bar, Figure
from bench.loader import post_for, post_to_all, publishing_to
from bench.plan import Plan
from bench.postgres import Postgres, postgres
from bench.run import Run, under
from bench.server import Nodes, server
from bench.sink import sink

ENGINES_RATIO_MIN = 0.7
NODES_RATIO_MIN = 0.9


async def measure(plan: Plan) -> list[Figure]:
    async with sink(plan.directory) as port:
        path = publishing_to(f"http://127.0.0.1:{port}/")
        with postgres(plan.directory) as database:
            return [*await _engines(plan, database, path), *await _nodes(plan, database, path)]


async def _engines(plan: Plan, database: Postgres, path: str) -> list[Figure]:
    sqlite: list[Run] = []
    ours: list[Run] = []
    theirs_us: list[float] = []
    for number in range(plan.pairs):
        for on_sqlite in (False, True) if number % 2 else (True, False):
            if on_sqlite:
                sqlite.append(await _on_sqlite(plan, path))
            else:
                spent_us = database.cpu_us()
                ours.append(await _on_postgres(plan, database, path, nodes=1, loads=1))
                theirs_us.append((database.cpu_us() - spent_us) / ours[-1].delivered)
    ratios = [run.rate / other.rate for run, other in zip(ours, sqlite, strict=True)]
    bar = Bar(at_least=ENGINES_RATIO_MIN)
    return [
        Figure(name="durable, on SQLite", samples=[r.rate for r in sqlite], show=figures.rate),
        Figure(name="durable, on PostgreSQL", samples=[r.rate for r in ours], show=figures.rate),
        Figure(name="  over that on SQLite", samples=ratios, show=figures.ratio, bar=bar),
        Figure(name="  published", samples=[r.published_rate for r in ours], show=figures.rate),
        Figure(
            name="  CPU of the node per message", samples=[r.cpu_us for r in ours], show=figures.us
        ),
        Figure(name="  CPU of PostgreSQL per message", samples=theirs_us, show=figures.us),
        Figure(
            name="  cores busy with other work",
            samples=[r.others_cores for r in ours],
            show=figures.ratio,
        ),
    ]


async def _nodes(plan: Plan, database: Postgres, path: str) -> list[Figure]:
    rates: dict[int, list[float]] = {1: [], 2: []}
    for number in range(plan.pairs):
        for nodes in reversed(rates) if number % 2 else rates:
            run = await _on_postgres(plan, database, path, nodes=nodes, loads=2)
            rates[nodes].append(run.rate)
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    bar = Bar(at_least=NODES_RATIO_MIN)
    return [
        Figure(name="one node on PostgreSQL", samples=rates[1], show=figures.rate),
        Figure(name="  two nodes", samples=rates[2], show=figures.rate),
        Figure(name="  over that of one", samples=ratios, show=figures.ratio, bar=bar),
    ]


async def _on_sqlite(plan: Plan, path: str) -> Run:
    async with server(plan.directory) as waypost:
        load = post_for(plan.rate_s, waypost.url + path, directory=plan.directory)
        run = await under(load, waypost)
    waypost.remove()
    return run


async def _on_postgres(plan: Plan, database: Postgres, path: str, *, nodes: int, loads: int) -> Run:
    """The load is made by several processes, which publish to the nodes in turn."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(database.database())
        started = [
            await stack.enter_async_context(server(plan.directory, postgres=url))
            for _ in range(nodes)
        ]
        urls = [started[nth % nodes].url + path for nth in range(loads)]
        load = post_to_all(plan.rate_s, urls, directory=plan.directory)
        return await under(load, Nodes(started))
