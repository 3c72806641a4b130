"""The durable rate, end to end, beside what the sink alone can do in the same minute."""

from bench import figures
from bench.figures import Bar, Figure
from bench.loader import post_for, publishing_to
from bench.plan import Plan
from bench.run import Run, under
from bench.server import logged_whole, server
from bench.sink import sink

RATIO_MIN = 0.06


async def measure(plan: Plan) -> list[Figure]:
    raw: list[float] = []
    runs: list[Run] = []
    async with sink(plan.directory) as port:
        url = f"http://127.0.0.1:{port}/"
        for _ in range(plan.pairs):
            load = await post_for(plan.sink_s, url, directory=plan.directory)
            async with server(plan.directory) as waypost:
                path = publishing_to(url)
                runs.append(
                    await under(
                        post_for(plan.rate_s, waypost.url + path, directory=plan.directory),
                        waypost,
                    )
                )
            raw.append(load.rate)
            logged = logged_whole(waypost.database)
            if logged != runs[-1].delivered:
                raise RuntimeError(f"{logged} are logged whole, of {runs[-1].delivered} delivered")
            waypost.remove()
    ratios = [run.rate / r for run, r in zip(runs, raw, strict=True)]
    bar = Bar(at_least=RATIO_MIN)
    return [
        Figure(name="sink alone, R", samples=raw, show=figures.rate),
        Figure(name="durable, end to end", samples=[r.rate for r in runs], show=figures.rate),
        Figure(name="  of R", samples=ratios, show=figures.percent, bar=bar),
        Figure(name="published", samples=[r.published_rate for r in runs], show=figures.rate),
        Figure(name="CPU per message", samples=[r.cpu_us for r in runs], show=figures.us),
        Figure(
            name="cores busy with other work",
            samples=[r.others_cores for r in runs],
            show=figures.ratio,
        ),
    ]
