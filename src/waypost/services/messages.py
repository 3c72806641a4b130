"""The home of what can be asked of messages that were accepted: to cancel many of them."""

from typing import Final

from waypost.clock import Clock
from waypost.domain.filters import Filter
from waypost.store.protocol import Deliveries, Reader

CHUNK: Final = 25
"""Messages that are cancelled in one transaction, some 40 us each: a publish that waits for it
meanwhile waits for a millisecond."""


class Messages:
    """Cancels messages."""

    def __init__(self, deliveries: Deliveries, reader: Reader, clock: Clock) -> None:
        self._deliveries = deliveries
        self._reader = reader
        self._clock = clock

    async def cancel_many(self, tenant: str, where: Filter, *, count_max: int | None) -> int:
        """Cancel the messages that `where` means, at most `count_max`, those first that were
        accepted first: how many could be cancelled (D38).

        What is accepted from now on is not among them.  Where this stops midway, what was
        cancelled is, and the rest goes on (D36).
        """
        cancelled, cursor = 0, None
        while True:
            found = await self._reader.cancellable(tenant, where=where, cursor=cursor)
            at = 0
            while at < len(found.ids):
                room = CHUNK if count_max is None else min(CHUNK, count_max - cancelled)
                cancelled += await self._deliveries.cancel_many(
                    tenant, found.ids[at : at + room], now_ms=self._clock.now_ms()
                )
                at += room
                if cancelled == count_max:
                    return cancelled
            cursor = found.cursor
            if cursor is None:
                return cancelled
