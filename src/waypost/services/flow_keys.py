"""The home of what can be asked of flow-control keys (contract section 12)."""

from collections.abc import Callable

from msgspec.structs import replace

from waypost.clock import Clock
from waypost.domain.errors import Invalid, NotFound
from waypost.domain.flow import FlowKey, check_period_ms
from waypost.domain.options import Limits
from waypost.domain.places import Places
from waypost.store.protocol import FlowKeys as Store
from waypost.store.protocol import FlowKeyState, Reader


class FlowKeys:
    """Shows and changes keys.  Messages make them.

    `in_flight_max` is how many attempts may be under way, of all keys and of none; those
    that linger are not counted against it, but are shown.
    """

    def __init__(
        self,
        store: Store,
        reader: Reader,
        clock: Clock,
        *,
        limits: Limits,
        places: Places,
        in_flight_max: int,
    ) -> None:
        self._store = store
        self._reader = reader
        self._clock = clock
        self._limits = limits
        self._places = places
        self.in_flight_max = in_flight_max

    async def get(self, tenant: str, name: str) -> FlowKeyState:
        """Raises NotFound."""
        state = await self._reader.flow_key(tenant, name, now_ms=self._clock.now_ms())
        if state is None:
            raise NotFound(f"flow control key {name} not found")
        return state

    async def all(self, tenant: str, *, search: str) -> list[FlowKeyState]:
        """Those in whose names `search` is, by name."""
        now_ms = self._clock.now_ms()
        return await self._reader.flow_keys(tenant, search=search, now_ms=now_ms)

    @property
    def in_flight(self) -> int:
        """The attempts under way."""
        return self._places.in_flight

    async def pause(self, tenant: str, name: str, *, paused: bool) -> None:
        """Hold all that have the key, or let them go again.  Raises Invalid for no such key,
        as all that follow do."""
        await self._change(tenant, name, lambda key, _: replace(key, paused=paused))

    async def pin(
        self,
        tenant: str,
        name: str,
        *,
        parallelism: int | None,
        rate: int | None,
        period_ms: int | None,
    ) -> None:
        """Give a key limits that messages do not change.  Also raises Invalid for a limit."""
        if parallelism is None and rate is None and period_ms is None:
            raise Invalid("there is nothing to pin: give a parallelism, a rate or a period")
        if period_ms is not None:
            check_period_ms(period_ms, period_ms_max=self._limits.flow_period_ms_max)

        await self._change(
            tenant,
            name,
            lambda key, now_ms: key.pinned(
                parallelism=parallelism, rate=rate, period_ms=period_ms, now_ms=now_ms
            ),
        )

    async def unpin(self, tenant: str, name: str, *, parallelism: bool, rate: bool) -> None:
        """Let messages change these limits of a key again."""
        await self._change(
            tenant, name, lambda key, _: key.unpinned(parallelism=parallelism, rate=rate)
        )

    async def reset_rate(self, tenant: str, name: str) -> None:
        """Begin a new window of a key's rate now."""
        await self._change(tenant, name, lambda key, now_ms: key.rate_reset(now_ms=now_ms))

    async def _change(
        self, tenant: str, name: str, change: Callable[[FlowKey, int], FlowKey]
    ) -> None:
        now_ms = self._clock.now_ms()

        def changed(key: FlowKey | None) -> FlowKey:
            if key is None:
                raise Invalid(f"flow control key {name} not found")
            return change(key, now_ms)

        await self._store.change_flow_key(tenant, name, changed, now_ms=now_ms)
