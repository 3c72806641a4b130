"""The home of what can be asked of messages that were accepted: to cancel many of them."""

from collections.abc import Sequence

from waypost.clock import Clock
from waypost.domain.filters import Filter
from waypost.services.chunks import total
from waypost.store.protocol import Deliveries, Reader


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

        async def cancel(chunk: Sequence[str]) -> int:
            now_ms = self._clock.now_ms()
            return await self._deliveries.cancel_many(tenant, chunk, now_ms=now_ms)

        cancelled, cursor = 0, None
        while True:
            found = await self._reader.cancellable(tenant, where=where, cursor=cursor)
            left = found.ids
            while left:
                room = len(left) if count_max is None else count_max - cancelled
                cancelled += await total(left[:room], cancel)
                left = left[room:]
                if cancelled == count_max:
                    return cancelled
            cursor = found.cursor
            if cursor is None:
                return cancelled
