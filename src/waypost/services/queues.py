"""The home of what can be asked of queues (contract section 7)."""

from typing import Final, Protocol

from waypost.clock import Clock
from waypost.domain.errors import Invalid, NotFound
from waypost.domain.options import Limits, checked_name
from waypost.store.protocol import Queue
from waypost.store.protocol import Queues as Store

PARALLELISM_MAX: Final = 10_000

CHUNK: Final = 500
"""Messages of a queue that end in one transaction, so that others have their turn between."""


class Reader(Protocol):
    """What is looked at here."""

    async def queue(self, tenant: str, name: str) -> Queue | None: ...

    async def queues(self, tenant: str) -> list[Queue]: ...


class Queues:
    """Makes, changes and ends queues."""

    def __init__(self, store: Store, reader: Reader, clock: Clock, *, limits: Limits) -> None:
        self._store = store
        self._reader = reader
        self._clock = clock
        self._limits = limits

    async def get(self, tenant: str, name: str) -> Queue:
        """Raises NotFound."""
        queue = await self._reader.queue(tenant, name)
        if queue is None:
            raise _unknown(name)
        return queue

    async def all(self, tenant: str) -> list[Queue]:
        """By name."""
        return await self._reader.queues(tenant)

    async def put(self, tenant: str, name: str, *, parallelism: int, paused: bool | None) -> None:
        """Make a queue or change it; a `paused` of None leaves it as it is.

        Raises Invalid and LimitReached; then nothing was changed.
        """
        try:
            checked_name(name)
        except Invalid as fault:
            raise Invalid(f"queueName: {fault}") from None
        if not 1 <= parallelism <= PARALLELISM_MAX:
            raise Invalid(f"parallelism: {parallelism} is not from 1 to {PARALLELISM_MAX}")
        await self._store.put_queue(
            tenant,
            name,
            parallelism=parallelism,
            paused=paused,
            count_max=self._limits.queue_count_max,
            now_ms=self._clock.now_ms(),
        )

    async def pause(self, tenant: str, name: str, *, paused: bool) -> None:
        """Pause a queue, or let it go on.  Raises NotFound."""
        now_ms = self._clock.now_ms()
        if not await self._store.pause_queue(tenant, name, paused=paused, now_ms=now_ms):
            raise _unknown(name)

    async def delete(self, tenant: str, name: str) -> int:
        """Cancel what is in a queue, and end it, if it is there (D28); how many were cancelled."""
        cancelled, mark = 0, None
        while True:
            emptied = await self._store.empty_queue(
                tenant, name, mark=mark, count_max=CHUNK, now_ms=self._clock.now_ms()
            )
            cancelled, mark = cancelled + emptied.cancelled, emptied.mark
            if mark is None:
                return cancelled


def _unknown(name: str) -> NotFound:
    return NotFound(f"queue {name} not found")
