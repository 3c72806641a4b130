"""Nodes with a bug planted on purpose, to show that the harness would find it.

    python planted_nodes.py BUG serve --database postgresql://… …

| bug       | what is wrong                                                            |
| --------- | ------------------------------------------------------------------------ |
| ack_first | calls are answered before COMMIT                                         |
| unguarded | a settle does not ask whether its token is still that of the claim       |
| immortal  | a node claims and begins whatever its lease says, and joins late again   |
| deaf      | nobody hears that a commit no longer waits for its standby (01000)       |

The bugs are patched into the real program here; nothing in `src` knows of them.
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from waypost.cli.main import main
from waypost.domain.errors import StaleClaim
from waypost.domain.message import Logged
from waypost.store.calls import Settle
from waypost.store.postgres import writer
from waypost.store.postgres.life import Life
from waypost.store.postgres.settling import Ending
from waypost.store.postgres.writer import Batch, Operation, Writer

FLUSH_S = 0.3
"""How long a commit is put off by `ack_first`."""

LATE_S = 1.0
"""How late an `immortal` node joins again."""


def ack_first() -> None:
    run = Writer._try

    async def tried(self: Writer, operation: Operation, calls: list[Any]) -> Sequence[Any]:
        async def early(batch: Batch, arguments: list[Any]) -> Sequence[Any]:
            results = await operation(batch, arguments)
            for call, result in zip(calls, results, strict=True):
                call.answer(result)
            await asyncio.sleep(FLUSH_S)
            return results

        return await run(self, early, calls)

    Writer._try = tried  # type: ignore[method-assign]


def unguarded() -> None:
    settle = Ending.settle

    def settled(
        self: Ending, call: Settle, row: tuple[int | None, bool] | None
    ) -> Logged | StaleClaim:
        return settle(self, call, None if row is None else (call.claim.token, row[1]))

    Ending.settle = settled  # type: ignore[method-assign]


def immortal() -> None:
    join = Life._join

    async def joined(self: Life) -> int:
        if self.writer.node:
            await asyncio.sleep(LATE_S)
        return await join(self)

    async def may_claim(self: Batch, *, with_numbers: bool = False) -> bool:
        if with_numbers:
            await self.take_numbers()
        return True

    Life._join = joined  # type: ignore[method-assign]
    Life.is_alive = Life.may_begin = lambda *_: True  # type: ignore[assignment, method-assign]
    Batch.may_claim = may_claim  # type: ignore[method-assign]


def deaf() -> None:
    writer._listener = lambda unsure: lambda _db, _message: None


BUGS = {bug.__name__: bug for bug in (ack_first, unguarded, immortal, deaf)}

if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    main()
