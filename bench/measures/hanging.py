"""The durable rate of a good host beside hosts that never answer, over that without them.

A good host that is *known* has had messages before the others came; one that is
*new* has not, and finds them there.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Literal

from bench import figures, hosts
from bench.figures import Bar, Figure
from bench.loader import post_each, post_for, publishing_to
from bench.plan import Plan
from bench.run import under
from bench.server import server
from bench.sink import sink
from tests.support.dns_server import dns_server

RATIO_MIN = 0.9

SETTLE_S = 2
"""After the messages that will hang are published, so that they take all they can."""


Side = Literal["alone", "known", "new"]


async def measure(plan: Plan) -> list[Figure]:
    return [*await _one_host(plan), *await _many_hosts(plan)]


async def _one_host(plan: Plan) -> list[Figure]:
    async with sink(plan.directory) as port, hosts.hanging(["127.0.0.1"]) as hanging_port:
        bad = [f"http://127.0.0.1:{hanging_port}/"] * plan.hanging_messages
        return await _beside(
            plan,
            f"http://127.0.0.1:{port}/",
            bad,
            sides=("alone", "new"),
            name=f"one hanging host with {plan.hanging_messages:,} messages",
            settings={},
        )


async def _many_hosts(plan: Plan) -> list[Figure]:
    addresses = hosts.hanging_addresses(plan.hanging_addresses)
    names = hosts.hanging_names(plan.hanging_names)
    async with (
        sink(plan.directory) as port,
        hosts.hanging(addresses) as hanging_port,
        dns_server({hosts.GOOD_NAME: ["127.0.0.1"]}, silent=names, ttl_s=60) as dns,
    ):
        each = -(-plan.hanging_messages // len(addresses))
        bad = [f"http://{host}:{hanging_port}/" for host in [*names, *addresses]] * each
        return await _beside(
            plan,
            f"http://{hosts.GOOD_NAME}:{port}/",
            bad,
            sides=("alone", "known", "new"),
            name=f"{len(addresses):,} hanging addresses, {len(names)} names",
            settings={"nameservers": dns.address},
        )


async def _beside(
    plan: Plan,
    good: str,
    bad: Sequence[str],
    *,
    sides: Sequence[Side],
    name: str,
    settings: Mapping[str, str],
) -> list[Figure]:
    rates: dict[Side, list[float]] = {side: [] for side in sides}
    for number in range(plan.pairs):
        for side in reversed(sides) if number % 2 else sides:
            rates[side].append(await _rate(plan, good, bad, side=side, settings=settings))
    alone = rates.pop("alone")
    found = [Figure(name="a good host alone", samples=alone, show=figures.rate)]
    for side, samples in rates.items():
        ratios = [with_ / without for with_, without in zip(samples, alone, strict=True)]
        bar = Bar(at_least=RATIO_MIN)
        found += [
            Figure(name=f"  {side}, beside {name}", samples=samples, show=figures.rate),
            Figure(name="    over that alone", samples=ratios, show=figures.ratio, bar=bar),
        ]
    return found


async def _rate(
    plan: Plan, good: str, bad: Sequence[str], *, side: Side, settings: Mapping[str, str]
) -> float:
    async with server(plan.directory, settings=settings) as waypost:
        url = waypost.url + publishing_to(good)
        if side == "known":
            since = await waypost.counts()
            await post_for(1, url, directory=plan.directory)
            await waypost.drained(since=since)
        if side != "alone":
            paths = [publishing_to(url) for url in bad]
            await post_each(paths, waypost.url, directory=plan.directory)
            await asyncio.sleep(SETTLE_S)
        run = await under(post_for(plan.rate_s, url, directory=plan.directory), waypost)
    waypost.remove()
    return run.rate
