"""The home of what engines ask of filters: what the facts of messages must be looked at for.

The facts are kept as JSON, so an engine can look before it decodes them.
"""

from msgspec.structs import replace

from waypost.domain.filters import EVERYTHING, Filter

FIELDS: dict[str, tuple[str, ...]] = {
    "urls": ("url",),
    "groups": ("group",),
    "queues": ("queue",),
    "schedules": ("schedule",),
    "caller_ips": ("caller_ip",),
    "flow_keys": ("flow", "key"),
}
"""For a field of `Filter` that names one thing: under which keys the facts have it."""


def asks_for_more_than_dates(of: Filter) -> bool:
    """Whether a message has to be looked at before it is known whether it is meant."""
    return replace(of, from_ms=None, to_ms=None) != EVERYTHING
