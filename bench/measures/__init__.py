"""The measurements, by name.  Each answers figures; what it starts, it ends."""

from collections.abc import Awaitable, Callable

from bench.figures import Figure
from bench.measures import delayed, hanging, latency, queues, rate
from bench.plan import Plan

Measure = Callable[[Plan], Awaitable[list[Figure]]]

MEASURES: dict[str, Measure] = {
    "rate": rate.measure,
    "latency": latency.measure,
    "delayed": delayed.measure,
    "queues": queues.measure,
    "hanging": hanging.measure,
}
"""Every measurement there is, in the order in which they are made."""
