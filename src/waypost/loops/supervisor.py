"""The home of starting and stopping: every loop is a task here, and shutdown can be read.

    stop accepting -> stop claiming -> drain -> release what is left -> close

The drain ends early when somebody is in a hurry.  A loop that fails for good
ends the server: whoever watches over it starts it again.
"""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

import structlog

from waypost.domain.errors import StoreFull, StoreUnavailable
from waypost.domain.places import Places
from waypost.loops.dispatcher import Dispatcher
from waypost.loops.loop import Loop

log = structlog.stdlib.get_logger()


class Door(Protocol):
    """What callers come in by."""

    def stop_accepting(self) -> None: ...

    async def close(self) -> None: ...


class Supervisor:
    """Runs the loops; `ended` is set when it is time to stop, `failed` says why it was us."""

    def __init__(
        self,
        *,
        door: Door,
        dispatcher: Dispatcher,
        others: Sequence[Loop],
        places: Places,
        drain_ms: int,
    ) -> None:
        self._door = door
        self._dispatcher = dispatcher
        self.loops = (dispatcher.loop, *others)
        self._places = places
        self._drain_ms = drain_ms
        self.ended = asyncio.Event()
        self.hurry = asyncio.Event()
        self.failed: BaseException | None = None
        self._tasks: dict[Loop, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        for loop in self.loops:
            task = asyncio.create_task(loop.run(), name=f"{loop.name} loop")
            task.add_done_callback(self._loop_ended)
            self._tasks[loop] = task
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        log.info("server_stopping")
        self._door.stop_accepting()
        self._places.close()
        for loop in self._tasks:
            loop.stop()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        try:
            released = await self._dispatcher.drain(wait_ms=self._drain_ms, hurry=self.hurry)
        except (StoreFull, StoreUnavailable) as why:
            log.warning("store_away", why=str(why))  # the next start takes over what is left
            released = 0
        await self._door.close()
        log.info("server_stopped", released=released)

    def stop(self) -> None:
        """Ask for the end; asked twice, for a quick one."""
        if self.ended.is_set():
            self.hurry.set()
        self.ended.set()

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("loop_fault", loop=task.get_name(), exc_info=fault)
            self.failed = fault
            self.ended.set()
            self.hurry.set()
