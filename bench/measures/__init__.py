"""The measurements, by name.  Each answers figures; what it starts, it ends."""

from collections.abc import Awaitable, Callable

from bench.figures import Figure
from bench.measures import bulk, callbacks, delayed, fan_out, hanging, latency, queues, rate
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
}
"""Every measurement there is, in the order in which they are made."""
