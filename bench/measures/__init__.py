"""The measurements, by name.  Each answers figures; what it starts, it ends."""

from collections.abc import Awaitable, Callable

from bench.figures import Figure
from bench.measures import (
    bloat,
    bulk,
    callbacks,
    claim,
    delayed,
    fan_out,
    hanging,
    latency,
    postgres,
    queues,
    rate,
)
from bench.plan import Plan

Measure = Callable[[Plan], Awaitable[list[Figure]]]

MEASURES: dict[str, Measure] = {
    "rate": rate.measure,
    "latency": latency.measure,
    "delayed": delayed.measure,
    "queues": queues.measure,
    "fan_out": fan_out.measure,
    "callbacks": callbacks.measure,
    "hanging": hanging.measure,
    "bulk": bulk.measure,
    "postgres": postgres.measure,
    "claim": claim.measure,
    "bloat": bloat.measure,
}
"""Every measurement there is, in the order in which they are made."""

ON_POSTGRES = frozenset({"postgres", "claim", "bloat"})
"""Those that need PostgreSQL."""
