"""The home of how much is measured."""

from pathlib import Path

from msgspec import Struct


class Plan(Struct, frozen=True, kw_only=True):
    """How often, how long and how much.  `directory` is on a real disk."""

    directory: Path
    pairs: int = 5
    sink_s: int = 3
    rate_s: int = 6
    latency_s: int = 10
    delayed: int = 300_000
    queues: int = 10_000
    fan_out: int = 150
    endpoints: int = 100
    hanging_messages: int = 10_000
    hanging_addresses: int = 1_000
    hanging_names: int = 100
    bulk: int = 100_000
    waiting: int = 1_000_000
    claims: int = 20
    steady_s: int = 600

    @classmethod
    def quick(cls, directory: Path) -> "Plan":
        """A look rather than a measurement."""
        return cls(
            directory=directory,
            pairs=2,
            sink_s=1,
            rate_s=3,
            latency_s=4,
            delayed=50_000,
            queues=4_000,
            fan_out=60,
            bulk=10_000,
            waiting=100_000,
            steady_s=60,
        )
