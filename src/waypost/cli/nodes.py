"""The home of `waypost nodes`: who shares a database, and how they are."""

import asyncio

from waypost import assembly
from waypost.cli.database import see
from waypost.cli.flags import Given, with_settings
from waypost.cli.tables import minute, show
from waypost.store.protocol import Node


@with_settings(("database",))
def nodes(given: Given) -> int:
    """List the nodes of a PostgreSQL database, by its clock."""
    settings = given.settings()
    see(settings)
    show(
        ("NODE", "NAME", "SINCE", "LEASE LEFT", "IN FLIGHT"),
        [
            (f"{each.id}", each.name, minute(each.began_ms), _left(each), f"{each.in_flight}")
            for each in asyncio.run(assembly.nodes(settings))
        ],
    )
    return 0


def _left(node: Node) -> str:
    return f"{node.lease_ms / 1000:.1f} s" if node.lease_ms > 0 else "over"
