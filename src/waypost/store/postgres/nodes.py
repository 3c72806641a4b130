"""The home of nodes: who is alive, by a lease that each renews, and what becomes of the
claims of one that is not.

A node is one process.  One whose lease was over takes up a new one, with what it had
claimed and nobody has taken over: an outage of the database is nobody's death.  The clock of
leases is the database's, and everything that is decided by it is decided in SQL.

| what a node does             | how it is held to its lease                                    |
| ---------------------------- | -------------------------------------------------------------- |
| claims, births               | in the transaction the node's row is locked, and alive         |
| begins an attempt            | before the lease of its claim is over by the node's own        |
|                              | monotonic clock (`Life`); the next lease is another            |
| settles, releases            | by the token of the claim, which a take-over takes away        |
| takes over what is another's | once that lease is over, and the database was there for a full |
|                              | lease (`Life`)                                                 |
"""

from collections.abc import Set

import msgspec

from waypost.domain.lanes import lane_of
from waypost.domain.places import SUSPECT_AFTER
from waypost.store.postgres.database import APPLICATION, Connection
from waypost.store.postgres.messages import decode_message
from waypost.store.postgres.settling import Ending
from waypost.store.postgres.writer import NOW_MS, Batch
from waypost.store.protocol import Claim, Node

CHUNK = 500
"""Claims that are taken over in one transaction."""


async def join(db: Connection, *, name: str, lease_ms: int) -> tuple[int, int]:
    """Begin a life: its number, and what time it is."""
    [row] = await db.fetch(
        "INSERT INTO node (name, began_ms, until_ms)"
        f" SELECT $1, now_ms, now_ms + $2 FROM {NOW_MS} n (now_ms) RETURNING id, began_ms",
        name,
        lease_ms,
    )
    return row["id"], row["began_ms"]


async def renew(db: Connection, node: int, *, lease_ms: int) -> int | None:
    """Renew a lease, be it over or not: what time it is.  None where the node was taken over,
    and is forgotten."""
    now_ms: int | None = await db.fetchval(
        f"UPDATE node SET until_ms = n.now_ms + $2 FROM {NOW_MS} n (now_ms) WHERE id = $1"
        " RETURNING n.now_ms",
        node,
        lease_ms,
    )
    return now_ms


async def over(db: Connection, *, left_only: bool) -> list[int]:
    """The nodes whose leases are over; or of these only those that ended them by themselves."""
    rows = await db.fetch(
        f"SELECT id FROM node, {NOW_MS} n (now_ms)"
        " WHERE until_ms = 0 OR (until_ms <= n.now_ms AND NOT $1) ORDER BY id",
        left_only,
    )
    return [row[0] for row in rows]


async def strays(db: Connection, node: int, in_hand: Set[tuple[int, int]]) -> list[Claim]:
    """What is written down as claimed by a node that does not know of it: a commit went
    through whose answer was lost."""
    rows = await db.fetch("SELECT number, token FROM delivery WHERE node = $1", node)
    numbers = [row["number"] for row in rows if tuple(row) not in in_hand]
    if not numbers:
        return []
    found = await db.fetch(
        "SELECT d.number, d.token, d.host, d.retried, d.interrupted, m.facts FROM delivery d"
        " JOIN message m ON m.tenant = d.tenant AND m.id = d.message_id"
        " WHERE d.number = ANY($1::bigint[]) AND d.node = $2",
        numbers,
        node,
    )
    return [
        Claim(
            number=row["number"],
            token=row["token"],
            message=decode_message(row["facts"]),
            body=b"",
            host=row["host"],
            retried=row["retried"],
            interrupted=row["interrupted"],
        )
        for row in found
        if (row["number"], row["token"]) not in in_hand
    ]


async def end_the_silent(db: Connection, *, silence_ms_max: int) -> int:
    """End sessions of nodes that neither take an answer nor go on with a statement, as those
    of one that is frozen: others wait for their locks.  To the database they are not idle."""
    rows = await db.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = $1 AND datname = current_database()"
        " AND usename = current_user AND wait_event_type = 'Client'"
        " AND (state = 'active' OR wait_event = 'ClientWrite')"  # at an answer's end it is idle
        " AND state_change < clock_timestamp() - $2 * interval '1 ms'",
        APPLICATION,
        silence_ms_max,
    )
    return len(rows)


async def seen(db: Connection) -> list[Node]:
    """All nodes, the oldest first."""
    rows = await db.fetch(
        "SELECT id, name, began_ms, until_ms - n.now_ms AS lease_ms,"
        " (SELECT count(*) FROM delivery d WHERE d.node = node.id) AS in_flight"
        f" FROM node, {NOW_MS} n (now_ms) ORDER BY id"
    )
    return [Node(**row) for row in rows]


async def leave(db: Connection, node: int) -> None:
    """End a lease now: others may take over at once."""
    await db.execute("UPDATE node SET until_ms = 0 WHERE id = $1", node)


class TakeOver(msgspec.Struct, frozen=True):
    node: int
    now_ms: int


async def take_over(batch: Batch, calls: list[TakeOver]) -> list[int]:
    """Let some of what a dead node had claimed wait again (D18): how much.  With the last of
    it the node is forgotten.

    It uses up no retry, but counts as an interruption.
    """
    return [await _take_over(batch, call) for call in calls]


async def _take_over(batch: Batch, call: TakeOver) -> int:
    db = batch.db
    # Whoever claims for the node holds its row until the claim is committed, and so seen below.
    over = await db.fetchval(
        f"SELECT until_ms <= n.now_ms FROM node, {NOW_MS} n (now_ms) WHERE id = $1"
        " FOR UPDATE OF node",
        call.node,
    )
    if not over:
        return 0
    ending = Ending(batch, now_ms=call.now_ms)
    found = await db.fetch(
        "SELECT d.number, d.lane, m.facts FROM delivery d"
        " JOIN message m ON m.tenant = d.tenant AND m.id = d.message_id"
        " WHERE d.node = $1 ORDER BY d.number LIMIT $2",
        call.node,
        CHUNK,
    )
    messages = {row["number"]: decode_message(row["facts"]) for row in found}
    await ending.lock(
        messages.values(), lanes=((messages[row["number"]].tenant, row["lane"]) for row in found)
    )
    rows = await db.fetch(
        "SELECT number, token, host, retried, interrupted + 1 AS interrupted, canceling"
        " FROM delivery WHERE number = ANY($1::bigint[]) AND node = $2"
        " ORDER BY number FOR UPDATE",
        list(messages),
        call.node,
    )
    suspects: list[tuple[int, str]] = []
    for row in rows:
        claim = Claim(
            number=row["number"],
            token=row["token"],
            message=messages[row["number"]],
            body=b"",
            host=row["host"],
            retried=row["retried"],
            interrupted=row["interrupted"],
        )
        if claim.interrupted >= SUSPECT_AFTER and claim.message.queue is None:
            suspects.append((claim.number, lane_of(claim.message, claim.host, suspect=True)))
        ending.release(claim, canceling=row["canceling"])
    if suspects:
        await db.execute(
            "UPDATE delivery d SET lane = n.lane"
            " FROM unnest($1::bigint[], $2::text[]) n (number, lane) WHERE d.number = n.number",
            *zip(*suspects, strict=True),
        )
    await ending.write()
    if len(found) < CHUNK:
        await db.execute("DELETE FROM node WHERE id = $1", call.node)
    return len(rows)
