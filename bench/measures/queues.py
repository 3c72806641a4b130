"""The end-to-end rate of messages that each have a queue of their own."""

from bench import figures
from bench.figures import Figure
from bench.loader import enqueueing_to, post_each
from bench.plan import Plan
from bench.run import Run, under
from bench.server import server
from bench.sink import sink


async def measure(plan: Plan) -> list[Figure]:
    runs: list[Run] = []
    async with sink(plan.directory) as port:
        url = f"http://127.0.0.1:{port}/"
        paths = [enqueueing_to(url, queue=f"queue-{n}") for n in range(plan.queues)]
        for _ in range(plan.pairs):
            async with server(plan.directory) as waypost:
                load = post_each(paths, waypost.url, directory=plan.directory)
                runs.append(await under(load, waypost))
            waypost.remove()
    name = f"{plan.queues:,} queues of one message"
    return [
        Figure(name=f"{name}, end to end", samples=[r.rate for r in runs], show=figures.rate),
        Figure(name="  published", samples=[r.published_rate for r in runs], show=figures.rate),
        Figure(name="  CPU per message", samples=[r.cpu_us for r in runs], show=figures.us),
    ]
