"""Deliveries a second when each publish goes to a URL group, over as many single publishes."""

from bench import figures
from bench.figures import Bar, Figure
from bench.loader import post_each, publishing_to
from bench.plan import Plan
from bench.run import under
from bench.server import server
from bench.sink import sink

RATIO_MIN = 0.9
GROUP = "everyone"


async def measure(plan: Plan) -> list[Figure]:
    single: list[float] = []
    fanned: list[float] = []
    async with sink(plan.directory) as port:
        urls = [f"http://127.0.0.1:{port}/{n}" for n in range(plan.endpoints)]
        each_once = [publishing_to(url) for url in urls] * plan.fan_out
        to_group = [publishing_to(GROUP)] * plan.fan_out
        for number in range(plan.pairs):
            sides = [(single, each_once), (fanned, to_group)]
            for rates, paths in reversed(sides) if number % 2 else sides:
                rates.append(await _rate(plan, urls, paths))
    ratios = [group / one for group, one in zip(fanned, single, strict=True)]
    bar = Bar(at_least=RATIO_MIN)
    return [
        Figure(
            name=f"{len(each_once):,} messages, each published", samples=single, show=figures.rate
        ),
        Figure(
            name=f"  published to a group of {plan.endpoints}", samples=fanned, show=figures.rate
        ),
        Figure(name="  over each published", samples=ratios, show=figures.ratio, bar=bar),
    ]


async def _rate(plan: Plan, urls: list[str], paths: list[str]) -> float:
    async with server(plan.directory) as waypost:
        await waypost.group(GROUP, urls)
        load = post_each(paths, waypost.url, directory=plan.directory)
        run = await under(load, waypost)
    waypost.remove()
    return run.rate
