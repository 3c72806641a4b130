"""Messages a second, end to end, where each has a callback, over that where none has."""

from bench import figures
from bench.figures import Bar, Figure
from bench.loader import post_for, publishing_to
from bench.plan import Plan
from bench.run import under
from bench.server import server
from bench.sink import sink

RATIO_MIN = 0.45


async def measure(plan: Plan) -> list[Figure]:
    without: list[float] = []
    called: list[float] = []
    async with sink(plan.directory) as port:
        url = f"http://127.0.0.1:{port}/"
        for number in range(plan.pairs):
            sides = [(without, None), (called, f"{url}done")]
            for rates, callback in reversed(sides) if number % 2 else sides:
                rates.append(await _rate(plan, url, callback))
    ratios = [with_ / none for with_, none in zip(called, without, strict=True)]
    bar = Bar(at_least=RATIO_MIN)
    return [
        Figure(name="durable, without callbacks", samples=without, show=figures.rate),
        Figure(name="durable, with a callback each", samples=called, show=figures.rate),
        Figure(name="  over that without", samples=ratios, show=figures.ratio, bar=bar),
    ]


async def _rate(plan: Plan, url: str, callback: str | None) -> float:
    """Messages a second, their callbacks not counted but waited for."""
    async with server(plan.directory) as waypost:
        path = waypost.url + publishing_to(url)
        load = post_for(plan.rate_s, path, directory=plan.directory, callback=callback)
        run = await under(load, waypost, callbacks=callback is not None)
    waypost.remove()
    return run.rate if callback is None else run.rate / 2
